//! Simulated devices on the real kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use keelson_device_plugin::{DevicesSection, DevicesSettings, Plugin, ResourceSection, SimulatedSection, uninstall};
use keelson_host::{HostRoot, Node};
use keelson_testkit::{is_root, skip_unless, wait_until_async};
use prometheus_client::registry::Registry;
use rustix::fs::{major, minor};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What runc allows to every container (libcontainer/specconv, `AllowedDevices`), with tun, which a few releases leave out; no minor is any.
const ALLOWED_TO_ALL: [(u32, Option<u32>); 10] = [
    (1, Some(3)),
    (1, Some(8)),
    (1, Some(7)),
    (5, Some(0)),
    (1, Some(5)),
    (1, Some(9)),
    (5, Some(1)),
    (136, None),
    (5, Some(2)),
    (10, Some(200)),
];

fn settings(directory: &Path, count: u32) -> DevicesSettings {
    let resource = ResourceSection {
        name: "example.com/fpga".to_owned(),
        simulated: Some(SimulatedSection { count }),
        select: Vec::new(),
    };
    let section = DevicesSection {
        kubelet_dir: directory.join("kubelet"),
        cdi_dir: directory.join("cdi"),
        resources: vec![resource],
    };
    let node = Node {
        name: "node-a".to_owned(),
        state_dir: directory.join("state"),
        root: HostRoot::at(directory.join("root")),
    };
    section.validate(&node).unwrap()
}

/// Runs the plugin, with no kubelet, until its CDI file names `count` devices; gives why it wasn't ready.
async fn run(directory: &Path, count: u32) -> String {
    let mut registry = Registry::default();
    let plugin = Plugin::new(settings(directory, count), &mut registry).unwrap();
    let (sender, mut ready) = watch::channel(Err("starting".to_owned()));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(plugin.run(sender, shutdown.clone()));
    // The kubelet is only waited for once there is something to offer: an earlier run's CDI file says nothing of this.
    let waits =
        |ready: &Result<(), String>| ready.as_ref().is_err_and(|reason| reason.contains("waiting for the kubelet"));
    tokio::time::timeout(Duration::from_secs(30), ready.wait_for(waits)).await.expect("devices are offered").unwrap();
    let cdi = directory.join("cdi/keelson-example.com_fpga.json");
    wait_until_async("the CDI file", Duration::from_secs(30), async || {
        let spec: serde_json::Value = serde_json::from_slice(&fs::read(&cdi).ok()?).unwrap();
        (spec["devices"].as_array()?.len() == count as usize).then_some(())
    })
    .await;
    let reason = ready.borrow().clone().unwrap_err();
    shutdown.cancel();
    task.await.unwrap().unwrap();
    reason
}

#[tokio::test]
async fn simulated_devices_are_real_harmless_and_allowed_to_nobody() {
    skip_unless!(is_root(), "making device nodes needs root");
    let directory = tempfile::tempdir().unwrap();
    let reason = run(directory.path(), 3).await;
    assert!(reason.contains("waiting for the kubelet") && !reason.contains("simulated"), "{reason}");
    let nodes = directory.path().join("state/devices/simulated/example.com/fpga");
    assert_eq!(fs::read_dir(&nodes).unwrap().count(), 3);
    assert_eq!(fs::metadata(&nodes).unwrap().permissions().mode() & 0o777, 0o700);
    for index in 0..3 {
        let path = nodes.join(format!("simulated-{index}"));
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_char_device());
        assert_eq!(found.permissions().mode() & 0o777, 0o666);
        let (major, minor) = (major(found.rdev()), minor(found.rdev()));
        let allowed =
            ALLOWED_TO_ALL.iter().any(|(other, any)| *other == major && any.is_none_or(|other| other == minor));
        assert!(!allowed, "{major}:{minor} opens in every container");
        let misc = fs::read_to_string("/proc/misc").unwrap();
        assert!(misc.lines().any(|line| line.trim().starts_with(&format!("{minor} "))), "{minor} is not in\n{misc}");
        OpenOptions::new().read(true).write(true).open(&path).unwrap();
    }
    uninstall(&settings(directory.path(), 3)).unwrap();
    assert!(!directory.path().join("state/devices").exists());
}

#[tokio::test]
async fn a_restart_leaves_the_nodes_alone() {
    skip_unless!(is_root(), "making device nodes needs root");
    let directory = tempfile::tempdir().unwrap();
    let node = |index| directory.path().join(format!("state/devices/simulated/example.com/fpga/simulated-{index}"));
    run(directory.path(), 2).await;
    let inode = |index| fs::symlink_metadata(node(index)).unwrap().ino();
    let before = [inode(0), inode(1)];
    let cdi = directory.path().join("cdi/keelson-example.com_fpga.json");
    let written = fs::metadata(&cdi).unwrap().ino();
    run(directory.path(), 2).await;
    assert_eq!([inode(0), inode(1)], before);
    assert_eq!(fs::metadata(&cdi).unwrap().ino(), written, "an equal CDI file is not written again");
    // More are added, fewer are kept.
    run(directory.path(), 3).await;
    assert_eq!([inode(0), inode(1)], before);
    run(directory.path(), 1).await;
    assert_eq!(inode(0), before[0]);
    assert!(!node(1).exists() && !node(2).exists());
}

#[tokio::test]
async fn what_is_in_the_way_is_named_and_kept() {
    skip_unless!(is_root(), "making device nodes needs root");
    let directory = tempfile::tempdir().unwrap();
    let nodes = directory.path().join("state/devices/simulated/example.com/fpga");
    fs::create_dir_all(&nodes).unwrap();
    let precious = directory.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&precious, nodes.join("simulated-1")).unwrap();
    let mut registry = Registry::default();
    let plugin = Plugin::new(settings(directory.path(), 2), &mut registry).unwrap();
    let (sender, mut ready) = watch::channel(Err("starting".to_owned()));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(plugin.run(sender, shutdown.clone()));
    let told = |ready: &Result<(), String>| {
        ready.as_ref().is_err_and(|reason| reason.contains("simulated-1 is a symbolic link"))
    };
    tokio::time::timeout(Duration::from_secs(30), ready.wait_for(told)).await.expect("the link is told").unwrap();
    shutdown.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(nodes.join("simulated-1").is_symlink());
}
