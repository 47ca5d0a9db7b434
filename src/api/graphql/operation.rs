//! A GraphQL request, from JSON or from a query string, parsed up to the operation it means.

use actix_web::web;
use async_graphql::parser::parse_query;
use async_graphql::parser::types::{
    DocumentOperations, ExecutableDocument, OperationDefinition, OperationType, Selection,
    SelectionSet,
};
use async_graphql::{Request, Response, ServerError, Variables};
use serde_json::{Map, Value};

use super::failure::{
    self, BAD_REQUEST, BAD_USER_INPUT, OPERATION_RESOLUTION_FAILURE, PARSE_FAILED,
};
use crate::api::access;
use crate::api::auth::Caller;
use crate::vocab::limits;

/// Why there is nothing to execute.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// Not JSON, or not GraphQL.
    Malformed(ServerError),
    /// JSON and GraphQL, but not a request, or not clear which operation is meant.
    Unprocessable(ServerError),
}

impl Unreadable {
    fn unprocessable(message: impl Into<String>) -> Self {
        Self::Unprocessable(failure::error(BAD_REQUEST, message))
    }

    /// The error to show.
    pub(super) fn into_error(self) -> ServerError {
        match self {
            Self::Malformed(error) | Self::Unprocessable(error) => error,
        }
    }
}

/// A request that can be executed.
#[derive(Debug)]
pub(super) struct Operation {
    /// With its document parsed.
    pub(super) request: Request,
    /// What the operation is.
    pub(super) kind: OperationType,
    /// The fields of the root that it selects, whatever its directives say.
    pub(super) fields: Vec<String>,
}

impl Operation {
    /// The operation on behalf of `caller`, unless it asks for what they may never have: then
    /// nothing of it is executed.
    pub(super) fn by(mut self, caller: &Caller) -> Result<Self, Box<Response>> {
        let root = match self.kind {
            OperationType::Query => "Query",
            OperationType::Mutation => "Mutation",
            OperationType::Subscription => "Subscription",
        };
        for field in &self.fields {
            if let Err(problem) = access::allow(caller, access::of_field(root, field), field) {
                let refusal = Response::from_errors(vec![failure::of_field(problem, field)]);
                return Err(Box::new(refusal));
            }
        }
        self.request = self.request.data(caller.clone());
        Ok(self)
    }
}

/// Collects the fields of a selection of the root, through fragments. A fragment that is not there
/// or spreads itself is for validation to refuse; here it only has to end.
fn root_fields(
    document: &ExecutableDocument,
    set: &SelectionSet,
    depth: usize,
    out: &mut Vec<String>,
) {
    if depth > limits::GRAPHQL_DEPTH_MAX {
        return;
    }
    for selection in &set.items {
        match &selection.node {
            Selection::Field(field) => out.push(field.node.name.node.to_string()),
            Selection::InlineFragment(fragment) => {
                root_fields(document, &fragment.node.selection_set.node, depth + 1, out);
            }
            Selection::FragmentSpread(spread) => {
                if let Some(fragment) = document.fragments.get(&spread.node.fragment_name.node) {
                    root_fields(document, &fragment.node.selection_set.node, depth + 1, out);
                }
            }
        }
    }
}

/// Reads a request body.
pub(super) fn from_body(body: &[u8]) -> Result<Operation, Unreadable> {
    let json = serde_json::from_slice(body).map_err(|error| {
        Unreadable::Malformed(failure::error(BAD_REQUEST, format!("the body is not JSON: {error}")))
    })?;
    from_json(json)
}

/// Reads `{query, operationName, variables, extensions}`; other members are ignored.
pub(super) fn from_json(json: Value) -> Result<Operation, Unreadable> {
    let Value::Object(mut members) = json else {
        return Err(Unreadable::unprocessable("expected a JSON object with the member \"query\""));
    };
    let Some(Value::String(query)) = members.remove("query") else {
        return Err(Unreadable::unprocessable("expected \"query\" to be a string"));
    };
    let name = match members.remove("operationName") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name),
        Some(_) => {
            return Err(Unreadable::unprocessable("expected \"operationName\" to be a string"));
        }
    };
    let variables = object(members.remove("variables"), "variables")?;
    object(members.remove("extensions"), "extensions")?;
    parse(query, name, variables)
}

/// Reads the query string of a GET request.
pub(super) fn from_query_string(text: &str) -> Result<Operation, Unreadable> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(text)
        .map_err(|error| Unreadable::unprocessable(error.to_string()))?
        .into_inner();
    let mut members = Map::new();
    for (name, value) in pairs {
        let value = match name.as_str() {
            "variables" | "extensions" => serde_json::from_str(&value).map_err(|error| {
                Unreadable::unprocessable(format!("\"{name}\" is not JSON: {error}"))
            })?,
            _ => Value::String(value),
        };
        members.insert(name, value);
    }
    from_json(Value::Object(members))
}

/// Whether every variable that must have a value has one; the library would find out while it
/// executes, and call that a failure of the field.
fn required_variables(operation: &OperationDefinition, given: &Value) -> Result<(), Unreadable> {
    for definition in &operation.variable_definitions {
        let definition = &definition.node;
        let (name, kind) = (&definition.name.node, &definition.var_type.node);
        let missing = given.get(name.as_str()).is_none_or(Value::is_null);
        if missing && !kind.nullable && definition.default_value.is_none() {
            let message = format!("expected a value for variable \"${name}\" of type {kind}");
            return Err(Unreadable::Unprocessable(failure::error(BAD_USER_INPUT, message)));
        }
    }
    Ok(())
}

fn object(value: Option<Value>, name: &str) -> Result<Value, Unreadable> {
    match value {
        None | Some(Value::Null) => Ok(Value::Null),
        Some(value @ Value::Object(_)) => Ok(value),
        Some(_) => Err(Unreadable::unprocessable(format!("expected \"{name}\" to be an object"))),
    }
}

fn parse(query: String, name: Option<String>, variables: Value) -> Result<Operation, Unreadable> {
    let document = parse_query(&query).map_err(|error| {
        let mut error = ServerError::from(error);
        error.extensions = failure::error(PARSE_FAILED, "").extensions;
        Unreadable::Malformed(error)
    })?;
    let named = |names: Vec<&str>| {
        let message = format!("expected \"operationName\" to be one of {}", names.join(", "));
        Unreadable::Unprocessable(failure::error(OPERATION_RESOLUTION_FAILURE, message))
    };
    let operation = match (&document.operations, name.as_deref()) {
        (DocumentOperations::Single(operation), None) => operation,
        (DocumentOperations::Single(_), Some(_)) => {
            let message = "expected no \"operationName\": the operation has none";
            let error = failure::error(OPERATION_RESOLUTION_FAILURE, message);
            return Err(Unreadable::Unprocessable(error));
        }
        (DocumentOperations::Multiple(operations), name) => {
            let mut names: Vec<_> = operations.keys().map(AsRef::as_ref).collect();
            names.sort_unstable();
            let meant = match (name, names.as_slice()) {
                (Some(name), _) => operations.get(name),
                (None, [only]) => operations.get(*only),
                (None, _) => None,
            };
            meant.ok_or_else(|| named(names))?
        }
    };
    let kind = operation.node.ty;
    required_variables(&operation.node, &variables)?;
    let mut fields = Vec::new();
    root_fields(&document, &operation.node.selection_set.node, 0, &mut fields);
    let mut request = Request::new(query).variables(Variables::from_json(variables));
    request.operation_name = name;
    request.set_parsed_query(document);
    Ok(Operation { request, kind, fields })
}
