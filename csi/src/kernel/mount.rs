//! Mounting, and seeing what is mounted.
//!
//! The functions named `perform_...` are the helper process's side; everything else only reads.

use std::{io, os::fd::AsFd, path::Path};

use keelson_host::{HostRoot, InspectError, Mount};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::{helper::BindSource, path, sys};
use crate::policy::{MountOptions, TargetPath};

/// The mounts of this process's own namespace: those that it makes are among them.
#[derive(Debug)]
pub(crate) struct MountTable(Vec<Mount>);

impl MountTable {
    pub(crate) fn read() -> Result<Self, InspectError> {
        keelson_host::mounts(&HostRoot::system()).map(Self)
    }

    /// What is mounted at `path`, the topmost.
    pub(crate) fn at(&self, path: &TargetPath) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.point == path.as_path())
    }

    /// Where filesystems of the block device are mounted.
    pub(crate) fn of_device(&self, device: (u32, u32)) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.device == device)
    }

    /// Where a directory or file is mounted a second time, found by how its path within its filesystem ends.
    pub(crate) fn of_root_ending_with<'a>(&'a self, end: &'a Path) -> impl Iterator<Item = &'a Mount> {
        self.0.iter().filter(move |mount| mount.root.ends_with(end))
    }
}

/// A system call that failed in the helper.
pub(super) struct StepError {
    pub(super) step: &'static str,
    pub(super) source: io::Error,
    /// What the filesystem itself said.
    pub(super) detail: String,
}

pub(super) fn step(step: &'static str) -> impl Fn(rustix::io::Errno) -> StepError {
    move |source| StepError { step, source: source.into(), detail: String::new() }
}

pub(super) fn io_step(step: &'static str) -> impl Fn(io::Error) -> StepError {
    move |source| StepError { step, source, detail: String::new() }
}

/// The step's name for an option that the filesystem refuses; the caller's mistake, not the disk's.
pub(crate) const SET_OPTION: &str = "setting an option of mount_flags";

/// The step's name for a mount with options. Some of them the filesystem refuses only here: those that don't go
/// together, that the volume lacks something for, or that name a device or a block that isn't there.
pub(crate) const MOUNT_WITH_OPTIONS: &str = "mounting the filesystem with the options of mount_flags";

/// Mounts the ext4 filesystem on `device` at `target`.
pub(super) fn perform_mount(device: &Path, target: &TargetPath, options: &MountOptions) -> Result<(), StepError> {
    let target = path::open(target).map_err(io_step("opening the target"))?;
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step("opening a filesystem context"))?;
    let quote = |name: &'static str| {
        let context = context.as_fd();
        move |source: rustix::io::Errno| StepError { step: name, source: source.into(), detail: messages(context) }
    };
    fsconfig_set_string(&context, "source", device).map_err(quote("naming the device"))?;
    for option in &options.filesystem {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option.as_str()),
        }
        .map_err(quote(SET_OPTION))?;
    }
    let name = if options.filesystem.is_empty() { "mounting the filesystem" } else { MOUNT_WITH_OPTIONS };
    fsconfig_create(&context).map_err(quote(name))?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let attributes = MountAttrFlags::from_bits_retain(options.attributes);
    let mount = fsmount(&context, flags, attributes).map_err(step("creating the mount"))?;
    attach(mount, target)
}

/// What the filesystem wrote into its context's log; each message is one read, such as `e ext4: Unknown parameter`.
fn messages(context: impl AsFd) -> String {
    let mut found = Vec::new();
    let mut buffer = [0_u8; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context.as_fd(), &mut buffer) {
        found.push(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned());
    }
    found.join("; ")
}

/// Mounts `source` a second time, at `target`. The attributes are set before anybody can see the mount.
pub(super) fn perform_bind(source: &BindSource, target: &TargetPath, options: &MountOptions) -> Result<(), StepError> {
    let target = path::open(target).map_err(io_step("opening the target"))?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = match source {
        BindSource::Own(path) => open_tree(rustix::fs::CWD, path, clone | OpenTreeFlags::AT_SYMLINK_NOFOLLOW),
        BindSource::Requested(path) => {
            let source = path::open(path).map_err(io_step("opening the source"))?;
            open_tree(source, "", clone | OpenTreeFlags::AT_EMPTY_PATH)
        }
    }
    .map_err(step("cloning the source's mount"))?;
    let attributes = u64::from(options.attributes);
    sys::mount_setattr(mount.as_fd(), attributes).map_err(io_step("setting the mount's attributes"))?;
    attach(mount, target)
}

fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), StepError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags).map_err(step("attaching the mount to the target"))
}

/// Unmounts what is topmost at `target`; nothing mounted there is fine.
pub(super) fn perform_unmount(target: &TargetPath) -> Result<(), StepError> {
    let parent = path::open_parent(target).map_err(io_step("opening the directory above the target"))?;
    // umount has no form with a directory handle. This process has no other thread that uses the working directory.
    rustix::process::fchdir(parent).map_err(step("entering the directory above the target"))?;
    match rustix::mount::unmount(target.name(), UnmountFlags::NOFOLLOW) {
        // umount(2): EINVAL, target is not a mount point.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(step("unmounting")(error)),
    }
}
