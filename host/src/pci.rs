//! PCI functions.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{
    HostRoot, InspectError,
    device::{node_of, numa_node},
    serialize,
    tree::{Tree, decimal, unless_gone},
};

const PCI_DIRECTORY: &str = "/sys/bus/pci/devices";

/// How many directories below a function are searched for device nodes; the deepest seen are seven
/// (`virtio1/block/vda/vda1`, `usb1/1-1/1-1:1.0/ttyUSB0/tty/ttyUSB0`).
const DEEPEST: usize = 16;

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PciFunction {
    /// Domain, bus, device and function: `0000:3b:00.0`. Stable over reboots unless hardware moves.
    pub address: String,
    /// The vendor's id; serialized as four hexadecimal digits, as lspci prints it.
    #[serde(serialize_with = "serialize::pci_id")]
    pub vendor: u16,
    /// The device's id, in the same form.
    #[serde(serialize_with = "serialize::pci_id")]
    pub device: u16,
    /// The card maker's id, in the same form.
    #[serde(serialize_with = "serialize::pci_id")]
    pub subsystem_vendor: u16,
    /// The card's id, in the same form.
    #[serde(serialize_with = "serialize::pci_id")]
    pub subsystem_device: u16,
    /// Base class, subclass and programming interface, a byte each; serialized as six hexadecimal digits: `120000`
    /// is a processing accelerator.
    #[serde(serialize_with = "serialize::pci_class")]
    pub class: u32,
    /// The driver bound to it now.
    pub driver: Option<String>,
    /// The NUMA node it is attached to; `None` where firmware doesn't tell.
    pub numa_node: Option<u32>,
    /// Its IOMMU group, whose functions can only be given away together. Not stable over reboots.
    pub iommu_group: Option<u32>,
    /// The device nodes that lead to it, by path: those of its character and block children in sysfs, and
    /// `/dev/vfio/GROUP` while a VFIO driver is bound.
    pub device_nodes: Vec<PathBuf>,
}

/// The PCI functions, by address; empty on a machine without PCI.
///
/// # Errors
///
/// [`InspectError::Read`] and [`InspectError::Parse`] as the attributes give them. A function that goes away in between
/// is none.
pub fn pci_functions(root: &HostRoot) -> Result<Vec<PciFunction>, InspectError> {
    let tree = Tree::open(root)?;
    let mut functions = Vec::new();
    for address in tree.names_if_present(PCI_DIRECTORY)? {
        let directory = format!("{PCI_DIRECTORY}/{address}");
        if !is_address(&address) {
            return Err(tree.unexpected(PCI_DIRECTORY, &address, "a PCI address such as 0000:3b:00.0"));
        }
        functions.extend(unless_gone(&tree, &format!("{directory}/vendor"), function(&tree, &directory, address))?);
    }
    Ok(functions)
}

/// Reads one function's directory. Documentation/ABI/testing/sysfs-bus-pci and Documentation/PCI/sysfs-pci.rst;
/// samples: vendor `0x10ee`, class `0x120000`, numa_node `-1`, driver -> `../../../bus/pci/drivers/vfio-pci`,
/// iommu_group -> `../../../kernel/iommu_groups/12`.
fn function(tree: &Tree, directory: &str, address: String) -> Result<PciFunction, InspectError> {
    let id = |name: &str| -> Result<u16, InspectError> {
        let parse = |text: &str| u16::try_from(hexadecimal(text)?).ok();
        let path = format!("{directory}/{name}");
        Ok(tree.value(path, "a hexadecimal id such as 0x10ee", parse)?.unwrap_or(0))
    };
    let driver = tree.link_name(format!("{directory}/driver"))?;
    let group_path = format!("{directory}/iommu_group");
    let iommu_group = match tree.link_name(&group_path)? {
        Some(name) => match decimal(&name) {
            Some(group) => Some(group),
            None => return Err(tree.unexpected(group_path, &name, "a link to a numbered IOMMU group")),
        },
        None => None,
    };
    let mut device_nodes = Vec::new();
    children_nodes(tree, directory, DEEPEST, &mut device_nodes)?;
    if let (Some(driver), Some(group)) = (&driver, iommu_group)
        && driver.contains("vfio")
    {
        device_nodes.push(PathBuf::from(format!("/dev/vfio/{group}")));
    }
    device_nodes.sort();
    device_nodes.dedup();
    Ok(PciFunction {
        vendor: id("vendor")?,
        device: id("device")?,
        subsystem_vendor: id("subsystem_vendor")?,
        subsystem_device: id("subsystem_device")?,
        class: tree
            .value(format!("{directory}/class"), "a hexadecimal class such as 0x120000", hexadecimal)?
            .unwrap_or(0),
        driver,
        numa_node: numa_node(tree, Path::new(directory))?,
        iommu_group,
        device_nodes,
        address,
    })
}

/// Adds the nodes of the devices below `directory`.
///
/// Links are not followed, since they lead to relatives, not children; nor are the functions behind a bridge entered,
/// since their nodes are their own.
fn children_nodes(tree: &Tree, directory: &str, depth: usize, nodes: &mut Vec<PathBuf>) -> Result<(), InspectError> {
    if depth == 0 {
        return Ok(());
    }
    for name in tree.subdirectories(directory)?.iter().filter(|name| !is_address(name)) {
        let child = format!("{directory}/{name}");
        nodes.extend(node_of(tree, &child)?.map(|node| node.path));
        children_nodes(tree, &child, depth - 1, nodes)?;
    }
    Ok(())
}

/// Whether `name` is of the form `0000:3b:00.0`; the domain may have more digits.
pub(crate) fn is_address(name: &str) -> bool {
    let hexadecimal =
        |text: &str, least: usize| text.len() >= least && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut parts = name.split(':');
    let (Some(domain), Some(bus), Some(rest), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Some((device, function)) = rest.split_once('.') else { return false };
    hexadecimal(domain, 4) && hexadecimal(bus, 2) && hexadecimal(device, 2) && hexadecimal(function, 1)
}

/// Sample: `0x10ee`.
fn hexadecimal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0x")?;
    if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) { u32::from_str_radix(digits, 16).ok() } else { None }
}
