//! A node reboots with Pods running: the runtime deletes none of them, and their network is gone all the same.
//!
//! The VM tier runs the first test, reboots the guest, and runs the second.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    guest::{ADDRESSES, Network, boot_id, disk},
    tables,
};
use keelson_testkit::{Netns, skip_unless};
use serde::{Deserialize, Serialize};

/// What the second test has to know of the boot before.
#[derive(Serialize, Deserialize)]
struct Before {
    boot: String,
    /// By container id, of the network on the disk.
    given: BTreeMap<String, IpAddr>,
    netns: PathBuf,
    tables: Vec<String>,
}

fn networks(disk: &Path) -> [Network; 2] {
    [Network::new("kept", disk, 78), Network::new("volatile", Path::new("/run/keelson-test"), 79)]
}

#[test]
fn pods_run_before_the_reboot() {
    skip_unless!(disk().is_some(), "reboots the machine; cargo xtask test vm runs it in a guest");
    let disk = disk().unwrap();
    let [kept, volatile] = networks(&disk);
    let pods: Vec<Netns> = (0..ADDRESSES).map(|_| Netns::new().unwrap()).collect();
    let given = kept.fill("old", &pods);
    let others: Vec<Netns> = (0..ADDRESSES).map(|_| Netns::new().unwrap()).collect();
    volatile.fill("old", &others);
    let before = Before { boot: boot_id(), given, netns: pods[0].path().to_owned(), tables: tables() };
    assert_ne!(before.tables, Vec::<String>::new());
    fs::write(disk.join("before.json"), serde_json::to_string(&before).unwrap()).unwrap();
    // The Pods run until the machine ends.
    std::mem::forget((pods, others));
}

#[test]
fn after_the_reboot_nothing_is_left() {
    skip_unless!(disk().is_some(), "needs a rebooted machine; cargo xtask test vm runs it in a guest");
    let disk = disk().unwrap();
    let [kept, volatile] = networks(&disk);
    let before: Before = serde_json::from_str(&fs::read_to_string(disk.join("before.json")).unwrap()).unwrap();
    assert_ne!(before.boot, boot_id(), "the machine didn't reboot");
    assert_eq!(kept.old_boots(), std::slice::from_ref(&before.boot));
    assert_eq!(kept.records(&before.boot).len(), ADDRESSES);
    assert!(!Path::new("/run/keelson-test").exists(), "/run is not a tmpfs");
    assert_eq!(tables(), Vec::<String>::new());

    // The kubelet finds dead sandboxes and has them deleted, some before and some after it starts new ones.
    kept.call("DEL", "old0", Some(&before.netns)).silent();
    for network in [&kept, &volatile] {
        network.works_after_a_boot();
    }
    for id in before.given.keys() {
        kept.call("DEL", id, Some(&before.netns)).silent();
    }
    assert_eq!(tables(), before.tables);
    let rules = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    assert!(rules.status.success(), "{rules:?}");
    let rules = String::from_utf8(rules.stdout).unwrap();
    for address in before.given.values() {
        assert!(!rules.contains(&format!("{address} ")), "{address} is still in the rules: {rules}");
    }
}
