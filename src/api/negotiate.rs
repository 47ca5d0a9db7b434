//! Content negotiation: which of the offered media types a client wants.
//!
//! RFC 9110 §12.5.1: the most specific range that matches a type gives its weight; the highest
//! weight wins, the order of the offer decides between equals, weight 0 refuses.

/// The index of the best of `offered` for this `Accept` header; `None` when nothing fits. Without
/// a header the first is as good as any.
pub(super) fn best(accept: Option<&str>, offered: &[&str]) -> Option<usize> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Some(0);
    };
    let ranges: Vec<(&str, u16)> = accept.split(',').map(range).collect();
    let weights = offered.iter().map(|media| {
        ranges
            .iter()
            .filter_map(|(range, weight)| Some((specificity(range, media)?, *weight)))
            .max()
            .map_or(0, |(_, weight)| weight)
    });
    let (index, weight) =
        weights.enumerate().max_by_key(|&(index, weight)| (weight, usize::MAX - index))?;
    (weight > 0).then_some(index)
}

/// A media range and its weight in thousandths.
fn range(text: &str) -> (&str, u16) {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let weight = parts.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then_some(value.trim())
    });
    (media, weight.map_or(1000, thousandths))
}

/// `0.5` as 500; what is no weight refuses.
fn thousandths(text: &str) -> u16 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    match (whole.parse::<u16>(), format!("{fraction:0<3}").parse::<u16>()) {
        (Ok(whole @ 0..=1), Ok(fraction @ 0..=999)) => (whole * 1000 + fraction).min(1000),
        _ => 0,
    }
}

/// How closely a range names a type; `None` when it does not match.
fn specificity(range: &str, media: &str) -> Option<u8> {
    if range.eq_ignore_ascii_case(media) {
        return Some(2);
    }
    match range.split_once('/')? {
        ("*", "*") => Some(0),
        (kind, "*") if media.split('/').next()?.eq_ignore_ascii_case(kind) => Some(1),
        _ => None,
    }
}

/// Whether the `Content-Type` names one of these types, parameters aside, in UTF-8 if it says.
pub(super) fn is_type(content_type: Option<&str>, expected: &[&str]) -> bool {
    let mut parts = content_type.unwrap_or_default().split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let utf8 = parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        Some(_) | None => true,
    });
    utf8 && expected.iter().any(|expected| media.eq_ignore_ascii_case(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_range_decides() {
        let offered = ["text/event-stream", "application/x-ndjson"];
        for (accept, expected) in [
            (None, Some(0)),
            (Some(""), Some(0)),
            (Some("*/*"), Some(0)),
            (Some("application/*"), Some(1)),
            (Some("application/x-ndjson"), Some(1)),
            (Some("Application/X-NDJSON; charset=utf-8"), Some(1)),
            (Some("text/event-stream;q=0.5, application/x-ndjson;q=0.8"), Some(1)),
            (Some("text/event-stream;q=0, */*;q=0.1"), Some(1)),
            (Some("text/html, application/json"), None),
            (Some("text/event-stream;q=0"), None),
            (Some("text/event-stream;q=x"), None),
        ] {
            assert_eq!(best(accept, &offered), expected, "{accept:?}");
        }
    }

    #[test]
    fn content_types_match_without_their_parameters() {
        let json = ["application/json"];
        assert!(is_type(Some("application/json"), &json));
        assert!(is_type(Some("Application/JSON; charset=UTF-8"), &json));
        assert!(!is_type(Some("application/json; charset=latin1"), &json));
        assert!(!is_type(Some("text/plain"), &json));
        assert!(!is_type(None, &json));
    }
}
