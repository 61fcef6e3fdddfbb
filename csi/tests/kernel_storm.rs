//! Two thousand calls at 64 at once, by clients that lose patience, to a driver that is killed and restarted meanwhile:
//! afterwards the pool, the kernel and the listing agree, and all data is what was written.

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
    DeleteVolumeRequest, GetCapacityRequest, ListVolumesRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use keelson_testkit::{Chance, missing, skip_unless, wait_until_async};
use nix::sys::signal::Signal;
use serde_json::json;
use tonic::{Code, Status};

const CALLS: usize = 2000;
const AT_ONCE: usize = 64;
const RESTARTS: usize = 6;

/// How many calls were answered OK, or not waited for.
type Made = Arc<AtomicUsize>;

/// One volume of the storm.
struct Volume {
    name: String,
    /// The pool, and whether it is a block volume there.
    pool: &'static str,
    is_block: bool,
    id: String,
    /// The seed of what was written to it last.
    data: Option<u64>,
}

impl Volume {
    fn capability(&self) -> VolumeCapability {
        if self.is_block { block() } else { mounted() }
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

    async fn create(&mut self, name: String, pool: &'static str, is_block: bool) -> Volume {
        let mut volume = Volume { name, pool, is_block, id: String::new(), data: None };
        let mut wish = request(&volume.name, 16 * MIB, volume.capability());
        wish.parameters.insert("pool".to_owned(), pool.to_owned());
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

    /// Makes, uses and deletes volumes until enough calls were made, and gives those that are left.
    async fn rage(&mut self, number: usize) -> Vec<Volume> {
        let mut volumes: Vec<Volume> = Vec::new();
        for count in 0.. {
            if self.made.load(Ordering::Relaxed) >= CALLS {
                break;
            }
            match self.chance.below(4) {
                0 | 1 if volumes.len() < 3 => {
                    let (pool, is_block) =
                        [("image", false), ("image", true), ("directory", false)][self.chance.below(3)];
                    let volume = self.create(format!("pvc-{number}-{count}"), pool, is_block).await;
                    volumes.push(volume);
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
        volumes
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
    let mut volumes = Vec::new();
    for client in storm {
        volumes.extend(client.await.unwrap());
    }
    println!("{} calls in {:.1} s", made.load(Ordering::Relaxed), begin.elapsed().as_secs_f32());

    // What clients no longer wait for ends.
    let mut client = Client { is_patient: true, ..client(AT_ONCE) };
    fs::create_dir_all(&client.staging).unwrap();
    let mut expected = BTreeMap::new();
    for volume in &volumes {
        expected.entry(volume.pool).or_insert_with(Vec::new).push(volume.id.clone());
    }
    let expect_agreement = async |expected: &BTreeMap<&str, Vec<String>>| {
        let mut clients = clients.clone();
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
    expect_agreement(&expected).await;
    for volume in &mut volumes {
        client.visit(volume, None).await;
    }
    expect_agreement(&expected).await;
    for volume in &volumes {
        client.delete(&volume.id).await;
    }
    expect_agreement(&BTreeMap::new()).await;
    wait_until_async("the capacity of before", PATIENCE, async || {
        (capacity(&mut clients.clone(), "image").await >= before - MIB).then_some(())
    })
    .await;
    drop(process);
}
