//! Pure decisions: no I/O, no clock.

pub(crate) mod mount_options;
pub(crate) mod names;
mod paths;

pub(crate) use mount_options::MountOptions;
pub(crate) use names::VolumeId;
pub(crate) use paths::TargetPath;
