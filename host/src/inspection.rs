//! Everything that is known of a host, at one moment.

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::{
    BlockDevice, CgroupLayout, DeviceNode, HostRoot, InspectError, Link, Mount, PciFunction, Topology, block_devices,
    device_nodes, error_chain, links, mounts, pci_functions, report, serialize, tree::if_present,
};

/// What `keelson inspect` shows: serialized for programs, displayed as a tree for people.
///
/// A part is `None` if it could not be read; [`Inspection::unread`] then says why. The parts are read one after the
/// other, so a device that comes or goes meanwhile may be in one and not in another.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// The directory below which all was read.
    #[serde(serialize_with = "serialize::path")]
    pub root: PathBuf,
    /// CPUs and NUMA nodes.
    pub topology: Option<Topology>,
    /// PCI functions, by address.
    pub pci_functions: Option<Vec<PciFunction>>,
    /// The kernel's device nodes, by path.
    pub device_nodes: Option<Vec<DeviceNode>>,
    /// Block devices, by name.
    pub block_devices: Option<Vec<BlockDevice>>,
    /// Network links of the namespace that `/sys` belongs to, by name.
    pub links: Option<Vec<Link>>,
    /// Mounts, in the kernel's order; also `None` if there is no `/proc` below the root.
    pub mounts: Option<Vec<Mount>>,
    /// The cgroup layout; also `None` if no hierarchy is mounted, or there is no `/proc` below the root.
    pub cgroups: Option<CgroupLayout>,
    /// The parts that could not be read, and why; empty if all is well.
    pub unread: Vec<Unread>,
}

/// A part of an [`Inspection`] that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unread {
    /// The part's name in the serialized inspection: `pciFunctions`.
    pub part: &'static str,
    /// Why, with what caused it.
    pub error: String,
}

impl Inspection {
    /// Reads all there is below `root`. What can't be read doesn't keep the rest from being read.
    #[must_use]
    pub fn read(root: &HostRoot) -> Self {
        let mut unread = Vec::new();
        Self {
            root: root.path().to_owned(),
            topology: part("topology", Topology::read(root), &mut unread),
            pci_functions: part("pciFunctions", pci_functions(root), &mut unread),
            device_nodes: part("deviceNodes", device_nodes(root), &mut unread),
            block_devices: part("blockDevices", block_devices(root), &mut unread),
            links: part("links", links(root), &mut unread),
            mounts: part("mounts", if_present(mounts(root)), &mut unread).flatten(),
            cgroups: part("cgroups", if_present(CgroupLayout::read(root)), &mut unread).flatten().flatten(),
            unread,
        }
    }
}

fn part<T>(part: &'static str, read: Result<T, InspectError>, unread: &mut Vec<Unread>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(error) => {
            unread.push(Unread { part, error: error_chain(&error) });
            None
        }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        report::tree(self).fmt(formatter)
    }
}
