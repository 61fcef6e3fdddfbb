//! SIGKILL at every system call of every RPC that changes something: the successor and the retry finish the job, with
//! the same volume, and nothing is lost or left over.
//!
//! By default one of several points is taken, others each time; `KEELSON_KILL_ALL=1` takes them all, and kills the
//! driver alone, its helper alone, and both, at each.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{env, fs, os::unix::fs::MetadataExt, path::Path, process::Command, time::Instant};

use common::{
    MIB, Place, block, capability, connect,
    disk::{Disk, run},
    mounted, names,
    process::{Clients, PATIENCE, Process},
    publication, request,
};
use keelson_proto::csi::v1::{
    CapacityRange, ControllerModifyVolumeRequest, CreateSnapshotRequest, CreateVolumeGroupSnapshotRequest,
    DeleteSnapshotRequest, DeleteVolumeGroupSnapshotRequest, DeleteVolumeRequest, GetCapacityRequest,
    ListVolumesRequest, NodeExpandVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, VolumeContentSource,
    group_controller_client::GroupControllerClient,
    volume_capability::{AccessType, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type},
};
use keelson_testkit::{Chance, Doom, Hit, Tracer, can_trace, missing, skip_unless, wait_until_async};
use serde_json::Value;
use tonic::{Status, transport::Channel};

/// One call in a volume's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Stage,
    Publish,
    /// Of a staged volume.
    Expand,
    Modify,
    Unpublish,
    Unstage,
    /// CreateSnapshot, and what follows from it.
    Cut,
    Clone,
    DropClone,
    DropCut,
    /// CreateVolumeGroupSnapshot with a freeze.
    CutGroup,
    DropGroup,
    Delete,
}

use Step::{
    Clone as CloneCut, Create, Cut, CutGroup, Delete, DropClone, DropCut, DropGroup, Expand, Modify, Publish, Stage,
    Unpublish, Unstage,
};

/// What is lived again and again.
struct Scene {
    /// The kind of the pool.
    kind: &'static str,
    /// The filesystem below it.
    below: &'static str,
    capability: VolumeCapability,
    bytes: i64,
    parameters: &'static [(&'static str, &'static str)],
    steps: &'static [Step],
    /// Those of the steps that are killed.
    killed: &'static [Step],
    /// Whether no template is there at first.
    formats: bool,
}

const WHOLE_LIFE: &[Step] = &[Create, Stage, Publish, Unpublish, Unstage, Delete];

/// Only the steps of a volume that changes; the others are killed elsewhere.
const CHANGES: &[Step] = &[Create, Stage, Expand, Modify, Unstage, Delete];

/// What is cut from a volume that is staged.
const SNAPSHOTS: &[Step] = &[Create, Stage, Cut, CutGroup, Unstage, CloneCut, DropClone, DropCut, DropGroup, Delete];

/// The life of a subvolume, whose content is cut while it is staged.
const SUBVOLUME: &[Step] = &[Create, Stage, Publish, Unpublish, Cut, Unstage, CloneCut, DropClone, DropCut, Delete];

/// What it grows to.
const GROWN: i64 = 384 * MIB;

/// A volume, by the calls of a kubelet and a provisioner.
struct Life<'a> {
    scene: &'a Scene,
    place: &'a Place,
    name: String,
    id: String,
    /// The ids of its snapshot, of that one's clone, and of its group with the members.
    cut: String,
    clone: String,
    group: (String, Vec<String>),
}

