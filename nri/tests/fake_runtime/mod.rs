//! A **fake** container runtime: the runtime's end of NRI, for tests. It creates no containers.
//!
//! It is as strict as the Go original where that is known to bite, and copies these of its rules:
//! - a read through a 4096-byte buffer fails (ENOMEM) if the buffer is shorter than the frame;
//! - more than 256 frames for one message break the connection, as the queue may overflow;
//! - a frame of more than 4 MiB + 10 bytes, or for a connection that doesn't exist, is a broken peer;
//! - a plugin with a wrong name, index or event mask is refused, one that doesn't answer in time is dropped;
//! - Synchronize comes in pieces, and only the last reply may carry updates;
//! - an update for a container that doesn't exist is an error unless `ignore_failure` is set, and one for the container
//!   being created always is.
//!
//! It shares no code with the plugin: mux and ttrpc are written once more here.

#![allow(unreachable_pub, missing_docs, missing_debug_implementations, reason = "a module of a test, not an interface")]

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use keelson_proto::{nri::v1alpha1::*, ttrpc};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};

const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;
const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";

/// NRI's default is 2 s, after which the runtime drops the plugin. The tests share their machine with others, and it is
/// not its speed that is under test.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Which runtime it plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// NRI before 0.12, as in containerd 2.1: most events are a StateChange.
    StateChange,
    /// NRI 0.12, as in containerd 2.3: a call for each event, StateChange if that is unimplemented.
    Dedicated,
}

impl Era {
    pub const BOTH: [Self; 2] = [Self::StateChange, Self::Dedicated];

    fn valid_events(self) -> i32 {
        match self {
            Self::StateChange => 0x7ff,
            Self::Dedicated => 0x3fff,
        }
    }
}

/// What the plugin did wrong, in the words that a Go runtime would log.
pub struct Broken(String);

impl fmt::Debug for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// An error that the plugin answered with.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: i32,
    pub message: String,
}

fn broken<T>(what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(what.into()))
}

/// The runtime: what "runs" on it, and its socket.
pub struct FakeRuntime {
    era: Era,
    path: PathBuf,
    listener: Option<UnixListener>,
    /// How many Pods and containers go into one Synchronize message; none: all of them.
    pub chunk: Option<usize>,
    pub pods: BTreeMap<String, PodSandbox>,
    pub containers: BTreeMap<String, Container>,
}

impl FakeRuntime {
    pub fn start(path: &Path, era: Era) -> Self {
        let mut runtime = Self {
            era,
            path: path.to_owned(),
            listener: None,
            chunk: None,
            pods: BTreeMap::new(),
            containers: BTreeMap::new(),
        };
        runtime.listen();
        runtime
    }

    /// As a runtime does at each start: removes what is there, listens anew.
    pub fn listen(&mut self) {
        self.stop_listening();
        self.listener = Some(UnixListener::bind(&self.path).unwrap());
    }

    pub fn stop_listening(&mut self) {
        self.listener = None;
        if let Err(error) = fs::remove_file(&self.path) {
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
    }

    /// The next connection, before anything was said on it.
    pub async fn accept(&self) -> Connection {
        let accepted = timeout(REQUEST_TIMEOUT, self.listener.as_ref().unwrap().accept()).await;
        let (socket, _) = accepted.expect("the plugin connects").unwrap();
        Connection { era: self.era, socket, queues: BTreeMap::new(), last_stream: None, events: 0 }
    }

    /// Accepts a plugin, registers, configures and synchronizes it, as the runtime does before it calls it active.
    pub async fn activate(&mut self) -> Result<Active<'_>, Broken> {
        let mut connection = self.accept().await;
        let registration = connection.register().await?;
        let mut active = Active { connection, registration, synchronized: Vec::new(), runtime: self };
        active.synchronize().await?;
        Ok(active)
    }

    /// What `cpuset.cpus` of a container is now.
    pub fn cpus(&self, id: &str) -> &str {
        &self.containers[id].linux.as_ref().unwrap().resources.as_ref().unwrap().cpu.as_ref().unwrap().cpus
    }

    /// What `cpuset.mems` of a container is now.
    pub fn mems(&self, id: &str) -> &str {
        &self.containers[id].linux.as_ref().unwrap().resources.as_ref().unwrap().cpu.as_ref().unwrap().mems
    }

