//! The gap: an event that says that changes are missing, from where to where, and why.
//!
//! Nothing is left out of a feed in silence. Whoever finds that changes were lost for a reader (the
//! slot was gone, the log was cut while it was being read) puts this event where they would have
//! been; `schema/events/gap.json` describes it. Here is its form alone: when it is due is known to
//! capture and to the feed.

use crate::vocab::{DatasetName, Position, SourceName};

/// The JSON Schema of a gap event.
pub const GAP_SCHEMA: &str = include_str!("../../schema/events/gap.json");

/// Why changes are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// They were older than the log keeps.
    Retention,
    /// The log had reached its hard limit of size.
    Size,
    /// The source's replication slot was gone or invalidated.
    SlotLost,
    /// The source is another database than the one captured before.
    SourceReplaced,
    /// The log ends before what had been delivered from it.
    TruncatedLog,
}

impl GapReason {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::Retention, Self::Size, Self::SlotLost, Self::SourceReplaced, Self::TruncatedLog];

    /// The word in the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Size => "size",
            Self::SlotLost => "slot_lost",
            Self::SourceReplaced => "source_replaced",
            Self::TruncatedLog => "truncated_log",
        }
    }
}

/// A gap in one source's changes, as the readers of one dataset (or of several at once) are told.
#[derive(Debug, Clone, Copy)]
pub struct Gap<'a> {
    /// The source.
    pub source: &'a SourceName,
    /// The name of its database, where it is known.
    pub database: Option<&'a str>,
    /// The dataset whose readers are told.
    pub dataset: &'a DatasetName,
    /// Every dataset that may have changes in the gap.
    pub datasets: &'a [DatasetName],
    /// Why.
    pub reason: GapReason,
    /// Everything up to here, inclusive, was in the feed.
    pub from: Position,
    /// Everything after here is in the feed.
    pub to: Position,
    /// Where the event stands: at or after `to`, before what follows.
    pub position: Position,
    /// When the gap was found, in milliseconds since 1970.
    pub now_ms: i64,
}

impl Gap<'_> {
    /// Appends the event as one JSON object without a line break.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let event = serde_json::json!({
            "event": "gap",
            "source": {
                "connector": "cadastre",
                "name": self.source.as_str(),
                "db": self.database,
                "lsn": self.position.lsn().get(),
                "ts_ms": self.now_ms,
            },
            "ts_ms": self.now_ms,
            "dataset": self.dataset.as_str(),
            "position": self.position.to_string(),
            "gap": {
                "reason": self.reason.as_str(),
                "from": self.from.to_string(),
                "to": self.to.to_string(),
                "datasets": self.datasets.iter().map(DatasetName::as_str).collect::<Vec<_>>(),
            },
        });
        serde_json::to_writer(out, &event).expect("names and numbers can be written to memory");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::vocab::{Epoch, Lsn};

    #[test]
    fn a_gap_is_what_its_schema_describes() {
        let at = |epoch, lsn| Position::new(Epoch::new(epoch), Lsn::new(lsn), 1);
        let names: Vec<DatasetName> =
            ["shop.public.invoices", "shop.public.orders"].map(|name| name.parse().unwrap()).into();
        let gap = Gap {
            source: &"shop".parse().unwrap(),
            database: Some("shop"),
            dataset: &names[1],
            datasets: &names,
            reason: GapReason::SlotLost,
            from: at(1, 80),
            to: at(2, 4),
            position: at(2, 4),
            now_ms: 1_780_000_000_004,
        };
        let mut out = Vec::new();
        gap.encode(&mut out);
        let event: Value = serde_json::from_slice(&out).unwrap();
        let expected = serde_json::json!({
            "event": "gap",
            "source": {"connector": "cadastre", "name": "shop", "db": "shop", "lsn": 4,
                       "ts_ms": 1_780_000_000_004_i64},
            "ts_ms": 1_780_000_000_004_i64,
            "dataset": "shop.public.orders",
            "position": "02-0000000000000004-00000001",
            "gap": {"reason": "slot_lost", "from": "01-0000000000000050-00000001",
                    "to": "02-0000000000000004-00000001",
                    "datasets": ["shop.public.invoices", "shop.public.orders"]},
        });
        assert_eq!(event, expected);
        let schema: Value = serde_json::from_str(GAP_SCHEMA).unwrap();
        let covers = |schema: &Value, event: &Value| {
            let described = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            let event = event.as_object().unwrap();
            assert!(event.keys().all(|key| described.contains_key(key)), "{event:?}");
            assert!(required.iter().all(|key| event.contains_key(key.as_str().unwrap())));
        };
        covers(&schema, &event);
        covers(&schema["properties"]["source"], &event["source"]);
        covers(&schema["properties"]["gap"], &event["gap"]);
        let reasons = &schema["properties"]["gap"]["properties"]["reason"]["enum"];
        assert_eq!(*reasons, serde_json::json!(GapReason::ALL.map(GapReason::as_str)));
    }
}
