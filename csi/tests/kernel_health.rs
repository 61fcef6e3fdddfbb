//! Each reason of the health calls, made for real, and gone when its cause is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{
    MIB, Place, Running, block, capability,
    disk::{Disk, run},
    expect_code, mounted, mounted_with, publication, request,
};
use keelson_proto::csi::v1::{
    ControllerGetCapabilitiesRequest, ControllerGetVolumeHealthRequest, ControllerListVolumeHealthRequest,
    NodeGetCapabilitiesRequest, NodeGetStorageHealthRequest, NodeGetVolumeHealthRequest, StorageHealthErrorType,
    VolumeCapability, VolumeHealth, VolumeHealthErrorType,
    volume_capability::{AccessType, MountVolume, access_mode::Mode},
};
use keelson_testkit::{missing, skip_unless, wait_until_async};
use serde_json::json;
use tonic::{Code, Status};

/// The reasons and statuses of one volume; the node and the controller say the same.
async fn of(driver: &mut Running, id: &str) -> Vec<(String, VolumeHealthErrorType)> {
    let request = NodeGetVolumeHealthRequest { volume_id: id.to_owned(), ..NodeGetVolumeHealthRequest::default() };
    let node = driver.node.node_get_volume_health(request).await.unwrap().into_inner().volume_health.unwrap();
    let request =
        ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..ControllerGetVolumeHealthRequest::default() };
    let controller = driver.controller.controller_get_volume_health(request).await.unwrap().into_inner();
    assert_eq!(controller.volume_health.unwrap(), node);
    assert_eq!(node.volume_id, id);
    node.health_statuses
        .iter()
        .map(|entry| {
            assert!(!entry.message.is_empty());
            (entry.reason.clone(), entry.status())
        })
        .collect()
}

async fn list(driver: &mut Running, token: &str, max_entries: i32) -> Result<(Vec<VolumeHealth>, String), Status> {
    let starting_token = token.to_owned();
    let request = ControllerListVolumeHealthRequest {
        max_entries,
        starting_token,
        ..ControllerListVolumeHealthRequest::default()
    };
    let page = driver.controller.controller_list_volume_health(request).await?.into_inner();
    Ok((page.entries, page.next_token))
}

/// The reasons and statuses of the pools.
async fn storage(driver: &mut Running) -> Vec<(String, StorageHealthErrorType)> {
    let answer = driver.node.node_get_storage_health(NodeGetStorageHealthRequest::default()).await.unwrap();
    answer
        .into_inner()
        .backend_health
        .iter()
        .map(|entry| {
            assert!(!entry.message.is_empty());
            (entry.reason.clone(), entry.status())
        })
        .collect()
}

