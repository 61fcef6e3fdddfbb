//! A pool whose disk doesn't answer: its own calls wait or fail, and nobody else's.
//!
//! A frozen filesystem stands for such a disk: whoever writes to it waits in the kernel, and not even SIGKILL helps.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    MIB, Place,
    disk::{Disk, run},
    mounted, names,
    process::{Clients, PATIENCE, Process},
    publication, request,
};
use keelson_proto::csi::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, GetCapacityRequest, GetPluginInfoRequest, ListVolumesRequest,
    NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, ProbeRequest,
};
use keelson_testkit::{missing, skip_unless, wait_until_async};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};

/// A filesystem that was frozen; thawed when dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn freeze(point: &Path) -> Self {
        run(Command::new("fsfreeze").arg("-f").arg(point));
        Self(point.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

/// A place with the pools `bad` and `good`, each on a disk of its own.
fn two_pools(place: &Place, directory: &Path) -> (Value, Vec<Disk>) {
    let disk = |name: &str| Disk::make(&directory.join(name), "ext4", 16 << 30, &place.path(name));
    let disks = vec![disk("bad"), disk("good")];
    let mut section = place.section("image");
    section["pools"] = json!([
        {"name": "bad", "path": place.path("bad/pool"), "kind": "image", "allowSharedFilesystem": true},
        {"name": "good", "path": place.path("good/pool"), "kind": "image", "allowSharedFilesystem": true},
    ]);
    for name in ["bad/pool", "good/pool"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    (section, disks)
}

fn wish(name: &str, pool: &str) -> CreateVolumeRequest {
    let mut wish = request(name, 16 * MIB, mounted());
    wish.parameters.insert("pool".to_owned(), pool.to_owned());
    wish
}

/// A call that isn't let wait for ever.
fn soon<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

async fn create(clients: &Clients, name: &str, pool: &str) -> Result<String, Status> {
    let answer = clients.clone().controller.create_volume(soon(wish(name, pool))).await?;
    Ok(answer.into_inner().volume.unwrap().volume_id)
}

async fn delete(clients: &Clients, id: &str) -> Result<(), Status> {
    let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
    clients.clone().controller.delete_volume(soon(request)).await.map(drop)
}

fn staging(id: &str, path: &str) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: path.to_owned(),
        volume_capability: Some(mounted()),
        ..NodeStageVolumeRequest::default()
    }
}

async fn unstage(clients: &Clients, id: &str, path: &str) -> Result<(), Status> {
    let (volume_id, staging_target_path) = (id.to_owned(), path.to_owned());
    let request = NodeUnstageVolumeRequest { volume_id, staging_target_path };
    clients.clone().node.node_unstage_volume(soon(request)).await.map(drop)
}

async fn capacity(clients: &Clients, pool: &str) -> Result<i64, Status> {
    let request = GetCapacityRequest {
        volume_capabilities: vec![mounted()],
        parameters: [("pool".to_owned(), pool.to_owned())].into(),
        ..GetCapacityRequest::default()
    };
    Ok(clients.clone().controller.get_capacity(soon(request)).await?.into_inner().available_capacity)
}

/// How many of a process's threads wait in the kernel for what can't be interrupted.
fn stuck(process: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    // "(name) D ...": proc_pid_stat(5). A thread that has ended isn't stuck.
    let stat = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
    threads.map(stat).filter(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" D"))).count()
}

