//! The declared state: what it would change, making it so, writing it out.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::access;
use crate::api::auth::Caller;
use crate::api::code::Code;
use crate::api::input::{self, Query};
use crate::api::problem::Problem;
use crate::api::server::Shared;
use crate::guard::Refusal;
use crate::registry::manifest::{self, Manifest};
use crate::registry::{Decided, Mutation, Snapshot};
use crate::vocab::SourceName;

/// The media type of YAML (RFC 9512) and the names it had before.
const YAML: [&str; 4] = ["application/yaml", "text/yaml", "application/x-yaml", "text/x-yaml"];

/// The file named in messages when the client names none.
const FILE: &str = "cadastre.yaml";

/// One thing that stands in the way, and where it was declared.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FindingAnswer {
    /// As given in `file=`.
    #[schema(example = "cadastre.yaml")]
    file: String,
    /// From 1.
    line: u64,
    /// What is wrong and what was expected.
    message: String,
}

impl From<manifest::Finding> for FindingAnswer {
    fn from(finding: manifest::Finding) -> Self {
        Self { file: finding.file, line: finding.line, message: finding.message }
    }
}

/// One object that differs from what is declared.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StepAnswer {
    /// `source`, `service`, `dataset` or `subscription`.
    kind: String,
    /// Its name.
    name: String,
    /// `create` or `update`.
    action: String,
    /// What would change, a line each.
    changes: Vec<String>,
}

impl From<manifest::Step> for StepAnswer {
    fn from(step: manifest::Step) -> Self {
        Self {
            kind: step.kind.to_owned(),
            name: step.name,
            action: step.action.to_owned(),
            changes: step.changes,
        }
    }
}

/// What a manifest would change.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlanAnswer {
    /// The differences; empty when there is nothing to change.
    steps: Vec<StepAnswer>,
    /// What the registry holds and the manifest does not mention: left alone.
    unmanaged: Vec<String>,
    /// What else is worth knowing.
    notes: Vec<String>,
    /// What stands in the way; empty when it can be applied.
    findings: Vec<FindingAnswer>,
}

/// What a manifest has changed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ApplyAnswer {
    /// What was done; empty when there was nothing to change.
    steps: Vec<StepAnswer>,
    /// What the registry holds and the manifest does not mention: left alone.
    unmanaged: Vec<String>,
    /// What else is worth knowing.
    notes: Vec<String>,
    /// The registry's revision with all of it.
    revision: i64,
}

/// What would this manifest change?
#[utoipa::path(
    post, path = "/v1/manifest/plan", tag = "manifest",
    request_body(content = String, content_type = "application/yaml"),
    params(("file" = Option<String>, Query, description = "The name to use in messages")),
    responses(
        (status = 200, body = PlanAnswer),
        (status = 403, description = "forbidden", body = super::openapi::Problem),
        (status = 415, description = "unsupported_media_type", body = super::openapi::Problem),
        (status = 422, description = "refused: not a manifest", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn plan(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let (manifest, file) = read(&request, payload).await?;
    let snapshot = shared.context.registry.snapshot();
    let plan = manifest.diff(&snapshot);
    // To check a source is to connect to it, with what the environment of this server holds.
    if let Some(source) = plan.mutations.iter().find_map(source_put) {
        access::permit_admin(&caller, &format!("planning a change of source \"{source}\""))?;
    }
    let findings = findings(&shared, &manifest, &plan, &file, &snapshot).await?;
    Ok(HttpResponse::Ok().json(PlanAnswer {
        steps: plan.steps.into_iter().map(StepAnswer::from).collect(),
        unmanaged: plan.unmanaged,
        notes: plan.notes,
        findings,
    }))
}

/// Makes this manifest so: all of it, or nothing.
#[utoipa::path(
    post, path = "/v1/manifest/apply", tag = "manifest",
    request_body(content = String, content_type = "application/yaml"),
    params(("file" = Option<String>, Query, description = "The name to use in messages")),
    responses(
        (status = 200, body = ApplyAnswer),
        (status = 403, description = "forbidden", body = super::openapi::Problem),
        (status = 415, description = "unsupported_media_type", body = super::openapi::Problem),
        (status = 422, description = "refused, with `errors`", body = super::openapi::Problem),
        (status = 503, description = "busy, unavailable", body = super::openapi::Problem),
    ),
)]
pub(in crate::api) async fn apply(
    shared: web::Data<Shared>,
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let (manifest, file) = read(&request, payload).await?;
    let snapshot = shared.context.registry.snapshot();
    let plan = manifest.diff(&snapshot);
    access::permit_mutations(&caller, &snapshot, &plan.mutations)?;
    let findings = findings(&shared, &manifest, &plan, &file, &snapshot).await?;
    if !findings.is_empty() {
        return Err(refused(&findings));
    }
    let revision = if plan.mutations.is_empty() {
        snapshot.revision
    } else {
        let governor = shared.context.governor.clone();
        let mutations = plan.mutations;
        let decided = Decided::on(&snapshot, &mutations, caller.actor());
        let work = async move { governor.apply_decided(&mutations, &decided).await };
        shared
            .detached("api.apply", work)
            .await?
            .map_err(|error| located(error, &manifest, &file))?
    };
    Ok(HttpResponse::Ok().json(ApplyAnswer {
        steps: plan.steps.into_iter().map(StepAnswer::from).collect(),
        unmanaged: plan.unmanaged,
        notes: plan.notes,
        revision: revision.0,
    }))
}

