//! What commands in a source mean to the registry: versions of a table's shape, other names, tables
//! that came or went. Capture reads them out of the stream, each at its position, and has them recorded
//! before the changes that follow are in the log; so what is read again is recognised by its position.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use metrics::gauge;

use super::shape::{Difference, Shape, TableName};
use super::{Error, Page, Registry, store};
use crate::pg::PooledConnection;
use crate::vocab::{DatasetId, Position, SourceId};

/// How a version became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The guard was installed on the table.
    Installed,
    /// A command changed the table, and the guard said so.
    Command,
    /// The stream describes the table otherwise than the version before.
    Stream,
}

impl Cause {
    /// The lower-case word used in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Command => "command",
            Self::Stream => "stream",
        }
    }
}

/// What a dataset's table is from a position on, until the next version.
#[derive(Debug, Clone, PartialEq)]
pub struct SchemaVersion {
    /// Which dataset.
    pub dataset: DatasetId,
    /// From 1, without gaps.
    pub number: u32,
    /// The first position at which it is valid.
    pub from: Position,
    /// When, by the source's clock.
    pub at: DateTime<Utc>,
    /// How it became known.
    pub cause: Cause,
    /// The command that made it, such as `ALTER TABLE`, and by whom; unknown where the stream alone
    /// showed it.
    pub by: Option<Author>,
    /// The table.
    pub shape: Arc<Shape>,
    /// What is new since the version before; none for the first.
    pub difference: Option<Difference>,
}

/// Who ran a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// The command's tag.
    pub command: String,
    /// The service the role writes for, if any.
    pub service: Option<String>,
    /// The role that ran it.
    pub role: String,
}

/// Something a command did, at its place in the stream. What was recorded already is not recorded
/// again.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvolution {
    /// Where it was seen.
    pub source_id: SourceId,
    /// Its place in the stream.
    pub position: Position,
    /// When, by the source's clock.
    pub at: DateTime<Utc>,
    /// By whom.
    pub by: Option<Author>,
    /// What.
    pub what: Evolution,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq)]
pub enum Evolution {
    /// A dataset's table is another from here on.
    Version(Arc<SchemaVersion>),
    /// A dataset's table has this OID.
    Relation {
        /// Which dataset.
        dataset: DatasetId,
        /// The OID.
        relid: u32,
    },
    /// A dataset's table is gone.
    Dropped(DatasetId),
    /// A table exists that nobody has registered; or it has another name.
    Unowned {
        /// Its OID.
        relid: u32,
        /// Its name.
        name: TableName,
    },
    /// An unregistered table is gone, or became part of a registered one.
    Gone {
        /// Its OID.
        relid: u32,
    },
    /// Another service's table refers to a dataset by a foreign key.
    Coupled {
        /// Which dataset.
        dataset: DatasetId,
        /// The foreign key.
        coupling: CouplingKey,
    },
    /// Such a foreign key is gone.
    Uncoupled {
        /// Which dataset.
        dataset: DatasetId,
        /// The foreign key.
        coupling: CouplingKey,
    },
}

/// A foreign key by its table and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CouplingKey {
    /// The table that refers.
    pub from: TableName,
    /// The constraint's name.
    pub constraint: String,
}

/// A foreign key of a service's table to a dataset it does not own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coupling {
    /// The foreign key.
    pub key: CouplingKey,
    /// Who made it.
    pub by: Author,
    /// When.
    pub at: DateTime<Utc>,
}

/// A table that nobody has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnownedTable {
    /// The source it is in.
    pub source_id: SourceId,
    /// Its OID there.
    pub relid: u32,
    /// Its name.
    pub name: TableName,
    /// Who made it, or named it so.
    pub by: Author,
    /// When.
    pub seen_at: DateTime<Utc>,
}

/// What is known of a source's tables where its stream begins.
#[derive(Debug, Clone)]
pub struct KnownTables {
    /// The versions that are valid there, and all later ones, each dataset's in order.
    pub versions: Vec<SchemaVersion>,
    /// The dataset of each table's OID.
    pub relations: HashMap<u32, DatasetId>,
    /// Up to here everything is known already.
    pub recorded: Position,
}

impl Default for KnownTables {
    fn default() -> Self {
        Self { versions: Vec::new(), relations: HashMap::new(), recorded: Position::MIN }
    }
}

impl Registry {
    /// Records what commands did to tables of a source; what was recorded before is not recorded again.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn evolutions_record(
        &self,
        source: SourceId,
        new: &[NewEvolution],
    ) -> Result<(), Error> {
        let record = async |connection: &mut PooledConnection| {
            let snapshot = store::evolutions_record(connection, source, new).await?;
            Ok((snapshot, store::unowned_count(connection, source).await?))
        };
        let (snapshot, unowned) = self.within(record).await?;
        if let Some(snapshot) = snapshot {
            self.publish(snapshot);
        }
        let snapshot = self.snapshot();
        if let Some(source) = snapshot.sources.values().find(|known| known.id == source) {
            gauge!("cadastre_registry_unowned_tables", "source" => source.name.to_string())
                .set(unowned as f64);
        }
        Ok(())
    }

    /// What a stream that goes on after `position` needs to know of its source's tables.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn known_tables(
        &self,
        source: SourceId,
        position: Position,
    ) -> Result<KnownTables, Error> {
        self.within(async |connection| Ok(store::known_tables(connection, source, position).await?))
            .await
    }

    /// One page of the versions of a dataset's table, newest first; `after` is the number that the
    /// last page ended with.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn schema_history(
        &self,
        dataset: DatasetId,
        page: Page<i32>,
    ) -> Result<Vec<SchemaVersion>, Error> {
        self.within(async |connection| Ok(store::schema_history(connection, dataset, page).await?))
            .await
    }

    /// One page of the tables of these sources that nobody has registered.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn unowned_tables(
        &self,
        sources: &[SourceId],
        page: Page<(SourceId, u32)>,
    ) -> Result<Vec<UnownedTable>, Error> {
        self.within(async |connection| Ok(store::unowned_tables(connection, sources, page).await?))
            .await
    }

    /// Foreign keys of other services' tables to a dataset.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn couplings(&self, dataset: DatasetId) -> Result<Vec<Coupling>, Error> {
        self.within(async |connection| Ok(store::couplings(connection, dataset).await?)).await
    }
}
