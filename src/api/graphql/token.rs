//! API tokens: what they are good for, making and revoking them.

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject};
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;

use super::mutation::{Fields, UserError};
use super::page::{self, DATABASE_COST, Page};
use super::scalar::{caller, shared, snapshot};
use super::service::ServiceNode;
use crate::api::access;
use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::registry::{self, NewToken, Principal, Revision, Token, TokenId};
use crate::vocab::ServiceName;

/// Whom a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
enum TokenRole {
    /// Reads and changes everything.
    Admin,
    /// Reads everything, changes nothing.
    Auditor,
    /// Reads everything, changes what its service owns.
    Service,
}

/// Whether a token is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
enum TokenState {
    /// It is.
    Active,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

/// A token as lists show it: everything but its secret.
struct TokenNode {
    token: Token,
    service: Option<ServiceNode>,
}

/// An API token, without its secret.
#[Object(name = "Token")]
impl TokenNode {
    /// The part of the token that may be seen; what `tokenRevoke` takes.
    async fn id(&self) -> ID {
        self.token.id.as_str().into()
    }

    /// Whom it stands for.
    async fn role(&self) -> TokenRole {
        match self.token.principal {
            Principal::Admin => TokenRole::Admin,
            Principal::Auditor => TokenRole::Auditor,
            Principal::Service(_) => TokenRole::Service,
        }
    }

    /// The service, when it stands for one.
    async fn service(&self) -> Option<&ServiceNode> {
        self.service.as_ref()
    }

    /// What it is for.
    async fn description(&self) -> Option<&str> {
        self.token.description.as_deref()
    }

    /// Whether it is of use.
    async fn state(&self) -> TokenState {
        if self.token.revoked_at.is_some() {
            TokenState::Revoked
        } else if self.token.expires_at.is_some_and(|end| end <= Utc::now()) {
            TokenState::Expired
        } else {
            TokenState::Active
        }
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime<Utc> {
        self.token.created_at
    }

    /// Who had it made.
    async fn created_by(&self) -> &str {
        &self.token.created_by
    }

    /// From when on it stands for nobody; null for never.
    async fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.token.expires_at
    }

    /// When it was revoked.
    async fn revoked_at(&self) -> Option<DateTime<Utc>> {
        self.token.revoked_at
    }

    /// When it was last seen, to within a minute.
    async fn last_used_at(&self) -> Option<DateTime<Utc>> {
        self.token.last_used_at
    }
}

/// A token to be made: for a service, or with the role ADMIN or AUDITOR.
#[derive(InputObject)]
struct TokenCreateInput {
    /// The service it shall stand for.
    service: Option<String>,
    /// ADMIN or AUDITOR, without a service.
    role: Option<TokenRole>,
    /// What it is for.
    description: Option<String>,
    /// From when on it stands for nobody; never if not given.
    expires_at: Option<DateTime<Utc>>,
}

/// A token to be revoked.
#[derive(InputObject)]
struct TokenRevokeInput {
    /// Its id, as `tokens` shows it.
    id: ID,
}

/// What `tokenCreate` did.
#[derive(SimpleObject)]
struct TokenCreatePayload {
    /// The new token.
    token: Option<TokenNode>,
    /// The token itself: shown here once and kept nowhere.
    secret: Option<String>,
    /// Why none was made; empty when one was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

/// What `tokenRevoke` did.
#[derive(SimpleObject)]
struct TokenRevokePayload {
    /// As it is now.
    token: Option<TokenNode>,
    /// Why nothing was changed; empty when it was.
    user_errors: Vec<UserError>,
    /// The registry with this change.
    revision: Option<Revision>,
}

/// The part of the root of queries that is about tokens.
#[derive(Default)]
pub(super) struct TokenQuery;

#[Object]
impl TokenQuery {
    /// API tokens, newest first; a service sees its own.
    #[graphql(complexity = "DATABASE_COST + page::cost(first, child_complexity)")]
    async fn tokens(
        &self,
        ctx: &Context<'_>,
        service: Option<String>,
        #[graphql(desc = "1 to 100 items; 20 when not given.")] first: Option<i32>,
        #[graphql(desc = "A cursor of this list.")] after: Option<String>,
    ) -> Option<Result<Page<TokenNode>, Problem>> {
        Some(list(ctx, service, first, after).await)
    }
}

/// The part of the root of mutations that is about tokens.
#[derive(Default)]
pub(super) struct TokenMutation;

#[Object]
impl TokenMutation {
    /// Makes a token for a service, an admin or an auditor. Several may be valid at the same time,
    /// so that a new one can be rolled out before the old one is revoked.
    async fn token_create(
        &self,
        ctx: &Context<'_>,
        input: TokenCreateInput,
    ) -> Option<Result<TokenCreatePayload, Problem>> {
        Some(create(ctx, input).await)
    }

