//! Before the stream: publication and slot exist, and the epoch tells whether they are the ones
//! that the log continues from.

use super::Error;
use crate::log::Writer;
use crate::pg::{Connection, SlotFound, ensure_publication, ensure_slot};
use crate::registry::{Registry, Source};
use crate::vocab::{Epoch, Position};

/// Makes sure of the publication, then of the slot (in this order: a slot decodes with the catalog
/// of its time, and fails for ever on a publication that did not exist then), and returns the epoch
/// of the positions to come.
///
/// A slot that had to be made although the log holds changes of its predecessor is the end of
/// continuity: what was committed in between is not in the stream. The epoch grows, so that
/// positions still increase and the break is visible in them.
pub(super) async fn epoch(
    catalog: &Connection,
    source: &Source,
    writer: &Writer,
    registry: &Registry,
) -> Result<Epoch, Error> {
    ensure_publication(catalog, &source.name.publication()).await?;
    let found = ensure_slot(catalog, &source.name.slot()).await?;
    let last = writer.last();
    let current = registry
        .snapshot()
        .sources
        .get(&source.name)
        .map_or(source.epoch, |source| source.epoch)
        .max(last.epoch());
    match found {
        SlotFound::Existing => Ok(current),
        SlotFound::Created if last == Position::MIN => Ok(current),
        SlotFound::Created => {
            let next = current.get().checked_add(1).ok_or(Error::EpochsExhausted { last })?;
            let next = Epoch::new(next);
            registry.epoch_set(source.id, next).await?;
            tracing::error!(
                source = %source.name,
                position = %last,
                epoch = next.get(),
                "the slot was gone: changes committed before its new beginning are not in the feed"
            );
            Ok(next)
        }
    }
}
