//! The real csi-sanity against the real driver. Nothing but one wrong spec is excluded by hand: what isn't advertised it
//! skips itself, and here is what that may be.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    process::Command,
};

use common::{MIB, Place, Running, disk::Disk, has_sys_resource};
use keelson_testkit::Tool;
use tempfile::TempDir;

/// Why csi-sanity skips how many of its specs. A capability that is newly advertised takes lines away.
const SKIPPED: [(&str, usize); 4] = [
    ("Controller Publish, UnpublishVolume not supported", 2),
    ("ControllerExpandVolume not supported", 3),
    ("ControllerPublishVolume not supported", 7),
    ("ControllerUnpublishVolume not supported", 1),
];

/// A directory's size is unknown, and it can't be copied as of one instant.
const SKIPPED_OF_DIRECTORIES: [(&str, usize); 8] = [
    ("CreateSnapshot not supported", 5),
    ("DeleteSnapshot not supported", 3),
    ("GetSnapshot not supported", 3),
    ("GroupControllerService not supported", 6),
    ("ListSnapshots not supported", 7),
    ("Snapshot not supported", 2),
    ("Volume Cloning not supported", 2),
    ("capacity of the volume is unknown", 1),
];

/// The one spec that is left out: it compares the topology of a snapshot with the node's by Go's reflection, which also
/// sees what the library keeps in a message that was sent before; so whoever tells the topology of a snapshot fails.
/// `kernel_snapshots` looks at the same.
const WRONG: &str = "should succeed when creating a snapshot with accessibility requirements";

/// A filesystem that can grow here, and a size for it: of ext4 only who has CAP_SYS_RESOURCE can let it.
fn growing() -> (&'static str, i64) {
    if has_sys_resource() { ("ext4", 64 * MIB) } else { ("xfs", 320 * MIB) }
}

/// A filesystem of its own for the pool. Its file lies elsewhere: what is left in the place is looked at.
fn disk(place: &Place, filesystem: &str) -> (Disk, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::make(&directory.path().join("disk"), filesystem, 8 << 30, &place.path("pool"));
    (disk, directory)
}

/// Returns from the calling test where there is no such filesystem.
macro_rules! needs_filesystem {
    ($name:literal) => {
        needs_a_kernel!();
        let program = concat!("mkfs.", $name);
        keelson_testkit::skip_unless!(keelson_testkit::missing(&[program]).is_empty(), format!("needs {program}"));
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        keelson_testkit::skip_unless!(
            known.contains(concat!("\t", $name, "\n")),
            concat!("the kernel has no ", $name).to_owned()
        );
    };
}

/// Runs csi-sanity; exactly `passed` specs pass, and beside [`SKIPPED`] only `skipped` are skipped.
async fn sanity(kind: &str, access: &str, passed: usize, skipped: &[(&str, usize)]) {
    sanity_in(&Place::new(), kind, access, passed, skipped).await;
}

/// The same in a place whose pool lies on a filesystem of its own.
async fn sanity_on(filesystem: &str, kind: &str, access: &str, passed: usize) {
    let place = Place::new();
    let _disk = disk(&place, filesystem);
    sanity_in(&place, kind, access, passed, &[]).await;
}

async fn sanity_in(place: &Place, kind: &str, access: &str, passed: usize, skipped: &[(&str, usize)]) {
    let tools = tokio::task::spawn_blocking(|| Tool::CsiSanity.ensure()).await.unwrap().unwrap();
    let mut section = place.section(kind);
    // All that there is; without it, the health calls are skipped.
    section["volumeHealth"] = serde_json::json!(true);
    let driver = Running::start(place, &section).await;
    let (filesystem, bytes) = if kind == "image" && access == "mount" { growing() } else { ("", 64 * MIB) };
    let parameters = place.path("parameters.yaml");
    fs::write(&parameters, format!("csi.storage.k8s.io/fstype: \"{filesystem}\"\n")).unwrap();
    let mutable_parameters = place.path("mutable-parameters.yaml");
    // A directory has nothing that could be set.
    let text = if kind == "image" { "readAheadKiB: \"256\"\ndirectIo: \"false\"\n" } else { "{}\n" };
    fs::write(&mutable_parameters, text).unwrap();
    let mut command = Command::new(tools.join("csi-sanity"));
    command
        .arg(format!("-csi.endpoint=unix://{}", place.socket().display()))
        .arg(format!("-csi.mountdir={}", place.text("csi-mount")))
        .arg(format!("-csi.stagingdir={}", place.text("csi-staging")))
        .arg(format!("-csi.testvolumeaccesstype={access}"))
        .arg(format!("-csi.testvolumesize={bytes}"))
        .arg(format!("-csi.testvolumeexpandsize={}", 2 * bytes))
        .arg(format!("-csi.testvolumeparameters={}", parameters.display()))
        .arg(format!("-csi.testvolumemutableparameters={}", mutable_parameters.display()))
        .args(["-ginkgo.v", "-ginkgo.no-color"])
        .arg(format!("-ginkgo.skip={WRONG}"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "csi-sanity of {kind}, {access}: {text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut reasons = BTreeMap::<&str, usize>::new();
    for line in text.lines() {
        // Sample: "  [SKIPPED] Snapshot not supported", and then "  [SKIPPED] in [It] - " with its place in the source.
        let reason = line.trim_start().strip_prefix("[SKIPPED] ").filter(|reason| !reason.starts_with("in ["));
        if let Some(reason) = reason {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    // Sample: "SUCCESS! -- 41 Passed | 0 Failed | 1 Pending | 53 Skipped". The pending one is csi-sanity's own.
    let summary = text.lines().find(|line| line.contains(" Passed | ")).unwrap_or("no summary");
    // Not by a macro: what those print is kept back when a test succeeds.
    io::stderr().write_all(format!("csi-sanity, {kind} pool, {access}: {summary}\n").as_bytes()).unwrap();
    assert_eq!(reasons, SKIPPED.iter().chain(skipped).copied().collect());
    // What is wrong has no reason of its own.
    let skipped = reasons.values().sum::<usize>() + 1;
    let expected = format!("SUCCESS! -- {passed} Passed | 0 Failed | 1 Pending | {skipped} Skipped");
    assert_eq!(summary, expected);
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_mounts_on_an_image_pool() {
    needs_a_kernel!();
    sanity("image", "mount", 88, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_mounts_on_an_image_pool_on_xfs() {
    needs_filesystem!("xfs");
    sanity_on("xfs", "image", "mount", 88).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_mounts_on_an_image_pool_on_btrfs() {
    needs_filesystem!("btrfs");
    sanity_on("btrfs", "image", "mount", 88).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_mounts_on_a_subvolume_pool() {
    needs_filesystem!("btrfs");
    sanity_on("btrfs", "subvolume", "mount", 88).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_mounts_on_a_directory_pool() {
    needs_a_kernel!();
    sanity("directory", "mount", 59, &SKIPPED_OF_DIRECTORIES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_uses_block_on_an_image_pool() {
    needs_a_kernel!();
    sanity("image", "block", 88, &[]).await;
}
