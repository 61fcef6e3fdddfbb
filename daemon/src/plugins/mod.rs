//! What connects each section of the config with the crate that does the work: one small file per plugin.

mod devices;
mod kind;
mod network;
mod pinning;
mod process;
mod storage;

use std::future::Future;

use keelson_host::{Node, Problems};
use prometheus_client::registry::Registry;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{NodeConfig, to_value},
    observability::Operations,
};

pub use kind::PluginKind;
pub(crate) use network::find_executable as find_cni_executable;
pub use process::{STOP_GRACE, run};

/// An error of a plugin's crate, to be told and not to be decided upon.
pub(crate) type PluginError = Box<dyn std::error::Error + Send + Sync>;

/// Whether a plugin is ready, and if not, why.
pub(crate) type Ready = watch::Sender<Result<(), String>>;

/// A plugin as the daemon sees it.
///
/// NOTE: an implementation only hands over to its crate; what is worth testing belongs there.
trait Plugin: Sized + Send + 'static {
    const KIND: PluginKind;
    /// What the user may say.
    type Section: DeserializeOwned + Serialize;
    /// What the section means on this node.
    type Settings: Send + 'static;

    /// Judges the section against the node; reads the host and changes nothing.
    fn validate(section: &Self::Section, node: &Node) -> Result<Self::Settings, Problems>;

    /// Makes the plugin, with its metrics in `registry`.
    fn new(settings: Self::Settings, node: &Node, registry: &mut Registry) -> Result<Self, PluginError>;

    /// What it is at, as JSON, if it can tell: served at `/operations`. Asked at any time while it runs.
    fn operations(&self) -> Option<Operations> {
        None
    }

    /// Works until `shutdown`, telling in `ready` whether it can.
    fn run(self, ready: Ready, shutdown: CancellationToken) -> impl Future<Output = Result<(), PluginError>>;

    /// Takes away what a plugin that runs no more left on the node, and tells in a line each what became of it.
    fn uninstall(settings: &Self::Settings) -> Result<Vec<String>, PluginError>;
}

/// Everything that is wrong with the section of `kind`: what its process will say, too.
///
/// # Errors
///
/// The problems, if there are any.
pub fn check(kind: PluginKind, config: &NodeConfig) -> Result<(), Problems> {
    match kind {
        PluginKind::Network => settings::<network::Network>(config).map(drop),
        PluginKind::Storage => settings::<storage::Storage>(config).map(drop),
        PluginKind::Devices => settings::<devices::Devices>(config).map(drop),
        PluginKind::Pinning => settings::<pinning::Pinning>(config).map(drop),
    }
}

/// The section of `kind` with its defaults filled in.
///
/// # Errors
///
/// The keys that are unknown or of the wrong type.
pub(crate) fn effective_section(kind: PluginKind, config: &NodeConfig) -> Result<Value, Problems> {
    match kind {
        PluginKind::Network => effective::<network::Network>(config),
        PluginKind::Storage => effective::<storage::Storage>(config),
        PluginKind::Devices => effective::<devices::Devices>(config),
        PluginKind::Pinning => effective::<pinning::Pinning>(config),
    }
}

fn settings<P: Plugin>(config: &NodeConfig) -> Result<P::Settings, Problems> {
    P::validate(&config.section::<P::Section>(P::KIND)?, config.node())
}

fn effective<P: Plugin>(config: &NodeConfig) -> Result<Value, Problems> {
    Ok(to_value(&config.section::<P::Section>(P::KIND)?))
}

/// Takes away what the plugin put on the node, and tells in a line each what became of it. Volumes stay.
///
/// # Errors
///
/// The section's problems, or what could not be removed.
pub(crate) fn uninstall(kind: PluginKind, config: &NodeConfig) -> Result<Vec<String>, PluginError> {
    match kind {
        PluginKind::Network => network::Network::uninstall(&settings::<network::Network>(config)?),
        PluginKind::Storage => storage::Storage::uninstall(&settings::<storage::Storage>(config)?),
        PluginKind::Devices => devices::Devices::uninstall(&settings::<devices::Devices>(config)?),
        PluginKind::Pinning => pinning::Pinning::uninstall(&settings::<pinning::Pinning>(config)?),
    }
}
