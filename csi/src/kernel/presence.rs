//! Where in the kernel a volume is right now.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use keelson_host::HostRoot;
use rustix::fs::FileType;

use super::{
    KernelError,
    loop_device::{self, LoopDevice, LoopError},
    mount::{MountTable, shows},
    path,
};
use crate::policy::{ContentKind, TargetPath};

/// A volume's loop devices and mounts at one moment.
#[derive(Debug)]
pub(crate) struct Presence {
    table: MountTable,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Block(Vec<LoopDevice>),
    Filesystem(Vec<LoopDevice>),
    /// Device and inode number of the directory, if it is there, and its path from the pool's folders down.
    Directory(Option<(u64, u64)>, PathBuf),
}

impl Presence {
    /// Looks for the volume whose image or directory is `path`.
    pub(crate) fn read(root: &HostRoot, path: &Path, content: ContentKind) -> Result<Self, KernelError> {
        Self::read_by(root, path, content, loop_device::find)
    }

    /// The same by a look at all loop devices there are: for the time when one that is missed costs data.
    pub(crate) fn read_anew(root: &HostRoot, path: &Path, content: ContentKind) -> Result<Self, KernelError> {
        Self::read_by(root, path, content, loop_device::find_anew)
    }

    fn read_by(
        root: &HostRoot,
        path: &Path,
        content: ContentKind,
        find: fn(&HostRoot, &Path) -> Result<Vec<LoopDevice>, LoopError>,
    ) -> Result<Self, KernelError> {
        let content = match content {
            ContentKind::Block => Content::Block(find(root, path)?),
            ContentKind::Filesystem(_) => Content::Filesystem(find(root, path)?),
            ContentKind::Directory | ContentKind::Subvolume => {
                let identity = match fs::metadata(path) {
                    Ok(found) => Some((found.dev(), found.ino())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(KernelError::path(path)(error)),
                };
                let depth = path.iter().count().saturating_sub(3);
                Content::Directory(identity, path.iter().skip(depth).collect())
            }
        };
        Ok(Self { table: MountTable::read()?, content })
    }

    /// Whether the volume is what is topmost at `path`.
    pub(crate) fn is_at(&self, path: &TargetPath) -> Result<bool, KernelError> {
        let Some(mount) = self.table.at(path) else { return Ok(false) };
        if let Content::Filesystem(devices) = &self.content {
            return Ok(devices.iter().any(|device| shows(mount, device.device())));
        }
        let Some(found) = path::look(path).map_err(KernelError::path(path.as_path()))? else { return Ok(false) };
        Ok(match &self.content {
            Content::Block(devices) => {
                let number = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
                FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice
                    && devices.iter().any(|device| device.device() == number)
            }
            Content::Filesystem(_) => false,
            Content::Directory(identity, _) => Some((found.st_dev, found.st_ino)) == *identity,
        })
    }

    /// Whether anything at all is mounted at `path`.
    pub(crate) fn is_covered(&self, path: &TargetPath) -> bool {
        self.table.at(path).is_some()
    }

    /// The volume's loop devices; a directory has none.
    pub(crate) fn devices(&self) -> &[LoopDevice] {
        match &self.content {
            Content::Block(devices) | Content::Filesystem(devices) => devices,
            Content::Directory(..) => &[],
        }
    }

    /// Whether all that is left are loop devices that were detached, and that others still have open.
    pub(crate) fn is_letting_go(&self) -> bool {
        let free = |device: &LoopDevice| device.letting_go && self.table.of_device(device.device()).next().is_none();
        !self.devices().is_empty() && self.devices().iter().all(free)
    }

    /// What of the kernel would lose its data if the volume were deleted now: a mount, or else a loop device.
    pub(crate) fn use_of(&self) -> Option<PathBuf> {
        let mount = match &self.content {
            Content::Block(devices) | Content::Filesystem(devices) => {
                devices.iter().find_map(|device| self.table.of_device(device.device()).next())
            }
            Content::Directory(_, end) => self.table.of_root_ending_with(end).next(),
        };
        match mount {
            Some(mount) => Some(mount.point.clone()),
            None => self.devices().first().map(|device| device.node.clone()),
        }
    }
}
