//! Relay connections: pages by key, never by offset, and opaque ids.

use async_graphql::connection::{Connection, CursorType, Edge, EmptyFields};
use async_graphql::{ID, OutputType};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api::code::Code;
use crate::api::problem::Problem;
use crate::vocab::limits;

/// Items of a page when the query does not say.
const PAGE_ITEMS_DEFAULT: usize = 20;

/// What a field that asks PostgreSQL adds to a query's complexity.
pub(super) const DATABASE_COST: usize = 20;

/// A page of `N`s.
pub(super) type Page<N> = Connection<Cursor, N, EmptyFields, EmptyFields>;

/// The key of an item, opaque to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor(String);

impl CursorType for Cursor {
    type Error = Problem;

    fn decode_cursor(text: &str) -> Result<Self, Problem> {
        decode(text).map(Self).ok_or_else(|| {
            let detail = format!("unknown cursor \"{text}\": expected one from pageInfo or edges");
            Problem::new(Code::BadRequest, detail)
        })
    }

    fn encode_cursor(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.0)
    }
}

fn decode(text: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// Which page is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted<K> {
    /// How many items, 1 to 100.
    pub(super) first: usize,
    /// After the item with this key.
    pub(super) after: Option<K>,
}

/// Reads `first` and `after`.
pub(super) fn wanted<K: std::str::FromStr>(
    first: Option<i32>,
    after: Option<&str>,
) -> Result<Wanted<K>, Problem> {
    let max = limits::PAGE_ITEMS_MAX;
    let first = match first {
        None => PAGE_ITEMS_DEFAULT,
        Some(first) => usize::try_from(first)
            .ok()
            .filter(|first| (1..=max).contains(first))
            .ok_or_else(|| {
                let detail = format!("\"first\" must be between 1 and {max}, got {first}");
                Problem::new(Code::BadRequest, detail)
            })?,
    };
    let key = |text: &str| {
        let Cursor(key) = Cursor::decode_cursor(text)?;
        key.parse().map_err(|_| Problem::new(Code::BadRequest, "the cursor is of another list"))
    };
    Ok(Wanted { first, after: after.map(key).transpose()? })
}

/// The complexity of a page whose items cost `each`.
pub(super) fn cost(first: Option<i32>, each: usize) -> usize {
    let first = first.map_or(PAGE_ITEMS_DEFAULT, |first| usize::try_from(first).unwrap_or(0));
    1 + first.min(limits::PAGE_ITEMS_MAX) * each
}

/// The page of `items`, which begin after the wanted key and are one more than wanted if there
/// is another page.
pub(super) fn page<K, N: OutputType>(
    wanted: &Wanted<K>,
    items: impl IntoIterator<Item = (String, N)>,
) -> Page<N> {
    let mut page = Connection::new(wanted.after.is_some(), false);
    for (key, node) in items {
        if page.edges.len() == wanted.first {
            page.has_next_page = true;
            break;
        }
        page.edges.push(Edge::new(Cursor(key), node));
    }
    page
}

/// A kind of object that `node` finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A service.
    Service,
    /// A dataset.
    Dataset,
    /// A violation.
    Violation,
    /// A finding.
    Finding,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Service, Self::Dataset, Self::Violation, Self::Finding];

    fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Dataset => "dataset",
            Self::Violation => "violation",
            Self::Finding => "finding",
        }
    }

    /// The global id of number `id` of this kind.
    pub(super) fn id(self, id: i64) -> ID {
        URL_SAFE_NO_PAD.encode(format!("{}:{id}", self.word())).into()
    }

    /// The kind and number of a global id.
    pub(super) fn parse(id: &ID) -> Option<(Self, i64)> {
        let text = decode(id)?;
        let (word, number) = text.split_once(':')?;
        let kind = Self::ALL.into_iter().find(|kind| kind.word() == word)?;
        Some((kind, number.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_between_one_and_a_hundred_items() {
        assert_eq!(wanted::<i64>(None, None).unwrap().first, PAGE_ITEMS_DEFAULT);
        assert_eq!(wanted::<i64>(Some(100), None).unwrap().first, 100);
        for first in [0, -1, 101] {
            let problem = wanted::<i64>(Some(first), None).unwrap_err();
            assert_eq!(
                problem.detail(),
                format!("\"first\" must be between 1 and 100, got {first}")
            );
        }
    }

    #[test]
    fn a_cursor_leads_to_the_key_it_was_made_from() {
        let cursor = Cursor("42".to_owned()).encode_cursor();
        assert_eq!(wanted::<i64>(None, Some(&cursor)).unwrap().after, Some(42));
        assert!(wanted::<i64>(None, Some("???")).is_err());
        let other = Cursor("orders".to_owned()).encode_cursor();
        assert!(wanted::<i64>(None, Some(&other)).unwrap_err().detail().contains("another list"));
    }

    #[test]
    fn a_page_knows_whether_there_is_another() {
        let wanted = Wanted { first: 2, after: Some(0) };
        let items = |n: i32| (0..n).map(|i| (i.to_string(), i));
        assert!(!page(&wanted, items(2)).has_next_page);
        let full = page(&wanted, items(3));
        assert_eq!((full.edges.len(), full.has_next_page, full.has_previous_page), (2, true, true));
    }

    #[test]
    fn a_global_id_names_kind_and_number() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(&kind.id(7)), Some((kind, 7)));
        }
        assert_eq!(Kind::parse(&ID::from("orders")), None);
    }
}
