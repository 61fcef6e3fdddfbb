//! `keelson storage` on a node in miniature, beside the real driver and after it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use keelson_testkit::{is_root, skip_unless, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// A net for a hung test, generous on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(60);

const VOLUME: &str = "v1-0123456789abcdef0123456789abcdef";

struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    /// A node whose processes serve from `port` on.
    fn new(port: u16) -> Self {
        let node = Self { directory: tempfile::tempdir().unwrap() };
        let root = node.directory.path().canonicalize().unwrap();
        let text = format!(
            "apiVersion: keelson.dev/v1alpha1\n\
             kind: NodeConfig\n\
             nodeName: node-a\n\
             stateDir: {root}/state\n\
             observability: {{address: \"127.0.0.1:{port}\"}}\n\
             storage:\n\
             \x20 endpoint: unix://{root}/csi/csi.sock\n\
             \x20 registration: {{enabled: false}}\n\
             \x20 pools: [{{name: a, path: {root}/pool, kind: directory, allowSharedFilesystem: true}}]\n",
            root = root.display(),
        );
        for folder in ["csi", "pool"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        fs::write(node.path("config.yaml"), text).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelson"));
        command.args(arguments).arg("--config").arg(self.path("config.yaml")).env_remove("RUST_LOG");
        command
    }

    fn storage(&self, arguments: &[&str]) -> Output {
        self.command(&[&["storage"], arguments].concat()).output().unwrap()
    }

    /// What it prints for people, and the exit code.
    #[track_caller]
    fn text(&self, arguments: &[&str]) -> (String, i32) {
        let output = self.storage(arguments);
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    /// What it prints for programs, and the exit code.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> (Value, i32) {
        let output = self.storage(&[arguments, &["-o", "json"]].concat());
        (serde_json::from_slice(&output.stdout).unwrap(), output.status.code().unwrap())
    }

    fn run(&self) -> Running {
        let child = self.command(&["run", "--only", "storage"]).stderr(Stdio::null()).spawn().unwrap();
        let running = Running(child);
        wait_until("the driver to have the pool", LIMIT, || {
            let marker = fs::metadata(self.path("pool/keelson-pool.json")).ok()?.ino();
            let locks = fs::read_to_string("/proc/locks").unwrap();
            locks.lines().any(|line| line.contains("FLOCK") && line.contains(&format!(":{marker} "))).then_some(())
        });
        running
    }

    /// A volume as the driver makes them.
    fn make_volume(&self) {
        let folder = self.path("pool/volumes").join(VOLUME);
        fs::create_dir_all(folder.join("data")).unwrap();
        let record = json!({"version": 2, "id": VOLUME, "name": "pvc-1", "bytes": 1 << 20, "provisioning": "thin",
            "content": {"type": "directory"}});
        fs::write(folder.join("volume.json"), record.to_string()).unwrap();
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed.
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A port whose neighbour two above is free now, as the storage process takes that.
fn port() -> u16 {
    wait_until("a free port", LIMIT, || {
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        (port < 65_000 && TcpListener::bind(("127.0.0.1", port + 2)).is_ok()).then_some(port)
    })
}

#[test]
fn every_question_is_answered_beside_a_driver_and_without_one() {
    skip_unless!(is_root(), "not root, which the pools take");
    let node = Node::new(port());
    let (pools, code) = node.json(&["df"]);
    assert_eq!((pools[0]["state"].as_str(), code), (Some("unused"), 0));
    assert!(!node.path("state").exists(), "nothing is made");

    drop(node.run());
    node.make_volume();
    let (shown, code) = node.text(&["show", "pvc-1"]);
    assert_eq!(code, 0);
    assert!(shown.contains("no driver answers on 127.0.0.1:"), "{shown}");

    let running = node.run();
    let (pools, code) = node.json(&["df"]);
    assert_eq!((pools[0]["state"].as_str(), pools[0]["volumes"].as_u64(), code), (Some("available"), Some(1), 0));
    assert_eq!((&pools[0]["enforcesSizes"], &pools[0]["kind"]), (&json!(false), &json!("directory")));
    let total = pools[0]["space"]["totalBytes"].as_u64().unwrap();
    assert!(total >= pools[0]["space"]["freeBytes"].as_u64().unwrap());
    let (table, _) = node.text(&["df"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((lines.len(), lines[0][0], lines[0][8]), (2, "POOL", "AVAILABLE"));
    assert_eq!((lines[1][0], lines[1][1], lines[1][13]), ("a", "directory", "available"));

    let (listed, code) = node.json(&["ls"]);
    assert_eq!((listed[0]["id"].as_str(), listed[0]["name"].as_str(), code), (Some(VOLUME), Some("pvc-1"), 0));
    assert_eq!((&listed[0]["exclusiveBytes"], &listed[0]["uses"]), (&Value::Null, &json!([])));
    assert_eq!(node.json(&["ls", "snapshots"]), (json!([]), 0));
    assert_eq!(node.json(&["ls", "groups"]), (json!([]), 0));
    assert_eq!(node.text(&["ls", "groups"]).0.trim(), "ID  NAME  POOL  SNAPSHOTS  PAUSE  AGE");

    let (shown, code) = node.json(&["show", VOLUME]);
    assert_eq!(
        (shown[0]["kind"].as_str(), shown[0]["record"]["name"].as_str(), code),
        (Some("volume"), Some("pvc-1"), 0)
    );
    // The driver answered, and is at nothing.
    assert_eq!((&shown[0]["operations"], &shown[0]["operationsProblem"]), (&json!([]), &Value::Null));
    let missing = node.storage(&["show", "pvc-2"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("has the id or name \"pvc-2\""));

    assert_eq!(node.text(&["fsck"]), ("nothing is wrong; looked at 1 volumes and snapshots\n".to_owned(), 0));
    assert_eq!(node.text(&["gc"]), ("nothing to remove\n".to_owned(), 0));
    let left = node.path("pool/building/v1-00000000000000000000000000000000");
    fs::create_dir(&left).unwrap();
    let (told, code) = node.text(&["gc"]);
    assert!(told.starts_with("left alone leftover ") && told.contains("a driver uses the pool"), "{told}");
    assert!(left.exists() && code == 0);
    let (report, code) = node.json(&["fsck"]);
    assert_eq!(
        (&report["findings"][0]["severity"], &report["findings"][0]["check"], code),
        (&json!("note"), &json!("leftover"), 0)
    );

    drop(running);
    let (told, code) = node.text(&["fsck"]);
    assert!(told.starts_with("warning [leftover] pool a: ") && told.contains("    remedy: "), "{told}");
    assert_eq!(code, 1);
    assert!(node.text(&["gc", "--dry-run"]).0.starts_with("would remove leftover "));
    assert!(left.exists());
    assert!(node.text(&["gc"]).0.starts_with("removed leftover "));
    assert!(!left.exists());
    assert_eq!(node.json(&["ls"]).0[0]["id"], VOLUME);

    // Another disk than the one that is remembered.
    fs::rename(node.path("pool"), node.path("away")).unwrap();
    fs::create_dir(node.path("pool")).unwrap();
    let (report, code) = node.json(&["fsck"]);
    assert_eq!((&report["unreadPools"], code), (&json!(["a"]), 2));
    let (pools, code) = node.json(&["df"]);
    assert_eq!((pools[0]["state"].as_str(), pools[0]["volumes"].as_u64(), code), (Some("unavailable"), Some(0), 0));
    let listed = node.storage(&["ls"]);
    assert!(String::from_utf8(listed.stderr).unwrap().contains("pool a could not be read"));
    assert_eq!(fs::read_dir(node.path("pool")).unwrap().count(), 0);
}

#[test]
fn without_a_storage_section_there_is_nothing_to_ask() {
    let node = Node::new(9807);
    fs::write(node.path("config.yaml"), "apiVersion: keelson.dev/v1alpha1\nkind: NodeConfig\nnodeName: a\n").unwrap();
    for question in [&["df"][..], &["ls"], &["show", "x"], &["fsck"], &["gc"]] {
        let output = node.storage(question);
        assert_eq!(output.status.code(), Some(78), "{question:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("storage"), "{question:?}");
    }
    assert_eq!(node.storage(&["fsck", "--deadline", "5"]).status.code(), Some(2), "--deadline is for --deep");
}
