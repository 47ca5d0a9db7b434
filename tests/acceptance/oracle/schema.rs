//! A random schema: tables of many kinds, and what is to be expected of their rows.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::Rows;

/// What a column holds. As SQL over `n`, a number that is used once, and as the JSON that
/// subscribers get, made by PostgreSQL itself and not by the encoder under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    BigInt,
    Int,
    Text,
    Localized,
    Long,
    Numeric,
    Timestamp,
    Jsonb,
    Array,
    Bytes,
    Bool,
    Uuid,
    Interval,
    Enum,
}

impl Kind {
    /// Kinds whose values can be as many as wanted, all different, and in no order of their making.
    const KEYS: [Self; 7] = [
        Self::BigInt,
        Self::Text,
        Self::Localized,
        Self::Numeric,
        Self::Timestamp,
        Self::Bytes,
        Self::Uuid,
    ];

    const VALUES: [Self; 12] = [
        Self::BigInt,
        Self::Int,
        Self::Text,
        Self::Long,
        Self::Numeric,
        Self::Timestamp,
        Self::Jsonb,
        Self::Array,
        Self::Bytes,
        Self::Bool,
        Self::Interval,
        Self::Enum,
    ];

    fn sql_type(self) -> &'static str {
        match self {
            Self::BigInt => "bigint",
            Self::Int => "int",
            Self::Text | Self::Long => "text",
            Self::Localized => "text COLLATE \"und-x-icu\"",
            Self::Numeric => "numeric",
            Self::Timestamp => "timestamptz",
            Self::Jsonb => "jsonb",
            Self::Array => "int[]",
            Self::Bytes => "bytea",
            Self::Bool => "bool",
            Self::Uuid => "uuid",
            Self::Interval => "interval",
            Self::Enum => "mood",
        }
    }

    /// A value for each number; for kinds of keys another for every number.
    fn value(self) -> &'static str {
        match self {
            Self::BigInt => "((n * 7919) % 100003) * 1000000 + n",
            Self::Int => "(n % 1000)::int",
            Self::Text => "md5(n::text)",
            Self::Localized => {
                "CASE WHEN n % 2 = 0 THEN upper(md5(n::text)) ELSE 'ä ' || md5(n::text) || '''\\' END"
            }
            Self::Long => {
                "CASE WHEN n % 3 = 0 THEN 'short' ELSE (SELECT string_agg(md5((n + i)::text), '') \
                 FROM generate_series(1, 90) i) END"
            }
            Self::Numeric => "(((n * 7919) % 100003) * 1000000 + n) / 100.0",
            Self::Timestamp => {
                "'2020-01-01Z'::timestamptz + ((n * 7919) % 100003) * interval '1 hour' \
                 + n * interval '1 microsecond'"
            }
            Self::Jsonb => "jsonb_build_object('n', n, 'of', jsonb_build_array(1, NULL, 'x\"\\'))",
            Self::Array => "ARRAY[n::int, NULL, -1]",
            Self::Bytes => "decode(md5(n::text), 'hex')",
            Self::Bool => "n % 2 = 0",
            Self::Uuid => "md5(n::text)::uuid",
            Self::Interval => "n * interval '1 second'",
            Self::Enum => "(ARRAY['glad', 'sad', 'so so'])[1 + n % 3]::mood",
        }
    }

    /// The JSON of a column.
    fn json(self, column: &str) -> String {
        match self {
            Self::BigInt
            | Self::Int
            | Self::Text
            | Self::Localized
            | Self::Long
            | Self::Jsonb
            | Self::Array
            | Self::Bool => format!("to_jsonb({column})"),
            Self::Numeric | Self::Uuid | Self::Interval | Self::Enum => {
                format!("to_jsonb({column}::text)")
            }
            Self::Timestamp => format!(
                "to_jsonb(rtrim(rtrim(to_char({column} AT TIME ZONE 'UTC', \
                 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), '0'), '.') || 'Z')"
            ),
            Self::Bytes => {
                format!("to_jsonb(translate(encode({column}, 'base64'), E'\\n', ''))")
            }
        }
    }
}

/// How changes name the rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    Default,
    Full,
    Index,
    /// No key at all, and the whole row as identity.
    Keyless,
}

/// A table.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    key: Vec<(String, Kind)>,
    values: Vec<(String, Kind)>,
    identity: Identity,
    partitioned: bool,
}

