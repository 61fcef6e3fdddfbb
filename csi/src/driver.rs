//! The driver as a whole.

use std::{fs, time::Duration};

use keelson_host::{PrivateSocket, error_chain};
use keelson_proto::csi::v1::{
    controller_server::ControllerServer, group_controller_server::GroupControllerServer,
    identity_server::IdentityServer, node_server::NodeServer, snapshot_metadata_server::SnapshotMetadataServer,
};
use prometheus_client::registry::Registry;
use tokio::{
    net::UnixListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    StorageSettings,
    error::Error,
    registration::{self, Registrant, keep_registered},
    service::{CallLayer, Metrics, Operations, PoolSpace, Service, State, thaw_leftovers},
    store::Attachments,
};

/// How long a shutdown waits for running operations. One that takes longer ends with the process, as if killed: the
/// retry finds what it left. Together with twice [`CONNECTION_GRACE`] shorter than the daemon's patience with a plugin.
const GRACE: Duration = Duration::from_secs(5);

/// How long a shutdown waits for clients to close their connections, and to take the answers to calls that don't end.
const CONNECTION_GRACE: Duration = Duration::from_secs(2);

/// How long the start waits for the pools. A scan that takes longer goes on beside the first calls.
const PATIENCE: Duration = Duration::from_secs(5);

/// The storage plugin of one node.
#[derive(Debug)]
pub struct Driver {
    service: Service,
    registration: registration::Metrics,
}

impl Driver {
    /// Prepares the driver; no pool is touched yet.
    ///
    /// # Errors
    ///
    /// When the state directory can't be used.
    pub fn new(settings: StorageSettings, registry: &mut Registry) -> Result<Self, Error> {
        let attachments =
            Attachments::open(&settings.state_dir).map_err(|error| Error::State { reason: error_chain(&error) })?;
        let attached = attachments.ids().map_err(|error| Error::State { reason: error_chain(&error) })?;
        let metrics = Metrics::register(registry);
        let registration = registration::Metrics::register(registry);
        let state = State::new(settings, attachments, metrics);
        // What is staged has gone on being written to while no driver ran.
        attached.iter().for_each(|id| state.pools.attached(id));
        registry.register_collector(Box::new(state.in_flight.clone()));
        let service = Service::new(state);
        registry.register_collector(Box::new(PoolSpace::new(&service)));
        Ok(Self { service, registration })
    }

    /// Its calls, without a socket and what is around every call.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn into_routes(self) -> tonic::service::Routes {
        tonic::service::Routes::new(IdentityServer::new(self.service.clone()))
            .add_service(ControllerServer::new(self.service.clone()))
            .add_service(GroupControllerServer::new(self.service.clone()))
            .add_service(SnapshotMetadataServer::new(self.service.clone()))
            .add_service(NodeServer::new(self.service))
    }

    /// What it is at, to be looked at while it runs.
    #[must_use]
    pub fn operations(&self) -> Operations {
        self.service.state().in_flight.operations()
    }

    /// Adopts the volumes in the pools and serves until `shutdown` fires; then lets the running operations end and
    /// removes the socket.
    ///
    /// `ready` carries `Ok` while the socket is served and no kubelet refuses the driver, else the reason.
    ///
    /// # Errors
    ///
    /// When the socket can't be bound or served. A pool that isn't there (its disk isn't mounted) is no error: its
    /// calls answer UNAVAILABLE until it is.
    pub async fn run(self, ready: watch::Sender<Result<(), String>>, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { service, registration } = self;
        let path = service.state().settings.socket.clone();
        let listen = |source| Error::Listen { path: path.clone(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(listen)?;
        }
        // Before any pool is touched: a driver that nobody can reach takes nothing into use.
        let (listener, _socket) = PrivateSocket::bind(&path).map_err(listen)?;
        tokio::select! {
            () = prepare(&service) => {}
            () = shutdown.cancelled() => {
                retire(&service);
                return Ok(());
            }
        }
        let incoming = UnixListenerStream::new(UnixListener::from_std(listener).map_err(listen)?);
        let server = Server::builder()
            .layer(CallLayer::new(service.state().metrics.clone()))
            .add_service(IdentityServer::new(service.clone()))
            .add_service(ControllerServer::new(service.clone()))
            .add_service(NodeServer::new(service.clone()))
            .add_optional_service(service.state().copies().then(|| GroupControllerServer::new(service.clone())))
            .add_optional_service(service.state().keeps_images().then(|| SnapshotMetadataServer::new(service.clone())))
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        tracing::info!(socket = %path.display(), "serving CSI");
        // What it was before doesn't matter.
        let _ = ready.send_replace(Ok(()));
        // What a kubelet calls at once is served.
        let registered = register(&service, registration, &ready, shutdown.child_token());
        let mut server = std::pin::pin!(server);
        let mut served = tokio::select! {
            served = &mut server => Some(served),
            () = shutdown.cancelled() => {
                let _ = ready.send_replace(Err("shutting down".to_owned()));
                // A client that keeps its connection open must not keep the process.
                timeout(CONNECTION_GRACE, &mut server).await.ok()
            }
        };
        registered.end().await;
        let _ = ready.send_replace(Err("not serving".to_owned()));
        // What a client no longer waits for runs on, too.
        let tasks = &service.state().tasks;
        tasks.close();
        if timeout(GRACE, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "operations are still running; the next start finds what they leave");
            service.state().ending.cancel();
            if served.is_none() {
                served = timeout(CONNECTION_GRACE, server).await.ok();
            }
        }
        retire(&service);
        served.unwrap_or(Ok(())).map_err(|source| Error::Serve { path, source })
    }
}

