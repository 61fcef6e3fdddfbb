//! The driver as a whole.

use std::{fs, time::Duration};

use keelson_host::PrivateSocket;
use keelson_proto::csi::v1::{
    controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{net::UnixListener, sync::watch, time::timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    StorageSettings,
    error::{Error, full_message},
    service::{Metrics, ObserveLayer, Service, State},
    store::{Attachments, Pools},
};

/// How long a shutdown waits for running operations. One that takes longer ends with the process, as if killed: the
/// retry finds what it left. Together with [`CONNECTION_GRACE`] shorter than the daemon's patience with a plugin.
const GRACE: Duration = Duration::from_secs(6);
/// How long a shutdown waits for clients to close their connections.
const CONNECTION_GRACE: Duration = Duration::from_secs(2);

/// The storage plugin of one node.
#[derive(Debug)]
pub struct Driver {
    service: Service,
    metrics: Metrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

impl Driver {
    /// Opens the pools and adopts the volumes in them.
    ///
    /// A pool that isn't there (its disk isn't mounted) is not an error: its calls answer UNAVAILABLE until it is.
    ///
    /// # Errors
    ///
    /// When the state directory can't be used.
    pub fn new(settings: StorageSettings, registry: &mut Registry) -> Result<Self, Error> {
        let attachments =
            Attachments::open(&settings.state_dir).map_err(|error| Error::State { reason: full_message(&error) })?;
        let available = Family::<PoolLabel, Gauge>::default();
        registry.register(
            "keelson_storage_pool_available",
            "Whether the pool was recognised when it was last used",
            available.clone(),
        );
        let pools = Pools::new(settings.pools.clone(), &settings.state_dir, |pool| {
            available.get_or_create(&PoolLabel { pool: pool.to_owned() }).clone()
        });
        for pool in pools.iter() {
            if let Err(error) = pool.check() {
                tracing::error!(pool = pool.settings.name, error = full_message(&error), "pool is unavailable");
            }
        }
        let metrics = Metrics::register(registry);
        Ok(Self { service: Service::new(State::new(settings, pools, attachments)), metrics })
    }

    /// Serves until `shutdown` fires, then lets the running operations end and removes the socket.
    ///
    /// `ready` carries `Ok` while the socket is served, and the reason while it is not.
    ///
    /// # Errors
    ///
    /// When the socket can't be bound or served. A sick pool is none: its calls say so.
    pub async fn run(self, ready: watch::Sender<Result<(), String>>, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { service, metrics } = self;
        let path = service.state().settings.socket.clone();
        let listen = |source| Error::Listen { path: path.clone(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(listen)?;
        }
        let (listener, _socket) = PrivateSocket::bind(&path).map_err(listen)?;
        let incoming = UnixListenerStream::new(UnixListener::from_std(listener).map_err(listen)?);
        let server = Server::builder()
            .layer(ObserveLayer::new(metrics))
            .add_service(IdentityServer::new(service.clone()))
            .add_service(ControllerServer::new(service.clone()))
            .add_service(NodeServer::new(service.clone()))
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        tracing::info!(socket = %path.display(), "serving CSI");
        // What it was before doesn't matter.
        let _ = ready.send_replace(Ok(()));
        let mut server = std::pin::pin!(server);
        let served = tokio::select! {
            served = &mut server => served,
            () = shutdown.cancelled() => {
                let _ = ready.send_replace(Err("shutting down".to_owned()));
                // A client that keeps its connection open must not keep the process.
                timeout(CONNECTION_GRACE, server).await.unwrap_or(Ok(()))
            }
        };
        let _ = ready.send_replace(Err("not serving".to_owned()));
        // What a client no longer waits for runs on, too.
        let tasks = &service.state().tasks;
        tasks.close();
        if timeout(GRACE, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "operations are still running; the next start finds what they leave");
        }
        served.map_err(|source| Error::Serve { path, source })
    }
}
