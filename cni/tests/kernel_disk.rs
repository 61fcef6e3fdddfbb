//! The store's filesystem is full, or can't be written to at all.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::HashSet, fs, path::PathBuf};

use common::{Node, addresses, ip};
use keelson_testkit::{Netns, is_root, skip_unless};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

/// A small filesystem of its own where the node's records live.
struct Disk(PathBuf);

impl Disk {
    fn of(node: &Node) -> Self {
        fs::create_dir(node.data_dir()).unwrap();
        let options = Some("size=256k,nr_inodes=200");
        mount(Some("tmpfs"), &node.data_dir(), Some("tmpfs"), MsFlags::empty(), options).unwrap();
        Self(node.data_dir())
    }

    /// Leaves no byte, or no inode.
    fn fill(&self, with_inodes: bool) {
        let filler = self.0.join("filler");
        fs::create_dir_all(&filler).unwrap();
        let content = vec![0; if with_inodes { 0 } else { 4096 }];
        let full = (0..300).find_map(|number| fs::write(filler.join(number.to_string()), &content).err()).unwrap();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        fs::remove_dir_all(self.0.join("filler")).unwrap();
    }

    fn set_read_only(&self, read_only: bool) {
        let flags = if read_only { MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY } else { MsFlags::MS_REMOUNT };
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Reported by the directory that can't be removed, if it ever fails.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_keeps_neither_link_nor_record_nor_address() {
    skip_unless!(is_root(), "needs root");
    for (verb, with_inodes) in [("DEL", false), ("DEL", true), ("GC", false), ("GC", true)] {
        let node = Node::new();
        let disk = Disk::of(&node);
        let mut config = node.config();
        config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/29"}]]);
        config["cni.dev/valid-attachments"] = json!([]);
        let pods: Vec<Netns> = (0..5).map(|_| Netns::new().unwrap()).collect();
        let add_all = || -> HashSet<_> {
            pods.iter()
                .enumerate()
                .flat_map(|(id, pod)| addresses(&node.add(&format!("c{id}"), pod, &config)))
                .collect()
        };
        let given = add_all();
        node.call("STATUS", "", None, &config).silent();
        disk.fill(with_inodes);
        let status = node.call("STATUS", "", None, &config);
        assert_eq!(status.code(), 50);
        assert!(status.json()["msg"].as_str().unwrap().ends_with("is full"), "{status:?}");
        match verb {
            "GC" => node.call("GC", "", None, &config).silent(),
            _ => (0..5).for_each(|id| node.call("DEL", &format!("c{id}"), None, &config).silent()),
        }
        assert_eq!((node.records(), node.taken()), (vec![], vec![]), "{verb} {with_inodes}");
        assert!(pods.iter().all(|pod| !ip(pod, &["link"]).contains("eth0")));
        disk.free();
        // Every address can be given again.
        assert_eq!(add_all(), given, "{verb} {with_inodes}");
    }
}

#[test]
fn a_read_only_disk_keeps_the_record_but_not_the_link() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let disk = Disk::of(&node);
    let config = node.config();
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &config);
    disk.set_read_only(true);
    assert_eq!(node.call("STATUS", "", None, &config).code(), 50);
    for _ in 0..2 {
        assert_eq!(node.call("DEL", "c", Some(pod.path()), &config).code(), 5);
        assert!(!ip(&pod, &["link"]).contains("eth0"));
        assert_eq!(node.records(), ["c@eth0"]);
    }
    // GC can't note what it does either: it does nothing, and says so.
    let mut all = config.clone();
    all["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(node.call("GC", "", None, &all).code(), 5);
    assert_eq!(node.call("ADD", "d", Some(pod.path()), &config).code(), 5);
    assert!(!ip(&pod, &["link"]).contains("eth0"));
    disk.set_read_only(false);
    node.call("GC", "", None, &all).silent();
    node.call("DEL", "c", Some(pod.path()), &config).silent();
    assert_eq!((node.records(), node.taken()), (vec![], vec![]));
    node.call("STATUS", "", None, &config).silent();
}

#[test]
fn on_a_full_disk_an_add_leaves_nothing_and_the_next_one_works() {
    skip_unless!(is_root(), "needs root");
    for with_inodes in [false, true] {
        let node = Node::new();
        let disk = Disk::of(&node);
        let config = node.config();
        let (pod, other) = (Netns::new().unwrap(), Netns::new().unwrap());
        let first = addresses(&node.add("a", &pod, &config));
        disk.fill(with_inodes);
        for _ in 0..3 {
            assert_eq!(node.call("ADD", "b", Some(other.path()), &config).code(), 5);
            assert_eq!(node.records(), ["a@eth0"]);
            assert!(!ip(&other, &["link"]).contains("eth0"));
        }
        disk.free();
        let second = addresses(&node.add("b", &other, &config));
        assert!(second.iter().all(|address| !first.contains(address)), "{first:?} {second:?}");
    }
}
