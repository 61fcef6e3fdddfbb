//! Loop devices, ours and no others.
//!
//! A loop device is ours if the file behind it *is* an image of a pool: the same device and inode number. Devices whose
//! backing file isn't even named like one are never opened.

mod bound;
mod known;
mod queue;

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
use rustix::fs::{AtFlags, FileType, Mode, StatxFlags};

pub(crate) use bound::{BoundLoop, bound_to, let_go};
pub(crate) use known::{find, find_anew};

use super::sys;

/// "7 block: Loopback devices" (Documentation/admin-guide/devices.txt).
const MAJOR: u32 = 7;

/// How long a detached device is waited for; the kernel tells nobody when it is free.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked at meanwhile.
const INTERVAL: Duration = Duration::from_millis(10);

/// How often a free number is asked for anew because another process took it first.
const ATTEMPTS: u32 = 64;

/// The largest logical block that every kernel with LOOP_CONFIGURE takes: a page.
pub(crate) const LARGEST_BLOCK: u32 = 4096;

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

/// What a loop device is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoopOptions {
    /// Whether it refuses writes.
    pub(crate) read_only: bool,
    /// Whether it is to reach its file without the page cache in between, if the pool's filesystem can.
    pub(crate) direct_io: bool,
    /// The size of its logical blocks; none is as small as direct I/O to its file can be.
    pub(crate) block_bytes: Option<u32>,
    /// How far it reads ahead, in KiB; none is the kernel's own choice.
    pub(crate) read_ahead_kib: Option<u32>,
    pub(crate) discard: Discard,
}

/// What a device does when a block is no longer needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    /// Its file gets a hole there.
    Allowed,
    /// It refuses to know: its file keeps the space.
    Refused,
}

impl LoopDevice {
    fn new(node: PathBuf, number: u32, flags: u32) -> Self {
        let has = |flag: u32| flags & flag != 0;
        Self {
            node,
            number,
            read_only: has(sys::LOOP_READ_ONLY),
            direct_io: has(sys::LOOP_DIRECT_IO),
            letting_go: has(sys::LOOP_AUTOCLEAR),
        }
    }

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

/// Binds a loop device to `image`, or finds the one that is bound already and makes it what `options` say.
///
/// `label` shows in `losetup`. The device stays until [`detach`]: with AUTOCLEAR it would lose its file at the last
/// close, even while its node is published.
pub(crate) fn attach(
    root: &HostRoot,
    image: &Path,
    label: &str,
    options: &LoopOptions,
) -> Result<LoopDevice, LoopError> {
    let before = find(root, image)?.into_iter().find(|device| device.read_only == options.read_only);
    let mut device = match before {
        Some(mut device) => {
            keep(&device)?;
            device.letting_go = false;
            // The image may have grown since, before the driver could say so.
            let size = fs::metadata(image).map_err(|source| failed("look at", image, source))?.size();
            if device.bytes()? != size {
                set_capacity(&device)?;
            }
            device
        }
        None => bind(root, image, label, options)?,
    };
    apply(root, &mut device, options)?;
    Ok(device)
}

/// Makes a device what `options` say while it may be in use; read-only or not it stays. One that refuses discards goes
/// on to refuse them until the next attach.
pub(crate) fn apply(root: &HostRoot, device: &mut LoopDevice, options: &LoopOptions) -> Result<(), LoopError> {
    if device.direct_io != options.direct_io {
        device.direct_io = set_direct_io(device, options.direct_io)?;
    }
    if options.discard == Discard::Refused {
        queue::refuse_discards(root, device.number)?;
    }
    options.read_ahead_kib.map_or(Ok(()), |kib| queue::set_read_ahead(root, device.number, kib))
}

/// Binds a free loop device to `image`.
fn bind(root: &HostRoot, image: &Path, label: &str, options: &LoopOptions) -> Result<LoopDevice, LoopError> {
    let read_only = options.read_only;
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
        // Before it is bound: a device that isn't known of would never be found again.
        known::remember(image, number)?;
        match configure(device.as_fd(), &file, label, options) {
            Ok(()) if options.discard == Discard::Allowed && queue::refuses_discards(root, number)? => {
                // What somebody else left behind; see `queue`.
                sys::loop_clear(device.as_fd()).map_err(|source| failed("let go of", &node, source))?;
                drop(device);
                known::forget(image, number)?;
                remove(root, number)?;
            }
            Ok(()) => {
                let info = sys::loop_status(device.as_fd())
                    .map_err(|source| failed("ask for the file behind", &node, source))?;
                return Ok(LoopDevice::new(node, number, info.flags));
            }
            Err(error) => {
                known::forget(image, number)?;
                if error.raw_os_error() != Some(libc::EBUSY) {
                    return Err(failed("bind a file to", &node, error));
                }
            }
        }
    }
    let busy = io::Error::from_raw_os_error(libc::EBUSY);
    Err(failed("find a free loop device through", &control_path, busy))
}

