//! Pure decisions: no I/O, no clock.

mod capability;
mod capacity;
#[allow(dead_code, reason = "for snapshots, which are being built")]
mod extent;
mod filesystem;
mod mount_options;
pub(crate) mod names;
mod paging;
mod parameters;
mod paths;
mod publish;
mod topology;

pub(crate) use capability::{Access, AccessMode, Capability, Content, ContentKind, Rejected, content_for};
pub(crate) use capacity::{OutOfRange, SizeRange, charge, largest_volume};
#[allow(unused_imports, reason = "for snapshots, which are being built")]
pub(crate) use extent::{Extent, Physical};
pub(crate) use filesystem::FilesystemType;
pub(crate) use mount_options::MountOptions;
pub(crate) use names::VolumeId;
pub(crate) use paging::{InvalidToken, page};
pub(crate) use parameters::{Parameters, Provisioning, check_map};
pub(crate) use paths::{TargetPath, overlap};
pub(crate) use publish::{Publication, Verdict, may_publish, second_publish};
pub(crate) use topology::{TOPOLOGY_KEY, admits, includes, segments};
