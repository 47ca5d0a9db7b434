//! Types that are not built in: looked up in the source, once for a connection.
//!
//! A Relation message gives type OIDs only. Domains, arrays, composites and ranges are followed to
//! what they are made of; enums and types of extensions are text. The catalog is read as it is
//! *now* while the stream may be older: only a composite whose attributes changed in between
//! differs, and a value that does not fit becomes a string.

use std::collections::{BTreeSet, HashMap};

use super::json::{Field, Kind, builtin};
use crate::registry::{Shape, TypeKind};

/// Deepest definition followed, and the most rounds of queries for one set of types.
const DEPTH_MAX: usize = 24;

/// What a type is made of, by OID.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Definition {
    /// A domain: its base type.
    Domain(u32),
    /// An array.
    Array { element: u32, delimiter: u8 },
    /// A composite: names and types of its attributes.
    Composite(Vec<(String, u32)>),
    /// A range of a type.
    Range(u32),
    /// Ranges of a type.
    Multirange(u32),
    /// Anything else; also what the catalog no longer has.
    Text,
}

/// The types of one source looked up so far.
#[derive(Debug, Clone, Default)]
pub struct Types {
    definitions: HashMap<u32, Definition>,
}

impl Types {
    /// Nothing but the built-in types.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the type is built in or was looked up.
    pub fn knows(&self, oid: u32) -> bool {
        self.definitions.contains_key(&oid) || builtin(oid).is_some()
    }

    /// What types are made of where a shape was taken, instead of what the catalog says now.
    pub(super) fn of(shape: &Shape) -> Self {
        let definitions = shape.types.iter().map(|shape| {
            let definition = match (shape.kind, shape.of) {
                (TypeKind::Domain, Some(base)) => Definition::Domain(base),
                (TypeKind::Array, Some(element)) => {
                    let delimiter = shape.delimiter.and_then(|it| u8::try_from(it).ok());
                    Definition::Array { element, delimiter: delimiter.unwrap_or(b',') }
                }
                (TypeKind::Range, Some(bound)) => Definition::Range(bound),
                (TypeKind::Multirange, Some(bound)) => Definition::Multirange(bound),
                (TypeKind::Composite, _) => Definition::Composite(
                    shape.attributes.iter().map(|it| (it.name.clone(), it.oid)).collect(),
                ),
                _ => Definition::Text,
            };
            (shape.oid, definition)
        });
        Self { definitions: definitions.collect() }
    }

    /// Takes over what another lookup found.
    pub fn merge(&mut self, found: Self) {
        self.definitions.extend(found.definitions);
    }

    /// How values of a type are written: as text when nothing is known of it.
    pub fn kind(&self, oid: u32) -> Kind {
        self.kind_within(oid, DEPTH_MAX)
    }

    fn kind_within(&self, oid: u32, depth: usize) -> Kind {
        if let Some(kind) = builtin(oid) {
            return kind;
        }
        let (Some(definition), Some(depth)) = (self.definitions.get(&oid), depth.checked_sub(1))
        else {
            return Kind::Text;
        };
        let kind = |oid: u32| self.kind_within(oid, depth);
        match definition {
            Definition::Domain(base) => kind(*base),
            Definition::Array { element, delimiter } => {
                Kind::Array { element: Box::new(kind(*element)), delimiter: *delimiter }
            }
            Definition::Composite(attributes) => Kind::Composite(
                attributes
                    .iter()
                    .map(|(name, oid)| Field::new(name.as_bytes(), kind(*oid)))
                    .collect(),
            ),
            Definition::Range(bound) => Kind::Range(Box::new(kind(*bound))),
            Definition::Multirange(bound) => Kind::Multirange(Box::new(kind(*bound))),
            Definition::Text => Kind::Text,
        }
    }
}

/// The name of a built-in type.
pub(super) fn builtin_name(oid: u32) -> Option<String> {
    let known = tokio_postgres::types::Type::from_oid(oid)?;
    let name = match known.name() {
        "int2" => "smallint",
        "int4" => "integer",
        "int8" => "bigint",
        "bool" => "boolean",
        "float4" => "real",
        "float8" => "double precision",
        "varchar" => "character varying",
        "bpchar" => "character",
        "timestamptz" => "timestamp with time zone",
        "timestamp" => "timestamp without time zone",
        "timetz" => "time with time zone",
        "time" => "time without time zone",
        other => other,
    };
    Some(name.to_owned())
}

