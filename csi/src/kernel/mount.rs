//! Mounting, and seeing what is mounted.
//!
//! The functions named `perform_...` are the helper process's side; everything else only reads.

use std::{cmp::Reverse, io, os::fd::AsFd, path::Path};

use keelson_host::{HostRoot, InspectError, Mount};
use rustix::{
    fs::FileType,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use super::{helper::BindSource, path, sys};
use crate::policy::{FilesystemType, MountOptions, TargetPath};

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
        self.0.iter().filter(move |mount| shows(mount, device))
    }

    /// Where a directory or file is mounted a second time, found by how its path within its filesystem ends.
    pub(crate) fn of_root_ending_with<'a>(&'a self, end: &'a Path) -> impl Iterator<Item = &'a Mount> {
        self.0.iter().filter(move |mount| mount.root.ends_with(end))
    }
}

/// Whether a filesystem of the block device is what `mount` shows. One of btrfs has a number of its own there instead
/// of the device's; but its source is the device's node, in the kernel's own words.
pub(crate) fn shows(mount: &Mount, device: (u32, u32)) -> bool {
    let is_node = |source: &Path| {
        rustix::fs::stat(source).is_ok_and(|found| {
            FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice
                && (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev)) == device
        })
    };
    mount.device == device || (mount.kind == FilesystemType::Btrfs.as_str() && is_node(Path::new(&mount.source)))
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

/// Mounts the filesystem on `device` at `target`.
///
/// xfs refuses a filesystem whose UUID another mounted one has, unless told `nouuid`; a clone has its source's.
pub(super) fn perform_mount(
    filesystem: FilesystemType,
    device: &Path,
    target: &TargetPath,
    options: &MountOptions,
) -> Result<(), StepError> {
    let target = path::open(target).map_err(io_step("opening the target"))?;
    let context =
        fsopen(filesystem.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).map_err(step("opening a filesystem context"))?;
    let quote = |name: &'static str| {
        let context = context.as_fd();
        move |source: rustix::io::Errno| {
            let detail = without_values(&messages(context), &options.filesystem);
            StepError { step: name, source: source.into(), detail }
        }
    };
    fsconfig_set_string(&context, "source", device).map_err(quote("naming the device"))?;
    if filesystem == FilesystemType::Xfs {
        fsconfig_set_flag(&context, "nouuid").map_err(quote("allowing a UUID that is mounted already"))?;
    }
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

/// What the filesystem said without the values of the options, which may be sensitive (CSI spec, `mount_flags`).
fn without_values(messages: &str, options: &[String]) -> String {
    let mut values: Vec<&str> = options.iter().filter_map(|option| Some(option.split_once('=')?.1)).collect();
    values.retain(|value| !value.is_empty());
    // The longest first: one may be part of another.
    values.sort_by_key(|value| Reverse(value.len()));
    let mut left = messages;
    let mut told = String::new();
    while let Some(next) = left.chars().next() {
        if let Some(value) = values.iter().find(|value| left.starts_with(**value)) {
            told.push_str("***");
            left = &left[value.len()..];
        } else {
            told.push(next);
            left = &left[next.len_utf8()..];
        }
    }
    told
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keelson_testkit::{is_root, missing, skip_unless};

    use super::*;
    use crate::kernel::{
        Discard, HelperError, LoopOptions, Request,
        format::format,
        loop_device,
        reflink::clone_file,
        testing::{Scratch, helper, run},
    };

    fn mount(filesystem: FilesystemType, image: &Path, target: &Path, options: &[&str]) -> Result<(), HelperError> {
        let as_is = LoopOptions {
            read_only: false,
            direct_io: true,
            block_bytes: None,
            read_ahead_kib: None,
            discard: Discard::Allowed,
        };
        let device = loop_device::attach(&HostRoot::system(), image, "test", &as_is).unwrap().node;
        let target = TargetPath::try_from(target.to_str().unwrap().to_owned()).unwrap();
        let flags: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let options = MountOptions::parse(&flags).unwrap();
        helper().run(&Request::Mount { filesystem, device, target, options }, Arc::new(()))
    }

    #[test]
    fn an_xfs_filesystem_and_its_clone_are_mounted_at_once() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.xfs"]).is_empty(), "needs xfsprogs");
        let pool = Scratch::new("xfs", 1 << 10);
        let directory = |name: &str| {
            let path = pool.root().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (first, second) = (directory("first"), directory("second"));
        let image = std::fs::File::create_new(first.join("image")).unwrap();
        image.set_len(300 << 20).unwrap();
        let (uuid, hold) = (uuid::Uuid::from_u128(7), Arc::new(()));
        format(&helper(), FilesystemType::Xfs, &first.join("image"), uuid, hold).unwrap();
        clone_file(&image, &second.join("image")).unwrap();
        let (here, there) = (directory("here"), directory("there"));
        mount(FilesystemType::Xfs, &first.join("image"), &here, &["nouuid"]).unwrap();
        mount(FilesystemType::Xfs, &second.join("image"), &there, &[]).unwrap();
        std::fs::write(here.join("a"), b"1").unwrap();
        assert!(!there.join("a").exists());
        for (mounted, folder) in [(&here, &first), (&there, &second)] {
            run("umount", &[mounted.to_str().unwrap()]);
            loop_device::detach(&HostRoot::system(), &folder.join("image")).unwrap();
        }
    }

    #[test]
    fn what_the_filesystem_says_is_told_without_values() {
        let options = ["key=open sesame", "journal_path=/x", "data=open", "empty=", "discard"].map(str::to_owned);
        let said = "e ext4: Bad value 'open sesame' for 'key', open; bad usage of discard";
        assert_eq!(without_values(said, &options), "e ext4: Bad value '***' for 'key', ***; bad usage of discard");
        assert_eq!(without_values("ä=ö", &["a=ö".to_owned()]), "ä=***");
        assert_eq!(without_values(said, &[]), said);
    }

    #[test]
    fn an_option_that_the_filesystem_refuses_is_told_from_a_bad_disk() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"]).is_empty(), "needs the mkfs programs");
        for filesystem in FilesystemType::ALL {
            let scratch = Scratch::formatted(filesystem.as_str(), 320);
            let error = mount(filesystem, &scratch.image(), &scratch.root(), &["no-such-option=1"]).unwrap_err();
            assert!(matches!(&error, HelperError::Step { step, .. } if step == SET_OPTION), "{error}");
            let error = mount(FilesystemType::ALL[0], &scratch.image(), &scratch.root(), &[]);
            assert_eq!(error.is_ok(), filesystem == FilesystemType::Ext4, "{error:?}");
        }
    }
}
