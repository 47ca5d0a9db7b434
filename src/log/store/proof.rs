//! Checking: chunks read again, their links and sums computed anew.
//!
//! All of one look is read in one snapshot of the database, so that appends and cuts meanwhile do
//! not look like damage.

use std::collections::{BTreeMap, HashMap};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{PostgresStore, on_blocking_thread, position};
use crate::log::contract::Broken;
use crate::log::digest::{Digest, Link, checksum};
use crate::log::{Batch, Error, Proof, chunk};
use crate::vocab::{DatasetId, Position, SourceId};

/// Most chunks of one look.
const CHUNKS_MAX: usize = 2_000;

/// The ends of the log, and the link of the last chunk at or before `$2`.
const ENDS: &str = "SELECT e.last_position, e.chain, e.trimmed_upto, \
         coalesce((SELECT c.chain FROM log_chunks c \
                   WHERE c.source_id = $1 AND c.last_position <= $2 \
                     AND c.last_position > e.trimmed_upto \
                   ORDER BY c.last_position DESC LIMIT 1), e.trimmed_chain) AS before \
     FROM log_ends e WHERE e.source_id = $1";

/// The chunks from `$2` (exclusive) to the first that ends after `$3`, so that the link at the end of
/// the range is seen too, until `$4` bytes are exceeded.
const CHUNKS: &str = "SELECT first_position, last_position, changes, checksum, previous, chain, payload \
     FROM (SELECT c.*, \
                  sum(octet_length(payload)) OVER (ORDER BY last_position ROWS UNBOUNDED PRECEDING) \
                      - octet_length(payload) AS earlier \
           FROM (SELECT * FROM log_chunks \
                 WHERE source_id = $1 AND last_position > $2 AND last_position <= coalesce( \
                     (SELECT n.last_position FROM log_chunks n \
                      WHERE n.source_id = $1 AND n.last_position > $3 \
                      ORDER BY n.last_position LIMIT 1), $5) \
                 ORDER BY last_position LIMIT $6) c) c \
     WHERE earlier < $4 ORDER BY last_position";

const PARTS: &str = "SELECT dataset_id, last_position, changes, total_changes, total_digest \
     FROM log_parts \
     WHERE source_id = $1 AND last_position > $2 AND last_position <= $3 \
     ORDER BY last_position, dataset_id";

#[derive(QueryableByName)]
struct EndsRow {
    #[diesel(sql_type = Text)]
    last_position: String,
    #[diesel(sql_type = Binary)]
    chain: Vec<u8>,
    #[diesel(sql_type = Text)]
    trimmed_upto: String,
    #[diesel(sql_type = Binary)]
    before: Vec<u8>,
}

#[derive(QueryableByName)]
struct ChunkRow {
    #[diesel(sql_type = Text)]
    first_position: String,
    #[diesel(sql_type = Text)]
    last_position: String,
    #[diesel(sql_type = Integer)]
    changes: i32,
    #[diesel(sql_type = Binary)]
    checksum: Vec<u8>,
    #[diesel(sql_type = Binary)]
    previous: Vec<u8>,
    #[diesel(sql_type = Binary)]
    chain: Vec<u8>,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
}

#[derive(QueryableByName)]
struct PartRow {
    #[diesel(sql_type = Integer)]
    dataset_id: i32,
    #[diesel(sql_type = Text)]
    last_position: String,
    #[diesel(sql_type = Integer)]
    changes: i32,
    #[diesel(sql_type = BigInt)]
    total_changes: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    total_digest: Option<Vec<u8>>,
}

/// What was read in one snapshot.
struct Look {
    /// Whether there may be more chunks in the range.
    is_limited: bool,
    ends: EndsRow,
    chunks: Vec<ChunkRow>,
    parts: Vec<PartRow>,
}

impl PostgresStore {
    pub(super) async fn check(
        &self,
        source: SourceId,
        from: Position,
        to: Position,
        bytes: usize,
    ) -> Result<Proof, Error> {
        let look = self.look(source, from, to, bytes).await?;
        let Some(look) = look else {
            let (chunks, datasets, broken) = (0, Vec::new(), None);
            return Ok(Proof { from, upto: from, complete: true, chunks, datasets, broken });
        };
        let trimmed = position(&look.ends.trimmed_upto)?;
        if from < trimmed {
            return Err(Error::Trimmed { earliest: trimmed });
        }
        on_blocking_thread(move || check(&look, from, to)).await
    }

    async fn look(
        &self,
        source: SourceId,
        from: Position,
        to: Position,
        bytes: usize,
    ) -> Result<Option<Look>, Error> {
        let mut conn = self.pool.get().await?;
        conn.build_transaction()
            .repeatable_read()
            .read_only()
            .run(async |conn: &mut AsyncPgConnection| {
                let ends: Option<EndsRow> = diesel::sql_query(ENDS)
                    .bind::<Integer, _>(source.0)
                    .bind::<Text, _>(from.to_string())
                    .get_result(conn)
                    .await
                    .optional()?;
                let Some(ends) = ends else { return Ok(None) };
                let chunks: Vec<ChunkRow> = diesel::sql_query(CHUNKS)
                    .bind::<Integer, _>(source.0)
                    .bind::<Text, _>(from.to_string())
                    .bind::<Text, _>(to.to_string())
                    .bind::<BigInt, _>(i64::try_from(bytes.max(1)).unwrap_or(i64::MAX))
                    .bind::<Text, _>(Position::MAX.to_string())
                    .bind::<BigInt, _>(CHUNKS_MAX as i64)
                    .load(conn)
                    .await?;
                let last =
                    chunks.last().map_or_else(|| from.to_string(), |c| c.last_position.clone());
                let parts: Vec<PartRow> = diesel::sql_query(PARTS)
                    .bind::<Integer, _>(source.0)
                    .bind::<Text, _>(from.to_string())
                    .bind::<Text, _>(last)
                    .load(conn)
                    .await?;
                let read: usize = chunks.iter().map(|chunk| chunk.payload.len()).sum();
                let is_limited = read >= bytes || chunks.len() >= CHUNKS_MAX;
                Ok(Some(Look { is_limited, ends, chunks, parts }))
            })
            .await
    }
}

