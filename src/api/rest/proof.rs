//! Whether a source's log is whole: read again and computed anew.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::{parse_after, parse_until};
use crate::api::code::Code;
use crate::api::input::Query;
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::feed::{After, Until};
use crate::log::{Digest, Proof};
use crate::registry::Snapshot;
use crate::vocab::{DatasetId, SourceName};

/// What a part of a log was found to be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProofAnswer {
    /// Whether everything that was looked at is as it was stored, without a gap.
    ok: bool,
    /// Exclusive.
    #[schema(example = "01-00000000016CA548-00000003")]
    from: String,
    /// Inclusive: how far was looked.
    upto: String,
    /// Whether that is all that was asked for. If not, ask again from `upto` on: digests add up.
    complete: bool,
    /// Chunks read.
    chunks: u64,
    /// Changes in the range.
    changes: u64,
    /// Their digest, of all datasets together.
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015")]
    digest: String,
    /// Of each dataset with changes in the range.
    datasets: Vec<DatasetProof>,
    /// The first thing that is not as it was stored.
    broken: Option<BrokenAnswer>,
}

/// What a dataset has in the range.
#[derive(Debug, Serialize, ToSchema)]
struct DatasetProof {
    /// Its name; a number after `#` when it is no longer registered.
    #[schema(example = "shop.public.orders")]
    dataset: String,
    /// How many changes.
    changes: u64,
    /// The sum, modulo 2^128, of the first 16 bytes of the SHA-256 of each event as NDJSON delivers
    /// it, without the line break and without the last `,"ts_ms":` that has digits after it, and
    /// those.
    digest: String,
}

/// Where a log is not what it was.
#[derive(Debug, Serialize, ToSchema)]
struct BrokenAnswer {
    /// Everything up to here is as it was.
    after: String,
    /// The end of the chunk that is broken; null when the end of the log is missing.
    chunk: Option<String>,
    /// What is wrong.
    reason: String,
}

impl ProofAnswer {
    fn new(proof: &Proof, snapshot: &Snapshot) -> Self {
        let name = |id: &DatasetId| {
            let dataset = snapshot.datasets_by_id.get(id);
            dataset.map_or_else(|| format!("#{}", id.0), |dataset| dataset.name.to_string())
        };
        let mut digest = Digest::default();
        proof.datasets.iter().for_each(|(_, _, of_dataset)| digest += *of_dataset);
        Self {
            ok: proof.broken.is_none(),
            from: proof.from.to_string(),
            upto: proof.upto.to_string(),
            complete: proof.complete,
            chunks: proof.chunks,
            changes: proof.datasets.iter().map(|(_, changes, _)| changes).sum(),
            digest: digest.to_string(),
            datasets: proof
                .datasets
                .iter()
                .map(|(id, changes, digest)| DatasetProof {
                    dataset: name(id),
                    changes: *changes,
                    digest: digest.to_string(),
                })
                .collect(),
            broken: proof.broken.as_ref().map(|broken| BrokenAnswer {
                after: broken.after.to_string(),
                chunk: broken.chunk.map(|chunk| chunk.to_string()),
                reason: broken.reason.clone(),
            }),
        }
    }
}

/// Is the log of this source whole?
///
/// Everything in the range is read again: checksums, the chain of chunks, counts and digests are
/// computed anew. What is broken is no error but in the answer.
#[utoipa::path(
    get, path = "/v1/sources/{name}/proof", tag = "sources",
    params(
        ("name" = String, Path, description = "The source"),
        ("from" = Option<String>, Query, description = "`earliest` (default), a position, or a time"),
        ("to" = Option<String>, Query, description = "`now` (default), a position, or a time"),
    ),
    responses(
        (status = 200, body = ProofAnswer),
        (status = 400, description = "bad_request, malformed_position", body = super::openapi::Problem),
        (status = 404, description = "unknown_source", body = super::openapi::Problem),
        (status = 410, description = "position_trimmed, with `earliest`", body = super::openapi::Problem),
        (status = 503, description = "unavailable", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn proof(
    shared: web::Data<Shared>,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let query = Query::parse(request.query_string(), &["from", "to"])?;
    let from = query.one("from")?.map_or(Ok(After::Earliest), |from| parse_after(Some(from)))?;
    let until = query.one("to")?.map_or(Ok(Until::Now), parse_until)?;
    let name: SourceName = name.parse()?;
    let snapshot = shared.context.registry.snapshot();
    let source = snapshot.sources.get(&name).ok_or_else(|| {
        Problem::new(Code::UnknownSource, format!("no source is named \"{name}\""))
    })?;
    let (feed, source) = (shared.context.feed.clone(), source.id);
    let proof = shared
        .detached("api.proof", async move { feed.prove(source, from, until).await })
        .await??;
    Ok(HttpResponse::Ok().json(ProofAnswer::new(&proof, &snapshot)))
}
