//! Two thousand calls at 64 at once, by clients that lose patience, to a driver that is killed and restarted meanwhile:
//! afterwards the pool, the kernel and the listing agree, and all data is what was written, in snapshots and copies too.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    error::Error,
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    MIB, Place, block,
    disk::Disk,
    mounted, names,
    process::{Clients, PATIENCE, Process},
    publication, request,
};
use keelson_proto::csi::v1::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeGroupSnapshotRequest, DeleteSnapshotRequest,
    DeleteVolumeGroupSnapshotRequest, DeleteVolumeRequest, GetCapacityRequest, ListSnapshotsRequest,
    ListVolumesRequest, NodeExpandVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, VolumeContentSource,
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use keelson_testkit::{Chance, missing, skip_unless, wait_until_async};
use nix::sys::signal::Signal;
use serde_json::json;
use tonic::{Code, Status};

const CALLS: usize = 2000;
const AT_ONCE: usize = 64;
const RESTARTS: usize = 6;

/// How large volumes are, and what some grow to.
const SIZE: i64 = 16 * MIB;
const GROWN: i64 = 24 * MIB;

/// How many calls were answered OK, or not waited for.
type Made = Arc<AtomicUsize>;

/// One volume of the storm.
#[derive(Clone)]
struct Volume {
    name: String,
    /// The pool, and whether it is a block volume there.
    pool: &'static str,
    is_block: bool,
    bytes: i64,
    /// What it is made from.
    source: Option<Type>,
    id: String,
    /// The seed of what was written to it last.
    data: Option<u64>,
}

impl Volume {
    fn new(name: String, pool: &'static str, is_block: bool) -> Self {
        Self { name, pool, is_block, bytes: SIZE, source: None, id: String::new(), data: None }
    }

    fn capability(&self) -> VolumeCapability {
        if self.is_block { block() } else { mounted() }
    }

    /// One with the same data, that is to be made.
    fn copied(&self, name: String, source: Type) -> Self {
        Self { name, source: Some(source), id: String::new(), ..self.clone() }
    }
}

/// A snapshot of some volumes, with what they were when it was taken and the snapshot of each.
struct Shots {
    group: Option<String>,
    members: Vec<(Volume, String)>,
}

impl Shots {
    /// A volume to be made from one of them.
    fn copied(&self, name: String, index: usize) -> Volume {
        let (volume, id) = &self.members[index];
        volume.copied(name, Type::Snapshot(SnapshotSource { snapshot_id: id.clone() }))
    }
}

fn data(seed: u64) -> Vec<u8> {
    let mut chance = Chance::of(seed);
    (0..8 << 10).flat_map(|_| chance.number().to_le_bytes()).collect()
}

/// A client that calls one thing after another, and each again until it succeeds.
struct Client {
    clients: Clients,
    staging: String,
    target: String,
    chance: Chance,
    made: Made,
    /// Whether it still loses patience.
    is_patient: bool,
}