impl Table {
    /// A table of any kind; the first ones so that each kind is there.
    fn random(index: usize, random: &mut StdRng) -> Self {
        let identity = match index {
            0 => Identity::Default,
            1 => Identity::Keyless,
            _ => [Identity::Default, Identity::Default, Identity::Full, Identity::Index]
                [random.random_range(0..4)],
        };
        let kind = |random: &mut StdRng| Kind::KEYS[random.random_range(0..Kind::KEYS.len())];
        let mut key = vec![("k1".to_owned(), kind(random))];
        if random.random_bool(0.4) {
            key.insert(0, ("k0".to_owned(), Kind::Int));
        }
        let count = random.random_range(1..=4);
        let mut values: Vec<_> = (0..count)
            .map(|n| (format!("v{n}"), Kind::VALUES[random.random_range(0..Kind::VALUES.len())]))
            .collect();
        if index == 0 || random.random_bool(0.5) {
            values.push(("body".to_owned(), Kind::Long));
        }
        if identity == Identity::Index {
            values.push(("ident".to_owned(), Kind::Uuid));
        }
        let partitioned =
            matches!(identity, Identity::Default | Identity::Full) && random.random_bool(0.4);
        Self { name: format!("t{index}"), key, values, identity, partitioned }
    }

    /// The columns that changes name its rows by; none without a key.
    fn identity_columns(&self) -> Vec<String> {
        match self.identity {
            Identity::Default | Identity::Full => self.key.iter().map(|(n, _)| n.clone()).collect(),
            Identity::Index => vec!["ident".to_owned()],
            Identity::Keyless => Vec::new(),
        }
    }

    fn key_names(&self, prefix: &str) -> String {
        let names = self.key.iter().map(|(name, _)| format!("{prefix}{name}"));
        names.collect::<Vec<_>>().join(", ")
    }

    fn create(&self) -> String {
        let name = &self.name;
        let columns = self.key.iter().chain(&self.values).map(|(column, kind)| {
            let storage = if *kind == Kind::Long { " " } else { "" };
            let unique = if column == "ident" { " NOT NULL UNIQUE" } else { "" };
            format!("{column} {}{unique}{storage}", kind.sql_type())
        });
        let mut columns: Vec<_> = columns.collect();
        if self.identity != Identity::Keyless {
            columns.push(format!("PRIMARY KEY ({})", self.key_names("")));
        }
        let partition = if self.partitioned {
            format!(" PARTITION BY HASH ({})", self.key[0].0)
        } else {
            String::new()
        };
        let mut sql = format!("CREATE TABLE {name} ({}){partition};", columns.join(", "));
        for (column, _) in self.values.iter().filter(|(_, kind)| *kind == Kind::Long) {
            sql.push_str(&format!("ALTER TABLE {name} ALTER {column} SET STORAGE EXTERNAL;"));
        }
        let mut tables = vec![name.clone()];
        for part in (0..3).filter(|_| self.partitioned) {
            sql.push_str(&format!(
                "CREATE TABLE {name}_{part} PARTITION OF {name} \
                 FOR VALUES WITH (MODULUS 3, REMAINDER {part});"
            ));
            tables.push(format!("{name}_{part}"));
        }
        for table in &tables {
            match self.identity {
                Identity::Default => {}
                Identity::Full | Identity::Keyless => {
                    sql.push_str(&format!("ALTER TABLE {table} REPLICA IDENTITY FULL;"));
                }
                Identity::Index => sql.push_str(&format!(
                    "ALTER TABLE {table} REPLICA IDENTITY USING INDEX {table}_ident_key;"
                )),
            }
            sql.push_str(&format!("ALTER TABLE {table} OWNER TO orders_app;"));
        }
        sql
    }

