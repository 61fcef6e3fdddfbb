//! A node loses its power in the middle of calls: what was answered OK is there afterwards, whole.
//!
//! The VM tier runs the first test, kills the guest at a random moment, boots it, and runs the second; several times.
//! What the second looks for is what the host heard before the cut.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Write, stdout},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use common::{
    MIB, Place, Running, block,
    disk::run,
    mounted, names,
    pieces::{piece, read, write},
    process::Clients,
    publication, request,
};
use keelson_proto::csi::v1::{
    CapacityRange, DeleteVolumeRequest, ListVolumesRequest, NodeExpandVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability, VolumeContentSource,
    volume_content_source::{Type, VolumeSource},
};
use keelson_testkit::{VM_CALL, VM_DISK, VM_HEARD, skip_unless};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The pools, by the filesystem that they lie on.
const POOLS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// What volumes have, and what some grow to.
const BYTES: i64 = 16 * MIB;
const GROWN: i64 = 32 * MIB;

/// What was done with a volume. Each line of it replaces the one before, and none says what may be undone after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    name: String,
    id: String,
    pool: String,
    is_block: bool,
    bytes: i64,
    /// The volume that its data was written to, and how much that was.
    written_as: String,
    pieces: u64,
    /// It is staged, and stays so.
    is_staged: bool,
    is_deleted: bool,
}

impl Told {
    /// Says it to the host.
    fn tell(&self) {
        // Not println!, which libtest would keep to itself. One write, so that no other line comes between.
        let line = format!("{VM_CALL}{}\n", serde_json::to_string(self).unwrap());
        stdout().lock().write_all(line.as_bytes()).unwrap();
        stdout().flush().unwrap();
    }

    fn capability(&self) -> VolumeCapability {
        if self.is_block { block() } else { mounted() }
    }
}

fn disk() -> Option<PathBuf> {
    env::var_os(VM_DISK).map(PathBuf::from)
}

fn pool(name: &str) -> PathBuf {
    Path::new("/mnt").join(name).join("pool")
}

fn prepare() -> (Arc<Place>, Value) {
    let place = Place::at(disk().unwrap().join("node"));
    let mut section = place.section("image");
    for name in POOLS {
        fs::create_dir_all(pool(name)).unwrap();
    }
    let pools =
        POOLS.map(|name| json!({"name": name, "path": pool(name), "kind": "image", "allowSharedFilesystem": true}));
    section["pools"] = pools.to_vec().into();
    (Arc::new(place), section)
}

/// One of those who call at the same time.
struct Caller {
    clients: Clients,
    place: Arc<Place>,
}

