//! Where the tables of datasets are: under the names they were registered by, unless their owners have
//! renamed or moved them since.
//!
//! The source itself knows best: the guard notes each table by OID, and the registry hears of a new
//! name only when the stream gets there. A note counts only where that dataset's guard stands on the
//! table, because in a database restored from a dump OIDs mean something else.

use std::collections::HashMap;

use crate::pg::{Connection, Error};
use crate::registry::TableName;
use crate::vocab::DatasetName;

/// Whether the guard has notes here.
const NOTES: &str = "SELECT to_regclass('cadastre.dataset') IS NOT NULL";

/// Where each noted table is.
const NOTED: &str = "
    SELECT d.name, n.nspname::text, c.relname::text
    FROM cadastre.dataset d JOIN pg_class c ON c.oid = d.relid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE EXISTS (SELECT FROM pg_trigger t
      WHERE t.tgrelid = c.oid AND t.tgname = '_cadastre_guard'
        AND position(convert_to(d.name, getdatabaseencoding()) || '\\x00'::bytea IN t.tgargs) = 1)";

/// Where tables are.
#[derive(Debug, Default)]
pub(super) struct Located(HashMap<String, TableName>);

impl Located {
    /// Asks the source.
    pub(super) async fn load(client: &Connection) -> Result<Self, Error> {
        let mut located = HashMap::new();
        if client.query_one(NOTES, &[]).await?.try_get(0)? {
            for row in client.query(NOTED, &[]).await? {
                let name = TableName { schema: row.try_get(1)?, table: row.try_get(2)? };
                located.insert(row.try_get(0)?, name);
            }
        }
        Ok(Self(located))
    }

    /// Where a dataset's table is.
    pub(super) fn of(&self, dataset: &DatasetName) -> TableName {
        self.0.get(dataset.as_str()).cloned().unwrap_or_else(|| TableName {
            schema: dataset.schema().to_owned(),
            table: dataset.table().to_owned(),
        })
    }
}
