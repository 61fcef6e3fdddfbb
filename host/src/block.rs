//! Block devices.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use serde::Serialize;

use crate::{
    HostRoot, InspectError,
    device::node_of,
    serialize,
    tree::{Tree, decimal, if_present, unless_gone},
};

const BLOCK_DIRECTORY: &str = "/sys/class/block";

/// The kernel counts a device's size in units of this many bytes, whatever its own block size is.
const SECTOR_BYTES: u64 = 512;

/// One block device: a disk, a partition, a loop device, ...
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockDevice {
    /// The kernel's name for it, `vda1`; in it, `!` stands for a slash in the node's path.
    pub name: String,
    /// Its node, `/dev/vda1`.
    pub path: PathBuf,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Its size in bytes; 0 for an empty drive or an unbound loop device.
    pub size_bytes: u64,
    /// Whether the kernel refuses to write to it.
    pub read_only: bool,
    /// Whether it spins; `None` for a partition, which spins if its disk does.
    pub rotational: Option<bool>,
    /// The name of the disk that it is a partition of.
    pub partition_of: Option<String>,
    /// The file behind a bound loop device, with ` (deleted)` appended if that has been unlinked.
    #[serde(serialize_with = "serialize::optional_path")]
    pub backing_file: Option<PathBuf>,
}

/// The block devices, by name.
///
/// # Errors
///
/// [`InspectError::Read`] and [`InspectError::Parse`] as the attributes give them. A device that goes away in between
/// is none.
pub fn block_devices(root: &HostRoot) -> Result<Vec<BlockDevice>, InspectError> {
    let tree = Tree::open(root)?;
    let mut devices = Vec::new();
    for name in tree.names_if_present(BLOCK_DIRECTORY)? {
        let directory = format!("{BLOCK_DIRECTORY}/{name}");
        let device = block_device(&tree, &directory, name);
        devices.extend(unless_gone(&tree, &format!("{directory}/dev"), device)?.flatten());
    }
    Ok(devices)
}

/// Reads one device's directory (Documentation/ABI/stable/sysfs-block), `None` if it has no node. Samples: size
/// `536870912`, ro `0`, queue/rotational `1`, partition `1`, loop/backing_file `/var/lib/images/a.img`; the entry
/// itself -> `../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda/vda1`.
fn block_device(tree: &Tree, directory: &str, name: String) -> Result<Option<BlockDevice>, InspectError> {
    let Some(node) = node_of(tree, directory)? else { return Ok(None) };
    let attribute = |name: &str| format!("{directory}/{name}");
    let size = |text: &str| decimal::<u64>(text)?.checked_mul(SECTOR_BYTES);
    let is_partition = tree.exists(attribute("partition"));
    let disk =
        tree.link(directory)?.and_then(|target| Some(target.parent()?.file_name()?.to_string_lossy().into_owned()));
    Ok(Some(BlockDevice {
        path: node.path,
        major: node.major,
        minor: node.minor,
        size_bytes: tree.value(attribute("size"), "a size in sectors of 512 bytes", size)?.unwrap_or(0),
        read_only: tree.value(attribute("ro"), "0 or 1", flag)?.unwrap_or(false),
        rotational: tree.value(attribute("queue/rotational"), "0 or 1", flag)?,
        partition_of: disk.filter(|_| is_partition),
        backing_file: backing_file(tree, &attribute("loop/backing_file"))?,
        name,
    }))
}

/// A path may hold any byte, so only the newline that sysfs adds is taken off.
fn backing_file(tree: &Tree, path: &str) -> Result<Option<PathBuf>, InspectError> {
    let Some(mut bytes) = if_present(tree.bytes(path))? else { return Ok(None) };
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(Some(PathBuf::from(OsString::from_vec(bytes))))
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}
