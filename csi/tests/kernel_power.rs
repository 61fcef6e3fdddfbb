//! Power cuts: what was answered OK is there afterwards, whole; what was deleted is gone; nothing half-made is left.
//!
//! The pool's disk is a file on an XFS, and a cut is a reflinked copy of that file, made in one instant while volumes are
//! made, written to, copied, grown and deleted. What the pool's filesystem had only in memory isn't in it. Each copy is
//! then mounted in the disk's place, as after a reboot.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    MIB, Place, block,
    disk::{Disk, run},
    mounted, names,
    pieces::{piece, read, write},
    process::{Clients, PATIENCE, Process},
    publication, request,
};
use keelson_proto::csi::v1::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeGroupSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeGroupSnapshotRequest, DeleteVolumeRequest, ListSnapshotsRequest, ListVolumesRequest,
    NodeExpandVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability, VolumeContentSource,
    volume_capability::AccessType,
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use keelson_testkit::{Chance, missing, skip_unless, wait_until_async};
use nix::sys::signal::Signal;
use rustix::fs::ioctl_ficlone;
use tonic::{Code, Status};

/// What is known of one volume, by its name.
#[derive(Clone, Debug)]
struct Known {
    capability: VolumeCapability,
    /// What it was made from.
    source: Option<Type>,
    /// Whose data it has: its own, or that of the volume that it is a copy of.
    data: String,
    /// The size that was asked for, and the one that it has.
    asked: i64,
    bytes: i64,
    /// Once the answer to its creation was there.
    id: Option<String>,
    /// How many pieces of data were written to it, and synced.
    pieces: u64,
    /// Whose staging path it is staged at, if it is; and which of the stages of all volumes that was.
    staged: Option<(usize, u64)>,
    /// Whether its deletion was begun.
    is_doomed: bool,
}

impl Known {
    fn new(name: &str, capability: &VolumeCapability) -> Self {
        Self {
            capability: capability.clone(),
            source: None,
            data: name.to_owned(),
            asked: SIZE,
            bytes: SIZE,
            id: None,
            pieces: 0,
            staged: None,
            is_doomed: false,
        }
    }

    /// A volume with what this one has now.
    fn copied_from(&self, source: Type) -> Self {
        let (source, asked) = (Some(source), self.bytes);
        Self { source, asked, id: None, staged: None, is_doomed: false, ..self.clone() }
    }