/// Lets other processes use the pools that nothing is at work on. A thread that waits for a disk for ever keeps all files
/// of this process open, and so would keep the others.
fn retire(service: &Service) {
    for pool in service.state().pools.iter().filter(|pool| !pool.retire()) {
        tracing::warn!(pool = pool.settings.name, "the pool is still worked on; it stays locked until that ends");
    }
}

/// The task that keeps the driver registered.
struct Registered {
    task: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

/// Registers the driver with the kubelet, if the config wants that.
fn register(
    service: &Service,
    metrics: registration::Metrics,
    ready: &watch::Sender<Result<(), String>>,
    stop: CancellationToken,
) -> Registered {
    let settings = &service.state().settings;
    let task = settings.registration.clone().map(|directory| {
        let registrant = Registrant {
            driver_name: settings.driver_name.clone(),
            endpoint: settings.socket.clone(),
            directory,
            metrics,
            ready: ready.clone(),
        };
        tokio::spawn(keep_registered(registrant, stop.clone()))
    });
    Registered { task, stop }
}

impl Registered {
    /// Takes the registration away.
    async fn end(self) {
        self.stop.cancel();
        if let Some(task) = self.task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "what kept the driver registered ended before");
        }
    }
}

/// What comes before the first call: nothing is left frozen, and what is in the pools is known.
async fn prepare(service: &Service) {
    let thawing = service.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || thaw_leftovers(thawing.state())).await {
        tracing::error!(%error, "what thaws at the start ended before");
    }
    adopt(service).await;
}

/// Recognises and scans all pools at once. One whose disk doesn't answer holds up neither the others nor the start.
async fn adopt(service: &Service) {
    let mut scans = JoinSet::new();
    for index in 0..service.state().pools.iter().count() {
        let service = service.clone();
        scans.spawn_blocking(move || {
            let Some(pool) = service.state().pools.iter().nth(index) else { return };
            let checked = pool.enter().and_then(|turn| pool.check().map(|()| turn));
            service.state().metrics.observe_pools(&service.state().pools);
            // Held while the space is measured, which waits for the disk as well.
            let _turn = match checked {
                Ok(turn) => turn,
                Err(error) => {
                    tracing::error!(pool = pool.settings.name, error = error_chain(&error), "pool is unavailable");
                    return;
                }
            };
            // Nothing is known yet of what anything takes. The first CreateVolume would have to look.
            if let Err(error) = pool.promises() {
                tracing::warn!(
                    pool = pool.settings.name,
                    error = error_chain(&error),
                    "the pool's space can't be measured"
                );
            }
        });
    }
    if timeout(PATIENCE, async { while scans.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(pools = scans.len(), "pools don't answer; serving the others");
        scans.detach_all();
    }
}
