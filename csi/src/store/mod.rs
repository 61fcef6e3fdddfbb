//! What must survive a crash. The pool is the database: a volume describes itself, and a restart is one scan.

mod attachments;
mod draft;
mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod identity;
mod index;
mod limits;
mod look;
mod pool;
mod pools;
mod record;
mod scan;
mod space;
mod stamp;
mod templates;
#[cfg(test)]
mod tests;
mod together;

pub(crate) use attachments::{Attachment, Attachments, Staged};
pub(crate) use format::RecordError;
pub(crate) use identity::{Fitness, Remembered, fitness, is_some_pool};
pub(crate) use index::Kept;
pub(crate) use look::Sight;
pub(crate) use pool::{Lookup, Pool, StoreError, Turn, Unavailable};
pub(crate) use pools::{Lacking, LookupError, Pace, Pools, Reservation, Room};
pub(crate) use record::{GroupRecord, SnapshotRecord, Source, VolumeRecord, content_path, data, image};
pub(crate) use space::promise_of;