    fn wish(&self, name: &str) -> CreateVolumeRequest {
        let source = self.source.clone().map(|source| VolumeContentSource { r#type: Some(source) });
        CreateVolumeRequest { volume_content_source: source, ..request(name, self.asked, self.capability.clone()) }
    }
}

/// A snapshot, or a group of them.
#[derive(Clone, Debug)]
struct Shots {
    is_group: bool,
    /// Once the answer was there: of the group, or of the one snapshot.
    id: Option<String>,
    /// What was known of each volume when it was asked for, and its snapshot.
    members: Vec<(Known, Option<String>)>,
    is_doomed: bool,
}

impl Shots {
    /// Asks for them, and gives them with their ids.
    async fn take(&self, clients: &Clients, name: &str) -> Result<Self, Status> {
        let (name, mut taken) = (name.to_owned(), self.clone());
        let sources: Vec<_> = self.members.iter().map(|(volume, _)| volume.id.clone().unwrap()).collect();
        let Clients { mut controller, mut group, .. } = clients.clone();
        if self.is_group {
            let request = CreateVolumeGroupSnapshotRequest {
                name,
                source_volume_ids: sources,
                ..CreateVolumeGroupSnapshotRequest::default()
            };
            let group = group.create_volume_group_snapshot(request).await?.into_inner().group_snapshot.unwrap();
            taken.id = Some(group.group_snapshot_id);
            for (volume, id) in &mut taken.members {
                let mine = group.snapshots.iter().find(|shot| Some(&shot.source_volume_id) == volume.id.as_ref());
                *id = Some(mine.unwrap().snapshot_id.clone());
            }
        } else {
            let source_volume_id = sources[0].clone();
            let request = CreateSnapshotRequest { source_volume_id, name, ..CreateSnapshotRequest::default() };
            let id = controller.create_snapshot(request).await?.into_inner().snapshot.unwrap().snapshot_id;
            taken.members[0].1 = Some(id.clone());
            taken.id = Some(id);
        }
        Ok(taken)
    }

    fn snapshots(&self) -> impl Iterator<Item = String> {
        self.members.iter().filter_map(|(_, id)| id.clone())
    }

    async fn delete(&self, clients: &Clients) {
        let (id, Clients { mut controller, mut group, .. }) = (self.id.clone().unwrap(), clients.clone());
        if self.is_group {
            let request = DeleteVolumeGroupSnapshotRequest {
                group_snapshot_id: id,
                snapshot_ids: self.snapshots().collect(),
                ..DeleteVolumeGroupSnapshotRequest::default()
            };
            group.delete_volume_group_snapshot(request).await.unwrap();
        } else {
            let request = DeleteSnapshotRequest { snapshot_id: id, ..DeleteSnapshotRequest::default() };
            controller.delete_snapshot(request).await.unwrap();
        }
    }
}

/// What was asked for and answered. Deleted volumes and snapshots stay in it without their names.
#[derive(Clone, Debug, Default)]
struct Ledger {
    volumes: BTreeMap<String, Known>,
    shots: BTreeMap<String, Shots>,
    deleted: BTreeSet<String>,
    stages: u64,
}

impl Ledger {
    /// Whether a volume or snapshot is there for sure.
    fn has(&self, id: &str) -> bool {
        self.volumes.values().any(|known| known.id.as_deref() == Some(id) && !known.is_doomed)
            || self.shots.values().any(|shots| !shots.is_doomed && shots.snapshots().any(|shot| shot == id))
    }
}

/// The id of what is copied.
fn source_id(source: &Type) -> &str {
    match source {
        Type::Snapshot(snapshot) => &snapshot.snapshot_id,
        Type::Volume(volume) => &volume.volume_id,
    }
}

/// What a pool can make copies of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    No,
    /// Volumes that nobody uses.
    AtRest,
    All,
}

/// Those who make, fill, copy and delete volumes, and what they know.
#[derive(Clone)]
struct Workload {
    ledger: Arc<Mutex<Ledger>>,
    is_over: Arc<AtomicBool>,
    clients: Clients,
    copies: Copies,
    /// Whether volumes that aren't block volumes can grow.
    grows: bool,
}

/// How many volumes each worker keeps.
const KEPT: usize = 3;

/// How large volumes are, and what some grow to.
const SIZE: i64 = 16 * MIB;
const GROWN: i64 = 24 * MIB;

fn is_block(capability: &VolumeCapability) -> bool {
    matches!(capability.access_type, Some(AccessType::Block(_)))
}

impl Workload {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    async fn work(self, place: Arc<Place>, worker: usize, capabilities: Vec<VolumeCapability>, mut chance: Chance) {
        let mut kept = Vec::new();
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("pvc-{worker}-{number}");
            self.create(&name, Known::new(&name, &capabilities[chance.below(capabilities.len())])).await;
            kept.push(name.clone());
            if chance.below(3) > 0 {
                self.fill(&place, &name, worker, &mut chance).await;
            }
            if self.copies != Copies::No {
                self.copy(&mut kept, worker, number, &mut chance).await;
            }
            while kept.len() > KEPT {
                self.delete(&kept.remove(chance.below(KEPT))).await;
            }
        }
    }

