//! A fake kubelet: not the kubelet, but a stand-in that is as strict and as unforgiving.
//!
//! Does what `pkg/kubelet/cm/devicemanager` does with a plugin: it empties its directory of sockets when it starts, it
//! dials back within `Register`, asks for the options, opens one stream and never another, marks all devices unusable
//! when that ends, and chooses devices and calls `Allocate` at admission. What a kubelet merely suffers from, it writes
//! down as a [`FakeKubelet::violations`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use keelson_proto::deviceplugin::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, Device, Empty, ListAndWatchResponse,
    RegisterRequest,
    device_plugin_client::DevicePluginClient,
    registration_server::{Registration, RegistrationServer},
};
use tokio::{net::UnixListener, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

/// How long the kubelet tries to dial back.
const DIAL: Duration = Duration::from_secs(10);

/// How a kubelet tells plugins apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Era {
    /// By the resource's name: a stream that ends makes the resource's devices unusable, also those of a newer
    /// registration (before kubernetes/kubernetes#135437).
    ByName,
    /// By name and socket: a registration of a socket that is connected changes nothing (since
    /// kubernetes/kubernetes#139765).
    BySocket,
}

/// A kubelet's device manager with its socket.
pub(crate) struct FakeKubelet {
    directory: PathBuf,
    manager: Manager,
    server: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Manager {
    directory: PathBuf,
    cdi_directory: PathBuf,
    era: Era,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    violations: Vec<String>,
    /// Registrations are refused with this.
    refusal: Option<String>,
    /// No stream is opened after a registration.
    deaf: bool,
    streams: Vec<JoinHandle<()>>,
}

/// What the kubelet knows of one resource.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resource {
    /// The socket of each registration, in order.
    pub(crate) sockets: Vec<String>,
    /// The lists received since the last registration.
    pub(crate) lists: Vec<ListAndWatchResponse>,
    /// Devices that may be given away.
    pub(crate) healthy: BTreeSet<String>,
    /// The others.
    pub(crate) unhealthy: BTreeSet<String>,
    /// The sockets with an open stream.
    connected: Vec<(String, DevicePluginClient<Channel>)>,
    allocated: BTreeSet<String>,
}

impl FakeKubelet {
    /// A kubelet that isn't started yet.
    pub(crate) fn new(directory: &Path, cdi_directory: &Path, era: Era) -> Self {
        let manager = Manager {
            directory: directory.to_owned(),
            cdi_directory: cdi_directory.to_owned(),
            era,
            state: Arc::default(),
        };
        Self { directory: directory.to_owned(), manager, server: None }
    }

