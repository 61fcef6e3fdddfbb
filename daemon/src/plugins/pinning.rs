//! `pinning`: the NRI plugin, which learns from the picture of the host where a device is.

use std::sync::Arc;

use keelson_host::{DeviceKind, HostRoot, Node, Problems, device_numa_node};
use keelson_nri::{DeviceLocality, PinningSection, PinningSettings};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{Plugin, PluginError, PluginKind, Ready};

pub(super) struct Pinning(keelson_nri::Plugin);

impl Plugin for Pinning {
    const KIND: PluginKind = PluginKind::Pinning;
    type Section = PinningSection;
    type Settings = PinningSettings;

    fn validate(section: &PinningSection, node: &Node) -> Result<PinningSettings, Problems> {
        section.validate(node)
    }

    fn new(settings: PinningSettings, node: &Node, registry: &mut Registry) -> Result<Self, PluginError> {
        let locality = Arc::new(HostLocality(node.root.clone()));
        Ok(Self(keelson_nri::Plugin::new(settings, locality, registry)?))
    }

    async fn run(self, ready: Ready, shutdown: CancellationToken) -> Result<(), PluginError> {
        Ok(self.0.run(ready, shutdown).await?)
    }

    fn uninstall(_: &PinningSettings) -> Result<Vec<String>, PluginError> {
        Ok(vec!["running containers keep their CPUs until they end; nothing else is left".to_owned()])
    }
}

/// Reads a device's NUMA node from sysfs.
struct HostLocality(HostRoot);

impl DeviceLocality for HostLocality {
    fn numa_node(&self, kind: DeviceKind, major: u32, minor: u32) -> Option<u32> {
        device_numa_node(&self.0, kind, major, minor).unwrap_or_else(|error| {
            // The container starts all the same, only not next to its device.
            tracing::warn!(error = keelson_host::error_chain(&error), %kind, major, minor, "device's NUMA node is unknown");
            None
        })
    }
}