    /// Revokes a token for good. A service may revoke its own.
    async fn token_revoke(
        &self,
        ctx: &Context<'_>,
        input: TokenRevokeInput,
    ) -> Option<Result<TokenRevokePayload, Problem>> {
        Some(revoke(ctx, &input.id).await)
    }
}

async fn list(
    ctx: &Context<'_>,
    service: Option<String>,
    first: Option<i32>,
    after: Option<String>,
) -> Result<Page<TokenNode>, Problem> {
    let wanted = page::wanted::<i64>(first, after.as_deref())?;
    let asked: Option<ServiceName> = service.map(|name| name.parse()).transpose()?;
    let caller = caller(ctx)?;
    let service = match (asked, &caller.principal) {
        (Some(asked), Principal::Service(_)) => {
            access::permit(caller, &asked, &format!("seeing the tokens of \"{asked}\""))?;
            Some(asked)
        }
        (None, Principal::Service(own)) => Some(own.clone()),
        (asked, Principal::Admin | Principal::Auditor) => asked,
    };
    let page = registry::Page { first: wanted.first + 1, after: wanted.after };
    let tokens = shared(ctx).context.registry.tokens(service.as_ref(), page).await?;
    let mut nodes = Vec::with_capacity(tokens.len());
    for token in tokens {
        nodes.push((token.number.to_string(), node(ctx, token).await?));
    }
    Ok(page::page(&wanted, nodes))
}

async fn node(ctx: &Context<'_>, token: Token) -> Result<TokenNode, Problem> {
    let snapshot = snapshot(ctx, None).await?;
    let service =
        token.principal.service().and_then(|service| ServiceNode::find(&snapshot, service));
    Ok(TokenNode { token, service })
}

async fn create(ctx: &Context<'_>, input: TokenCreateInput) -> Result<TokenCreatePayload, Problem> {
    let refused =
        |user_errors| TokenCreatePayload { token: None, secret: None, user_errors, revision: None };
    let mut fields = Fields::default();
    let principal = match (&input.service, input.role) {
        (Some(name), None | Some(TokenRole::Service)) => {
            fields.parse(name, &["input", "service"])?.map(Principal::Service)
        }
        (None, Some(TokenRole::Admin)) => Some(Principal::Admin),
        (None, Some(TokenRole::Auditor)) => Some(Principal::Auditor),
        (Some(_), Some(_)) | (None, None | Some(TokenRole::Service)) => {
            let detail = "expected a service, or the role ADMIN or AUDITOR without one";
            let problem = Problem::new(Code::BadRequest, detail);
            return Ok(refused(vec![UserError::of(problem, &["input"])?]));
        }
    };
    let Some(principal) = principal else { return Ok(refused(fields.errors)) };
    let new = NewToken {
        principal,
        description: input.description,
        expires_at: input.expires_at,
        created_by: caller(ctx)?.actor(),
    };
    let registry = shared(ctx).context.registry.clone();
    let work = async move { registry.token_create(new).await };
    match shared(ctx).detached("api.mutation", work).await? {
        Ok((token, secret, revision)) => Ok(TokenCreatePayload {
            token: Some(node(ctx, token).await?),
            secret: Some(secret.expose_secret().to_owned()),
            user_errors: Vec::new(),
            revision: Some(revision),
        }),
        Err(error) => {
            let field: &[&str] = match &error {
                registry::Error::NotFound { .. } => &["input", "service"],
                registry::Error::Invalid { field: "expiresAt", .. } => &["input", "expiresAt"],
                registry::Error::Invalid { .. } => &["input", "description"],
                registry::Error::Conflict { .. } | registry::Error::Unavailable(_) => &[],
            };
            Ok(refused(vec![UserError::of(error.into(), field)?]))
        }
    }
}

async fn revoke(ctx: &Context<'_>, id: &str) -> Result<TokenRevokePayload, Problem> {
    let refused = |user_errors| TokenRevokePayload { token: None, user_errors, revision: None };
    let mut fields = Fields::default();
    let Some(id) = fields.parse::<TokenId>(id, &["input", "id"])? else {
        return Ok(refused(fields.errors));
    };
    let registry = &shared(ctx).context.registry;
    let what = format!("revoking token {id}");
    match registry.token(&id).await {
        Ok(Token { principal: Principal::Service(service), .. }) => {
            access::permit(caller(ctx)?, &service, &what)?;
        }
        Ok(_) => access::permit_admin(caller(ctx)?, &what)?,
        Err(error) => {
            return Ok(refused(vec![UserError::of(error.into(), &["input", "id"])?]));
        }
    }
    let registry = registry.clone();
    let work = async move { registry.token_revoke(&id).await };
    let (token, revision) = shared(ctx).detached("api.mutation", work).await??;
    Ok(TokenRevokePayload {
        token: Some(node(ctx, token).await?),
        user_errors: Vec::new(),
        revision: Some(revision),
    })
}
