//! The CNI plugin: wires Pods to a bridge in one process, over netlink, with no daemon and no program executed.
//!
//! The executable `keelson-cni` is [`run`] and nothing else. The daemon uses the rest: the `network` section of the
//! node's config, and [`install`], which puts the executable and a network config where a container runtime finds them.

mod calls;
mod codes;
mod config;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod install;
mod kernel;
pub mod migration;
pub mod operator;
mod policy;
mod service;
mod store;

pub use calls::{Call, Phase, last_calls};
pub use codes::{ERROR_CODES, ErrorCode, explain};
pub use config::{NetworkMode, NetworkSection, NetworkSettings};
pub use install::{InstallError, Installed, UninstallError, Uninstalled, install, uninstall};
pub use service::{GcEntry, GcError, GcOptions, GcReport, collect_garbage, run};