    /// Takes snapshots of volumes that nobody uses, makes a volume from a volume or a snapshot, deletes snapshots.
    async fn copy(&self, kept: &mut Vec<String>, worker: usize, number: usize, chance: &mut Chance) {
        if chance.below(3) == 0 {
            let group = &kept[..1 + chance.below(kept.len())];
            self.shoot(&format!("group-{worker}-{number}"), group, true).await;
        } else if self.copies == Copies::AtRest {
            self.shoot(&format!("shot-{worker}-{number}"), &kept[kept.len() - 1..], false).await;
        }
        let (suffix, name) = (format!("-{worker}-{number}"), format!("clone-{worker}-{number}"));
        let mine = |name: &String| name.split('-').nth(1) == Some(&worker.to_string());
        let shots: Vec<_> =
            self.ledger().shots.iter().filter(|(name, _)| mine(name)).map(|(_, shots)| shots.clone()).collect();
        let origin = if !shots.is_empty() && chance.below(2) == 0 {
            let (volume, id) = shots[chance.below(shots.len())].members[0].clone();
            Some(volume.copied_from(Type::Snapshot(SnapshotSource { snapshot_id: id.unwrap() })))
        } else if chance.below(2) == 0 {
            let volume = self.ledger().volumes[&kept[chance.below(kept.len())]].clone();
            let volume_id = volume.id.clone().unwrap();
            Some(volume.copied_from(Type::Volume(VolumeSource { volume_id })))
        } else {
            None
        };
        if let Some(origin) = origin {
            self.create(&name, origin).await;
            kept.push(name);
        }
        let old: Vec<_> =
            self.ledger().shots.keys().filter(|name| mine(name) && !name.ends_with(&suffix)).cloned().collect();
        if old.len() > 1 {
            self.drop_shots(&old[chance.below(old.len())]).await;
        }
    }

    async fn shoot(&self, name: &str, volumes: &[String], is_group: bool) {
        let members = volumes.iter().map(|volume| (self.ledger().volumes[volume].clone(), None)).collect();
        let shots = Shots { is_group, id: None, members, is_doomed: false };
        self.ledger().shots.insert(name.to_owned(), shots.clone());
        let taken = shots.take(&self.clients, name).await.unwrap();
        self.ledger().shots.insert(name.to_owned(), taken);
    }

    async fn drop_shots(&self, name: &str) {
        let shots = {
            let mut ledger = self.ledger();
            let shots = ledger.shots.get_mut(name).unwrap();
            shots.is_doomed = true;
            shots.clone()
        };
        shots.delete(&self.clients).await;
        let mut ledger = self.ledger();
        ledger.shots.remove(name);
        ledger.deleted.extend(shots.snapshots());
    }

    async fn create(&self, name: &str, known: Known) {
        let wish = known.wish(name);
        self.ledger().volumes.insert(name.to_owned(), known);
        let answer = self.clients.clone().controller.create_volume(wish).await.unwrap();
        self.ledger().volumes.get_mut(name).unwrap().id = Some(answer.into_inner().volume.unwrap().volume_id);
    }

    async fn delete(&self, name: &str) {
        let id = {
            let mut ledger = self.ledger();
            let known = ledger.volumes.get_mut(name).unwrap();
            known.is_doomed = true;
            known.id.clone().unwrap()
        };
        let request = DeleteVolumeRequest { volume_id: id.clone(), ..DeleteVolumeRequest::default() };
        self.clients.clone().controller.delete_volume(request).await.unwrap();
        let mut ledger = self.ledger();
        ledger.volumes.remove(name);
        ledger.deleted.insert(id);
    }

    /// Stages and publishes a volume and writes to it, takes a snapshot of it meanwhile, and lets it grow.
    async fn fill(&self, place: &Place, name: &str, worker: usize, chance: &mut Chance) {
        let known = self.ledger().volumes[name].clone();
        let mut usage = Usage::stage(place, &self.clients, &known, worker).await;
        {
            let mut ledger = self.ledger();
            ledger.stages += 1;
            let stage = ledger.stages;
            ledger.volumes.get_mut(name).unwrap().staged = Some((worker, stage));
        }
        usage.publish(&known).await;
        let block = is_block(&known.capability);
        let pieces = 1 + chance.below(4) as u64;
        let (shot_at, grown_at) = (chance.number() % (2 * pieces), chance.number() % (2 * pieces));
        for number in 0..pieces {
            let (target, whose) = (usage.target.clone(), known.data.clone());
            tokio::task::spawn_blocking(move || write(target.as_ref(), block, &whose, number)).await.unwrap();
            self.ledger().volumes.get_mut(name).unwrap().pieces = number + 1;
            if self.copies == Copies::All && number == shot_at {
                self.shoot(&name.replace("pvc", "shot"), &[name.to_owned()], number % 2 == 0).await;
            }
            if (block || self.grows) && number == grown_at {
                usage.grow().await;
                self.ledger().volumes.get_mut(name).unwrap().bytes = GROWN;
            }
        }
        self.ledger().volumes.get_mut(name).unwrap().staged = None;
        usage.end().await;
    }
}

