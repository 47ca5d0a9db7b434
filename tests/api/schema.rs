//! What `schema/` holds is what the code serves.

use cadastre::api;

#[test]
fn the_graphql_schema_is_the_one_that_is_served() {
    assert_eq!(
        api::graphql_sdl(),
        include_str!("../../schema/graphql/cadastre.graphql"),
        "mend with: cadastre schema --write schema"
    );
}

#[test]
fn the_openapi_description_is_the_one_that_is_served() {
    assert_eq!(
        api::openapi_json(),
        include_str!("../../schema/openapi.json"),
        "mend with: cadastre schema --write schema"
    );
}
