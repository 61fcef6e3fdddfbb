//! The real csi-sanity against the real driver. Nothing is excluded by hand: what isn't advertised it skips itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::{MIB, Place, Running};
use keelson_testkit::Tool;

async fn sanity(kind: &str, access: &str) {
    let tools = tokio::task::spawn_blocking(|| Tool::CsiSanity.ensure()).await.unwrap().unwrap();
    let place = Place::new();
    let driver = Running::start(&place, &place.section(kind)).await;
    let mut command = Command::new(tools.join("csi-sanity"));
    command
        .arg(format!("-csi.endpoint=unix://{}", place.socket().display()))
        .arg(format!("-csi.mountdir={}", place.text("csi-mount")))
        .arg(format!("-csi.stagingdir={}", place.text("csi-staging")))
        .arg(format!("-csi.testvolumeaccesstype={access}"))
        .arg(format!("-csi.testvolumesize={}", 64 * MIB))
        .arg(format!("-csi.testvolumeexpandsize={}", 128 * MIB))
        .args(["-ginkgo.v", "-ginkgo.no-color"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "csi-sanity of {kind}, {access}: {text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Sample: "Ran 41 of 95 Specs in 3.141 seconds", "SUCCESS! -- 41 Passed | 0 Failed | 1 Pending | 53 Skipped".
    println!("csi-sanity, {kind} pool, {access}:");
    let summary = |line: &&str| line.starts_with("Ran ") || line.contains(" Passed | ");
    for line in text.lines().filter(summary) {
        println!("  {line}");
    }
    let mut reasons = std::collections::BTreeMap::<&str, usize>::new();
    for line in text.lines() {
        // Sample: "  [SKIPPED] Snapshot not supported", and then "  [SKIPPED] in [It] - " with its place in the source.
        let reason = line.trim_start().strip_prefix("[SKIPPED] ").filter(|reason| !reason.starts_with("in ["));
        if let Some(reason) = reason {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    for (reason, count) in reasons {
        println!("  skipped {count}: {reason}");
    }
    assert!(text.contains(" 0 Failed "), "{text}");
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_mounts_on_an_image_pool() {
    needs_a_kernel!();
    sanity("image", "mount").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_mounts_on_a_directory_pool() {
    needs_a_kernel!();
    sanity("directory", "mount").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_uses_block_on_an_image_pool() {
    needs_a_kernel!();
    sanity("image", "block").await;
}
