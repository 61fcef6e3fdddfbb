//! `devices`: the device plugin.

use keelson_device_plugin::{DevicesSection, DevicesSettings};
use keelson_host::{Node, Problems};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{Plugin, PluginError, PluginKind, Ready};

pub(super) struct Devices(keelson_device_plugin::Plugin);

impl Plugin for Devices {
    const KIND: PluginKind = PluginKind::Devices;
    type Section = DevicesSection;
    type Settings = DevicesSettings;

    fn validate(section: &DevicesSection, node: &Node) -> Result<DevicesSettings, Problems> {
        section.validate(node)
    }

    fn new(settings: DevicesSettings, _: &Node, registry: &mut Registry) -> Result<Self, PluginError> {
        Ok(Self(keelson_device_plugin::Plugin::new(settings, registry)?))
    }

    async fn run(self, ready: Ready, shutdown: CancellationToken) -> Result<(), PluginError> {
        Ok(self.0.run(ready, shutdown).await?)
    }

    fn uninstall(settings: &DevicesSettings) -> Result<Vec<String>, PluginError> {
        keelson_device_plugin::uninstall(settings)?;
        Ok(vec!["removed the CDI files and the simulated devices".to_owned()])
    }
}
