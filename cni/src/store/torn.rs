//! Files that a crash, a full disk or a stray byte left otherwise than they were written.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    tests::{BOOT, addresses, record, request, reserve, sets, store},
    *,
};

/// In memory where there is such a place: these tests make many small files.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        let target = to.join(entry.file_name().unwrap());
        if kind.is_dir() {
            copy(&entry, &target);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&entry).unwrap(), &target).unwrap();
        } else {
            fs::copy(&entry, &target).unwrap();
        }
    }
}

/// A store of five addresses: four in use, one in the queue, which has been used once before.
struct Worn {
    directory: TempDir,
    given: BTreeMap<String, String>,
}

impl Worn {
    fn new() -> Self {
        let directory = directory();
        let store = store(&directory, BOOT);
        let sets = sets(&["10.0.0.0/29"]);
        let mut records = BTreeMap::new();
        for id in ["a", "b", "c", "d", "e"] {
            records.insert(id.to_owned(), reserve(&store, id, &sets).unwrap());
        }
        store.release(&records.remove("b").unwrap()).unwrap();
        store.release(&records.remove("d").unwrap()).unwrap();
        records.insert("f".to_owned(), reserve(&store, "f", &sets).unwrap());
        let given = records.into_iter().map(|(id, record)| (id, addresses(&record).concat())).collect();
        Self { directory, given }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("net").join(BOOT).join(path)
    }

    /// After `harm`: nobody is given what somebody has, every attachment can be detached, and then everything is free.
    #[track_caller]
    fn survives(&self, harm: impl FnOnce(&Worn), what: &str) {
        let copied = directory();
        copy(self.directory.path(), copied.path());
        let worn = Worn { directory: copied, given: self.given.clone() };
        harm(&worn);
        let store = store(&worn.directory, BOOT);
        let sets = sets(&["10.0.0.0/29"]);
        match reserve(&store, "g", &sets) {
            Ok(record) => {
                let new = addresses(&record).concat();
                assert!(!worn.given.values().any(|given| *given == new), "{what}: {new} is given twice");
            }
            Err(error) => assert!(matches!(error, StoreError::Exhausted { .. }), "{what}: {error}"),
        }
        assert_eq!(store.records().unwrap().len(), store.keys().unwrap().len(), "{what}");
        for key in store.keys().unwrap() {
            match store.read(&key) {
                Ok(Some(record)) => store.release(&record).unwrap(),
                Ok(None) => panic!("{what}: {key:?} vanished"),
                // What DEL and GC do.
                Err(_) => store.discard(&key).unwrap(),
            }
        }
        store.sweep().unwrap();
        assert_eq!(store.keys().unwrap(), [], "{what}");
        let again: HashSet<String> = ["v", "w", "x", "y", "z"]
            .iter()
            .map(|id| addresses(&reserve(&store, id, &sets).unwrap_or_else(|error| panic!("{what}: {error}"))).concat())
            .collect();
        assert_eq!(again.len(), 5, "{what}");
        assert!(matches!(reserve(&store, "late", &sets), Err(StoreError::Exhausted { .. })), "{what}");
    }
}

#[test]
fn a_file_torn_at_any_byte_gives_nothing_twice_and_loses_nothing() {
    let worn = Worn::new();
    for file in ["allocator-0.json", "attachments/a@eth0"] {
        let whole = fs::read(worn.path(file)).unwrap();
        for length in 0..whole.len() {
            let harm = |worn: &Worn| fs::write(worn.path(file), &whole[..length]).unwrap();
            worn.survives(harm, &format!("{file} torn at {length}"));
        }
    }
}

#[test]
fn an_altered_byte_gives_nothing_twice_and_loses_nothing() {
    let worn = Worn::new();
    for file in ["allocator-0.json", "attachments/a@eth0"] {
        let whole = fs::read(worn.path(file)).unwrap();
        for (index, bit) in (0..whole.len()).flat_map(|index| [0x01, 0x04, 0x80].map(|bit| (index, bit))) {
            let mut altered = whole.clone();
            altered[index] ^= bit;
            let harm = |worn: &Worn| fs::write(worn.path(file), &altered).unwrap();
            worn.survives(harm, &format!("{file}: {}", String::from_utf8_lossy(&altered)));
        }
    }
}

