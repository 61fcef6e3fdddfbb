//! Pure decisions: no I/O, no clock.

mod abilities;
mod blocks;
mod calls;
mod capability;
mod capacity;
#[allow(dead_code, reason = "for snapshots, which are being built")]
mod extent;
mod filesystem;
mod health;
mod ledger;
mod mount_options;
pub(crate) mod names;
mod paging;
mod parameters;
mod paths;
mod projects;
mod publish;
mod reserve;
mod settings;
mod topology;

pub(crate) use abilities::Abilities;
pub(crate) use blocks::{allocated, changed};
pub(crate) use calls::{Bounds, bounds, client_timeout};
pub(crate) use capability::{Access, AccessMode, Capability, Content, ContentKind, Rejected, content_for};
pub(crate) use capacity::{OutOfRange, SizeRange, available, charge, largest_volume};
#[allow(unused_imports, reason = "for snapshots, which are being built")]
pub(crate) use extent::{Extent, Physical};
pub(crate) use filesystem::FilesystemType;
pub(crate) use health::{PoolFault, VolumeFault, is_full};
pub(crate) use ledger::{Figures, Ledger};
pub(crate) use mount_options::MountOptions;
pub(crate) use names::{ForeignId, GroupId, SnapshotId, VolumeId};
pub(crate) use paging::{InvalidToken, Page, page};
pub(crate) use parameters::{GroupParameters, Parameters, Provisioning, check_map, check_snapshot_parameters};
pub(crate) use paths::{TargetPath, overlap};
pub(crate) use projects::{PROJECTS, free_project, leaked_projects};
pub(crate) use publish::{Publication, Verdict, may_publish, second_publish};
pub use reserve::Reserve;
pub(crate) use settings::{Changes, Settings};
pub(crate) use topology::{TOPOLOGY_KEY, admits, includes, segments};
