//! Tokens: their digests, for those that may still be used, and what lists show of all.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Text, Timestamptz};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};

use super::unreadable;
use super::write::{finish, take_turn};
use crate::registry::schema::{services, tokens};
use crate::registry::token::{Grant, NewToken, Principal, Token, TokenDigest, TokenId};
use crate::registry::{Error, Page, Snapshot};
use crate::vocab::{ServiceName, limits};

type Row = (
    i64,
    String,
    String,
    Option<String>,
    Option<String>,
    DateTime<Utc>,
    String,
    Option<DateTime<Utc>>,
    Option<DateTime<Utc>>,
    Option<DateTime<Utc>>,
);

type Columns = (
    tokens::number,
    tokens::id,
    tokens::role,
    diesel::dsl::Nullable<services::name>,
    tokens::description,
    tokens::created_at,
    tokens::created_by,
    tokens::expires_at,
    tokens::revoked_at,
    tokens::last_used_at,
);

fn columns() -> Columns {
    (
        tokens::number,
        tokens::id,
        tokens::role,
        services::name.nullable(),
        tokens::description,
        tokens::created_at,
        tokens::created_by,
        tokens::expires_at,
        tokens::revoked_at,
        tokens::last_used_at,
    )
}

fn principal(role: &str, service: Option<&str>) -> QueryResult<Principal> {
    match (role, service) {
        ("admin", None) => Ok(Principal::Admin),
        ("auditor", None) => Ok(Principal::Auditor),
        ("service", Some(name)) => Ok(Principal::Service(name.parse().map_err(unreadable)?)),
        _ => Err(unreadable(std::io::Error::other("a token stands for nobody known"))),
    }
}

fn read(row: Row) -> QueryResult<Token> {
    let (
        number,
        id,
        role,
        service,
        description,
        created_at,
        created_by,
        expires_at,
        revoked_at,
        last_used_at,
    ) = row;
    Ok(Token {
        number,
        id: id.parse().map_err(unreadable)?,
        principal: principal(&role, service.as_deref())?,
        description,
        created_at,
        created_by,
        expires_at,
        revoked_at,
        last_used_at,
    })
}

/// What every token that has not been revoked is good for.
pub(super) async fn grants(
    connection: &mut AsyncPgConnection,
) -> QueryResult<HashMap<TokenId, Grant>> {
    type Row = (String, Vec<u8>, String, Option<String>, Option<DateTime<Utc>>);
    let rows: Vec<Row> = tokens::table
        .left_join(services::table)
        .filter(tokens::revoked_at.is_null())
        .select((
            tokens::id,
            tokens::digest,
            tokens::role,
            services::name.nullable(),
            tokens::expires_at,
        ))
        .load(connection)
        .await?;
    let read = |(id, digest, role, service, expires_at): Row| {
        let id: TokenId = id.parse().map_err(unreadable)?;
        let short = || unreadable(std::io::Error::other("a digest has not 32 bytes"));
        let grant = Grant {
            id: id.clone(),
            principal: principal(&role, service.as_deref())?,
            expires_at,
            digest: TokenDigest::from_stored(&digest).ok_or_else(short)?,
        };
        Ok((id, grant))
    };
    rows.into_iter().map(read).collect()
}

/// Stores a new token.
pub(in crate::registry) async fn token_create(
    connection: &mut AsyncPgConnection,
    new: &NewToken,
    id: &TokenId,
    digest: &TokenDigest,
) -> Result<(Token, Snapshot), Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let service_id = match new.principal.service() {
                Some(service) => Some(service_number(connection, service).await?),
                None => None,
            };
            room_for_one(connection, new, service_id).await?;
            diesel::insert_into(tokens::table)
                .values((
                    tokens::id.eq(id.as_str()),
                    tokens::digest.eq(digest.as_bytes()),
                    tokens::role.eq(new.principal.role()),
                    tokens::service_id.eq(service_id),
                    tokens::description.eq(&new.description),
                    tokens::created_by.eq(&new.created_by),
                    tokens::expires_at.eq(new.expires_at),
                ))
                .execute(connection)
                .await?;
            let token = find(connection, id).await?;
            Ok((token, finish(connection).await?))
        })
        .await
}

