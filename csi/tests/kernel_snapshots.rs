//! Snapshots and clones: what is in them, what they cost, and what the calls answer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
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
    MIB, NODE, Place, Running, block, capability,
    disk::{Disk, run},
    expect_code, has_sys_resource, mounted, names, publication, request,
};
use keelson_proto::csi::v1::{
    ControllerGetCapabilitiesRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    GetCapacityRequest, GetSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, Snapshot, Topology,
    TopologyRequirement, VolumeCapability, VolumeContentSource,
    volume_capability::{AccessType, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use keelson_testkit::{missing, skip_unless, wait_until, wait_until_async};
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(120);

/// A pool on a filesystem of its own, and a driver over it.
struct Scene {
    driver: Running,
    place: Place,
    _disk: Disk,
    // It goes after what is on it.
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn new(filesystem: &str, mebibytes: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("keelson-csi-").tempdir_in("/var/tmp").unwrap();
        let place = Place::new();
        let disk = Disk::make(&directory.path().join("disk"), filesystem, mebibytes << 20, &place.path("pool"));
        let driver = Running::start(&place, &place.section("image")).await;
        Self { driver, place, _disk: disk, _directory: directory }
    }

    async fn snapshot(&mut self, name: &str, volume: &str) -> Result<Snapshot, Status> {
        snapshot(&self.driver, name, volume).await
    }

    async fn delete_snapshot(&mut self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..DeleteSnapshotRequest::default() };
        self.driver.controller.delete_snapshot(request).await.map(drop)
    }

    async fn list(&mut self, request: ListSnapshotsRequest) -> Result<(Vec<String>, String), Status> {
        let ListSnapshotsResponse { entries, next_token } =
            self.driver.controller.list_snapshots(request).await?.into_inner();
        Ok((entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect(), next_token))
    }

    async fn capacity(&mut self) -> i64 {
        let request = GetCapacityRequest { volume_capabilities: vec![block()], ..GetCapacityRequest::default() };
        self.driver.controller.get_capacity(request).await.unwrap().into_inner().available_capacity
    }

    fn volume_image(&self, id: &str) -> PathBuf {
        self.place.path("pool/volumes").join(id).join("image")
    }

    fn snapshot_image(&self, id: &str) -> PathBuf {
        self.place.path("pool/snapshots").join(id).join("image")
    }

    /// Stages and publishes at `pods/NAME`.
    async fn use_at(&mut self, id: &str, name: &str, capability: VolumeCapability) -> PathBuf {
        let staging = self.place.path(&format!("staging-{name}"));
        let target = self.place.path(&format!("pods/{name}"));
        fs::create_dir_all(&staging).unwrap();
        self.driver.stage(id, staging.to_str().unwrap(), capability.clone()).await.unwrap();
        let publication = publication(id, staging.to_str().unwrap(), target.to_str().unwrap(), capability);
        self.driver.publish(publication).await.unwrap();
        target
    }

    async fn leave(&mut self, id: &str, name: &str) {
        let (staging, target) = (self.place.text(&format!("staging-{name}")), self.place.text(&format!("pods/{name}")));
        self.driver.unpublish(id, &target).await.unwrap();
        self.driver.unstage(id, &staging).await.unwrap();
    }

    async fn end(mut self) {
        let all = self.list(ListSnapshotsRequest::default()).await.unwrap().0;
        for id in all {
            self.delete_snapshot(&id).await.unwrap();
        }
        for id in self.place.volumes() {
            self.driver.delete(&id).await.unwrap();
        }
        assert_eq!(names(&self.place.path("pool/snapshots")), [""; 0]);
        self.place.expect_clean();
        self.driver.stop().await;
    }
}

async fn snapshot(driver: &Running, name: &str, volume: &str) -> Result<Snapshot, Status> {
    let request = CreateSnapshotRequest {
        source_volume_id: volume.to_owned(),
        name: name.to_owned(),
        ..CreateSnapshotRequest::default()
    };
    Ok(driver.controller.clone().create_snapshot(request).await?.into_inner().snapshot.unwrap())
}

fn from_snapshot(name: &str, bytes: i64, capability: VolumeCapability, id: &str) -> CreateVolumeRequest {
    let source = Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() });
    let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
    CreateVolumeRequest { volume_content_source, ..request(name, bytes, capability) }
}

