//! Keeps the driver registered.

use std::{future, io, path::PathBuf, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Metrics,
    backoff::Backoff,
    socket::{RegistrationSocket, Standing, sweep},
};

/// How often to look whether the socket and its directory are still there. It costs one lstat(2); a watch by inotify
/// would have to be made anew with the directory.
const LOOK: Duration = Duration::from_secs(1);

/// How long the kubelet may take to tell how a registration ended. Its call of `NodeGetInfo` alone may take two minutes.
/// After this it may have missed the socket.
const PATIENCE: Duration = Duration::from_secs(180);

/// Who registers, and where.
#[derive(Clone, Debug)]
pub(crate) struct Registrant {
    pub(crate) driver_name: String,
    /// The driver's own socket, where it serves already.
    pub(crate) endpoint: PathBuf,
    /// The kubelet's.
    pub(crate) directory: PathBuf,
    pub(crate) metrics: Metrics,
    /// The driver is not ready while the kubelet refuses it.
    pub(crate) ready: watch::Sender<Result<(), String>>,
}

/// Why a registration has to be made anew.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("its socket is gone")]
    SocketGone,
    #[error("the kubelet refused it")]
    Refused,
    #[error("the kubelet has not told its end in {} s", PATIENCE.as_secs())]
    Unanswered,
}

/// Keeps the driver registered until `shutdown`, and takes its socket away then.
pub(crate) async fn keep_registered(registrant: Registrant, shutdown: CancellationToken) {
    let mut socket = None;
    tokio::select! {
        () = registrant.keep(&mut socket) => {}
        () = shutdown.cancelled() => {}
    }
    registrant.metrics.registered.set(0);
    if let Some(socket) = socket {
        socket.close().await;
    }
}

impl Registrant {
    /// Registers, for ever.
    async fn keep(&self, socket: &mut Option<RegistrationSocket>) {
        let mut backoff = Backoff::default();
        if let Err(error) = sweep(&self.directory, &self.driver_name)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %self.directory.display(), %error, "can't look for sockets that nobody serves");
        }
        loop {
            let opened = self.open(&mut backoff).await;
            // The kubelet may still speak to the old one; it ends by itself.
            if let Some(old) = socket.take() {
                tokio::spawn(old.close());
            }
            let ended = self.watch_over(socket.insert(opened), &mut backoff).await;
            self.metrics.registered.set(0);
            tracing::info!(driver = self.driver_name, %ended, "registering with the kubelet again");
        }
    }

    /// Opens a socket, as soon as there is a directory for it.
    async fn open(&self, backoff: &mut Backoff) -> RegistrationSocket {
        let mut told = None;
        loop {
            let opened = RegistrationSocket::open(&self.directory, &self.driver_name, &self.endpoint, &self.metrics);
            let error = match opened {
                Ok(opened) => return opened,
                Err(error) => error,
            };
            if told != Some(error.kind()) {
                let directory = self.directory.display();
                if error.kind() == io::ErrorKind::NotFound {
                    tracing::info!(%directory, "there is no kubelet's directory to register in; waiting for it");
                } else {
                    tracing::warn!(%directory, %error, "can't register with the kubelet");
                    self.refuse(format!("can't register with the kubelet in {directory}: {error}"));
                }
                told = Some(error.kind());
            }
            sleep(if error.kind() == io::ErrorKind::NotFound { LOOK } else { backoff.next() }).await;
        }
    }

    /// Returns when the registration has to be made anew.
    async fn watch_over(&self, socket: &RegistrationSocket, backoff: &mut Backoff) -> Ended {
        let mut standing = socket.standing();
        let unanswered = Instant::now() + PATIENCE;
        // When a refused registration is tried again. A kubelet may refuse several times meanwhile.
        let mut again = None;
        loop {
            let deadline = match &*standing.borrow_and_update() {
                Standing::Waiting => Some(unanswered),
                Standing::Registered => {
                    self.accept();
                    backoff.reset();
                    again = None;
                    None
                }
                Standing::Refused { at, reason } => {
                    self.metrics.registered.set(0);
                    tracing::warn!(driver = self.driver_name, reason, "the kubelet refuses the driver");
                    self.refuse(format!("the kubelet refuses the driver: {reason}"));
                    Some(*again.get_or_insert_with(|| *at + backoff.next()))
                }
            };
            let expired = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                // Its sender lives as long as the server.
                _ = standing.changed() => {}
                () = gone(socket) => return Ended::SocketGone,
                () = expired => return if again.is_some() { Ended::Refused } else { Ended::Unanswered },
            }
        }
    }

    fn accept(&self) {
        self.metrics.registered.set(1);
        tracing::info!(driver = self.driver_name, "registered with the kubelet");
        // What it was before doesn't matter.
        let _ = self.ready.send_replace(Ok(()));
    }

    fn refuse(&self, reason: String) {
        let _ = self.ready.send_replace(Err(reason));
    }
}

/// Returns when the socket isn't where it was made any more.
async fn gone(socket: &RegistrationSocket) {
    while socket.is_in_place() {
        sleep(LOOK).await;
    }
}