/// The registry as a manifest.
#[utoipa::path(
    get, path = "/v1/manifest", tag = "manifest",
    responses((status = 200, content_type = "application/yaml", body = String)),
)]
pub(in crate::api) async fn export(shared: web::Data<Shared>) -> HttpResponse {
    let yaml = Manifest::export(&shared.context.registry.snapshot());
    HttpResponse::Ok().content_type("application/yaml").body(yaml)
}

/// The manifest in the body and the name of its file.
async fn read(request: &HttpRequest, payload: web::Payload) -> Result<(Manifest, String), Problem> {
    let query = Query::parse(request.query_string(), &["file"])?;
    let file = query.one("file")?.unwrap_or(FILE).to_owned();
    let body = input::body(request.headers(), payload, &YAML).await?;
    let text = std::str::from_utf8(&body)
        .map_err(|error| Problem::new(Code::BadRequest, format!("the body: {error}")))?;
    match Manifest::parse(text, &file) {
        Ok(manifest) => Ok((manifest, file)),
        Err(findings) => {
            Err(refused(&findings.into_iter().map(FindingAnswer::from).collect::<Vec<_>>()))
        }
    }
}

/// The source that a mutation registers.
fn source_put(mutation: &Mutation) -> Option<&SourceName> {
    match mutation {
        Mutation::SourcePut { name, .. } => Some(name),
        _ => None,
    }
}

/// What stands in the way; the sources are asked only when the manifest fits the registry.
async fn findings(
    shared: &Shared,
    manifest: &Manifest,
    plan: &manifest::Plan,
    file: &str,
    snapshot: &Snapshot,
) -> Result<Vec<FindingAnswer>, Problem> {
    let mut findings: Vec<_> =
        manifest.validate(snapshot).into_iter().map(FindingAnswer::from).collect();
    if findings.is_empty() && !plan.mutations.is_empty() {
        let refusals = check(shared, plan.mutations.clone()).await?;
        findings.extend(refusals.iter().map(|refusal| at_line(refusal, manifest, file)));
    }
    Ok(findings)
}

async fn check(shared: &Shared, mutations: Vec<Mutation>) -> Result<Vec<Refusal>, Problem> {
    let governor = shared.context.governor.clone();
    Ok(shared.detached("api.check", async move { governor.check(&mutations).await }).await??)
}

/// A refusal with the line that declares what it is about.
fn at_line(refusal: &Refusal, manifest: &Manifest, file: &str) -> FindingAnswer {
    FindingAnswer {
        file: file.to_owned(),
        line: manifest.line_of(refusal.kind, &refusal.name).unwrap_or(1),
        message: refusal.message.clone(),
    }
}

/// The problem of a failed apply: what the sources refused in the meantime gets its line, too.
fn located(error: crate::guard::Error, manifest: &Manifest, file: &str) -> Problem {
    match error {
        crate::guard::Error::Refused(refusals) => {
            let findings: Vec<_> =
                refusals.iter().map(|refusal| at_line(refusal, manifest, file)).collect();
            refused(&findings)
        }
        other => other.into(),
    }
}

/// The problem with all findings: in its members for programs, in its detail for people.
fn refused(findings: &[FindingAnswer]) -> Problem {
    let lines: Vec<_> = findings
        .iter()
        .map(|finding| format!("{}:{}: {}", finding.file, finding.line, finding.message))
        .collect();
    Problem::new(Code::Refused, lines.join("\n")).with("errors", serde_json::json!(findings))
}
