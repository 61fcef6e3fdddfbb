//! What is measured: something that makes and publishes volumes.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use keelson_proto::csi::v1::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest,
    GetMetadataDeltaRequest, ListVolumesRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability, VolumeContentSource,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use tonic::{Code, Status};

use super::{GIB, host_path::Commands, server::Server};

/// What a call came to. A failure is an outcome, to be counted and shown; an error means that nothing was measured.
pub(super) type Outcome<T> = Result<T, String>;

/// What a volume is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Ext4,
    Block,
}

/// Where a new volume's content comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    Snapshot(&'a str),
    Volume(&'a str),
}

/// How it is asked.
#[derive(Clone)]
pub(super) enum Served {
    Server(Arc<Server>),
    Commands(Arc<Commands>),
}

#[derive(Clone)]
pub(super) struct Subject {
    pub(super) name: &'static str,
    root: PathBuf,
    served: Served,
}

impl Subject {
    /// Starts what `start` starts, with everything below `root`.
    pub(super) async fn new<F>(name: &'static str, root: PathBuf, start: impl FnOnce(PathBuf) -> F) -> Result<Self>
    where
        F: Future<Output = Result<Served>>,
    {
        fs::create_dir_all(root.join("kubelet"))?;
        let served = start(root.clone()).await.with_context(|| format!("failed to start {name}"))?;
        Ok(Self { name, root, served })
    }

    /// Its driver, if it has one.
    pub(super) fn server(&self) -> Option<&Server> {
        match &self.served {
            Served::Server(server) => Some(server),
            Served::Commands(_) => None,
        }
    }

    /// Makes a volume of 1 GiB.
    pub(super) async fn create(&self, name: &str, used: Use) -> Outcome<String> {
        self.create_as(name, used, GIB, None).await
    }

    pub(super) async fn create_as(
        &self,
        name: &str,
        used: Use,
        bytes: i64,
        source: Option<Source<'_>>,
    ) -> Outcome<String> {
        match &self.served {
            Served::Server(server) => {
                let request = CreateVolumeRequest {
                    name: name.to_owned(),
                    capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
                    volume_capabilities: vec![capability(used)],
                    volume_content_source: source.map(content_source),
                    ..CreateVolumeRequest::default()
                };
                let answer = server.controller.clone().create_volume(request).await.map_err(|status| said(&status))?;
                Ok(answer.into_inner().volume.ok_or("it answered without a volume")?.volume_id)
            }
            Served::Commands(_) => {
                let source = source.map(|(Source::Snapshot(id) | Source::Volume(id))| id.to_owned());
                self.commands(move |commands| commands.create(bytes, source.as_deref())).await
            }
        }
    }

    pub(super) async fn delete(&self, id: &str) -> Outcome<()> {
        match &self.served {
            Served::Server(server) => {
                let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
                server.controller.clone().delete_volume(request).await.map_err(|status| said(&status)).map(drop)
            }
            Served::Commands(_) => self.remove(id).await,
        }
    }

    pub(super) async fn snapshot(&self, name: &str, volume: &str) -> Outcome<String> {
        match &self.served {
            Served::Server(server) => {
                let request = CreateSnapshotRequest {
                    name: name.to_owned(),
                    source_volume_id: volume.to_owned(),
                    ..CreateSnapshotRequest::default()
                };
                let answer =
                    server.controller.clone().create_snapshot(request).await.map_err(|status| said(&status))?;
                Ok(answer.into_inner().snapshot.ok_or("it answered without a snapshot")?.snapshot_id)
            }
            Served::Commands(_) => {
                let volume = volume.to_owned();
                self.commands(move |commands| commands.snapshot(&volume)).await
            }
        }
    }

    pub(super) async fn delete_snapshot(&self, id: &str) -> Outcome<()> {
        match &self.served {
            Served::Server(server) => {
                let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..DeleteSnapshotRequest::default() };
                server.controller.clone().delete_snapshot(request).await.map_err(|status| said(&status)).map(drop)
            }
            Served::Commands(_) => self.remove(id).await,
        }
    }

    /// How many bytes changed from one snapshot to another.
    pub(super) async fn delta(&self, base: &str, target: &str) -> Outcome<i64> {
        match &self.served {
            Served::Server(server) => {
                let request = GetMetadataDeltaRequest {
                    base_snapshot_id: base.to_owned(),
                    target_snapshot_id: target.to_owned(),
                    max_results: 1024,
                    ..GetMetadataDeltaRequest::default()
                };
                let mut stream = server
                    .metadata
                    .clone()
                    .get_metadata_delta(request)
                    .await
                    .map_err(|status| said(&status))?
                    .into_inner();
                let mut bytes = 0;
                while let Some(message) = stream.message().await.map_err(|status| said(&status))? {
                    bytes += message.block_metadata.iter().map(|block| block.size_bytes).sum::<i64>();
                }
                Ok(bytes)
            }
            Served::Commands(_) => {
                let (base, target) = (base.to_owned(), target.to_owned());
                let blocks = self.commands(move |commands| commands.differences(&base, &target)).await?;
                i64::try_from(blocks * 4096).map_err(|error| error.to_string())
            }
        }
    }

    /// The first page of the volumes; how many it has.
    pub(super) async fn list(&self, entries: i32) -> Outcome<usize> {
        let server = self.server().ok_or("it serves nothing")?;
        let request = ListVolumesRequest { max_entries: entries, ..ListVolumesRequest::default() };
        Ok(server
            .controller
            .clone()
            .list_volumes(request)
            .await
            .map_err(|status| said(&status))?
            .into_inner()
            .entries
            .len())
    }

