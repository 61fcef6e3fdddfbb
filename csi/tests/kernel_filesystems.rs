//! Volumes with each of the filesystems.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path};

use common::{MIB, Place, Running, capability, expect_code, mounted_with, request};
use keelson_proto::csi::v1::{
    VolumeCapability,
    volume_capability::{AccessType, MountVolume, access_mode::Mode},
};
use keelson_testkit::{missing, skip_unless};
use tonic::Code;

fn of_type(filesystem: &str) -> VolumeCapability {
    let mount = MountVolume { fs_type: filesystem.to_owned(), ..MountVolume::default() };
    capability(AccessType::Mount(mount), Mode::SingleNodeWriter)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_has_the_filesystem_that_was_asked_for() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    for (filesystem, smallest) in [("ext4", 16), ("xfs", 300), ("btrfs", 128)] {
        let program = format!("mkfs.{filesystem}");
        skip_unless!(missing(&[&program]).is_empty(), format!("needs {program}"));
        let wanted = of_type(filesystem);
        let volume = driver.create(request(filesystem, MIB, wanted.clone())).await.unwrap();
        assert_eq!(volume.capacity_bytes, smallest * MIB);
        let (id, staging) = (volume.volume_id, place.text("staging"));
        // Another type is another volume.
        let other = of_type(if filesystem == "xfs" { "ext4" } else { "xfs" });
        expect_code(driver.create(request(filesystem, MIB, other)).await, Code::AlreadyExists);
        driver.stage(&id, &staging, wanted.clone()).await.unwrap();
        assert_eq!(place.mount_at("staging").unwrap().kind, filesystem);
        fs::write(place.path("staging/a"), filesystem).unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.stage(&id, &staging, wanted).await.unwrap();
        assert_eq!(fs::read_to_string(place.path("staging/a")).unwrap(), filesystem);
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    expect_code(driver.create(request("other", MIB, of_type("ext3"))).await, Code::InvalidArgument);
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_security_context_that_the_kernel_does_not_know_is_the_callers_mistake() {
    needs_a_kernel!();
    skip_unless!(!Path::new("/sys/fs/selinux/enforce").exists(), "the kernel has SELinux");
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let id = driver.create(request("pvc-1", 16 * MIB, common::mounted())).await.unwrap().volume_id;
    let context = mounted_with(&["context=\"system_u:object_r:container_file_t:s0:c1,c2\""], Mode::SingleNodeWriter);
    let status = expect_code(driver.stage(&id, &place.text("staging"), context).await, Code::InvalidArgument);
    // The level has a comma in it, and is not an option of its own.
    assert!(status.message().contains("context") && !status.message().contains("c2"), "{status}");
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}
