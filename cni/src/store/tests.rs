//! The store over a temporary directory: what is given, what is torn, what is another boot's.

use std::{collections::HashSet, fs, os::unix::fs::symlink, time::Duration};

use tempfile::TempDir;

use super::*;
use crate::config::range::{Range, RangeSet, RangeText};

pub(super) const BOOT: &str = "786e34df-2b17-43ec-a752-2a9c03c61333";
const OTHER_BOOT: &str = "0c5e7d3c-6d1f-4b0e-9a53-1f0e5b9f2c11";

pub(super) fn sets(subnets: &[&str]) -> Vec<RangeSet> {
    let range =
        |subnet: &str| Range::new("", "", &RangeText { subnet: subnet.to_owned(), ..RangeText::default() }).unwrap();
    subnets.iter().map(|subnet| RangeSet(vec![range(subnet)])).collect()
}

pub(super) fn store(directory: &TempDir, boot: &str) -> Store {
    let store = Store::of_boot(directory.path(), "net", boot);
    store.create().unwrap();
    store
}

pub(super) fn record(store: &Store, id: &str) -> Record {
    let key = AttachmentKey { container_id: id.to_owned(), ifname: "eth0".to_owned() };
    Record { bridge: "kl0".to_owned(), host_interface: "kl1".to_owned(), ..Record::blank(store.boot_id(), "net", key) }
}

pub(super) fn reserve(store: &Store, id: &str, sets: &[RangeSet]) -> Result<Record, StoreError> {
    request(store, id, sets, &[], Duration::ZERO)
}

pub(super) fn request(
    store: &Store,
    id: &str,
    sets: &[RangeSet],
    wanted: &[IpAddr],
    cooldown: Duration,
) -> Result<Record, StoreError> {
    let mut record = record(store, id);
    store.reserve(&mut record, &Request { sets, wanted, cooldown }).map(|()| record)
}

pub(super) fn addresses(record: &Record) -> Vec<String> {
    record.addresses.iter().map(|lease| lease.address.to_string()).collect()
}

#[test]
fn what_is_written_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let record = reserve(&store, "a", &sets(&["10.0.0.0/24", "fd00::/64"])).unwrap();
    assert_eq!(addresses(&record), ["10.0.0.2/24", "fd00::2/64"]);
    assert_eq!(store.read(&record.key).unwrap().as_ref(), Some(&record));
    assert_eq!(store.keys().unwrap(), std::slice::from_ref(&record.key));
    store.release(&record).unwrap();
    store.release(&record).unwrap();
    assert_eq!(store.read(&record.key).unwrap(), None);
    assert!(store.remove_if_empty().unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_full_set_gives_nothing_and_takes_nothing_from_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let sets = sets(&["10.0.0.0/24", "10.9.0.0/30"]);
    let only = reserve(&store, "a", &sets).unwrap();
    let error = reserve(&store, "b", &sets).unwrap_err();
    let expected = "failed to allocate for range 1: no IP addresses available in range set: 10.9.0.1-10.9.0.2 (1 addresses: all in use, none cooling, 0 stale)";
    assert_eq!(error.to_string(), expected);
    assert_eq!(store.keys().unwrap(), std::slice::from_ref(&only.key));
    store.release(&only).unwrap();
    assert_eq!(addresses(&reserve(&store, "c", &sets).unwrap()), ["10.0.0.3/24", "10.9.0.2/30"]);
}

#[test]
fn another_boots_records_are_void_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let old = store(&directory, OTHER_BOOT);
    let given = reserve(&old, "a", &sets(&["10.0.0.0/24"])).unwrap();
    let new = store(&directory, BOOT);
    assert_eq!(new.read(&given.key).unwrap(), None);
    assert_eq!(addresses(&reserve(&new, "b", &sets(&["10.0.0.0/24"])).unwrap()), addresses(&given));
    assert!(!directory.path().join("net").join(OTHER_BOOT).exists());
}

