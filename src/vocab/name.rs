//! Names of services, sources, roles and datasets.
//!
//! Service and source names become part of PostgreSQL role, slot and publication names, which is
//! what bounds their alphabet and length (63 bytes for a role, `[a-z0-9_]` for a slot).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::limits;

/// Why a text is not a name of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a service or source name.
    #[error(
        "invalid {kind} name \"{text}\": expected 1 to {max} characters, a lower-case letter first, \
         then lower-case letters, digits and {separator}"
    )]
    Label {
        /// What the name was for: `service` or `source`.
        kind: &'static str,
        /// What was given, cut short.
        text: String,
        /// The most characters allowed.
        max: usize,
        /// The punctuation allowed.
        separator: &'static str,
    },
    /// Not the name of a database role.
    #[error("invalid role name \"{0}\": expected 1 to 63 bytes without NUL")]
    Role(String),
    /// Not a dataset name.
    #[error(
        "invalid dataset name \"{0}\": expected SOURCE.SCHEMA.TABLE, such as shop.public.orders or \
         shop.public.\"v1.orders\""
    )]
    Dataset(String),
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

fn is_label(text: &str, max: usize, separator: u8) -> bool {
    text.len() <= max
        && text.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == separator)
}

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The text of the name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
    };
}

/// The name of a service: lower-case letters, digits and hyphens, a letter first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(Arc<str>);
text_newtype!(ServiceName);

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let max = limits::SERVICE_NAME_BYTES_MAX;
        if is_label(text, max, b'-') {
            return Ok(Self(text.into()));
        }
        Err(NameError::Label { kind: "service", text: cut(text), max, separator: "hyphens" })
    }
}

/// The name of a source: lower-case letters, digits and underscores, a letter first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceName(Arc<str>);
text_newtype!(SourceName);

impl SourceName {
    /// The publication in the source that lists its governed tables.
    pub fn publication(&self) -> String {
        format!("cadastre_{self}")
    }

    /// The source's logical replication slot; the name is unique in its whole cluster.
    pub fn slot(&self) -> String {
        format!("cadastre_{self}")
    }

    /// The group role whose members write for `service` in this source.
    pub fn owner_role(&self, service: &ServiceName) -> String {
        format!("cadastre_{self}_{service}")
    }
}

impl FromStr for SourceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let max = limits::SOURCE_NAME_BYTES_MAX;
        if is_label(text, max, b'_') {
            return Ok(Self(text.into()));
        }
        Err(NameError::Label { kind: "source", text: cut(text), max, separator: "underscores" })
    }
}

/// The name of a database role, unquoted, exactly as in `pg_roles.rolname`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleName(Arc<str>);
text_newtype!(RoleName);

impl FromStr for RoleName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if (1..=63).contains(&text.len()) && !text.contains('\0') {
            return Ok(Self(text.into()));
        }
        Err(NameError::Role(cut(text)))
    }
}

/// The name of a dataset that is a table: `SOURCE.SCHEMA.TABLE`.
///
/// Schema and table are exactly as in the catalog, upper and lower case included. As in SQL, a part
/// that would be read otherwise stands in double quotes, with each of its own doubled: one that holds
/// a dot, a comma or a double quote, or begins or ends with a space. `shop.public."v1.orders"` is the
/// table `v1.orders`. There is one text for each table: others that mean it are brought to that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatasetName {
    text: Arc<str>,
    source: SourceName,
    schema: Arc<str>,
    table: Arc<str>,
}