impl Life<'_> {
    async fn call(&mut self, step: Step, clients: &Clients) -> Result<(), Status> {
        let Clients { mut controller, mut node, .. } = clients.clone();
        let capability = self.scene.capability.clone();
        let (volume_id, staging, target) =
            (self.id.clone(), self.place.text("staging"), self.place.text("pods/target"));
        match step {
            Create => {
                let mut wish = request(&self.name, self.scene.bytes, capability);
                wish.parameters
                    .extend(self.scene.parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
                let id = controller.create_volume(wish).await?.into_inner().volume.unwrap().volume_id;
                assert!(self.id.is_empty() || self.id == id, "what was answered once is the answer for ever");
                self.id = id;
                Ok(())
            }
            Stage => {
                let request = NodeStageVolumeRequest {
                    volume_id,
                    staging_target_path: staging,
                    volume_capability: Some(capability),
                    ..NodeStageVolumeRequest::default()
                };
                node.node_stage_volume(request).await.map(drop)
            }
            Publish => {
                let request = publication(&volume_id, &staging, &target, capability);
                node.node_publish_volume(request).await.map(drop)
            }
            Expand => {
                let request = NodeExpandVolumeRequest {
                    volume_id,
                    volume_path: staging,
                    capacity_range: Some(CapacityRange { required_bytes: GROWN, limit_bytes: 0 }),
                    ..NodeExpandVolumeRequest::default()
                };
                let bytes = node.node_expand_volume(request).await?.into_inner().capacity_bytes;
                assert_eq!(bytes, GROWN);
                Ok(())
            }
            Modify => {
                let thick =
                    [("provisioning".to_owned(), "thick".to_owned()), ("readAheadKiB".to_owned(), "8".to_owned())];
                let mutable_parameters = thick.into_iter().collect();
                let request = ControllerModifyVolumeRequest {
                    volume_id,
                    mutable_parameters,
                    ..ControllerModifyVolumeRequest::default()
                };
                controller.controller_modify_volume(request).await.map(drop)
            }
            Unpublish => {
                let request = NodeUnpublishVolumeRequest { volume_id, target_path: target };
                node.node_unpublish_volume(request).await.map(drop)
            }
            Unstage => {
                let request = NodeUnstageVolumeRequest { volume_id, staging_target_path: staging };
                node.node_unstage_volume(request).await.map(drop)
            }
            Cut => {
                let name = self.name.clone();
                let request =
                    CreateSnapshotRequest { source_volume_id: volume_id, name, ..CreateSnapshotRequest::default() };
                let cut = controller.create_snapshot(request).await?.into_inner().snapshot.unwrap();
                answered_once(&mut self.cut, cut.snapshot_id);
                Ok(())
            }
            CloneCut => {
                let source = Type::Snapshot(SnapshotSource { snapshot_id: self.cut.clone() });
                let mut wish = request(&format!("{}-clone", self.name), self.scene.bytes, capability);
                wish.volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
                let clone = controller.create_volume(wish).await?.into_inner().volume.unwrap();
                answered_once(&mut self.clone, clone.volume_id);
                Ok(())
            }
            DropClone => {
                let request = DeleteVolumeRequest { volume_id: self.clone.clone(), ..DeleteVolumeRequest::default() };
                controller.delete_volume(request).await.map(drop)
            }
            DropCut => {
                let request =
                    DeleteSnapshotRequest { snapshot_id: self.cut.clone(), ..DeleteSnapshotRequest::default() };
                controller.delete_snapshot(request).await.map(drop)
            }
            CutGroup => {
                let request = CreateVolumeGroupSnapshotRequest {
                    name: self.name.clone(),
                    source_volume_ids: vec![volume_id],
                    parameters: [("freeze".to_owned(), "true".to_owned())].into(),
                    ..CreateVolumeGroupSnapshotRequest::default()
                };
                let answer = self.groups().await?.create_volume_group_snapshot(request).await?;
                let group = answer.into_inner().group_snapshot.unwrap();
                answered_once(&mut self.group.0, group.group_snapshot_id);
                self.group.1 = group.snapshots.into_iter().map(|member| member.snapshot_id).collect();
                Ok(())
            }
            DropGroup => {
                let request = DeleteVolumeGroupSnapshotRequest {
                    group_snapshot_id: self.group.0.clone(),
                    snapshot_ids: self.group.1.clone(),
                    ..DeleteVolumeGroupSnapshotRequest::default()
                };
                self.groups().await?.delete_volume_group_snapshot(request).await.map(drop)
            }
            Delete => {
                let request = DeleteVolumeRequest { volume_id, ..DeleteVolumeRequest::default() };
                controller.delete_volume(request).await.map(drop)
            }
        }
    }

    async fn groups(&self) -> Result<GroupControllerClient<Channel>, Status> {
        let channel = connect(&self.place.socket()).await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(GroupControllerClient::new(channel))
    }

    /// Forgets what a call that has succeeded deleted.
    fn forget(&mut self, step: Step) {
        match step {
            DropClone => self.clone.clear(),
            DropCut => self.cut.clear(),
            DropGroup => self.group = (String::new(), Vec::new()),
            _ => {}
        }
    }

    /// Looks at what there is once a call has succeeded.
    async fn check(&mut self, step: Step, clients: &Clients, at: &str) {
        self.forget(step);
        if step == CutGroup {
            // Whoever is frozen waits.
            let probe = self.place.path("staging/probe");
            run(Command::new("timeout").args(["-s", "KILL", "60", "touch"]).arg(probe));
        }
        let there = |id: &String| if id.is_empty() { vec![] } else { vec![id.clone()] };
        assert_eq!(names(&self.place.path("pool/snapshots")), there(&self.cut), "{at}");
        assert_eq!(names(&self.place.path("pool/groups")), there(&self.group.0), "{at}");
        let listed = clients.clone().controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
        let mut listed: Vec<_> =
            listed.into_inner().entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
        let mut expected = if step == Delete { vec![] } else { vec![self.id.clone()] };
        expected.extend(there(&self.clone));
        expected.sort();
        listed.sort();
        assert_eq!(listed, expected, "{at}");
        assert_eq!(self.place.volumes(), expected, "{at}");
        assert_eq!(names(&self.place.path("pool/building")), [""; 0], "{at}");
        let target = self.place.path("pods/target");
        let mounts = self.place.mounts().iter().filter(|mount| mount.point == target).count();
        assert_eq!(mounts, usize::from(step == Publish), "{at}");
        let is_there = target.symlink_metadata().is_ok();
        assert_eq!(is_there, step == Publish, "{at}");
        if self.scene.formats && step == Create {
            assert_eq!(names(&self.place.path("pool/templates")).len(), 1, "{at}");
        }
        if step == Expand || step == Modify {
            let image = self.place.path("pool/volumes").join(&self.id).join("image").metadata().unwrap();
            assert_eq!(image.len(), GROWN.unsigned_abs(), "{at}");
            assert!(step == Expand || image.blocks() * 512 >= image.len(), "{at}");
            let filesystem = nix::sys::statvfs::statvfs(&self.place.path("staging")).unwrap();
            let bytes = filesystem.blocks() * filesystem.fragment_size();
            assert!(bytes > GROWN.unsigned_abs() - (80 << 20), "{at}: {bytes}");
            let [number] = self.place.loops()[..] else { panic!("{at}: not one loop device") };
            let read_ahead = std::fs::read_to_string(format!("/sys/block/loop{number}/queue/read_ahead_kb")).unwrap();
            assert_eq!(read_ahead.trim() == "8", step == Modify, "{at}: {read_ahead}");
        }
    }
}