/// A volume's whole life in the good pool, and what else is asked of a driver.
async fn serves(place: &Place, clients: &Clients, name: &str) {
    let Clients { mut identity, mut controller, mut node, .. } = clients.clone();
    identity.probe(soon(ProbeRequest {})).await.unwrap();
    identity.get_plugin_info(soon(GetPluginInfoRequest {})).await.unwrap();
    node.node_get_info(soon(NodeGetInfoRequest {})).await.unwrap();
    let before = capacity(clients, "good").await.unwrap();
    let id = create(clients, name, "good").await.unwrap();
    assert!(capacity(clients, "good").await.unwrap() < before);
    let (path, target) = (place.text("staging"), place.text("pods/target"));
    node.node_stage_volume(soon(staging(&id, &path))).await.unwrap();
    node.node_publish_volume(soon(publication(&id, &path, &target, mounted()))).await.unwrap();
    fs::write(Path::new(&target).join("file"), "data").unwrap();
    let request = NodeGetVolumeStatsRequest {
        volume_id: id.clone(),
        volume_path: target.clone(),
        ..NodeGetVolumeStatsRequest::default()
    };
    node.node_get_volume_stats(soon(request)).await.unwrap();
    // A list without the other pool's volumes would read as if they were gone.
    match controller.list_volumes(soon(ListVolumesRequest::default())).await {
        Ok(answer) => {
            let mut listed = answer.into_inner().entries.into_iter().map(|entry| entry.volume.unwrap().volume_id);
            assert!(listed.any(|listed| listed == id));
        }
        Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
    }
    let request = NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path: target };
    node.node_unpublish_volume(soon(request)).await.unwrap();
    unstage(clients, &id, &path).await.unwrap();
    delete(clients, &id).await.unwrap();
}

/// Sends `many` calls to the bad pool, and others, and waits until the driver is at work on those that it took.
async fn flood(
    place: &Place,
    process: u32,
    many: usize,
    deleted: &[String],
    staged: &[String],
) -> JoinSet<Result<(), Status>> {
    let mut calls = JoinSet::new();
    for connection in 0..3 {
        // A connection carries no more than 200 calls at once.
        let clients = Clients::connect(place).await;
        for number in 0..many / 3 {
            let mut controller = clients.controller.clone();
            let wish = wish(&format!("flood-{connection}-{number}"), "bad");
            calls.spawn(async move { controller.create_volume(wish).await.map(drop) });
        }
        if connection == 0 {
            for id in deleted {
                let mut controller = clients.controller.clone();
                let request = DeleteVolumeRequest { volume_id: id.clone(), ..DeleteVolumeRequest::default() };
                calls.spawn(async move { controller.delete_volume(request).await.map(drop) });
            }
            for (number, id) in staged.iter().enumerate() {
                let mut node = clients.node.clone();
                let path = place.text(&format!("staging-{number}"));
                fs::create_dir_all(&path).unwrap();
                let request = staging(id, &path);
                calls.spawn(async move { node.node_stage_volume(request).await.map(drop) });
            }
        }
    }
    let all = calls.len();
    let mut refused = 0;
    let mut answered: Vec<Result<(), Status>> = Vec::new();
    wait_until_async("every call to be refused or stuck", PATIENCE, async || {
        while let Some(answer) = calls.try_join_next() {
            refused += 1;
            answered.push(answer.unwrap());
        }
        // A stage waits in a helper, which is another process, and a deletion may wait for another one.
        (stuck(process) > 0 && refused + stuck(process) + staged.len() + deleted.len() >= all).then_some(())
    })
    .await;
    for answer in answered {
        expect_refusal(&answer.unwrap_err());
    }
    calls
}

/// A call that finds all turns taken is to be made again.
fn expect_refusal(status: &Status) {
    assert!([Code::Unavailable, Code::Aborted].contains(&status.code()), "{status:?}");
}

