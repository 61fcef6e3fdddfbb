//! `storage`: the CSI driver.

use keelson_csi::{Driver, StorageSection, StorageSettings};
use keelson_host::{Node, Problems};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Plugin, PluginError, PluginKind, Ready};
use crate::observability::Operations;

pub(super) struct Storage(Driver);

impl Plugin for Storage {
    const KIND: PluginKind = PluginKind::Storage;
    type Section = StorageSection;
    type Settings = StorageSettings;

    fn validate(section: &StorageSection, node: &Node) -> Result<StorageSettings, Problems> {
        section.validate(node)
    }

    fn new(settings: StorageSettings, _: &Node, registry: &mut Registry) -> Result<Self, PluginError> {
        Ok(Self(Driver::new(settings, registry)?))
    }

    fn operations(&self) -> Option<Operations> {
        let operations = self.0.operations();
        Some(Box::new(move || json!({"operations": operations.list()})))
    }

    async fn run(self, ready: Ready, shutdown: CancellationToken) -> Result<(), PluginError> {
        Ok(self.0.run(ready, shutdown).await?)
    }

    fn uninstall(_: &StorageSettings) -> Result<Vec<String>, PluginError> {
        Ok(vec!["volumes and pools are left in place: they are their users'".to_owned()])
    }
}