    /// Starts as a kubelet does: its directory exists, every socket in it is removed, then its own is made.
    pub(crate) fn start(&mut self) {
        fs::create_dir_all(&self.directory).unwrap();
        for entry in fs::read_dir(&self.directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_socket() {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        self.listen();
    }

    /// Listens on a socket made anew; the streams go on.
    pub(crate) fn renew_socket(&mut self) {
        fs::remove_file(self.directory.join("kubelet.sock")).unwrap();
        if let Some(server) = self.server.take() {
            server.abort();
        }
        self.listen();
    }

    fn listen(&mut self) {
        let listener = UnixListener::bind(self.directory.join("kubelet.sock")).unwrap();
        let server = Server::builder()
            .add_service(RegistrationServer::new(self.manager.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        self.server = Some(tokio::spawn(async move { server.await.unwrap() }));
    }

    /// Dies: every connection ends, the socket's file stays.
    pub(crate) async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
        let streams = std::mem::take(&mut self.manager.state().streams);
        for stream in streams {
            stream.abort();
            let _ = stream.await;
        }
        let mut state = self.manager.state();
        for resource in state.resources.values_mut() {
            // Known resources start at zero until they are registered again; what Pods have is in the checkpoint.
            let Resource { allocated, sockets, .. } = std::mem::take(resource);
            *resource = Resource { allocated, sockets, ..Resource::default() };
        }
    }

    /// Ends the streams of a resource but goes on: what a kubelet does that gets an error on one.
    pub(crate) async fn drop_streams(&mut self) {
        let streams = std::mem::take(&mut self.manager.state().streams);
        for stream in streams {
            stream.abort();
            let _ = stream.await;
        }
        for resource in self.manager.state().resources.values_mut() {
            resource.connected.clear();
            let healthy = std::mem::take(&mut resource.healthy);
            resource.unhealthy.extend(healthy);
        }
    }

    /// Answers every registration with this error, or none.
    pub(crate) fn refuse(&mut self, refusal: Option<&str>) {
        self.manager.state().refusal = refusal.map(str::to_owned);
    }

    /// Registers but asks for no list: what a kubelet comes to whose call fails.
    pub(crate) fn open_no_streams(&mut self) {
        self.manager.state().deaf = true;
    }

    /// What is known of a resource.
    pub(crate) fn resource(&self, name: &str) -> Resource {
        self.manager.state().resources.get(name).cloned().unwrap_or_default()
    }

    /// What no plugin should do.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.manager.state().violations.clone()
    }

    /// Admits a container that asks for `count` devices: chooses healthy ones that nobody has, in any order, and calls
    /// `Allocate`. What comes back must be usable: device nodes that exist, CDI devices that resolve.
    pub(crate) async fn admit(
        &self,
        name: &str,
        count: usize,
    ) -> Result<(Vec<String>, ContainerAllocateResponse), Status> {
        let ids: Vec<String> = {
            let state = self.manager.state();
            let resource = &state.resources[name];
            resource.healthy.difference(&resource.allocated).take(count).cloned().collect()
        };
        if ids.len() < count {
            return Err(Status::failed_precondition("UnexpectedAdmissionError: no healthy devices present"));
        }
        let request = vec![ContainerAllocateRequest { devices_ids: ids.clone() }];
        let mut responses = self.allocate(name, request).await?;
        assert_eq!(responses.len(), 1, "the kubelet reads the first response only");
        let response = responses.remove(0);
        for device in &response.devices {
            let found = fs::symlink_metadata(&device.host_path).unwrap().file_type();
            assert!(found.is_char_device() || found.is_block_device(), "{device:?}");
            assert!(!device.permissions.is_empty() && device.permissions.chars().all(|access| "rwm".contains(access)));
            assert!(device.container_path.starts_with('/'));
        }
        let known = cdi_devices(&self.manager.cdi_directory);
        for device in &response.cdi_devices {
            assert!(known.contains(&device.name), "{} is not among {known:?}", device.name);
        }
        self.manager.state().resources.get_mut(name).unwrap().allocated.extend(ids.iter().cloned());
        Ok((ids, response))
    }

    /// `Allocate` with these containers, on the newest registration.
    pub(crate) async fn allocate(
        &self,
        name: &str,
        container_requests: Vec<ContainerAllocateRequest>,
    ) -> Result<Vec<ContainerAllocateResponse>, Status> {
        let client = self.manager.state().resources[name].connected.last().map(|(_, client)| client.clone());
        let mut client = client.ok_or_else(|| Status::unavailable("no plugin is connected"))?;
        let response = client.allocate(AllocateRequest { container_requests }).await?;
        Ok(response.into_inner().container_responses)
    }

    /// A client of any registration, connected anew, as for a kubelet whose connection broke.
    pub(crate) async fn dial(&self, socket: &str) -> DevicePluginClient<Channel> {
        self.manager.dial(socket).await.unwrap()
    }

    /// A client of the newest registration.
    pub(crate) fn client(&self, name: &str) -> DevicePluginClient<Channel> {
        self.manager.state().resources[name].connected.last().unwrap().1.clone()
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
        for stream in &self.manager.state().streams {
            stream.abort();
        }
    }
}

impl Manager {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn registered(&self, request: RegisterRequest) -> Result<(), Status> {
        let RegisterRequest { version, endpoint, resource_name, .. } = request;
        if let Some(refusal) = &self.state().refusal {
            return Err(Status::unknown(refusal.clone()));
        }
        if version != "v1beta1" {
            return Err(Status::unknown(format!("requested API version {version:?} is not supported by kubelet")));
        }
        if !is_extended(&resource_name) {
            return Err(Status::unknown(format!("the ResourceName {resource_name:?} is invalid")));
        }
        if endpoint.contains('/') || self.directory.join(&endpoint).as_os_str().len() > 107 {
            return Err(Status::unknown(format!("{endpoint:?} is no file name of a socket")));
        }
        if let Some(resource) = self.state().resources.get(&resource_name) {
            let connected = resource.connected.iter().any(|(known, _)| *known == endpoint);
            if connected && self.era == Era::BySocket {
                return Ok(());
            }
        }
        let mut client = self.dial(&endpoint).await?;
        let options = client.get_device_plugin_options(Empty {}).await?.into_inner();
        if options.pre_start_required || options.get_preferred_allocation_available {
            self.violation(format!("{resource_name} offers calls that this test doesn't know: {options:?}"));
        }
        let mut state = self.state();
        let deaf = state.deaf;
        let resource = state.resources.entry(resource_name.clone()).or_default();
        if resource.sockets.contains(&endpoint) {
            state.violations.push(format!("{resource_name} registered {endpoint} twice"));
        }
        let resource = state.resources.entry(resource_name.clone()).or_default();
        resource.sockets.push(endpoint.clone());
        resource.lists.clear();
        if deaf {
            return Ok(());
        }
        resource.connected.push((endpoint.clone(), client.clone()));
        let manager = self.clone();
        let stream = tokio::spawn(async move { manager.list_and_watch(resource_name, endpoint, client).await });
        state.streams.push(stream);
        Ok(())
    }

    async fn dial(&self, socket: &str) -> Result<DevicePluginClient<Channel>, Status> {
        let path = self.directory.join(socket);
        let dial = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
        let channel = timeout(DIAL, dial.connect())
            .await
            .map_err(|_| Status::unknown("dial timed out"))?
            .map_err(|error| Status::unknown(format!("failed to dial device plugin: {error}")))?;
        Ok(DevicePluginClient::new(channel))
    }

    /// Called once a registration, whatever becomes of it.
    async fn list_and_watch(&self, name: String, endpoint: String, mut client: DevicePluginClient<Channel>) {
        let opened = client.list_and_watch(Empty {}).await;
        if let Ok(response) = opened {
            let mut stream = response.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(list)) => self.listed(&name, list),
                    Ok(None) => break,
                    Err(status) => {
                        if status.code() == Code::OutOfRange || status.code() == Code::ResourceExhausted {
                            self.violation(format!("{name} sent a list over 4 MiB: {status}"));
                        }
                        break;
                    }
                }
            }
        }
        let mut state = self.state();
        let Some(resource) = state.resources.get_mut(&name) else { return };
        resource.connected.retain(|(known, _)| *known != endpoint);
        if resource.connected.is_empty() || self.era == Era::ByName {
            let healthy = std::mem::take(&mut resource.healthy);
            resource.unhealthy.extend(healthy);
        }
    }

    fn listed(&self, name: &str, list: ListAndWatchResponse) {
        let known = cdi_devices(&self.cdi_directory);
        for device in &list.devices {
            self.check(name, device);
            let cdi = format!("{name}={}", device.id);
            if !known.contains(&cdi) {
                self.violation(format!("{cdi} was listed before its CDI file was written"));
            }
        }
        let mut state = self.state();
        let resource = state.resources.entry(name.to_owned()).or_default();
        let ids = |health: &str| -> BTreeSet<String> {
            list.devices.iter().filter(|device| device.health == health).map(|device| device.id.clone()).collect()
        };
        resource.healthy = ids("Healthy");
        resource.unhealthy = ids("Unhealthy");
        let complete = resource.healthy.len() + resource.unhealthy.len() == list.devices.len();
        let news = resource.lists.last() != Some(&list);
        resource.lists.push(list);
        if !complete {
            state.violations.push(format!("{name} listed an id twice or a health that is none"));
        }
        if !news {
            state.violations.push(format!("{name} sent the same list again"));
        }
    }

    fn check(&self, name: &str, device: &Device) {
        if device.id.is_empty() || device.id.chars().count() > 63 {
            self.violation(format!("{name} has a device with the id {:?}", device.id));
        }
        let nodes = device.topology.iter().map(|topology| &topology.nodes);
        for nodes in nodes {
            if nodes.is_empty() || nodes.iter().any(|node| node.id < 0) {
                self.violation(format!("{name} has a device nowhere: {device:?}"));
            }
        }
    }

    fn violation(&self, text: String) {
        self.state().violations.push(text);
    }
}