#[track_caller]
fn expect<T: PartialEq + std::fmt::Debug>(found: &[(String, T)], reason: &str, status: T) {
    assert_eq!(found, [(reason.to_owned(), status)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_an_image_is_told_and_only_as_long_as_it_is_so() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        ids.push(driver.create(request(name, 16 * MIB, mounted())).await.unwrap().volume_id);
    }
    ids.sort();
    let image = |id: &str| place.path("pool/volumes").join(id).join("image");
    assert_eq!(list(&mut driver, "", 0).await.unwrap(), (vec![], String::new()));
    assert_eq!(storage(&mut driver).await, []);

    let (gone, short, lost) = (&ids[0], &ids[1], &ids[2]);
    fs::rename(image(gone), place.path("kept")).unwrap();
    let shorten = |bytes: u64| OpenOptions::new().write(true).open(image(short)).unwrap().set_len(bytes).unwrap();
    let contents = fs::read(image(short)).unwrap();
    shorten(8 << 20);
    let raw = OpenOptions::new().read(true).write(true).open(image(lost)).unwrap();
    let mut superblock = vec![0; 4096];
    raw.read_exact_at(&mut superblock, 0).unwrap();
    raw.write_all_at(&[0; 4096], 0).unwrap();

    expect(&of(&mut driver, gone).await, "ImageMissing", VolumeHealthErrorType::DataLoss);
    expect(&of(&mut driver, short).await, "ImageTruncated", VolumeHealthErrorType::DataLoss);
    expect(&of(&mut driver, lost).await, "FilesystemLost", VolumeHealthErrorType::DataLoss);
    assert_eq!(of(&mut driver, &ids[3]).await, []);
    // Also once its stage has failed.
    for id in &ids[..3] {
        assert!(driver.stage(id, &place.text("staging"), mounted()).await.is_err());
        assert_eq!(of(&mut driver, id).await.len(), 1);
    }
    // Pages hold the abnormal ones only.
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let (entries, next) = list(&mut driver, &token, 2).await.unwrap();
        assert!(entries.len() <= 2);
        seen.extend(entries.into_iter().map(|entry| entry.volume_id));
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ids[..3]);
    expect_code(list(&mut driver, "not a token", 0).await, Code::Aborted);
    expect_code(list(&mut driver, "", -1).await, Code::InvalidArgument);

    fs::rename(place.path("kept"), image(gone)).unwrap();
    shorten(16 << 20);
    fs::write(image(short), contents).unwrap();
    raw.write_all_at(&superblock, 0).unwrap();
    drop(raw);
    assert_eq!(list(&mut driver, "", 0).await.unwrap().0, []);
    for id in &ids {
        assert_eq!(of(&mut driver, id).await, []);
        driver.delete(id).await.unwrap();
    }
    let unknown = NodeGetVolumeHealthRequest { volume_id: ids[0].clone(), ..NodeGetVolumeHealthRequest::default() };
    expect_code(driver.node.node_get_volume_health(unknown).await, Code::NotFound);
    let none = NodeGetVolumeHealthRequest::default();
    expect_code(driver.node.node_get_volume_health(none).await, Code::InvalidArgument);
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_told() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let id = driver.create(request("a", 0, mounted())).await.unwrap().volume_id;
    driver.stop().await;
    let record = place.path("pool/volumes").join(&id).join("volume.json");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, "{").unwrap();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    expect(&of(&mut driver, &id).await, "RecordDamaged", VolumeHealthErrorType::Inaccessible);
    let (entries, _) = list(&mut driver, "", 0).await.unwrap();
    assert_eq!(entries.into_iter().map(|entry| entry.volume_id).collect::<Vec<_>>(), std::slice::from_ref(&id));
    driver.stop().await;
    fs::write(&record, whole).unwrap();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    assert_eq!(of(&mut driver, &id).await, []);
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