/// A volume that is staged and published.
struct Usage {
    clients: Clients,
    id: String,
    staging: String,
    target: String,
}

impl Usage {
    async fn begin(place: &Place, clients: &Clients, known: &Known, worker: usize) -> Self {
        let mut usage = Self::stage(place, clients, known, worker).await;
        usage.publish(known).await;
        usage
    }

    /// A volume that is to be used at a worker's paths.
    fn of(place: &Place, clients: &Clients, known: &Known, worker: usize) -> Self {
        let id = known.id.clone().unwrap();
        let (staging, target) = (place.text(&format!("staging-{worker}")), place.text(&format!("pods/{worker}")));
        fs::create_dir_all(&staging).unwrap();
        Self { clients: clients.clone(), id, staging, target }
    }

    async fn stage(place: &Place, clients: &Clients, known: &Known, worker: usize) -> Self {
        let mut usage = Self::of(place, clients, known, worker);
        let request = NodeStageVolumeRequest {
            volume_id: usage.id.clone(),
            staging_target_path: usage.staging.clone(),
            volume_capability: Some(known.capability.clone()),
            ..NodeStageVolumeRequest::default()
        };
        usage.clients.node.node_stage_volume(request).await.unwrap();
        usage
    }

    async fn publish(&mut self, known: &Known) {
        let request = publication(&self.id, &self.staging, &self.target, known.capability.clone());
        self.clients.node.node_publish_volume(request).await.unwrap();
    }

    async fn grow(&mut self) {
        let request = NodeExpandVolumeRequest {
            volume_id: self.id.clone(),
            volume_path: self.target.clone(),
            capacity_range: Some(CapacityRange { required_bytes: GROWN, limit_bytes: 0 }),
            ..NodeExpandVolumeRequest::default()
        };
        let grown = self.clients.node.node_expand_volume(request).await.unwrap().into_inner();
        assert_eq!(grown.capacity_bytes, GROWN);
    }

    async fn end(self) {
        let (node, volume_id) = (self.clients.node, self.id);
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: self.target };
        when_idle(|| {
            let (mut node, request) = (node.clone(), request.clone());
            async move { node.node_unpublish_volume(request).await.map(drop) }
        })
        .await;
        let request = NodeUnstageVolumeRequest { volume_id, staging_target_path: self.staging };
        when_idle(|| {
            let (mut node, request) = (node.clone(), request.clone());
            async move { node.node_unstage_volume(request).await.map(drop) }
        })
        .await;
    }
}

/// Calls until the volume isn't busy: a process that another test starts has all that this one has open, for a moment.
async fn when_idle<F: Future<Output = Result<(), Status>>>(mut call: impl FnMut() -> F) {
    let start = Instant::now();
    loop {
        match call().await {
            Err(status) if status.message().contains("busy") && start.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            answer => return answer.unwrap(),
        }
    }
}

/// One cut: the file, and what was known just before it was made and just after.
struct Cut {
    image: PathBuf,
    before: Ledger,
    after: Ledger,
}

/// The state directory and the pool both lie on the disk that is cut.
fn mount_disk(place: &Place, image: &Path) -> Disk {
    let disk = Disk::mount(image, &place.path("disk"));
    for name in ["pool", "state"] {
        fs::create_dir_all(place.path("disk").join(name)).unwrap();
        place.bind(&format!("disk/{name}"), name);
    }
    disk
}

fn unmount_disk(place: &Place, disk: Disk) {
    for name in ["pool", "state"] {
        place.unmount(name);
    }
    disk.unmount();
}

/// How often the power of each disk is cut.
const CUTS: usize = 3;