impl Client {
    /// Calls until it succeeds. Now and then the client goes away before the answer.
    async fn insist<T, F>(&mut self, what: &str, mut call: impl FnMut(Clients) -> F) -> T
    where
        F: Future<Output = Result<T, Status>>,
    {
        let start = Instant::now();
        loop {
            let answer = call(self.clients.clone());
            let patience = if self.is_patient || self.chance.below(5) > 0 {
                PATIENCE
            } else {
                Duration::from_micros(self.chance.number() % 30_000)
            };
            match tokio::time::timeout(patience, answer).await {
                Ok(Ok(answer)) => {
                    self.made.fetch_add(1, Ordering::Relaxed);
                    return answer;
                }
                Ok(Err(status)) => {
                    // What the retry is for, or a connection that broke.
                    let is_transient = [Code::Aborted, Code::Unavailable].contains(&status.code());
                    assert!(is_transient || status.source().is_some(), "{what}: {status:?}");
                    // As sidecars and kubelets do.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(_) => _ = self.made.fetch_add(1, Ordering::Relaxed),
            }
            assert!(start.elapsed() < 2 * PATIENCE, "{what} succeeds in the end");
        }
    }

    async fn create(&mut self, mut volume: Volume) -> Volume {
        let mut wish = request(&volume.name, volume.bytes, volume.capability());
        wish.parameters.insert("pool".to_owned(), volume.pool.to_owned());
        wish.volume_content_source = volume.source.clone().map(|source| VolumeContentSource { r#type: Some(source) });
        let create = |mut clients: Clients| {
            let request = wish.clone();
            async move { clients.controller.create_volume(request).await }
        };
        let answer = self.insist("CreateVolume", create).await;
        volume.id = answer.into_inner().volume.unwrap().volume_id;
        volume
    }

    async fn delete(&mut self, id: &str) {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
        let delete = |mut clients: Clients| {
            let request = request.clone();
            async move { clients.controller.delete_volume(request).await }
        };
        self.insist("DeleteVolume", delete).await;
    }

    /// Takes a snapshot of volumes that nobody uses: of one by itself, or of all as a group.
    async fn shoot(&mut self, name: String, volumes: &[Volume], is_group: bool) -> Shots {
        if is_group {
            let request = CreateVolumeGroupSnapshotRequest {
                name,
                source_volume_ids: volumes.iter().map(|volume| volume.id.clone()).collect(),
                ..CreateVolumeGroupSnapshotRequest::default()
            };
            let take = |mut clients: Clients| {
                let request = request.clone();
                async move { clients.group.create_volume_group_snapshot(request).await }
            };
            let answer = self.insist("CreateVolumeGroupSnapshot", take).await.into_inner().group_snapshot.unwrap();
            let shot_of = |volume: &Volume| {
                let shot = answer.snapshots.iter().find(|shot| shot.source_volume_id == volume.id).unwrap();
                (volume.clone(), shot.snapshot_id.clone())
            };
            let members = volumes.iter().map(shot_of).collect();
            return Shots { group: Some(answer.group_snapshot_id), members };
        }
        let source_volume_id = volumes[0].id.clone();
        let request = CreateSnapshotRequest { source_volume_id, name, ..CreateSnapshotRequest::default() };
        let take = |mut clients: Clients| {
            let request = request.clone();
            async move { clients.controller.create_snapshot(request).await }
        };
        let answer = self.insist("CreateSnapshot", take).await.into_inner().snapshot.unwrap();
        Shots { group: None, members: vec![(volumes[0].clone(), answer.snapshot_id)] }
    }

    async fn drop_shots(&mut self, shots: Shots) {
        let ids: Vec<_> = shots.members.into_iter().map(|(_, id)| id).collect();
        let Some(group_snapshot_id) = shots.group else {
            let request = DeleteSnapshotRequest { snapshot_id: ids[0].clone(), ..DeleteSnapshotRequest::default() };
            let delete = |mut clients: Clients| {
                let request = request.clone();
                async move { clients.controller.delete_snapshot(request).await.map(drop) }
            };
            return self.insist("DeleteSnapshot", delete).await;
        };
        let request = DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id,
            snapshot_ids: ids,
            ..DeleteVolumeGroupSnapshotRequest::default()
        };
        let delete = |mut clients: Clients| {
            let request = request.clone();
            async move { clients.group.delete_volume_group_snapshot(request).await.map(drop) }
        };
        self.insist("DeleteVolumeGroupSnapshot", delete).await;
    }

    /// Lets a published block volume grow.
    async fn grow(&mut self, volume: &mut Volume) {
        let request = NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: self.target.clone(),
            capacity_range: Some(CapacityRange { required_bytes: GROWN, limit_bytes: 0 }),
            ..NodeExpandVolumeRequest::default()
        };
        let grow = |mut clients: Clients| {
            let request = request.clone();
            async move { clients.node.node_expand_volume(request).await }
        };
        assert_eq!(self.insist("NodeExpandVolume", grow).await.into_inner().capacity_bytes, GROWN);
        volume.bytes = GROWN;
    }

    /// Stages and publishes the volume, looks at its data, perhaps writes other data, and lets go of it.
    async fn visit(&mut self, volume: &mut Volume, next: Option<u64>) {
        let request = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: self.staging.clone(),
            volume_capability: Some(volume.capability()),
            ..NodeStageVolumeRequest::default()
        };
        let stage = |mut clients: Clients| {
            let request = request.clone();
            async move { clients.node.node_stage_volume(request).await }
        };
        self.insist("NodeStageVolume", stage).await;
        let request = publication(&volume.id, &self.staging, &self.target, volume.capability());
        let publish = |mut clients: Clients| {
            let request = request.clone();
            async move { clients.node.node_publish_volume(request).await }
        };
        self.insist("NodePublishVolume", publish).await;
        let (target, is_block, before) = (self.target.clone(), volume.is_block, volume.data);
        let name = volume.name.clone();
        tokio::task::spawn_blocking(move || look_and_write(target.as_ref(), is_block, before, next, &name))
            .await
            .unwrap();
        volume.data = next.or(before);
        if volume.is_block && next.is_some() {
            self.grow(volume).await;
        }
        let request = NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: self.target.clone() };
        let unpublish = |mut clients: Clients| {
            let request = request.clone();
            async move { clients.node.node_unpublish_volume(request).await }
        };
        self.insist("NodeUnpublishVolume", unpublish).await;
        let request =
            NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: self.staging.clone() };
        let unstage = |mut clients: Clients| {
            let request = request.clone();
            async move { clients.node.node_unstage_volume(request).await }
        };
        self.insist("NodeUnstageVolume", unstage).await;
    }

    /// Makes, uses and deletes volumes until enough calls were made, and gives those that are left, with the snapshots.
    async fn rage(&mut self, number: usize) -> (Vec<Volume>, Vec<Shots>) {
        let (mut volumes, mut shots): (Vec<Volume>, Vec<Shots>) = (Vec::new(), Vec::new());
        for count in 0.. {
            if self.made.load(Ordering::Relaxed) >= CALLS {
                break;
            }
            let images: Vec<_> = volumes.iter().filter(|volume| volume.pool == "image").cloned().collect();
            match self.chance.below(7) {
                0 | 1 if volumes.len() < 3 => {
                    let (pool, is_block) =
                        [("image", false), ("image", true), ("directory", false)][self.chance.below(3)];
                    let volume = self.create(Volume::new(format!("pvc-{number}-{count}"), pool, is_block)).await;
                    volumes.push(volume);
                }
                3 if !images.is_empty() && shots.len() < 2 => {
                    let is_group = self.chance.below(2) == 0;
                    shots.push(self.shoot(format!("shot-{number}-{count}"), &images, is_group).await);
                }
                4 if !shots.is_empty() => {
                    let shots = shots.swap_remove(self.chance.below(shots.len()));
                    self.drop_shots(shots).await;
                }
                5 if volumes.len() < 4 && (!images.is_empty() || !shots.is_empty()) => {
                    let name = format!("clone-{number}-{count}");
                    let wish = if images.is_empty() || (!shots.is_empty() && self.chance.below(2) == 0) {
                        let shots = &shots[self.chance.below(shots.len())];
                        shots.copied(name, self.chance.below(shots.members.len()))
                    } else {
                        let volume = &images[self.chance.below(images.len())];
                        volume.copied(name, Type::Volume(VolumeSource { volume_id: volume.id.clone() }))
                    };
                    volumes.push(self.create(wish).await);
                }
                2 if !volumes.is_empty() => {
                    let volume = volumes.swap_remove(self.chance.below(volumes.len()));
                    self.delete(&volume.id).await;
                }
                _ if !volumes.is_empty() => {
                    let index = self.chance.below(volumes.len());
                    let next = (self.chance.below(2) == 0).then(|| self.chance.number());
                    self.visit(&mut volumes[index], next).await;
                }
                _ => {}
            }
        }
        (volumes, shots)
    }
}

