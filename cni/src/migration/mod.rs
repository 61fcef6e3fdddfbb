//! Moving a node from the reference's bridge and host-local to this plugin, and back, while its Pods run.
//!
//! Neither direction changes a link, an address or a route: both only tell the other side's store what there is. So both
//! may be killed and run again at any time.

mod cache;
mod export;
mod import;
#[cfg(test)]
mod tests;

use std::{ffi::OsStr, net::IpAddr, path::PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

pub use export::export_host_local;
pub use import::import_host_local;

use crate::{
    config::{
        invocation::{AttachmentKey, CniArgs, Pod},
        names::identifier_fault,
        network::{Attachment, NetworkConfig, OWN_TYPE},
        persona::{Executable, Persona},
    },
    error::Failure,
    store::{
        Store,
        host_local::{self, Reservations},
    },
};

/// What is migrated, and between which places.
#[derive(Clone, Debug)]
pub struct Migration {
    /// The network's config with this plugin in it: a conflist, or the config of one plugin.
    pub config: Vec<u8>,
    /// host-local's `ipam.dataDir`, as this process sees it.
    pub reservations: PathBuf,
    /// Where the container runtime's library keeps the results of ADD, as this process sees it.
    pub results: PathBuf,
    /// The network's name on host-local's side; `None` if it's the same.
    pub other_name: Option<String>,
    /// Whether to report only, and change nothing.
    pub dry_run: bool,
    /// Whether an export replaces reservations that differ from the records, and removes those without a record.
    pub replace: bool,
}

/// Why a migration could not be begun, or was broken off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MigrationError(String);

impl<E: Into<Failure>> From<E> for MigrationError {
    fn from(error: E) -> Self {
        Self(error.into().one_line())
    }
}

/// What a migration did, or in a dry run would do.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationReport {
    /// The network's name.
    pub network: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// One for each attachment, and one for each file that names none.
    pub entries: Vec<MigrationEntry>,
}

impl MigrationReport {
    /// Whether something stays to be done by hand.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.entries.iter().all(|entry| entry.outcome != MigrationOutcome::Skipped)
    }
}

/// One attachment, or one file that names none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationEntry {
    /// What became of it.
    pub outcome: MigrationOutcome,
    /// The container's (the Pod sandbox's) id; empty if nothing names one.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// `namespace/name`, where the runtime told the Pod.
    pub pod: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Why it was skipped, or what to know about it; empty if there is nothing to say.
    pub detail: String,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum MigrationOutcome {
    /// Written to the other side's store.
    Migrated,
    /// The other side had it already.
    AlreadyThere,
    /// Removed from the other side: it has no record (an export that replaces).
    Removed,
    /// Left as it is, for the reason in `detail`.
    Skipped,
}

impl MigrationEntry {
    fn new(outcome: MigrationOutcome, addresses: Vec<IpAddr>, detail: impl Into<String>) -> Self {
        let (container_id, ifname, pod) = (String::new(), String::new(), String::new());
        Self { outcome, container_id, ifname, pod, addresses, detail: detail.into() }
    }

    fn of(mut self, key: &AttachmentKey) -> Self {
        self.container_id.clone_from(&key.container_id);
        self.ifname.clone_from(&key.ifname);
        self
    }

    fn of_pod(mut self, pod: &Pod) -> Self {
        if !pod.name.is_empty() {
            self.pod = format!("{}/{}", pod.namespace, pod.name);
        }
        self
    }
}

impl Migration {
    /// The migration of the network that `config` is of, between the usual places of this host.
    #[must_use]
    pub fn new(config: Vec<u8>) -> Self {
        Self {
            config,
            reservations: PathBuf::from(Persona::HostLocal.default_data_dir()),
            results: PathBuf::from("/var/lib/cni/results"),
            other_name: None,
            dry_run: false,
            replace: false,
        }
    }

    fn sides(&self) -> Result<Sides, MigrationError> {
        let (text, executable) = own_config(&self.config).map_err(MigrationError)?;
        let config = NetworkConfig::parse(&text, &executable)?;
        if let Some(plugin) = &config.ipam_plugin {
            let remedy = format!("give the config that has {OWN_TYPE:?} in its place");
            return Err(MigrationError(format!("the network's addresses come from the plugin {plugin:?}: {remedy}")));
        }
        let attachment = config.attachment(&CniArgs::default())?;
        let store = Store::new(&config.data_dir, &config.name)?;
        let other_name = self.other_name.clone().unwrap_or_else(|| config.name.clone());
        if let Some(wrong) = identifier_fault(&other_name) {
            return Err(MigrationError(format!("the network's name {other_name:?} {wrong}")));
        }
        let directory = self.reservations.join(&other_name);
        Ok(Sides { config, attachment, store, other_name, directory })
    }
}

/// Both sides of a migration.
struct Sides {
    config: NetworkConfig,
    attachment: Attachment,
    store: Store,
    other_name: String,
    /// The network's directory on host-local's side.
    directory: PathBuf,
}

impl Sides {
    /// host-local's reservations, locked: it gives and takes nothing until the migration has ended.
    fn reservations(&self) -> Result<Option<Reservations>, MigrationError> {
        Ok(host_local::open(&self.directory)?)
    }
}

/// The config of this plugin in `text`, as libcni hands it over, and the name that it's called by.
fn own_config(text: &[u8]) -> Result<(Vec<u8>, Executable), String> {
    let document: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| format!("the network config is no JSON object: {error}"))?;
    let mut plugin = match document.get("plugins") {
        None => document.clone(),
        Some(plugins) => {
            let plugins = plugins.as_array().map(Vec::as_slice).unwrap_or_default();
            let is_own = |plugin: &&Value| plugin["type"] == OWN_TYPE;
            let Some(Value::Object(plugin)) = plugins.iter().find(is_own).or(plugins.first()) else {
                return Err("the network config has no plugins".to_owned());
            };
            plugin.clone()
        }
    };
    for key in ["name", "cniVersion"] {
        if let Some(value) = document.get(key) {
            plugin.insert(key.to_owned(), value.clone());
        }
    }
    let name = plugin.get("type").and_then(Value::as_str).unwrap_or(OWN_TYPE);
    let executable = Executable::called(Some(OsStr::new(name)));
    Ok((Value::Object(plugin).to_string().into_bytes(), executable))
}
