//! Everything that is wrong with the node's networks.

use std::path::Path;

use ipnet::IpNet;

use super::{Finding, OperatorError, Places, gather::gather};
use crate::{
    NetworkSettings, install,
    policy::doctor::{Configured, examine},
};

/// What the node's config asks to be installed.
#[derive(Clone, Copy, Debug)]
pub struct Installation<'a> {
    /// The network.
    pub settings: &'a NetworkSettings,
    /// The executable that is installed, if it is known where the original lies.
    pub executable: Option<&'a Path>,
}

/// Compares records, kernel and installation, and tells each finding with its remedy, the errors first.
///
/// # Errors
///
/// What kept it from looking. That there is no network is none: then there is little to find.
pub fn doctor(places: &Places, installation: Option<Installation<'_>>) -> Result<Vec<Finding>, OperatorError> {
    let mut snapshot = gather(places)?;
    snapshot.configured = installation.map(|Installation { settings, executable }| {
        let (missing, different) = install::look(settings, executable);
        let gateways =
            settings.ranges.iter().filter_map(|range| IpNet::new(range.gateway, range.subnet.prefix_len()).ok());
        Configured { bridge: settings.bridge.clone(), gateways: gateways.collect(), missing, different }
    });
    Ok(examine(&snapshot))
}
