//! The provisioner's and the kubelet's side of CSI.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use keelson_proto::csi::v1::{
    CapacityRange, ControllerGetCapabilitiesRequest, CreateVolumeRequest, DeleteVolumeRequest,
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, ListVolumesRequest, NodeGetCapabilitiesRequest,
    NodeGetInfoRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, Topology, TopologyRequirement, VolumeCapability,
    controller_client::ControllerClient,
    controller_service_capability,
    identity_client::IdentityClient,
    node_client::NodeClient,
    node_service_capability, plugin_capability,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};
use tonic::transport::Channel;

use crate::{
    cri::channel,
    image::digest,
    manifest::{ClaimManifest, ClassManifest},
};

/// Parameters with this prefix are for the provisioner, and the driver doesn't see them.
const RESERVED_PREFIX: &str = "csi.storage.k8s.io/";

/// A driver, and what it said it can do.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    name: String,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    kubelet: PathBuf,
    stages: bool,
    lists: bool,
    topology: Option<Topology>,
    multi_writer: bool,
}

/// A volume made for a claim.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The PersistentVolume's name, `pvc-<uid>`.
    pub(crate) name: String,
    /// The driver's id of it.
    pub(crate) id: String,
    pub(crate) capacity_bytes: i64,
    context: BTreeMap<String, String>,
    capability: VolumeCapability,
}

