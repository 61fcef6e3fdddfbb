//! What a storage section may say.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::symlink, path::Path};

use keelson_csi::{PoolKind, StorageSection};
use keelson_host::{HostRoot, Node, parse_section};
use serde_json::{Value, json};

fn node(state: &Path) -> Node {
    Node { name: "node-a".to_owned(), state_dir: state.to_owned(), root: HostRoot::system() }
}

fn section(value: &Value) -> StorageSection {
    parse_section("storage", value).unwrap()
}

/// The problems of a section whose only pool is `pool`, with a directory `good` to use.
#[track_caller]
fn check_pool(pool: &Value, path: &str, wrong: &str) {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().canonicalize().unwrap();
    fs::create_dir(top.join("good")).unwrap();
    fs::write(top.join("file"), b"x").unwrap();
    symlink(top.join("good"), top.join("link")).unwrap();
    let text = pool.to_string().replace("TOP", top.to_str().unwrap());
    let pool: Value = serde_json::from_str(&text).unwrap();
    let before = tree(&top);
    let problems = section(&json!({"pools": [pool]})).validate(&node(&top.join("state"))).unwrap_err();
    let text = problems.to_string();
    assert_eq!(problems.0.len(), 1, "{text}");
    assert_eq!(problems.0[0].path, path, "{text}");
    assert!(problems.0[0].wrong.contains(wrong), "{text}");
    assert!(!problems.0[0].remedy.is_empty(), "{text}");
    assert_eq!(tree(&top), before, "nothing was changed");
}

fn tree(top: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(top).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_default_is_what_the_documentation_prints() {
    let default = serde_json::to_value(StorageSection::default()).unwrap();
    assert_eq!(
        default,
        json!({
            "driverName": "csi.keelson.dev",
            "endpoint": "unix:///var/lib/kubelet/plugins/csi.keelson.dev/csi.sock",
            "registration": {"enabled": true, "directory": "/var/lib/kubelet/plugins_registry"},
            "pools": [{
                "name": "default",
                "path": "/var/lib/keelson/pools/default",
                "kind": "image",
                "allowSharedFilesystem": true,
                "unenforcedSizes": false,
                "reserve": "1%",
                "overcommitPercent": 100,
            }],
            "volumeHealth": false,
        })
    );
    assert_eq!(section(&json!({})), StorageSection::default());
    assert_eq!(section(&default), StorageSection::default());
}

#[test]
fn the_default_pool_works_on_a_fresh_node() {
    let state = Path::new("/var/lib/keelson");
    if state.exists() {
        // This machine is no fresh node; the rule is the same below any state directory.
        let fresh = tempfile::tempdir().unwrap();
        let state = fresh.path().join("keelson");
        let pool = json!({"name": "default", "path": state.join("pools/default"), "allowSharedFilesystem": true});
        let settings = section(&json!({"pools": [pool]})).validate(&node(&state)).unwrap();
        assert!(settings.pools[0].may_create);
        return;
    }
    let settings = StorageSection::default().validate(&node(state)).unwrap();
    assert!(settings.pools[0].may_create);
    assert!(!state.exists(), "validating changes nothing");
}

#[test]
fn unknown_keys_are_named_with_the_nearest_right_one() {
    for (value, message) in [
        (json!({"pol": []}), "storage.pol: \"[]\" is the value of an unknown key; did you mean \"pools\"?"),
        (
            json!({"pools": [{"pth": "/x"}]}),
            "storage.pools[0].pth: \"/x\" is the value of an unknown key; did you mean \"path\"?",
        ),
    ] {
        assert_eq!(parse_section::<StorageSection>("storage", &value).unwrap_err().to_string(), message);
    }
    let kind = parse_section::<StorageSection>("storage", &json!({"pools": [{"kind": "zfs"}]})).unwrap_err();
    assert_eq!(kind.path, "storage.pools[0].kind");
}

#[test]
fn a_pool_that_is_right_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().canonicalize().unwrap();
    fs::create_dir(top.join("good")).unwrap();
    let path = format!("{}//good/", top.display());
    let pool = json!({"name": "fast-1", "path": path, "kind": "directory", "allowSharedFilesystem": true});
    let settings = section(&json!({"pools": [pool]})).validate(&node(&top)).unwrap();
    assert_eq!(settings.pools[0].path, top.join("good"));
    assert_eq!((settings.pools[0].kind, settings.pools[0].may_create), (PoolKind::Directory, false));
    assert_eq!(settings.socket, Path::new("/var/lib/kubelet/plugins/csi.keelson.dev/csi.sock"));
}

