//! The config file's top level: what all four plugins share, and their sections unread.

use std::{
    net::SocketAddr,
    path::{Component, Path, PathBuf},
};

use keelson_host::{Problem, Problems};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::plugins::PluginKind;

/// The only version there is.
pub const API_VERSION: &str = "keelson.dev/v1alpha1";
/// The only kind there is.
pub const KIND: &str = "NodeConfig";

/// Keelson's config of one node.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "NodeConfig")]
pub(super) struct Document {
    /// Always `keelson.dev/v1alpha1`.
    #[schemars(extend("const" = API_VERSION))]
    pub(super) api_version: String,
    /// Always `NodeConfig`.
    #[schemars(extend("const" = KIND))]
    pub(super) kind: String,
    /// The Kubernetes node's name. Default: `$NODE_NAME`, else the host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node_name: Option<String>,
    /// Where state that survives a reboot lives, an absolute path.
    #[serde(default = "default_state_dir")]
    pub(super) state_dir: PathBuf,
    /// Where health and metrics are served.
    #[serde(default)]
    pub(super) observability: Observability,
    /// Wires Pods to a bridge. Without this key the plugin doesn't run.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "keelson_cni::NetworkSection")]
    network: Option<Value>,
    /// Serves volumes from pools on this node. Without this key the plugin doesn't run.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "keelson_csi::StorageSection")]
    storage: Option<Value>,
    /// Offers this node's devices to the kubelet. Without this key the plugin doesn't run.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "keelson_device_plugin::DevicesSection")]
    devices: Option<Value>,
    /// Gives containers CPUs and memory next to their devices. Without this key the plugin doesn't run.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "keelson_nri::PinningSection")]
    pinning: Option<Value>,
}

/// Where health and metrics are served.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Observability {
    /// The supervisor's IP address and port. A plugin process uses the port +1 (network), +2 (storage), +3 (devices),
    /// +4 (pinning); port 0 takes any free one for each.
    pub(super) address: String,
}

impl Default for Observability {
    fn default() -> Self {
        Self { address: "127.0.0.1:9807".to_owned() }
    }
}

/// A section that is there, also an empty one, which is `null` and would pass for a missing one.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/keelson")
}

/// Checks that `value` is a config of ours at all, before anything else about it is judged.
pub(super) fn check_version(value: &Value) -> Result<(), Problems> {
    if !value.is_object() {
        return Err(Problem::new("", "", "is not a mapping", format!("begin with `apiVersion: {API_VERSION}`")).into());
    }
    let mut problems = Problems::default();
    for (key, right) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match value.get(key) {
            Some(Value::String(found)) if found == right => {}
            Some(found) => {
                let shown = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
                problems.push(Problem::new(key, shown, "is not known to this release", format!("write {right:?}")));
            }
            None => problems.push(Problem::new(key, "", "is missing", format!("write {right:?}"))),
        }
    }
    problems.into_result(())
}

impl Document {
    /// The sections that are there, in the plugins' order.
    pub(super) fn sections(&self) -> impl Iterator<Item = PluginKind> {
        PluginKind::ALL.into_iter().filter(|kind| self.section(*kind).is_some())
    }

    pub(super) fn section(&self, kind: PluginKind) -> Option<&Value> {
        match kind {
            PluginKind::Network => self.network.as_ref(),
            PluginKind::Storage => self.storage.as_ref(),
            PluginKind::Devices => self.devices.as_ref(),
            PluginKind::Pinning => self.pinning.as_ref(),
        }
    }

    pub(super) fn set_section(&mut self, kind: PluginKind, value: Value) {
        let section = match kind {
            PluginKind::Network => &mut self.network,
            PluginKind::Storage => &mut self.storage,
            PluginKind::Devices => &mut self.devices,
            PluginKind::Pinning => &mut self.pinning,
        };
        *section = Some(value);
    }
}

/// A node name is a DNS subdomain (RFC 1123), as the API server checks it.
pub(super) fn check_node_name(path: &str, name: &str) -> Result<(), Problem> {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(());
    }
    let remedy = "write lower-case letters, digits, '-' and '.', at most 253, as in `kubectl get nodes`";
    Err(Problem::new(path, name, "is not a node name", remedy))
}

/// The state directory is absolute and says where it is: no `..`, not the root itself.
pub(super) fn check_state_dir(path: &Path) -> Result<(), Problem> {
    let problem = |wrong: &str| Problem::new("stateDir", path.display(), wrong, "write a path like /var/lib/keelson");
    if !path.is_absolute() {
        return Err(problem("is not absolute"));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(problem("has a `..` in it"));
    }
    if path.components().nth(1).is_none() {
        return Err(problem("is the root directory"));
    }
    if path.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Err(problem("has a control character in it"));
    }
    Ok(())
}

impl Observability {
    /// The address, with room above its port for the plugins' own.
    pub(super) fn parse(&self) -> Result<SocketAddr, Problem> {
        let problem = |wrong: &str, remedy: &str| Problem::new("observability.address", &self.address, wrong, remedy);
        let address: SocketAddr = self
            .address
            .parse()
            .map_err(|_| problem("is not an IP address with a port", "write it like 127.0.0.1:9807 or [::1]:9807"))?;
        if PluginKind::ALL.iter().any(|kind| address.port().checked_add(kind.port_offset()).is_none()) {
            return Err(problem("leaves no room for the plugins' ports above it", "choose a port up to 65531"));
        }
        Ok(address)
    }
}

/// The JSON schema of a config, draft 2020-12, generated from the types that read it.
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Document)
}
