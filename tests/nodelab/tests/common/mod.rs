//! What the node tests share.

use std::{
    path::{Path, PathBuf},
    thread::available_parallelism,
};

use keelson_testkit::{is_root, missing, workspace_root};

/// Where `cargo build` puts the suite's programs: beside nodelab.
pub(crate) fn programs() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_nodelab")).parent().unwrap().to_owned()
}

#[allow(dead_code, reason = "not every test program reads them itself")]
pub(crate) fn samples() -> PathBuf {
    workspace_root().join("daemonset/samples")
}

/// What this machine lacks for a lab, or nothing.
pub(crate) fn lacks() -> String {
    let programs = missing(&["runc", "busybox", "mkfs.ext4", "nft", "losetup"]);
    if !is_root() {
        "needs root".to_owned()
    } else if !programs.is_empty() {
        format!("needs {}", programs.join(", "))
    } else if available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        "needs 2 CPUs".to_owned()
    } else {
        String::new()
    }
}
