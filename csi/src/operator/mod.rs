//! What a node's operator asks about its storage, answered from the pools and the kernel, driver or no driver.
//!
//! Nothing here prints: the daemon's command `keelson storage` does. But for [`gc`], nothing is changed, and no pool is
//! locked: a driver may be at work on all of it meanwhile.

mod df;
mod fsck;
mod gc;
mod list;
mod picture;
mod report;
mod show;
mod survey;

use serde::Serialize;

pub use df::df;
pub use fsck::{FsckReport, FsckRequest, fsck};
pub use gc::{Collected, GcEntry, GcRequest, gc};
pub use list::{damaged, groups, snapshots, volumes};
pub use report::{
    DamagedReport, DeviceReport, GroupReport, ImageReport, PoolReport, PoolState, Provision, Relation, RelativeReport,
    SnapshotReport, SpaceReport, UseKind, UseReport, VolumeReport,
};
pub use show::{Running, Shown, ShownKind, show};

use crate::{
    kernel::KernelError,
    store::{RecordError, StoreError},
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Data is lost or out of reach, or calls will fail.
    Error,
    /// Something is left over, or works only as long as nothing else happens.
    Warning,
    /// Nothing is wrong with it; it is told so that nobody wonders.
    Note,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The check that found it, a name that doesn't change between releases: `image-missing`.
    pub check: &'static str,
    /// What it is about: a pool, a volume, a loop device.
    pub subject: String,
    /// Where that is: a path.
    pub place: String,
    /// What is wrong, and by what that is seen.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    fn error(check: &'static str, of: &(String, String), problem: impl Into<String>, remedy: &str) -> Self {
        Self::new(Severity::Error, check, of, problem.into(), remedy)
    }

    fn warning(check: &'static str, of: &(String, String), problem: impl Into<String>, remedy: &str) -> Self {
        Self::new(Severity::Warning, check, of, problem.into(), remedy)
    }

    fn note(check: &'static str, of: &(String, String), problem: impl Into<String>, remedy: &str) -> Self {
        Self::new(Severity::Note, check, of, problem.into(), remedy)
    }

    fn new(severity: Severity, check: &'static str, of: &(String, String), problem: String, remedy: &str) -> Self {
        let (subject, place) = of.clone();
        Self { severity, check, subject, place, problem, remedy: remedy.to_owned() }
    }
}

/// Why an operator's question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The records could not be read.
    #[error("failed to read the records: {0}")]
    Records(String),
    /// The kernel could not be asked.
    #[error("failed to look at the node's loop devices and mounts: {0}")]
    Kernel(String),
    /// Nothing is called so.
    #[error("no volume, snapshot or group has the id or name {selector:?}{}", unread(pools))]
    NotFound {
        /// What was asked for.
        selector: String,
        /// Pools that could not be read, and may hold it.
        pools: Vec<String>,
    },
}

fn unread(pools: &[String]) -> String {
    if pools.is_empty() { String::new() } else { format!("; could not be read: pool {}", pools.join(", ")) }
}

impl From<RecordError> for OperatorError {
    fn from(error: RecordError) -> Self {
        Self::Records(keelson_host::error_chain(&error))
    }
}

impl From<StoreError> for OperatorError {
    fn from(error: StoreError) -> Self {
        Self::Records(keelson_host::error_chain(&error))
    }
}

impl From<KernelError> for OperatorError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(keelson_host::error_chain(&error))
    }
}