impl DatasetName {
    /// The dataset of a table.
    ///
    /// # Errors
    /// When schema or table is empty, longer than 63 bytes, or holds a control character.
    pub fn new(source: &SourceName, schema: &str, table: &str) -> Result<Self, NameError> {
        for part in [schema, table] {
            if !(1..=63).contains(&part.len()) || part.chars().any(char::is_control) {
                return Err(NameError::Dataset(cut(part)));
            }
        }
        let text = format!("{source}.{}.{}", quoted(schema), quoted(table));
        Ok(Self {
            text: text.into(),
            source: source.clone(),
            schema: schema.into(),
            table: table.into(),
        })
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The source the table lives in.
    pub fn source(&self) -> &SourceName {
        &self.source
    }

    /// The table's schema.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The table.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The names in a list that is separated by commas, not yet read; a comma between double quotes
    /// is part of a name.
    pub fn split(list: &str) -> impl Iterator<Item = &str> {
        let mut inside = false;
        list.split(move |c| {
            inside ^= c == '"';
            c == ',' && !inside
        })
        .map(str::trim)
        .filter(|name| !name.is_empty())
    }
}

/// A schema or table as it stands in a dataset's name.
fn quoted(part: &str) -> Cow<'_, str> {
    if part.contains(['.', ',', '"']) || part.trim() != part {
        Cow::Owned(format!("\"{}\"", part.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(part)
    }
}

/// Takes a schema or table from the beginning of `text`: what it is called, and what follows it.
fn take_part(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (part, rest) = text.split_at_checked(end)?;
        return (!part.contains('"')).then(|| (part.to_owned(), rest));
    };
    let mut part = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        part.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                part.push('"');
                rest = after;
            }
            None => return Some((part, after)),
        }
    }
}

impl FromStr for DatasetName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parts = || {
            let (source, rest) = text.split_once('.')?;
            let (schema, rest) = take_part(rest)?;
            let (table, rest) = take_part(rest.strip_prefix('.')?)?;
            rest.is_empty().then_some((source, schema, table))
        };
        let malformed = || NameError::Dataset(cut(text));
        let (source, schema, table) = parts().ok_or_else(malformed)?;
        // What is not a name at all is told as that, not as the wrong source.
        Self::new(&source.parse()?, &schema, &table).map_err(|_| malformed())
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for DatasetName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DatasetName> for String {
    fn from(name: DatasetName) -> Self {
        name.text.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_name_has_three_parts() {
        let name: DatasetName = "shop.public.Order lines".parse().unwrap();
        assert_eq!(
            (name.source().as_str(), name.schema(), name.table()),
            ("shop", "public", "Order lines")
        );
        assert_eq!(DatasetName::new(name.source(), "public", "Order lines").unwrap(), name);
    }

    #[test]
    fn a_part_that_would_be_read_otherwise_is_quoted_as_in_sql() {
        let source: SourceName = "shop".parse().unwrap();
        for (schema, table, text) in [
            ("a.b", "c", r#"shop."a.b".c"#),
            ("a", "b.c", r#"shop.a."b.c""#),
            ("say \"x\"", "\"", r#"shop."say ""x"""."""""#),
            ("a,b", " c ", r#"shop."a,b"." c ""#),
            ("Ünï", "it's; DROP TABLE x; --", "shop.Ünï.it's; DROP TABLE x; --"),
        ] {
            let name = DatasetName::new(&source, schema, table).unwrap();
            assert_eq!(name.as_str(), text);
            let read: DatasetName = text.parse().unwrap();
            assert_eq!((read.schema(), read.table()), (schema, table));
            assert_eq!(read, name);
            let list = format!("shop.x.y, {text},shop.z.z,");
            assert_eq!(
                DatasetName::split(&list).collect::<Vec<_>>(),
                ["shop.x.y", text, "shop.z.z"]
            );
        }
        let needless: DatasetName = r#"shop."public"."orders""#.parse().unwrap();
        assert_eq!(needless.as_str(), "shop.public.orders");
    }

    #[test]
    fn malformed_names_say_what_is_right() {
        for (text, hint) in [
            ("orders", "SOURCE.SCHEMA.TABLE"),
            ("shop..orders", "SOURCE.SCHEMA.TABLE"),
            ("Shop.public.orders", "lower-case"),
            ("shop.public.a\nb", "SOURCE.SCHEMA.TABLE"),
            ("shop.public.a.b", "v1.orders"),
            ("shop.public.\"a", "v1.orders"),
            ("shop.public.\"a\"b", "v1.orders"),
            ("shop.public.a\"b", "v1.orders"),
            ("shop.\"\".a", "SOURCE.SCHEMA.TABLE"),
        ] {
            let error = text.parse::<DatasetName>().unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
        assert!("9lives".parse::<ServiceName>().is_err());
        assert!("a_b".parse::<ServiceName>().is_err());
        assert!("a-b".parse::<SourceName>().is_err());
        assert!("a".repeat(64).parse::<RoleName>().is_err());
    }
}
