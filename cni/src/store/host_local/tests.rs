use proptest::prelude::*;

use super::*;
use crate::config::range::{Range, RangeText};

fn set(subnets: &[&str]) -> RangeSet {
    let range = |subnet: &&str| {
        Range::new("", "", &RangeText { subnet: (*subnet).to_owned(), ..RangeText::default() }).unwrap()
    };
    RangeSet(subnets.iter().map(range).collect())
}

fn key(container_id: &str, ifname: &str) -> AttachmentKey {
    AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() }
}

fn add(directory: &Path, id: &str, sets: &[RangeSet]) -> Result<Vec<String>, StoreError> {
    let draft = Draft::write(directory, &key(id, "eth0"))?;
    let reservations = open(directory)?.unwrap();
    let given = reservations.reserve(&draft, sets, &[])?;
    Ok(given.iter().map(IpAddr::to_string).collect())
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn contents_are_read_as_host_local_reads_them() {
    let holder = |content: &str| Holder::parse(content.as_bytes());
    assert_eq!(holder("abc\r\neth0"), Holder::Attachment(key("abc", "eth0")));
    assert_eq!(holder(" \n abc\r\neth0 \n"), Holder::Attachment(key("abc", "eth0")));
    assert_eq!(holder("abc\n"), Holder::Container("abc".to_owned()));
    assert_eq!(holder(" \r\n "), Holder::Nobody);
    for bad in ["abc\neth0", "abc\r\neth0\r\neth1", "../abc\r\neth0", "abc\r\n../eth0", "\u{feff}abc"] {
        assert!(matches!(holder(bad), Holder::Unknown(_)), "{bad:?}");
    }
    assert!(matches!(Holder::parse(b"\xff\xfe"), Holder::Unknown(_)));
}

#[test]
fn round_robin_goes_on_from_the_last_and_around() {
    let directory = tempfile::tempdir().unwrap();
    let sets = [set(&["10.0.0.0/29", "10.0.1.0/30"])];
    let mut given: Vec<String> =
        (0..6).flat_map(|number| add(directory.path(), &format!("c{number}"), &sets).unwrap()).collect();
    assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.1.2"]);
    let full = add(directory.path(), "c6", &sets).unwrap_err();
    assert_eq!(
        full.to_string(),
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6,10.0.1.1-10.0.1.2 (6 addresses: all in use, none cooling, 0 stale)"
    );
    open(directory.path()).unwrap().unwrap().release(&key("c2", "eth0")).unwrap();
    given = add(directory.path(), "c7", &sets).unwrap();
    assert_eq!(given, ["10.0.0.4"]);
    assert_eq!(fs::read(directory.path().join("10.0.0.4")).unwrap(), b"c7\r\neth0");
    assert_eq!(fs::read(directory.path().join("last_reserved_ip.0")).unwrap(), b"10.0.0.4");
}

#[test]
fn an_empty_file_is_taken_over_when_nothing_else_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let sets = [set(&["10.0.0.0/29"])];
    fs::write(directory.path().join("10.0.0.2"), "").unwrap();
    fs::write(directory.path().join("10.0.0.3"), "?").unwrap();
    let given: Vec<String> =
        (0..4).flat_map(|number| add(directory.path(), &format!("c{number}"), &sets).unwrap()).collect();
    assert_eq!(given, ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"]);
    assert!(add(directory.path(), "c5", &sets).is_err());
    assert_eq!(fs::read(directory.path().join("10.0.0.3")).unwrap(), b"?");
}

#[test]
fn a_failed_reservation_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let sets = [set(&["10.0.0.0/24"]), set(&["fd00::/126"])];
    add(directory.path(), "a", &sets).unwrap();
    add(directory.path(), "b", &sets).unwrap();
    let before = names(directory.path());
    assert!(matches!(add(directory.path(), "c", &sets), Err(StoreError::Exhausted { set: 1, .. })));
    assert_eq!(names(directory.path()), before);
    let duplicate = add(directory.path(), "a", &sets).unwrap_err().to_string();
    assert_eq!(
        duplicate,
        "failed to allocate for range 0: 10.0.0.2 has been allocated to a, duplicate allocation is not allowed"
    );
    assert_eq!(names(directory.path()), before);
}