#[test]
fn what_is_wrong_with_a_pool_is_named_by_its_key() {
    let path = "storage.pools[0].path";
    let pool = |path: &str| json!({"name": "p", "path": path, "allowSharedFilesystem": true});
    check_pool(&pool("TOP/link"), path, "is a symbolic link");
    check_pool(&pool("TOP/file"), path, "is not a directory");
    check_pool(&pool("good"), path, "is not an absolute path");
    check_pool(&pool("/"), path, "is not an absolute path below /");
    check_pool(&pool("TOP/good/../good"), path, "without \"..\"");
    check_pool(&pool("TOP/no/such"), path, "does not exist");
    check_pool(
        &json!({"name": "P!", "path": "TOP/good", "allowSharedFilesystem": true}),
        "storage.pools[0].name",
        "contains",
    );
    check_pool(
        &json!({"name": "p", "path": "TOP/good", "overcommitPercent": 99, "allowSharedFilesystem": true}),
        "storage.pools[0].overcommitPercent",
        "is out of range",
    );
    check_pool(
        &json!({"name": "p", "path": "TOP/good", "unenforcedSizes": true, "allowSharedFilesystem": true}),
        "storage.pools[0].unenforcedSizes",
        "is not for images",
    );
}

#[test]
fn a_pool_on_everybodys_filesystem_is_refused_unless_allowed() {
    // The kubelet's directory lies below it, or would.
    let pool = json!({"name": "p", "path": "/var/lib", "allowSharedFilesystem": false});
    let problems = section(&json!({"pools": [pool]})).validate(&node(Path::new("/nonexistent"))).unwrap_err();
    assert_eq!(problems.0[0].path, "storage.pools[0].path");
    assert!(problems.0[0].remedy.contains("allowSharedFilesystem"), "{problems}");
}

#[test]
fn pools_must_differ() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().canonicalize().unwrap();
    fs::create_dir_all(top.join("a")).unwrap();
    let pool = |name: &str, path: &str| json!({"name": name, "path": top.join(path), "allowSharedFilesystem": true});
    let check = |pools: Value, path: &str| {
        let problems = section(&json!({"pools": pools})).validate(&node(&top)).unwrap_err();
        assert_eq!(problems.0[0].path, path, "{problems}");
    };
    check(json!([pool("p", "a"), pool("p", "c")]), "storage.pools[1].name");
    check(json!([pool("p", "a"), pool("q", "a")]), "storage.pools[1].path");
    check(json!([pool("p", "a"), pool("q", "a/b")]), "storage.pools[1].path");
    check(json!([]), "storage.pools");
}

#[test]
fn driver_name_endpoint_and_node_are_checked() {
    let check = |value: &Value, path: &str| {
        let problems = section(value).validate(&node(Path::new("/nonexistent"))).unwrap_err();
        assert!(problems.0.iter().any(|problem| problem.path == path), "{problems}");
    };
    check(&json!({"driverName": "csi_keelson"}), "storage.driverName");
    check(&json!({"driverName": "x".repeat(64)}), "storage.driverName");
    for endpoint in ["tcp://1.2.3.4:5", "/run/csi.sock", "unix://csi.sock", "unix:///", "unix:///a/../csi.sock"] {
        check(&json!({"endpoint": endpoint}), "storage.endpoint");
    }
    check(&json!({"endpoint": format!("unix:///{}", "x".repeat(103))}), "storage.endpoint");
    for directory in ["plugins_registry", "/", "/a/../b", "/proc/version", &format!("/{}", "x".repeat(100))] {
        check(&json!({"registration": {"directory": directory}}), "storage.registration.directory");
        let off = json!({"registration": {"directory": directory, "enabled": false}});
        let problems = section(&off).validate(&node(Path::new("/nonexistent"))).err();
        let about = |problem: &keelson_host::Problem| problem.path.starts_with("storage.registration");
        assert!(!problems.is_some_and(|problems| problems.0.iter().any(about)));
    }
    let long = Node { name: "n".repeat(64), ..node(Path::new("/nonexistent")) };
    let problems = StorageSection::default().validate(&long).unwrap_err();
    assert!(problems.0.iter().any(|problem| problem.path == "nodeName"), "{problems}");
}

