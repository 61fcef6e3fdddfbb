//! The driver as a whole.

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{StorageSettings, error::Error};

/// The storage plugin of one node.
#[derive(Debug)]
pub struct Driver {
    settings: StorageSettings,
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
        let _ = registry;
        Ok(Self { settings })
    }

    /// Serves until `shutdown` fires, then lets the running operations end and removes the socket.
    ///
    /// # Errors
    ///
    /// When the socket can't be bound or served.
    pub async fn run(
        self,
        ready: watch::Sender<Result<(), String>>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let _ = (&self.settings, ready);
        shutdown.cancelled().await;
        Ok(())
    }
}
