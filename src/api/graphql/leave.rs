//! Leaving: taking datasets and sources out of governance.

use async_graphql::{Context, InputObject, Object, SimpleObject};

use super::mutation::{Fields, UserError};
use super::scalar::shared;
use crate::api::problem::Problem;
use crate::registry::Revision;
use crate::vocab::{DatasetName, SourceName};

/// A source that is to leave.
#[derive(InputObject)]
struct SourceUninstallInput {
    /// Its name.
    source: String,
}

/// A dataset that is to leave.
#[derive(InputObject)]
struct DatasetReleaseInput {
    /// `SOURCE.SCHEMA.TABLE`.
    dataset: String,
}

/// What `sourceUninstall` did.
#[derive(SimpleObject)]
struct SourceUninstallPayload {
    /// What could not be taken out of the source because somebody else built on it, a sentence each.
    left: Vec<String>,
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

/// What `datasetRelease` did.
#[derive(SimpleObject)]
struct DatasetReleasePayload {
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

/// The part of the root of mutations by which things leave.
#[derive(Default)]
pub(super) struct LeaveMutation;

#[Object]
impl LeaveMutation {
    /// Takes everything of Cadastre out of a source, and the source out of the registry; history
    /// stays. Once begun it goes on by itself until it is done.
    async fn source_uninstall(
        &self,
        ctx: &Context<'_>,
        input: SourceUninstallInput,
    ) -> Option<Result<SourceUninstallPayload, Problem>> {
        Some(source_uninstall(ctx, &input.source).await)
    }

    /// Takes the guard off one table: nobody owns it from here on; its history stays.
    async fn dataset_release(
        &self,
        ctx: &Context<'_>,
        input: DatasetReleaseInput,
    ) -> Option<Result<DatasetReleasePayload, Problem>> {
        Some(dataset_release(ctx, &input.dataset).await)
    }
}

async fn source_uninstall(
    ctx: &Context<'_>,
    source: &str,
) -> Result<SourceUninstallPayload, Problem> {
    let refused =
        |user_errors| SourceUninstallPayload { left: Vec::new(), user_errors, revision: None };
    let mut fields = Fields::default();
    let Some(name) = fields.parse::<SourceName>(source, &["input", "source"])? else {
        return Ok(refused(fields.errors));
    };
    let governor = shared(ctx).context.governor.clone();
    let work = async move { governor.uninstall(&name).await };
    match shared(ctx).detached("api.uninstall", work).await? {
        Ok(left) => {
            let revision = Some(shared(ctx).context.registry.snapshot().revision);
            Ok(SourceUninstallPayload { left, user_errors: Vec::new(), revision })
        }
        Err(error) => Ok(refused(vec![UserError::of(error.into(), &["input", "source"])?])),
    }
}

async fn dataset_release(
    ctx: &Context<'_>,
    dataset: &str,
) -> Result<DatasetReleasePayload, Problem> {
    let mut fields = Fields::default();
    let Some(name) = fields.parse::<DatasetName>(dataset, &["input", "dataset"])? else {
        return Ok(DatasetReleasePayload { user_errors: fields.errors, revision: None });
    };
    let governor = shared(ctx).context.governor.clone();
    let work = async move { governor.release(&name).await };
    Ok(match shared(ctx).detached("api.release", work).await? {
        Ok(revision) => DatasetReleasePayload { user_errors: Vec::new(), revision: Some(revision) },
        Err(error) => {
            let error = UserError::of(error.into(), &["input", "dataset"])?;
            DatasetReleasePayload { user_errors: vec![error], revision: None }
        }
    })
}
