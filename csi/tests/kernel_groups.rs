//! Snapshots of several volumes at one instant.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use common::{
    MIB, Place, Running, block,
    disk::{Disk, run},
    expect_code, mounted, names,
    process::{Clients, Process},
    publication, request,
};
use keelson_proto::csi::v1::{
    CreateVolumeGroupSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeGroupSnapshotRequest,
    DeleteVolumeRequest, GetVolumeGroupSnapshotRequest, ListSnapshotsRequest, NodeStageVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, VolumeContentSource, VolumeGroupSnapshot,
    group_controller_client::GroupControllerClient,
    volume_content_source::{SnapshotSource, Type},
};
use keelson_testkit::{missing, skip_unless, wait_until_async};
use serde_json::{Value, json};
use tonic::{Code, Status, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(120);

/// Pools on filesystems of their own, and a driver over them.
struct Scene {
    driver: Running,
    groups: GroupControllerClient<Channel>,
    place: Place,
    _disk: Disk,
    // It goes after what is on it.
    _directory: tempfile::TempDir,
}

fn make_disk(place: &Place, filesystem: &str) -> (Disk, tempfile::TempDir) {
    let directory = tempfile::Builder::new().prefix("keelson-csi-").tempdir_in("/var/tmp").unwrap();
    (Disk::make(&directory.path().join("disk"), filesystem, 1 << 30, &place.path("pool")), directory)
}

impl Scene {
    async fn new(filesystem: &str) -> Self {
        let place = Place::new();
        let section = place.section("image");
        Self::of(place, filesystem, &section).await
    }

    async fn of(place: Place, filesystem: &str, section: &Value) -> Self {
        let (disk, directory) = make_disk(&place, filesystem);
        let driver = Running::start(&place, section).await;
        let groups = GroupControllerClient::new(common::connect(&place.socket()).await.unwrap());
        Self { driver, groups, place, _disk: disk, _directory: directory }
    }

    async fn cut(
        &mut self,
        name: &str,
        volumes: &[&str],
        parameters: &[(&str, &str)],
    ) -> Result<VolumeGroupSnapshot, Status> {
        cut(&mut self.groups, name, volumes, parameters).await
    }

    async fn delete(&mut self, group: &VolumeGroupSnapshot) -> Result<(), Status> {
        let request = DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: ids(group),
            ..DeleteVolumeGroupSnapshotRequest::default()
        };
        self.groups.delete_volume_group_snapshot(request).await.map(drop)
    }

    async fn use_at(&mut self, id: &str, name: &str, capability: VolumeCapability) -> PathBuf {
        let (staging, target) = (self.place.path(&format!("staging-{name}")), self.place.text(&format!("pods/{name}")));
        fs::create_dir_all(&staging).unwrap();
        let staging = staging.to_str().unwrap();
        self.driver.stage(id, staging, capability.clone()).await.unwrap();
        self.driver.publish(publication(id, staging, &target, capability)).await.unwrap();
        target.into()
    }

    async fn leave(&mut self, id: &str, name: &str) {
        let (staging, target) = (self.place.text(&format!("staging-{name}")), self.place.text(&format!("pods/{name}")));
        self.driver.unpublish(id, &target).await.unwrap();
        self.driver.unstage(id, &staging).await.unwrap();
    }

    fn nothing_is_left(&self) {
        for home in ["pool/groups", "pool/snapshots", "pool/building"] {
            assert_eq!(names(&self.place.path(home)), [""; 0], "{home}");
        }
    }

    async fn end(mut self) {
        for id in self.place.volumes() {
            self.driver.delete(&id).await.unwrap();
        }
        self.nothing_is_left();
        self.place.expect_clean();
        self.driver.stop().await;
    }
}