/// Follows the chain through what was read.
fn check(look: &Look, from: Position, to: Position) -> Result<Proof, Error> {
    let end = position(&look.ends.last_position)?;
    let mut walk = Walk {
        from,
        to,
        at: from,
        link: Link::from_bytes(&look.ends.before).unwrap_or_default(),
        parts: BTreeMap::new(),
        running: HashMap::new(),
        sums: BTreeMap::new(),
    };
    for part in &look.parts {
        walk.parts.entry(part.last_position.as_str()).or_default().push(part);
    }
    let proof = |walk: Walk<'_>, chunks: usize, complete, broken| {
        let sums = walk.sums.into_iter();
        Proof {
            from,
            upto: walk.at.min(to).max(from),
            complete,
            chunks: chunks as u64,
            datasets: sums.map(|(id, (changes, digest))| (id, changes, digest)).collect(),
            broken,
        }
    };
    for (index, chunk) in look.chunks.iter().enumerate() {
        if let Err(reason) = walk.step(chunk) {
            let broken =
                Broken { after: walk.at, chunk: position(&chunk.last_position).ok(), reason };
            return Ok(proof(walk, index, false, Some(broken)));
        }
    }
    let count = look.chunks.len();
    let broken = |reason| Some(Broken { after: walk.at, chunk: None, reason });
    let broken = if walk.at == end && walk.link.as_bytes() != look.ends.chain {
        broken("the chain does not end as it did when the last chunk was appended".to_owned())
    } else if !look.is_limited && walk.at < end && walk.at < to {
        broken(format!("no chunk follows, although the log goes on to {end}"))
    } else {
        None
    };
    let complete = broken.is_none() && (walk.at >= to || walk.at >= end);
    Ok(proof(walk, count, complete, broken))
}

/// A walk along the chain.
struct Walk<'a> {
    from: Position,
    to: Position,
    /// The end of the last chunk that was as it should be.
    at: Position,
    link: Link,
    /// By the end of their chunk.
    parts: BTreeMap<&'a str, Vec<&'a PartRow>>,
    /// The running total of each dataset, where a chunk has told it.
    running: HashMap<i32, (i64, Digest)>,
    /// What lies in the range.
    sums: BTreeMap<DatasetId, (u64, Digest)>,
}

impl Walk<'_> {
    /// Takes the next chunk, or says what is wrong with it.
    fn step(&mut self, chunk: &ChunkRow) -> Result<(), String> {
        let computed = checksum(&chunk.payload);
        if computed.as_slice() != chunk.checksum {
            return Err("its bytes do not have its checksum".to_owned());
        }
        if chunk.previous != self.link.as_bytes() {
            return Err(
                "it does not follow the chunk before: one is missing or was replaced".into()
            );
        }
        let batch = chunk::decode(&chunk.payload)?;
        let (first, last) = (Batch::first(&batch), Batch::last(&batch));
        if (first.to_string(), last.to_string())
            != (chunk.first_position.clone(), chunk.last_position.clone())
        {
            return Err(format!("it holds {first} to {last}, which is not what it says"));
        }
        if usize::try_from(chunk.changes) != Ok(batch.len()) {
            return Err(format!("it holds {} changes, not {}", batch.len(), chunk.changes));
        }
        let link = self.link.next(first, last, &computed);
        if chunk.chain != link.as_bytes() {
            return Err("its link is not the one of its content".to_owned());
        }
        self.step_parts(&batch, &chunk.last_position)?;
        self.link = link;
        self.at = last;
        Ok(())
    }

    /// Compares what the chunk holds of each dataset with what is said beside it.
    fn step_parts(&mut self, batch: &Batch, last: &str) -> Result<(), String> {
        let sums = batch.sums();
        let parts = self.parts.remove(last).unwrap_or_default();
        for (dataset, (changes, digest)) in &sums {
            let Some(part) = parts.iter().find(|part| part.dataset_id == dataset.0) else {
                return Err(format!("nothing says that it holds dataset {}", dataset.0));
            };
            let Some(total) = part.total_digest.as_deref().and_then(Digest::from_bytes) else {
                // Carried over from before there were digests.
                continue;
            };
            if u64::try_from(part.changes) != Ok(*changes) {
                return Err(format!(
                    "dataset {}: {changes} changes, not {}",
                    dataset.0, part.changes
                ));
            }
            let stated = (part.total_changes, total);
            if let Some(before) = self.running.insert(dataset.0, stated) {
                let expected = (before.0 + changes.cast_signed(), before.1 + *digest);
                if stated != expected {
                    return Err(format!("dataset {}: its running digest has a break", dataset.0));
                }
            }
        }
        let whole = Batch::first(batch) > self.from && batch.last() <= self.to;
        let sums = if whole { sums } else { batch.sums_between(self.from, self.to) };
        for (dataset, (changes, digest)) in sums {
            let sum = self.sums.entry(dataset).or_default();
            sum.0 += changes;
            sum.1 += digest;
        }
        Ok(())
    }
}