    pub(super) async fn stage(&self, id: &str, used: Use) -> Outcome<()> {
        match &self.served {
            Served::Server(server) => {
                let path = self.staging(id);
                fs::create_dir_all(&path).map_err(|error| error.to_string())?;
                let request = NodeStageVolumeRequest {
                    volume_id: id.to_owned(),
                    staging_target_path: text(&path),
                    volume_capability: Some(capability(used)),
                    ..NodeStageVolumeRequest::default()
                };
                server.node.clone().node_stage_volume(request).await.map_err(|status| said(&status)).map(drop)
            }
            Served::Commands(_) => self.commands(Commands::note).await,
        }
    }

    pub(super) async fn unstage(&self, id: &str) -> Outcome<()> {
        match &self.served {
            Served::Server(server) => {
                let path = self.staging(id);
                let request = NodeUnstageVolumeRequest { volume_id: id.to_owned(), staging_target_path: text(&path) };
                server.node.clone().node_unstage_volume(request).await.map_err(|status| said(&status))?;
                fs::remove_dir(&path).map_err(|error| error.to_string())
            }
            Served::Commands(_) => self.commands(Commands::note).await,
        }
    }

    /// Publishes a staged volume; where it is then.
    pub(super) async fn publish(&self, id: &str, used: Use) -> Outcome<PathBuf> {
        let target = self.target(id);
        match &self.served {
            Served::Server(server) => {
                let request = NodePublishVolumeRequest {
                    volume_id: id.to_owned(),
                    staging_target_path: text(&self.staging(id)),
                    target_path: text(&target),
                    volume_capability: Some(capability(used)),
                    ..NodePublishVolumeRequest::default()
                };
                server.node.clone().node_publish_volume(request).await.map_err(|status| said(&status))?;
            }
            Served::Commands(_) => {
                let (id, target) = (id.to_owned(), target.clone());
                self.commands(move |commands| commands.publish(&id, &target)).await?;
            }
        }
        Ok(target)
    }

    pub(super) async fn unpublish(&self, id: &str) -> Outcome<()> {
        let target = self.target(id);
        match &self.served {
            Served::Server(server) => {
                let request = NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: text(&target) };
                server.node.clone().node_unpublish_volume(request).await.map_err(|status| said(&status)).map(drop)
            }
            Served::Commands(_) => self.commands(move |commands| commands.unpublish(&target)).await,
        }
    }

    /// Makes a volume and brings it to where a Pod would have it; its id and its path.
    pub(super) async fn ready(&self, name: &str, used: Use) -> Outcome<(String, PathBuf)> {
        let id = self.create(name, used).await?;
        self.stage(&id, used).await?;
        let path = self.publish(&id, used).await?;
        Ok((id, path))
    }

    /// Undoes [`Subject::ready`].
    pub(super) async fn discard(&self, id: &str) -> Outcome<()> {
        self.unpublish(id).await?;
        self.unstage(id).await?;
        self.delete(id).await
    }

    /// Every call from CreateVolume to DeleteVolume, in the order of a Pod's life.
    pub(super) async fn cycle(&self, name: &str, used: Use) -> Outcome<()> {
        let (id, _) = self.ready(name, used).await?;
        self.discard(&id).await
    }

    async fn remove(&self, id: &str) -> Outcome<()> {
        let id = id.to_owned();
        self.commands(move |commands| commands.remove(&id)).await
    }

    async fn commands<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Commands) -> Result<T> + Send + 'static,
    ) -> Outcome<T> {
        let Served::Commands(commands) = self.served.clone() else { return Err("it is a server".to_owned()) };
        let done = tokio::task::spawn_blocking(move || work(&commands));
        done.await.map_err(|error| error.to_string())?.map_err(|error| format!("{error:#}"))
    }

    fn staging(&self, id: &str) -> PathBuf {
        self.root.join("kubelet").join(format!("{id}-staged"))
    }

    fn target(&self, id: &str) -> PathBuf {
        self.root.join("kubelet").join(id)
    }
}

/// How long a call takes that is made with a filesystem that was synced.
pub(super) async fn timed<T>(call: impl Future<Output = Outcome<T>>) -> (Duration, Outcome<T>) {
    let start = Instant::now();
    let outcome = call.await;
    (start.elapsed(), outcome)
}

/// What a failed step of the preparation ends the measurement with.
pub(super) fn need<T>(outcome: Outcome<T>, subject: &Subject) -> Result<T> {
    let failure = outcome.as_ref().err().cloned().unwrap_or_default();
    ensure!(outcome.is_ok(), "{} failed: {failure}", subject.name);
    outcome.map_err(anyhow::Error::msg)
}

fn capability(used: Use) -> VolumeCapability {
    let access = match used {
        Use::Ext4 => AccessType::Mount(MountVolume { fs_type: "ext4".to_owned(), ..MountVolume::default() }),
        Use::Block => AccessType::Block(BlockVolume {}),
    };
    let mode = AccessMode { mode: Mode::SingleNodeWriter.into() };
    VolumeCapability { access_mode: Some(mode), access_type: Some(access) }
}

fn content_source(source: Source<'_>) -> VolumeContentSource {
    let from = match source {
        Source::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() }),
        Source::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_owned() }),
    };
    VolumeContentSource { r#type: Some(from) }
}

fn said(status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => "not offered (UNIMPLEMENTED)".to_owned(),
        code => format!("{code:?}: {}", status.message()),
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
