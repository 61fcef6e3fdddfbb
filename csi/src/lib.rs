//! The CSI driver: node-local storage over pools.
//!
//! A pool is a directory; a volume is a raw file behind a loop device (`image`) or a directory (`directory`) in it.
//! The pool is the database: each volume lies in a folder of its own with a record of itself, and becomes visible by
//! one rename. See `docs/formats-storage.md` for what is on disk.

mod config;
mod driver;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod kernel;
pub mod operator;
mod policy;
mod registration;
mod service;
mod store;

pub use config::{PoolKind, PoolSection, PoolSettings, RegistrationSection, StorageSection, StorageSettings};
pub use driver::Driver;
pub use error::Error;
pub use kernel::{Helper, helper_main};
pub use policy::Reserve;
pub use service::{Operation, Operations};