#[test]
fn what_is_no_reservation_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "a\r\neth0").unwrap();
    std::os::unix::fs::symlink(outside.path(), path("10.0.0.2")).unwrap();
    nix::unistd::mkfifo(&path("10.0.0.3"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::create_dir(path("10.0.0.4")).unwrap();
    fs::write(path("10.0.0.5"), "a".repeat(5000)).unwrap();
    let before = names(directory.path());
    let reservations = open(directory.path()).unwrap().unwrap();
    assert!(reservations.of_addresses().all(|(_, found)| matches!(found.holder, Holder::Unknown(_))));
    reservations.release(&key("a", "eth0")).unwrap();
    reservations.retain(&[]).unwrap();
    drop(reservations);
    assert!(names(directory.path()).iter().filter(|name| *name != "lock").eq(&before));
    assert_eq!(add(directory.path(), "a", &[set(&["10.0.0.0/29"])]).unwrap(), ["10.0.0.6"]);
    assert_eq!(fs::read(outside.path()).unwrap(), b"a\r\neth0");
}

#[test]
fn gc_keeps_what_is_valid_and_what_nobody_understands() {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("10.0.0.2", "a\r\neth0"),
        ("10.0.0.3", "a\r\neth1"),
        ("10.0.0.4", "old"),
        ("10.0.0.5", "a"),
        ("10.0.0.6", ""),
        ("10.0.0.7", "a b"),
        (".gone@eth0.7.tmp", "gone\r\neth0"),
    ] {
        fs::write(directory.path().join(name), content).unwrap();
    }
    open(directory.path()).unwrap().unwrap().retain(&[key("a", "eth0")]).unwrap();
    assert_eq!(names(directory.path()), ["10.0.0.2", "10.0.0.5", "10.0.0.7", "lock"]);
}

#[test]
fn the_older_format_counts_only_where_there_is_none_of_the_newer() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("10.0.0.2"), "a\r\neth0").unwrap();
    fs::write(directory.path().join("10.0.0.3"), "a").unwrap();
    open(directory.path()).unwrap().unwrap().release(&key("a", "eth0")).unwrap();
    assert_eq!(names(directory.path()), ["10.0.0.3", "lock"]);
    open(directory.path()).unwrap().unwrap().release(&key("a", "eth0")).unwrap();
    assert_eq!(names(directory.path()), ["lock"]);
}

#[test]
fn what_a_killed_call_left_goes_with_the_del_of_its_attachment() {
    let directory = tempfile::tempdir().unwrap();
    std::mem::forget(Draft::write(directory.path(), &key("a", "eth0")).unwrap());
    // Another one was killed before it wrote.
    fs::write(directory.path().join(".a@eth0.7.tmp"), "").unwrap();
    assert_eq!(names(directory.path()).len(), 2);
    let reservations = open(directory.path()).unwrap().unwrap();
    assert!(!reservations.holds(&key("a", "eth0")));
    reservations.release(&key("a", "eth0")).unwrap();
    assert_eq!(names(directory.path()), ["lock"]);
}

proptest! {
    #[test]
    fn no_content_panics(content in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Holder::parse(&content);
    }

    #[test]
    fn what_is_written_is_read(id in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,70}", ifname in "[a-z][a-z0-9.]{0,14}") {
        prop_assume!(ifname != "all" && ifname != "default");
        let content = format!("{id}{SEPARATOR}{ifname}");
        prop_assert_eq!(Holder::parse(content.as_bytes()), Holder::Attachment(key(&id, &ifname)));
    }
}

proptest! {
    // Each reservation is synced to the disk.
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Whatever was released in between, a round gives each address once, and the gateway never.
    #[test]
    fn a_round_gives_each_address_once(released in prop::collection::btree_set(2u8..15, 0..13)) {
        let directory = tempfile::tempdir().unwrap();
        let sets = [set(&["10.0.0.0/28"])];
        for number in 2..15 {
            add(directory.path(), &format!("c{number}"), &sets).unwrap();
        }
        for number in &released {
            open(directory.path()).unwrap().unwrap().release(&key(&format!("c{number}"), "eth0")).unwrap();
        }
        let mut given: Vec<u8> = Vec::new();
        while let Ok(addresses) = add(directory.path(), &format!("d{}", given.len()), &sets) {
            given.push(addresses[0].rsplit('.').next().unwrap().parse().unwrap());
        }
        prop_assert_eq!(given, released.into_iter().collect::<Vec<u8>>());
    }
}