/// A directory that was chosen carelessly holds other things, among them things that look like ours.
#[test]
fn what_is_not_ours_outlives_every_boot_and_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let network = directory.path().join("net");
    let elsewhere = directory.path().join("elsewhere");
    for path in ["attachments", "addresses"] {
        fs::create_dir_all(elsewhere.join(path)).unwrap();
    }
    fs::write(elsewhere.join("attachments/a@eth0"), "{}").unwrap();
    let like_ours = |name: &str| network.join(format!("0c5e7d3c-6d1f-4b0e-9a53-{name}"));
    let kept = [
        network.join("photos/attachments/a@eth0"),
        like_ours("000000000001").join("letter"),
        like_ours("000000000002").join("attachments/letter"),
        like_ours("000000000003").join("attachments/a@eth0/letter"),
        like_ours("000000000004").join("addresses/10.0.0.1"),
        like_ours("000000000005").join("allocator-0.json/letter"),
        like_ours("000000000006").join("lock"),
        like_ours("00000000000").join("attachments/a@eth0"),
    ];
    for path in &kept {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "precious").unwrap();
    }
    symlink(&elsewhere, like_ours("000000000007")).unwrap();
    let store = store(&directory, BOOT);
    reserve(&store, "a", &sets(&["10.0.0.0/24"])).and_then(|record| store.release(&record)).unwrap();
    assert!(store.remove_if_empty().unwrap());
    for path in &kept {
        assert_eq!(fs::read_to_string(path).unwrap(), "precious", "{}", path.display());
    }
    assert!(elsewhere.join("attachments/a@eth0").exists());
    assert!(!network.join(BOOT).exists() && !network.join("lock").exists());
}

/// Network `inner` whose data directory is network `net`'s own, and is named as a boot is.
#[test]
fn a_network_inside_anothers_directory_keeps_its_records() {
    let directory = tempfile::tempdir().unwrap();
    let sets = sets(&["10.0.0.0/24"]);
    for name in ["inner", OTHER_BOOT] {
        let inner = Store::of_boot(&directory.path().join("net"), name, BOOT);
        inner.create().unwrap();
        let held = reserve(&inner, "a", &sets).unwrap();
        let outer = store(&directory, BOOT);
        assert!(outer.remove_if_empty().unwrap());
        assert_eq!(inner.read(&held.key).unwrap(), Some(held.clone()));
        store(&directory, BOOT);
        assert_ne!(addresses(&reserve(&inner, "b", &sets).unwrap()), addresses(&held));
    }
}

#[test]
fn a_record_torn_at_any_byte_frees_nothing_and_blocks_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let sets = sets(&["10.0.0.0/29"]);
    let torn = reserve(&store, "torn", &sets).unwrap();
    let path = directory.path().join(format!("net/{BOOT}/attachments/torn@eth0"));
    let whole = fs::read(&path).unwrap();
    let cursor = directory.path().join(format!("net/{BOOT}/allocator-0.json"));
    // The last byte is the newline, without which the record is whole.
    for length in 0..whole.len() - 1 {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(store.read(&torn.key), Err(StoreError::Corrupt { .. })), "{length}");
        // Even a store that forgot where it stood gives the address to nobody else.
        fs::remove_file(&cursor).unwrap();
        let other = reserve(&store, "other", &sets).unwrap();
        assert_ne!(addresses(&other), addresses(&torn));
        store.release(&other).unwrap();
    }
    assert_eq!(store.keys().unwrap(), std::slice::from_ref(&torn.key));
    store.discard(&torn.key).unwrap();
    let mut given = HashSet::new();
    for id in ["a", "b", "c", "d", "e"] {
        given.extend(addresses(&reserve(&store, id, &sets).unwrap()));
    }
    assert_eq!(given.len(), 5);
    assert!(matches!(reserve(&store, "f", &sets), Err(StoreError::Exhausted { .. })));
}

#[test]
fn another_releases_record_is_named_and_not_guessed_at() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let record = reserve(&store, "a", &sets(&["10.0.0.0/24"])).unwrap();
    let path = directory.path().join(format!("net/{BOOT}/attachments/a@eth0"));
    fs::write(&path, r#"{"version": 3, "somethingNew": true}"#).unwrap();
    let error = store.read(&record.key).unwrap_err().to_string();
    let expected = format!("{} is of format version 3, and this program reads 1 to 2", path.display());
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn an_address_asked_for_is_given_to_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let sets = sets(&["10.0.0.0/29"]);
    let wanted: IpAddr = "10.0.0.2".parse().unwrap();
    request(&store, "a", &sets, &[wanted], Duration::ZERO).unwrap();
    let error = request(&store, "b", &sets, &[wanted], Duration::ZERO).unwrap_err();
    assert_eq!(
        error.to_string(),
        "requested IP address 10.0.0.2 is not available: it is in use by eth0 of container a"
    );
    // The walk steps over it.
    assert_eq!(addresses(&reserve(&store, "c", &sets).unwrap()), ["10.0.0.3/29"]);
}

