//! The settings of a loop device that only sysfs has: how far it reads ahead, and whether it takes discards.
//!
//! `/sys/block/loopN/queue` belongs to the number N, not to the file that is bound. A discard limit of 0 stays there
//! when the file is gone, and no write takes it back: the kernel then reports a granularity of 0, and refuses every
//! limit but 0 for being no multiple of that (`queue_max_discard_sectors_store`, Linux 6.8 and later). A number that
//! refused discards is removed with its last use, and made anew by whoever wants a free one. A change of any limit makes
//! the kernel compute its read-ahead anew (`blk_apply_bdi_limits`), so that is written last.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use keelson_host::HostRoot;

use super::{LoopError, failed};

fn attribute(root: &HostRoot, number: u32, name: &str) -> PathBuf {
    root.join(format!("sys/block/loop{number}/queue/{name}"))
}

fn read(path: &Path) -> Result<u64, LoopError> {
    let parse = |text: String| text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    fs::read_to_string(path).and_then(parse).map_err(|source| failed("read", path, source))
}

/// A container whose /sys is read-only gets EROFS, one without the rights EACCES.
fn write(path: &Path, what: &'static str, value: u64) -> Result<(), LoopError> {
    fs::write(path, value.to_string()).map_err(|source| failed(what, path, source))
}

/// Makes the device refuse discards. It also refuses to punch holes then when it is told to write zeroes
/// (`lo_fallocate`), so its file keeps every block that it has.
pub(super) fn refuse_discards(root: &HostRoot, number: u32) -> Result<(), LoopError> {
    let limit = attribute(root, number, "discard_max_bytes");
    if read(&limit)? == 0 {
        return Ok(());
    }
    write(&limit, "switch off discards (is /sys writable?) through", 0)
}

/// Whether discards were switched off. A device whose file can't have holes refuses them anyway: nothing was switched.
pub(super) fn refuses_discards(root: &HostRoot, number: u32) -> Result<bool, LoopError> {
    let limit = |name| read(&attribute(root, number, name));
    Ok(limit("discard_max_bytes")? == 0 && limit("discard_max_hw_bytes")? > 0)
}

/// How far the device reads ahead, in KiB.
pub(super) fn read_ahead(root: &HostRoot, number: u32) -> Result<u64, LoopError> {
    read(&attribute(root, number, "read_ahead_kb"))
}

/// Sets how far the device reads ahead, in KiB.
pub(super) fn set_read_ahead(root: &HostRoot, number: u32, kib: u32) -> Result<(), LoopError> {
    let path = attribute(root, number, "read_ahead_kb");
    if read(&path)? == u64::from(kib) {
        return Ok(());
    }
    write(&path, "set the read-ahead (is /sys writable?) through", kib.into())
}
