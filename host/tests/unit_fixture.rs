//! What is generated from a spec reads back as the spec says, whatever the spec.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use keelson_host::{
    BlockDevice, CgroupLayout, CpuSet, DeviceKind, DeviceNode, Inspection, Link, Mount, OperationalState, Topology,
    block_devices, device_nodes, device_numa_node,
    fixture::{CgroupSpec, PciSpec, SHAPES, Spec},
    links, mounts, pci_functions,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use tempfile::TempDir;

#[test]
fn every_shape_reads_back() {
    for (name, _) in SHAPES {
        check(&name.parse().unwrap());
    }
}

proptest! {
    #[test]
    fn any_spec_reads_back(spec in spec()) {
        check(&spec);
    }
}

/// A directory in memory where the machine has one: a spec makes up to thousands of files.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

#[track_caller]
fn check(spec: &Spec) {
    let directory = scratch();
    let root = spec.build(directory.path()).unwrap();
    assert_eq!(Topology::read(&root).unwrap(), spec.topology());
    assert_eq!(pci_functions(&root).unwrap(), spec.pci_functions());
    assert_eq!(device_nodes(&root).unwrap(), spec.device_nodes());
    assert_eq!(block_devices(&root).unwrap(), spec.block_devices());
    assert_eq!(links(&root).unwrap(), spec.links);
    assert_eq!(mounts(&root).unwrap(), spec.mounts());
    assert_eq!(CgroupLayout::read(&root).unwrap(), spec.cgroup_layout());
    for function in &spec.pci {
        for node in &function.nodes {
            let numa_node = device_numa_node(&root, node.kind, node.major, node.minor).unwrap();
            assert_eq!(numa_node, function.numa_node, "{node:?}");
        }
    }
    let inspection = Inspection::read(&root);
    assert_eq!(inspection.unread, []);
    serde_json::to_string(&inspection).unwrap();
    assert!(inspection.to_string().starts_with("host at "));
}

fn spec() -> impl Strategy<Value = Spec> {
    let counts = (1..=3_u32, 1..=6_u32, 1..=3_u32, 0..=3_u32, 0..=3_u32, 0..=2_u32, 0..=3_u32);
    let ids = || prop_oneof![Just(CpuSet::new()), vec(0..60_u32, 0..20).prop_map(CpuSet::from_iter)];
    // A hole that reaches beyond 1024.
    let missing =
        prop_oneof![ids(), (0..40_u32, 0..1100_u32).prop_map(|(start, length)| (start..start + length).collect())];
    let memory = (kibibytes(), vec(kibibytes(), 0..5));
    let devices = (vec(pci(), 0..4), vec(disk(), 0..3), vec(link(), 0..3), vec(mount(), 0..4), cgroups());
    (counts, any::<bool>(), missing, ids(), ids(), ids(), memory, devices).prop_map(
        |(counts, adjacent_threads, missing_cpus, offline_cpus, missing_nodes, memoryless_nodes, memory, devices)| {
            let (packages, cores, threads, nodes, l3, dies, l2) = counts;
            let (mut pci, mut disks, mut links, other_mounts, cgroups) = devices;
            make_distinct(&mut pci, &mut disks, &mut links);
            Spec {
                packages,
                cores_per_package: cores,
                threads_per_core: threads,
                nodes_per_package: nodes,
                l3_per_package: l3,
                dies_per_package: dies,
                cores_per_l2: l2,
                adjacent_threads,
                missing_cpus,
                offline_cpus,
                missing_nodes,
                node_memory_bytes: memory.0,
                memoryless_nodes,
                memory_nodes: memory.1,
                pci,
                disks,
                links,
                other_mounts,
                cgroups,
            }
        },
    )
}

fn kibibytes() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), (0..1_u64 << 40).prop_map(|kibibytes| kibibytes * 1024)]
}