macro_rules! needs_to_freeze {
    () => {
        needs_a_kernel!();
        let missing = missing(&["fsfreeze"]);
        skip_unless!(missing.is_empty(), "needs fsfreeze");
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_pool_is_served() {
    needs_to_freeze!();
    serve_beside(120).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_pool_is_served_under_more_calls_than_are_worked_on_at_once() {
    needs_to_freeze!();
    serve_beside(300).await;
}

/// Lets `many` calls wait for a pool, and uses the other one.
async fn serve_beside(many: usize) {
    let directory = tempfile::tempdir().unwrap();
    let mut disks = Vec::new();
    let place = Place::new();
    let (section, made) = two_pools(&place, directory.path());
    disks.extend(made);
    let (process, clients) = Process::serve(&place, &section).await;
    let before = capacity(&clients, "bad").await.unwrap();
    let (mut deleted, mut staged) = (Vec::new(), Vec::new());
    for number in 0..2 {
        deleted.push(create(&clients, &format!("deleted-{number}"), "bad").await.unwrap());
        staged.push(create(&clients, &format!("staged-{number}"), "bad").await.unwrap());
    }
    let frozen = Frozen::freeze(&place.path("bad"));
    let mut calls = flood(&place, process.id(), many, &deleted, &staged).await;
    for number in 0..3 {
        serves(&place, &clients, &format!("pvc-{number}")).await;
    }
    assert!(stuck(process.id()) > 0);
    drop(frozen);

    // Now all that waited ends, or is told to come again, and what is asked again succeeds.
    let mut ended = 0;
    while let Some(answer) = calls.join_next().await {
        match answer.unwrap() {
            Ok(()) => ended += 1,
            Err(status) => expect_refusal(&status),
        }
    }
    assert!(ended > 0, "nobody had waited");
    for connection in 0..3 {
        create(&clients, &format!("flood-{connection}-0"), "bad").await.unwrap();
    }
    for (number, id) in staged.iter().enumerate() {
        let path = place.text(&format!("staging-{number}"));
        clients.clone().node.node_stage_volume(soon(staging(id, &path))).await.unwrap();
        unstage(&clients, id, &path).await.unwrap();
    }
    let listed = clients.clone().controller.list_volumes(soon(ListVolumesRequest::default())).await.unwrap();
    for entry in listed.into_inner().entries {
        delete(&clients, &entry.volume.unwrap().volume_id).await.unwrap();
    }
    for pool in ["bad", "good"] {
        for folder in ["volumes", "building"] {
            assert_eq!(names(&place.path(pool).join("pool").join(folder)), [""; 0]);
        }
    }
    assert_eq!(names(&place.path("state/storage/attachments")), [""; 0]);
    wait_until_async("the capacity of before", PATIENCE, async || {
        (capacity(&clients, "bad").await.unwrap() >= before - MIB).then_some(())
    })
    .await;
    wait_until_async("the loop devices to be gone", PATIENCE, async || place.loops().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_successor_of_a_stuck_driver_serves_the_other_pool() {
    needs_to_freeze!();
    let directory = tempfile::tempdir().unwrap();
    let mut disks = Vec::new();
    let place = Place::new();
    let (section, made) = two_pools(&place, directory.path());
    disks.extend(made);
    let (process, clients) = Process::serve(&place, &section).await;
    // From now on it is a pool, and claimed.
    capacity(&clients, "bad").await.unwrap();
    let frozen = Frozen::freeze(&place.path("bad"));
    let mut controller = clients.controller.clone();
    let call = tokio::spawn(async move { controller.create_volume(wish("pvc-1", "bad")).await.map(drop) });
    wait_until_async("the call to be stuck", PATIENCE, async || (stuck(process.id()) > 0).then_some(())).await;
    kill(Pid::from_raw(process.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    // Its client is told, though the call can't end.
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Unavailable);
    let (successor, clients) = Process::serve(&place, &section).await;
    // Thawed first also if the test fails: nobody ends before.
    let frozen = frozen;
    // The predecessor waits a while for its calls.
    wait_until_async("the good pool to be given up", PATIENCE, async || capacity(&clients, "good").await.ok()).await;
    serves(&place, &clients, "pvc-2").await;
    assert!(stuck(process.id()) > 0);
    assert_eq!(create(&clients, "pvc-1", "bad").await.unwrap_err().code(), Code::Unavailable);
    drop(frozen);
    let retried = async || create(&clients, "pvc-1", "bad").await.ok();
    let id = wait_until_async("the volume to be made", PATIENCE, retried).await;
    assert_eq!(names(&place.path("bad/pool/volumes")), [id.as_str()]);
    assert_eq!(names(&place.path("bad/pool/building")), [""; 0]);
    delete(&clients, &id).await.unwrap();
    drop((process, successor));
}