/// What was answered once is the answer for ever.
fn answered_once(known: &mut String, id: String) {
    assert!(known.is_empty() || *known == id, "{known} and {id}");
    *known = id;
}

impl Scene {
    async fn capacity(&self, place: &Place, clients: &Clients) -> i64 {
        if self.below == "btrfs" {
            // It frees what is deleted after the transaction that deleted it.
            run(Command::new("btrfs").args(["filesystem", "sync"]).arg(place.path("pool")));
        }
        let volume_capabilities = vec![self.capability.clone()];
        let request = GetCapacityRequest { volume_capabilities, ..GetCapacityRequest::default() };
        clients.clone().controller.get_capacity(request).await.unwrap().into_inner().available_capacity
    }
}

/// Kills at the points of each step.
async fn die_everywhere(scene: Scene) {
    let directory = tempfile::tempdir().unwrap();
    // It goes after what is on it.
    let mut disks = Vec::new();
    let place = Place::new();
    disks.push(Disk::make(&directory.path().join("disk"), scene.below, 2 << 30, &place.path("pool")));
    let section = place.section(scene.kind);
    let mut victim = Victim { place: &place, section: &section, scene: &scene, running: None, lives: 0, before: 0 };
    // A whole life, so that all is there that stays.
    victim.live(0, usize::MAX, Doom::All).await;
    victim.before = scene.capacity(&place, &victim.clients().await).await;
    let all = env::var_os("KEELSON_KILL_ALL").is_some();
    let mut chance = Chance::new();
    for index in 0..scene.steps.len() {
        if !scene.killed.contains(&scene.steps[index]) {
            continue;
        }
        let stride = if all { 1 } else { STRIDE };
        let (begin, mut hits, mut last) = (Instant::now(), 0, 0);
        'points: for point in (1 + chance.below(stride)..).step_by(stride) {
            let dooms = [Doom::All, Doom::Parent, Doom::Caller];
            let one = chance.below(dooms.len());
            for doom in if all { &dooms[..] } else { &dooms[one..=one] } {
                if victim.live(index, point, *doom).await.is_none() {
                    last = point;
                    break 'points;
                }
                hits += 1;
            }
        }
        let step = scene.steps[index];
        println!("{step:?}: {hits} kills, fewer than {last} points, in {:.1} s", begin.elapsed().as_secs_f32());
        assert!(last > 5, "{step:?} makes fewer system calls than {last}");
    }
    if scene.kind == "subvolume" {
        expect_no_subvolumes(&place.path("pool")).await;
    }
}

