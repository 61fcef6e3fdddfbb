//! The side with effects: loop devices, mounts, filesystems, paths below kubelet's directories. Every effect is
//! idempotent and can be undone.

pub(crate) mod filesystem;
pub(crate) mod helper;
pub(crate) mod loop_device;
pub(crate) mod mount;
pub(crate) mod path;
mod sys;

pub use helper::{Helper, helper_main};
