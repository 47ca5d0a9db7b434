//! What a request says, read strictly: a body within its limit and of the right type, a query
//! whose every parameter is known. What is refused is refused with what would be right.

use actix_web::http::header::{self, HeaderMap};
use actix_web::web;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::code::Code;
use super::negotiate;
use super::problem::Problem;
use crate::vocab::limits;

/// A header's value as text; `None` when it is absent or not text.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The whole body, which must be of one of the `expected` types.
pub(super) async fn body(
    headers: &HeaderMap,
    payload: web::Payload,
    expected: &[&str],
) -> Result<Bytes, Problem> {
    let given = header_text(headers, header::CONTENT_TYPE.as_str());
    if !negotiate::is_type(given, expected) {
        let detail = format!(
            "expected Content-Type: {} in UTF-8, got {}",
            expected.join(" or "),
            given.unwrap_or("none")
        );
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    match payload.to_bytes_limited(limits::REQUEST_BODY_BYTES_MAX).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(Problem::foreign(&error)),
        Err(_) => Err(Problem::payload_too_large()),
    }
}

/// A JSON body.
pub(super) async fn json<T: DeserializeOwned>(
    headers: &HeaderMap,
    payload: web::Payload,
) -> Result<T, Problem> {
    let body = body(headers, payload, &["application/json"]).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Problem::new(Code::BadRequest, format!("the body: {error}")))
}

/// The parameters of a query string.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string that may hold `known` parameters and no others.
    pub(super) fn parse(text: &str, known: &[&str]) -> Result<Self, Problem> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(text)
            .map_err(|error| Problem::new(Code::BadRequest, error.to_string()))?
            .into_inner();
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(Self(pairs)),
            Some((name, _)) => Err(Problem::new(
                Code::BadRequest,
                format!("unknown query parameter \"{name}\": expected {}", known.join(", ")),
            )),
        }
    }

    /// The value of a parameter that may be given once.
    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(Problem::new(
                Code::BadRequest,
                format!("query parameter \"{name}\" is given more than once"),
            )),
        }
    }

    /// The value of a parameter that must be given once.
    pub(super) fn required(&self, name: &str, example: &str) -> Result<&str, Problem> {
        self.one(name)?.ok_or_else(|| {
            let detail = format!("query parameter \"{name}\" is missing: for example {example}");
            Problem::new(Code::BadRequest, detail)
        })
    }

    /// The values of a parameter that may be repeated.
    pub(super) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_parameters_are_refused_with_the_known_ones() {
        let problem = Query::parse("dataset=x", &["datasets", "after"]).unwrap_err();
        assert_eq!(problem.code(), Code::BadRequest);
        assert_eq!(
            problem.detail(),
            "unknown query parameter \"dataset\": expected datasets, after"
        );
    }

    #[test]
    fn parameters_are_decoded_and_may_not_repeat_by_accident() {
        let query = Query::parse("a=x%20y&a=z&b=1", &["a", "b"]).unwrap();
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["x y", "z"]);
        assert_eq!(query.one("b").unwrap(), Some("1"));
        assert!(query.one("a").is_err());
        assert!(query.required("c", "c=1").unwrap_err().detail().contains("c=1"));
    }
}