/// Cuts the power of a pool of `kind` on a filesystem, again and again.
async fn cut(kind: &str, filesystem: &str, copies: Copies, capabilities: &[VolumeCapability]) {
    let directory = tempfile::tempdir().unwrap();
    let outer = directory.path().join("outer");
    // Each goes after what is on it.
    let (mut below, mut disks) = (Vec::new(), Vec::new());
    let place = Arc::new(Place::new());
    below.push(Disk::make(&directory.path().join("outer.img"), "xfs", 8 << 30, &outer));
    let image = outer.join("disk.img");
    Disk::make(&image, filesystem, 2 << 30, &place.path("disk")).unmount();
    disks.push(mount_disk(&place, &image));
    rustix::fs::syncfs(File::open(place.path("disk")).unwrap()).unwrap();

    let section = place.section(kind);
    let (driver, clients) = Process::serve(&place, &section).await;
    let (ledger, is_over, grows) = (Arc::default(), Arc::default(), kind == "subvolume");
    let workload = Workload { ledger, is_over, clients, copies, grows };
    let mut chance = Chance::new();
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let chance = Chance::of(chance.number());
            tokio::spawn(workload.clone().work(Arc::clone(&place), worker, capabilities.to_vec(), chance))
        })
        .collect();
    let mut cuts = Vec::new();
    for number in 0..CUTS {
        // Any moment will do once there is something to lose.
        wait_until_async("volumes to be made", PATIENCE, async || {
            (workload.ledger().deleted.len() > 3 * number).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_micros(chance.number() % 30_000)).await;
        let cut = outer.join(format!("cut-{number}"));
        let (source, copy) = (File::open(&image).unwrap(), File::create_new(&cut).unwrap());
        let before = workload.ledger().clone();
        tokio::task::spawn_blocking(move || ioctl_ficlone(copy, source).unwrap()).await.unwrap();
        cuts.push(Cut { image: cut, before, after: workload.ledger().clone() });
    }
    workload.is_over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
    driver.end(Signal::SIGTERM);
    unmount_disk(&place, disks.pop().unwrap());

    let mut found = Found::default();
    for (number, cut) in cuts.iter().enumerate() {
        if filesystem == "btrfs" {
            // It knows disks by what is on them, and so takes a copy for the disk that it saw last.
            run(Command::new("btrfs").args(["device", "scan", "--forget"]));
        }
        disks.push(mount_disk(&place, &cut.image));
        let (driver, clients) = Process::serve(&place, &section).await;
        let check = Check { cut, place: &place, clients, number };
        check.everything(&mut found).await;
        driver.end(Signal::SIGTERM);
        unmount_disk(&place, disks.pop().unwrap());
    }
    println!("{kind} on {filesystem}: {found:?} after {CUTS} cuts");
    let copies = copies == Copies::No || (found.shots > 0 && found.copied > 0);
    assert!(found.volumes > CUTS && found.pieces > 0 && copies, "nothing was at stake");
}

/// How much was there that had to be.
#[derive(Debug, Default)]
struct Found {
    volumes: usize,
    pieces: u64,
    /// Volumes that were published without a stage, as they had been staged.
    staged: usize,
    /// Volumes that are copies, and those that had grown.
    clones: usize,
    grown: usize,
    /// Snapshots, and the pieces of data in them.
    shots: usize,
    copied: u64,
}

/// A look at what there is after a cut.
struct Check<'a> {
    cut: &'a Cut,
    place: &'a Place,
    clients: Clients,
    number: usize,
}

