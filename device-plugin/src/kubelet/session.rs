//! One registration: a socket of its own, served from before the kubelet hears of it until one of the two is gone.

use std::{io, path::Path, path::PathBuf, time::Duration};

use keelson_host::PrivateSocket;
use keelson_proto::deviceplugin::v1beta1::{
    RegisterRequest, device_plugin_server::DevicePluginServer, registration_client::RegistrationClient,
};
use tokio::{net::UnixListener, sync::watch, time};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Endpoint, Server},
};

use super::socket::{SocketIdentity, fresh_path, kubelet_path, kubelet_socket};
use crate::{
    metrics::ResultLabels,
    service::{Offer, Service, Streams, plugin_options},
};

/// The version of the API (deviceplugin/v1beta1/constants.go).
const API_VERSION: &str = "v1beta1";

/// Within `Register` the kubelet dials back, for which it takes up to 10 s.
const REGISTER_PATIENCE: Duration = Duration::from_secs(15);

/// The kubelet calls `ListAndWatch` right after it answered `Register`, once.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);

/// How long open calls may take to end when the registration does.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Why a registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    #[error("the plugin stops")]
    Stopped,
    #[error("the kubelet closed its stream")]
    StreamClosed,
    #[error("the kubelet registered the resource but opened no stream")]
    NoStream,
    #[error("the kubelet's socket is a new one")]
    KubeletRestarted,
    #[error("the plugin's own socket was removed")]
    SocketRemoved,
}

/// Why there was no registration.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("waiting for the kubelet at {}", .0.display())]
    Absent(PathBuf),
    #[error("failed to look at {}", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("failed to listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("failed to connect to the kubelet at {}", path.display())]
    Connect { path: PathBuf, source: tonic::transport::Error },
    #[error("the kubelet refused the registration: {:?}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    #[error("the kubelet did not answer the registration within {} s", REGISTER_PATIENCE.as_secs())]
    NoAnswer,
    #[error("the server on {} ended", path.display())]
    Serve { path: PathBuf, source: tonic::transport::Error },
}

/// Serves `offer` on a fresh socket and registers it. `registered` is called once the kubelet watches the list.
///
/// The socket is gone when this returns. One registration ends before the next begins, though the resource is away for
/// a moment then: kubelets before kubernetes/kubernetes#135437 know a resource by its name only, so that the end of the
/// old stream would take the devices of the new one with it.
pub(super) async fn session(
    offer: &Offer,
    directory: &Path,
    changes: watch::Receiver<u64>,
    shutdown: &CancellationToken,
    registered: impl FnOnce(),
) -> Result<Ended, SessionError> {
    let kubelet = kubelet_path(directory);
    let found = kubelet_socket(directory).map_err(|source| SessionError::Look { path: kubelet.clone(), source })?;
    let Some(identity) = found else { return Err(SessionError::Absent(kubelet)) };
    let path = fresh_path(directory);
    let failed = |source| SessionError::Listen { path: path.clone(), source };
    let (listener, socket) = PrivateSocket::bind(&path).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;

    let stop = shutdown.child_token();
    let (streams, open_streams) = watch::channel(Streams::default());
    let service = Service { offer: offer.clone(), streams, stop: stop.clone() };
    let server = Server::builder()
        .add_service(DevicePluginServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled());
    let mut server = std::pin::pin!(server);

    let life = async {
        register(offer, &kubelet, &path).await?;
        Ok(watch_over(&socket, directory, identity, open_streams, changes, registered).await)
    };
    let outcome = tokio::select! {
        outcome = life => outcome,
        () = shutdown.cancelled() => Ok(Ended::Stopped),
        served = &mut server => {
            return match served {
                Ok(()) => Ok(Ended::Stopped),
                Err(source) => Err(SessionError::Serve { path, source }),
            };
        }
    };
    stop.cancel();
    // The streams end by themselves now; a kubelet that doesn't close its connection is not waited for.
    match time::timeout(STOP_PATIENCE, server).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(resource = %offer.name, %error, "the server ended with an error"),
        Err(_) => tracing::debug!(resource = %offer.name, "the kubelet keeps its connection; leaving it"),
    }
    outcome
}

async fn register(offer: &Offer, kubelet: &Path, socket: &Path) -> Result<(), SessionError> {
    let request = RegisterRequest {
        version: API_VERSION.to_owned(),
        // The kubelet wants the name within its directory. It is of our making, hence UTF-8.
        endpoint: socket.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        resource_name: offer.name.to_string(),
        options: Some(plugin_options()),
    };
    let call = async {
        let failed = |source| SessionError::Connect { path: kubelet.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("unix://{}", kubelet.display())).map_err(failed)?;
        let channel = endpoint.connect().await.map_err(failed)?;
        RegistrationClient::new(channel)
            .register(request)
            .await
            .map_err(|status| SessionError::Refused(Box::new(status)))?;
        Ok(())
    };
    let outcome = time::timeout(REGISTER_PATIENCE, call).await.unwrap_or(Err(SessionError::NoAnswer));
    offer.metrics.registrations.get_or_create(&ResultLabels::of(&offer.name, &outcome)).inc();
    outcome
}

/// Returns when the registration is worth nothing any more. Any of three signs is enough: the kubelet's stream ends,
/// its socket is another one, or ours is gone, which a starting kubelet removes.
async fn watch_over(
    socket: &PrivateSocket,
    directory: &Path,
    kubelet: SocketIdentity,
    mut streams: watch::Receiver<Streams>,
    mut changes: watch::Receiver<u64>,
    registered: impl FnOnce(),
) -> Ended {
    let mut registered = Some(registered);
    let deadline = time::sleep(STREAM_PATIENCE);
    let mut deadline = std::pin::pin!(deadline);
    loop {
        let Streams { opened, open } = *streams.borrow_and_update();
        if opened > 0 {
            if open == 0 {
                return Ended::StreamClosed;
            }
            if let Some(registered) = registered.take() {
                registered();
            }
        }
        if !socket.is_in_place() {
            return Ended::SocketRemoved;
        }
        // While the kubelet is away its socket may be too; what can't be looked at is no sign either.
        if matches!(kubelet_socket(directory), Ok(Some(found)) if found != kubelet) {
            return Ended::KubeletRestarted;
        }
        tokio::select! {
            // Neither sender is gone before this: the service holds one, the plugin's watch the other.
            _ = streams.changed() => {}
            _ = changes.changed() => {}
            () = &mut deadline, if opened == 0 => return Ended::NoStream,
        }
    }
}
