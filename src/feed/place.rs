//! Places that are named otherwise than by a position, looked up in the log.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{After, Error, Until};
use crate::log::{Log, Start};
use crate::vocab::{Position, SourceId};

/// How far the clock of a source may be ahead of ours before its times count as the future.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// Where a reader starts.
pub(super) async fn start(log: &Log, source: SourceId, after: &After) -> Result<Start, Error> {
    Ok(match after {
        After::Now => Start::Now,
        After::Earliest => Start::Earliest,
        After::Position(position) => Start::After(*position),
        After::Time(at) => Start::After(moment(log, source, *at, "after").await?),
        After::Snapshot | After::Resume(_) => {
            let expected = "after: a snapshot is no place in the log; expected \"now\", \
                 \"earliest\", a position or a time";
            return Err(Error::Invalid(expected.to_owned()));
        }
    })
}

/// The last position before a reader's end.
pub(super) async fn end(log: &Log, source: SourceId, until: Until) -> Result<Position, Error> {
    match until {
        Until::Now => Ok(log.newest(source).await?),
        Until::Position(position) => Ok(position),
        Until::Time(at) => moment(log, source, at, "until").await,
    }
}

async fn moment(
    log: &Log,
    source: SourceId,
    at: DateTime<Utc>,
    parameter: &str,
) -> Result<Position, Error> {
    if (at - Utc::now()).to_std().is_ok_and(|ahead| ahead > CLOCKS_APART) {
        return Err(Error::Invalid(format!("{parameter}: {at:?} is in the future")));
    }
    Ok(log.position_at(source, at).await?)
}