impl Check<'_> {
    /// Looks whether what must be there is, and nothing else.
    async fn everything(&self, found: &mut Found) {
        let Self { cut: Cut { before, after, .. }, place, number, .. } = self;
        let volumes = self.volumes().await;
        let shots = self.shots().await;
        assert_eq!(names(&place.path("pool/building")), [""; 0], "cut {number}");
        let is_back = |id: &String| volumes.contains_key(id) || shots.contains(id);
        assert!(!before.deleted.iter().any(is_back), "cut {number}: what was deleted is back");
        let mut told: BTreeSet<_> = after.volumes.values().filter_map(|known| known.id.clone()).collect();
        told.extend(after.shots.values().flat_map(Shots::snapshots));
        told.extend(after.deleted.iter().cloned());
        for (name, known) in &before.volumes {
            // Whose deletion had begun may be gone.
            let Some(after) = after.volumes.get(name).filter(|after| !after.is_doomed) else { continue };
            let Some(id) = &known.id else { continue };
            let bytes = volumes.get(id).unwrap_or_else(|| panic!("cut {number}: volume {name} is lost"));
            let is_grown = known.bytes == GROWN;
            assert!(!is_grown || *bytes == GROWN, "cut {number}: volume {name} has shrunk to {bytes} bytes");
            let staged = known.staged.filter(|_| known.staged == after.staged);
            self.volume(name, &Known { staged, ..known.clone() }).await;
            found.volumes += 1;
            found.pieces += known.pieces;
            found.staged += usize::from(staged.is_some());
            found.clones += usize::from(known.source.is_some());
            found.grown += usize::from(is_grown);
        }
        for (name, known) in &before.shots {
            if known.id.is_some() && after.shots.get(name).is_some_and(|after| !after.is_doomed) {
                assert!(known.snapshots().all(|id| shots.contains(&id)), "cut {number}: {name} is lost");
                self.content(name, known).await;
                found.shots += known.members.len();
                found.copied += known.members.iter().map(|(volume, _)| volume.pieces).sum::<u64>();
            }
        }
        self.retry_volumes(&volumes, &mut told).await;
        self.retry_shots(&shots, &mut told).await;
        self.delete_all(&told).await;
    }

    /// The listed volumes with their sizes.
    async fn volumes(&self) -> BTreeMap<String, i64> {
        let answer = self.clients.clone().controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
        let volumes = answer.into_inner().entries.into_iter().map(|entry| entry.volume.unwrap());
        volumes.map(|volume| (volume.volume_id, volume.capacity_bytes)).collect()
    }

    /// The listed snapshots.
    async fn shots(&self) -> BTreeSet<String> {
        let listed = self.clients.clone().controller.list_snapshots(ListSnapshotsRequest::default()).await;
        // A pool without snapshots has none to list.
        let entries = listed.map(|listed| listed.into_inner().entries).unwrap_or_default();
        entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect()
    }

    /// Looks at a volume that is made from each snapshot.
    async fn content(&self, name: &str, shots: &Shots) {
        for (volume, id) in &shots.members {
            let snapshot_id = id.clone().unwrap();
            let name = format!("{name}-restored-{snapshot_id}");
            let mut copy = volume.copied_from(Type::Snapshot(SnapshotSource { snapshot_id }));
            let made = self.clients.clone().controller.create_volume(copy.wish(&name)).await.unwrap();
            copy.id = Some(made.into_inner().volume.unwrap().volume_id);
            self.volume(&name, &copy).await;
            self.delete(copy.id.unwrap()).await;
        }
    }

    /// What was being made is there, whole, or the retry makes it.
    async fn retry_volumes(&self, listed: &BTreeMap<String, i64>, told: &mut BTreeSet<String>) {
        let Cut { before, after, .. } = self.cut;
        let mut clients = self.clients.clone();
        for (name, known) in &after.volumes {
            let was = before.volumes.get(name);
            let source = known.source.as_ref().map(source_id);
            // Whose source may be gone by now was answered.
            let is_gone = source.is_some_and(|source| !after.has(source));
            if was.is_some_and(|was| was.id.is_some()) || known.is_doomed || is_gone {
                continue;
            }
            let id = match clients.controller.create_volume(known.wish(name)).await {
                // Its source was made after the cut.
                Err(status) if status.code() == Code::NotFound && was.is_none() && source.is_some() => continue,
                answer => answer.unwrap().into_inner().volume.unwrap().volume_id,
            };
            assert!(known.id.as_ref().is_none_or(|after| !listed.contains_key(after) || *after == id), "{name}");
            told.insert(id.clone());
            // A copy has what its source had when it was asked for.
            let pieces = was.filter(|was| was.source.is_some()).map_or(0, |was| was.pieces);
            self.volume(name, &Known { id: Some(id), pieces, staged: None, ..known.clone() }).await;
        }
    }

    async fn retry_shots(&self, listed: &BTreeSet<String>, told: &mut BTreeSet<String>) {
        let Cut { before, after, .. } = self.cut;
        for (name, known) in &after.shots {
            let was = before.shots.get(name);
            let is_there = |(volume, _): &(Known, Option<String>)| after.has(volume.id.as_ref().unwrap());
            if was.is_some_and(|was| was.id.is_some()) || known.is_doomed || !known.members.iter().all(is_there) {
                continue;
            }
            let mut taken = match known.take(&self.clients, name).await {
                Err(status) if status.code() == Code::NotFound && was.is_none() => continue,
                taken => taken.unwrap(),
            };
            for (after, id) in known.snapshots().zip(taken.snapshots()) {
                assert!(!listed.contains(&after) || after == id, "{name}");
            }
            told.extend(taken.snapshots());
            if was.is_none() {
                taken.members.iter_mut().for_each(|(volume, _)| volume.pieces = 0);
            }
            self.content(name, &taken).await;
        }
    }

    async fn delete_all(&self, told: &BTreeSet<String>) {
        let Self { place, number, clients, .. } = self;
        let listed = clients.clone().controller.list_snapshots(ListSnapshotsRequest::default()).await;
        let (mut groups, mut single) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
        for entry in listed.map(|listed| listed.into_inner().entries).unwrap_or_default() {
            let shot = entry.snapshot.unwrap();
            let id = shot.snapshot_id;
            assert!(told.contains(&id), "cut {number}: nobody asked for {id}");
            match shot.group_snapshot_id {
                group if group.is_empty() => single.push(id),
                group => groups.entry(group).or_default().push(id),
            }
        }
        for id in single {
            let request = DeleteSnapshotRequest { snapshot_id: id, ..DeleteSnapshotRequest::default() };
            clients.clone().controller.delete_snapshot(request).await.unwrap();
        }
        for (group_snapshot_id, snapshot_ids) in groups {
            let secrets = BTreeMap::new().into_iter().collect();
            let request = DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, secrets };
            clients.clone().group.delete_volume_group_snapshot(request).await.unwrap();
        }
        for id in place.volumes() {
            assert!(told.contains(&id), "cut {number}: nobody asked for {id}");
            self.delete(id).await;
        }
        for home in ["volumes", "snapshots", "groups", "building"] {
            let home = place.path("pool").join(home);
            assert!(!home.exists() || names(&home).is_empty(), "cut {number}: {home:?} has {:?}", names(&home));
        }
        assert_eq!(names(&place.path("state/storage/attachments")), [""; 0], "cut {number}");
    }

    async fn delete(&self, volume_id: String) {
        let request = DeleteVolumeRequest { volume_id, ..DeleteVolumeRequest::default() };
        self.clients.clone().controller.delete_volume(request).await.unwrap();
    }

    async fn volume(&self, name: &str, known: &Known) {
        let Self { place, number, clients, .. } = self;
        let usage = match known.staged {
            // A kubelet that doesn't know that the mounts are gone.
            Some((worker, _)) => {
                let mut usage = Usage::of(place, clients, known, worker);
                usage.publish(known).await;
                usage
            }
            None => Usage::begin(place, clients, known, 0).await,
        };
        for index in 0..known.pieces {
            let found = read(usage.target.as_ref(), is_block(&known.capability), index);
            assert!(found == piece(&known.data, index), "cut {number}: piece {index} of {name} is not what was synced");
        }
        let image = place.path("pool/volumes").join(&usage.id).join("image");
        usage.end().await;
        if image.exists() && !is_block(&known.capability) {
            run(Command::new("e2fsck").arg("-fn").arg(image));
        }
    }
}

macro_rules! needs_filesystems {
    ($($program:expr),+) => {
        needs_a_kernel!();
        let missing = missing(&["mkfs.xfs", "e2fsck" $(, $program)+]);
        skip_unless!(missing.is_empty(), format!("needs {}", missing.join(", ")));
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn image_pool_on_xfs() {
    needs_filesystems!("mkfs.xfs");
    cut("image", "xfs", Copies::All, &[mounted(), block()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_pool_on_ext4() {
    needs_filesystems!("mkfs.ext4");
    cut("image", "ext4", Copies::AtRest, &[mounted(), block()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_pool_on_btrfs() {
    needs_filesystems!("mkfs.btrfs", "btrfs");
    cut("image", "btrfs", Copies::All, &[mounted(), block()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_pool_on_ext4() {
    needs_filesystems!("mkfs.ext4");
    cut("directory", "ext4", Copies::No, &[mounted()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subvolume_pool_on_btrfs() {
    needs_filesystems!("mkfs.btrfs", "btrfs");
    cut("subvolume", "btrfs", Copies::All, &[mounted()]).await;
}
