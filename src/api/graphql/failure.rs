//! Errors as GraphQL clients see them: a code for programs and the request's id on every one.
//!
//! Codes are those of [`Code`](crate::api::code::Code) in upper case, beside the names that the
//! ecosystem knows for failures of GraphQL itself.

use std::sync::Arc;

use async_graphql::{PathSegment, ServerError, Value};

use crate::api::problem::Problem;
use crate::vocab::limits;

/// The document is not GraphQL.
pub(super) const PARSE_FAILED: &str = "GRAPHQL_PARSE_FAILED";
/// The document does not fit the schema, or costs too much.
pub(super) const VALIDATION_FAILED: &str = "GRAPHQL_VALIDATION_FAILED";
/// It is not clear which operation of the document is meant.
pub(super) const OPERATION_RESOLUTION_FAILURE: &str = "OPERATION_RESOLUTION_FAILURE";
/// An argument or a variable has a value that cannot be.
pub(super) const BAD_USER_INPUT: &str = "BAD_USER_INPUT";
/// The request is not of the form of a GraphQL request.
pub(super) const BAD_REQUEST: &str = "BAD_REQUEST";

/// An error with its code.
pub(super) fn error(code: &str, message: impl Into<String>) -> ServerError {
    let mut error = ServerError::new(message, None);
    set(&mut error, "code", code);
    error
}

/// The problem as the error of one field of the root.
pub(super) fn of_field(problem: Problem, field: &str) -> ServerError {
    let mut error = ServerError::new(problem.detail(), None);
    error.path = vec![PathSegment::Field(field.to_owned())];
    error.source = Some(Arc::new(problem));
    error
}

/// Completes the errors of a response: codes, messages for clients, the request's id. What is our
/// fault is logged here, once.
pub(super) fn complete(errors: &mut [ServerError], request_id: &str) {
    for error in errors {
        let problem = error.source::<Problem>().cloned();
        if let Some(problem) = problem {
            explain(error, &problem);
        } else if !has_code(error) {
            let request_failed = error.path.is_empty();
            set(error, "code", if request_failed { VALIDATION_FAILED } else { BAD_USER_INPUT });
            name_limit(error);
        }
        set(error, "requestId", request_id);
    }
}

fn explain(error: &mut ServerError, problem: &Problem) {
    if problem.code().status().is_server_error() {
        let cause = problem.cause().unwrap_or_else(|| problem.detail());
        tracing::error!(code = problem.code().as_str(), error = cause, "a resolver failed");
    }
    problem.detail().clone_into(&mut error.message);
    set(error, "code", problem.code().graphql());
    for (name, value) in problem.members() {
        let value = Value::from_json(value.clone()).unwrap_or_default();
        error.extensions.get_or_insert_default().set(name, value);
    }
}

/// Says what the limit is where the library only says that there is one.
fn name_limit(error: &mut ServerError) {
    let limit = match error.message.as_str() {
        "Query is nested too deep." => format!("at most {} levels", limits::GRAPHQL_DEPTH_MAX),
        "Query is too complex." => {
            format!("at most {} fields, pages multiplied out", limits::GRAPHQL_COMPLEXITY_MAX)
        }
        _ => return,
    };
    error.message = format!("{} Expected {limit}.", error.message);
}

fn has_code(error: &ServerError) -> bool {
    error.extensions.as_ref().is_some_and(|extensions| extensions.get("code").is_some())
}

fn set(error: &mut ServerError, name: &str, value: impl Into<Value>) {
    error.extensions.get_or_insert_default().set(name, value);
}
