//! Volumes that grow while they are in use, and what they are set to while they live.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt},
    process::Command,
};

use common::{
    MIB, Place, Running, block,
    disk::{Disk, run},
    expect_code, has_sys_resource, mounted, mounted_with, publication, request,
};
use keelson_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerModifyVolumeRequest,
    CreateVolumeRequest, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, VolumeCapability, VolumeContentSource,
    volume_capability::access_mode::Mode,
    volume_content_source::{Type, VolumeSource},
};
use keelson_testkit::{missing, skip_unless};
use tonic::{Code, Status};

const SMALL: i64 = 320 * MIB;
const LARGE: i64 = 640 * MIB;

/// Those that can grow here.
fn filesystems() -> &'static [&'static str] {
    if has_sys_resource() { &["ext4", "xfs", "btrfs"] } else { &["xfs", "btrfs"] }
}

fn of(filesystem: &str, name: &str, bytes: i64) -> CreateVolumeRequest {
    request(name, bytes, mounted_as(filesystem))
}

fn mounted_as(filesystem: &str) -> VolumeCapability {
    use keelson_proto::csi::v1::volume_capability::{AccessType, MountVolume};
    let mount = MountVolume { fs_type: filesystem.to_owned(), ..MountVolume::default() };
    common::capability(AccessType::Mount(mount), Mode::SingleNodeWriter)
}

fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

async fn expand(
    driver: &mut Running,
    id: &str,
    path: &str,
    capacity_range: Option<CapacityRange>,
) -> Result<i64, Status> {
    let request = NodeExpandVolumeRequest {
        volume_id: id.to_owned(),
        volume_path: path.to_owned(),
        capacity_range,
        ..NodeExpandVolumeRequest::default()
    };
    Ok(driver.node.node_expand_volume(request).await?.into_inner().capacity_bytes)
}

async fn told(driver: &mut Running, id: &str) -> Result<i64, Status> {
    let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
    Ok(driver.controller.controller_get_volume(request).await?.into_inner().volume.unwrap().capacity_bytes)
}

/// Bytes of the volume at `path`, as the kubelet asks for them.
async fn total(driver: &mut Running, id: &str, path: &str) -> i64 {
    let (volume_id, volume_path) = (id.to_owned(), path.to_owned());
    let request = NodeGetVolumeStatsRequest { volume_id, volume_path, ..NodeGetVolumeStatsRequest::default() };
    driver.node.node_get_volume_stats(request).await.unwrap().into_inner().usage[0].total
}

async fn modify(driver: &mut Running, id: &str, pairs: &[(&str, &str)]) -> Result<(), Status> {
    let request = ControllerModifyVolumeRequest {
        volume_id: id.to_owned(),
        mutable_parameters: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..ControllerModifyVolumeRequest::default()
    };
    driver.controller.controller_modify_volume(request).await.map(drop)
}