    /// Inserts `count` rows.
    pub(super) fn insert(&self, count: usize) -> String {
        let columns: Vec<_> = self.key.iter().chain(&self.values).collect();
        let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let values: Vec<_> = columns.iter().map(|(_, kind)| kind.value()).collect();
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM \
             (SELECT nextval('ids') AS n FROM generate_series(1, {count})) s",
            self.name,
            names.join(", "),
            values.join(", ")
        )
    }

    /// Changes up to `count` rows, in one of the ways that rows are changed.
    pub(super) fn change(&self, count: usize, random: &mut StdRng) -> String {
        let (name, keys) = (&self.name, self.key_names(""));
        let some = format!(
            "WITH s AS MATERIALIZED (SELECT {keys} FROM {name} ORDER BY random() LIMIT {count} \
             FOR UPDATE SKIP LOCKED), m AS MATERIALIZED (SELECT s.*, nextval('ids') AS n FROM s)"
        );
        let join: Vec<_> = self.key.iter().map(|(key, _)| format!("t.{key} = m.{key}")).collect();
        let join = join.join(" AND ");
        let set = |columns: &[&(String, Kind)]| {
            let set = columns.iter().map(|(column, kind)| format!("{column} = {}", kind.value()));
            set.collect::<Vec<_>>().join(", ")
        };
        match random.random_range(0..10) {
            // Values, some of them to NULL; what is long mostly stays where it is.
            0..=4 => {
                let column = &self.values[random.random_range(0..self.values.len())];
                let mut assigned = set(&[column]);
                if column.0 != "ident" && random.random_bool(0.2) {
                    assigned = format!("{} = NULL", column.0);
                }
                format!("{some} UPDATE {name} t SET {assigned} FROM m WHERE {join}")
            }
            // Another key.
            5..=7 => {
                let columns: Vec<_> = match self.identity {
                    Identity::Index if random.random_bool(0.5) => {
                        self.values.iter().filter(|(column, _)| column == "ident").collect()
                    }
                    _ => self.key.iter().collect(),
                };
                format!("{some} UPDATE {name} t SET {} FROM m WHERE {join}", set(&columns))
            }
            _ => format!("{some} DELETE FROM {name} t USING m WHERE {join}"),
        }
    }

    /// What a subscriber should have of it.
    async fn rows(&self, client: &Client) -> Rows {
        let columns = self.key.iter().chain(&self.values);
        let members = columns.map(|(name, kind)| format!("'{name}', {}", kind.json(name)));
        let query = format!(
            "SELECT jsonb_build_object({}) FROM {}",
            members.collect::<Vec<_>>().join(", "),
            self.name
        );
        let identity = self.identity_columns();
        let name = |row: &Value| match identity.as_slice() {
            [] => row.to_string(),
            columns => {
                columns.iter().map(|column| row[column].to_string()).collect::<Vec<_>>().join(" ")
            }
        };
        let rows = client.query(&query, &[]).await.expect("read a table");
        rows.iter().map(|row| row.get(0)).map(|row: Value| (name(&row), row)).collect()
    }
}

/// All tables, and one more in which the end is written.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    pub(super) tables: Vec<Table>,
}

impl Schema {
    /// Three to five tables.
    pub(super) fn random(random: &mut StdRng) -> Self {
        let count = random.random_range(3..=5);
        Self { tables: (0..count).map(|index| Table::random(index, random)).collect() }
    }

    /// Makes the tables, with some rows in them.
    pub(super) async fn create(&self, client: &Client, rows: usize) {
        let roles =
            "CREATE ROLE orders_app LOGIN; GRANT CREATE, USAGE ON SCHEMA public TO orders_app;
            CREATE TYPE mood AS ENUM ('sad', 'so so', 'glad');
            CREATE SEQUENCE ids; GRANT ALL ON SEQUENCE ids TO orders_app;
            CREATE TABLE ends (id bigint PRIMARY KEY); ALTER TABLE ends OWNER TO orders_app;";
        client.batch_execute(roles).await.expect("make roles");
        for table in &self.tables {
            client
                .batch_execute(&table.create())
                .await
                .unwrap_or_else(|e| panic!("{table:?}: {e}"));
            client.batch_execute(&table.insert(rows)).await.expect("insert rows");
        }
        client.batch_execute("ANALYZE").await.expect("analyze");
    }

    /// Every dataset with the columns that name its rows.
    pub(super) fn datasets(&self) -> BTreeMap<String, Vec<String>> {
        let name =
            |table: &Table| (format!("shop.public.{}", table.name), table.identity_columns());
        let ends = ("shop.public.ends".to_owned(), vec!["id".to_owned()]);
        self.tables.iter().map(name).chain([ends]).collect()
    }

    /// What a subscriber should have of all.
    pub(super) async fn contents(&self, client: &Client) -> BTreeMap<String, Rows> {
        let session =
            "SET TimeZone = 'UTC'; SET IntervalStyle = 'iso_8601'; SET extra_float_digits = 1";
        client.batch_execute(session).await.expect("set");
        let mut contents = BTreeMap::new();
        for table in &self.tables {
            contents.insert(format!("shop.public.{}", table.name), table.rows(client).await);
        }
        let rows = client.query("SELECT id FROM ends", &[]).await.expect("read the ends");
        let ends = rows.iter().map(|row| row.get::<_, i64>(0));
        let ends = ends.map(|id| (id.to_string(), serde_json::json!({ "id": id }))).collect();
        contents.insert("shop.public.ends".to_owned(), ends);
        contents
    }
}
