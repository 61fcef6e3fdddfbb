//! What an operator is told of pools, volumes and the kernel, and what a collection leaves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{
    MIB, Place, Running, block,
    disk::{Disk, run},
    mounted, publication, request,
};
use keelson_csi::{
    Helper, StorageSettings,
    operator::{
        FsckRequest, GcRequest, PoolState, Severity, ShownKind, UseKind, damaged as damaged_records, df, fsck, gc,
        groups, show, snapshots, volumes,
    },
};
use keelson_testkit::{missing, skip_unless};
use serde_json::{Value, json};

const POD: &str = "5b1c2d3e-0000-4000-8000-0123456789ab";

fn settings(place: &Place, section: &Value) -> StorageSettings {
    let mut settings = Running::settings(place, section);
    settings.helper = Helper::new(env!("CARGO_BIN_EXE_keelson-csi-alone"), ["storage-helper"]);
    settings
}

/// Every finding that is more than a note: its check, and the last part of its place.
fn wrong(settings: &StorageSettings) -> Vec<(String, String)> {
    let report = fsck(settings, &FsckRequest::default()).unwrap();
    let last = |place: &str| place.rsplit('/').next().unwrap().to_owned();
    let more_than_notes = report.findings.iter().filter(|finding| finding.severity != Severity::Note);
    let mut found: Vec<_> = more_than_notes.map(|finding| (finding.check.to_owned(), last(&finding.place))).collect();
    found.sort();
    found
}

fn checks(settings: &StorageSettings) -> Vec<String> {
    wrong(settings).into_iter().map(|(check, _)| check).collect()
}

/// Every file below a directory with its inode number, size and times of change.
fn tree(path: &Path) -> Vec<(PathBuf, u64, u64, i64, i64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let about = entry.metadata().unwrap();
        found.push((entry.path(), about.ino(), about.size(), about.mtime_nsec(), about.ctime_nsec()));
        if about.is_dir() {
            found.extend(tree(&entry.path()));
        }
    }
    found.sort();
    found
}

fn image(place: &Place, id: &str) -> PathBuf {
    place.path("pool/volumes").join(id).join("image")
}

/// Binds a loop device to a file, as somebody could by hand; gone when dropped.
struct Loop(String);

impl Loop {
    fn bind(file: &Path) -> Self {
        Self(run(Command::new("losetup").args(["-f", "--show"]).arg(file)).trim().to_owned())
    }