/// Nothing is left of volumes: neither subvolumes nor qgroups of them.
async fn expect_no_subvolumes(pool: &Path) {
    let btrfs = |arguments: [&str; 2]| run(Command::new("btrfs").args(arguments).arg(pool));
    assert_eq!(btrfs(["subvolume", "list"]), "");
    wait_until_async("the qgroups to be gone", PATIENCE, async || {
        btrfs(["filesystem", "sync"]);
        (btrfs(["qgroup", "show"]).lines().filter(|line| line.starts_with("0/")).count() == 1).then_some(())
    })
    .await;
}

/// How many points are passed over for each that is killed, plus one.
const STRIDE: usize = 4;

struct Victim<'a> {
    place: &'a Place,
    section: &'a Value,
    scene: &'a Scene,
    running: Option<(Process, Clients)>,
    lives: usize,
    /// The pool's capacity with nothing in it.
    before: i64,
}

impl Victim<'_> {
    async fn clients(&mut self) -> Clients {
        if self.running.is_none() {
            self.running = Some(Process::serve(self.place, self.section).await);
        }
        self.running.as_ref().unwrap().1.clone()
    }

    /// Lives a whole life, and is killed in the step `index` of it.
    async fn live(&mut self, index: usize, point: usize, doom: Doom) -> Option<Hit> {
        self.lives += 1;
        let Self { scene, place, .. } = *self;
        let name = format!("pvc-{}", self.lives);
        let [id, cut, clone] = [const { String::new() }; 3];
        let mut life = Life { scene, place, name, id, cut, clone, group: (String::new(), Vec::new()) };
        if scene.formats && self.lives > 1 {
            fs::remove_dir_all(place.path("pool/templates")).unwrap();
        }
        let clients = self.clients().await;
        for step in &scene.steps[..index] {
            life.call(*step, &clients).await.unwrap();
            life.forget(*step);
        }
        let step = scene.steps[index];
        let (process, clients) = self.running.take().unwrap();
        let tracer = Tracer::attach(process.into_child(), point, doom).unwrap();
        let answer = life.call(step, &clients).await;
        let mut traced = Some(tracer);
        let hit = traced.as_ref().and_then(Tracer::disarm);
        let at = format!("{step:?} with {doom:?} killed at {point}, {hit:?}, that answered {answer:?}");
        let clients = match &hit {
            None => {
                answer.expect("a call that isn't killed succeeds");
                clients
            }
            Some(hit) if !hit.is_parent_dead => clients,
            Some(_) => {
                if doom != Doom::Parent {
                    // Nobody else is at work on it; and who connects too soon reaches the one that is dying.
                    let _ = traced.take().unwrap().wait();
                }
                self.clients().await
            }
        };
        if step == CutGroup || (doom == Doom::Parent && hit.is_some()) {
            // A helper of the killed driver may be ending just now.
            wait_until_async(&at, PATIENCE, async || life.call(step, &clients).await.ok()).await;
        } else {
            life.call(step, &clients).await.expect(&at);
        }
        life.check(step, &clients, &at).await;
        for step in &scene.steps[index + 1..] {
            life.call(*step, &clients).await.expect(&at);
            life.check(*step, &clients, &at).await;
        }
        self.place.expect_clean();
        // Filesystems give space back in the background.
        let goal = self.before - MIB;
        wait_until_async(&format!("the capacity of before, {at}"), PATIENCE, async || {
            (scene.capacity(place, &clients).await >= goal).then_some(())
        })
        .await;
        hit
    }
}

