//! What a node's operator asks about its networks, answered from the store and the kernel, daemon or no daemon.
//!
//! Nothing here prints: the daemon's command `keelson network` does. Links, addresses and rules are those of the calling
//! thread's network namespace, which has to be the host's.

mod doctor;
mod elements;
mod gather;
mod gc;
mod list;
mod places;
mod report;
mod restore;
mod show;
mod usage;

use std::path::PathBuf;

pub use crate::{
    policy::doctor::{Finding, Severity},
    service::GcEntry,
};
pub use doctor::{Installation, doctor};
pub use gc::{Collected, GcRequest, gc};
pub use list::list;
pub use places::Places;
pub use report::{
    AddressReport, AttachmentReport, AttachmentState, InterfaceReport, PodName, RouteReport, ShownAttachment,
};
pub use restore::{Repair, changes, restore};
pub use show::show;
pub use usage::{NetworkUsage, SetUsage, usage};

use crate::{kernel::KernelError, store::StoreError};

/// Why an operator's question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The records could not be read.
    #[error("failed to read the records: {0}")]
    Records(String),
    /// The kernel could not be asked.
    #[error("failed to look at the node's network: {0}")]
    Kernel(String),
    /// No place that was looked at holds a network's records.
    #[error("no network has records on this node; looked in {}", list_of(.0))]
    NoNetwork(Vec<PathBuf>),
    /// Nothing is called so.
    #[error(
        "no attachment has the Pod, container, address or host interface {selector:?}; looked in {}",
        list_of(places)
    )]
    NotFound {
        /// What was asked for.
        selector: String,
        /// Where.
        places: Vec<PathBuf>,
    },
}

fn list_of(paths: &[PathBuf]) -> String {
    let texts: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    texts.join(", ")
}

impl From<StoreError> for OperatorError {
    fn from(error: StoreError) -> Self {
        Self::Records(error.to_string())
    }
}

impl From<KernelError> for OperatorError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error.to_string())
    }
}
