//! A driver on a place of its own, gone with everything it made when dropped.

#![allow(dead_code, reason = "each test file uses another part of it")]

pub(crate) mod disk;
pub(crate) mod pieces;
pub(crate) mod process;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use keelson_csi::{Driver, Helper, Operations, StorageSection, StorageSettings};
use keelson_host::{HostRoot, Mount, Node, mounts, parse_section};
use keelson_proto::csi::v1::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Volume, VolumeCapability,
    controller_client::ControllerClient,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

pub(crate) const NODE: &str = "node-a";
pub(crate) const MIB: i64 = 1 << 20;

/// Why the calling test can't run here, if it can't.
pub(crate) fn lacking() -> Option<String> {
    if !keelson_testkit::is_root() {
        return Some("needs root".to_owned());
    }
    let missing = keelson_testkit::missing(&["mkfs.ext4", "losetup"]);
    if !missing.is_empty() {
        return Some(format!("needs {}", missing.join(", ")));
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("the kernel has no loop devices".to_owned());
    }
    None
}

/// Whether this process has CAP_SYS_RESOURCE, bit 24 of capabilities(7), without which ext4 doesn't grow online.
pub(crate) fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap() & (1 << 24) != 0
}

/// Returns from the calling test, with the reason reported, where the machine lacks what it needs.
#[macro_export]
macro_rules! needs_a_kernel {
    () => {
        let lacking = $crate::common::lacking();
        keelson_testkit::skip_unless!(lacking.is_none(), lacking.unwrap_or_default());
    };
}

