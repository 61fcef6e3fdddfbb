//! One registration: an endpoint of its own, served from before the kubelet hears of it until another is registered.

use std::{io, path::Path, path::PathBuf, time::Duration};

use keelson_proto::deviceplugin::v1beta1::{RegisterRequest, registration_client::RegistrationClient};
use tokio::{sync::watch, time};
use tonic::{Status, transport};

use super::{
    endpoint::Endpoint,
    socket::{SocketIdentity, fresh_path, kubelet_path, kubelet_socket},
};
use crate::{
    conditions::Conditions,
    metrics::ResultLabels,
    service::{Offer, Streams, plugin_options},
};

/// The version of the API (deviceplugin/v1beta1/constants.go).
const API_VERSION: &str = "v1beta1";

/// Within `Register` the kubelet dials back, for which it takes up to 10 s.
const REGISTER_PATIENCE: Duration = Duration::from_secs(15);

/// The kubelet calls `ListAndWatch` right after it answered `Register`, once; after this it is said not to.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);

/// Why a registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    #[error("the kubelet closed its stream")]
    StreamClosed,
    #[error("the kubelet's socket is a new one")]
    KubeletRestarted,
    #[error("the plugin's own socket was removed")]
    SocketRemoved,
    #[error("the plugin's own server ended")]
    NotServed,
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
    Connect { path: PathBuf, source: transport::Error },
    #[error("the kubelet refused the registration: {:?}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    #[error("the kubelet did not answer the registration within {} s", REGISTER_PATIENCE.as_secs())]
    NoAnswer,
}

impl SessionError {
    /// Whether there is no kubelet to register with; one that was killed leaves its socket.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::Connect { .. })
    }
}

/// Serves `offer` on a fresh socket, registers it, and returns when that has to be done again.
///
/// What `told` was is served until the registration is made, and the new endpoint is in its place then: the kubelet may
/// call the one that it knows at any time. Only the streams end before this returns. The resource is away for a moment
/// then, but kubelets before kubernetes/kubernetes#135437 know a resource by its name only, so that the end of the old
/// stream would take the devices of the new one with it.
pub(super) async fn session(
    offer: &Offer,
    directory: &Path,
    told: &mut Option<Endpoint>,
    changes: watch::Receiver<u64>,
    conditions: &Conditions,
) -> Result<Ended, SessionError> {
    let kubelet = kubelet_path(directory);
    let found = kubelet_socket(directory).map_err(|source| SessionError::Look { path: kubelet.clone(), source })?;
    let Some(identity) = found else { return Err(SessionError::Absent(kubelet)) };
    let path = fresh_path(directory);
    let endpoint = Endpoint::open(offer, &path).map_err(|source| SessionError::Listen { path, source })?;
    register(offer, &kubelet, endpoint.path()).await?;
    let endpoint = told.insert(endpoint);
    let ended = watch_over(offer, endpoint, directory, identity, changes, conditions).await;
    endpoint.end_streams().await;
    Ok(ended)
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
        let endpoint = transport::Endpoint::from_shared(format!("unix://{}", kubelet.display())).map_err(failed)?;
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
///
/// The resource is ready while the kubelet watches its list.
async fn watch_over(
    offer: &Offer,
    endpoint: &Endpoint,
    directory: &Path,
    kubelet: SocketIdentity,
    mut changes: watch::Receiver<u64>,
    conditions: &Conditions,
) -> Ended {
    let subject = offer.name.to_string();
    let mut streams = endpoint.streams();
    let mut ready = false;
    let patience = time::sleep(STREAM_PATIENCE);
    let mut patience = std::pin::pin!(patience);
    loop {
        let Streams { opened, open } = *streams.borrow_and_update();
        if opened > 0 {
            if open == 0 {
                return Ended::StreamClosed;
            }
            if !ready {
                tracing::info!(resource = %subject, "registered with the kubelet");
                conditions.clear(&subject);
                ready = true;
            }
        }
        if !endpoint.is_in_place() {
            return Ended::SocketRemoved;
        }
        // While the kubelet is away its socket may be too; what can't be looked at is no sign either.
        if matches!(kubelet_socket(directory), Ok(Some(found)) if found != kubelet) {
            return Ended::KubeletRestarted;
        }
        tokio::select! {
            changed = streams.changed() => if changed.is_err() { return Ended::NotServed },
            // The plugin's watch outlives this.
            _ = changes.changed() => {}
            // No sign that it will not: it was told the endpoint, and may yet call it.
            () = &mut patience, if opened == 0 && !patience.is_elapsed() => {
                conditions.set(subject.as_str(), "registered, but the kubelet opened no stream");
            }
        }
    }
}
