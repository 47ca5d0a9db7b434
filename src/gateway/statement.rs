//! Rows as statements: names quoted, values as parameters.

use super::Error;
use super::request::{Request, Row, place};
use super::shape::Shape;
use crate::pg::{quote_ident, quote_literal};

/// One statement and what is expected of it.
#[derive(Debug)]
pub(super) enum Statement {
    /// Inserts rows; answers with a JSON array of their keys, as text.
    Insert {
        /// With one parameter, the rows as JSON, or none when all columns get their defaults.
        sql: String,
        /// The rows.
        rows: Option<Vec<Row>>,
        /// Place of the first row in the body.
        place: String,
    },
    /// Changes or deletes one row; answers with how many there were.
    One {
        /// With the key as its first parameter and the columns to set as its second, both JSON.
        sql: String,
        /// The key.
        key: Row,
        /// The columns to set.
        set: Option<Row>,
        /// Place of the row in the body.
        place: String,
    },
}

/// The statements of a request, in the order of [`Request`].
pub(super) fn statements(request: &Request, shape: &Shape) -> Result<Vec<Statement>, Error> {
    let mut statements = inserts(&request.insert, shape)?;
    for (index, update) in request.update.iter().enumerate() {
        let key = shape.key_values(&update.key, &place("update", index, "key"))?;
        let set = shape.values(&update.set, &place("update", index, "set"))?;
        if set.is_empty() {
            let message = "expected at least one column to set".to_owned();
            return Err(Error::Invalid { place: place("update", index, "set"), message });
        }
        let names: Vec<String> = set.keys().map(|name| quote_ident(name)).collect();
        let values: Vec<String> = names.iter().map(|name| format!("s.{name}")).collect();
        let sql = format!(
            "WITH w AS (UPDATE {t} AS t SET ({}) = (SELECT {} FROM \
             jsonb_populate_record(NULL::{t}, $2) AS s) \
             FROM jsonb_populate_record(NULL::{t}, $1) AS k WHERE {} RETURNING 1) \
             SELECT count(*) FROM w",
            names.join(", "),
            values.join(", "),
            same_key(shape),
            t = shape.table,
        );
        let place = place("update", index, "");
        statements.push(Statement::One { sql, key, set: Some(set), place });
    }
    for (index, delete) in request.delete.iter().enumerate() {
        let key = shape.key_values(&delete.key, &place("delete", index, "key"))?;
        let sql = format!(
            "WITH w AS (DELETE FROM {t} AS t USING jsonb_populate_record(NULL::{t}, $1) AS k \
             WHERE {} RETURNING 1) SELECT count(*) FROM w",
            same_key(shape),
            t = shape.table,
        );
        let place = place("delete", index, "");
        statements.push(Statement::One { sql, key, set: None, place });
    }
    Ok(statements)
}

/// Rows that name the same columns, one after the other, go into one statement.
fn inserts(rows: &[Row], shape: &Shape) -> Result<Vec<Statement>, Error> {
    let mut statements = Vec::new();
    let mut first = 0;
    for group in rows.chunk_by(|a, b| !a.is_empty() && a.keys().eq(b.keys())) {
        let values = group
            .iter()
            .zip(first..)
            .map(|(row, index)| shape.values(row, &place("insert", index, "")))
            .collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = group
            .iter()
            .flat_map(Row::keys)
            .take(group[0].len())
            .map(|name| quote_ident(name))
            .collect();
        let what = if names.is_empty() {
            "DEFAULT VALUES".to_owned()
        } else {
            let fields: Vec<String> = names.iter().map(|name| format!("r.{name}")).collect();
            format!(
                "({}) SELECT {} FROM jsonb_populate_recordset(NULL::{}, $1) AS r",
                names.join(", "),
                fields.join(", "),
                shape.table
            )
        };
        let key: Vec<String> = shape
            .key()
            .map(|column| format!("{}, {}", quote_literal(&column.name), quote_ident(&column.name)))
            .collect();
        let sql = format!(
            "WITH w AS (INSERT INTO {} {what} RETURNING jsonb_build_object({}) AS k) \
             SELECT coalesce(json_agg(w.k), '[]')::text FROM w",
            shape.table,
            key.join(", ")
        );
        let rows = (!names.is_empty()).then_some(values);
        statements.push(Statement::Insert { sql, rows, place: place("insert", first, "") });
        first += group.len();
    }
    Ok(statements)
}

fn same_key(shape: &Shape) -> String {
    let same: Vec<String> = shape
        .key()
        .map(|column| {
            let name = quote_ident(&column.name);
            format!("t.{name} = k.{name}")
        })
        .collect();
    same.join(" AND ")
}

#[cfg(test)]
mod tests {
    use super::super::shape::{Column, Form};
    use super::*;

    #[test]
    fn names_are_quoted_and_values_are_parameters() {
        let column = |name: &str, is_key| Column {
            name: name.to_owned(),
            form: Form::Plain,
            is_key,
            is_generated: false,
        };
        let shape = Shape {
            table: "\"public\".\"o\"\"s\"".to_owned(),
            columns: vec![column("id", true), column("a'\"b", false)],
        };
        let request = Request::parse(
            br#"{"insert":[{"id":1234567890.12345678901},{"id":2},{"id":3,"a'\"b":"x"},{},{}],
                "update":[{"key":{"id":1},"set":{"a'\"b":"'; DROP TABLE o"}}],"delete":[{"key":{"id":2}}]}"#,
        )
        .unwrap();
        let statements = statements(&request, &shape).unwrap();
        fn json(value: &impl serde::Serialize) -> String {
            serde_json::to_string(value).unwrap()
        }
        let shown: Vec<String> = statements
            .iter()
            .map(|statement| match statement {
                Statement::Insert { sql, rows, place } => {
                    format!("{place} {sql} <- {}", json(rows))
                }
                Statement::One { sql, key, set, place } => {
                    format!("{place} {sql} <- {} {}", json(key), json(set))
                }
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n"));
    }
}
