//! A fake kubelet: not the kubelet, but a stand-in for its plugin manager that is as strict and as unforgiving.
//!
//! Does what `pkg/kubelet/pluginmanager` and the CSI plugin's handler in `pkg/volume/csi` do, at a faster pace: it looks
//! at a directory's sockets when it starts and then at what inotify tells of it; it asks each who it is, within a second
//! and with the socket's path as authority, as grpc-go sends it; it refuses a driver whose name it knows already, holds a
//! driver for registered once it was judged right, whatever its registration came to, and takes a driver away by its
//! *name* when a socket is gone or made anew. One thing after another for one path; for two paths at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use keelson_proto::{
    csi::v1::{NodeGetInfoRequest, node_client::NodeClient},
    pluginregistration::v1::{InfoRequest, PluginInfo, RegistrationStatus, registration_client::RegistrationClient},
};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint, Uri};

/// How often it compares what it found with what it has done; the kubelet's is a second.
const ROUND: Duration = Duration::from_millis(50);
/// The first wait after a failure; the kubelet's is half a second.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// The plugin manager of a kubelet.
pub(crate) struct FakeKubelet {
    directory: PathBuf,
    world: World,
    tasks: Vec<JoinHandle<()>>,
}

type World = Arc<Mutex<State>>;

#[derive(Default)]
struct State {
    /// The sockets that are there, with a number for each time that one was made.
    desired: BTreeMap<PathBuf, u64>,
    /// The sockets that are taken for registered, with the same number and the driver's name.
    actual: BTreeMap<PathBuf, (u64, String)>,
    /// The drivers that Pods could use.
    drivers: BTreeMap<String, PluginInfo>,
    /// Paths that something is being done for.
    busy: BTreeSet<PathBuf>,
    /// How often something failed for a path, and when it is tried again.
    failures: BTreeMap<PathBuf, (u32, Instant)>,
    /// What a registration fails with after the driver was judged right.
    fault: Option<String>,
    violations: Vec<String>,
    made: u64,
}

impl FakeKubelet {
    /// A kubelet that isn't started yet.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), world: World::default(), tasks: Vec::new() }
    }

    /// Starts as a kubelet does: its directory is made, the sockets in it are found, further ones are watched for.
    pub(crate) fn start(&mut self) {
        fs::create_dir_all(&self.directory).unwrap();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
        let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        inotify.add_watch(&self.directory, events).unwrap();
        for entry in fs::read_dir(&self.directory).unwrap() {
            self.world().appeared(&self.directory, &entry.unwrap().file_name());
        }
        let (world, directory) = (Arc::clone(&self.world), self.directory.clone());
        self.tasks.push(tokio::spawn(async move {
            loop {
                for event in inotify.read_events().unwrap_or_default() {
                    let Some(name) = event.name else { continue };
                    let mut state = world.lock().unwrap();
                    if event.mask.contains(AddWatchFlags::IN_DELETE) {
                        state.desired.remove(&directory.join(name));
                    } else {
                        state.appeared(&directory, &name);
                    }
                }
                reconcile(&world);
                sleep(ROUND).await;
            }
        }));
    }

    /// Dies: it knows nothing any more. The sockets are left.
    pub(crate) async fn kill(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        let violations = std::mem::take(&mut self.world().violations);
        // What runs for a path still has the old world.
        self.world = World::default();
        self.world().violations = violations;
    }

    /// Lets every registration fail after the driver was judged right, as by an API server that is away.
    pub(crate) fn fail_with(&self, fault: Option<&str>) {
        self.world().fault = fault.map(str::to_owned);
    }

    /// Knows a driver already, as by node-driver-registrar.
    pub(crate) fn know(&self, name: &str) {
        self.world().drivers.insert(name.to_owned(), PluginInfo::default());
    }

    pub(crate) fn forget(&self, name: &str) {
        self.world().drivers.remove(name);
    }

    /// A driver that it knows; `None` while it is still at something.
    pub(crate) fn driver(&self, name: &str) -> Option<PluginInfo> {
        let state = self.world();
        state.drivers.get(name).filter(|_| state.busy.is_empty()).cloned()
    }

    /// What a real kubelet would have logged as an error, or suffered from.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.world().violations.clone()
    }

    fn world(&self) -> MutexGuard<'_, State> {
        self.world.lock().unwrap()
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl State {
    /// plugin_watcher.go, handleCreateEvent.
    fn appeared(&mut self, directory: &Path, name: &OsStr) {
        let path = directory.join(name);
        if name.to_string_lossy().starts_with('.') {
            return;
        }
        if fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
            self.made += 1;
            self.desired.insert(path, self.made);
        }
    }

    /// csi_plugin.go, validateVersions: "Another driver with the same name is already registered".
    fn judge(&mut self, info: &PluginInfo) -> Result<(), String> {
        if info.r#type != "CSIPlugin" {
            return Err(format!("no handler registered for plugin type: {}", info.r#type));
        }
        let major = |version: &String| version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if !info.supported_versions.iter().filter_map(major).any(|major| major == 1) {
            return Err(format!("none of the versions specified {:?} are supported", info.supported_versions));
        }
        if self.drivers.contains_key(&info.name) {
            return Err("another driver with the same name is already registered".to_owned());
        }
        Ok(())
    }

    fn failed(&mut self, path: &Path) {
        let (failures, _) = self.failures.remove(path).unwrap_or((0, Instant::now()));
        let wait = FIRST_WAIT * (1 << failures.min(6));
        self.failures.insert(path.to_owned(), (failures + 1, Instant::now() + wait));
    }
}

