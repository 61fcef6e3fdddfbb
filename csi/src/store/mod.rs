//! What must survive a crash. The pool is the database: a volume describes itself, and a restart is one scan.

mod attachments;
mod identity;
mod pool;
mod pools;
mod volume;

pub(crate) use attachments::{Attachment, Attachments, Staged};
pub(crate) use identity::{Fitness, RecordError, Remembered, fitness, is_some_pool};
pub(crate) use pool::{Pool, StoreError, Unavailable, create_image, fill_holes};
pub(crate) use pools::{Lacking, LookupError, Pools};
pub(crate) use volume::{VolumeRecord, content_path, data, image};
