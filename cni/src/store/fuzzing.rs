//! A store whose files hold anything: nothing hangs or panics over them, and no address is given twice.

#![allow(clippy::unwrap_used, reason = "a broken promise is a panic")]

use std::{
    collections::BTreeSet,
    env, fs,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Component, Path},
    process,
    time::Duration,
};

use serde_json::{Value, json};

use super::{Record, Request, Store, StoreError, record_name};
use crate::config::range::{Range, RangeSet, RangeText};

/// Six addresses, one of them the gateway.
const SUBNET: &str = "10.1.0.0/29";

/// Puts the files that `text` describes where the store keeps its own, and uses the store.
pub(crate) fn check(text: &[u8]) {
    let Ok(Value::Object(files)) = serde_json::from_slice(text) else { return };
    let directory = env::temp_dir().join(format!("keelson-fuzz-{}", process::id()));
    let _ = fs::remove_dir_all(&directory);
    let store = Store::of_boot(&directory, "net", "b");
    store.create().unwrap();
    for (name, content) in &files {
        put(&store.boot_dir(), Path::new(name), content);
    }
    use_all(&store);
    fs::remove_dir_all(&directory).unwrap();
}

/// A text makes a symbolic link where the store has them; names that lead elsewhere, or are taken, make nothing.
fn put(directory: &Path, name: &Path, content: &Value) {
    if !name.components().all(|part| matches!(part, Component::Normal(_))) {
        return;
    }
    let path = directory.join(name);
    let _ = path.parent().map(fs::create_dir_all);
    let has_links = name.starts_with("addresses") || name.to_string_lossy().starts_with("released-");
    let _ = match content {
        Value::String(text) if has_links => symlink(text, &path),
        Value::String(text) => fs::write(&path, text),
        other => fs::write(&path, other.to_string()),
    };
}

fn use_all(store: &Store) {
    let mut in_use = BTreeSet::new();
    let Ok(keys) = store.keys() else { return };
    for key in &keys {
        let Ok(Some(record)) = store.read(key) else { continue };
        assert_eq!(record.key, *key);
        // What is written is read.
        store.write(&record).unwrap();
        assert_eq!(store.read(key).unwrap().as_ref(), Some(&record));
        let entry = |address: &IpAddr| fs::read_link(store.address_path(*address)).ok();
        let leased = record.addresses.iter().map(|lease| lease.address.addr());
        let entered =
            leased.filter(|address| entry(address) == Some(Path::new("../attachments").join(record_name(key))));
        in_use.extend(entered);
    }
    let range = Range::new("", "", &RangeText { subnet: SUBNET.to_owned(), ..RangeText::default() }).unwrap();
    let sets = [RangeSet(vec![range])];
    let request = Request { sets: &sets, wanted: &[], cooldown: Duration::ZERO };
    let mut given = Vec::new();
    for number in 0..6 {
        let mut record = new_record(&format!("fuzz{number}"));
        if keys.contains(&record.key) {
            continue;
        }
        match store.reserve(&mut record, &request) {
            Ok(()) => {
                let address = record.addresses[0].address.addr();
                assert!(sets[0].range_of(address).is_some(), "{address} isn't in the range");
                assert!(in_use.insert(address), "{address} was given twice");
                given.push(record);
            }
            Err(StoreError::Exhausted { .. }) => break,
            Err(_) => {}
        }
    }
    for record in &given {
        let _ = store.release(record);
        assert_eq!(store.read(&record.key).unwrap(), None);
    }
    for key in &keys {
        let _ = match store.read(key) {
            Ok(Some(record)) => store.release(&record),
            _ => store.discard(key),
        };
    }
    let _ = store.sweep();
    let _ = store.remove_if_empty();
}

fn new_record(id: &str) -> Record {
    let record = json!({
        "version": super::VERSION, "bootId": "b", "state": "pending", "network": "net", "containerId": id,
        "ifname": "eth0", "netns": "", "pod": {"namespace": "", "name": "", "uid": ""}, "bridge": "",
        "hostInterface": "", "hostMac": "", "containerMac": "", "addresses": [], "routes": [], "createdAtSeconds": 0,
    });
    serde_json::from_value(record).unwrap()
}