/// Compares what is in a published volume, and replaces it.
fn look_and_write(target: &Path, is_block: bool, before: Option<u64>, next: Option<u64>, name: &str) {
    let file = if is_block { target.to_owned() } else { target.join("data") };
    if let Some(before) = before {
        let expected = data(before);
        let mut found = vec![0; expected.len()];
        File::open(&file).unwrap().read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected, "{name} has other data than was written");
    } else if !is_block {
        assert!(!file.exists(), "{name} has data from elsewhere");
    }
    if let Some(next) = next {
        let mut file = fs::OpenOptions::new().write(true).create(!is_block).truncate(false).open(&file).unwrap();
        file.write_all(&data(next)).unwrap();
        if is_block {
            file.sync_all().unwrap();
        }
    }
}

async fn capacity(clients: &mut Clients, pool: &str) -> i64 {
    let request = GetCapacityRequest {
        volume_capabilities: vec![mounted()],
        parameters: [("pool".to_owned(), pool.to_owned())].into(),
        ..GetCapacityRequest::default()
    };
    clients.controller.get_capacity(request).await.unwrap().into_inner().available_capacity
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_agrees_after_a_storm() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs"]).is_empty(), "needs mkfs.xfs");
    let directory = tempfile::tempdir().unwrap();
    let mut disks = Vec::new();
    let place = Arc::new(Place::new());
    disks.push(Disk::make(&directory.path().join("disk"), "xfs", 16 << 30, &place.path("pool")));
    let mut section = place.section("image");
    let kinds = ["image", "directory"];
    for kind in kinds {
        fs::create_dir(place.path("pool").join(kind)).unwrap();
    }
    section["pools"] = kinds
        .map(|kind| json!({"name": kind, "path": place.path("pool").join(kind), "kind": kind, "allowSharedFilesystem": true}))
        .to_vec()
        .into();
    let (mut process, mut clients) = Process::serve(&place, &section).await;
    let before = capacity(&mut clients, "image").await;
    let mut chance = Chance::new();
    let (made, begin) = (Made::default(), Instant::now());
    let mut client = |number: usize| Client {
        clients: clients.clone(),
        staging: place.text(&format!("staging/{number}")),
        target: place.text(&format!("pods/{number}")),
        chance: Chance::of(chance.number()),
        made: Arc::clone(&made),
        is_patient: false,
    };
    let storm: Vec<_> = (0..AT_ONCE)
        .map(|number| {
            let mut client = client(number);
            fs::create_dir_all(&client.staging).unwrap();
            tokio::spawn(async move { client.rage(number).await })
        })
        .collect();
    for number in 1..=RESTARTS {
        let moment = number * CALLS / (RESTARTS + 1);
        wait_until_async("calls to be made", 2 * PATIENCE, async || {
            (made.load(Ordering::Relaxed) >= moment).then_some(())
        })
        .await;
        let signal = if number % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL };
        tokio::task::spawn_blocking(move || process.end(signal)).await.unwrap();
        process = Process::spawn(&place, &section);
    }
    let (mut volumes, mut shots) = (Vec::new(), Vec::new());
    for client in storm {
        let left = client.await.unwrap();
        volumes.extend(left.0);
        shots.extend(left.1);
    }
    let is_grown = |volume: &&Volume| volume.bytes == GROWN;
    let copies = volumes.iter().filter(|volume| volume.source.is_some()).count();
    let grown = volumes.iter().filter(is_grown).count();
    println!("{} volumes, {copies} of them copies, {grown} of them grown, {} snapshots", volumes.len(), shots.len());
    println!("{} calls in {:.1} s", made.load(Ordering::Relaxed), begin.elapsed().as_secs_f32());

    // What clients no longer wait for ends.
    let mut client = Client { is_patient: true, ..client(AT_ONCE) };
    fs::create_dir_all(&client.staging).unwrap();
    let mut expected = BTreeMap::new();
    for volume in &volumes {
        expected.entry(volume.pool).or_insert_with(Vec::new).push(volume.id.clone());
    }
    let expect_agreement = async |expected: &BTreeMap<&str, Vec<String>>, shots: &[Shots]| {
        let mut clients = clients.clone();
        let listed = clients.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
        let mut listed: Vec<_> = listed.entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect();
        let mut all: Vec<_> = shots.iter().flat_map(|shots| &shots.members).map(|(_, id)| id.clone()).collect();
        listed.sort();
        all.sort();
        assert_eq!(listed, all);
        let (groups, single): (Vec<_>, Vec<_>) = shots.iter().partition(|shots| shots.group.is_some());
        let groups = groups.iter().map(|shots| shots.group.clone().unwrap());
        let single = single.iter().map(|shots| shots.members[0].1.clone());
        for (home, mut ids) in [("groups", groups.collect::<Vec<_>>()), ("snapshots", single.collect())] {
            ids.sort();
            assert_eq!(names(&place.path("pool/image").join(home)), ids);
        }
        let listed = clients.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        let mut listed: Vec<_> = listed.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
        let mut all: Vec<_> = expected.values().flatten().cloned().collect();
        listed.sort();
        all.sort();
        assert_eq!(listed, all);
        for kind in kinds {
            let mut ids = expected.get(kind).cloned().unwrap_or_default();
            ids.sort();
            assert_eq!(names(&place.path("pool").join(kind).join("volumes")), ids, "{kind}");
            assert_eq!(names(&place.path("pool").join(kind).join("building")), [""; 0], "{kind}");
        }
        assert_eq!(names(&place.path("state/storage/attachments")), [""; 0]);
        assert_eq!(names(&place.path("pods")), [""; 0]);
        let ours = place.mounts().into_iter().filter(|mount| mount.point != place.path("pool"));
        assert_eq!(ours.collect::<Vec<_>>(), []);
        wait_until_async("the loop devices to be gone", PATIENCE, async || place.loops().is_empty().then_some(()))
            .await;
    };
    expect_agreement(&expected, &shots).await;
    for volume in &mut volumes {
        client.visit(volume, None).await;
    }
    for shots in &shots {
        for (index, (_, id)) in shots.members.iter().enumerate() {
            let mut copy = client.create(shots.copied(format!("restored-{id}"), index)).await;
            client.visit(&mut copy, None).await;
            client.delete(&copy.id).await;
        }
    }
    expect_agreement(&expected, &shots).await;
    for volume in &volumes {
        client.delete(&volume.id).await;
    }
    expect_agreement(&BTreeMap::new(), &shots).await;
    for shots in shots {
        client.drop_shots(shots).await;
    }
    expect_agreement(&BTreeMap::new(), &[]).await;
    wait_until_async("the capacity of before", PATIENCE, async || {
        (capacity(&mut clients.clone(), "image").await >= before - MIB).then_some(())
    })
    .await;
    drop(process);
}