    fn apply(&mut self, id: &str, resources: Option<&LinuxResources>) {
        let Some(cpu) = resources.and_then(|resources| resources.cpu.as_ref()) else { return };
        let container = self.containers.get_mut(id).unwrap();
        let linux = container.linux.get_or_insert_default();
        let own = linux.resources.get_or_insert_default().cpu.get_or_insert_default();
        // Empty means "not set".
        if !cpu.cpus.is_empty() {
            own.cpus.clone_from(&cpu.cpus);
        }
        if !cpu.mems.is_empty() {
            own.mems.clone_from(&cpu.mems);
        }
    }

    fn apply_updates(&mut self, creating: Option<&str>, updates: &[ContainerUpdate]) -> Result<(), Broken> {
        let mut seen = Vec::new();
        for update in updates {
            if creating == Some(update.container_id.as_str()) {
                return broken("an update for the container being created");
            }
            if seen.contains(&&update.container_id) {
                return broken("two updates for one container");
            }
            seen.push(&update.container_id);
            if !self.containers.contains_key(&update.container_id) {
                if update.ignore_failure {
                    continue;
                }
                return broken(format!("an update for {:?}, which doesn't exist", update.container_id));
            }
            self.apply(&update.container_id, update.linux.as_ref().and_then(|linux| linux.resources.as_ref()));
        }
        Ok(())
    }
}

impl Drop for FakeRuntime {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A connection as Go sees it.
pub struct Connection {
    era: Era,
    socket: UnixStream,
    queues: BTreeMap<u32, Queue>,
    last_stream: Option<u32>,
    /// The mask that the plugin answered Configure with.
    pub events: i32,
}

/// Frames that wait to be read, and the reader's buffer of 4096 bytes.
#[derive(Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    buffered: VecDeque<u8>,
}

struct TtrpcMessage {
    stream: u32,
    kind: u8,
    data: Vec<u8>,
}

impl Connection {
    /// Serves RegisterPlugin and calls Configure.
    pub async fn register(&mut self) -> Result<RegisterPluginRequest, Broken> {
        let message = self.receive(RUNTIME).await?;
        if (message.stream, message.kind) != (1, 1) {
            return broken(format!("stream {} type {} instead of a first request", message.stream, message.kind));
        }
        let request = ttrpc::Request::decode(message.data.as_slice()).map_err(|error| Broken(error.to_string()))?;
        let method = (request.service.as_str(), request.method.as_str());
        if method != ("nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin") {
            return broken(format!("{method:?} instead of a registration"));
        }
        let registration = RegisterPluginRequest::decode(request.payload.as_slice()).unwrap();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
        if registration.plugin_name.is_empty() || !registration.plugin_name.bytes().all(allowed) {
            return broken("invalid plugin name");
        }
        if registration.plugin_idx.len() != 2 || !registration.plugin_idx.bytes().all(|byte| byte.is_ascii_digit()) {
            return broken("invalid plugin index");
        }
        let response = ttrpc::Response { status: None, payload: Empty {}.encode_to_vec() };
        // Newer runtimes have been seen to call Configure before they answer the registration.
        if self.era == Era::StateChange {
            self.send(RUNTIME, 1, 2, &response.encode_to_vec()).await?;
            self.configure().await?;
        } else {
            self.configure().await?;
            self.send(RUNTIME, 1, 2, &response.encode_to_vec()).await?;
        }
        Ok(registration)
    }

    async fn configure(&mut self) -> Result<(), Broken> {
        let request = ConfigureRequest {
            config: String::new(),
            runtime_name: "containerd".to_owned(),
            runtime_version: "v2.1.9".to_owned(),
            registration_timeout: 5000,
            request_timeout: i64::try_from(REQUEST_TIMEOUT.as_millis()).unwrap(),
            nri_version: if self.era == Era::Dedicated { "v0.12.0".to_owned() } else { String::new() },
        };
        let response: ConfigureResponse = self.expect("Configure", &request).await?;
        if response.events & !self.era.valid_events() != 0 {
            return broken(format!("invalid plugin events (0x{:x})", response.events));
        }
        self.events = if response.events == 0 { self.era.valid_events() } else { response.events };
        Ok(())
    }

    /// Refuses the registration, as for a plugin that is unwanted.
    pub async fn refuse(&mut self, code: i32, message: &str) -> Result<(), Broken> {
        self.receive(RUNTIME).await?;
        let status = keelson_proto::google::rpc::Status { code, message: message.to_owned(), details: vec![] };
        let response = ttrpc::Response { status: Some(status), payload: vec![] };
        self.send(RUNTIME, 1, 2, &response.encode_to_vec()).await
    }

