//! Power cuts: what was answered OK is there afterwards, whole; what was deleted is gone; nothing half-made is left.
//!
//! The pool's disk is a file on an XFS, and a cut is a reflinked copy of that file, made in one instant while volumes are
//! made, written to and deleted. What the pool's filesystem had only in memory isn't in it. Each copy is then mounted in
//! the disk's place, as after a reboot.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
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
    /// Whether its deletion was begun.
    is_doomed: bool,
}

/// What was asked for and answered. Deleted volumes stay in it without their names.
#[derive(Clone, Debug, Default)]
struct Ledger {
    volumes: BTreeMap<String, Known>,
    deleted: BTreeSet<String>,
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

/// Bytes of a piece of data.
const PIECE: usize = 128 << 10;

/// The data of the `number`th piece of a volume.
fn piece(name: &str, number: u64) -> Vec<u8> {
    let start = name.bytes().fold(number, |sum, byte| sum.wrapping_mul(257).wrapping_add(byte.into()));
    let mut chance = Chance::of(start);
    (0..PIECE / 8).flat_map(|_| chance.number().to_le_bytes()).collect()
}

fn is_block(capability: &VolumeCapability) -> bool {
    matches!(capability.access_type, Some(AccessType::Block(_)))
}

/// Writes a piece to a published volume, and syncs it.
fn write(target: &Path, is_block: bool, name: &str, number: u64) {
    let data = piece(name, number);
    if is_block {
        let device = OpenOptions::new().write(true).open(target).unwrap();
        device.write_all_at(&data, number * PIECE as u64).unwrap();
        device.sync_all().unwrap();
    } else {
        let file = File::create(target.join(number.to_string())).unwrap();
        file.write_all_at(&data, 0).unwrap();
        file.sync_all().unwrap();
        File::open(target).unwrap().sync_all().unwrap();
    }
}

fn read(target: &Path, is_block: bool, number: u64) -> Vec<u8> {
    if !is_block {
        return fs::read(target.join(number.to_string())).unwrap();
    }
    let mut data = vec![0; PIECE];
    File::open(target).unwrap().read_exact_at(&mut data, number * PIECE as u64).unwrap();
    data
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
        let known = Known { capability: capability.clone(), id: None, pieces: 0, is_doomed: false };
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
        let usage = Usage::begin(place, &self.clients, &known, worker).await;
        let block = is_block(&known.capability);
        for number in 0..pieces as u64 {
            let (target, name) = (usage.target.clone(), name.to_owned());
            let whose = name.clone();
            tokio::task::spawn_blocking(move || write(target.as_ref(), block, &whose, number)).await.unwrap();
            self.ledger().volumes.get_mut(&name).unwrap().pieces = number + 1;
        }
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
        let id = known.id.clone().unwrap();
        let (staging, target) = (place.text(&format!("staging-{worker}")), place.text(&format!("pods/{worker}")));
        fs::create_dir_all(&staging).unwrap();
        let mut usage = Self { clients: clients.clone(), id, staging, target };
        let request = NodeStageVolumeRequest {
            volume_id: usage.id.clone(),
            staging_target_path: usage.staging.clone(),
            volume_capability: Some(known.capability.clone()),
            ..NodeStageVolumeRequest::default()
        };
        usage.clients.node.node_stage_volume(request).await.unwrap();
        let request = publication(&usage.id, &usage.staging, &usage.target, known.capability.clone());
        usage.clients.node.node_publish_volume(request).await.unwrap();
        usage
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

    let (mut volumes, mut pieces) = (0, 0);
    for (number, cut) in cuts.iter().enumerate() {
        if filesystem == "btrfs" {
            // It knows disks by what is on them, and so takes a copy for the disk that it saw last.
            run(Command::new("btrfs").args(["device", "scan", "--forget"]));
        }
        disks.push(mount_disk(&place, &cut.image));
        let driver = Running::start(&place, &section).await;
        let found = cut.check(&place, number).await;
        (volumes, pieces) = (volumes + found.0, pieces + found.1);
        driver.stop().await;
        unmount_disk(&place, disks.pop().unwrap());
    }
    println!("{kind} on {filesystem}: {volumes} volumes and {pieces} pieces of data after {CUTS} cuts");
    assert!(volumes > CUTS && pieces > 0, "nothing was at stake");
}

impl Cut {
    /// Looks whether what must be there is; gives the numbers of volumes and pieces of data.
    async fn check(&self, place: &Place, number: usize) -> (usize, u64) {
        let mut clients = Clients::connect(place).await;
        let answer = clients.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        let listed: BTreeSet<_> = answer.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
        assert_eq!(names(&place.path("pool/building")), [""; 0], "cut {number}");
        assert!(listed.is_disjoint(&self.before.deleted), "cut {number}: deleted volumes are back");
        let mut told: BTreeSet<_> = self.after.volumes.values().filter_map(|known| known.id.clone()).collect();
        told.extend(self.after.deleted.iter().cloned());
        let (mut expected, mut pieces) = (0, 0);
        for (name, known) in &self.before.volumes {
            // Whose deletion had begun may be gone.
            let is_certain = self.after.volumes.get(name).is_some_and(|after| !after.is_doomed);
            if let (Some(id), true) = (&known.id, is_certain) {
                assert!(listed.contains(id), "cut {number}: volume {name} is lost");
                self.check_volume(place, &clients, name, known, number).await;
                (expected, pieces) = (expected + 1, pieces + known.pieces);
            }
        }
        // What was being made is there, whole, or the retry makes it.
        for (name, after) in &self.after.volumes {
            let is_answered = self.before.volumes.get(name).is_some_and(|known| known.id.is_some());
            if !is_answered && !after.is_doomed {
                let wish = request(name, 16 * MIB, after.capability.clone());
                let id = clients.controller.create_volume(wish).await.unwrap().into_inner().volume.unwrap().volume_id;
                assert!(after.id.as_ref().is_none_or(|after| !listed.contains(after) || *after == id), "{name}");
                told.insert(id.clone());
                let known = Known { id: Some(id), pieces: 0, ..after.clone() };
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
        (expected, pieces)
    }

    async fn check_volume(&self, place: &Place, clients: &Clients, name: &str, known: &Known, number: usize) {
        let usage = Usage::begin(place, clients, known, 0).await;
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
