//! The side with effects: loop devices, mounts, filesystems, paths below kubelet's directories. Every effect is
//! idempotent and can be undone.

pub(crate) mod content;
pub(crate) mod extents;
pub(crate) mod filesystem;
pub(crate) mod format;
pub(crate) mod freeze;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod grow;
mod helper;
pub(crate) mod image;
pub(crate) mod loop_device;
mod mount;
pub(crate) mod path;
mod presence;
pub(crate) mod quota;
pub(crate) mod reflink;
mod stock;
pub(crate) mod subvolume;
pub(crate) mod superblock;
mod sys;
#[cfg(test)]
mod testing;
pub(crate) mod tree;

use std::{
    io,
    path::{Path, PathBuf},
};

use keelson_host::InspectError;

pub(crate) use grow::may_grow;
pub(crate) use helper::{BindSource, HelperError, Hold, Request, program_exists};
pub use helper::{Helper, helper_main};
pub(crate) use loop_device::{Discard, LoopError, LoopOptions};
pub(crate) use mount::shows;
pub(crate) use mount::{MOUNT_WITH_OPTIONS, SET_OPTION};
pub(crate) use presence::Presence;

/// Why the kernel did not do, or tell, what was asked of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error(transparent)]
    Loop(#[from] LoopError),
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error("failed to read the mounts")]
    Mounts(#[from] InspectError),
    #[error("failed to use {}", path.display())]
    Path { path: PathBuf, source: io::Error },
}

impl KernelError {
    /// A failed use of `path`.
    pub(crate) fn path(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Path { path: path.to_owned(), source }
    }
}
