//! Volumes that are subvolumes of a btrfs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{MIB, Place, Running, disk::Disk, expect_code, mounted, names, process::Process, publication, request};
use keelson_proto::csi::v1::{
    CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, GetCapacityRequest, ListVolumesRequest,
    NodeExpandVolumeRequest, NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest, VolumeContentSource, VolumeUsage,
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use keelson_testkit::{wait_until, wait_until_async};
use tempfile::TempDir;
use tonic::Code;

const SIZE: i64 = 32 * MIB;

/// Returns from the calling test where there is no btrfs.
macro_rules! needs_btrfs {
    () => {
        needs_a_kernel!();
        let missing = keelson_testkit::missing(&["mkfs.btrfs", "btrfs"]);
        keelson_testkit::skip_unless!(missing.is_empty(), format!("needs {}", missing.join(", ")));
        let kinds = fs::read_to_string("/proc/filesystems").unwrap();
        keelson_testkit::skip_unless!(kinds.contains("\tbtrfs\n"), "the kernel has no btrfs");
    };
}

/// A place whose pool is a btrfs of its own.
fn place() -> (Place, (Disk, TempDir)) {
    let place = Place::new();
    let disk = disk(&place);
    (place, disk)
}

/// Its file lies elsewhere: what is left in the place is looked at.
fn disk(place: &Place) -> (Disk, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::make(&directory.path().join("disk"), "btrfs", 1 << 30, &place.path("pool"));
    (disk, directory)
}

/// Writes a file of so many MiB as a container would, and says what kept that from happening.
fn write(path: &Path, mib: u32) -> Result<(), String> {
    let output = Command::new("dd")
        .args(["if=/dev/urandom", &format!("of={}", path.display()), "bs=65536"])
        .args([&format!("count={}", mib * 16), "conv=fsync"])
        .env("LC_ALL", "C")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[track_caller]
fn full(result: Result<(), String>) {
    let error = result.unwrap_err();
    assert!(error.contains("quota exceeded"), "{error}");
}

/// Lets everybody into the place and write to the volume, as a kubelet with fsGroup would.
fn open_to_all(place: &Place, volume: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for path in [place.path(""), place.path("pods"), volume.to_owned()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
}

/// Ends the transaction: figures are those of the last one.
fn settle(place: &Place) {
    common::disk::run(Command::new("btrfs").args(["filesystem", "sync"]).arg(place.path("pool")));
}

fn copy_of(name: &str, bytes: i64, source: Type) -> CreateVolumeRequest {
    let source = VolumeContentSource { r#type: Some(source) };
    CreateVolumeRequest { volume_content_source: Some(source), ..request(name, bytes, mounted()) }
}

fn of_volume(id: &str) -> Type {
    Type::Volume(VolumeSource { volume_id: id.to_owned() })
}

async fn usage(driver: &mut Running, id: &str, path: &Path) -> VolumeUsage {
    let volume_path = path.to_str().unwrap().to_owned();
    let request =
        NodeGetVolumeStatsRequest { volume_id: id.to_owned(), volume_path, ..NodeGetVolumeStatsRequest::default() };
    driver.node.node_get_volume_stats(request).await.unwrap().into_inner().usage.remove(0)
}

async fn available(driver: &mut Running) -> i64 {
    let answer = driver.controller.get_capacity(GetCapacityRequest::default()).await.unwrap();
    answer.into_inner().available_capacity
}

/// Stages and publishes a volume, and gives the path that a Pod sees.
async fn publish(place: &Place, driver: &mut Running, id: &str, name: &str) -> PathBuf {
    let (staging, target) = (place.text(&format!("staging/{name}")), place.path("pods").join(name));
    fs::create_dir(&staging).unwrap();
    driver.stage(id, &staging, mounted()).await.unwrap();
    driver.publish(publication(id, &staging, target.to_str().unwrap(), mounted())).await.unwrap();
    open_to_all(place, &target);
    target
}

async fn unpublish(place: &Place, driver: &mut Running, id: &str, name: &str) {
    driver.unpublish(id, &place.text(&format!("pods/{name}"))).await.unwrap();
    driver.unstage(id, &place.text(&format!("staging/{name}"))).await.unwrap();
}

fn subvolumes(place: &Place) -> usize {
    common::disk::run(Command::new("btrfs").args(["subvolume", "list"]).arg(place.path("pool"))).lines().count()
}

/// Nothing is left of volumes: neither subvolumes nor qgroups of them. Before Linux 6.10 qgroups stay until the next
/// start sweeps them.
fn expect_clean(place: &Place) {
    place.expect_clean();
    assert_eq!(subvolumes(place), 0);
    if frees_qgroups() {
        expect_no_qgroups(place);
    }
}

/// Whether the kernel removes the qgroup of a subvolume that it has freed.
fn frees_qgroups() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|other: char| !other.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 10)
}

fn expect_no_qgroups(place: &Place) {
    wait_until("the qgroups to be gone", Duration::from_secs(60), || {
        settle(place);
        let show = common::disk::run(Command::new("btrfs").args(["qgroup", "show"]).arg(place.path("pool")));
        (show.lines().filter(|line| line.starts_with("0/")).count() == 1).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_a_subvolume_from_creation_to_deletion() {
    needs_btrfs!();
    let (place, _disk) = place();
    let section = place.section("subvolume");
    let mut driver = Running::start(&place, &section).await;
    let before = available(&mut driver).await;
    let volume = driver.create(request("pvc-1", SIZE - 1, mounted())).await.unwrap();
    assert_eq!(volume.capacity_bytes, SIZE);
    assert_eq!(driver.create(request("pvc-1", SIZE - 1, mounted())).await.unwrap(), volume);
    // It is promised, with a little for bookkeeping.
    let promised = before - available(&mut driver).await;
    assert!((SIZE..SIZE + 2 * MIB).contains(&promised), "{promised}");
    let id = volume.volume_id;
    let pod = publish(&place, &mut driver, &id, "a").await;
    assert_eq!(place.mount_at("pods/a").unwrap().kind, "btrfs");
    write(&pod.join("file"), 8).unwrap();
    settle(&place);
    let shown = usage(&mut driver, &id, &pod).await;
    assert_eq!(shown.total, SIZE);
    assert!((8 * MIB..9 * MIB).contains(&shown.used), "{shown:?}");
    assert_eq!(shown.available, SIZE - shown.used);
    expect_code(driver.delete(&id).await, Code::FailedPrecondition);
    unpublish(&place, &mut driver, &id, "a").await;
    driver.stop().await;

    let mut driver = Running::start(&place, &section).await;
    let pod = publish(&place, &mut driver, &id, "b").await;
    assert_eq!(fs::metadata(pod.join("file")).unwrap().len(), 8 * MIB as u64);
    full(write(&pod.join("more"), 32));
    unpublish(&place, &mut driver, &id, "b").await;
    driver.delete(&id).await.unwrap();
    driver.delete(&id).await.unwrap();
    expect_clean(&place);
    // The kernel frees in the background.
    wait_until_async("the space to be back", Duration::from_secs(60), async || {
        settle(&place);
        (available(&mut driver).await >= before - MIB).then_some(())
    })
    .await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_more_than_the_size_until_it_grows() {
    needs_btrfs!();
    let (place, _disk) = place();
    let mut driver = Running::start(&place, &place.section("subvolume")).await;
    let small = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
    let other = driver.create(request("pvc-2", SIZE, mounted())).await.unwrap().volume_id;
    let pod = publish(&place, &mut driver, &small, "a").await;
    let neighbour = publish(&place, &mut driver, &other, "b").await;
    write(&pod.join("file"), 8).unwrap();
    full(write(&pod.join("more"), 16));
    full(write(&pod.join("more"), 16));
    write(&neighbour.join("file"), 16).unwrap();
    fs::remove_file(pod.join("more")).unwrap();

    let grow = |bytes| NodeExpandVolumeRequest {
        volume_id: small.clone(),
        volume_path: pod.to_str().unwrap().to_owned(),
        capacity_range: request("", bytes, mounted()).capacity_range,
        ..NodeExpandVolumeRequest::default()
    };
    for bytes in [SIZE, SIZE, MIB] {
        let grown = driver.node.node_expand_volume(grow(bytes)).await.unwrap().into_inner();
        assert_eq!(grown.capacity_bytes, SIZE);
    }
    settle(&place);
    write(&pod.join("more"), 16).unwrap();
    assert_eq!(usage(&mut driver, &small, &pod).await.total, SIZE);
    expect_code(driver.node.node_expand_volume(grow(1 << 40)).await, Code::OutOfRange);
    for (id, name) in [(&small, "a"), (&other, "b")] {
        unpublish(&place, &mut driver, id, name).await;
        driver.delete(id).await.unwrap();
    }
    expect_clean(&place);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_volume_holds_a_file() {
    needs_btrfs!();
    let (place, _disk) = place();
    let mut driver = Running::start(&place, &place.section("subvolume")).await;
    let volume = driver.create(request("pvc-1", 1, mounted())).await.unwrap();
    let id = volume.volume_id;
    let pod = publish(&place, &mut driver, &id, "a").await;
    let of = format!("of={}", pod.join("file").display());
    let mut dd = Command::new("dd");
    common::disk::run(dd.args(["if=/dev/urandom", &of, "bs=4096", "count=16", "conv=fsync"]).uid(65534).gid(65534));
    full(write(&pod.join("more"), u32::try_from(volume.capacity_bytes / MIB).unwrap()));
    unpublish(&place, &mut driver, &id, "a").await;
    driver.delete(&id).await.unwrap();
    expect_clean(&place);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_holds_what_the_volume_held_and_has_a_limit_of_its_own() {
    needs_btrfs!();
    let (place, _disk) = place();
    let section = place.section("subvolume");
    let mut driver = Running::start(&place, &section).await;
    let before = available(&mut driver).await;
    let source = driver.create(request("pvc-1", SIZE, mounted())).await.unwrap().volume_id;
    let pod = publish(&place, &mut driver, &source, "a").await;
    write(&pod.join("file"), 8).unwrap();
    let content = fs::read(pod.join("file")).unwrap();
    // Not on the disk yet; it is part of the copy all the same.
    fs::write(pod.join("late"), b"late").unwrap();
    let mut small = copy_of("pvc-2", MIB, of_volume(&source));
    small.capacity_range.as_mut().unwrap().limit_bytes = 16 * MIB;
    expect_code(driver.create(small).await, Code::OutOfRange);
    let clone = driver.create(copy_of("pvc-2", 2 * SIZE, of_volume(&source))).await.unwrap();
    assert_eq!(driver.create(copy_of("pvc-2", 2 * SIZE, of_volume(&source))).await.unwrap(), clone);
    assert_eq!(clone.capacity_bytes, 2 * SIZE);
    fs::write(pod.join("file"), b"overwritten").unwrap();
    fs::remove_file(pod.join("late")).unwrap();
    // What is shared is taken once and promised twice.
    settle(&place);
    let promised = before - available(&mut driver).await;
    assert!((3 * SIZE - MIB..3 * SIZE + 2 * MIB).contains(&promised), "{promised}");
    unpublish(&place, &mut driver, &source, "a").await;
    driver.delete(&source).await.unwrap();
    driver.stop().await;

    let mut driver = Running::start(&place, &section).await;
    let pod = publish(&place, &mut driver, &clone.volume_id, "b").await;
    assert!(fs::read(pod.join("file")).unwrap() == content);
    assert_eq!(fs::read(pod.join("late")).unwrap(), b"late");
    write(&pod.join("more"), 40).unwrap();
    full(write(&pod.join("beyond"), 40));
    unpublish(&place, &mut driver, &clone.volume_id, "b").await;
    driver.delete(&clone.volume_id).await.unwrap();
    expect_clean(&place);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_holds_what_the_volume_held_and_what_is_made_from_it_has_a_limit_of_its_own() {
    needs_btrfs!();
    let (place, _disk) = place();
    let section = place.section("subvolume");
    let mut driver = Running::start(&place, &section).await;
    let before = available(&mut driver).await;
    let source = driver.create(request("pvc-1", SIZE, mounted())).await.unwrap().volume_id;
    let pod = publish(&place, &mut driver, &source, "a").await;
    write(&pod.join("file"), 8).unwrap();
    let content = fs::read(pod.join("file")).unwrap();
    // Not on the disk yet; it is part of the copies all the same.
    fs::write(pod.join("late"), b"late").unwrap();

    let snapshot = CreateSnapshotRequest {
        source_volume_id: source.clone(),
        name: "snapshot-1".to_owned(),
        ..CreateSnapshotRequest::default()
    };
    let taken = driver.controller.create_snapshot(snapshot.clone()).await.unwrap().into_inner().snapshot.unwrap();
    let again = driver.controller.create_snapshot(snapshot).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(taken, again);
    assert_eq!(taken.size_bytes, SIZE);
    let data = place.path("pool/snapshots").join(&taken.snapshot_id).join("data");
    let error = fs::write(data.join("file"), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let mut small = copy_of("pvc-2", MIB, of_volume(&source));
    small.capacity_range.as_mut().unwrap().limit_bytes = 16 * MIB;
    expect_code(driver.create(small).await, Code::OutOfRange);

    let clone = driver.create(copy_of("pvc-2", 2 * SIZE, of_volume(&source))).await.unwrap();
    assert_eq!(clone.capacity_bytes, 2 * SIZE);
    fs::write(pod.join("file"), b"overwritten").unwrap();
    fs::remove_file(pod.join("late")).unwrap();
    unpublish(&place, &mut driver, &source, "a").await;
    driver.delete(&source).await.unwrap();
    driver.stop().await;

    let mut driver = Running::start(&place, &section).await;
    let of_snapshot = Type::Snapshot(SnapshotSource { snapshot_id: taken.snapshot_id.clone() });
    let restored = driver.create(copy_of("pvc-3", SIZE, of_snapshot)).await.unwrap();
    assert_eq!(restored.capacity_bytes, SIZE);
    for (id, name, room) in [(&clone.volume_id, "b", 24), (&restored.volume_id, "c", 8)] {
        let pod = publish(&place, &mut driver, id, name).await;
        assert!(fs::read(pod.join("file")).unwrap() == content, "{name}");
        assert_eq!(fs::read(pod.join("late")).unwrap(), b"late");
        write(&pod.join("more"), room).unwrap();
        full(write(&pod.join("beyond"), 40));
        unpublish(&place, &mut driver, id, name).await;
    }
    assert!(fs::read(data.join("file")).unwrap() == content);
    let request = DeleteSnapshotRequest { snapshot_id: taken.snapshot_id, ..DeleteSnapshotRequest::default() };
    driver.controller.delete_snapshot(request).await.unwrap();
    let small = driver.controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
    for entry in small.into_inner().entries {
        driver.delete(&entry.volume.unwrap().volume_id).await.unwrap();
    }
    expect_clean(&place);
    assert_eq!(names(&place.path("pool/snapshots")), [""; 0]);
    wait_until_async("the space to be back", Duration::from_secs(60), async || {
        settle(&place);
        (available(&mut driver).await >= before - MIB).then_some(())
    })
    .await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subvolumes_that_a_pod_made_are_counted_and_deleted_with_its_volume() {
    needs_btrfs!();
    let (place, _disk) = place();
    let mut driver = Running::start(&place, &place.section("subvolume")).await;
    let id = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
    let pod = publish(&place, &mut driver, &id, "a").await;
    let btrfs = |arguments: &[&str], paths: &[&Path]| {
        let mut command = Command::new("btrfs");
        common::disk::run(command.args(arguments).args(paths).uid(65534).gid(65534));
    };
    btrfs(&["subvolume", "create"], &[&pod.join("inner")]);
    btrfs(&["subvolume", "create"], &[&pod.join("inner/innermost")]);
    // The trap that docs/storage.md tells of: no limit holds there.
    write(&pod.join("inner/file"), 32).unwrap();
    btrfs(&["subvolume", "snapshot", "-r"], &[&pod.join("inner"), &pod.join("frozen")]);
    settle(&place);
    let shown = usage(&mut driver, &id, &pod).await;
    assert!(shown.total == 16 * MIB && shown.used > 32 * MIB && shown.available == 0, "{shown:?}");
    let request = NodeGetVolumeHealthRequest { volume_id: id.clone(), ..NodeGetVolumeHealthRequest::default() };
    let health = driver.node.node_get_volume_health(request).await.unwrap().into_inner().volume_health.unwrap();
    assert_eq!(health.health_statuses[0].reason, "LimitEscaped");
    unpublish(&place, &mut driver, &id, "a").await;
    driver.delete(&id).await.unwrap();
    expect_clean(&place);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_froze_in_a_directory_on_btrfs_is_deleted_too() {
    needs_btrfs!();
    let (place, _disk) = place();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let id = driver.create(request("pvc-1", MIB, mounted())).await.unwrap().volume_id;
    let pod = publish(&place, &mut driver, &id, "a").await;
    for arguments in [
        &["create", "pods/a/deep"][..],
        &["create", "pods/a/deep/inner"],
        &["snapshot", "-r", "pods/a/deep", "pods/a/deep/frozen"],
    ] {
        let mut command = Command::new("btrfs");
        let paths = arguments.iter().map(|argument| argument.replace("pods", &place.text("pods")));
        common::disk::run(command.arg("subvolume").args(paths).uid(65534).gid(65534));
    }
    fs::write(pod.join("file"), b"x").unwrap();
    unpublish(&place, &mut driver, &id, "a").await;
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    assert_eq!(subvolumes(&place), 0);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_driver_left_is_swept_and_limits_are_set_anew() {
    needs_btrfs!();
    let (place, _disk) = place();
    let section = place.section("subvolume");
    let (process, mut clients) = Process::serve(&place, &section).await;
    let created = clients.controller.create_volume(request("pvc-1", SIZE, mounted())).await.unwrap().into_inner();
    let id = created.volume.unwrap().volume_id;
    drop((process, clients));
    // As a kill leaves it: one half made, a group half removed.
    let btrfs = |arguments: &[&str]| common::disk::run(Command::new("btrfs").args(arguments));
    let building = place.path("pool/building");
    for folder in ["v1-00000000000000000000000000000001", "g1-1/s1-1", "g1-1/s1-2"] {
        fs::create_dir_all(building.join(folder)).unwrap();
        let data = building.join(folder).join("data");
        btrfs(&["subvolume", "create", data.to_str().unwrap()]);
        fs::write(data.join("file"), b"x").unwrap();
        btrfs(&["property", "set", "-ts", data.to_str().unwrap(), "ro", "true"]);
    }
    // An administrator.
    let data = place.path("pool/volumes").join(&id).join("data");
    btrfs(&["quota", "disable", &place.text("pool")]);

    let mut driver = Running::start(&place, &section).await;
    assert_eq!(names(&building), [""; 0]);
    let pod = publish(&place, &mut driver, &id, "a").await;
    wait_until("quotas to be counted", Duration::from_secs(60), || {
        settle(&place);
        let show = btrfs(&["qgroup", "show", "-re", "--raw", data.to_str().unwrap()]);
        show.contains(&SIZE.to_string()).then_some(())
    });
    full(write(&pod.join("file"), 40));
    unpublish(&place, &mut driver, &id, "a").await;
    driver.delete(&id).await.unwrap();
    expect_clean(&place);
    driver.stop().await;
    settle(&place);
    btrfs(&["subvolume", "sync", &place.text("pool")]);
    let driver = Running::start(&place, &section).await;
    expect_no_qgroups(&place);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_subvolumes_needs_a_btrfs() {
    needs_btrfs!();
    let place = Place::new();
    let section: keelson_csi::StorageSection =
        keelson_host::parse_section("storage", &place.section("subvolume")).unwrap();
    let problems = section.validate(&place.node()).unwrap_err();
    assert_eq!(problems.0.len(), 1, "{problems}");
    assert_eq!(problems.0[0].path, "storage.pools[0].kind");
    assert!(problems.to_string().contains("needs btrfs"), "{problems}");

    // The disk went away after the config was checked.
    let disk = disk(&place);
    let settings = Running::settings(&place, &place.section("subvolume"));
    drop(disk);
    let mut driver = Running::start_with(&place, settings).await;
    let status = expect_code(driver.create(request("pvc-1", SIZE, mounted())).await, Code::Unavailable);
    assert!(status.message().contains("needs btrfs"), "{status}");
    assert_eq!(names(&place.path("pool")), [""; 0], "nothing is made on another disk");
    driver.stop().await;
}