fn mounted_as(filesystem: &str) -> VolumeCapability {
    let mount = MountVolume { fs_type: filesystem.to_owned(), ..MountVolume::default() };
    capability(AccessType::Mount(mount), Mode::SingleNodeWriter)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_ceased_to_work_is_told() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs", "xfs_io", "e2fsck"]).is_empty(), "needs xfsprogs and e2fsprogs");
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(request("a", 16 * MIB, mounted())).await.unwrap().volume_id;
    // What was asked for is no fault.
    driver.stage(&id, &staging, mounted_with(&["ro"], Mode::SingleNodeWriter)).await.unwrap();
    assert_eq!(of(&mut driver, &id).await, []);
    driver.unstage(&id, &staging).await.unwrap();
    driver.stage(&id, &staging, mounted()).await.unwrap();
    assert_eq!(of(&mut driver, &id).await, []);
    run(Command::new("mount").args(["-o", "remount,ro", &staging]));
    expect(&of(&mut driver, &id).await, "FilesystemReadOnly", VolumeHealthErrorType::Degraded);
    run(Command::new("mount").args(["-o", "remount,rw", &staging]));
    assert_eq!(of(&mut driver, &id).await, []);

    // As ext4 records an error that it finds; the default is to go on.
    let [number] = place.loops()[..] else { panic!("not one loop device") };
    fs::write(format!("/sys/fs/ext4/loop{number}/trigger_fs_error"), "on purpose").unwrap();
    // The kernel counts it in the background.
    wait_until_async("the error to be counted", Duration::from_secs(30), async || {
        (!of(&mut driver, &id).await.is_empty()).then_some(())
    })
    .await;
    expect(&of(&mut driver, &id).await, "FilesystemErrors", VolumeHealthErrorType::Degraded);
    driver.unstage(&id, &staging).await.unwrap();
    // Not mounted it is not seen; staged again it is there.
    driver.stage(&id, &staging, mounted()).await.unwrap();
    expect(&of(&mut driver, &id).await, "FilesystemErrors", VolumeHealthErrorType::Degraded);
    driver.unstage(&id, &staging).await.unwrap();
    let image = place.path("pool/volumes").join(&id).join("image");
    // 1: errors corrected.
    assert!(Command::new("e2fsck").arg("-fy").arg(&image).output().unwrap().status.code() <= Some(1));
    driver.stage(&id, &staging, mounted()).await.unwrap();
    assert_eq!(of(&mut driver, &id).await, []);
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();

    let id = driver.create(request("b", 320 * MIB, mounted_as("xfs"))).await.unwrap().volume_id;
    driver.stage(&id, &staging, mounted_as("xfs")).await.unwrap();
    run(Command::new("xfs_io").args(["-x", "-c", "shutdown", &staging]));
    expect(&of(&mut driver, &id).await, "FilesystemShutDown", VolumeHealthErrorType::Inaccessible);
    driver.unstage(&id, &staging).await.unwrap();
    driver.stage(&id, &staging, mounted_as("xfs")).await.unwrap();
    assert_eq!(of(&mut driver, &id).await, []);
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_lost_its_image_is_told() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    let id = driver.create(request("a", MIB, block())).await.unwrap().volume_id;
    driver.stage(&id, &staging, block()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
    assert_eq!(of(&mut driver, &id).await, []);
    let [number] = place.loops()[..] else { panic!("not one loop device") };
    run(Command::new("losetup").arg("-d").arg(format!("/dev/loop{number}")));
    expect(&of(&mut driver, &id).await, "LoopDeviceLost", VolumeHealthErrorType::Inaccessible);
    place.unmount("pods/device");
    assert_eq!(of(&mut driver, &id).await, []);
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_pool_is_told_as_long_as_it_is_so() {
    needs_a_kernel!();
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new();
    let image = directory.path().join("disk");
    let disk = Disk::make(&image, "ext4", 256 << 20, &place.path("pool"));
    let mut section = place.section("image");
    section["volumeHealth"] = json!(true);
    section["pools"][0]["reserve"] = json!("10%");
    let mut driver = Running::start(&place, &section).await;
    let id = driver.create(request("a", 16 * MIB, mounted())).await.unwrap().volume_id;
    assert_eq!(storage(&mut driver).await, []);
    assert_eq!(of(&mut driver, &id).await, []);

    let hog = place.path("pool/hog");
    run(Command::new("fallocate").args(["-l", "210M"]).arg(&hog));
    expect(&storage(&mut driver).await, "PoolFull", StorageHealthErrorType::StorageDegraded);
    fs::remove_file(&hog).unwrap();
    // Filesystems give space back in the background.
    wait_until_async("the space to come back", Duration::from_secs(30), async || {
        storage(&mut driver).await.is_empty().then_some(())
    })
    .await;

    run(Command::new("mount").args(["-o", "remount,ro"]).arg(place.path("pool")));
    expect(&storage(&mut driver).await, "PoolReadOnly", StorageHealthErrorType::StorageDegraded);
    assert_eq!(of(&mut driver, &id).await, [], "it can be read");
    run(Command::new("mount").args(["-o", "remount,rw"]).arg(place.path("pool")));
    assert_eq!(storage(&mut driver).await, []);

    drop(disk);
    expect(&storage(&mut driver).await, "PoolMissing", StorageHealthErrorType::StorageUnreachable);
    expect(&of(&mut driver, &id).await, "PoolMissing", VolumeHealthErrorType::Inaccessible);
    expect_code(list(&mut driver, "", 0).await, Code::Unavailable);
    let other = Disk::make(&directory.path().join("other"), "ext4", 64 << 20, &place.path("pool"));
    let marker = r#"{"version": 1, "uuid": "6f0c2f9e-5a57-4c0f-9a77-0d7c9d3f1a11", "kind": "image"}"#;
    fs::write(place.path("pool/keelson-pool.json"), marker).unwrap();
    expect(&storage(&mut driver).await, "WrongDisk", StorageHealthErrorType::StorageUnreachable);
    expect(&of(&mut driver, &id).await, "WrongDisk", VolumeHealthErrorType::Inaccessible);
    drop(other);
    let _disk = Disk::mount(&image, &place.path("pool"));
    assert_eq!(storage(&mut driver).await, []);
    assert_eq!(of(&mut driver, &id).await, []);
    driver.delete(&id).await.unwrap();
    driver.stop().await;
}

/// Thaws a filesystem when dropped.
struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_does_not_answer_is_told_in_time_and_holds_up_no_other() {
    needs_a_kernel!();
    skip_unless!(missing(&["fsfreeze"]).is_empty(), "needs fsfreeze");
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new();
    let _disk = Disk::make(&directory.path().join("disk"), "ext4", 256 << 20, &place.path("pool"));
    let mut section = place.section("image");
    let other = json!({"name": "other", "path": place.path("state/other"), "allowSharedFilesystem": true});
    section["pools"].as_array_mut().unwrap().push(other);
    let mut driver = Running::start(&place, &section).await;
    assert_eq!(storage(&mut driver).await, []);
    let pool = place.path("pool");
    run(Command::new("fsfreeze").arg("--freeze").arg(&pool));
    let frozen = Frozen(&pool);
    for _ in 0..2 {
        expect(&storage(&mut driver).await, "PoolNotResponding", StorageHealthErrorType::StorageUnreachable);
    }
    drop(frozen);
    wait_until_async("the pool to answer", Duration::from_secs(30), async || {
        storage(&mut driver).await.is_empty().then_some(())
    })
    .await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_calls_are_advertised_if_wanted() {
    needs_a_kernel!();
    for wanted in [false, true] {
        let place = Place::new();
        let mut section = place.section("directory");
        section["volumeHealth"] = json!(wanted);
        let mut driver = Running::start(&place, &section).await;
        let answer = driver.controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await.unwrap();
        let controller: BTreeSet<String> =
            answer.into_inner().capabilities.iter().map(|capability| format!("{capability:?}")).collect();
        let answer = driver.node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap();
        let node: BTreeSet<String> =
            answer.into_inner().capabilities.iter().map(|capability| format!("{capability:?}")).collect();
        for (all, name) in [
            (&controller, "GetVolumeHealth"),
            (&controller, "ListVolumeHealth"),
            (&node, "GetVolumeHealth"),
            (&node, "GetStorageHealth"),
        ] {
            assert_eq!(all.iter().any(|text| text.contains(name)), wanted, "{name}: {all:?}");
        }
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_fails_or_is_another_s_is_told() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs", "xfs_io", "flock"]).is_empty(), "needs xfsprogs and flock");
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new();
    let image = directory.path().join("disk");
    let disk = Disk::make(&image, "xfs", 512 << 20, &place.path("pool"));
    let mut driver = Running::start(&place, &place.section("image")).await;
    let id = driver.create(request("a", 16 * MIB, mounted())).await.unwrap().volume_id;
    assert_eq!(storage(&mut driver).await, []);
    run(Command::new("xfs_io").args(["-x", "-c", "shutdown", &place.text("pool")]));
    expect(&storage(&mut driver).await, "PoolIoErrors", StorageHealthErrorType::StorageUnreachable);
    expect(&of(&mut driver, &id).await, "PoolIoErrors", VolumeHealthErrorType::Inaccessible);
    driver.stop().await;
    drop(disk);
    let _disk = Disk::mount(&image, &place.path("pool"));

    let marker = place.path("pool/keelson-pool.json");
    let mut other = Command::new("flock").arg(&marker).args(["cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let held = || Command::new("flock").arg("-n").arg(&marker).arg("true").status().unwrap().code() == Some(1);
    wait_until_async("the other process to have it", Duration::from_secs(30), async || held().then_some(())).await;
    let mut driver = Running::start(&place, &place.section("image")).await;
    expect(&storage(&mut driver).await, "PoolInUse", StorageHealthErrorType::StorageUnreachable);
    expect(&of(&mut driver, &id).await, "PoolInUse", VolumeHealthErrorType::Inaccessible);
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(storage(&mut driver).await, []);
    assert_eq!(of(&mut driver, &id).await, []);
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}