    fn is_bound(&self) -> bool {
        Command::new("losetup").arg(&self.0).output().unwrap().status.success()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_beside_a_running_driver_shows_all_and_changes_nothing() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=512m");
    let section = place.section("image");
    let settings = settings(&place, &section);
    // Before the first use: nothing is made.
    assert_eq!(df(&settings)[0].state, PoolState::Unused);
    assert_eq!(tree(&place.path("pool")), []);
    assert_eq!(checks(&settings), [""; 0]);

    let mut driver = Running::start(&place, &section).await;
    let target = format!("pods/{POD}/volumes/kubernetes.io~csi/pvc-1/mount");
    fs::create_dir_all(place.path(&target).parent().unwrap()).unwrap();
    let staging = place.text("staging");
    let used = driver.create(request("pvc-1", 64 * MIB, mounted())).await.unwrap().volume_id;
    let raw = driver.create(request("pvc-2", 32 * MIB, block())).await.unwrap().volume_id;
    driver.stage(&used, &staging, mounted()).await.unwrap();
    driver.publish(publication(&used, &staging, &place.text(&target), mounted())).await.unwrap();

    let before = (tree(&place.path("pool")), tree(&place.path("state")), place.loops());
    let [pool] = &df(&settings)[..] else { panic!("one pool") };
    assert_eq!((pool.state, pool.volumes, pool.snapshots), (PoolState::Available, 2, 0));
    assert_eq!((pool.filesystem.as_deref(), pool.shares_blocks), (Some("tmpfs"), false));
    let space = pool.space.unwrap();
    assert_eq!(space.total_bytes, 512 << 20);
    assert!(space.promised_bytes >= 96 << 20 && space.promised_bytes <= 97 << 20, "{space:?}");
    assert!(space.taken_bytes > 0 && space.taken_bytes < space.promised_bytes, "{space:?}");

    // The driver tells the same by its metrics, once it has counted.
    let metrics = keelson_testkit::wait_until("the pool's figures", Duration::from_secs(60), || {
        let text = driver.metrics();
        text.contains("keelson_storage_pool_total_bytes{pool=\"pool\"}").then_some(text)
    });
    for (name, value) in [("total_bytes", space.total_bytes), ("promised_bytes", space.promised_bytes), ("volumes", 2)]
    {
        let line = format!("keelson_storage_pool_{name}{{pool=\"pool\"}} {value}\n");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }

    let (listed, unread) = volumes(&settings).unwrap();
    assert_eq!((listed.len(), unread.len()), (2, 0));
    let first = listed.iter().find(|volume| volume.id == used).unwrap();
    assert_eq!((first.name.as_str(), first.bytes, first.content), ("pvc-1", 64 << 20, "ext4"));
    let uses: Vec<_> = first.uses.iter().map(|one| (one.what, one.pod_uid.as_deref())).collect();
    assert_eq!(uses, [(UseKind::Staged, None), (UseKind::Published, Some(POD))]);
    let allocated = fs::metadata(image(&place, &used)).unwrap().blocks() * 512;
    assert_eq!((first.exclusive_bytes, first.shared_bytes), (Some(allocated), Some(0)));
    let second = listed.iter().find(|volume| volume.id == raw).unwrap();
    assert_eq!((second.content, second.uses.len(), second.devices.len()), ("block", 0, 0));

    let shown = show(&settings, "pvc-1", &Ok(driver.operations.list())).unwrap();
    let [shown] = &shown[..] else { panic!("one volume") };
    assert!(matches!(&shown.kind, ShownKind::Volume(volume) if volume.id == used));
    let file = shown.image.as_ref().unwrap();
    assert_eq!((file.bytes, file.shows.as_deref(), file.filesystem_bytes), (64 << 20, Some("ext4"), Some(64 << 20)));
    assert_eq!(shown.devices.len(), 1);
    assert_eq!(shown.devices[0].node, format!("/dev/loop{}", place.loops()[0]));
    assert!(shown.devices[0].discards && !shown.devices[0].read_only);
    assert_eq!((shown.recorded_staged.as_deref(), shown.recorded_published.len()), (Some(staging.as_str()), 1));
    assert_eq!((shown.operations.as_deref(), shown.findings.len()), (Some(&[][..]), 0));
    let error = show(&settings, "pvc-3", &Err("no driver answers".to_owned())).unwrap_err();
    assert!(error.to_string().contains("pvc-3"), "{error}");

    assert_eq!(wrong(&settings), []);
    // What a driver may be at work on is named, and left alone.
    let work = place.path("pool/building/v1-00000000000000000000000000000000");
    fs::create_dir(&work).unwrap();
    assert_eq!(wrong(&settings), []);
    let collected = gc(&settings, GcRequest::default()).unwrap();
    assert_eq!((collected.removed.len(), collected.skipped.len(), collected.failed.len()), (0, 1, 0));
    assert!(collected.skipped[0].reason.contains("a driver uses the pool"), "{collected:?}");
    fs::remove_dir(&work).unwrap();
    let after = (tree(&place.path("pool")), tree(&place.path("state")), place.loops());
    let without_building = |tree: Vec<(PathBuf, u64, u64, i64, i64)>| -> Vec<_> {
        tree.into_iter().filter(|(path, ..)| !path.ends_with("building")).collect()
    };
    assert_eq!(without_building(after.0), without_building(before.0));
    assert_eq!((after.1, after.2), (before.1, before.2));

    driver.unpublish(&used, &place.text(&target)).await.unwrap();
    driver.unstage(&used, &staging).await.unwrap();
    driver.delete(&used).await.unwrap();
    driver.delete(&raw).await.unwrap();
    driver.stop().await;
    place.expect_clean();
}

/// A group of two snapshots of a volume, as the driver makes them.
fn add_group(place: &Place, volume: &str) {
    let group = "g1-11111111111111111111111111111111";
    let members = ["s1-11111111111111111111111111111111", "s1-22222222222222222222222222222222"];
    let home = place.path("pool/groups").join(group);
    let source = place.path("pool/volumes").join(volume);
    let record: Value = serde_json::from_slice(&fs::read(source.join("volume.json")).unwrap()).unwrap();
    for member in members {
        let folder = home.join(member);
        fs::create_dir_all(&folder).unwrap();
        run(Command::new("cp").arg("--sparse=always").args([source.join("image"), folder.join("image")]));
        let text = json!({"version": 1, "id": member, "name": "", "volume": volume, "bytes": record["bytes"],
            "held": 1 << 20, "created": 1, "content": record["content"], "family": volume, "group": group});
        fs::write(folder.join("snapshot.json"), text.to_string()).unwrap();
    }
    let text = json!({"version": 1, "id": group, "name": "group-2", "created": 1, "snapshots": members,
        "pauseMicroseconds": 1});
    fs::write(home.join("group.json"), text.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_damage_is_found_and_a_collection_takes_nothing_that_lives() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=512m");
    let section = place.section("image");
    let mut settings = settings(&place, &section);
    settings.registration = Some(place.path("registry"));
    let mut driver = Running::start(&place, &section).await;
    let mut ids = Vec::new();
    for number in 0..7 {
        ids.push(driver.create(request(&format!("pvc-{number}"), 16 * MIB, mounted())).await.unwrap().volume_id);
    }
    driver.stop().await;
    assert_eq!(wrong(&settings), []);

    let [short, gone, empty, damaged, twin, well, unread] = &ids[..] else { panic!("seven volumes") };
    // The members of a group have no names, and so have no name twice.
    add_group(&place, well);
    assert_eq!(wrong(&settings), []);
    File::options().write(true).open(image(&place, short)).unwrap().set_len(8 << 20).unwrap();
    fs::remove_file(image(&place, gone)).unwrap();
    File::options().write(true).open(image(&place, empty)).unwrap().write_all_at(&[0; 4096], 0).unwrap();
    fs::write(place.path("pool/volumes").join(damaged).join("volume.json"), b"{").unwrap();
    let record = place.path("pool/volumes").join(twin).join("volume.json");
    let text = fs::read_to_string(&record).unwrap().replace("\"pvc-4\"", "\"pvc-5\"");
    fs::write(&record, text).unwrap();
    let stale = "v1-ffffffffffffffffffffffffffffffff";
    let attachment = json!({"version": 1, "staged": {"path": place.path("staging"),
        "capability": {"mode": "writer", "access": "block"}}, "published": []});
    let attachments = place.path("state/storage/attachments");
    fs::write(attachments.join(format!("{stale}.json")), attachment.to_string()).unwrap();
    fs::write(attachments.join(format!("{gone}.json")), attachment.to_string()).unwrap();
    fs::write(attachments.join(format!("{well}.json")), b"{").unwrap();
    fs::create_dir(place.path("registry")).unwrap();
    // A socket's file outlives who served it.
    drop(std::os::unix::net::UnixListener::bind(place.path("registry/gone.example@keelson")).unwrap());
    // A regular file that can be opened, and whose first bytes are an error: nothing is mapped there.
    place.bind(&format!("/proc/{}/mem", std::process::id()), &format!("pool/volumes/{unread}/image"));
    fs::create_dir_all(place.path("pool/building/v1-00000000000000000000000000000000")).unwrap();
    fs::write(place.path("pool/building/v1-00000000000000000000000000000000/image"), b"x").unwrap();
    fs::create_dir_all(place.path("pool/templates")).unwrap();
    fs::write(place.path("pool/templates/ext4-4096"), [0; 4096]).unwrap();
    fs::write(place.path("pool/templates/.half"), b"").unwrap();
    fs::write(place.path("pool/volumes/notes.txt"), b"mine").unwrap();
    let group = "g1-0123456789abcdef0123456789abcdef";
    fs::create_dir(place.path("pool/groups").join(group)).unwrap();
    let text = json!({"version": 1, "id": group, "name": "group-1", "created": 1,
        "snapshots": ["s1-0123456789abcdef0123456789abcdef"], "pauseMicroseconds": 1});
    fs::write(place.path("pool/groups").join(group).join("group.json"), text.to_string()).unwrap();
    // A snapshot that the group's record doesn't name.
    let stranger = "s1-fedcba9876543210fedcba9876543210";
    let folder = place.path("pool/groups").join(group).join(stranger);
    fs::create_dir(&folder).unwrap();
    fs::copy(image(&place, well), folder.join("image")).unwrap();
    let volume = fs::read(place.path("pool/volumes").join(well).join("volume.json")).unwrap();
    let volume: Value = serde_json::from_slice(&volume).unwrap();
    let text = json!({"version": 1, "id": stranger, "name": "", "volume": well, "bytes": 16 << 20, "held": 0, "created": 1,
        "content": volume["content"], "family": well, "group": group});
    fs::write(folder.join("snapshot.json"), text.to_string()).unwrap();

    let removable = [
        ("attachment-stale", format!("{stale}.json")),
        ("socket-dead", "gone.example@keelson".to_owned()),
        ("leftover", "v1-00000000000000000000000000000000".to_owned()),
        ("template-invalid", ".half".to_owned()),
        ("template-invalid", "ext4-4096".to_owned()),
    ];
    let mut expected: Vec<(String, String)> = vec![
        ("attachment-unreadable".to_owned(), format!("{well}.json")),
        ("filesystem-larger".to_owned(), "image".to_owned()),
        ("filesystem-lost".to_owned(), "image".to_owned()),
        ("group-incomplete".to_owned(), group.to_owned()),
        ("group-stranger".to_owned(), group.to_owned()),
        ("image-missing".to_owned(), "image".to_owned()),
        ("image-size".to_owned(), "image".to_owned()),
        ("image-size".to_owned(), "image".to_owned()),
        ("image-unreadable".to_owned(), "image".to_owned()),
        ("record-unreadable".to_owned(), damaged.clone()),
        ("stranger".to_owned(), "notes.txt".to_owned()),
    ];
    let stays = expected.clone();
    expected.extend(removable.map(|(check, place)| (check.to_owned(), place)));
    expected.sort();
    let without_twins = |found: Vec<(String, String)>| -> Vec<(String, String)> {
        assert_eq!(found.iter().filter(|(check, _)| check == "name-twice").count(), 1, "{found:?}");
        found.into_iter().filter(|(check, _)| check != "name-twice").collect()
    };
    assert_eq!(without_twins(wrong(&settings)), expected);
    // Without its record, what is left of it is shown.
    let shown = show(&settings, damaged, &Err(String::new())).unwrap();
    let [one] = &shown[..] else { panic!("one volume") };
    assert!(matches!(&one.kind, ShownKind::Damaged(report) if report.id == *damaged), "{:?}", one.kind);
    assert_eq!(one.image.as_ref().unwrap().bytes, 16 << 20);
    assert_eq!(one.findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), ["record-unreadable"]);
    let missing_in_lists: Vec<String> = damaged_records(&settings).into_iter().map(|one| one.id).collect();
    assert_eq!(&missing_in_lists, std::slice::from_ref(damaged));
    // One thing alone.
    let one = |selector: &str| {
        let request = FsckRequest { selectors: vec![selector.to_owned()], ..FsckRequest::default() };
        fsck(&settings, &request).unwrap().findings.into_iter().map(|finding| finding.check).collect::<Vec<_>>()
    };
    assert_eq!(one("pvc-2"), ["filesystem-lost"]);
    assert_eq!(one(empty), ["filesystem-lost"]);
    fsck(&settings, &FsckRequest { selectors: vec!["pvc-9".to_owned()], ..FsckRequest::default() }).unwrap_err();

    let before = (tree(&place.path("pool")), tree(&place.path("state")));
    let planned = gc(&settings, GcRequest { dry_run: true, force: false }).unwrap();
    assert_eq!((tree(&place.path("pool")), tree(&place.path("state"))), before, "a dry run changes nothing");
    let done = gc(&settings, GcRequest::default()).unwrap();
    assert_eq!(done.removed, planned.removed);
    assert_eq!((done.removed.len(), done.skipped.len(), done.failed.len()), (5, 0, 0), "{done:?}");
    assert_eq!(without_twins(wrong(&settings)), stays);
    assert_eq!(place.volumes().len(), 8, "seven volumes and the stranger");
    assert!(attachments.join(format!("{gone}.json")).exists(), "the record of a volume that is damaged stays");
    assert_eq!(gc(&settings, GcRequest::default()).unwrap().removed, []);
    place.unmount(&format!("pool/volumes/{unread}/image"));
    // The lock was given back.
    Running::start(&place, &section).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loop_devices_and_mounts_that_no_record_explains() {
    needs_a_kernel!();
    let place = Place::new();
    let section = place.section("image");
    let settings = settings(&place, &section);
    let mut driver = Running::start(&place, &section).await;
    let id = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
    driver.stage(&id, &place.text("staging"), mounted()).await.unwrap();
    assert_eq!(wrong(&settings), []);

    // Somebody else's is never looked at.
    fs::write(place.path("image"), vec![0; 1 << 20]).unwrap();
    let foreign = Loop::bind(&place.path("image"));
    fs::remove_file(place.path("image")).unwrap();
    assert_eq!(wrong(&settings), []);

    fs::create_dir(place.path("elsewhere")).unwrap();
    place.bind("staging", "elsewhere");
    let second = Loop::bind(&image(&place, &id));
    assert_eq!(checks(&settings), ["loop-twice", "mount-unexplained"]);
    drop(second);
    place.unmount("elsewhere");
    assert_eq!(wrong(&settings), []);

    // The image vanishes below a mount: what a disk's owner can do by hand.
    fs::remove_dir_all(place.path("pool/volumes").join(&id)).unwrap();
    let deleted = [("mount-deleted-image".to_owned(), "image".to_owned())];
    assert_eq!(wrong(&settings), deleted);
    let collected = gc(&settings, GcRequest { dry_run: false, force: true }).unwrap();
    assert_eq!((collected.removed.len(), collected.failed.len()), (0, 0), "{collected:?}");
    assert!(collected.skipped[0].reason.contains("mounted at"), "{collected:?}");
    place.unmount("staging");
    assert_eq!(checks(&settings), ["loop-deleted-image"]);
    let is_of_volume =
        |number: &u32| fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).unwrap().contains(&id);
    let node = format!("/dev/loop{}", place.loops().into_iter().find(is_of_volume).unwrap());
    let opened = File::open(&node).unwrap();
    let collected = gc(&settings, GcRequest::default()).unwrap();
    assert!(collected.removed.is_empty(), "{collected:?}");
    assert!(collected.skipped[0].reason.contains(&std::process::id().to_string()), "{collected:?}");
    drop(opened);
    let collected = gc(&settings, GcRequest::default()).unwrap();
    let removed: Vec<_> = collected.removed.iter().map(|entry| (entry.what, entry.place.as_str())).collect();
    assert_eq!(removed, [("loop", node.as_str())]);
    assert!(!Path::new(&format!("/sys/block/{}/loop/backing_file", &node[5..])).exists());
    assert!(foreign.is_bound());
    // The record of where it is staged is nobody's now.
    assert_eq!(checks(&settings), ["attachment-stale"]);
    assert_eq!(gc(&settings, GcRequest::default()).unwrap().removed[0].what, "attachment");
    assert_eq!(wrong(&settings), []);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_disk_is_told_and_hides_nothing_else() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=128m");
    fs::create_dir(place.path("other")).unwrap();
    let mut section = place.section("image");
    let other =
        json!({"name": "other", "path": place.path("other"), "kind": "directory", "allowSharedFilesystem": true});
    section["pools"].as_array_mut().unwrap().push(other);
    let settings = settings(&place, &section);
    let mut driver = Running::start(&place, &section).await;
    let mut second = request("pvc-2", MIB, mounted());
    second.parameters = [("pool".to_owned(), "other".to_owned())].into();
    driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap();
    let kept = driver.create(second).await.unwrap().volume_id;
    driver.stop().await;
    let stale = place.path("state/storage/attachments/v1-ffffffffffffffffffffffffffffffff.json");
    let nobodys = json!({"version": 1, "staged": null, "published": [{"target": "/nowhere", "readOnly": false,
        "capability": {"mode": "writer", "access": "block"}}]});
    fs::write(&stale, nobodys.to_string()).unwrap();

    // A directory that is mounted, and whose volume somebody removes by hand.
    place.bind(&format!("other/volumes/{kept}/data"), "staging");
    assert_eq!(checks(&settings), ["attachment-stale", "mount-unexplained"]);
    fs::rename(place.path("other/volumes").join(&kept), place.path("kept")).unwrap();
    assert_eq!(checks(&settings), ["attachment-stale"], "it lies in no pool now");
    fs::rename(place.path("kept"), place.path("other/volumes").join(&kept)).unwrap();
    let record = place.path("other/volumes").join(&kept).join("volume.json");
    fs::rename(&record, place.path("volume.json")).unwrap();
    assert_eq!(checks(&settings), ["attachment-stale", "record-unreadable"]);
    fs::rename(place.path("volume.json"), &record).unwrap();
    place.unmount("staging");
    fs::rename(place.path("other/volumes").join(&kept), place.path("kept")).unwrap();
    fs::create_dir_all(place.path("other/volumes").join(&kept).join("data")).unwrap();
    place.bind(&format!("other/volumes/{kept}/data"), "staging");
    fs::remove_dir_all(place.path("other/volumes").join(&kept)).unwrap();
    assert_eq!(checks(&settings), ["attachment-stale", "mount-deleted-directory"]);
    place.unmount("staging");
    fs::rename(place.path("kept"), place.path("other/volumes").join(&kept)).unwrap();

    place.unmount("pool");
    let pools = df(&settings);
    assert_eq!((pools[0].state, pools[0].volumes, pools[0].space), (PoolState::Unavailable, 0, None));
    assert!(pools[0].reason.as_ref().unwrap().contains("is its disk mounted?"), "{:?}", pools[0].reason);
    assert_eq!((pools[1].state, pools[1].volumes, pools[1].enforces_sizes), (PoolState::Available, 1, false));
    let (listed, unread) = volumes(&settings).unwrap();
    assert_eq!((listed[0].id.as_str(), listed.len(), unread), (kept.as_str(), 1, vec!["pool".to_owned()]));
    assert_eq!((listed[0].content, listed[0].exclusive_bytes), ("directory", None));
    let report = fsck(&settings, &FsckRequest::default()).unwrap();
    assert_eq!(report.unread_pools, ["pool"]);
    assert_eq!(report.findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), ["pool-unavailable"]);
    // The volume may lie on the disk that is missing.
    assert_eq!(gc(&settings, GcRequest::default()).unwrap().removed, []);
    assert!(stale.exists());
    let error = show(&settings, "pvc-1", &Err(String::new())).unwrap_err();
    assert!(error.to_string().contains("could not be read: pool pool"), "{error}");
    assert_eq!(tree(&place.path("pool")), [], "nothing is made below a missing disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn filesystems_that_share_blocks_and_what_their_programs_say() {
    needs_a_kernel!();
    skip_unless!(
        missing(&["mkfs.xfs", "xfs_repair", "e2fsck", "mkfs.btrfs"]).is_empty(),
        "needs e2fsprogs, xfsprogs and btrfs-progs"
    );
    for filesystem in ["xfs", "btrfs"] {
        let place = Place::new();
        let _disk = Disk::make(&place.path("disk"), filesystem, 1 << 30, &place.path("pool"));
        let section = place.section("image");
        let settings = settings(&place, &section);
        let mut driver = Running::start(&place, &section).await;
        let ext4 = driver.create(request("pvc-1", 64 * MIB, mounted())).await.unwrap().volume_id;
        let mut of_xfs = request("pvc-2", 300 * MIB, mounted());
        of_xfs.parameters = [("csi.storage.k8s.io/fstype".to_owned(), "xfs".to_owned())].into();
        driver.create(of_xfs).await.unwrap();
        driver.stop().await;

        let pool = &df(&settings)[0];
        assert_eq!((pool.filesystem.as_deref(), pool.shares_blocks), (Some(filesystem), true));
        let deep = FsckRequest { deep: true, ..FsckRequest::default() };
        let report = fsck(&settings, &deep).unwrap();
        assert_eq!((report.findings.as_slice(), report.checked, report.checked_deeply), (&[][..], 2, 2));

        // A snapshot as the driver cuts them.
        let snapshot = "s1-0123456789abcdef0123456789abcdef";
        let folder = place.path("pool/snapshots").join(snapshot);
        fs::create_dir(&folder).unwrap();
        File::options().write(true).open(image(&place, &ext4)).unwrap().write_all_at(&[7; 1 << 20], 32 << 20).unwrap();
        File::create(folder.join("image")).unwrap();
        if filesystem == "btrfs" {
            // Only what is alike shares blocks there.
            run(Command::new("chattr").arg("+C").arg(folder.join("image")));
        }
        run(Command::new("cp").arg("--reflink=always").args([image(&place, &ext4), folder.join("image")]));
        run(Command::new("sync").arg("-f").arg(&folder));
        let volume: Value =
            serde_json::from_slice(&fs::read(place.path("pool/volumes").join(&ext4).join("volume.json")).unwrap())
                .unwrap();
        let record = json!({"version": 1, "id": snapshot, "name": "snap-1", "volume": ext4, "bytes": 64 << 20,
            "held": 1 << 20, "created": 1_763_740_800_123_456_789_u64, "content": volume["content"], "family": ext4});
        fs::write(folder.join("snapshot.json"), record.to_string()).unwrap();
        let (listed, _) = snapshots(&settings).unwrap();
        assert_eq!((listed[0].volume.as_str(), listed[0].created_at_seconds), (ext4.as_str(), 1_763_740_800));
        assert!(listed[0].shared_bytes.unwrap() >= 1 << 20, "{listed:?}");
        assert_eq!(listed[0].exclusive_bytes, Some(0));
        let shown = show(&settings, &ext4, &Err("no driver answers".to_owned())).unwrap();
        assert_eq!((shown[0].relatives[0].id.as_str(), shown[0].relatives.len()), (snapshot, 1));
        assert_eq!(shown[0].operations_problem.as_deref(), Some("no driver answers"));
        assert!(shown[0].image.as_ref().unwrap().extents.unwrap() > 0);
        assert_eq!(groups(&settings).0.len(), 0);
        assert_eq!(wrong(&settings), []);

        // Its root directory's inode is destroyed, its superblock isn't: block 1 has the group descriptors.
        let file = File::options().write(true).open(image(&place, &ext4)).unwrap();
        file.write_all_at(&[0xa5; 4096], 4096).unwrap();
        assert_eq!(wrong(&settings), []);
        let found = fsck(&settings, &deep).unwrap().findings;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].check, "filesystem-damaged");
        assert!(found[0].problem.starts_with("e2fsck: "), "{found:?}");
        assert!(found[0].subject.contains("pvc-1"), "{found:?}");
    }
}