/// A directory with everything of one test: the pool, the state, what a kubelet would have.
pub(crate) struct Place {
    /// Removed with it.
    directory: Option<TempDir>,
    root: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("keelson-csi-").tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let mut place = Self::at(root);
        place.directory = Some(directory);
        place
    }

    /// One that stays, or was there before.
    pub(crate) fn at(root: PathBuf) -> Self {
        for name in ["pool", "state", "staging", "pods"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        Self { directory: None, root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/csi.sock")
    }

    pub(crate) fn node(&self) -> Node {
        Node { name: NODE.to_owned(), state_dir: self.path("state"), root: HostRoot::system() }
    }

    /// A storage section with one pool of `kind`.
    pub(crate) fn section(&self, kind: &str) -> Value {
        json!({
            "endpoint": format!("unix://{}", self.socket().display()),
            // Not with a kubelet that this machine may have.
            "registration": {"enabled": false},
            "pools": [{"name": "pool", "path": self.path("pool"), "kind": kind, "allowSharedFilesystem": true}],
        })
    }

    /// Mounts an empty tmpfs on a directory of the place.
    pub(crate) fn mount_tmpfs(&self, name: &str, options: &str) {
        let target = self.path(name);
        fs::create_dir_all(&target).unwrap();
        mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
    }

    pub(crate) fn bind(&self, source: &str, target: &str) {
        let flags = MsFlags::MS_BIND;
        mount(Some(&self.path(source)), &self.path(target), None::<&str>, flags, None::<&str>).unwrap();
    }

    pub(crate) fn unmount(&self, name: &str) {
        umount2(&self.path(name), MntFlags::empty()).unwrap();
    }

    /// What is mounted below the place.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let all = mounts(&HostRoot::system()).unwrap();
        all.into_iter().filter(|mount| mount.point.starts_with(&self.root)).collect()
    }

    /// What is mounted at one path of it, the topmost.
    pub(crate) fn mount_at(&self, name: &str) -> Option<Mount> {
        let point = self.path(name);
        self.mounts().into_iter().rfind(|mount| mount.point == point)
    }

    /// The numbers of the loop devices whose file lies below the place.
    pub(crate) fn loops(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/block").unwrap().flatten() {
            let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
            if file.starts_with(self.root.to_str().unwrap()) {
                found.push(entry.file_name().to_str().unwrap()[4..].parse().unwrap());
            }
        }
        found
    }

    /// The folders of the pool's volumes.
    pub(crate) fn volumes(&self) -> Vec<String> {
        names(&self.path("pool/volumes"))
    }

    /// Checks that no trace is left in the kernel or the pool. Another mount namespace that was made meanwhile may
    /// hold a device a moment longer.
    pub(crate) fn expect_clean(&self) {
        assert_eq!(self.volumes(), [""; 0]);
        assert_eq!(names(&self.path("pool/building")), [""; 0]);
        assert_eq!(names(&self.path("state/storage/attachments")), [""; 0]);
        let ours = |mount: &Mount| !mount.point.starts_with(self.path("pool"));
        assert_eq!(self.mounts().into_iter().filter(ours).collect::<Vec<_>>(), []);
        keelson_testkit::wait_until("the loop devices to be gone", Duration::from_secs(30), || {
            self.loops().is_empty().then_some(())
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // As often as mounts are stacked; what a failed test left must not stay.
        for mount in self.mounts().into_iter().rev() {
            let _ = umount2(&mount.point, MntFlags::MNT_DETACH);
        }
        for number in self.loops() {
            let _ = Command::new("losetup").arg("-d").arg(format!("/dev/loop{number}")).status();
        }
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A driver that serves, with clients.
pub(crate) struct Running {
    pub(crate) identity: IdentityClient<Channel>,
    pub(crate) controller: ControllerClient<Channel>,
    pub(crate) node: NodeClient<Channel>,
    pub(crate) registry: Registry,
    pub(crate) operations: Operations,
    ready: watch::Receiver<Result<(), String>>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), keelson_csi::Error>>,
}

impl Running {
    /// Starts a driver over `section`.
    pub(crate) async fn start(place: &Place, section: &Value) -> Self {
        Self::start_with(place, Self::settings(place, section)).await
    }

    pub(crate) fn settings(place: &Place, section: &Value) -> StorageSettings {
        let section: StorageSection = parse_section("storage", section).unwrap();
        section.validate(&place.node()).unwrap()
    }

    pub(crate) async fn start_with(place: &Place, mut settings: StorageSettings) -> Self {
        settings.helper = Helper::new(env!("CARGO_BIN_EXE_keelson-csi-alone"), ["storage-helper"]).with_stock();
        Self::start_as(place, settings).await
    }

    /// Starts a driver with a helper of the test's own.
    pub(crate) async fn start_as(place: &Place, settings: StorageSettings) -> Self {
        let mut registry = Registry::default();
        let driver = Driver::new(settings, &mut registry).unwrap();
        let operations = driver.operations();
        let (sender, mut ready) = watch::channel(Err("starting".to_owned()));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(driver.run(sender, shutdown.clone()));
        ready.wait_for(Result::is_ok).await.expect("the driver serves");
        let channel = connect(&place.socket()).await.unwrap();
        Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
            registry,
            operations,
            ready,
            shutdown,
            task,
        }
    }

    /// Ends it as SIGTERM would.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Whether it says that it is ready, and else why not.
    pub(crate) fn ready(&self) -> Result<(), String> {
        self.ready.borrow().clone()
    }

    /// What a scrape of the metrics shows.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    pub(crate) async fn create(&mut self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        Ok(self.controller.create_volume(request).await?.into_inner().volume.unwrap())
    }

    pub(crate) async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
        self.controller.delete_volume(request).await.map(drop)
    }

    pub(crate) async fn stage(&mut self, id: &str, path: &str, capability: VolumeCapability) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: path.to_owned(),
            volume_capability: Some(capability),
            ..NodeStageVolumeRequest::default()
        };
        self.node.node_stage_volume(request).await.map(drop)
    }

    pub(crate) async fn unstage(&mut self, id: &str, path: &str) -> Result<(), Status> {
        let (volume_id, staging_target_path) = (id.to_owned(), path.to_owned());
        let request = NodeUnstageVolumeRequest { volume_id, staging_target_path };
        self.node.node_unstage_volume(request).await.map(drop)
    }

    pub(crate) async fn publish(&mut self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.node.node_publish_volume(request).await.map(drop)
    }

    pub(crate) async fn unpublish(&mut self, id: &str, path: &str) -> Result<(), Status> {
        let (volume_id, target_path) = (id.to_owned(), path.to_owned());
        self.node.node_unpublish_volume(NodeUnpublishVolumeRequest { volume_id, target_path }).await.map(drop)
    }
}

/// A channel to a driver's socket; fails while nobody listens there.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await
}

pub(crate) fn capability(access: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type: Some(access) }
}

pub(crate) fn mounted() -> VolumeCapability {
    mounted_with(&[], Mode::SingleNodeWriter)
}

pub(crate) fn mounted_with(flags: &[&str], mode: Mode) -> VolumeCapability {
    let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    capability(AccessType::Mount(MountVolume { mount_flags, ..MountVolume::default() }), mode)
}

pub(crate) fn block() -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter)
}

pub(crate) fn request(name: &str, bytes: i64, capability: VolumeCapability) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        ..CreateVolumeRequest::default()
    }
}

pub(crate) fn publication(
    id: &str,
    staging: &str,
    target: &str,
    capability: VolumeCapability,
) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: staging.to_owned(),
        target_path: target.to_owned(),
        volume_capability: Some(capability),
        ..NodePublishVolumeRequest::default()
    }
}

#[track_caller]
pub(crate) fn expect_code<T: std::fmt::Debug>(result: Result<T, Status>, code: Code) -> Status {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(!status.message().is_empty());
    assert!(status.details().is_empty());
    status
}