    pub fn subscribed(&self, event: Event) -> bool {
        self.events & 1 << (event as i32 - 1) != 0
    }

    /// A call whose error would be the plugin's fault.
    pub async fn expect<R: Message + Default>(&mut self, method: &str, request: &impl Message) -> Result<R, Broken> {
        match self.call(method, request).await? {
            Ok(response) => Ok(response),
            Err(refusal) => broken(format!("{method}: {refusal:?}")),
        }
    }

    pub async fn call<R: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<Result<R, Refusal>, Broken> {
        match self.call_raw(PLUGIN_SERVICE, method, request.encode_to_vec()).await? {
            Ok(payload) => match R::decode(payload.as_slice()) {
                Ok(response) => Ok(Ok(response)),
                Err(error) => broken(format!("{method}: {error}")),
            },
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    pub async fn call_raw(
        &mut self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
    ) -> Result<Result<Vec<u8>, Refusal>, Broken> {
        let stream = self.last_stream.map_or(1, |stream| stream + 2);
        self.last_stream = Some(stream);
        let trace =
            ttrpc::KeyValue { key: "traceparent".to_owned(), value: "00-0af7651916cd43dd8448eb211c80319c".to_owned() };
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(REQUEST_TIMEOUT.as_nanos()).unwrap(),
            metadata: vec![trace],
        };
        self.send(PLUGIN, stream, 1, &request.encode_to_vec()).await?;
        let message = self.receive(PLUGIN).await?;
        if (message.stream, message.kind) != (stream, 2) {
            return broken(format!(
                "stream {} type {} instead of a response on {stream}",
                message.stream, message.kind
            ));
        }
        let response = ttrpc::Response::decode(message.data.as_slice()).map_err(|error| Broken(error.to_string()))?;
        Ok(match response.status {
            Some(status) if status.code != 0 => Err(Refusal { code: status.code, message: status.message }),
            _ => Ok(response.payload),
        })
    }

    /// Writes as Go does: through a 4096-byte buffer, whose overflow becomes one frame of its own.
    async fn send(&mut self, connection: u32, stream: u32, kind: u8, data: &[u8]) -> Result<(), Broken> {
        let mut message = u32::try_from(data.len()).unwrap().to_be_bytes().to_vec();
        message.extend(stream.to_be_bytes());
        message.extend([kind, 0]);
        message.extend(data);
        let (first, rest) = message.split_at(message.len().min(4096));
        for payload in [first, rest] {
            if !payload.is_empty() {
                self.send_frame(connection, payload).await?;
            }
        }
        Ok(())
    }

    pub async fn send_frame(&mut self, connection: u32, payload: &[u8]) -> Result<(), Broken> {
        self.socket.write_all(&connection.to_be_bytes()).await?;
        self.socket.write_all(&u32::try_from(payload.len()).unwrap().to_be_bytes()).await?;
        self.socket.write_all(payload).await?;
        Ok(())
    }

    /// Writes bytes that need not be NRI at all.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        Ok(self.socket.write_all(bytes).await?)
    }

    /// Waits until the plugin closes the connection.
    pub async fn closed(&mut self) -> Result<(), Broken> {
        let mut sink = Vec::new();
        match timeout(REQUEST_TIMEOUT, self.socket.read_to_end(&mut sink)).await {
            // Closed with our bytes unread: the kernel reports that as a reset.
            Ok(_) => Ok(()),
            Err(_) => broken("the plugin kept a broken connection open"),
        }
    }

    async fn receive(&mut self, connection: u32) -> Result<TtrpcMessage, Broken> {
        match timeout(REQUEST_TIMEOUT, self.receive_message(connection)).await {
            Ok(received) => received,
            Err(_) => broken("context deadline exceeded"),
        }
    }

    async fn receive_message(&mut self, connection: u32) -> Result<TtrpcMessage, Broken> {
        let mut frames = 0;
        let header = self.read_full(connection, 10, &mut frames).await?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let length = word(0) as usize;
        if length > 4 << 20 {
            return broken(format!("message length {length} exceeds the maximum"));
        }
        let data = self.read_full(connection, length, &mut frames).await?;
        if frames > 256 {
            return broken("failed to queue payload for reading");
        }
        Ok(TtrpcMessage { stream: word(4), kind: header[8], data })
    }

