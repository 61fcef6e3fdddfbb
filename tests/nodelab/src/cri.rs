//! The container runtime's side of the kubelet.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result};
use keelson_proto::cri::v1::{
    ContainerConfig, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec,
    ImageStatusRequest, ListPodSandboxRequest, PodSandboxConfig, PodSandboxStatusRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopContainerRequest,
    StopPodSandboxRequest, VersionRequest, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};

/// A client of CRI v1. Each call says what it was about when it fails.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// A channel to the Unix socket at `path`, connected on first use.
///
/// The kubelet sends the authority `localhost`; servers on hyper refuse gRPC's default for Unix sockets, the path.
pub(crate) fn channel(path: &Path) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))
        .with_context(|| format!("{} is no address", path.display()))?;
    Ok(endpoint.origin(Uri::from_static("http://localhost")).connect_lazy())
}

impl Cri {
    /// A client of the runtime at `socket`.
    pub(crate) fn at(socket: &Path) -> Result<Self> {
        let channel = channel(socket)?;
        Ok(Self { runtime: RuntimeServiceClient::new(channel.clone()), images: ImageServiceClient::new(channel) })
    }

    /// The runtime's name and version.
    pub(crate) async fn version(&self) -> Result<String> {
        let answer =
            self.runtime.clone().version(VersionRequest::default()).await.context("Version failed")?.into_inner();
        Ok(format!("{} {}", answer.runtime_name, answer.runtime_version))
    }

    /// Why the runtime isn't ready, or nothing.
    pub(crate) async fn not_ready(&self) -> Result<Option<String>> {
        let answer = self.runtime.clone().status(StatusRequest::default()).await.context("Status failed")?.into_inner();
        let status = answer.status.context("Status has no status")?;
        Ok(status
            .conditions
            .into_iter()
            .find(|condition| !condition.status && condition.r#type.ends_with("Ready"))
            .map(|condition| format!("{}: {} ({})", condition.r#type, condition.message, condition.reason)))
    }

    /// Whether the runtime has the image.
    pub(crate) async fn has_image(&self, image: &str) -> Result<bool> {
        let image = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
        let request = ImageStatusRequest { image: Some(image), verbose: false };
        Ok(self.images.clone().image_status(request).await.context("ImageStatus failed")?.into_inner().image.is_some())
    }

    /// Makes a Pod's sandbox and returns its id.
    pub(crate) async fn run_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let answer = self.runtime.clone().run_pod_sandbox(request).await.context("RunPodSandbox failed")?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// The sandbox's addresses, the first one first.
    pub(crate) async fn addresses(&self, sandbox: &str) -> Result<Vec<IpAddr>> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await.context("PodSandboxStatus failed")?;
        let network =
            answer.into_inner().status.and_then(|status| status.network).context("the sandbox has no network")?;
        std::iter::once(network.ip)
            .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
            .map(|text| text.parse().with_context(|| format!("the runtime calls {text:?} an address")))
            .collect()
    }

    /// The ids of all sandboxes.
    pub(crate) async fn sandboxes(&self) -> Result<Vec<String>> {
        let request = ListPodSandboxRequest::default();
        let answer = self.runtime.clone().list_pod_sandbox(request).await.context("ListPodSandbox failed")?;
        Ok(answer.into_inner().items.into_iter().map(|sandbox| sandbox.id).collect())
    }

    /// Makes a container in `sandbox`, starts it and returns its id.
    pub(crate) async fn run_container(
        &self,
        sandbox: &str,
        sandbox_config: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let answer = self.runtime.clone().create_container(request).await.context("CreateContainer failed")?;
        let container_id = answer.into_inner().container_id;
        let request = StartContainerRequest { container_id: container_id.clone() };
        self.runtime.clone().start_container(request).await.context("StartContainer failed")?;
        Ok(container_id)
    }

    /// The host's process id of the container's first process.
    pub(crate) async fn pid(&self, container: &str) -> Result<u32> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        let answer =
            self.runtime.clone().container_status(request).await.context("ContainerStatus failed")?.into_inner();
        // Only the verbose answer has it, as JSON of the runtime's own: {"pid": 4711, ...}.
        let info: serde_json::Value = serde_json::from_str(answer.info.get("info").map_or("{}", String::as_str))?;
        let pid = info["pid"].as_u64().context("the runtime told no process id")?;
        Ok(u32::try_from(pid)?)
    }

    /// Runs `command` in the container.
    pub(crate) async fn exec(&self, container: &str, command: &[&str]) -> Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 30,
        };
        Ok(self
            .runtime
            .clone()
            .exec_sync(request)
            .await
            .with_context(|| format!("ExecSync {command:?} failed"))?
            .into_inner())
    }

    /// Stops and removes a container.
    pub(crate) async fn remove_container(&self, container: &str, grace_seconds: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: grace_seconds };
        self.runtime.clone().stop_container(request).await.context("StopContainer failed")?;
        let request = RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime.clone().remove_container(request).await.context("RemoveContainer failed")?;
        Ok(())
    }

    /// Stops and removes a sandbox.
    pub(crate) async fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.context("StopPodSandbox failed")?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.context("RemovePodSandbox failed")?;
        Ok(())
    }
}
