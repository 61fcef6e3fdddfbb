//! What the calls of the driver do to the kernel and to the bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    process::Command,
    time::Duration,
};

use common::{MIB, Place, Running, block, capability, expect_code, mounted, mounted_with, publication, request};
use keelson_proto::csi::v1::{
    DeleteVolumeRequest, NodeGetVolumeStatsRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeUsage,
    volume_capability::{AccessType, BlockVolume, access_mode::Mode},
    volume_usage::Unit,
};
use keelson_testkit::{missing, skip_unless};
use tonic::Code;

const BYTES: u64 = 67_108_864;

/// A file in /sys of the loop device.
fn attribute(number: u32, name: &str) -> String {
    fs::read_to_string(format!("/sys/block/loop{number}/{name}")).unwrap().trim().to_owned()
}

async fn usage(driver: &mut Running, id: &str, path: &str) -> Result<Vec<VolumeUsage>, tonic::Status> {
    let request = NodeGetVolumeStatsRequest {
        volume_id: id.to_owned(),
        volume_path: path.to_owned(),
        ..NodeGetVolumeStatsRequest::default()
    };
    Ok(driver.node.node_get_volume_stats(request).await?.into_inner().usage)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_volume_from_creation_to_deletion_with_every_call_made_twice() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));

    let volume = driver.create(request("pvc-1", 64 * MIB, mounted())).await.unwrap();
    assert_eq!(volume, driver.create(request("pvc-1", 64 * MIB, mounted())).await.unwrap());
    assert_eq!(volume.capacity_bytes, 64 * MIB);
    let id = &volume.volume_id;
    assert_eq!(&place.volumes(), std::slice::from_ref(id));
    let image = place.path("pool/volumes").join(id).join("image");
    assert_eq!(fs::metadata(&image).unwrap().len(), BYTES);

    for _ in 0..2 {
        driver.stage(id, &staging, mounted()).await.unwrap();
        driver.publish(publication(id, &staging, &target, mounted())).await.unwrap();
    }
    let mount = place.mount_at("pods/mount").unwrap();
    assert_eq!(mount.kind, "ext4");
    assert!(["nosuid", "nodev"].iter().all(|option| mount.options.contains(&(*option).to_owned())), "{mount:?}");
    assert_eq!(place.mounts().len(), 2, "no mount is stacked: {:?}", place.mounts());
    let [number] = place.loops()[..] else { panic!("not one loop device: {:?}", place.loops()) };
    assert_eq!(mount.device, (7, number));
    assert_eq!(attribute(number, "size").parse::<u64>().unwrap() * 512, BYTES);
    assert_eq!(attribute(number, "loop/autoclear"), "0");

    fs::write(place.path("pods/mount/file"), b"what was written").unwrap();
    let [bytes, inodes] = &usage(&mut driver, id, &target).await.unwrap()[..] else { panic!("two usages") };
    assert_eq!((bytes.unit, inodes.unit), (Unit::Bytes.into(), Unit::Inodes.into()));
    // The filesystem keeps some of its bytes to itself, and ext4 some more for extents that are still to be written.
    assert!(bytes.total > 48 * MIB && bytes.total <= 64 * MIB, "{bytes:?}");
    assert!(bytes.available > 40 * MIB && bytes.used + bytes.available <= bytes.total, "{bytes:?}");
    assert_eq!(inodes.used + inodes.available, inodes.total);
    expect_code(usage(&mut driver, id, &place.text("pods")).await, Code::NotFound);

    expect_code(driver.delete(id).await, Code::FailedPrecondition);
    expect_code(driver.unstage(id, &staging).await, Code::FailedPrecondition);
    for _ in 0..2 {
        driver.unpublish(id, &target).await.unwrap();
        assert!(!place.path("pods/mount").exists());
    }
    for _ in 0..2 {
        driver.unstage(id, &staging).await.unwrap();
    }
    assert_eq!(place.mounts(), []);

    // The bytes are still there, elsewhere.
    driver.stage(id, &staging, mounted()).await.unwrap();
    driver.publish(publication(id, &staging, &place.text("pods/other"), mounted())).await.unwrap();
    assert_eq!(fs::read(place.path("pods/other/file")).unwrap(), b"what was written");
    driver.unpublish(id, &place.text("pods/other")).await.unwrap();
    driver.unstage(id, &staging).await.unwrap();
    for _ in 0..2 {
        driver.delete(id).await.unwrap();
    }
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_volume_is_a_bind_mount() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let capability = || mounted_with(&["noexec"], Mode::SingleNodeMultiWriter);
    let volume = driver.create(request("pvc-1", 64 * MIB, capability())).await.unwrap();
    // Nothing enforces a size here, so none is promised.
    assert_eq!(volume.capacity_bytes, 0);
    let id = &volume.volume_id;
    driver.stage(id, &staging, capability()).await.unwrap();
    driver.publish(publication(id, &staging, &target, capability())).await.unwrap();
    fs::write(place.path("pods/mount/file"), b"x").unwrap();
    let data = place.path("pool/volumes").join(id).join("data/file");
    assert_eq!(fs::read(data).unwrap(), b"x");
    let mount = place.mount_at("pods/mount").unwrap();
    assert!(["noexec", "nosuid", "nodev"].iter().all(|option| mount.options.contains(&(*option).to_owned())));

    let second = place.text("pods/second");
    let read_only = keelson_proto::csi::v1::NodePublishVolumeRequest {
        readonly: true,
        ..publication(id, &staging, &second, capability())
    };
    driver.publish(read_only).await.unwrap();
    let refused = fs::write(place.path("pods/second/file"), b"y").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read(place.path("pods/second/file")).unwrap(), b"x");

    assert_eq!(usage(&mut driver, id, &target).await.unwrap().len(), 2);
    expect_code(driver.delete(id).await, Code::FailedPrecondition);
    driver.unpublish(id, &target).await.unwrap();
    driver.unpublish(id, &second).await.unwrap();
    driver.unstage(id, &staging).await.unwrap();
    driver.delete(id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_block_volume_is_a_device_of_its_exact_size() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    let volume = driver.create(request("pvc-1", 64 * MIB, block())).await.unwrap();
    let id = &volume.volume_id;
    driver.stage(id, &staging, block()).await.unwrap();
    for _ in 0..2 {
        driver.publish(publication(id, &staging, &target, block())).await.unwrap();
    }
    let found = fs::metadata(&target).unwrap();
    assert!(found.file_type().is_block_device());
    let [number] = place.loops()[..] else { panic!("not one loop device: {:?}", place.loops()) };
    assert_eq!(found.rdev(), nix::sys::stat::makedev(7, number.into()));
    assert_eq!(attribute(number, "size").parse::<u64>().unwrap() * 512, BYTES);
    let usage = usage(&mut driver, id, &target).await.unwrap();
    assert_eq!(usage.iter().map(|usage| usage.total).collect::<Vec<_>>(), [64 * MIB]);

    let mut device = OpenOptions::new().write(true).open(&target).unwrap();
    device.write_all(&[0x5a; 8192]).unwrap();
    device.sync_all().unwrap();
    drop(device);
    // The last close took nothing away.
    assert_eq!(place.loops(), [number]);
    let mut image = File::open(place.path("pool/volumes").join(id).join("image")).unwrap();
    let mut bytes = [0; 8192];
    image.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [0x5a; 8192]);

    driver.unpublish(id, &target).await.unwrap();
    assert!(!Path::new(&target).exists());
    driver.unstage(id, &staging).await.unwrap();
    driver.delete(id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_block_device_refuses_writes() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    let writer = capability(AccessType::Block(BlockVolume {}), Mode::SingleNodeMultiWriter);
    let volume = driver.create(request("pvc-1", MIB, writer.clone())).await.unwrap();
    let id = &volume.volume_id;
    driver.stage(id, &staging, writer.clone()).await.unwrap();
    let mut read_only = publication(id, &staging, &target, writer.clone());
    read_only.readonly = true;
    driver.publish(read_only).await.unwrap();
    driver.publish(publication(id, &staging, &place.text("pods/writable"), writer)).await.unwrap();
    // The kernel refuses at the latest when it is written to.
    let write = |path: &Path| OpenOptions::new().write(true).open(path)?.write_all(&[1; 4096]);
    assert_eq!(write(Path::new(&target)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    File::open(&target).unwrap();
    write(&place.path("pods/writable")).unwrap();
    for path in [&target, &place.text("pods/writable")] {
        driver.unpublish(id, path).await.unwrap();
    }
    driver.unstage(id, &staging).await.unwrap();
    driver.delete(id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_publication_follows_the_specs_table() {
    needs_a_kernel!();
    for (mode, second) in [
        (Mode::SingleNodeWriter, Some(Code::FailedPrecondition)),
        (Mode::SingleNodeSingleWriter, Some(Code::FailedPrecondition)),
        (Mode::SingleNodeReaderOnly, Some(Code::FailedPrecondition)),
        (Mode::SingleNodeMultiWriter, None),
    ] {
        let place = Place::new();
        let mut driver = Running::start(&place, &place.section("directory")).await;
        let (staging, one, two) = (place.text("staging"), place.text("pods/one"), place.text("pods/two"));
        let capability = || mounted_with(&[], mode);
        let id = driver.create(request("pvc-1", MIB, capability())).await.unwrap().volume_id;
        expect_code(driver.publish(publication(&id, &staging, &one, capability())).await, Code::FailedPrecondition);
        driver.stage(&id, &staging, capability()).await.unwrap();
        expect_code(driver.stage(&id, &staging, mounted_with(&["noexec"], mode)).await, Code::AlreadyExists);
        expect_code(driver.publish(publication(&id, "", &one, capability())).await, Code::FailedPrecondition);
        if mode != Mode::SingleNodeMultiWriter {
            let exceeding = publication(&id, &staging, &one, mounted_with(&[], Mode::SingleNodeMultiWriter));
            let status = expect_code(driver.publish(exceeding).await, Code::FailedPrecondition);
            assert!(status.message().contains(mode.as_str_name()), "{status}");
        }
        driver.publish(publication(&id, &staging, &one, capability())).await.unwrap();
        let mut otherwise = publication(&id, &staging, &one, capability());
        otherwise.readonly = true;
        expect_code(driver.publish(otherwise).await, Code::AlreadyExists);
        let result = driver.publish(publication(&id, &staging, &two, capability())).await;
        match second {
            Some(code) => {
                expect_code(result, code);
                assert!(!Path::new(&two).exists(), "a refused call leaves nothing");
            }
            None => result.unwrap(),
        }
        driver.unpublish(&id, &two).await.unwrap();
        driver.unpublish(&id, &one).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_read_only_can_only_be_read() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let reader = || mounted_with(&[], Mode::SingleNodeReaderOnly);
    let id = driver.create(request("pvc-1", 16 * MIB, reader())).await.unwrap().volume_id;
    driver.stage(&id, &staging, reader()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, reader())).await.unwrap();
    for path in [place.path("staging/file"), place.path("pods/mount/file")] {
        assert_eq!(fs::write(path, b"x").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_ext4_does_not_know_is_the_callers_mistake() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
    let long = format!("commit={}", "9".repeat(300));
    // Unknown, of a wrong value, and what ext4 only refuses when it is mounted.
    for wrong in ["frobnicate", "commit=x", "=x", &long, "sb=131072", "journal_dev=77", "dax=always"] {
        let capability = mounted_with(&[wrong], Mode::SingleNodeWriter);
        let status = expect_code(driver.stage(&id, &staging, capability).await, Code::InvalidArgument);
        assert!(status.message().contains("mount_flags"), "{wrong}: {status}");
        assert_eq!((place.mounts(), place.loops()), (vec![], vec![]), "{wrong}");
    }
    let right = mounted_with(&["noatime", "commit=30"], Mode::SingleNodeWriter);
    driver.stage(&id, &staging, right).await.unwrap();
    let mount = place.mount_at("staging").unwrap();
    assert!(mount.options.contains(&"noatime".to_owned()), "{mount:?}");
    assert!(mount.super_options.contains(&"commit=30".to_owned()), "{mount:?}");
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_formatted_volume_is_never_formatted_again() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs", "mkfs.btrfs", "mkswap"]).is_empty(), "needs the mkfs programs");
    for (command, shows) in [
        ("truncate -s 0 $0 && truncate -s 320M $0", "no filesystem"),
        ("dd if=/dev/zero of=$0 bs=8192 count=1 conv=notrunc status=none", "no filesystem"),
        ("mkfs.xfs -q -f $0", "xfs"),
        ("mkfs.btrfs -q -f $0", "btrfs"),
        // Another ext4: not the one that was made.
        ("mkfs.ext4 -q -F $0", "ext4"),
        ("wipefs -qa $0 && mkswap -q $0", "swap"),
    ] {
        let place = Place::new();
        let mut driver = Running::start(&place, &place.section("image")).await;
        let id = driver.create(request("pvc-1", 320 * MIB, mounted())).await.unwrap().volume_id;
        let image = place.path("pool/volumes").join(&id).join("image");
        let status = Command::new("sh").args(["-c", command]).arg(&image).status().unwrap();
        assert!(status.success(), "{command}");
        let before = (fs::metadata(&image).unwrap().mtime_nsec(), digest(&image));
        for _ in 0..2 {
            let staged = driver.stage(&id, &place.text("staging"), mounted()).await;
            let status = expect_code(staged, Code::FailedPrecondition);
            assert!(status.message().contains(&format!("shows {shows}")), "{command}: {status}");
            let target = publication(&id, &place.text("staging"), &place.text("pods/mount"), mounted());
            expect_code(driver.publish(target).await, Code::FailedPrecondition);
        }
        let after = (fs::metadata(&image).unwrap().mtime_nsec(), digest(&image));
        assert_eq!(after, before, "{command}: not a byte was written");
        assert_eq!((place.mounts(), place.loops()), (vec![], vec![]));
        driver.delete(&id).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}

/// What cksum(1) makes of a file.
fn digest(path: &Path) -> Vec<u8> {
    Command::new("cksum").arg(path).output().unwrap().stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn loop_devices_of_others_are_left_alone() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", MIB, block())).await.unwrap().volume_id;
    // As like ours as it can be: the same two last names, and a second link to nothing of ours.
    let folder = place.path("foreign").join(&id);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("image"), vec![1; 1 << 20]).unwrap();
    let losetup = std::process::Command::new("losetup").args(["-f", "--show"]).arg(folder.join("image")).output();
    let foreign = String::from_utf8(losetup.unwrap().stdout).unwrap().trim().to_owned();
    let number: u32 = foreign["/dev/loop".len()..].parse().unwrap();

    driver.stage(&id, &staging, block()).await.unwrap();
    assert_eq!(place.loops().len(), 2, "ours is another device");
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    assert_eq!(place.loops(), [number]);
    let detached = std::process::Command::new("losetup").arg("-d").arg(&foreign).status().unwrap();
    assert!(detached.success());
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_put_into_the_kubelets_paths_are_never_followed() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", MIB, mounted())).await.unwrap().volume_id;
    fs::create_dir_all(place.path("host/secrets")).unwrap();
    fs::write(place.path("host/secrets/key"), b"precious").unwrap();
    std::os::unix::fs::symlink(place.path("host"), place.path("pods/evil")).unwrap();

    expect_code(driver.stage(&id, &place.text("pods/evil/secrets"), mounted()).await, Code::InvalidArgument);
    driver.stage(&id, &staging, mounted()).await.unwrap();
    for target in ["pods/evil/secrets", "pods/evil/new", "pods/evil"] {
        let publish = publication(&id, &staging, &place.text(target), mounted());
        expect_code(driver.publish(publish).await, Code::InvalidArgument);
    }

    // Swapped while it is published: what lies behind the link is neither unmounted nor removed.
    fs::create_dir(place.path("pods/uid")).unwrap();
    let target = place.text("pods/uid/mount");
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    fs::rename(place.path("pods/uid"), place.path("pods/moved")).unwrap();
    fs::create_dir(place.path("host/mount")).unwrap();
    std::os::unix::fs::symlink(place.path("host"), place.path("pods/uid")).unwrap();
    expect_code(driver.unpublish(&id, &target).await, Code::InvalidArgument);
    assert!(place.path("host/mount").is_dir());
    assert_eq!(fs::read(place.path("host/secrets/key")).unwrap(), b"precious");
    fs::remove_file(place.path("pods/uid")).unwrap();
    fs::rename(place.path("pods/moved"), place.path("pods/uid")).unwrap();
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unpublish_deletes_nothing_that_is_not_its_own() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let id = driver.create(request("pvc-1", MIB, mounted())).await.unwrap().volume_id;
    let unpublish = |id: &str| NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: target.clone() };

    // A directory with something in it.
    fs::create_dir(&target).unwrap();
    fs::write(place.path("pods/mount/file"), b"precious").unwrap();
    expect_code(driver.node.node_unpublish_volume(unpublish(&id)).await, Code::FailedPrecondition);
    expect_code(driver.node.node_unpublish_volume(unpublish("some/path")).await, Code::NotFound);
    assert_eq!(fs::read(place.path("pods/mount/file")).unwrap(), b"precious");
    fs::remove_file(place.path("pods/mount/file")).unwrap();

    // A mount of somebody else, below and above ours.
    place.mount_tmpfs("pods/mount", "size=1m");
    expect_code(driver.node.node_unpublish_volume(unpublish(&id)).await, Code::FailedPrecondition);
    driver.stage(&id, &staging, mounted()).await.unwrap();
    expect_code(driver.publish(publication(&id, &staging, &target, mounted())).await, Code::FailedPrecondition);
    assert_eq!(place.mount_at("pods/mount").unwrap().kind, "tmpfs");
    place.unmount("pods/mount");

    // Our own, mounted more than once.
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    place.bind("staging", "pods/mount");
    driver.unpublish(&id, &target).await.unwrap();
    assert!(!Path::new(&target).exists());
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_access_times_are_kept_is_the_callers_choice() {
    needs_a_kernel!();
    for kind in ["image", "directory"] {
        let place = Place::new();
        let mut driver = Running::start(&place, &place.section(kind)).await;
        let (staging, target) = (place.text("staging"), place.text("pods/mount"));
        for (number, flag) in ["noatime", "strictatime", "relatime"].into_iter().enumerate() {
            let capability = || mounted_with(&[flag, "nodiratime"], Mode::SingleNodeWriter);
            let wish = request(&format!("pvc-{number}"), 16 * MIB, capability());
            let id = driver.create(wish).await.unwrap().volume_id;
            // The kubelet gives the flags of a StorageClass to both calls.
            driver.stage(&id, &staging, capability()).await.unwrap();
            driver.publish(publication(&id, &staging, &target, capability())).await.unwrap();
            for path in ["staging", "pods/mount"] {
                let options = place.mount_at(path).unwrap().options;
                let has = |option: &str| options.iter().any(|found| found == option);
                // The mount table has no word for strictatime.
                let expected = (flag == "noatime", flag == "relatime", true);
                assert_eq!((has("noatime"), has("relatime"), has("nodiratime")), expected, "{kind} {path} {options:?}");
            }
            driver.unpublish(&id, &target).await.unwrap();
            driver.unstage(&id, &staging).await.unwrap();
            driver.delete(&id).await.unwrap();
        }
        place.expect_clean();
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staging_path_in_use_is_refused_and_nothing_is_stacked() {
    needs_a_kernel!();
    for kind in ["image", "directory"] {
        let place = Place::new();
        let mut driver = Running::start(&place, &place.section(kind)).await;
        let (staging, target) = (place.text("staging"), place.text("pods/mount"));
        let first = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
        let second = driver.create(request("pvc-2", 16 * MIB, mounted())).await.unwrap().volume_id;
        driver.stage(&first, &staging, mounted()).await.unwrap();
        let before = place.mounts();
        expect_code(driver.stage(&second, &staging, mounted()).await, Code::FailedPrecondition);
        expect_code(driver.publish(publication(&second, &staging, &target, mounted())).await, Code::FailedPrecondition);
        driver.stage(&first, &staging, mounted()).await.unwrap();
        let otherwise = mounted_with(&["noexec"], Mode::SingleNodeWriter);
        expect_code(driver.stage(&first, &staging, otherwise).await, Code::AlreadyExists);
        assert_eq!(place.mounts(), before);

        // Somebody covers the staging path: the volume below can't be reached, and nothing comes on top.
        place.mount_tmpfs("staging", "size=1m");
        let covered = place.mounts();
        expect_code(driver.publish(publication(&first, &staging, &target, mounted())).await, Code::FailedPrecondition);
        expect_code(driver.stage(&first, &staging, mounted()).await, Code::FailedPrecondition);
        assert_eq!(place.mounts(), covered);
        place.unmount("staging");
        driver.publish(publication(&first, &staging, &target, mounted())).await.unwrap();
        driver.unpublish(&first, &target).await.unwrap();
        driver.unstage(&first, &staging).await.unwrap();

        place.mount_tmpfs("staging", "size=1m");
        expect_code(driver.stage(&second, &staging, mounted()).await, Code::FailedPrecondition);
        assert_eq!(place.mounts().len(), 1);
        place.unmount("staging");
        driver.stage(&second, &staging, mounted()).await.unwrap();
        driver.unstage(&second, &staging).await.unwrap();
        driver.delete(&first).await.unwrap();
        driver.delete(&second).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}

/// What may lie where a volume is to be published: none of it is the driver's.
fn put(what: &str, path: &Path) {
    match what {
        "data" => fs::write(path, b"precious").unwrap(),
        "link" => std::os::unix::fs::symlink(path.parent().unwrap(), path).unwrap(),
        "fifo" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        _ => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), b"precious").unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_at_a_target_and_is_not_the_drivers_is_never_removed() {
    needs_a_kernel!();
    for capability in [block, mounted] {
        let place = Place::new();
        let mut driver = Running::start(&place, &place.section("image")).await;
        let (staging, target) = (place.text("staging"), place.text("pods/target"));
        let id = driver.create(request("pvc-1", 16 * MIB, capability())).await.unwrap().volume_id;
        driver.stage(&id, &staging, capability()).await.unwrap();
        for (what, code) in [
            ("data", Code::FailedPrecondition),
            ("link", Code::InvalidArgument),
            ("fifo", Code::InvalidArgument),
            ("directory", Code::FailedPrecondition),
        ] {
            put(what, Path::new(&target));
            let before = fs::symlink_metadata(&target).unwrap();
            let status = expect_code(driver.unpublish(&id, &target).await, code);
            assert!(status.message().starts_with(&format!("target_path: \"{target}\" ")), "{status}");
            assert_eq!(fs::symlink_metadata(&target).unwrap().ino(), before.ino());
            // What is of another kind is another mistake than what holds data.
            let is_mount = capability() == mounted();
            let code = match (what, is_mount) {
                ("data", false) | ("directory", true) => Code::FailedPrecondition,
                _ => Code::InvalidArgument,
            };
            let status = expect_code(driver.publish(publication(&id, &staging, &target, capability())).await, code);
            assert!(status.message().starts_with(&format!("target_path: \"{target}\" ")), "{status}");
            let after = fs::symlink_metadata(&target).unwrap();
            assert_eq!((after.ino(), after.size()), (before.ino(), before.size()));
            fs::remove_file(&target).or_else(|_| fs::remove_dir_all(&target)).unwrap();
        }

        // What publish makes itself is taken as it is found, and unpublish removes it.
        if capability() == mounted() {
            fs::create_dir(&target).unwrap();
        } else {
            fs::write(&target, b"").unwrap();
        }
        driver.publish(publication(&id, &staging, &target, capability())).await.unwrap();
        driver.unpublish(&id, &target).await.unwrap();
        assert!(!Path::new(&target).exists());
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_somebody_holds_for_a_moment_is_waited_for() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
    for waiting in ["unstage", "delete"] {
        driver.stage(&id, &staging, mounted()).await.unwrap();
        let [number] = place.loops()[..] else { panic!("not one loop device: {:?}", place.loops()) };
        // As a copy of the mount namespace does, for as long as a program takes to start.
        let held = File::open(format!("/dev/loop{number}")).unwrap();
        let (mut node, mut controller) = (driver.node.clone(), driver.controller.clone());
        let unstage = NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path: staging.clone() };
        let delete = DeleteVolumeRequest { volume_id: id.clone(), ..DeleteVolumeRequest::default() };
        if waiting == "delete" {
            // Held for longer than anybody waits.
            node.node_unstage_volume(unstage.clone()).await.unwrap();
        }
        let call = tokio::spawn(async move {
            if waiting == "unstage" {
                node.node_unstage_volume(unstage).await.map(drop)
            } else {
                controller.delete_volume(delete).await.map(drop)
            }
        });
        keelson_testkit::wait_until_async("the device to be detached", Duration::from_secs(30), async || {
            (attribute(number, "loop/autoclear") == "1").then_some(())
        })
        .await;
        drop(held);
        call.await.unwrap().unwrap();
        assert_eq!(place.loops(), [0; 0]);
    }
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_mounted_on_above_or_in_a_pool() {
    needs_a_kernel!();
    let place = Place::new();
    fs::create_dir(place.path("real")).unwrap();
    std::os::unix::fs::symlink(place.path("real"), place.path("alias")).unwrap();
    fs::create_dir_all(place.path("real/pool")).unwrap();
    let mut section = place.section("directory");
    section["pools"][0]["path"] = serde_json::json!(place.path("alias/pool"));
    let mut driver = Running::start(&place, &section).await;
    let (staging, top) = (place.text("staging"), place.text(""));
    let id = driver.create(request("pvc-1", 0, mounted())).await.unwrap().volume_id;
    driver.stage(&id, &staging, mounted()).await.unwrap();
    let before = place.mounts();
    let inside = ["real/pool", "real/pool/volumes", "real/pool/building", "real/pool/new", "real", "alias/pool/new"];
    for path in inside.map(|path| place.text(path)).into_iter().chain([top.trim_end_matches('/').to_owned()]) {
        expect_code(driver.stage(&id, &path, mounted()).await, Code::InvalidArgument);
        expect_code(driver.publish(publication(&id, &staging, &path, mounted())).await, Code::InvalidArgument);
        let status = expect_code(driver.unpublish(&id, &path).await, Code::InvalidArgument);
        assert!(status.message().starts_with(&format!("target_path: \"{path}\" ")), "{status}");
        expect_code(driver.unstage(&id, &path).await, Code::InvalidArgument);
    }
    let below_staging = publication(&id, &staging, &format!("{staging}/x"), mounted());
    expect_code(driver.publish(below_staging).await, Code::InvalidArgument);
    assert_eq!(place.mounts(), before);
    assert!(place.path("real/pool/building").is_dir());
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_use_is_not_deleted_though_its_image_was_moved_or_replaced() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let id = driver.create(request("pvc-1", 64 * MIB, mounted())).await.unwrap().volume_id;
    driver.stage(&id, &staging, mounted()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    let image = place.path("pool/volumes").join(&id).join("image");
    let away = place.path("away");
    fs::rename(&image, &away).unwrap();
    expect_code(driver.delete(&id).await, Code::FailedPrecondition);
    fs::copy(&away, &image).unwrap();
    expect_code(driver.delete(&id).await, Code::FailedPrecondition);
    fs::rename(&away, &image).unwrap();
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}
