//! A plugin whose disk hangs before it could even start.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use keelson_testkit::{is_root, skip_unless, wait_until};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// A net for a hung test, generous on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(60);

/// A filesystem whose server never answers, so that whoever looks at it waits; gone when dropped.
struct HungDisk {
    point: PathBuf,
    server: Option<File>,
}

impl HungDisk {
    fn mount(point: &Path) -> Self {
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        // Documentation/filesystems/fuse.rst, "Mount options".
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("hung"), point, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { point: point.to_owned(), server: Some(server) }
    }
}

impl Drop for HungDisk {
    fn drop(&mut self) {
        // Without a server every call on it fails at once.
        drop(self.server.take());
        umount2(&self.point, MntFlags::MNT_DETACH).unwrap();
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: keelson\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_disk_that_hangs_at_the_start_leaves_health_and_a_stop() {
    skip_unless!(is_root(), "mounting needs root");
    skip_unless!(Path::new("/dev/fuse").exists(), "this kernel has no FUSE");
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for folder in ["csi", "pool"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    let config = root.join("config.yaml");
    let text = format!(
        "apiVersion: keelson.dev/v1alpha1\n\
         kind: NodeConfig\n\
         nodeName: node-a\n\
         stateDir: {root}/state\n\
         observability: {{address: \"127.0.0.1:0\"}}\n\
         storage:\n\
         \x20 endpoint: unix://{root}/csi/csi.sock\n\
         \x20 registration: {{enabled: false}}\n\
         \x20 pools: [{{name: a, path: {root}/pool, kind: directory, allowSharedFilesystem: true}}]\n",
        root = root.display()
    );
    fs::write(&config, text).unwrap();
    let _disk = HungDisk::mount(&root.join("pool"));
    let log = root.join("log");
    let child = Command::new(env!("CARGO_BIN_EXE_keelson"))
        .args(["run", "--only", "storage", "--config"])
        .arg(&config)
        .env_remove("CSI_ENDPOINT")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut keelson = Running(child);
    let address = wait_until("the address of storage", LIMIT, || {
        let ended = keelson.0.try_wait().unwrap();
        let text = fs::read_to_string(&log).unwrap();
        assert!(ended.is_none(), "{ended:?}:\n{text}");
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.into_iter().find_map(|event| event["address"].as_str().map(str::to_owned))
    });
    assert!(get(&address, "/healthz").starts_with("HTTP/1.1 200 "));
    let readiness = get(&address, "/readyz");
    assert!(readiness.starts_with("HTTP/1.1 503 "), "{readiness}");
    assert!(readiness.contains("storage: not ready: starting: looking at the node"), "{readiness}");
    assert!(get(&address, "/metrics").contains("keelson_build_info"));
    kill(Pid::from_raw(i32::try_from(keelson.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    let status = wait_until("the end after SIGTERM", LIMIT, || keelson.0.try_wait().unwrap());
    assert!(status.success(), "{status}: {}", fs::read_to_string(&log).unwrap());
}
