//! The kubelet's device manager: plugins register, their devices are counted, and a Pod is admitted if it can have what
//! it asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use keelson_proto::deviceplugin::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    DevicePluginOptions, Empty, PreStartContainerRequest, PreferredAllocationRequest, RegisterRequest,
    device_plugin_client::DevicePluginClient,
    registration_server::{Registration, RegistrationServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};

use crate::cri::channel;

/// The only version there is.
const VERSION: &str = "v1beta1";
/// The kubelet's own limits.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);

/// What a plugin has told of one resource.
#[derive(Debug)]
struct Resource {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
    endpoint: String,
    healthy: BTreeSet<String>,
    unhealthy: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    /// Resource and device to the Pod's uid.
    allocated: BTreeMap<(String, String), String>,
}

/// The device manager; stops when dropped.
#[derive(Debug)]
pub(crate) struct DeviceManager {
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
    server: AbortOnDropHandle<Result<(), tonic::transport::Error>>,
}

/// The devices of one container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allocation {
    /// Resource and the devices' ids.
    pub(crate) devices: Vec<(String, Vec<String>)>,
    /// What the plugins answered.
    pub(crate) responses: Vec<ContainerAllocateResponse>,
}

impl DeviceManager {
    /// Serves registration in `directory`, as a kubelet does when it starts: every socket there goes first.
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        for entry in fs::read_dir(directory).with_context(|| format!("failed to list {}", directory.display()))? {
            use std::os::unix::fs::FileTypeExt;
            let entry = entry?;
            if entry.file_type()?.is_socket() {
                fs::remove_file(entry.path())
                    .with_context(|| format!("failed to remove {}", entry.path().display()))?;
            }
        }
        let socket = directory.join("kubelet.sock");
        let listener = UnixListener::bind(&socket).with_context(|| format!("failed to bind {}", socket.display()))?;
        let state = Arc::new(Mutex::new(State::default()));
        let stop = CancellationToken::new();
        let service = Registrar { directory: directory.to_owned(), state: Arc::clone(&state), stop: stop.clone() };
        let server = Server::builder()
            .add_service(RegistrationServer::new(service))
            .serve_with_incoming(UnixListenerStream::new(listener));
        Ok(Self { state, stop, server: AbortOnDropHandle::new(tokio::spawn(server)) })
    }

    /// Resource to the number of healthy devices: the node's allocatable.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, usize> {
        lock(&self.state).resources.iter().map(|(name, resource)| (name.clone(), resource.healthy.len())).collect()
    }

    /// Picks devices for a container of Pod `pod` and has the plugins allocate them.
    ///
    /// # Errors
    ///
    /// When there are too few healthy devices that nobody holds, or a plugin refuses; nothing is then allocated.
    pub(crate) async fn allocate(&self, pod: &str, wanted: &BTreeMap<String, u64>) -> Result<Allocation> {
        let mut allocation = Allocation::default();
        for (resource, count) in wanted {
            match self.allocate_resource(pod, resource, usize::try_from(*count)?).await {
                Ok((devices, response)) => {
                    allocation.devices.push((resource.clone(), devices));
                    allocation.responses.push(response);
                }
                Err(error) => {
                    self.free(pod);
                    return Err(error).with_context(|| format!("failed to allocate {count} {resource}"));
                }
            }
        }
        Ok(allocation)
    }

    async fn allocate_resource(
        &self,
        pod: &str,
        resource: &str,
        count: usize,
    ) -> Result<(Vec<String>, ContainerAllocateResponse)> {
        let (mut client, options, available) = {
            let state = lock(&self.state);
            let known = state.resources.get(resource).context("no plugin has registered this resource")?;
            let is_free = |id: &&String| !state.allocated.contains_key(&(resource.to_owned(), (*id).clone()));
            let available: Vec<String> = known.healthy.iter().filter(is_free).cloned().collect();
            (known.client.clone(), known.options, available)
        };
        ensure!(available.len() >= count, "only {} of them are healthy and free", available.len());
        let mut devices = available.clone();
        if options.get_preferred_allocation_available && available.len() > count {
            let request = PreferredAllocationRequest {
                container_requests: vec![ContainerPreferredAllocationRequest {
                    available_device_i_ds: available.clone(),
                    must_include_device_i_ds: Vec::new(),
                    allocation_size: i32::try_from(count)?,
                }],
            };
            let answer = client.get_preferred_allocation(request).await.context("GetPreferredAllocation failed")?;
            let preferred = answer.into_inner().container_responses.into_iter().next().unwrap_or_default().device_i_ds;
            // Advice that can't be followed would hide a mistake of the plugin's.
            let distinct: BTreeSet<&String> = preferred.iter().collect();
            ensure!(
                distinct.len() == count
                    && preferred.len() == count
                    && preferred.iter().all(|id| available.contains(id)),
                "GetPreferredAllocation answered {preferred:?} for {count} of {available:?}"
            );
            devices = preferred;
        }
        devices.truncate(count);
        let request =
            AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: devices.clone() }] };
        let answer = client.allocate(request).await.context("Allocate failed")?.into_inner();
        let [response] = answer.container_responses.as_slice() else {
            bail!("Allocate answered for {} containers instead of 1", answer.container_responses.len());
        };
        let mut state = lock(&self.state);
        for device in &devices {
            state.allocated.insert((resource.to_owned(), device.clone()), pod.to_owned());
        }
        Ok((devices, response.clone()))
    }

    /// Tells the plugins that want to know that a container with these devices is about to start.
    pub(crate) async fn before_start(&self, allocation: &Allocation) -> Result<()> {
        for (resource, devices) in &allocation.devices {
            let (mut client, options) = {
                let state = lock(&self.state);
                let known = state.resources.get(resource).with_context(|| format!("{resource} is gone"))?;
                (known.client.clone(), known.options)
            };
            if options.pre_start_required {
                let request = PreStartContainerRequest { devices_ids: devices.clone() };
                tokio::time::timeout(PRE_START_TIMEOUT, client.pre_start_container(request))
                    .await
                    .context("PreStartContainer took longer than the kubelet waits")?
                    .context("PreStartContainer failed")?;
            }
        }
        Ok(())
    }

    /// Stops serving, and returns once the socket is closed.
    pub(crate) async fn stop(mut self) {
        self.server.abort();
        // Aborted, as asked: that is the only way for it to end.
        let _ = (&mut self.server).await;
    }

    /// Gives back what Pod `pod` holds. The API has no call for it: plugins never learn.
    pub(crate) fn free(&self, pod: &str) {
        lock(&self.state).allocated.retain(|_, holder| holder != pod);
    }
}