async fn cut(
    groups: &mut GroupControllerClient<Channel>,
    name: &str,
    volumes: &[&str],
    parameters: &[(&str, &str)],
) -> Result<VolumeGroupSnapshot, Status> {
    let request = CreateVolumeGroupSnapshotRequest {
        name: name.to_owned(),
        source_volume_ids: volumes.iter().map(|id| (*id).to_owned()).collect(),
        parameters: parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..CreateVolumeGroupSnapshotRequest::default()
    };
    Ok(groups.create_volume_group_snapshot(request).await?.into_inner().group_snapshot.unwrap())
}

fn ids(group: &VolumeGroupSnapshot) -> Vec<String> {
    group.snapshots.iter().map(|snapshot| snapshot.snapshot_id.clone()).collect()
}

fn from_snapshot(name: &str, capability: VolumeCapability, id: &str) -> CreateVolumeRequest {
    let source = Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() });
    let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
    CreateVolumeRequest { volume_content_source, ..request(name, 32 * MIB, capability) }
}

macro_rules! needs_pools {
    () => {
        needs_a_kernel!();
        let missing = missing(&["mkfs.xfs", "mkfs.btrfs", "fsfreeze"]);
        skip_unless!(missing.is_empty(), format!("needs {}", missing.join(", ")));
    };
}

const FREEZE: &[(&str, &str)] = &[("freeze", "true")];

