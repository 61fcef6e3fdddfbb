//! Power cuts: what was answered OK is there afterwards, whole; what was deleted is gone; nothing half-made is left.
//!
//! The pool's disk is a file on an XFS, and a cut is a reflinked copy of that file, made in one instant while volumes are
//! made, written to and deleted. What the pool's filesystem had only in memory isn't in it. Each copy is then mounted in
//! the disk's place, as after a reboot.

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
    time::Duration,
};

use common::{
    MIB, Place, Running, block,
    disk::{Disk, run},
    mounted, names,
    pieces::{piece, read, write},
    process::{Clients, PATIENCE},
    publication, request,
};
use keelson_proto::csi::v1::{
    DeleteVolumeRequest, ListVolumesRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, volume_capability::AccessType,
};
use keelson_testkit::{Chance, missing, skip_unless, wait_until_async};
use rustix::fs::ioctl_ficlone;

/// What is known of one volume, by its name.
#[derive(Clone, Debug)]
struct Known {
    capability: VolumeCapability,
    /// Once the answer to its creation was there.
    id: Option<String>,
    /// How many pieces of data were written to it, and synced.
    pieces: u64,
    /// Whose staging path it is staged at, if it is; and which of the stages of all volumes that was.
    staged: Option<(usize, u64)>,
    /// Whether its deletion was begun.
    is_doomed: bool,
}

/// What was asked for and answered. Deleted volumes stay in it without their names.
#[derive(Clone, Debug, Default)]
struct Ledger {
    volumes: BTreeMap<String, Known>,
    deleted: BTreeSet<String>,
    stages: u64,
}

/// Those who make, fill and delete volumes, and what they know.
#[derive(Clone)]
struct Workload {
    ledger: Arc<Mutex<Ledger>>,
    is_over: Arc<AtomicBool>,
    clients: Clients,
}