#[test]
fn an_entry_that_leads_elsewhere_gives_nothing_twice_and_loses_nothing() {
    let worn = Worn::new();
    for (entry, targets) in [
        ("released-0/1", ["10.0.0.2", "10.0.0.77", "fd00::2", "../../nowhere", "10.0.0.5/29"]),
        ("addresses/10.0.0.5", ["../released-0/77", "../released-7/1", "../attachments", "../attachments/x@y", "x"]),
    ] {
        for target in targets {
            let harm = |worn: &Worn| {
                let path = worn.path(entry);
                fs::remove_file(&path).unwrap();
                symlink(target, &path).unwrap();
            };
            worn.survives(harm, &format!("{entry} -> {target}"));
        }
    }
    for file in ["allocator-0.json", "released-0/1", "addresses/10.0.0.5"] {
        worn.survives(|worn| fs::remove_file(worn.path(file)).unwrap(), &format!("{file} removed"));
    }
    for content in [
        r#"{"version":2,"ranges":"10.0.0.1-10.0.0.6","last":"10.0.0.6","head":0,"tail":18446744073709551615}"#,
        r#"{"version":2,"ranges":"10.0.0.1-10.0.0.6","last":"10.0.0.6","head":18446744073709551615,"tail":18446744073709551615}"#,
        r#"{"version":2,"ranges":"10.0.0.1-10.0.0.6","last":"10.0.0.6","head":9,"tail":2}"#,
        r#"{"version":3,"ranges":"10.0.0.1-10.0.0.6","last":"10.0.0.6","head":1,"tail":2,"more":true}"#,
    ] {
        worn.survives(|worn| fs::write(worn.path("allocator-0.json"), content).unwrap(), content);
    }
}

#[test]
fn a_record_of_another_attachment_in_ones_place_is_not_believed() {
    let worn = Worn::new();
    let store = store(&worn.directory, BOOT);
    fs::copy(worn.path("attachments/a@eth0"), worn.path("attachments/c@eth0")).unwrap();
    let error = store.read(&record(&store, "c").key).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

/// As the release that had only bridges wrote it.
const VERSION_1: &str = r#"{"version":1,"bootId":"786e34df-2b17-43ec-a752-2a9c03c61333","state":"active","network":"net",
"containerId":"old","ifname":"eth0","netns":"/run/netns/cni-5b1e","pod":{"namespace":"default","name":"app","uid":"u"},
"bridge":"kl0","hostInterface":"klb7d6ac4c51cec","hostMac":"6e:43:c4:58:2a:f3","containerMac":"6a:6c:0a:00:00:02",
"mtu":1500,"addresses":[{"address":"10.0.0.2/29","gateway":"10.0.0.1","set":0}],
"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}],"createdAtSeconds":1795247075}"#;

#[test]
fn the_previous_format_is_read_and_undone_beside_the_new_one() {
    let directory = directory();
    let store = store(&directory, BOOT);
    let boot = directory.path().join("net").join(BOOT);
    fs::write(boot.join("attachments/old@eth0"), VERSION_1).unwrap();
    symlink("../attachments/old@eth0", boot.join("addresses/10.0.0.2")).unwrap();
    let allocator = r#"{"version":1,"ranges":"10.0.0.1-10.0.0.6","last":"10.0.0.2","head":0,"tail":0}"#;
    fs::write(boot.join("allocator-0.json"), allocator).unwrap();
    let sets = sets(&["10.0.0.0/29"]);
    let new = reserve(&store, "new", &sets).unwrap();
    assert_eq!(addresses(&new), ["10.0.0.3/29"]);
    let old =
        store.read(&AttachmentKey { container_id: "old".to_owned(), ifname: "eth0".to_owned() }).unwrap().unwrap();
    assert_eq!((old.version, old.kind, old.netns_identity, old.masquerade), (1, Kind::Bridge, None, false));
    assert_eq!(addresses(&old), ["10.0.0.2/29"]);
    let error = request(&store, "b", &sets, &["10.0.0.2".parse().unwrap()], Duration::ZERO).unwrap_err();
    assert!(error.to_string().ends_with("it is in use by default/app"), "{error}");
    store.release(&old).unwrap();
    let given: Vec<_> = ["b", "c", "d", "e"].map(|id| addresses(&reserve(&store, id, &sets).unwrap()).concat()).into();
    assert_eq!(given, ["10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29", "10.0.0.2/29"]);
}
