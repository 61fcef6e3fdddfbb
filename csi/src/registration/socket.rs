//! The registration socket with the server behind it.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use keelson_host::PrivateSocket;
use keelson_proto::pluginregistration::v1::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use tokio::{
    net::UnixListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

use super::Metrics;

/// What ends the name of every socket of ours, after the driver's name. Short: a name of 63 bytes, the longest that CSI
/// allows, has to fit into a socket's path with the kubelet's usual directory.
const SUFFIX: &str = "@keelson";

/// What the kubelet calls a CSI driver (kubelet/pkg/apis/pluginregistration/v1).
const TYPE: &str = "CSIPlugin";

/// Every kubelet that there is takes any 1.x, and judges nothing else by it (pkg/volume/csi/csi_plugin.go).
const VERSION: &str = "1.0.0";

/// How long a kubelet's open connection may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Where the registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The kubelet has not told how it ended.
    Waiting,
    Registered,
    /// It failed, at this time and for this reason.
    Refused {
        at: Instant,
        reason: String,
    },
}

/// A served socket. Dropping it removes it; [`RegistrationSocket::close`] ends the server as well.
#[derive(Debug)]
pub(super) struct RegistrationSocket {
    socket: PrivateSocket,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl RegistrationSocket {
    /// Serves on the socket of the driver `name`, in place of one that may be there.
    pub(super) fn open(directory: &Path, name: &str, endpoint: &Path, metrics: &Metrics) -> io::Result<Self> {
        // The kubelet passes over names that start with a dot, and takes what is renamed as new.
        let (listener, socket) = PrivateSocket::bind_through(&path(directory, name), &hidden(directory, name))?;
        let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
        let (sender, standing) = watch::channel(Standing::Waiting);
        let info = PluginInfo {
            r#type: TYPE.to_owned(),
            name: name.to_owned(),
            endpoint: endpoint.to_string_lossy().into_owned(),
            supported_versions: vec![VERSION.to_owned()],
        };
        let stop = CancellationToken::new();
        let server = Server::builder()
            .add_service(RegistrationServer::new(Answers { info, standing: sender, metrics: metrics.clone() }))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::warn!(%error, "the server of the registration socket ended with an error");
            }
        });
        Ok(Self { socket, standing, stop, server })
    }

    /// Whether the socket is still where it was made.
    pub(super) fn is_in_place(&self) -> bool {
        self.socket.is_in_place()
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Removes the socket, if it is still this one, and lets the calls that run finish.
    pub(super) async fn close(self) {
        let Self { socket, stop, server, .. } = self;
        drop(socket);
        stop.cancel();
        if timeout(STOP_PATIENCE, server).await.is_err() {
            tracing::debug!("the kubelet keeps its connection to the registration socket; leaving it");
        }
    }
}

/// What the kubelet is answered.
#[derive(Debug)]
struct Answers {
    info: PluginInfo,
    standing: watch::Sender<Standing>,
    metrics: Metrics,
}

#[tonic::async_trait]
impl Registration for Answers {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        tracing::debug!("the kubelet asks who the driver is");
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        self.metrics.count(plugin_registered);
        self.standing.send_replace(if plugin_registered {
            Standing::Registered
        } else {
            Standing::Refused { at: Instant::now(), reason: error }
        });
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Sample: `/var/lib/kubelet/plugins_registry/csi.keelson.dev@keelson`. A driver's name has no character that a file's
/// name can't have.
fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{SUFFIX}"))
}

fn hidden(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!(".{name}{SUFFIX}"))
}

/// The length of the longest path that the registration of the driver `name` makes, in bytes.
pub(crate) fn longest_path(directory: &Path, name: &str) -> usize {
    hidden(directory, name).as_os_str().len()
}

/// Sockets that a driver of ours made and that nobody serves any more, also those of earlier names.
pub(crate) fn dead_sockets(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry?;
        let ours = entry.file_name().to_string_lossy().ends_with(SUFFIX);
        if ours && entry.file_type()?.is_socket() && keelson_host::is_dead_socket(&entry.path())? {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes sockets of other drivers of ours that nobody serves any more: one that was killed, and whose name was then
/// changed in the config, would be dialled for ever.
pub(super) fn sweep(directory: &Path, name: &str) -> io::Result<()> {
    let own = path(directory, name);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let ours = entry.file_name().to_string_lossy().ends_with(SUFFIX) && entry.path() != own;
        if ours && entry.file_type()?.is_socket() && keelson_host::is_dead_socket(&entry.path())? {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) => {
                    tracing::info!(socket = %entry.path().display(), "removed the socket of a driver that is gone");
                }
                Err(_) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_fits_into_the_usual_directory() {
        let directory = Path::new("/var/lib/kubelet/plugins_registry");
        assert!(longest_path(directory, &"x".repeat(63)) <= keelson_host::LONGEST_SOCKET_PATH);
    }
}