/// Revokes a token; one that is revoked already stays as it is.
pub(in crate::registry) async fn token_revoke(
    connection: &mut AsyncPgConnection,
    id: &TokenId,
) -> Result<(Token, Snapshot), Error> {
    connection
        .transaction(async |connection| {
            take_turn(connection).await?;
            let still = tokens::table
                .filter(tokens::id.eq(id.as_str()))
                .filter(tokens::revoked_at.is_null());
            diesel::update(still)
                .set(tokens::revoked_at.eq(diesel::dsl::now))
                .execute(connection)
                .await?;
            let token = find(connection, id).await?;
            Ok((token, finish(connection).await?))
        })
        .await
}

/// The token with this id.
pub(in crate::registry) async fn find(
    connection: &mut AsyncPgConnection,
    id: &TokenId,
) -> Result<Token, Error> {
    let row: Option<Row> = tokens::table
        .left_join(services::table)
        .filter(tokens::id.eq(id.as_str()))
        .select(columns())
        .first(connection)
        .await
        .optional()?;
    let row = row.ok_or_else(|| Error::NotFound { kind: "token", name: id.to_string() })?;
    Ok(read(row)?)
}

/// One page of tokens, newest first, of one service or of everyone.
pub(in crate::registry) async fn tokens(
    connection: &mut AsyncPgConnection,
    service: Option<&ServiceName>,
    page: Page<i64>,
) -> QueryResult<Vec<Token>> {
    let mut query = tokens::table
        .left_join(services::table)
        .select(columns())
        .order(tokens::number.desc())
        .limit(i64::try_from(page.first).unwrap_or(i64::MAX))
        .into_boxed();
    if let Some(service) = service {
        query = query.filter(services::name.eq(service.as_str()));
    }
    if let Some(after) = page.after {
        query = query.filter(tokens::number.lt(after));
    }
    let rows: Vec<Row> = query.load(connection).await?;
    rows.into_iter().map(read).collect()
}

/// Writes down when tokens were last seen; never back in time.
pub(in crate::registry) async fn token_uses(
    connection: &mut AsyncPgConnection,
    uses: &[(TokenId, DateTime<Utc>)],
) -> QueryResult<()> {
    let (ids, times): (Vec<&str>, Vec<DateTime<Utc>>) =
        uses.iter().map(|(id, at)| (id.as_str(), *at)).unzip();
    diesel::sql_query(
        "UPDATE tokens SET last_used_at = greatest(last_used_at, u.at) \
         FROM unnest($1, $2) AS u (id, at) WHERE tokens.id = u.id",
    )
    .bind::<Array<Text>, _>(ids)
    .bind::<Array<Timestamptz>, _>(times)
    .execute(connection)
    .await
    .map(drop)
}

async fn service_number(
    connection: &mut AsyncPgConnection,
    service: &ServiceName,
) -> Result<i32, Error> {
    let found: Option<i32> = services::table
        .filter(services::name.eq(service.as_str()))
        .filter(services::retired_at.is_null())
        .select(services::id)
        .first(connection)
        .await
        .optional()?;
    found.ok_or_else(|| Error::NotFound { kind: "service", name: service.to_string() })
}

/// Whether its principal may have one more: all of them are held in memory.
async fn room_for_one(
    connection: &mut AsyncPgConnection,
    new: &NewToken,
    service_id: Option<i32>,
) -> Result<(), Error> {
    let valid: i64 = tokens::table
        .filter(tokens::role.eq(new.principal.role()))
        .filter(tokens::service_id.is_not_distinct_from(service_id))
        .filter(tokens::revoked_at.is_null())
        .filter(tokens::expires_at.is_null().or(tokens::expires_at.gt(diesel::dsl::now)))
        .count()
        .get_result(connection)
        .await?;
    let max = limits::TOKENS_PER_PRINCIPAL_MAX;
    if usize::try_from(valid).unwrap_or(usize::MAX) < max {
        return Ok(());
    }
    let message = format!(
        "{} has {valid} valid tokens, which is as many as may be: revoke one that is not used",
        new.principal
    );
    Err(Error::Conflict { message })
}