#[tonic::async_trait]
impl Registration for Manager {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.registered(request.into_inner()).await?;
        Ok(Response::new(Empty {}))
    }
}

/// `v1helper.IsExtendedResourceName`, as far as what the plugin could send goes.
fn is_extended(name: &str) -> bool {
    let well_formed = |part: &str| {
        !part.is_empty()
            && part.starts_with(|first: char| first.is_ascii_alphanumeric())
            && part.ends_with(|last: char| last.is_ascii_alphanumeric())
    };
    name.split_once('/').is_some_and(|(domain, last)| {
        !name.contains("kubernetes.io/")
            && !name.starts_with("requests.")
            && well_formed(domain)
            && well_formed(last)
            && last.len() <= 63
            && !last.contains('/')
    })
}

/// The qualified names in a directory's CDI files, as strict as a runtime: a file of an unknown version or kind, or with
/// a device twice, counts for nothing.
fn cdi_devices(directory: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let spec: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let version = spec["cdiVersion"].as_str().unwrap();
        assert!(["0.3.0", "0.5.0", "0.6.0"].contains(&version), "{path:?}");
        for device in spec["devices"].as_array().unwrap() {
            let nodes = device["containerEdits"]["deviceNodes"].as_array().unwrap();
            assert!(!nodes.is_empty(), "{path:?}");
            let name = format!("{}={}", spec["kind"].as_str().unwrap(), device["name"].as_str().unwrap());
            assert!(names.insert(name), "{path:?} has a device twice");
        }
    }
    names
}