#[test]
fn what_killed_processes_left_of_a_file_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let boot = directory.path().join("net").join(BOOT);
    let (dead, alive, own) = (
        boot.join("attachments/.a@eth0.tmp"),
        boot.join("attachments/.b@eth0.tmp"),
        boot.join("attachments/.c@eth0.tmp"),
    );
    let others = [boot.join("attachments/.a@eth0.4194305.0.tmp"), boot.join(".allocator-0.json.tmp")];
    for path in others.iter().chain([&dead, &alive, &own]) {
        fs::write(path, "{").unwrap();
    }
    assert_eq!(store.keys().unwrap(), []);
    assert_eq!(store.sample().unwrap(), []);
    store.sweep_attachment(&record(&store, "c").key).unwrap();
    assert!(!own.exists() && dead.exists());
    // Somebody works on this one.
    let lock = store.lock_attachment_if_idle(&record(&store, "b").key).unwrap();
    store.sweep().unwrap();
    assert!(alive.exists() && !dead.exists() && !others.iter().any(|path| path.exists()));
    drop(lock);
    store.sweep().unwrap();
    assert!(!alive.exists());
}

const COOLDOWN: Duration = Duration::from_secs(3600);

fn cooled(store: &Store, id: &str, sets: &[RangeSet]) -> Vec<String> {
    addresses(&request(store, id, sets, &[], COOLDOWN).unwrap())
}

#[test]
fn an_address_that_cools_is_given_last_even_if_the_walk_starts_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let wide = sets(&["10.0.0.0/29"]);
    let (first, second) = (reserve(&store, "a", &wide).unwrap(), reserve(&store, "b", &wide).unwrap());
    assert_eq!((addresses(&first), addresses(&second)), (vec!["10.0.0.2/29".into()], vec!["10.0.0.3/29".into()]));
    store.release(&second).unwrap();
    store.release(&first).unwrap();
    assert_eq!(cooled(&store, "c", &wide), ["10.0.0.4/29"]);
    // The memory is lost.
    fs::remove_file(directory.path().join(format!("net/{BOOT}/allocator-0.json"))).unwrap();
    assert_eq!(cooled(&store, "d", &wide), ["10.0.0.5/29"]);
    // The ranges change.
    let mut narrow = wide.clone();
    narrow[0].0[0].last = "10.0.0.5".parse().unwrap();
    // Nothing else is free: the one that was released first.
    assert_eq!(cooled(&store, "e", &narrow), ["10.0.0.3/29"]);
    assert_eq!(cooled(&store, "f", &wide), ["10.0.0.6/29"]);
    assert_eq!(cooled(&store, "g", &wide), ["10.0.0.2/29"]);
    assert!(matches!(request(&store, "h", &wide, &[], COOLDOWN), Err(StoreError::Exhausted { .. })));
}

#[test]
fn an_address_asked_for_and_released_before_the_walk_came_by_cools() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let sets = sets(&["10.0.0.0/29"]);
    let wanted = ["10.0.0.2".parse().unwrap()];
    store.release(&request(&store, "a", &sets, &wanted, COOLDOWN).unwrap()).unwrap();
    assert_eq!(cooled(&store, "b", &sets), ["10.0.0.3/29"]);
    // Who asks for it gets it at once, and then it cools anew, behind the others.
    let again = request(&store, "c", &sets, &wanted, COOLDOWN).unwrap();
    store.release(&store.read(&record(&store, "b").key).unwrap().unwrap()).unwrap();
    store.release(&again).unwrap();
    let given: Vec<_> = ["d", "e", "f", "g", "h"].map(|id| cooled(&store, id, &sets).concat()).into();
    assert_eq!(given, ["10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29", "10.0.0.3/29", "10.0.0.2/29"]);
}

#[test]
fn without_a_cooldown_a_walk_that_starts_over_takes_what_it_finds() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let sets = sets(&["10.0.0.0/29"]);
    store.release(&reserve(&store, "a", &sets).unwrap()).unwrap();
    fs::remove_file(directory.path().join(format!("net/{BOOT}/allocator-0.json"))).unwrap();
    assert_eq!(addresses(&reserve(&store, "b", &sets).unwrap()), ["10.0.0.2/29"]);
}

#[test]
fn a_full_set_is_told_without_a_look_at_its_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, BOOT);
    let sets = sets(&["10.0.0.0/30", "10.9.0.0/29"]);
    assert!(!store.is_exhausted(0, &sets[0]));
    let only = reserve(&store, "a", &sets).unwrap();
    assert!(store.is_exhausted(0, &sets[0]) && !store.is_exhausted(1, &sets[1]));
    store.release(&only).unwrap();
    assert!(!store.is_exhausted(0, &sets[0]));
}