fn pci() -> impl Strategy<Value = PciSpec> {
    let driver = option::of(select(vec!["vfio-pci", "nvme", "fpga"]).prop_map(str::to_owned));
    let kinds = vec(select(vec![DeviceKind::Char, DeviceKind::Block]), 0..3);
    let locality = (option::of(0..40_u32), option::of(0..3_u32));
    (any::<(u16, u16)>(), 0..1_u32 << 24, driver, locality, kinds).prop_map(
        |((vendor, device), class, driver, (numa_node, iommu_group), kinds)| {
            let node = |kind| DeviceNode { path: PathBuf::new(), kind, major: 0, minor: 0 };
            let nodes = kinds.into_iter().map(node).collect();
            PciSpec { address: String::new(), vendor, device, class, driver, numa_node, iommu_group, nodes }
        },
    )
}

fn disk() -> impl Strategy<Value = BlockDevice> {
    let backing_file = option::of(vec(1..=255_u8, 1..20).prop_map(|bytes| PathBuf::from(OsString::from_vec(bytes))));
    (0..1_u64 << 50, any::<bool>(), option::of(any::<bool>()), any::<bool>(), backing_file).prop_map(
        |(sectors, read_only, rotational, is_partition, backing_file)| BlockDevice {
            name: String::new(),
            path: PathBuf::new(),
            major: 7,
            minor: 0,
            size_bytes: sectors * 512,
            read_only,
            rotational,
            partition_of: is_partition.then(|| "vdz".to_owned()),
            backing_file,
        },
    )
}

fn link() -> impl Strategy<Value = Link> {
    use OperationalState::{Dormant, Down, LowerLayerDown, NotPresent, Testing, Unknown, Up};
    let state = select(vec![Unknown, NotPresent, Down, LowerLayerDown, Testing, Dormant, Up]);
    let mac = option::of("[0-9a-f]{2}(:[0-9a-f]{2}){5}");
    let names = (option::of("br[0-9]"), option::of(select(vec!["bridge", "vlan"])), option::of("virtio_net|mlx5_core"));
    (any::<u32>(), any::<u32>(), mac, state, names).prop_map(|(index, mtu, mac, state, (master, kind, driver))| {
        let kind = kind.map(str::to_owned);
        Link { name: String::new(), index, mtu, mac, state, master, kind, driver }
    })
}

fn mount() -> impl Strategy<Value = Mount> {
    let path =
        || vec(1..=255_u8, 0..12).prop_map(|bytes| PathBuf::from(OsString::from_vec([&b"/"[..], &bytes].concat())));
    let options = || vec("[a-z]{1,5}(=[^,\u{0}]{0,5})?", 1..4);
    let propagation = vec("(shared|master):[0-9]", 0..3);
    let words = ("[a-z]{1,5}(\\.[a-z]{1,3})?", "[^\u{0}]{0,8}");
    (any::<(u32, u32, (u32, u32))>(), path(), path(), options(), propagation, words, options()).prop_map(
        |((id, parent, device), root, point, options, propagation, (kind, source), super_options)| Mount {
            id,
            parent,
            device,
            root,
            point,
            options,
            propagation,
            kind,
            source,
            super_options,
        },
    )
}

fn cgroups() -> impl Strategy<Value = CgroupSpec> {
    select(vec![CgroupSpec::None, CgroupSpec::V1, CgroupSpec::Hybrid, CgroupSpec::Unified])
}

/// Gives everything names and numbers of its own, in the order that readers sort by.
fn make_distinct(pci: &mut [PciSpec], disks: &mut [BlockDevice], links: &mut [Link]) {
    for (bus, function) in (0..).zip(pci) {
        function.address = format!("0000:{bus:02x}:00.0");
        for (minor, node) in (0..).zip(&mut function.nodes) {
            (node.major, node.minor) = (240 + bus, minor);
            node.path = format!("/dev/fixture{bus}/{minor}").into();
        }
    }
    for (minor, disk) in (0..).zip(disks) {
        disk.minor = minor;
        disk.name = format!("vd{minor}");
        disk.path = format!("/dev/vd{minor}").into();
    }
    for (number, link) in (0..).zip(links) {
        link.name = format!("link{number}");
    }
}