/// How many volumes each worker keeps.
const KEPT: usize = 3;

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
            self.create(&name, &capabilities[chance.below(capabilities.len())]).await;
            kept.push(name.clone());
            if chance.below(3) > 0 {
                self.fill(&place, &name, worker, 1 + chance.below(4)).await;
            }
            if kept.len() > KEPT {
                self.delete(&kept.remove(chance.below(KEPT))).await;
            }
        }
    }

    async fn create(&self, name: &str, capability: &VolumeCapability) {
        let known = Known { capability: capability.clone(), id: None, pieces: 0, staged: None, is_doomed: false };
        self.ledger().volumes.insert(name.to_owned(), known);
        let wish = request(name, 16 * MIB, capability.clone());
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

    async fn fill(&self, place: &Place, name: &str, worker: usize, pieces: usize) {
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
        for number in 0..pieces as u64 {
            let (target, name) = (usage.target.clone(), name.to_owned());
            let whose = name.clone();
            tokio::task::spawn_blocking(move || write(target.as_ref(), block, &whose, number)).await.unwrap();
            self.ledger().volumes.get_mut(&name).unwrap().pieces = number + 1;
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

    async fn end(mut self) {
        let request = NodeUnpublishVolumeRequest { volume_id: self.id.clone(), target_path: self.target };
        self.clients.node.node_unpublish_volume(request).await.unwrap();
        let request = NodeUnstageVolumeRequest { volume_id: self.id, staging_target_path: self.staging };
        self.clients.node.node_unstage_volume(request).await.unwrap();
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
const CUTS: usize = 5;

/// Cuts the power of a pool of `kind` on a filesystem, again and again.
async fn cut(kind: &str, filesystem: &str, capabilities: &[VolumeCapability]) {
    let directory = tempfile::tempdir().unwrap();
    let outer = directory.path().join("outer");
    // Each goes after what is on it.
    let (mut below, mut disks) = (Vec::new(), Vec::new());
    let place = Arc::new(Place::new());
    below.push(Disk::make(&directory.path().join("outer.img"), "xfs", 8 << 30, &outer));
    let image = outer.join("disk.img");
    Disk::make(&image, filesystem, 1 << 30, &place.path("disk")).unmount();
    disks.push(mount_disk(&place, &image));
    rustix::fs::syncfs(File::open(place.path("disk")).unwrap()).unwrap();

    let section = place.section(kind);
    let driver = Running::start(&place, &section).await;
    let clients = Clients::connect(&place).await;
    let workload = Workload { ledger: Arc::default(), is_over: Arc::default(), clients };
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
    driver.stop().await;
    unmount_disk(&place, disks.pop().unwrap());

    let mut found = Found::default();
    for (number, cut) in cuts.iter().enumerate() {
        if filesystem == "btrfs" {
            // It knows disks by what is on them, and so takes a copy for the disk that it saw last.
            run(Command::new("btrfs").args(["device", "scan", "--forget"]));
        }
        disks.push(mount_disk(&place, &cut.image));
        let driver = Running::start(&place, &section).await;
        cut.check(&place, number, &mut found).await;
        driver.stop().await;
        unmount_disk(&place, disks.pop().unwrap());
    }
    println!("{kind} on {filesystem}: {found:?} after {CUTS} cuts");
    assert!(found.volumes > CUTS && found.pieces > 0, "nothing was at stake");
}

/// How much was there that had to be.
#[derive(Debug, Default)]
struct Found {
    volumes: usize,
    pieces: u64,
    /// Volumes that were published without a stage, as they had been staged.
    staged: usize,
}

impl Cut {
    /// Looks whether what must be there is.
    async fn check(&self, place: &Place, number: usize, found: &mut Found) {
        let mut clients = Clients::connect(place).await;
        let answer = clients.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        let listed: BTreeSet<_> = answer.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
        assert_eq!(names(&place.path("pool/building")), [""; 0], "cut {number}");
        assert!(listed.is_disjoint(&self.before.deleted), "cut {number}: deleted volumes are back");
        let mut told: BTreeSet<_> = self.after.volumes.values().filter_map(|known| known.id.clone()).collect();
        told.extend(self.after.deleted.iter().cloned());
        for (name, known) in &self.before.volumes {
            // Whose deletion had begun may be gone.
            let Some(after) = self.after.volumes.get(name).filter(|after| !after.is_doomed) else { continue };
            let Some(id) = &known.id else { continue };
            assert!(listed.contains(id), "cut {number}: volume {name} is lost");
            let staged = known.staged.filter(|_| known.staged == after.staged);
            self.check_volume(place, &clients, name, &Known { staged, ..known.clone() }, number).await;
            found.volumes += 1;
            found.pieces += known.pieces;
            found.staged += usize::from(staged.is_some());
        }
        // What was being made is there, whole, or the retry makes it.
        for (name, after) in &self.after.volumes {
            let is_answered = self.before.volumes.get(name).is_some_and(|known| known.id.is_some());
            if !is_answered && !after.is_doomed {
                let wish = request(name, 16 * MIB, after.capability.clone());
                let id = clients.controller.create_volume(wish).await.unwrap().into_inner().volume.unwrap().volume_id;
                assert!(after.id.as_ref().is_none_or(|after| !listed.contains(after) || *after == id), "{name}");
                told.insert(id.clone());
                let known = Known { id: Some(id), pieces: 0, staged: None, ..after.clone() };
                self.check_volume(place, &clients, name, &known, number).await;
            }
        }
        for id in place.volumes() {
            assert!(told.contains(&id), "cut {number}: nobody asked for {id}");
            let request = DeleteVolumeRequest { volume_id: id, ..DeleteVolumeRequest::default() };
            clients.controller.delete_volume(request).await.unwrap();
        }
        assert_eq!(names(&place.path("pool/building")), [""; 0], "cut {number}");
        assert_eq!(names(&place.path("state/storage/attachments")), [""; 0], "cut {number}");
    }

    async fn check_volume(&self, place: &Place, clients: &Clients, name: &str, known: &Known, number: usize) {
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
            assert!(found == piece(name, index), "cut {number}: piece {index} of {name} is not what was synced");
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
    cut("image", "xfs", &[mounted(), block()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_pool_on_ext4() {
    needs_filesystems!("mkfs.ext4");
    cut("image", "ext4", &[mounted(), block()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_pool_on_btrfs() {
    needs_filesystems!("mkfs.btrfs", "btrfs");
    cut("image", "btrfs", &[mounted(), block()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_pool_on_ext4() {
    needs_filesystems!("mkfs.ext4");
    cut("directory", "ext4", &[mounted()]).await;
}