    /// `io.ReadFull` of a `bufio.Reader` with 4096 bytes.
    async fn read_full(&mut self, connection: u32, wanted: usize, frames: &mut usize) -> Result<Vec<u8>, Broken> {
        let mut bytes = Vec::new();
        while bytes.len() < wanted {
            let missing = wanted - bytes.len();
            if !self.queues.entry(connection).or_default().buffered.is_empty() {
                let buffered = &mut self.queues.entry(connection).or_default().buffered;
                let count = missing.min(buffered.len());
                bytes.extend(buffered.drain(..count));
                continue;
            }
            let frame = loop {
                if let Some(frame) = self.queues.entry(connection).or_default().frames.pop_front() {
                    break frame;
                }
                self.read_frame().await?;
            };
            *frames += 1;
            // bufio reads past its own buffer if the caller's is as long.
            let room = missing.max(4096);
            if frame.len() > room {
                return broken("cannot allocate memory");
            }
            self.queues.entry(connection).or_default().buffered.extend(frame);
        }
        Ok(bytes)
    }

    async fn read_frame(&mut self) -> Result<(), Broken> {
        let mut header = [0; 8];
        self.socket.read_exact(&mut header).await?;
        let connection = u32::from_be_bytes(header[..4].try_into().unwrap());
        let length = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
        if length > 10 + (4 << 20) {
            return broken(format!("frame of {length} bytes"));
        }
        if ![PLUGIN, RUNTIME].contains(&connection) {
            return broken(format!("frame for connection {connection}"));
        }
        let mut payload = vec![0; length];
        self.socket.read_exact(&mut payload).await?;
        self.queues.entry(connection).or_default().frames.push_back(payload);
        Ok(())
    }
}

/// A plugin that takes part in the runtime's requests.
pub struct Active<'a> {
    pub connection: Connection,
    pub registration: RegisterPluginRequest,
    /// The updates that the synchronization brought.
    pub synchronized: Vec<ContainerUpdate>,
    pub runtime: &'a mut FakeRuntime,
}