/// Writes n to one file, durably, and then n to the other, and so on.
struct Pair {
    is_over: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Pair {
    fn start(one: &Path, other: &Path) -> Self {
        let files = [one, other].map(|directory| {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(libc::O_DSYNC)
                .open(directory.join("number"))
                .unwrap()
        });
        let (is_over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (Arc::clone(&is_over), Arc::clone(&written));
        let thread = thread::spawn(move || {
            for number in 1_u64.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                for file in &files {
                    file.write_all_at(&number.to_le_bytes(), 0).unwrap();
                }
                count.store(number, Ordering::SeqCst);
            }
        });
        Self { is_over, written, thread }
    }

    async fn wait_for_more(&self, more: u64) {
        let goal = self.written.load(Ordering::SeqCst) + more;
        wait_until_async("the writer to write", PATIENCE, async || {
            (self.written.load(Ordering::SeqCst) >= goal).then_some(())
        })
        .await;
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn number(directory: &Path) -> u64 {
    let bytes = fs::read(directory.join("number")).unwrap();
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// csi-driver-host-path cuts one after the other.
async fn all_are_cut_at_one_instant(filesystem: &str) {
    let mut scene = Scene::new(filesystem).await;
    let mut volumes = Vec::new();
    let mut targets = Vec::new();
    for name in ["one", "other"] {
        let id = scene.driver.create(request(name, 32 * MIB, mounted())).await.unwrap().volume_id;
        targets.push(scene.use_at(&id, name, mounted()).await);
        volumes.push(id);
    }
    let both = [volumes[0].as_str(), volumes[1].as_str()];
    // Without a freeze it could not be of one instant.
    let status = expect_code(scene.cut("loose", &both, &[]).await, Code::FailedPrecondition);
    assert!(status.message().contains("freeze"), "{status:?}");
    scene.nothing_is_left();
    let writer = Pair::start(&targets[0], &targets[1]);
    for round in 0..5 {
        writer.wait_for_more(10).await;
        let before = writer.written.load(Ordering::SeqCst);
        let group = scene.cut(&format!("group-{round}"), &both, FREEZE).await.unwrap();
        assert_eq!(scene.cut(&format!("group-{round}"), &[both[1], both[0]], FREEZE).await.unwrap(), group);
        let mut found = Vec::new();
        for (index, snapshot) in group.snapshots.iter().enumerate() {
            assert_eq!(snapshot.source_volume_id, volumes[index]);
            let name = format!("clone-{round}-{index}");
            let wish = from_snapshot(&name, mounted(), &snapshot.snapshot_id);
            let clone = scene.driver.create(wish).await.unwrap().volume_id;
            found.push(number(&scene.use_at(&clone, &name, mounted()).await));
            scene.leave(&clone, &name).await;
            scene.driver.delete(&clone).await.unwrap();
        }
        assert!(found[0] == found[1] || found[0] == found[1] + 1, "{found:?}");
        assert!(found[1] >= before, "{before} {found:?}");
        let record = scene.place.path("pool/groups").join(&group.group_snapshot_id).join("group.json");
        let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        println!("frozen for {} us on {filesystem}", record["pauseMicroseconds"]);
        assert!(record["pauseMicroseconds"].as_u64().unwrap() > 0, "{record}");
        scene.delete(&group).await.unwrap();
        scene.delete(&group).await.unwrap();
    }
    // It goes on.
    writer.wait_for_more(10).await;
    writer.end();
    assert!(scene.driver.metrics().contains("keelson_storage_group_freeze_seconds_count 5"));
    for (id, name) in volumes.iter().zip(["one", "other"]) {
        scene.leave(id, name).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d12_all_volumes_of_a_group_are_cut_at_one_instant_on_xfs() {
    needs_pools!();
    all_are_cut_at_one_instant("xfs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d12_all_volumes_of_a_group_are_cut_at_one_instant_on_btrfs() {
    needs_pools!();
    all_are_cut_at_one_instant("btrfs").await;
}

/// csi-driver-host-path leaves the snapshots that it had made.
#[tokio::test(flavor = "multi_thread")]
async fn d12_a_group_that_can_not_be_cut_leaves_nothing() {
    needs_pools!();
    let place = Place::new();
    let mut section = place.section("image");
    section["pools"] = json!([
        {"name": "pool", "path": place.path("pool"), "allowSharedFilesystem": true},
        {"name": "other", "path": place.path("other"), "allowSharedFilesystem": true},
        {"name": "flat", "path": place.path("flat"), "kind": "directory", "allowSharedFilesystem": true},
    ]);
    let mut scene = Scene::of(place, "xfs", &section).await;
    let mut make = async |name: &str, pool: &str, capability| {
        let mut wish = request(name, 32 * MIB, capability);
        wish.parameters.insert("pool".to_owned(), pool.to_owned());
        scene.driver.create(wish).await.unwrap().volume_id
    };
    let one = make("one", "pool", mounted()).await;
    let two = make("two", "pool", mounted()).await;
    let raw = [make("raw-1", "pool", block()).await, make("raw-2", "pool", block()).await];
    let far = make("far", "other", mounted()).await;
    let flat = make("flat", "flat", mounted()).await;
    let status = expect_code(scene.cut("apart", &[&one, &far], &[]).await, Code::FailedPrecondition);
    assert!(status.message().contains("pool other"), "{status:?}");
    expect_code(scene.cut("flat", &[&one, &flat], &[]).await, Code::InvalidArgument);
    expect_code(scene.cut("gone", &[&one, "none"], &[]).await, Code::NotFound);
    expect_code(scene.cut("twice", &[&one, &one], &[]).await, Code::InvalidArgument);
    expect_code(scene.cut("nothing", &[], &[]).await, Code::InvalidArgument);
    expect_code(scene.cut("", &[&one], &[]).await, Code::InvalidArgument);
    expect_code(scene.cut("params", &[&one], &[("frost", "true")]).await, Code::InvalidArgument);
    expect_code(scene.cut("params", &[&one], &[("freeze", "maybe")]).await, Code::InvalidArgument);
    scene.nothing_is_left();

    // Raw block volumes in use can't be frozen; one of them is of one instant all the same.
    for (index, id) in raw.iter().enumerate() {
        scene.use_at(id, &format!("raw-{index}"), block()).await;
    }
    let status = expect_code(scene.cut("raw", &[&raw[0], &raw[1]], FREEZE).await, Code::FailedPrecondition);
    assert!(status.message().contains("unstage"), "{status:?}");
    scene.nothing_is_left();
    let group = scene.cut("one-raw", &[&raw[0], &one], &[]).await.unwrap();
    scene.delete(&group).await.unwrap();
    for (index, id) in raw.iter().enumerate() {
        scene.leave(id, &format!("raw-{index}")).await;
    }

    // A pool that is full.
    let image = scene.place.path("pool/volumes").join(&one).join("image");
    File::options().write(true).open(image).unwrap().write_all_at(&vec![1; 30 << 20], 1 << 20).unwrap();
    let mut fillers = Vec::new();
    let mut size = 512;
    while size >= 8 {
        let wish = request(&format!("filler-{}", fillers.len()), size * MIB, block());
        match scene.driver.create(wish).await {
            Ok(volume) => fillers.push(volume.volume_id),
            Err(_) => size /= 2,
        }
    }
    expect_code(scene.cut("full", &[&two, &one], &[]).await, Code::ResourceExhausted);
    scene.nothing_is_left();
    for filler in &fillers {
        scene.driver.delete(filler).await.unwrap();
    }
    for id in [&far, &flat] {
        scene.driver.delete(id).await.unwrap();
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_and_its_members_are_what_the_other_calls_say() {
    needs_pools!();
    let mut scene = Scene::new("xfs").await;
    let one = scene.driver.create(request("one", 32 * MIB, mounted())).await.unwrap().volume_id;
    let other = scene.driver.create(request("other", 32 * MIB, block())).await.unwrap().volume_id;
    let group = scene.cut("../group ü", &[&one, &other], &[]).await.unwrap();
    assert!(group.ready_to_use && group.creation_time.is_some());
    assert!(group.snapshots.iter().all(|snapshot| snapshot.group_snapshot_id == group.group_snapshot_id));
    expect_code(scene.cut("../group ü", &[&one], &[]).await, Code::AlreadyExists);
    let get = |id: &str, snapshot_ids: Vec<String>| GetVolumeGroupSnapshotRequest {
        group_snapshot_id: id.to_owned(),
        snapshot_ids,
        ..GetVolumeGroupSnapshotRequest::default()
    };
    let found = scene.groups.get_volume_group_snapshot(get(&group.group_snapshot_id, ids(&group))).await.unwrap();
    assert_eq!(found.into_inner().group_snapshot.as_ref(), Some(&group));
    let wrong = get(&group.group_snapshot_id, ids(&group)[..1].to_vec());
    expect_code(scene.groups.get_volume_group_snapshot(wrong).await, Code::InvalidArgument);
    expect_code(scene.groups.get_volume_group_snapshot(get("none", vec![])).await, Code::NotFound);
    expect_code(scene.groups.get_volume_group_snapshot(get("", vec![])).await, Code::InvalidArgument);
    let listed = scene.driver.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let mut listed: Vec<_> = listed.entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect();
    let mut expected = group.snapshots.clone();
    listed.sort_by(|one, other| one.snapshot_id.cmp(&other.snapshot_id));
    expected.sort_by(|one, other| one.snapshot_id.cmp(&other.snapshot_id));
    assert_eq!(listed, expected);
    let member = DeleteSnapshotRequest { snapshot_id: ids(&group)[0].clone(), ..DeleteSnapshotRequest::default() };
    expect_code(scene.driver.controller.delete_snapshot(member).await, Code::InvalidArgument);
    let wrong = DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id.clone(),
        snapshot_ids: vec![ids(&group)[0].clone(), "other".to_owned()],
        ..DeleteVolumeGroupSnapshotRequest::default()
    };
    expect_code(scene.groups.delete_volume_group_snapshot(wrong).await, Code::InvalidArgument);
    // All of it is there after a restart.
    scene.driver.stop().await;
    scene.driver = Running::start(&scene.place, &scene.place.section("image")).await;
    scene.groups = GroupControllerClient::new(common::connect(&scene.place.socket()).await.unwrap());
    assert_eq!(scene.cut("../group ü", &[&other, &one], &[]).await.unwrap(), group);
    // And it outlives its volumes.
    scene.driver.delete(&one).await.unwrap();
    assert_eq!(scene.cut("../group ü", &[&other, &one], &[]).await.unwrap(), group);
    scene.delete(&group).await.unwrap();
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_may_have_more_volumes_than_a_pool_has_calls() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs"]).is_empty(), "needs mkfs.xfs");
    let mut scene = Scene::new("xfs").await;
    let mut volumes = Vec::new();
    for count in 0..70 {
        volumes.push(scene.driver.create(request(&format!("pvc-{count}"), MIB, block())).await.unwrap().volume_id);
    }
    let volumes: Vec<&str> = volumes.iter().map(String::as_str).collect();
    let group = scene.cut("many", &volumes, &[]).await.unwrap();
    assert_eq!(group.snapshots.len(), volumes.len());
    scene.delete(&group).await.unwrap();
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_can_not_be_frozen_leaves_none_frozen_and_nothing_behind() {
    needs_pools!();
    let mut scene = Scene::new("xfs").await;
    let one = scene.driver.create(request("one", 32 * MIB, mounted())).await.unwrap().volume_id;
    let other = scene.driver.create(request("other", 32 * MIB, mounted())).await.unwrap().volume_id;
    let targets = [scene.use_at(&one, "one", mounted()).await, scene.use_at(&other, "other", mounted()).await];
    // Somebody else's freeze is not ours to end.
    run(Command::new("fsfreeze").arg("-f").arg(&targets[1]));
    let status = scene.cut("group", &[&one, &other], FREEZE).await.unwrap_err();
    assert!(matches!(status.code(), Code::FailedPrecondition | Code::DeadlineExceeded), "{status:?}");
    scene.nothing_is_left();
    fs::write(targets[0].join("a"), b"a").unwrap();
    run(Command::new("fsfreeze").arg("-u").arg(&targets[1]));
    fs::write(targets[1].join("a"), b"a").unwrap();
    // The helper that gave up may still be ending.
    let groups = scene.groups.clone();
    let group = wait_until_async("the members to be free", PATIENCE, async || {
        cut(&mut groups.clone(), "group", &[&one, &other], FREEZE).await.ok()
    })
    .await;
    scene.delete(&group).await.unwrap();
    scene.leave(&one, "one").await;
    scene.leave(&other, "other").await;
    scene.end().await;
}

/// Whether something can be written there at once: a write to a frozen filesystem waits.
fn is_frozen(directory: &Path) -> bool {
    !Command::new("timeout").args(["-s", "KILL", "1", "touch"]).arg(directory.join("probe")).status().unwrap().success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_thaws_at_its_start_what_another_left_frozen() {
    needs_pools!();
    let place = Place::new();
    let (disk, directory) = make_disk(&place, "xfs");
    let section = place.section("image");
    let (process, clients) = Process::serve(&place, &section).await;
    let Clients { mut controller, mut node, .. } = clients;
    let volume =
        controller.create_volume(request("one", 32 * MIB, mounted())).await.unwrap().into_inner().volume.unwrap();
    let stage = NodeStageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: place.text("staging"),
        volume_capability: Some(mounted()),
        ..NodeStageVolumeRequest::default()
    };
    node.node_stage_volume(stage).await.unwrap();
    drop(process);
    run(Command::new("fsfreeze").arg("-f").arg(place.path("staging")));
    assert!(is_frozen(&place.path("staging")));
    let (process, clients) = Process::serve(&place, &section).await;
    assert!(!is_frozen(&place.path("staging")));
    let Clients { mut controller, mut node, .. } = clients;
    let unstage =
        NodeUnstageVolumeRequest { volume_id: volume.volume_id.clone(), staging_target_path: place.text("staging") };
    node.node_unstage_volume(unstage).await.unwrap();
    let delete = DeleteVolumeRequest { volume_id: volume.volume_id, ..DeleteVolumeRequest::default() };
    controller.delete_volume(delete).await.unwrap();
    place.expect_clean();
    drop(process);
    drop(place);
    drop((disk, directory));
}
