//! `keelson uninstall`: takes away what Keelson put on the node, when no Keelson runs there any more.

use keelson_host::HostRoot;

use super::{ConfigArguments, output::print};
use crate::{
    config::NodeConfig,
    error::Failure,
    plugins::{self, PluginKind},
};

/// Cleans up after every plugin that the config has a section for, goes on past failures and tells them all.
///
/// Volumes and their pools stay: they are the users'.
pub(super) fn run(arguments: &ConfigArguments) -> Result<(), Failure> {
    let config = NodeConfig::load(&arguments.config, HostRoot::at(&arguments.host.host_root))?;
    let mut failures = Vec::new();
    for plugin in config.enabled() {
        match plugins::uninstall(plugin, &config) {
            Ok(removed) => {
                for what in removed {
                    print(&format!("{plugin}: removed {what}\n"))?;
                }
            }
            Err(failure) => failures.push(format!("{plugin}: {failure}")),
        }
        if plugin == PluginKind::Storage {
            print("storage: volumes and pools are left in place\n")?;
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Uninstall { failures }) }
}
