//! Character and block devices: their nodes, their numbers, and the NUMA node they hang from.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{FileType, major, minor};
use serde::Serialize;

use crate::{
    HostRoot, InspectError,
    tree::{Tree, decimal, unless_gone},
};

/// What kind of device a node opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Char => "char",
            Self::Block => "block",
        })
    }
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceNode {
    /// Where it is, as seen below the root: `/dev/fpga0`.
    pub path: PathBuf,
    /// Character or block.
    pub kind: DeviceKind,
    /// The major number, which stands for the driver.
    pub major: u32,
    /// The minor number, which stands for the device within the driver.
    pub minor: u32,
}

/// What the node at `path` (below `root`, such as `/dev/ttyS0`) opens.
///
/// Symbolic links such as `/dev/disk/by-id/...` are followed within the root; the answer's path is `path`.
///
/// # Errors
///
/// [`InspectError::Read`] if there is nothing or it can't be reached, [`InspectError::Parse`] if it is no device node.
pub fn device_node(root: &HostRoot, path: &Path) -> Result<DeviceNode, InspectError> {
    let tree = Tree::open(root)?;
    let stat = tree.stat(path)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => DeviceKind::Char,
        FileType::BlockDevice => DeviceKind::Block,
        other => {
            return Err(tree.unexpected(path, &format!("{other:?}"), "a character or block device node"));
        }
    };
    Ok(DeviceNode { path: path.to_owned(), kind, major: major(stat.st_rdev), minor: minor(stat.st_rdev) })
}

/// The device nodes that the kernel's own device filesystem has, from `/sys/dev/char` and `/sys/dev/block`, by path.
///
/// Nothing is read below `/dev`, so this also works where that is another container's. Nodes that somebody made with
/// mknod(2), and links, are not in it: see [`device_node`].
///
/// # Errors
///
/// [`InspectError::Read`] and [`InspectError::Parse`] as the attributes give them. A device that goes away in between
/// is none.
pub fn device_nodes(root: &HostRoot) -> Result<Vec<DeviceNode>, InspectError> {
    let tree = Tree::open(root)?;
    let mut nodes = Vec::new();
    for kind in [DeviceKind::Char, DeviceKind::Block] {
        let directory = format!("/sys/dev/{kind}");
        for name in tree.names_if_present(&directory)? {
            let entry = format!("{directory}/{name}");
            nodes.extend(unless_gone(&tree, &format!("{entry}/dev"), node_of(&tree, &entry))?.flatten());
        }
    }
    nodes.sort();
    Ok(nodes)
}

/// The NUMA node nearest to a device: that of the first ancestor in sysfs which has one.
///
/// `None` if the kernel knows of none: a virtual device, firmware that doesn't tell, a kernel without NUMA, or no such
/// device.
///
/// # Errors
///
/// [`InspectError::Read`] and [`InspectError::Parse`] as the attributes give them.
pub fn device_numa_node(
    root: &HostRoot,
    kind: DeviceKind,
    major: u32,
    minor: u32,
) -> Result<Option<u32>, InspectError> {
    let tree = Tree::open(root)?;
    let directory = format!("/sys/dev/{kind}");
    // Sample: /sys/dev/block/254:0 -> ../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda
    let Some(target) = tree.link(format!("{directory}/{major}:{minor}"))? else { return Ok(None) };
    let device = lexical(Path::new(&directory), &target);
    if let Some(node) = ancestors_numa_node(&tree, &device)? {
        return Ok(Some(node));
    }
    match device.strip_prefix("/sys/devices/virtual/vfio").ok().and_then(Path::to_str).and_then(decimal) {
        Some(group) => iommu_group_numa_node(&tree, group),
        None => Ok(None),
    }
}

/// `/dev/vfio/GROUP` is a virtual device; what it gives access to are the group's members
/// (Documentation/ABI/testing/sysfs-kernel-iommu_groups), which hang from one host bridge.
fn iommu_group_numa_node(tree: &Tree, group: u32) -> Result<Option<u32>, InspectError> {
    let directory = format!("/sys/kernel/iommu_groups/{group}/devices");
    for name in tree.names_if_present(&directory)? {
        if let Some(target) = tree.link(format!("{directory}/{name}"))?
            && let Some(node) = ancestors_numa_node(tree, &lexical(Path::new(&directory), &target))?
        {
            return Ok(Some(node));
        }
    }
    Ok(None)
}

/// The first `numa_node` that is known, from `device` (below `/sys/devices`) upwards.
fn ancestors_numa_node(tree: &Tree, device: &Path) -> Result<Option<u32>, InspectError> {
    for ancestor in device.ancestors().take_while(|path| path.starts_with("/sys/devices")) {
        if let Some(node) = numa_node(tree, ancestor)? {
            return Ok(Some(node));
        }
    }
    Ok(None)
}

/// Sample: `0`; `-1` where firmware doesn't tell (Documentation/ABI/testing/sysfs-bus-pci, "numa_node").
pub(crate) fn numa_node(tree: &Tree, device: &Path) -> Result<Option<u32>, InspectError> {
    let parse = |text: &str| if text == "-1" { Some(None) } else { decimal(text).map(Some) };
    Ok(tree.value(device.join("numa_node"), "a NUMA node's number or -1", parse)?.flatten())
}

/// The node of the device whose sysfs directory this is, `None` if it has none.
///
/// `dev` holds `254:0` (Documentation/ABI/testing/sysfs-dev), `uevent` among others the line `DEVNAME=vda`, the path
/// below `/dev`, which may contain slashes (`vfio/devices/vfio0`); the subsystem tells block from character.
pub(crate) fn node_of(tree: &Tree, device: &str) -> Result<Option<DeviceNode>, InspectError> {
    let Some((major, minor)) = device_number(tree, &format!("{device}/dev"))? else { return Ok(None) };
    let Some(name) = uevent_value(tree, device, "DEVNAME")? else { return Ok(None) };
    // A name that would leave /dev is none that the kernel gave.
    let path = lexical(Path::new("/dev"), Path::new(&name));
    if !path.starts_with("/dev") || path == Path::new("/dev") {
        return Err(tree.unexpected(format!("{device}/uevent"), &name, "a path below /dev"));
    }
    let kind = match tree.link_name(format!("{device}/subsystem"))?.as_deref() {
        Some("block") => DeviceKind::Block,
        _ => DeviceKind::Char,
    };
    Ok(Some(DeviceNode { path, kind, major, minor }))
}

/// Sample: `254:0`.
pub(crate) fn device_number(tree: &Tree, path: &str) -> Result<Option<(u32, u32)>, InspectError> {
    tree.value(path, "a device number such as 254:0", |text| {
        let (major, minor) = text.split_once(':')?;
        Some((decimal(major)?, decimal(minor)?))
    })
}

/// The value of one line of `uevent`, which holds lines such as `DEVNAME=vda`.
pub(crate) fn uevent_value(tree: &Tree, device: &str, key: &str) -> Result<Option<String>, InspectError> {
    let text = tree.text_if_present(format!("{device}/uevent"))?.unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    Ok(value.map(str::to_owned))
}

/// `target` as seen from `directory`, with `.` and `..` taken out by name, never above `/`.
pub(crate) fn lexical(directory: &Path, target: &Path) -> PathBuf {
    let mut path = PathBuf::from("/");
    for component in directory.join(target).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                path.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    path
}