impl Caller {
    async fn create(&self, pool: &str, name: String, is_block: bool, source: Option<&Told>) -> Told {
        let mut told = Told {
            written_as: name.clone(),
            name,
            id: String::new(),
            pool: pool.to_owned(),
            is_block,
            bytes: BYTES,
            pieces: 0,
            is_staged: false,
            is_deleted: false,
        };
        let mut wish = request(&told.name, BYTES, told.capability());
        wish.parameters.insert("pool".to_owned(), pool.to_owned());
        if let Some(source) = source {
            told.written_as.clone_from(&source.written_as);
            told.pieces = source.pieces;
            let volume = VolumeSource { volume_id: source.id.clone() };
            wish.volume_content_source = Some(VolumeContentSource { r#type: Some(Type::Volume(volume)) });
        }
        let answer = self.clients.clone().controller.create_volume(wish).await.unwrap();
        told.id = answer.into_inner().volume.unwrap().volume_id;
        told
    }

    async fn delete(&self, id: &str) {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
        self.clients.clone().controller.delete_volume(request).await.unwrap();
    }

    fn staging(&self, told: &Told) -> String {
        let path = self.place.text(&format!("staging/{}", told.name));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn target(&self, told: &Told) -> String {
        self.place.text(&format!("pods/{}", told.name))
    }

    async fn stage(&self, told: &Told) {
        let request = NodeStageVolumeRequest {
            volume_id: told.id.clone(),
            staging_target_path: self.staging(told),
            volume_capability: Some(told.capability()),
            ..NodeStageVolumeRequest::default()
        };
        self.clients.clone().node.node_stage_volume(request).await.unwrap();
    }

    async fn publish(&self, told: &Told) {
        let request = publication(&told.id, &self.staging(told), &self.target(told), told.capability());
        self.clients.clone().node.node_publish_volume(request).await.unwrap();
    }

    async fn grow(&self, told: &Told) {
        let request = NodeExpandVolumeRequest {
            volume_id: told.id.clone(),
            volume_path: self.target(told),
            staging_target_path: self.staging(told),
            capacity_range: Some(CapacityRange { required_bytes: GROWN, limit_bytes: 0 }),
            ..NodeExpandVolumeRequest::default()
        };
        self.clients.clone().node.node_expand_volume(request).await.unwrap();
    }

    /// Unpublishes and unstages.
    async fn let_go(&self, told: &Told) {
        let mut node = self.clients.node.clone();
        let (volume_id, target_path) = (told.id.clone(), self.target(told));
        node.node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id, target_path }).await.unwrap();
        let (volume_id, staging_target_path) = (told.id.clone(), self.staging(told));
        node.node_unstage_volume(NodeUnstageVolumeRequest { volume_id, staging_target_path }).await.unwrap();
    }

    /// Calls until the end of the world.
    async fn work(self, pool: &'static str) {
        for number in 0.. {
            let is_block = number % 3 == 2;
            let mut stays = self.create(pool, format!("stays-{pool}-{number}"), is_block, None).await;
            stays.tell();
            self.stage(&stays).await;
            self.publish(&stays).await;
            for index in 0..2 {
                let (target, name) = (self.target(&stays), stays.name.clone());
                let written = move || write(target.as_ref(), is_block, &name, index);
                tokio::task::spawn_blocking(written).await.unwrap();
                stays.pieces += 1;
                stays.tell();
            }
            if number % 2 == 0 {
                self.grow(&stays).await;
                (stays.bytes, stays.is_staged) = (GROWN, true);
                stays.tell();
            } else {
                self.let_go(&stays).await;
                self.create(pool, format!("copy-{pool}-{number}"), is_block, Some(&stays)).await.tell();
            }
            let mut goes = self.create(pool, format!("goes-{pool}-{number}"), is_block, None).await;
            self.delete(&goes.id).await;
            goes.is_deleted = true;
            goes.tell();
        }
    }

    /// Looks at a volume that was told of.
    async fn check(&self, told: &Told) {
        // A kubelet that doesn't know that the mounts are gone doesn't stage anew.
        if !told.is_staged {
            self.stage(told).await;
        }
        self.publish(told).await;
        for number in 0..told.pieces {
            let found = read(self.target(told).as_ref(), told.is_block, number);
            assert!(found == piece(&told.written_as, number), "piece {number} is not what was synced: {told:?}");
        }
        self.let_go(told).await;
        if !told.is_block {
            run(Command::new("e2fsck").arg("-fn").arg(pool(&told.pool).join("volumes").join(&told.id).join("image")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_until_the_power_is_cut() {
    skip_unless!(disk().is_some(), "needs a machine to cut off; cargo xtask test vm runs it in a guest");
    let (place, section) = prepare();
    let _driver = Running::start(&place, &section).await;
    let mut callers = tokio::task::JoinSet::new();
    for pool in POOLS {
        let caller = Caller { clients: Clients::connect(&place).await, place: Arc::clone(&place) };
        callers.spawn(caller.work(pool));
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_the_power_cut() {
    skip_unless!(disk().is_some(), "needs a machine that was cut off; cargo xtask test vm runs it in a guest");
    let heard = fs::read_to_string(env::var_os(VM_HEARD).unwrap()).unwrap();
    let told: BTreeMap<String, Told> = heard
        .lines()
        .map(|line| serde_json::from_str::<Told>(line).unwrap())
        .map(|told| (told.name.clone(), told))
        .collect();
    assert!(!told.is_empty(), "nothing was heard");
    let (place, section) = prepare();
    let driver = Running::start(&place, &section).await;
    let caller = Caller { clients: Clients::connect(&place).await, place: Arc::clone(&place) };
    let listed = caller.clients.clone().controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
    let listed: BTreeMap<_, _> = listed
        .into_inner()
        .entries
        .into_iter()
        .map(|entry| entry.volume.unwrap())
        .map(|volume| (volume.volume_id, volume.capacity_bytes))
        .collect();
    for told in told.values() {
        let found = listed.get(&told.id);
        if told.is_deleted {
            assert_eq!(found, None, "it is back: {told:?}");
        } else {
            assert!(found.is_some_and(|bytes| *bytes >= told.bytes), "{found:?} is all there is of {told:?}");
            caller.check(told).await;
        }
    }
    println!("{} volumes were told of, {} are there", told.len(), listed.len());

    // What nobody was told of can be let go of and deleted as well.
    for id in listed.keys() {
        caller.delete(id).await;
    }
    for name in POOLS {
        for folder in ["volumes", "building"] {
            assert_eq!(names(&pool(name).join(folder)), [""; 0], "{name}");
        }
    }
    assert_eq!(names(&place.path("state/storage/attachments")), [""; 0]);
    driver.stop().await;
    for left in ["staging", "pods"] {
        fs::remove_dir_all(place.path(left)).unwrap();
    }
}