impl Driver {
    /// Asks the driver at `socket` who it is and what it can do, as the sidecars and the kubelet do when it registers.
    ///
    /// # Errors
    ///
    /// When it doesn't answer, or has no controller service.
    pub(crate) async fn connect(socket: &Path, kubelet: &Path) -> Result<Self> {
        let channel = channel(socket)?;
        let mut identity = IdentityClient::new(channel.clone());
        let mut controller = ControllerClient::new(channel.clone());
        let mut node = NodeClient::new(channel);
        let name =
            identity.get_plugin_info(GetPluginInfoRequest {}).await.context("GetPluginInfo failed")?.into_inner().name;
        let plugin = identity
            .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
            .await
            .context("GetPluginCapabilities failed")?
            .into_inner();
        let has_service = |wanted: plugin_capability::service::Type| {
            plugin.capabilities.iter().any(|capability| {
                matches!(&capability.r#type, Some(plugin_capability::Type::Service(service)) if service.r#type() == wanted)
            })
        };
        ensure!(
            has_service(plugin_capability::service::Type::ControllerService),
            "driver {name} has no controller service, so nobody can create a volume"
        );
        let of_controller = controller
            .controller_get_capabilities(ControllerGetCapabilitiesRequest {})
            .await
            .context("ControllerGetCapabilities failed")?
            .into_inner()
            .capabilities;
        let controller_can = |wanted: controller_service_capability::rpc::Type| {
            of_controller.iter().any(|capability| {
                matches!(&capability.r#type, Some(controller_service_capability::Type::Rpc(rpc)) if rpc.r#type() == wanted)
            })
        };
        let of_node = node
            .node_get_capabilities(NodeGetCapabilitiesRequest {})
            .await
            .context("NodeGetCapabilities failed")?
            .into_inner()
            .capabilities;
        let node_can = |wanted: node_service_capability::rpc::Type| {
            of_node.iter().any(|capability| {
                matches!(&capability.r#type, Some(node_service_capability::Type::Rpc(rpc)) if rpc.r#type() == wanted)
            })
        };
        ensure!(
            controller_can(controller_service_capability::rpc::Type::CreateDeleteVolume),
            "driver {name} does not create volumes"
        );
        ensure!(
            !controller_can(controller_service_capability::rpc::Type::PublishUnpublishVolume),
            "driver {name} wants volumes attached, which nodelab does not do"
        );
        let stages = node_can(node_service_capability::rpc::Type::StageUnstageVolume);
        let multi_writer = node_can(node_service_capability::rpc::Type::SingleNodeMultiWriter);
        let info = node.node_get_info(NodeGetInfoRequest {}).await.context("NodeGetInfo failed")?.into_inner();
        let topology = if has_service(plugin_capability::service::Type::VolumeAccessibilityConstraints) {
            Some(info.accessible_topology.context("the driver has topology, but NodeGetInfo names none")?)
        } else {
            None
        };
        let lists = controller_can(controller_service_capability::rpc::Type::ListVolumes);
        Ok(Self { name, controller, node, kubelet: kubelet.to_owned(), stages, lists, topology, multi_writer })
    }

    /// The driver's name, which a StorageClass calls its provisioner.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes a volume for `claim`, as the external provisioner does.
    pub(crate) async fn create(&self, claim: &ClaimManifest, class: &ClassManifest, uid: &str) -> Result<Volume> {
        let mut file_system = String::new();
        let mut parameters = BTreeMap::new();
        for (key, value) in &class.parameters {
            match key.strip_prefix(RESERVED_PREFIX) {
                None => {
                    parameters.insert(key.clone(), value.clone());
                }
                Some("fstype") => file_system.clone_from(value),
                Some(_) => bail!("nodelab does not act on the StorageClass parameter {key}; leave it out"),
            }
        }
        let capability = VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: file_system,
                mount_flags: class.mount_options.clone(),
                volume_mount_group: String::new(),
            })),
            access_mode: Some(AccessMode { mode: self.access_mode(&claim.access_modes)?.into() }),
        };
        let name = format!("pvc-{uid}");
        let topologies: Vec<Topology> = self.topology.iter().cloned().collect();
        let request = CreateVolumeRequest {
            name: name.clone(),
            capacity_range: Some(CapacityRange {
                required_bytes: i64::try_from(claim.bytes).context("the claim is too large")?,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![capability.clone()],
            parameters,
            accessibility_requirements: self
                .topology
                .is_some()
                .then(|| TopologyRequirement { requisite: topologies.clone(), preferred: topologies }),
            ..CreateVolumeRequest::default()
        };
        let answer = self.controller.clone().create_volume(request).await.context("CreateVolume failed")?;
        let volume = answer.into_inner().volume.context("CreateVolume answered with no volume")?;
        Ok(Volume {
            name,
            id: volume.volume_id,
            capacity_bytes: volume.capacity_bytes,
            context: volume.volume_context,
            capability,
        })
    }

    /// Stages, where the driver wants that, and publishes `volume` for a Pod; returns the directory to mount.
    pub(crate) async fn publish(&self, volume: &Volume, pod_uid: &str, read_only: bool) -> Result<PathBuf> {
        let mut staging_target_path = String::new();
        if self.stages {
            let staging = self.staging(volume)?;
            make_directory(&staging)?;
            staging_target_path = text(&staging)?;
            let request = NodeStageVolumeRequest {
                volume_id: volume.id.clone(),
                staging_target_path: staging_target_path.clone(),
                volume_capability: Some(volume.capability.clone()),
                volume_context: volume.context.clone(),
                ..NodeStageVolumeRequest::default()
            };
            self.node.clone().node_stage_volume(request).await.context("NodeStageVolume failed")?;
        }
        let target = self.target(volume, pod_uid);
        // The kubelet makes the parent; the target itself is the driver's.
        make_directory(target.parent().context("a target has a parent")?)?;
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path,
            target_path: text(&target)?,
            volume_capability: Some(volume.capability.clone()),
            readonly: read_only,
            volume_context: volume.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        self.node.clone().node_publish_volume(request).await.context("NodePublishVolume failed")?;
        Ok(target)
    }

    /// Undoes [`Driver::publish`].
    ///
    /// # Errors
    ///
    /// When a call fails, or the driver leaves the target's directory, which the specification tells it to remove.
    pub(crate) async fn unpublish(&self, volume: &Volume, pod_uid: &str) -> Result<()> {
        let target = self.target(volume, pod_uid);
        let request = NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: text(&target)? };
        self.node.clone().node_unpublish_volume(request).await.context("NodeUnpublishVolume failed")?;
        ensure!(!target.exists(), "NodeUnpublishVolume left {}", target.display());
        if self.stages {
            let staging = self.staging(volume)?;
            let request =
                NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: text(&staging)? };
            self.node.clone().node_unstage_volume(request).await.context("NodeUnstageVolume failed")?;
            let parent = staging.parent().context("a staging path has a parent")?;
            // Not recursive: what is still mounted or written there must not be lost.
            for directory in [&staging, parent] {
                fs::remove_dir(directory).with_context(|| format!("failed to remove {}", directory.display()))?;
            }
        }
        Ok(())
    }

    /// Deletes `volume`.
    pub(crate) async fn delete(&self, volume: &Volume) -> Result<()> {
        let request = DeleteVolumeRequest { volume_id: volume.id.clone(), ..DeleteVolumeRequest::default() };
        self.controller.clone().delete_volume(request).await.context("DeleteVolume failed")?;
        Ok(())
    }

    /// The ids of the volumes that the driver lists, or `None` if it doesn't list.
    pub(crate) async fn list(&self) -> Result<Option<Vec<String>>> {
        if !self.lists {
            return Ok(None);
        }
        let request = ListVolumesRequest::default();
        let answer = self.controller.clone().list_volumes(request).await.context("ListVolumes failed")?.into_inner();
        Ok(Some(answer.entries.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id).collect()))
    }

    /// Kubernetes' modes in CSI's words; `ReadWriteOnce` is that of a node and may have several writers there.
    fn access_mode(&self, modes: &[String]) -> Result<Mode> {
        let [mode] = modes else { bail!("nodelab takes one access mode, not {modes:?}") };
        Ok(match (mode.as_str(), self.multi_writer) {
            ("ReadWriteOnce", true) => Mode::SingleNodeMultiWriter,
            ("ReadWriteOnce", false) => Mode::SingleNodeWriter,
            ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
            ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
            ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
            (other, _) => bail!("driver {} can't do access mode {other}", self.name),
        })
    }

    /// The kubelet's own place: by the digest of the id, since an id may be no file name.
    fn staging(&self, volume: &Volume) -> Result<PathBuf> {
        let digest = digest(volume.id.as_bytes())?;
        Ok(self.kubelet.join("plugins/kubernetes.io/csi").join(&self.name).join(digest).join("globalmount"))
    }

    fn target(&self, volume: &Volume, pod_uid: &str) -> PathBuf {
        self.kubelet.join("pods").join(pod_uid).join("volumes/kubernetes.io~csi").join(&volume.name).join("mount")
    }
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("failed to create {}", path.display()))
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}
