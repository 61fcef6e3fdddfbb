//! Loop devices, ours and no others.
//!
//! A loop device is ours if the file behind it *is* an image of a pool: the same device and inode number. Devices whose
//! backing file isn't even named like one are never opened.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use keelson_host::HostRoot;
use rustix::fs::{FileType, Mode};

use super::sys;

/// "7 block: Loopback devices" (Documentation/admin-guide/devices.txt).
const MAJOR: u32 = 7;

/// How long a detached device is waited for; the kernel tells nobody when it is free.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked at meanwhile.
const INTERVAL: Duration = Duration::from_millis(10);

/// How often a free number is asked for anew because another process took it first.
const ATTEMPTS: u32 = 64;

/// A loop device that is bound to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoopDevice {
    /// Its device node.
    pub(crate) node: PathBuf,
    /// The N of `/dev/loopN`.
    pub(crate) number: u32,
    /// Whether it refuses writes.
    pub(crate) read_only: bool,
    /// Whether it reaches its file without the page cache in between.
    pub(crate) direct_io: bool,
    /// Whether it lets go of its file at the last close, as a detached one does.
    pub(crate) letting_go: bool,
}

impl LoopDevice {
    /// Its major and minor number.
    pub(crate) fn device(&self) -> (u32, u32) {
        (MAJOR, self.number)
    }

    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> Result<u64, LoopError> {
        let device = open(&self.node, false)?;
        sys::block_device_bytes(device.as_fd()).map_err(|source| failed("read the size of", &self.node, source))
    }
}

/// Why a loop device could not be bound, found or let go.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} {}", path.display())]
pub(crate) struct LoopError {
    what: &'static str,
    path: PathBuf,
    pub(crate) source: io::Error,
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> LoopError {
    LoopError { what, path: path.to_owned(), source }
}

/// The devices bound to `image`, in the order of their numbers; none if there is no such file.
pub(crate) fn find(root: &HostRoot, image: &Path) -> Result<Vec<LoopDevice>, LoopError> {
    let metadata = match fs::metadata(image) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("look at", image, error)),
    };
    let blocks = root.join("sys/block");
    let entries = fs::read_dir(&blocks).map_err(|source| failed("list", &blocks, source))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| failed("list", &blocks, source))?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else { continue };
        // "loop/backing_file" exists while the device is bound, and shows the path as of then.
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if !is_named_like(Path::new(backing.trim_end_matches('\n')), image) {
            continue;
        }
        let node = node(root, number)?;
        let device = open(&node, false)?;
        match sys::loop_status(device.as_fd()) {
            Ok(info) if (info.device, info.inode) == (metadata.dev(), metadata.ino()) => found.push(LoopDevice {
                node,
                number,
                read_only: info.flags & sys::LOOP_READ_ONLY != 0,
                direct_io: info.flags & sys::LOOP_DIRECT_IO != 0,
                letting_go: info.flags & sys::LOOP_AUTOCLEAR != 0,
            }),
            Ok(_) => {}
            // It was let go in between.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
            Err(error) => return Err(failed("ask for the file behind", &node, error)),
        }
    }
    found.sort_by_key(|device| device.number);
    Ok(found)
}

/// Whether `backing` ends with the same directory and file name as `image`: the volume's id and `image`.
fn is_named_like(backing: &Path, image: &Path) -> bool {
    let last_two =
        |path: &Path| -> Option<PathBuf> { Some(PathBuf::from(path.parent()?.file_name()?).join(path.file_name()?)) };
    last_two(image).is_some_and(|end| backing.ends_with(end))
}

/// Binds a loop device to `image`, or finds the one that is bound already.
///
/// `label` shows in `losetup`. The device stays until [`detach`]: with AUTOCLEAR it would lose its file at the last
/// close, even while its node is published.
pub(crate) fn attach(root: &HostRoot, image: &Path, label: &str, read_only: bool) -> Result<LoopDevice, LoopError> {
    if let Some(device) = find(root, image)?.into_iter().find(|device| device.read_only == read_only) {
        keep(&device)?;
        return Ok(device);
    }
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_NOFOLLOW)
        .open(image)
        .map_err(|source| failed("open", image, source))?;
    let control_path = root.join("dev/loop-control");
    let control = open(&control_path, true)?;
    for _ in 0..ATTEMPTS {
        let number = sys::loop_get_free(control.as_fd())
            .map_err(|source| failed("ask for a free loop device from", &control_path, source))?;
        let node = node(root, number)?;
        let device = open(&node, !read_only)?;
        match configure(device.as_fd(), &file, label, read_only) {
            Ok(()) => {
                let info = sys::loop_status(device.as_fd())
                    .map_err(|source| failed("ask for the file behind", &node, source))?;
                let direct_io = info.flags & sys::LOOP_DIRECT_IO != 0;
                let device = LoopDevice { node, number, read_only, direct_io, letting_go: false };
                return Ok(device);
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(failed("bind a file to", &node, error)),
        }
    }
    let busy = io::Error::from_raw_os_error(libc::EBUSY);
    Err(failed("find a free loop device through", &control_path, busy))
}

