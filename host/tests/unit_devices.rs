//! Which device nodes belong to a PCI function, and where a device hangs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use keelson_host::{DeviceKind, HostRoot, device_numa_node, fixture::Spec, pci_functions};
use tempfile::TempDir;

fn build(spec: &str) -> (TempDir, HostRoot) {
    let directory = tempfile::tempdir().unwrap();
    let root = spec.parse::<Spec>().unwrap().build(directory.path()).unwrap();
    (directory, root)
}

/// A device with a node, in the sysfs directory `path`.
fn add_device(root: &HostRoot, path: &str, number: &str, name: &str) {
    let directory = root.join(path);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
    fs::write(directory.join("uevent"), format!("DEVNAME={name}\n")).unwrap();
    let up = PathBuf::from("../../..");
    fs::create_dir_all(root.join("sys/dev/char")).unwrap();
    symlink(up.join(path), root.join("sys/dev/char").join(number)).unwrap();
}

#[test]
fn nodes_of_nested_devices_are_the_functions() {
    let (_directory, root) = build("pci=0000:00:14.0,8086:a36d,driver=xhci_hcd");
    let function = "sys/devices/pci0000:00/0000:00:14.0";
    add_device(&root, &format!("{function}/usb1"), "189:0", "bus/usb/001/001");
    add_device(&root, &format!("{function}/usb1/1-1/1-1:1.0/ttyUSB0/tty/ttyUSB0"), "188:0", "ttyUSB0");
    let nodes = pci_functions(&root).unwrap().remove(0).device_nodes;
    assert_eq!(nodes, [Path::new("/dev/bus/usb/001/001"), Path::new("/dev/ttyUSB0")]);
}

#[test]
fn nodes_behind_a_bridge_are_not_the_bridges() {
    let (_directory, root) = build("pci=0000:00:01.0,8086:1901,class=060400");
    let behind = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
    add_device(&root, &format!("{behind}/fpga/fpga0"), "240:0", "fpga0");
    fs::write(root.join(behind).join("vendor"), "0x10ee\n").unwrap();
    symlink(Path::new("../../../..").join(behind), root.join("sys/bus/pci/devices/0000:01:00.0")).unwrap();
    let functions = pci_functions(&root).unwrap();
    assert_eq!(functions[0].device_nodes, [""; 0].map(PathBuf::from));
    assert_eq!(functions[1].device_nodes, [Path::new("/dev/fpga0")]);
}

/// The links of a function lead to its bus, its driver and its relatives; a virtual function's leads to the physical one.
#[test]
fn nodes_of_linked_devices_are_not_the_functions() {
    let (_directory, root) =
        build("pci=0000:3b:00.0,10ee:5000,driver=fpga,char=/dev/fpga0:240:0 pci=0000:3b:00.1,10ee:5001,driver=fpga");
    symlink("../0000:3b:00.0", root.join("sys/devices/pci0000:3b/0000:3b:00.1/physfn")).unwrap();
    symlink("../0000:3b:00.0", root.join("sys/devices/pci0000:3b/0000:3b:00.1/supplier")).unwrap();
    assert_eq!(pci_functions(&root).unwrap()[1].device_nodes, [""; 0].map(PathBuf::from));
}

#[test]
fn a_vfio_group_belongs_to_the_functions_that_a_vfio_driver_has() {
    let (_directory, root) = build(
        "pci=0000:3b:00.0,10ee:5000,driver=vfio-pci,group=12 \
         pci=0000:3b:00.1,10ee:5001,driver=fpga,group=12 \
         pci=0000:3b:00.2,10ee:5001,group=12 \
         pci=0000:3b:00.3,15b3:101e,driver=mlx5_vfio_pci,group=13",
    );
    let nodes: Vec<Vec<PathBuf>> =
        pci_functions(&root).unwrap().into_iter().map(|function| function.device_nodes).collect();
    let [twelve, thirteen] = ["/dev/vfio/12", "/dev/vfio/13"].map(PathBuf::from);
    assert_eq!(nodes, [vec![twelve], vec![], vec![], vec![thirteen]]);
}

#[test]
fn a_device_is_on_the_node_of_its_nearest_ancestor_that_has_one() {
    let (_directory, root) = build("nodes=2 cores=2 pci=0000:3b:00.0,10ee:5000,char=/dev/fpga0:240:0");
    let numa_node = || device_numa_node(&root, DeviceKind::Char, 240, 0).unwrap();
    assert_eq!(numa_node(), None, "firmware doesn't tell");
    fs::write(root.join("sys/devices/pci0000:3b/numa_node"), "0\n").unwrap();
    assert_eq!(numa_node(), Some(0), "the host bridge's");
    fs::write(root.join("sys/devices/pci0000:3b/0000:3b:00.0/numa_node"), "1\n").unwrap();
    assert_eq!(numa_node(), Some(1), "the function's own");
}

#[test]
fn a_vfio_group_is_on_the_node_of_its_members() {
    let (_directory, root) = build(
        "nodes=2 cores=2 \
         pci=0000:3b:00.0,10ee:5000,driver=vfio-pci,group=12 \
         pci=0000:3b:00.1,10ee:5001,driver=vfio-pci,group=12,node=1 \
         pci=0000:5e:00.0,10ee:5001,driver=vfio-pci,group=13,node=0",
    );
    assert_eq!(device_numa_node(&root, DeviceKind::Char, 244, 12).unwrap(), Some(1));
    assert_eq!(device_numa_node(&root, DeviceKind::Char, 244, 13).unwrap(), Some(0));
}

#[test]
fn a_virtual_or_unknown_device_is_on_no_node() {
    let (_directory, root) = build("nodes=2 cores=2");
    add_device(&root, "sys/devices/virtual/mem/null", "1:3", "null");
    assert_eq!(device_numa_node(&root, DeviceKind::Char, 1, 3).unwrap(), None);
    assert_eq!(device_numa_node(&root, DeviceKind::Char, 9, 9).unwrap(), None);
    assert_eq!(device_numa_node(&root, DeviceKind::Block, 1, 3).unwrap(), None);
}