/// A file in /sys of the place's only loop device.
fn attribute(place: &Place, name: &str) -> String {
    let [number] = place.loops()[..] else { panic!("not one loop device: {:?}", place.loops()) };
    fs::read_to_string(format!("/sys/block/loop{number}/{name}")).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn d7_expansion_is_real_and_the_sizes_told_are_too() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs", "mkfs.btrfs"]).is_empty(), "needs the mkfs programs");
    for filesystem in filesystems() {
        let place = Place::new();
        let mut driver = Running::start(&place, &place.section("image")).await;
        let (staging, target) = (place.text("staging"), place.text("pods/mount"));
        let capability = mounted_as(filesystem);
        let id = driver.create(of(filesystem, "pvc-1", SMALL)).await.unwrap().volume_id;
        driver.stage(&id, &staging, capability.clone()).await.unwrap();
        driver.publish(publication(&id, &staging, &target, capability.clone())).await.unwrap();
        fs::write(place.path("pods/mount/file"), b"what was written").unwrap();
        let open = File::open(place.path("pods/mount/file")).unwrap();
        let before = total(&mut driver, &id, &target).await;
        assert!(before <= SMALL);

        for path in [&target, &staging] {
            assert_eq!(expand(&mut driver, &id, path, range(LARGE, 0)).await.unwrap(), LARGE);
            let after = total(&mut driver, &id, path).await;
            assert!(after > before + 250 * MIB && after <= LARGE, "{filesystem}: {before} {after}");
        }
        assert_eq!(attribute(&place, "size").parse::<i64>().unwrap() * 512, LARGE);
        assert_eq!(told(&mut driver, &id).await.unwrap(), LARGE);
        // It has that, and more than was asked for.
        assert_eq!(expand(&mut driver, &id, &target, range(SMALL, 0)).await.unwrap(), LARGE);
        assert_eq!(expand(&mut driver, &id, &target, None).await.unwrap(), LARGE);
        // More than there was room for.
        let big = File::create_new(place.path("pods/mount/big")).unwrap();
        let block = vec![7; 1 << 20];
        for at in 0..330 {
            big.write_all_at(&block, at << 20).unwrap();
        }
        big.sync_all().unwrap();
        drop((big, open));

        driver.unpublish(&id, &target).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.stop().await;
        let mut driver = Running::start(&place, &place.section("image")).await;
        assert_eq!(told(&mut driver, &id).await.unwrap(), LARGE);
        driver.stage(&id, &staging, capability).await.unwrap();
        assert_eq!(fs::read(place.path("staging/file")).unwrap(), b"what was written");
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_btrfs_grows_to_what_the_kernel_takes_or_not_at_all() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.btrfs"]).is_empty(), "needs mkfs.btrfs");
    const LEAST: i64 = 256 * MIB;
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(of("btrfs", "pvc-1", 128 * MIB)).await.unwrap().volume_id;
    let copy = |name: &str, limit_bytes| {
        let mut wish = of("btrfs", name, 160 * MIB);
        wish.capacity_range.as_mut().unwrap().limit_bytes = limit_bytes;
        let volume = Type::Volume(VolumeSource { volume_id: id.clone() });
        wish.volume_content_source = Some(VolumeContentSource { r#type: Some(volume) });
        wish
    };
    expect_code(driver.create(copy("pvc-2", 200 * MIB)).await, Code::OutOfRange);
    let mut other = of("btrfs", "pvc-1", 128 * MIB);
    other.mutable_parameters.insert("provisioning".to_owned(), "thick".to_owned());
    let status = expect_code(driver.create(other).await, Code::AlreadyExists);
    assert!(status.message().contains("it is thin, not thick"), "{status:?}");
    let status = expect_code(driver.create(copy("pvc-1", 0)).await, Code::AlreadyExists);
    assert!(status.message().contains(&format!("made from nothing, not {id}")), "{status:?}");
    let status = expect_code(driver.create(of("btrfs", "pvc-1", 130 * MIB)).await, Code::AlreadyExists);
    assert!(status.message().contains(&format!("not at least {}", 130 * MIB)), "{status:?}");
    driver.stage(&id, &staging, mounted_as("btrfs")).await.unwrap();
    let other = mounted_with(&[], Mode::SingleNodeMultiWriter);
    let status = expect_code(driver.stage(&id, &staging, other).await, Code::AlreadyExists);
    assert!(status.message().contains("a mount of btrfs as SINGLE_NODE_WRITER, not a mount as"), "{status:?}");
    driver.unstage(&id, &staging).await.unwrap();
    let status = expect_code(driver.create(copy("pvc-2", 160 * MIB)).await, Code::OutOfRange);
    assert!(status.message().contains("btrfs"), "{status:?}");
    let copied = driver.create(copy("pvc-2", 0)).await.unwrap();
    assert_eq!(copied.capacity_bytes, LEAST);
    driver.stage(&copied.volume_id, &staging, mounted_as("btrfs")).await.unwrap();
    assert_eq!(total(&mut driver, &copied.volume_id, &staging).await, LEAST);
    driver.unstage(&copied.volume_id, &staging).await.unwrap();
    driver.delete(&copied.volume_id).await.unwrap();

    driver.stage(&id, &staging, mounted_as("btrfs")).await.unwrap();
    expect_code(expand(&mut driver, &id, &staging, range(160 * MIB, 200 * MIB)).await, Code::OutOfRange);
    assert_eq!(told(&mut driver, &id).await.unwrap(), 128 * MIB);
    // An image that a driver which did not know this made longer, and its record.
    driver.unstage(&id, &staging).await.unwrap();
    OpenOptions::new()
        .write(true)
        .open(place.path("pool/volumes").join(&id).join("image"))
        .unwrap()
        .set_len(160 * MIB as u64)
        .unwrap();
    driver.stage(&id, &staging, mounted_as("btrfs")).await.unwrap();
    assert_eq!(expand(&mut driver, &id, &staging, range(160 * MIB, 0)).await.unwrap(), LEAST);
    assert_eq!(total(&mut driver, &id, &staging).await, LEAST);
    driver.unstage(&id, &staging).await.unwrap();
    driver.stage(&id, &staging, mounted_as("btrfs")).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_that_may_not_grow_is_told_and_stays_in_use() {
    needs_a_kernel!();
    skip_unless!(!has_sys_resource(), "needs to be without CAP_SYS_RESOURCE");
    let (small, large) = (64 * MIB, 128 * MIB);
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(of("ext4", "pvc-1", small)).await.unwrap().volume_id;
    let folder = place.path("pool/volumes").join(&id);
    driver.stage(&id, &staging, mounted_as("ext4")).await.unwrap();
    let status = expect_code(expand(&mut driver, &id, &staging, range(large, 0)).await, Code::FailedPrecondition);
    assert!(status.message().contains("CAP_SYS_RESOURCE"), "{status:?}");
    assert_eq!(told(&mut driver, &id).await.unwrap(), small);
    assert_eq!(fs::metadata(folder.join("image")).unwrap().len() as i64, small);
    // It has that.
    assert_eq!(expand(&mut driver, &id, &staging, range(small, 0)).await.unwrap(), small);
    fs::write(place.path("staging/file"), b"what was written").unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.stop().await;

    // As a driver left it that could lengthen the image, but not the filesystem.
    OpenOptions::new().write(true).open(folder.join("image")).unwrap().set_len(large.cast_unsigned()).unwrap();
    let record = fs::read_to_string(folder.join("volume.json")).unwrap();
    fs::write(folder.join("volume.json"), record.replace(&small.to_string(), &large.to_string())).unwrap();
    let mut driver = Running::start(&place, &place.section("image")).await;
    for _ in 0..2 {
        driver.stage(&id, &staging, mounted_as("ext4")).await.unwrap();
        assert_eq!(fs::read(place.path("staging/file")).unwrap(), b"what was written");
    }
    assert!(total(&mut driver, &id, &staging).await <= small);
    expect_code(expand(&mut driver, &id, &staging, None).await, Code::FailedPrecondition);
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_block_volume_grows_under_its_user() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    let mut wish = request("pvc-1", 16 * MIB, block());
    wish.parameters.insert("provisioning".to_owned(), "thick".to_owned());
    let id = driver.create(wish).await.unwrap().volume_id;
    driver.stage(&id, &staging, block()).await.unwrap();
    // Staged only.
    assert_eq!(expand(&mut driver, &id, &staging, range(24 * MIB, 0)).await.unwrap(), 24 * MIB);
    driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
    let device = OpenOptions::new().read(true).write(true).open(&target).unwrap();
    assert_eq!(expand(&mut driver, &id, &target, range(32 * MIB + 1, 0)).await.unwrap(), 32 * MIB + 4096);
    device.write_all_at(&[7; 4096], 32 * MIB as u64).unwrap();
    device.sync_all().unwrap();
    drop(device);
    assert_eq!(total(&mut driver, &id, &target).await, 32 * MIB + 4096);
    let image = fs::metadata(place.path("pool/volumes").join(&id).join("image")).unwrap();
    assert_eq!(image.len() as i64, 32 * MIB + 4096);
    assert!(image.blocks() * 512 >= image.len(), "it is thick: {}", image.blocks());
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_grow_is_told_and_stays() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=64m");
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    let id = driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    // Nobody uses it.
    expect_code(expand(&mut driver, &id, &staging, range(24 * MIB, 0)).await, Code::NotFound);
    driver.stage(&id, &staging, block()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
    for (id, path, range, code) in [
        ("", target.as_str(), range(24 * MIB, 0), Code::InvalidArgument),
        (&id, "", range(24 * MIB, 0), Code::InvalidArgument),
        (&id, &target, range(-1, 0), Code::InvalidArgument),
        (&id, &target, range(24 * MIB, 23 * MIB), Code::InvalidArgument),
        ("v1-0123456789abcdef0123456789abcdef", &target, range(24 * MIB, 0), Code::NotFound),
        (&id, &place.text("pods/other"), range(24 * MIB, 0), Code::NotFound),
        (&id, "relative", range(24 * MIB, 0), Code::NotFound),
        (&id, &target, range(0, 15 * MIB), Code::OutOfRange),
        (&id, &target, range(i64::MAX, 0), Code::OutOfRange),
        // More than the pool has.
        (&id, &target, range(128 * MIB, 0), Code::OutOfRange),
    ] {
        expect_code(expand(&mut driver, id, path, range).await, code);
    }
    let status = expand(&mut driver, &id, &target, range(0, 15 * MIB)).await.unwrap_err();
    assert!(status.message().contains("don't shrink"), "{status:?}");
    let image = place.path("pool/volumes").join(&id).join("image");
    assert_eq!(fs::metadata(&image).unwrap().len() as i64, 16 * MIB);
    assert_eq!(told(&mut driver, &id).await.unwrap(), 16 * MIB);
    let request = ControllerExpandVolumeRequest { volume_id: id.clone(), ..ControllerExpandVolumeRequest::default() };
    expect_code(driver.controller.controller_expand_volume(request).await, Code::Unimplemented);

    // A growth that ended between the image and its record: it has its old size until the retry.
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    OpenOptions::new().write(true).open(&image).unwrap().set_len(24 * MIB as u64).unwrap();
    driver.stage(&id, &staging, block()).await.unwrap();
    assert_eq!(told(&mut driver, &id).await.unwrap(), 16 * MIB);
    assert_eq!(expand(&mut driver, &id, &staging, range(20 * MIB, 0)).await.unwrap(), 24 * MIB);
    assert_eq!(told(&mut driver, &id).await.unwrap(), 24 * MIB);
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mount_does_not_grow_and_a_stage_finishes_what_was_interrupted() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs"]).is_empty(), "needs mkfs.xfs");
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let id = driver.create(of("xfs", "pvc-1", SMALL)).await.unwrap().volume_id;
    let reader = mounted_with(&[], Mode::SingleNodeReaderOnly);
    driver.stage(&id, &staging, reader).await.unwrap();
    expect_code(expand(&mut driver, &id, &staging, range(LARGE, 0)).await, Code::FailedPrecondition);
    assert_eq!(told(&mut driver, &id).await.unwrap(), SMALL);
    driver.unstage(&id, &staging).await.unwrap();

    // Published read-only, but staged for writing.
    driver.stage(&id, &staging, mounted_as("xfs")).await.unwrap();
    let mut wish = publication(&id, &staging, &target, mounted_as("xfs"));
    wish.readonly = true;
    driver.publish(wish).await.unwrap();
    assert_eq!(expand(&mut driver, &id, &target, range(SMALL + 64 * MIB, 0)).await.unwrap(), SMALL + 64 * MIB);
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();

    // Killed after the record: the filesystem is smaller than its volume, until it is staged.
    let folder = place.path("pool/volumes").join(&id);
    driver.stop().await;
    OpenOptions::new().write(true).open(folder.join("image")).unwrap().set_len(LARGE as u64).unwrap();
    let record = fs::read_to_string(folder.join("volume.json")).unwrap();
    let record = record.replace(&(SMALL + 64 * MIB).to_string(), &LARGE.to_string());
    fs::write(folder.join("volume.json"), record).unwrap();
    let mut driver = Running::start(&place, &place.section("image")).await;
    driver.stage(&id, &staging, mounted_as("xfs")).await.unwrap();
    let after = total(&mut driver, &id, &staging).await;
    assert!(after > SMALL + 250 * MIB && after <= LARGE, "{after}");
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_set_while_it_is_used_and_stays_so() {
    needs_a_kernel!();
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new();
    let _disk = Disk::make(&directory.path().join("disk"), "ext4", 512 << 20, &place.path("pool"));
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let mut wish = request("pvc-1", 64 * MIB, mounted());
    wish.mutable_parameters.insert("readAheadKiB".to_owned(), "64".to_owned());
    let id = driver.create(wish.clone()).await.unwrap().volume_id;
    for _ in 0..2 {
        driver.stage(&id, &staging, mounted()).await.unwrap();
        assert_eq!(attribute(&place, "queue/read_ahead_kb"), "64");
        driver.unstage(&id, &staging).await.unwrap();
    }
    driver.stage(&id, &staging, mounted()).await.unwrap();
    assert_eq!(attribute(&place, "loop/dio"), "1");
    for _ in 0..2 {
        modify(&mut driver, &id, &[("readAheadKiB", "512"), ("directIo", "false")]).await.unwrap();
        assert_eq!(attribute(&place, "queue/read_ahead_kb"), "512");
        assert_eq!(attribute(&place, "loop/dio"), "0");
    }
    // One that is wrong, and nothing is applied; what isn't named stays.
    for pair in [("iops", "1"), ("directIo", "maybe"), ("inodes", "5")] {
        expect_code(modify(&mut driver, &id, &[("readAheadKiB", "1024"), pair]).await, Code::InvalidArgument);
        assert_eq!(attribute(&place, "queue/read_ahead_kb"), "512");
    }
    modify(&mut driver, &id, &[("directIo", "true")]).await.unwrap();
    assert_eq!(attribute(&place, "loop/dio"), "1");
    driver.unstage(&id, &staging).await.unwrap();
    // Not attached now.
    modify(&mut driver, &id, &[("directIo", "false")]).await.unwrap();
    driver.stop().await;
    let mut driver = Running::start(&place, &place.section("image")).await;
    driver.stage(&id, &staging, mounted()).await.unwrap();
    assert_eq!(attribute(&place, "queue/read_ahead_kb"), "512");
    assert_eq!(attribute(&place, "loop/dio"), "0");
    driver.unstage(&id, &staging).await.unwrap();
    expect_code(modify(&mut driver, "", &[]).await, Code::InvalidArgument);
    expect_code(modify(&mut driver, "v1-0123456789abcdef0123456789abcdef", &[]).await, Code::NotFound);
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thin_becomes_thick_and_thin_again() {
    needs_a_kernel!();
    skip_unless!(missing(&["fstrim"]).is_empty(), "needs fstrim");
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new();
    let _disk = Disk::make(&directory.path().join("disk"), "ext4", 512 << 20, &place.path("pool"));
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", 64 * MIB, mounted())).await.unwrap().volume_id;
    let image = place.path("pool/volumes").join(&id).join("image");
    let taken = || fs::metadata(&image).unwrap().blocks() * 512;
    driver.stage(&id, &staging, mounted()).await.unwrap();
    assert!(taken() < 16 << 20, "{}", taken());
    for _ in 0..2 {
        modify(&mut driver, &id, &[("provisioning", "thick")]).await.unwrap();
        assert!(taken() >= 64 << 20, "{}", taken());
    }
    // What a Pod discards stays its own.
    let trim = || Command::new("fstrim").arg(&staging).status().unwrap().success();
    assert!(!trim(), "the device refuses discards");
    assert!(taken() >= 64 << 20, "{}", taken());
    driver.unstage(&id, &staging).await.unwrap();
    driver.stage(&id, &staging, mounted()).await.unwrap();
    assert!(!trim(), "after an attach too");
    modify(&mut driver, &id, &[("provisioning", "thin")]).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.stage(&id, &staging, mounted()).await.unwrap();
    run(Command::new("fstrim").arg(&staging));
    assert!(taken() < 16 << 20, "{}", taken());
    driver.unstage(&id, &staging).await.unwrap();

    // What the disk hasn't, nobody gets, and nothing was changed.
    let hog = File::create_new(place.path("pool/hog")).unwrap();
    run(Command::new("fallocate").args(["-l", "400M"]).arg(place.path("pool/hog")));
    expect_code(modify(&mut driver, &id, &[("provisioning", "thick")]).await, Code::ResourceExhausted);
    assert!(taken() < 16 << 20, "{}", taken());
    drop(hog);
    fs::remove_file(place.path("pool/hog")).unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_larger_than_its_source_has_all_of_its_size_when_it_is_staged() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs", "mkfs.btrfs"]).is_empty(), "needs the mkfs programs");
    for filesystem in filesystems() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new();
        let _disk = Disk::make(&directory.path().join("disk"), "xfs", 4 << 30, &place.path("pool"));
        let mut driver = Running::start(&place, &place.section("image")).await;
        let staging = place.text("staging");
        let source = driver.create(of(filesystem, "source", SMALL)).await.unwrap().volume_id;
        driver.stage(&source, &staging, mounted_as(filesystem)).await.unwrap();
        fs::write(place.path("staging/file"), b"what was written").unwrap();
        driver.unstage(&source, &staging).await.unwrap();
        let mut wish = of(filesystem, "copy", LARGE);
        wish.volume_content_source =
            Some(VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: source.clone() })) });
        let copy = driver.create(wish).await.unwrap();
        assert_eq!(copy.capacity_bytes, LARGE);
        let id = copy.volume_id;
        driver.stage(&id, &staging, mounted_as(filesystem)).await.unwrap();
        let bytes = total(&mut driver, &id, &staging).await;
        assert!(bytes > SMALL + 250 * MIB && bytes <= LARGE, "{filesystem}: {bytes}");
        assert_eq!(fs::read(place.path("staging/file")).unwrap(), b"what was written");
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        driver.delete(&source).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}
