//! What must survive a crash. The pool is the database: a volume describes itself, and a restart is one scan.

mod identity;

pub(crate) use identity::{Remembered, is_some_pool};