/// Direct I/O is a wish: where the filesystem of the pool can't, the kernel goes through the page cache.
fn configure(device: BorrowedFd<'_>, file: &File, label: &str, read_only: bool) -> io::Result<()> {
    let mut info = sys::LoopInfo::zeroed();
    info.flags = sys::LOOP_DIRECT_IO | if read_only { sys::LOOP_READ_ONLY } else { 0 };
    // The last byte stays NUL.
    for (target, byte) in info.file_name.iter_mut().take(63).zip(label.bytes()) {
        *target = byte;
    }
    sys::loop_configure(device, file.as_fd(), info)
}

/// Takes back AUTOCLEAR, which a detach sets while somebody still has the device open.
fn keep(device: &LoopDevice) -> Result<(), LoopError> {
    let open = open(&device.node, false)?;
    let mut info =
        sys::loop_status(open.as_fd()).map_err(|source| failed("ask for the file behind", &device.node, source))?;
    if info.flags & sys::LOOP_AUTOCLEAR == 0 {
        return Ok(());
    }
    info.flags &= !sys::LOOP_AUTOCLEAR;
    sys::loop_set_status(open.as_fd(), info).map_err(|source| failed("set the flags of", &device.node, source))
}

/// Lets go of every device that is bound to `image`, and says how many of them others still have open after
/// [`PATIENCE`]: the kernel lets go of those at their last close. A process that starts in a mount namespace of its own
/// has a copy of every mount for a moment, and so everything open.
pub(crate) fn detach(root: &HostRoot, image: &Path) -> Result<usize, LoopError> {
    for found in find(root, image)? {
        let device = open(&found.node, false)?;
        match sys::loop_clear(device.as_fd()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
            Err(error) => return Err(failed("let go of", &found.node, error)),
        }
    }
    let start = Instant::now();
    loop {
        let left = find(root, image)?.len();
        if left == 0 || start.elapsed() >= PATIENCE {
            return Ok(left);
        }
        thread::sleep(INTERVAL);
    }
}

/// The device node of a number; made if the kernel made the device, but `/dev` isn't the kernel's own.
fn node(root: &HostRoot, number: u32) -> Result<PathBuf, LoopError> {
    let node = root.join(format!("dev/loop{number}"));
    match fs::symlink_metadata(&node) {
        Ok(found) if found.file_type().is_block_device() && found.rdev() == libc::makedev(MAJOR, number) => Ok(node),
        Ok(_) => Err(failed("use", &node, io::Error::other("it is not the device node that its name says"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let device = rustix::fs::makedev(MAJOR, number);
            let mode = Mode::from_raw_mode(0o660);
            match rustix::fs::mknodat(rustix::fs::CWD, &node, FileType::BlockDevice, mode, device) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(node),
                Err(error) => Err(failed("make the device node", &node, error.into())),
            }
        }
        Err(error) => Err(failed("look at", &node, error)),
    }
}

fn open(path: &Path, write: bool) -> Result<File, LoopError> {
    OpenOptions::new().read(true).write(write).open(path).map_err(|source| failed("open", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_file_is_compared_by_its_last_two_names() {
        let image = Path::new("/pools/a/volumes/v1-1/image");
        assert!(is_named_like(Path::new("/mnt/elsewhere/volumes/v1-1/image"), image));
        assert!(!is_named_like(Path::new("/pools/a/volumes/v1-2/image"), image));
        assert!(!is_named_like(Path::new("/pools/a/volumes/xv1-1/image"), image));
        assert!(!is_named_like(Path::new("/pools/a/volumes/v1-1/image (deleted)"), image));
        assert!(!is_named_like(Path::new(""), image));
    }
}