fn from_volume(name: &str, bytes: i64, capability: VolumeCapability, id: &str) -> CreateVolumeRequest {
    let source = Type::Volume(VolumeSource { volume_id: id.to_owned() });
    let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
    CreateVolumeRequest { volume_content_source, ..request(name, bytes, capability) }
}

fn mounted_as(filesystem: &str) -> VolumeCapability {
    let mount = MountVolume { fs_type: filesystem.to_owned(), ..MountVolume::default() };
    capability(AccessType::Mount(mount), Mode::SingleNodeWriter)
}

macro_rules! needs_pools {
    ($($program:expr),*) => {
        needs_a_kernel!();
        let missing = missing(&["mkfs.xfs", "mkfs.btrfs" $(, $program)*]);
        skip_unless!(missing.is_empty(), format!("needs {}", missing.join(", ")));
    };
}

/// What is written at once.
const PIECE: usize = 4096;

/// For O_DIRECT.
#[repr(align(4096))]
struct Piece([u8; PIECE]);

/// Writes numbers until told to end.
struct Writer {
    is_over: Arc<AtomicBool>,
    /// How many were written, durably if the writer syncs.
    written: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Writer {
    fn start(mut write: impl FnMut(u64) + Send + 'static) -> Self {
        let (is_over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (Arc::clone(&is_over), Arc::clone(&written));
        let thread = thread::spawn(move || {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                write(number);
                count.store(number, Ordering::SeqCst);
            }
        });
        Self { is_over, written, thread }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    async fn wait_for_more(&self, more: u64) {
        let goal = self.written() + more;
        wait_until_async("the writer to write", PATIENCE, async || (self.written() >= goal).then_some(())).await;
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// The writer of a device: number after number, each to the next of some places, without any cache.
fn write_around(device: &Path, places: u64) -> Writer {
    let device = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(device).unwrap();
    let mut piece = Box::new(Piece([0; PIECE]));
    Writer::start(move |number| {
        for part in piece.0.chunks_mut(8) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        device.write_all_at(&piece.0, number % places * PIECE as u64).unwrap();
    })
}

/// Checks that an image shows what [`write_around`] had written at one moment; gives how much that was.
fn expect_moment(image: &Path, places: u64) -> u64 {
    let bytes = fs::read(image).unwrap();
    let numbers: Vec<u64> = bytes
        .chunks(PIECE)
        .take(usize::try_from(places).unwrap())
        .map(|piece| {
            let number = u64::from_le_bytes(*piece.first_chunk().unwrap());
            assert!(piece.chunks(8).all(|part| part == number.to_le_bytes()), "a piece is half written");
            number
        })
        .collect();
    let last = *numbers.iter().max().unwrap();
    for (place, number) in (0..).zip(numbers) {
        // The last one of those up to `last` that went here.
        let since = (last + places - place) % places;
        assert_eq!(
            number,
            last.saturating_sub(since) * u64::from(last > since || since == 0),
            "place {place}, last {last}"
        );
    }
    last
}

async fn a_snapshot_under_a_writing_load_is_of_one_instant(filesystem: &str) {
    const PLACES: u64 = 2048;
    let mut scene = Scene::new(filesystem, 1024).await;
    let id = scene.driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    let device = scene.use_at(&id, "device", block()).await;
    let writer = write_around(&device, PLACES);
    let mut taken = Vec::new();
    for number in 0..10 {
        writer.wait_for_more(50 + number * 77).await;
        let before = writer.written();
        let cut = scene.snapshot(&format!("snap-{number}"), &id).await.unwrap();
        let after = writer.written() + 1;
        let image = scene.snapshot_image(&cut.snapshot_id);
        let last = expect_moment(&image, PLACES);
        assert!((before..=after).contains(&last), "{before} {last} {after}");
        taken.push((cut.snapshot_id, fs::read(image).unwrap()));
    }
    // A clone of the volume in use, too.
    let clone = scene.driver.create(from_volume("pvc-2", 16 * MIB, block(), &id)).await.unwrap().volume_id;
    expect_moment(&scene.volume_image(&clone), PLACES);
    writer.wait_for_more(PLACES).await;
    writer.end();
    for (id, before) in &taken {
        assert!(fs::read(scene.snapshot_image(id)).unwrap() == *before, "snapshot {id} changed");
        let name = format!("of-{id}");
        let clone = scene.driver.create(from_snapshot(&name, 16 * MIB, block(), id)).await.unwrap().volume_id;
        assert!(fs::read(scene.volume_image(&clone)).unwrap() == *before, "the volume from {id} is another");
    }
    // What is quiet is copied byte for byte.
    let last = scene.snapshot("last", &id).await.unwrap();
    let copy = fs::read(scene.snapshot_image(&last.snapshot_id)).unwrap();
    let mut whole = Vec::new();
    File::open(&device).unwrap().read_to_end(&mut whole).unwrap();
    assert!(copy == whole);
    scene.leave(&id, "device").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_a_writing_load_is_of_one_instant_on_xfs() {
    needs_pools!();
    a_snapshot_under_a_writing_load_is_of_one_instant("xfs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_a_writing_load_is_of_one_instant_on_btrfs() {
    needs_pools!();
    a_snapshot_under_a_writing_load_is_of_one_instant("btrfs").await;
}

/// A mounted filesystem is cut as a power cut would cut it: what was synced is there, whatever else is.
async fn a_clone_of_a_mounted_filesystem_has_all_that_was_synced(below: &str, inner: &str, mebibytes: i64) {
    const RECORD: usize = 100;
    let record = |number: u64| format!("{number:0width$}\n", width = RECORD - 1);
    let mut scene = Scene::new(below, 4096).await;
    let capability = mounted_as(inner);
    let id = scene.driver.create(request("pvc-1", mebibytes * MIB, capability.clone())).await.unwrap().volume_id;
    let target = scene.use_at(&id, "source", capability.clone()).await;
    let mut file = File::create_new(target.join("log")).unwrap();
    let writer = Writer::start(move |number| {
        file.write_all(record(number).as_bytes()).unwrap();
        file.sync_data().unwrap();
    });
    for round in 0..3 {
        writer.wait_for_more(20).await;
        let synced = writer.written();
        let cut = scene.snapshot(&format!("snap-{round}"), &id).await.unwrap();
        let name = format!("clone-{round}");
        let clone = from_snapshot(&name, mebibytes * MIB, capability.clone(), &cut.snapshot_id);
        let clone = scene.driver.create(clone).await.unwrap().volume_id;
        // While its source is mounted.
        let target = scene.use_at(&clone, &name, capability.clone()).await;
        let text = fs::read_to_string(target.join("log")).unwrap();
        let whole = text.len() / RECORD;
        let expected: String = (1..).map(record).take(whole).collect();
        assert!(text.starts_with(&expected), "{inner} on {below}: not a prefix");
        assert!(text[expected.len()..].trim_matches('\0').len() < RECORD);
        assert!(whole as u64 >= synced, "{inner} on {below}: {synced} were synced, {whole} are there");
        fs::write(target.join("own"), b"own").unwrap();
        scene.leave(&clone, &name).await;
        let image = scene.volume_image(&clone);
        match inner {
            "ext4" => run(Command::new("e2fsck").arg("-fn").arg(&image)),
            "xfs" => run(Command::new("xfs_repair").arg("-nf").arg(&image)),
            _ => run(Command::new("btrfs").arg("check").arg(&image)),
        };
    }
    writer.end();
    assert!(!target.join("own").exists());
    scene.leave(&id, "source").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_mounted_ext4_on_xfs_has_all_that_was_synced() {
    needs_pools!("e2fsck");
    a_clone_of_a_mounted_filesystem_has_all_that_was_synced("xfs", "ext4", 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_mounted_ext4_on_btrfs_has_all_that_was_synced() {
    needs_pools!("e2fsck");
    a_clone_of_a_mounted_filesystem_has_all_that_was_synced("btrfs", "ext4", 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_mounted_xfs_has_all_that_was_synced() {
    needs_pools!("xfs_repair");
    a_clone_of_a_mounted_filesystem_has_all_that_was_synced("xfs", "xfs", 320).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_mounted_btrfs_has_all_that_was_synced() {
    needs_pools!("btrfs");
    a_clone_of_a_mounted_filesystem_has_all_that_was_synced("xfs", "btrfs", 320).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_larger_than_its_source_has_room_for_more_as_soon_as_it_is_staged() {
    needs_pools!();
    for (inner, small, large) in [("ext4", 64, 256), ("xfs", 320, 640), ("btrfs", 320, 640)] {
        // Of ext4 only who has CAP_SYS_RESOURCE can let it grow.
        if inner == "ext4" && !has_sys_resource() {
            continue;
        }
        let mut scene = Scene::new("xfs", 4096).await;
        let capability = mounted_as(inner);
        let id = scene.driver.create(request("pvc-1", small * MIB, capability.clone())).await.unwrap().volume_id;
        let target = scene.use_at(&id, "source", capability.clone()).await;
        fs::write(target.join("a"), b"a").unwrap();
        scene.leave(&id, "source").await;
        let cut = scene.snapshot("snap-1", &id).await.unwrap();
        assert_eq!(cut.size_bytes, small * MIB);
        for wish in [
            from_snapshot("pvc-2", large * MIB, capability.clone(), &cut.snapshot_id),
            from_volume("pvc-3", large * MIB, capability.clone(), &id),
        ] {
            let clone = scene.driver.create(wish).await.unwrap();
            assert_eq!(clone.capacity_bytes, large * MIB);
            let target = scene.use_at(&clone.volume_id, "clone", capability.clone()).await;
            let more = u64::try_from((large - small / 2) * MIB / 2).unwrap();
            let mut file = File::create_new(target.join("more")).unwrap();
            std::io::copy(&mut std::io::repeat(0x5a).take(more), &mut file).unwrap();
            file.sync_all().unwrap();
            drop(file);
            assert_eq!(fs::read(target.join("a")).unwrap(), b"a");
            scene.leave(&clone.volume_id, "clone").await;
        }
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_its_volume_and_a_clone_outlive_one_another() {
    needs_pools!();
    for filesystem in ["xfs", "btrfs", "ext4"] {
        let mut scene = Scene::new(filesystem, 512).await;
        let fill = |path: &Path, byte: u8| {
            fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[byte; PIECE], 0)
        };
        let first = |path: &Path| fs::read(path).unwrap()[0];
        let id = scene.driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
        fill(&scene.volume_image(&id), 1).unwrap();
        let cut = scene.snapshot("snap-1", &id).await.unwrap().snapshot_id;
        fill(&scene.volume_image(&id), 2).unwrap();
        let clone = scene.driver.create(from_snapshot("pvc-2", 16 * MIB, block(), &cut)).await.unwrap();
        assert_eq!(first(&scene.snapshot_image(&cut)), 1);
        scene.driver.delete(&id).await.unwrap();
        assert_eq!(first(&scene.snapshot_image(&cut)), 1);
        // What was asked for is there, whatever has become of the volume.
        assert_eq!(scene.snapshot("snap-1", &id).await.unwrap().snapshot_id, cut);
        expect_code(scene.snapshot("snap-2", &id).await, Code::NotFound);
        let again = scene.driver.create(from_snapshot("pvc-3", 16 * MIB, block(), &cut)).await.unwrap();
        scene.delete_snapshot(&cut).await.unwrap();
        scene.delete_snapshot(&cut).await.unwrap();
        for volume in [&clone, &again] {
            assert_eq!(first(&scene.volume_image(&volume.volume_id)), 1, "{filesystem}");
            assert_eq!(volume.content_source, from_snapshot("", 0, block(), &cut).volume_content_source);
        }
        expect_code(scene.driver.create(from_snapshot("pvc-4", 16 * MIB, block(), &cut)).await, Code::NotFound);
        scene.end().await;
    }
}

/// What csi-driver-host-path gets wrong when it lists volumes: no next_token, an empty second page, a panic at token 0.
#[tokio::test(flavor = "multi_thread")]
async fn d1_pages_of_snapshots_follow_one_another_to_the_last() {
    needs_pools!();
    let mut scene = Scene::new("xfs", 512).await;
    let id = scene.driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    let mut all = Vec::new();
    for number in 0..5 {
        all.push(scene.snapshot(&format!("snap-{number}"), &id).await.unwrap().snapshot_id);
    }
    all.sort();
    for source_volume_id in [String::new(), id.clone()] {
        let (mut listed, mut starting_token) = (Vec::new(), String::new());
        for expected in [2, 2, 1] {
            let max_entries = 2;
            let request = ListSnapshotsRequest {
                max_entries,
                starting_token,
                source_volume_id: source_volume_id.clone(),
                ..ListSnapshotsRequest::default()
            };
            let page = scene.list(request).await.unwrap();
            assert_eq!(page.0.len(), expected);
            listed.extend(page.0);
            starting_token = page.1;
        }
        assert_eq!((listed, starting_token.as_str()), (all.clone(), ""));
    }
    for token in ["0", "1", "invalid-token"] {
        let request = ListSnapshotsRequest { starting_token: token.to_owned(), ..ListSnapshotsRequest::default() };
        expect_code(scene.list(request).await, Code::Aborted);
    }
    let request = ListSnapshotsRequest { max_entries: -1, ..ListSnapshotsRequest::default() };
    expect_code(scene.list(request).await, Code::InvalidArgument);
    scene.end().await;
}

/// csi-driver-host-path lists only the first.
#[tokio::test(flavor = "multi_thread")]
async fn d2_all_snapshots_of_a_volume_are_listed_by_it() {
    needs_pools!();
    let mut scene = Scene::new("xfs", 512).await;
    let mut of = Vec::new();
    for volume in 0..2 {
        let wish = request(&format!("pvc-{volume}"), 16 * MIB, block());
        let id = scene.driver.create(wish).await.unwrap().volume_id;
        let mut cut = Vec::new();
        for number in 0..3 {
            cut.push(scene.snapshot(&format!("snap-{volume}-{number}"), &id).await.unwrap().snapshot_id);
        }
        cut.sort();
        of.push((id, cut));
    }
    let by = |snapshot: &str, volume: &str| ListSnapshotsRequest {
        snapshot_id: snapshot.to_owned(),
        source_volume_id: volume.to_owned(),
        ..ListSnapshotsRequest::default()
    };
    for (id, cut) in &of {
        assert_eq!(scene.list(by("", id)).await.unwrap(), (cut.clone(), String::new()));
        assert_eq!(scene.list(by(&cut[1], "")).await.unwrap(), (vec![cut[1].clone()], String::new()));
        assert_eq!(scene.list(by(&cut[1], id)).await.unwrap().0, [cut[1].clone()]);
    }
    assert_eq!(scene.list(by(&of[0].1[0], &of[1].0)).await.unwrap().0, [""; 0]);
    for unknown in ["none", "../../etc", "s1-0123456789abcdef0123456789abcdef"] {
        assert_eq!(scene.list(by(unknown, "")).await.unwrap().0, [""; 0]);
        assert_eq!(scene.list(by("", unknown)).await.unwrap().0, [""; 0]);
    }
    let found = scene.list(ListSnapshotsRequest::default()).await.unwrap().0;
    assert_eq!(found.len(), 6);
    scene.end().await;
}

/// csi-driver-host-path answers ALREADY_EXISTS, as it forgets what a volume was made from.
#[tokio::test(flavor = "multi_thread")]
async fn d3_a_clone_that_is_asked_for_again_is_the_same_volume_also_after_a_restart() {
    needs_pools!();
    let mut scene = Scene::new("xfs", 512).await;
    let id = scene.driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    let cut = scene.snapshot("snap-1", &id).await.unwrap();
    let wishes =
        [from_snapshot("pvc-2", 16 * MIB, block(), &cut.snapshot_id), from_volume("pvc-3", 16 * MIB, block(), &id)];
    let mut made = Vec::new();
    for wish in &wishes {
        made.push(scene.driver.create(wish.clone()).await.unwrap());
        assert_eq!(scene.driver.create(wish.clone()).await.unwrap(), *made.last().unwrap());
    }
    scene.driver.stop().await;
    scene.driver = Running::start(&scene.place, &scene.place.section("image")).await;
    for (wish, volume) in wishes.iter().zip(&made) {
        assert_eq!(scene.driver.create(wish.clone()).await.unwrap(), *volume);
        assert_eq!(volume.content_source, wish.volume_content_source);
    }
    assert_eq!(scene.snapshot("snap-1", &id).await.unwrap(), cut);
    // From something else, or from nothing, it would be another volume.
    expect_code(scene.driver.create(from_volume("pvc-2", 16 * MIB, block(), &id)).await, Code::AlreadyExists);
    expect_code(scene.driver.create(request("pvc-2", 16 * MIB, block())).await, Code::AlreadyExists);
    expect_code(
        scene.driver.create(from_snapshot("pvc-1", 16 * MIB, block(), &cut.snapshot_id)).await,
        Code::AlreadyExists,
    );
    scene.end().await;
}

/// csi-driver-host-path answers INVALID_ARGUMENT.
#[tokio::test(flavor = "multi_thread")]
async fn d5_a_clone_smaller_than_its_source_is_out_of_range() {
    needs_pools!();
    let mut scene = Scene::new("xfs", 512).await;
    let id = scene.driver.create(request("pvc-1", 64 * MIB, block())).await.unwrap().volume_id;
    let cut = scene.snapshot("snap-1", &id).await.unwrap().snapshot_id;
    for mut wish in [from_snapshot("pvc-2", 16 * MIB, block(), &cut), from_volume("pvc-3", 16 * MIB, block(), &id)] {
        wish.capacity_range.as_mut().unwrap().limit_bytes = 32 * MIB;
        expect_code(scene.driver.create(wish.clone()).await, Code::OutOfRange);
        // Without a limit it is as large as it has to be.
        wish.capacity_range.as_mut().unwrap().limit_bytes = 0;
        assert_eq!(scene.driver.create(wish).await.unwrap().capacity_bytes, 64 * MIB);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_says_what_it_is_and_what_was_asked_wrongly_changes_nothing() {
    needs_pools!();
    let mut scene = Scene::new("xfs", 512).await;
    let id = scene.driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    let other = scene.driver.create(request("pvc-2", 16 * MIB, block())).await.unwrap().volume_id;
    // A volume may have the same name.
    let cut = scene.snapshot("pvc-1", &id).await.unwrap();
    assert_eq!(scene.snapshot("pvc-1", &id).await.unwrap(), cut);
    assert_eq!((cut.size_bytes, &cut.source_volume_id, cut.ready_to_use), (16 * MIB, &id, true));
    assert_eq!(cut.accessible_topology[0].segments["topology.keelson.dev/node"], NODE);
    assert_eq!(cut.group_snapshot_id, "");
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(age - u64::try_from(cut.creation_time.unwrap().seconds).unwrap() < 600);
    expect_code(scene.snapshot("pvc-1", &other).await, Code::AlreadyExists);
    let get = |id: &str| GetSnapshotRequest { snapshot_id: id.to_owned(), ..GetSnapshotRequest::default() };
    let found = scene.driver.controller.get_snapshot(get(&cut.snapshot_id)).await.unwrap().into_inner();
    assert_eq!(found.snapshot.as_ref(), Some(&cut));
    expect_code(scene.driver.controller.get_snapshot(get("none")).await, Code::NotFound);
    expect_code(scene.driver.controller.get_snapshot(get("")).await, Code::InvalidArgument);

    let wish = |name: &str, volume: &str| CreateSnapshotRequest {
        name: name.to_owned(),
        source_volume_id: volume.to_owned(),
        ..CreateSnapshotRequest::default()
    };
    let long = "x".repeat(129);
    let with = |key: &str| {
        let mut wish = wish("snap-2", &id);
        wish.parameters.insert(key.to_owned(), "x".to_owned());
        wish
    };
    for (wish, code) in [
        (wish("", &id), Code::InvalidArgument),
        (wish("snap-2", ""), Code::InvalidArgument),
        (wish(&long, &id), Code::InvalidArgument),
        (wish("a\u{1}", &id), Code::InvalidArgument),
        (wish("snap-2", "none"), Code::NotFound),
        (wish("snap-2", "../volumes"), Code::NotFound),
        (with("freeze"), Code::InvalidArgument),
    ] {
        expect_code(scene.driver.controller.create_snapshot(wish).await, code);
    }
    let elsewhere = Topology { segments: [("topology.keelson.dev/node".to_owned(), "node-b".to_owned())].into() };
    let requirement = TopologyRequirement { requisite: vec![elsewhere], ..TopologyRequirement::default() };
    let there = CreateSnapshotRequest { accessibility_requirements: Some(requirement), ..wish("snap-2", &id) };
    expect_code(scene.driver.controller.create_snapshot(there).await, Code::ResourceExhausted);
    expect_code(scene.delete_snapshot("").await, Code::InvalidArgument);
    scene.delete_snapshot("none").await.unwrap();
    assert_eq!(names(&scene.place.path("pool/snapshots")), [cut.snapshot_id]);
    scene.driver.controller.create_snapshot(with("csi.storage.k8s.io/volumesnapshot/name")).await.unwrap();
    // Any name that is legal.
    scene.snapshot("../../etc/ü", &id).await.unwrap();
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_offered_only_where_a_pool_can_make_them() {
    needs_a_kernel!();
    for (kind, offered) in [("image", true), ("directory", false)] {
        let place = Place::new();
        let mut driver = Running::start(&place, &place.section(kind)).await;
        let answer = driver.controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await.unwrap();
        let text = format!("{:?}", answer.into_inner());
        for capability in ["CreateDeleteSnapshot", "ListSnapshots", "CloneVolume", "GetSnapshot"] {
            assert_eq!(text.contains(capability), offered, "{kind} {capability}: {text}");
        }
        if !offered {
            let id = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
            expect_code(snapshot(&driver, "snap-1", &id).await, Code::Unimplemented);
            let clone = from_volume("pvc-2", 16 * MIB, mounted(), &id);
            expect_code(driver.create(clone).await, Code::InvalidArgument);
        }
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_blocks_are_not_shared_only_a_volume_that_nobody_uses_is_copied() {
    needs_pools!("e2fsck");
    let mut scene = Scene::new("ext4", 512).await;
    let id = scene.driver.create(request("pvc-1", 32 * MIB, mounted())).await.unwrap().volume_id;
    let target = scene.use_at(&id, "source", mounted()).await;
    fs::write(target.join("a"), b"a").unwrap();
    let status = expect_code(scene.snapshot("snap-1", &id).await, Code::FailedPrecondition);
    assert!(status.message().contains("in use"), "{status:?}");
    let clone = from_volume("pvc-2", 32 * MIB, mounted(), &id);
    expect_code(scene.driver.create(clone.clone()).await, Code::FailedPrecondition);
    scene.leave(&id, "source").await;
    let cut = scene.snapshot("snap-1", &id).await.unwrap().snapshot_id;
    assert!(fs::read(scene.snapshot_image(&cut)).unwrap() == fs::read(scene.volume_image(&id)).unwrap());
    for wish in [clone, from_snapshot("pvc-3", 32 * MIB, mounted(), &cut)] {
        let clone = scene.driver.create(wish).await.unwrap().volume_id;
        let target = scene.use_at(&clone, "clone", mounted()).await;
        assert_eq!(fs::read(target.join("a")).unwrap(), b"a");
        scene.leave(&clone, "clone").await;
    }
    scene.end().await;
}

/// Fills the volume's image.
fn fill(image: &Path, mebibytes: u64) {
    let mut file = OpenOptions::new().write(true).open(image).unwrap();
    std::io::copy(&mut std::io::repeat(0x5a).take(mebibytes << 20), &mut file).unwrap();
    file.sync_all().unwrap();
}

async fn snapshots_are_promised_only_what_there_is(filesystem: &str) {
    const VOLUME: u64 = 64;
    let mut scene = Scene::new(filesystem, 640).await;
    let empty = scene.capacity().await;
    let id = scene.driver.create(request("pvc-1", 64 * MIB, block())).await.unwrap().volume_id;
    fill(&scene.volume_image(&id), VOLUME);
    // What was written without the driver's knowledge is measured anew.
    let device = scene.use_at(&id, "device", block()).await;
    let before = scene.capacity().await;
    let calls: Vec<_> = (0..16)
        .map(|number| {
            let mut controller = scene.driver.controller.clone();
            let (name, volume) = (format!("snap-{number}"), id.clone());
            tokio::spawn(async move {
                if number % 2 == 0 {
                    let wish =
                        CreateSnapshotRequest { name, source_volume_id: volume, ..CreateSnapshotRequest::default() };
                    controller.create_snapshot(wish).await.map(drop)
                } else {
                    controller.create_volume(request(&name, 64 * MIB, block())).await.map(drop)
                }
            })
        })
        .collect();
    let mut refused = 0;
    for call in calls {
        if let Err(status) = call.await.unwrap() {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            refused += 1;
        }
    }
    assert!((4..16).contains(&refused), "{refused} of 16 were refused");
    // Something that is being made may count twice for a moment, so one that would fit may have been refused.
    let mut more = 0;
    let refused = loop {
        match scene.snapshot(&format!("more-{more}"), &id).await {
            Ok(_) => more += 1,
            refused => break refused,
        }
    };
    assert!(more < 16, "{more} more fitted");
    let status = expect_code(refused, Code::ResourceExhausted);
    assert!(status.message().contains("has no room"), "{status:?}");
    // All of it can be written: every promise is kept.
    let mut all = scene.place.volumes();
    all.retain(|other| *other != id);
    for volume in &all {
        fill(&scene.volume_image(volume), VOLUME);
    }
    let mut file = OpenOptions::new().write(true).open(&device).unwrap();
    std::io::copy(&mut std::io::repeat(0xa5).take(VOLUME << 20), &mut file).unwrap();
    file.sync_all().unwrap();
    drop(file);
    for volume in &all {
        scene.driver.delete(volume).await.unwrap();
    }
    for cut in scene.list(ListSnapshotsRequest::default()).await.unwrap().0 {
        scene.delete_snapshot(&cut).await.unwrap();
    }
    // Filesystems give space back in the background, and keep some of their own accounting.
    wait_until_async("the capacity of before", PATIENCE, async || {
        (scene.capacity().await >= before - 4 * MIB).then_some(())
    })
    .await;
    scene.leave(&id, "device").await;
    scene.driver.delete(&id).await.unwrap();
    wait_until_async("the capacity of the beginning", PATIENCE, async || {
        (scene.capacity().await >= empty - 4 * MIB).then_some(())
    })
    .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_promised_only_what_there_is_on_xfs() {
    needs_pools!();
    snapshots_are_promised_only_what_there_is("xfs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_promised_only_what_there_is_on_btrfs() {
    needs_pools!();
    snapshots_are_promised_only_what_there_is("btrfs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thick_volume_can_be_overwritten_whole_after_a_snapshot() {
    needs_pools!();
    let mut scene = Scene::new("xfs", 512).await;
    let mut wish = request("pvc-1", 128 * MIB, block());
    wish.parameters.insert("provisioning".to_owned(), "thick".to_owned());
    let id = scene.driver.create(wish).await.unwrap().volume_id;
    let image = scene.volume_image(&id);
    fill(&image, 128);
    let before = scene.capacity().await;
    let cut = scene.snapshot("snap-1", &id).await.unwrap().snapshot_id;
    assert!(before - scene.capacity().await >= 128 * MIB, "{before}");
    // Nothing else may have what that takes.
    let rest = scene.capacity().await / MIB * MIB - 24 * MIB;
    let other = scene.driver.create(request("rest", rest, block())).await.unwrap().volume_id;
    fill(&scene.volume_image(&other), u64::try_from(rest / MIB).unwrap());
    expect_code(scene.snapshot("snap-2", &id).await, Code::ResourceExhausted);
    let mut file = OpenOptions::new().write(true).open(&image).unwrap();
    std::io::copy(&mut std::io::repeat(0xa5).take(128 << 20), &mut file).unwrap();
    file.sync_all().unwrap();
    assert!(fs::read(scene.snapshot_image(&cut)).unwrap().iter().all(|byte| *byte == 0x5a));
    wait_until("nothing to be left of it", PATIENCE, || {
        names(&scene.place.path("pool/building")).is_empty().then_some(())
    });
    scene.end().await;
}