/// Direct I/O is a wish: where the filesystem of the pool can't, the kernel goes through the page cache.
fn configure(device: BorrowedFd<'_>, file: &File, label: &str, options: &LoopOptions) -> io::Result<()> {
    let mut info = sys::LoopInfo::zeroed();
    info.flags = if options.direct_io { sys::LOOP_DIRECT_IO } else { 0 };
    info.flags |= if options.read_only { sys::LOOP_READ_ONLY } else { 0 };
    // The last byte stays NUL.
    for (target, byte) in info.file_name.iter_mut().take(63).zip(label.bytes()) {
        *target = byte;
    }
    let block_size = match options.block_bytes {
        Some(bytes) => bytes,
        None if options.direct_io => direct_io_alignment(file),
        None => 0,
    };
    sys::loop_configure(device, file.as_fd(), block_size, info)
}

/// What direct I/O of `file` must be a multiple of, as a size of logical blocks: 512 on most disks, which is what
/// partition tables and guests of virtual machines expect, 4096 where the disk has no smaller blocks. 0 if the
/// filesystem doesn't tell, or can't.
fn direct_io_alignment(file: &File) -> u32 {
    let asked = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    match asked {
        Ok(found) if found.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            Some(found.stx_dio_offset_align).filter(|&align| align.is_power_of_two() && align <= LARGEST_BLOCK)
        }
        _ => None,
    }
    .map_or(0, |align| align.max(512))
}

/// Makes the device as large as its image is now.
pub(crate) fn set_capacity(device: &LoopDevice) -> Result<(), LoopError> {
    let open = open(&device.node, false)?;
    sys::loop_set_capacity(open.as_fd()).map_err(|source| failed("set the size of", &device.node, source))
}

/// Switches direct I/O on or off, and says whether it is on then: where the pool's filesystem can't, it stays off.
fn set_direct_io(device: &LoopDevice, wanted: bool) -> Result<bool, LoopError> {
    let open = open(&device.node, false)?;
    match sys::loop_set_direct_io(open.as_fd(), wanted) {
        Ok(()) => Ok(wanted),
        Err(error) if wanted && error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(failed("switch the direct I/O of", &device.node, error)),
    }
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
    let mut refusing = Vec::new();
    for found in find(root, image)? {
        if queue::refuses_discards(root, found.number)? {
            refusing.push(found.number);
        }
        let device = open(&found.node, false)?;
        match sys::loop_clear(device.as_fd()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
            Err(error) => return Err(failed("let go of", &found.node, error)),
        }
    }
    let left = wait_for(|| find(root, image).map(|left| (left.is_empty(), left)))?;
    known::keep_only(image, &left)?;
    for number in refusing {
        if !left.iter().any(|device| device.number == number) {
            remove(root, number)?;
        }
    }
    Ok(left.len())
}

/// Removes a number that refuses discards and that nothing is bound to any more, as long as nobody else uses it.
fn remove(root: &HostRoot, number: u32) -> Result<(), LoopError> {
    let path = root.join("dev/loop-control");
    let control = open(&path, true)?;
    let is_done = wait_for(|| match sys::loop_remove(control.as_fd(), number) {
        Ok(()) => Ok((true, true)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV) => Ok((true, true)),
            // Open for a moment: udev looks at every device that changed. Or bound by somebody else since.
            Some(libc::EBUSY) => Ok((false, false)),
            _ => Err(failed("remove a loop device through", &path, error)),
        },
    })?;
    if !is_done {
        tracing::warn!(number, "a loop device that refuses discards is in use by others, and stays");
    }
    Ok(())
}

/// What `look` gives when it says that it is done, or after [`PATIENCE`].
fn wait_for<T>(look: impl Fn() -> Result<(bool, T), LoopError>) -> Result<T, LoopError> {
    let start = Instant::now();
    loop {
        let (is_done, seen) = look()?;
        if is_done || start.elapsed() >= PATIENCE {
            return Ok(seen);
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