fn lacking(programs: &[&str]) -> Option<String> {
    let missing = missing(programs);
    if !missing.is_empty() {
        return Some(format!("needs {}", missing.join(", ")));
    }
    (!can_trace()).then(|| "needs the right to trace processes".to_owned())
}

macro_rules! needs_a_tracer {
    () => {
        needs_a_tracer!("mkfs.xfs");
    };
    ($($program:expr),+) => {
        needs_a_kernel!();
        let lacking = lacking(&[$($program),+]);
        skip_unless!(lacking.is_none(), lacking.unwrap_or_default());
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn image_with_a_filesystem() {
    needs_a_tracer!();
    let scene = Scene {
        kind: "image",
        below: "xfs",
        capability: mounted(),
        bytes: 16 * MIB,
        parameters: &[],
        steps: WHOLE_LIFE,
        killed: WHOLE_LIFE,
        formats: false,
    };
    die_everywhere(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_whose_template_is_made() {
    needs_a_tracer!();
    let scene = Scene {
        kind: "image",
        below: "xfs",
        capability: mounted(),
        bytes: 16 * MIB,
        parameters: &[],
        steps: &[Create, Delete],
        killed: &[Create],
        formats: true,
    };
    die_everywhere(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thick_image() {
    needs_a_tracer!();
    let parameters = &[("provisioning", "thick")];
    let scene = Scene {
        kind: "image",
        below: "xfs",
        capability: mounted(),
        bytes: 16 * MIB,
        parameters,
        steps: WHOLE_LIFE,
        killed: WHOLE_LIFE,
        formats: false,
    };
    die_everywhere(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_image() {
    needs_a_tracer!();
    let scene = Scene {
        kind: "image",
        below: "xfs",
        capability: block(),
        bytes: 16 * MIB,
        parameters: &[],
        steps: WHOLE_LIFE,
        killed: WHOLE_LIFE,
        formats: false,
    };
    die_everywhere(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directory() {
    needs_a_tracer!();
    let scene = Scene {
        kind: "directory",
        below: "xfs",
        capability: mounted(),
        bytes: 16 * MIB,
        parameters: &[],
        steps: WHOLE_LIFE,
        killed: WHOLE_LIFE,
        formats: false,
    };
    die_everywhere(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_grows_and_is_set() {
    needs_a_tracer!();
    let mount = MountVolume { fs_type: "xfs".to_owned(), ..MountVolume::default() };
    let scene = Scene {
        kind: "image",
        below: "xfs",
        // Of ext4 only who has CAP_SYS_RESOURCE could let it grow.
        capability: capability(AccessType::Mount(mount), Mode::SingleNodeWriter),
        bytes: 320 * MIB,
        parameters: &[],
        steps: CHANGES,
        killed: &[Expand, Modify],
        formats: false,
    };
    die_everywhere(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_clones_and_groups() {
    needs_a_tracer!();
    let scene = Scene {
        kind: "image",
        below: "xfs",
        capability: mounted(),
        bytes: 16 * MIB,
        parameters: &[],
        steps: SNAPSHOTS,
        killed: &[Cut, CutGroup, CloneCut, DropCut, DropGroup],
        formats: false,
    };
    die_everywhere(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_with_xfs() {
    needs_a_tracer!();
    let mount = MountVolume { fs_type: "xfs".to_owned(), ..MountVolume::default() };
    let scene = Scene {
        kind: "image",
        below: "xfs",
        capability: capability(AccessType::Mount(mount), Mode::SingleNodeWriter),
        bytes: 320 * MIB,
        parameters: &[],
        steps: SNAPSHOTS,
        killed: &[Create, Stage, Cut, CloneCut, Unstage],
        formats: false,
    };
    die_everywhere(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subvolume() {
    needs_a_tracer!("mkfs.btrfs", "btrfs");
    let scene = Scene {
        kind: "subvolume",
        below: "btrfs",
        capability: mounted(),
        bytes: 16 * MIB,
        parameters: &[],
        steps: SUBVOLUME,
        killed: &[Create, Publish, Cut, CloneCut, DropClone, DropCut, Delete],
        formats: false,
    };
    die_everywhere(scene).await;
}
