//! What `keelson inspect` prints is what the user's guide shows.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use keelson_host::{
    BlockDevice, Inspection, Link, Mount, OperationalState,
    fixture::{CgroupSpec, Spec},
};
use serde_json::Value;

const GUIDE: &str = include_str!("../../docs/inspect.md");

/// The machine of the guide's example: two sockets, a CXL memory node, an FPGA for containers, one for virtual machines.
fn example() -> Spec {
    let spec: Spec = "packages=2 cores=4 threads=2 l3=2 offline=15 memory=64GiB memory-nodes=256GiB \
        pci=0000:3b:00.0,10ee:5000,class=120000,driver=fpga,node=0,group=11,char=/dev/fpga0:240:0 \
        pci=0000:af:00.0,10ee:5000,class=120000,driver=vfio-pci,node=1,group=12"
        .parse()
        .unwrap();
    let disk = |name: &str, minor, gibibytes: u64| BlockDevice {
        name: name.to_owned(),
        path: PathBuf::from("/dev").join(name),
        major: 8,
        minor,
        size_bytes: gibibytes << 30,
        read_only: false,
        rotational: None,
        partition_of: None,
        backing_file: None,
    };
    let link = |name: &str, index, mac: &str| Link {
        name: name.to_owned(),
        index,
        mtu: 1500,
        mac: Some(mac.to_owned()),
        state: OperationalState::Up,
        master: None,
        kind: None,
        driver: None,
    };
    Spec {
        disks: vec![
            BlockDevice { rotational: Some(true), ..disk("sda", 0, 512) },
            BlockDevice { partition_of: Some("sda".to_owned()), ..disk("sda1", 1, 511) },
        ],
        links: vec![
            Link { driver: Some("mlx5_core".to_owned()), ..link("eth0", 2, "02:fc:00:00:00:01") },
            Link { kind: Some("bridge".to_owned()), ..link("kl0", 3, "02:fc:00:00:00:02") },
            Link { master: Some("kl0".to_owned()), ..link("veth7", 4, "02:fc:00:00:00:03") },
        ],
        other_mounts: vec![Mount {
            id: 27,
            parent: 1,
            device: (8, 1),
            root: "/".into(),
            point: "/".into(),
            options: vec!["rw".to_owned(), "relatime".to_owned()],
            propagation: vec!["shared:1".to_owned()],
            kind: "ext4".to_owned(),
            source: "/dev/sda1".to_owned(),
            super_options: vec!["rw".to_owned()],
        }],
        cgroups: CgroupSpec::Unified,
        ..spec
    }
}

/// The first code block of the guide in `language`.
fn guide_block(language: &str) -> &'static str {
    let (_, rest) = GUIDE.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("\n```").unwrap().0
}

#[test]
fn the_guide_shows_the_tree() {
    let directory = tempfile::tempdir().unwrap();
    let mut inspection = Inspection::read(&example().build(directory.path()).unwrap());
    inspection.root = "/".into();
    assert_eq!(inspection.to_string(), guide_block("text"));
}

/// Whether the guide's value is the inspection's, but for the entries that its lists leave out.
#[track_caller]
fn check_shown(guide: &Value, inspection: &Value) {
    match (guide, inspection) {
        (Value::Object(guide), Value::Object(inspection)) => {
            assert_eq!(guide.keys().collect::<Vec<_>>(), inspection.keys().collect::<Vec<_>>());
            guide.iter().for_each(|(key, value)| check_shown(value, &inspection[key]));
        }
        (Value::Array(guide), Value::Array(inspection)) => {
            assert!(guide.iter().all(|entry| inspection.contains(entry)), "{guide:?} is not in {inspection:?}");
        }
        _ => assert_eq!(guide, inspection),
    }
}

#[test]
fn the_guide_shows_the_json() {
    let directory = tempfile::tempdir().unwrap();
    let mut inspection = Inspection::read(&example().build(directory.path()).unwrap());
    inspection.root = "/".into();
    check_shown(&serde_json::from_str(guide_block("json")).unwrap(), &serde_json::to_value(inspection).unwrap());
}