/// reconciler.go, reconcile: what isn't right is begun, each path by itself.
fn reconcile(world: &World) {
    let state = &mut *world.lock().unwrap();
    let stale: Vec<PathBuf> = state
        .actual
        .iter()
        .filter(|(path, (number, _))| state.desired.get(*path) != Some(number))
        .map(|(path, _)| path.clone())
        .collect();
    for path in stale {
        if state.busy.insert(path.clone()) {
            let world = Arc::clone(world);
            tokio::spawn(async move {
                let mut state = world.lock().unwrap();
                if let Some((_, name)) = state.actual.remove(&path) {
                    state.drivers.remove(&name);
                }
                state.busy.remove(&path);
            });
        }
    }
    for (path, number) in &state.desired {
        let waits = state.failures.get(path).is_some_and(|(_, until)| *until > Instant::now());
        let right = state.actual.get(path).is_some_and(|(registered, _)| registered == number);
        if !waits && !right && state.busy.insert(path.clone()) {
            let (world, path, number) = (Arc::clone(world), path.clone(), *number);
            tokio::spawn(async move {
                let outcome = register(&world, &path, number).await;
                let mut state = world.lock().unwrap();
                match outcome {
                    Ok(()) => drop(state.failures.remove(&path)),
                    Err(violation) => {
                        state.failed(&path);
                        state.violations.extend(violation);
                    }
                }
                state.busy.remove(&path);
            });
        }
    }
}

/// operation_generator.go. The error carries what a well-behaved plugin never causes.
async fn register(world: &World, path: &Path, number: u64) -> Result<(), Option<String>> {
    let wrong = |what: String| Some(format!("{}: {what}", path.display()));
    let channel = dial(path).await.map_err(wrong)?;
    let mut client = RegistrationClient::new(channel);
    let info = timeout(Duration::from_secs(1), client.get_info(InfoRequest {})).await;
    let info = info.map_err(|_| wrong("GetInfo took a second".to_owned()))?;
    let info = info.map_err(|status| wrong(format!("GetInfo: {status}")))?.into_inner();
    let judged = world.lock().unwrap().judge(&info);
    if let Err(error) = judged {
        notify(&mut client, Err(error)).await.map_err(wrong)?;
        return Err(None);
    }
    // Before it is registered, so that a registration that fails is not tried again until the socket is made anew.
    let fault = {
        let mut state = world.lock().unwrap();
        state.actual.insert(path.to_owned(), (number, info.name.clone()));
        state.drivers.insert(info.name.clone(), info.clone());
        state.fault.clone()
    };
    let installed = match fault {
        Some(fault) => Err(fault),
        None => node_info(&info).await,
    };
    if installed.is_err() {
        world.lock().unwrap().drivers.remove(&info.name);
    }
    notify(&mut client, installed).await.map_err(wrong)
}

async fn notify(client: &mut RegistrationClient<Channel>, outcome: Result<(), String>) -> Result<(), String> {
    let status = RegistrationStatus { plugin_registered: outcome.is_ok(), error: outcome.err().unwrap_or_default() };
    let told = timeout(Duration::from_secs(5), client.notify_registration_status(status)).await;
    told.map_err(|_| "the plugin took 5 s to hear of its status".to_owned())?.map_err(|status| status.to_string())?;
    Ok(())
}

/// Connects as grpc-go's `Dial` of a bare path does, in kubelets that set no authority of their own.
async fn dial(path: &Path) -> Result<Channel, String> {
    let authority: String = path.to_str().unwrap().bytes().map(escape).collect();
    let origin: Uri = format!("http://{authority}").parse().map_err(|error| format!("{authority}: {error}"))?;
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().origin(origin);
    endpoint.connect().await.map_err(|error| format!("dial: {error}"))
}

/// clientconn.go, encodeAuthority.
fn escape(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

/// Calls the driver at the endpoint that it named, as `localhost`.
async fn node_info(info: &PluginInfo) -> Result<(), String> {
    if !Path::new(&info.endpoint).is_absolute() {
        return Err(format!("{:?} is no absolute path", info.endpoint));
    }
    let endpoint = Endpoint::from_shared(format!("unix://{}", info.endpoint)).unwrap();
    let channel = endpoint.connect().await.map_err(|error| format!("{}: {error}", info.endpoint))?;
    let answer = NodeClient::new(channel).node_get_info(NodeGetInfoRequest {}).await;
    let node = answer.map_err(|status| status.to_string())?.into_inner();
    if node.node_id.is_empty() { Err("the driver has no node id".to_owned()) } else { Ok(()) }
}
