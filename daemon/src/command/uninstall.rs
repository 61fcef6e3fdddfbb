//! `keelson uninstall`: takes away what Keelson put on the node, once no Keelson runs there any more.

use keelson_host::{HostRoot, error_chain};

use super::{ConfigArguments, output::print};
use crate::{config::NodeConfig, error::Failure, plugins};

/// Cleans up after every plugin that the config has a section for, goes on past failures and tells them all.
pub(super) fn run(arguments: &ConfigArguments) -> Result<(), Failure> {
    let config = NodeConfig::load(&arguments.config, HostRoot::at(&arguments.host.host_root))?;
    let mut failures = Vec::new();
    for plugin in config.enabled() {
        match plugins::uninstall(plugin, &config) {
            Ok(told) => {
                for line in told {
                    print(&format!("{plugin}: {line}\n"))?;
                }
            }
            Err(error) => failures.push(format!("{plugin}: {}", error_chain(&*error))),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Uninstall { failures }) }
}