impl Active<'_> {
    async fn synchronize(&mut self) -> Result<(), Broken> {
        let mut pods: Vec<PodSandbox> = self.runtime.pods.values().cloned().collect();
        let mut containers: Vec<Container> = self.runtime.containers.values().cloned().collect();
        let chunk = self.runtime.chunk.unwrap_or(usize::MAX);
        loop {
            let rest = (pods.split_off(chunk.min(pods.len())), containers.split_off(chunk.min(containers.len())));
            let more = !rest.0.is_empty() || !rest.1.is_empty();
            let request = SynchronizeRequest { pods, containers, more };
            let response: SynchronizeResponse = self.connection.expect("Synchronize", &request).await?;
            if more != response.more || more && !response.update.is_empty() {
                return broken("plugin does not handle split sync requests");
            }
            if !more {
                self.runtime.apply_updates(None, &response.update)?;
                self.synchronized = response.update;
                return Ok(());
            }
            (pods, containers) = rest;
        }
    }

    /// Creates a container in a Pod that exists; the cpuset is what the plugin says.
    pub async fn create(&mut self, container: Container) -> Result<CreateContainerResponse, Broken> {
        match self.try_create(container).await? {
            Ok(response) => Ok(response),
            Err(refusal) => broken(format!("CreateContainer: {refusal:?}")),
        }
    }

    pub async fn try_create(
        &mut self,
        container: Container,
    ) -> Result<Result<CreateContainerResponse, Refusal>, Broken> {
        assert!(self.connection.subscribed(Event::CreateContainer));
        let id = container.id.clone();
        let pod = self.runtime.pods.get(&container.pod_sandbox_id).cloned();
        let request = CreateContainerRequest { pod, container: Some(container.clone()) };
        let response: CreateContainerResponse = match self.connection.call("CreateContainer", &request).await? {
            Ok(response) => response,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // The others' updates come first, then the container itself.
        self.runtime.apply_updates(Some(&id), &response.update)?;
        self.runtime.containers.insert(id.clone(), container);
        let linux = response.adjust.as_ref().and_then(|adjust| adjust.linux.as_ref());
        self.runtime.apply(&id, linux.and_then(|linux| linux.resources.as_ref()));
        Ok(Ok(response))
    }

    /// Changes a running container's resources, as an in-place resize does.
    pub async fn update(&mut self, id: &str, resources: LinuxResources) -> Result<UpdateContainerResponse, Broken> {
        assert!(self.connection.subscribed(Event::UpdateContainer));
        let container = self.runtime.containers[id].clone();
        let pod = self.runtime.pods.get(&container.pod_sandbox_id).cloned();
        let request =
            UpdateContainerRequest { pod, container: Some(container), linux_resources: Some(resources.clone()) };
        let response: UpdateContainerResponse = self.connection.expect("UpdateContainer", &request).await?;
        self.runtime.apply(id, Some(&resources));
        self.runtime.apply_updates(None, &response.update)?;
        Ok(response)
    }

    pub async fn stop(&mut self, id: &str) -> Result<StopContainerResponse, Broken> {
        assert!(self.connection.subscribed(Event::StopContainer));
        let container = self.runtime.containers.remove(id);
        let pod = container.as_ref().and_then(|container| self.runtime.pods.get(&container.pod_sandbox_id)).cloned();
        let response: StopContainerResponse =
            self.connection.expect("StopContainer", &StopContainerRequest { pod, container }).await?;
        self.runtime.apply_updates(None, &response.update)?;
        Ok(response)
    }

    /// Removes a container of which no stop was told.
    pub async fn remove(&mut self, id: &str) -> Result<(), Broken> {
        let container = self.runtime.containers.remove(id);
        let request = RemoveContainerRequest { pod: None, container: container.clone() };
        self.notify(Event::RemoveContainer, "RemoveContainer", &request, None, container).await
    }

    pub async fn remove_pod(&mut self, sandbox: &str) -> Result<(), Broken> {
        let pod = self.runtime.pods.remove(sandbox);
        self.runtime.containers.retain(|_, container| container.pod_sandbox_id != sandbox);
        let request = RemovePodSandboxRequest { pod: pod.clone() };
        self.notify(Event::RemovePodSandbox, "RemovePodSandbox", &request, pod, None).await
    }

    /// An event that carries no answer, in the way of the era; nothing happens if nobody subscribed to it.
    async fn notify(
        &mut self,
        event: Event,
        method: &str,
        request: &impl Message,
        pod: Option<PodSandbox>,
        container: Option<Container>,
    ) -> Result<(), Broken> {
        if !self.connection.subscribed(event) {
            return Ok(());
        }
        if self.runtime.era == Era::Dedicated {
            match self.connection.call::<Empty>(method, request).await? {
                Ok(_) => return Ok(()),
                Err(refusal) if refusal.code != 12 => return broken(format!("{method}: {refusal:?}")),
                Err(_) => {}
            }
        }
        let change = StateChangeEvent { event: event.into(), pod, container };
        self.connection.expect::<Empty>("StateChange", &change).await.map(|_| ())
    }
}

/// A Pod sandbox in the cgroup of its class: "", "burstable" or "besteffort".
pub fn pod(id: &str, class: &str) -> PodSandbox {
    let parent = if class.is_empty() { format!("/kubepods/pod{id}") } else { format!("/kubepods/{class}/pod{id}") };
    PodSandbox {
        id: id.to_owned(),
        name: format!("name-{id}"),
        uid: format!("uid-{id}"),
        namespace: "default".to_owned(),
        linux: Some(LinuxPodSandbox { cgroup_parent: parent, ..LinuxPodSandbox::default() }),
        ..PodSandbox::default()
    }
}

/// A container with a CPU limit in thousandths; 0 is no limit.
pub fn container(id: &str, pod: &str, millis: u64) -> Container {
    let cpu = LinuxCpu {
        shares: Some(OptionalUInt64 { value: (millis * 1024 / 1000).max(2) }),
        quota: (millis > 0).then(|| OptionalInt64 { value: i64::try_from(millis * 100).unwrap() }),
        period: (millis > 0).then_some(OptionalUInt64 { value: 100_000 }),
        ..LinuxCpu::default()
    };
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: 64 << 20 }), ..LinuxMemory::default() };
    Container {
        id: id.to_owned(),
        pod_sandbox_id: pod.to_owned(),
        name: "main".to_owned(),
        state: ContainerState::ContainerRunning.into(),
        linux: Some(LinuxContainer {
            resources: Some(LinuxResources { cpu: Some(cpu), memory: Some(memory), ..LinuxResources::default() }),
            ..LinuxContainer::default()
        }),
        ..Container::default()
    }
}