impl Drop for DeviceManager {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The registration service.
#[derive(Debug)]
struct Registrar {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Registration for Registrar {
    /// As the kubelet does it: the plugin is dialled and asked for its options before the answer, and its list is read
    /// after.
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            return Err(Status::invalid_argument(format!("version {:?} is not {VERSION}", request.version)));
        }
        if !request.resource_name.contains('/') || request.resource_name.contains("kubernetes.io/") {
            return Err(Status::invalid_argument(format!("{:?} is no extended resource", request.resource_name)));
        }
        // The kubelet joins it to the directory of its own socket.
        if request.endpoint.is_empty() || request.endpoint.contains('/') {
            return Err(Status::invalid_argument(format!("endpoint {:?} is no file name", request.endpoint)));
        }
        let socket = self.directory.join(&request.endpoint);
        let mut client =
            DevicePluginClient::new(channel(&socket).map_err(|error| Status::internal(format!("{error:#}")))?);
        let options = tokio::time::timeout(DIAL_TIMEOUT, client.get_device_plugin_options(Empty {}))
            .await
            .map_err(|_| Status::deadline_exceeded(format!("{} did not answer", socket.display())))??
            .into_inner();
        let resource = Resource {
            client: client.clone(),
            options,
            endpoint: request.endpoint.clone(),
            healthy: BTreeSet::new(),
            unhealthy: BTreeSet::new(),
        };
        lock(&self.state).resources.insert(request.resource_name.clone(), resource);
        let watch = watch(Arc::clone(&self.state), request.resource_name, request.endpoint, client);
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(watch).await });
        Ok(Response::new(Empty {}))
    }
}

/// Follows a plugin's list for as long as the stream lasts. The kubelet never asks a second time.
async fn watch(state: Arc<Mutex<State>>, name: String, endpoint: String, mut client: DevicePluginClient<Channel>) {
    if let Ok(answer) = client.list_and_watch(Empty {}).await {
        let mut lists = answer.into_inner();
        while let Ok(Some(list)) = lists.message().await {
            let mut state = lock(&state);
            // A later registration of the same resource has its own stream.
            if let Some(resource) = state.resources.get_mut(&name).filter(|resource| resource.endpoint == endpoint) {
                let (healthy, unhealthy): (Vec<_>, Vec<_>) =
                    list.devices.into_iter().partition(|device| device.health == "Healthy");
                resource.healthy = healthy.into_iter().map(|device| device.id).collect();
                resource.unhealthy = unhealthy.into_iter().map(|device| device.id).collect();
            }
        }
    }
    let mut state = lock(&state);
    if let Some(resource) = state.resources.get_mut(&name).filter(|resource| resource.endpoint == endpoint) {
        let mut gone = std::mem::take(&mut resource.healthy);
        resource.unhealthy.append(&mut gone);
    }
}

/// No holder of the lock panics, and if one did, each of its changes is whole.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