#[test]
fn an_endpoint_where_no_socket_can_be_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().canonicalize().unwrap();
    fs::create_dir_all(top.join("pool")).unwrap();
    fs::create_dir(top.join("directory")).unwrap();
    fs::write(top.join("file"), b"x").unwrap();
    symlink(top.join("elsewhere"), top.join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
    let validate = |endpoint: &str| {
        let pool = json!({"name": "p", "path": top.join("pool"), "allowSharedFilesystem": true});
        let endpoint = format!("unix://{}/{endpoint}", top.display());
        section(&json!({"endpoint": endpoint, "pools": [pool]})).validate(&node(&top.join("state")))
    };
    for (endpoint, wrong) in [
        ("directory", "not a socket"),
        ("file", "not a socket"),
        ("link", "not a socket"),
        ("file/csi.sock", "not a directory"),
        ("file/deeper/csi.sock", "not a directory"),
        ("pool/csi.sock", "lies in the pool"),
    ] {
        let problems = validate(endpoint).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert_eq!(problems.0[0].path, "storage.endpoint", "{problems}");
        assert!(problems.0[0].wrong.contains(wrong), "{problems}");
    }
    for endpoint in ["socket", "new.sock", "new/deeper/csi.sock"] {
        validate(endpoint).unwrap();
    }
    assert_eq!(tree(&top.join("pool")), [""; 0]);
}

#[test]
fn a_directory_that_is_something_else_is_no_pool() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().canonicalize().unwrap();
    for name in ["state/storage/pools", "state/pools", "used", "fresh", "image"] {
        fs::create_dir_all(top.join(name)).unwrap();
    }
    fs::write(top.join("used/precious"), b"x").unwrap();
    fs::create_dir(top.join("fresh/lost+found")).unwrap();
    let marker = json!({"version": 1, "uuid": "6f0c2f9e-5a57-4c0f-9a77-0d7c9d3f1a11", "kind": "image"});
    fs::write(top.join("image/keelson-pool.json"), marker.to_string()).unwrap();
    let validate = |path: &str, kind: &str| {
        let pool = json!({"name": "p", "path": top.join(path), "kind": kind, "allowSharedFilesystem": true});
        section(&json!({"pools": [pool]})).validate(&node(&top.join("state")))
    };
    for (path, kind, key, wrong) in [
        ("used", "image", "path", "holds files and is no pool"),
        ("state", "image", "path", "own state"),
        ("", "image", "path", "own state"),
        ("state/storage", "image", "path", "own state"),
        ("state/storage/pools", "image", "path", "own state"),
        ("image", "directory", "kind", "is not the kind of the pool"),
    ] {
        let problems = validate(path, kind).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{path}: {problems}");
        assert_eq!(problems.0[0].path, format!("storage.pools[0].{key}"), "{problems}");
        assert!(problems.0[0].wrong.contains(wrong), "{problems}");
    }
    for (path, kind) in [("fresh", "directory"), ("state/pools", "image"), ("image", "image"), ("new", "image")] {
        validate(path, kind).unwrap();
    }

    // Of a pool that is remembered, what lies there while its disk is away is not judged.
    let memory = json!({
        "version": 1, "uuid": "6f0c2f9e-5a57-4c0f-9a77-0d7c9d3f1a12", "filesystemUuid": null, "path": top.join("used"),
    });
    fs::write(top.join("state/storage/pools/p.json"), memory.to_string()).unwrap();
    validate("used", "image").unwrap();
    validate("image", "directory").unwrap();
}