/// One row for each type: what it is, and what it is made of.
const DEFINITIONS: &str = "
    select t.oid,
           case when t.typtype = 'd' then 'domain'
                when t.typtype = 'c' then 'composite'
                when t.typtype = 'r' then 'range'
                when t.typtype = 'm' then 'multirange'
                when t.typtype = 'b' and t.typelem <> 0 and t.typlen = -1
                     and t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc then 'array'
                else 'text' end,
           case t.typtype when 'd' then t.typbasetype
                          when 'r' then (select r.rngsubtype from pg_catalog.pg_range r
                                          where r.rngtypid = t.oid)
                          when 'm' then (select r.rngsubtype from pg_catalog.pg_range r
                                          where r.rngmultitypid = t.oid)
                          else t.typelem end,
           coalesce(e.typdelim, ',')::text,
           array(select a.attname::text from pg_catalog.pg_attribute a
                  where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                    and t.typtype = 'c' order by a.attnum),
           array(select a.atttypid from pg_catalog.pg_attribute a
                  where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                    and t.typtype = 'c' order by a.attnum)
      from pg_catalog.pg_type t
      left join pg_catalog.pg_type e on e.oid = t.typelem
     where t.oid = any($1::oid[])";

/// Looks types up, and what they are made of. What the catalog does not have becomes text.
///
/// # Errors
/// When the source cannot be asked.
pub async fn load(
    client: &tokio_postgres::Client,
    oids: &[u32],
) -> Result<Types, tokio_postgres::Error> {
    let mut types = Types::new();
    let mut wanted: BTreeSet<u32> = oids.iter().copied().collect();
    for _round in 0..DEPTH_MAX {
        wanted.retain(|oid| !types.knows(*oid));
        if wanted.is_empty() {
            break;
        }
        let asked: Vec<u32> = std::mem::take(&mut wanted).into_iter().collect();
        let rows = client.query(DEFINITIONS, &[&asked]).await?;
        types.definitions.extend(asked.into_iter().map(|oid| (oid, Definition::Text)));
        for row in rows {
            let made_of: u32 = row.try_get(2)?;
            let definition = match row.try_get(1)? {
                "domain" => Definition::Domain(made_of),
                "array" => Definition::Array {
                    element: made_of,
                    delimiter: row.try_get::<_, &str>(3)?.bytes().next().unwrap_or(b','),
                },
                "range" => Definition::Range(made_of),
                "multirange" => Definition::Multirange(made_of),
                "composite" => {
                    let names: Vec<String> = row.try_get(4)?;
                    let oids: Vec<u32> = row.try_get(5)?;
                    wanted.extend(&oids);
                    Definition::Composite(names.into_iter().zip(oids).collect())
                }
                _ => Definition::Text,
            };
            // PostgreSQL writes "of nothing" as OID 0.
            wanted.extend((made_of != 0).then_some(made_of));
            types.definitions.insert(row.try_get(0)?, definition);
        }
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(definitions: &[(u32, Definition)]) -> Types {
        Types { definitions: definitions.iter().cloned().collect() }
    }

    #[test]
    fn types_are_followed_to_what_they_are_made_of() {
        let types = types(&[
            (100_001, Definition::Domain(23)),
            (100_002, Definition::Array { element: 100_003, delimiter: b',' }),
            (100_003, Definition::Composite(vec![("n".into(), 100_001), ("t".into(), 100_004)])),
            (100_004, Definition::Text),
            (100_005, Definition::Multirange(100_001)),
        ]);
        let item = Kind::Composite(Box::new([
            Field::new(b"n", Kind::Integer),
            Field::new(b"t", Kind::Text),
        ]));
        assert_eq!(types.kind(100_002), Kind::Array { element: Box::new(item), delimiter: b',' });
        assert_eq!(types.kind(100_005), Kind::Multirange(Box::new(Kind::Integer)));
        assert!(types.knows(23) && types.knows(100_004) && !types.knows(100_006));
        assert_eq!(types.kind(100_006), Kind::Text);
    }

    #[test]
    fn a_definition_that_contains_itself_ends_as_text() {
        let types = types(&[(100_001, Definition::Array { element: 100_001, delimiter: b',' })]);
        let mut kind = types.kind(100_001);
        let mut depth = 0;
        while let Kind::Array { element, .. } = kind {
            kind = *element;
            depth += 1;
        }
        assert_eq!((kind, depth), (Kind::Text, DEPTH_MAX));
    }
}
