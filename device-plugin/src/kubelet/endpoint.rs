//! A socket of ours with the server behind it, under a name that one registration is made with.

use std::{io, path::Path, time::Duration};

use keelson_host::PrivateSocket;
use keelson_proto::deviceplugin::v1beta1::device_plugin_server::DevicePluginServer;
use tokio::{net::UnixListener, sync::watch, task::JoinHandle, time};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    config::ResourceName,
    service::{Offer, Service, Streams},
};

/// How long open calls may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Serves a resource until it is dropped, which removes the socket and lets the calls that run finish.
#[derive(Debug)]
pub(super) struct Endpoint {
    name: ResourceName,
    socket: PrivateSocket,
    streams: watch::Receiver<Streams>,
    /// Ends the streams, a part of `stop`.
    end_streams: CancellationToken,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Endpoint {
    /// Serves `offer` on a new socket at `path`.
    pub(super) fn open(offer: &Offer, path: &Path) -> io::Result<Self> {
        let (listener, socket) = PrivateSocket::bind(path)?;
        let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
        let stop = CancellationToken::new();
        let end_streams = stop.child_token();
        let (sender, streams) = watch::channel(Streams::default());
        let service = Service { offer: offer.clone(), streams: sender, stop: end_streams.clone() };
        let server = Server::builder()
            .add_service(DevicePluginServer::new(service))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let name = offer.name.clone();
        let server = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::warn!(resource = %name, %error, "the server of a socket ended with an error");
            }
        });
        Ok(Self { name: offer.name.clone(), socket, streams, end_streams, stop, server })
    }

    /// Where it listens.
    pub(super) fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Whether the socket is still where it was made.
    pub(super) fn is_in_place(&self) -> bool {
        self.socket.is_in_place()
    }

    /// The streams so far. Its sender is gone when the server is.
    pub(super) fn streams(&self) -> watch::Receiver<Streams> {
        self.streams.clone()
    }

    /// Ends the streams, and every later one at once; the other calls are answered as before.
    pub(super) async fn end_streams(&mut self) {
        self.end_streams.cancel();
        let ended = self.streams.wait_for(|streams| streams.open == 0);
        if time::timeout(STOP_PATIENCE, ended).await.is_err() {
            tracing::debug!(resource = %self.name, "the kubelet doesn't read its stream's end; going on");
        }
    }

    /// Ends the server, and waits for the calls that run.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        // The streams end by themselves now; a kubelet that doesn't close its connection is not waited for.
        match time::timeout(STOP_PATIENCE, &mut self.server).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(resource = %self.name, %error, "the server of a socket failed"),
            Err(_) => tracing::debug!(resource = %self.name, "the kubelet keeps its connection; leaving it"),
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
