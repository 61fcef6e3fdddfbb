//! The executable called as `host-local`: addresses only, by the reference's files, for a plugin that delegates to it.
//!
//! The reference and this one may work on one directory at the same time, and each releases what the other gave.

use ipnet::IpNet;
use serde_json::Value;

use super::status::require_writable;
use crate::{
    config::{
        invocation::{AttachmentCall, CniArgs, Command, Invocation},
        network::NetworkConfig,
        result::{Address, CniResult},
    },
    error::Failure,
    store::host_local::{self, Draft},
};

pub(super) fn serve(invocation: &Invocation, config: &NetworkConfig) -> Result<Option<Value>, Failure> {
    match invocation {
        Invocation::Attachment(Command::Add, call) => return add(config, call).map(Some),
        Invocation::Attachment(Command::Check, call) => check(config, call)?,
        Invocation::Attachment(_, call) => del(config, call)?,
        Invocation::Network(Command::Gc) => gc(config)?,
        Invocation::Network(_) => status(config)?,
    }
    Ok(None)
}

/// Gives the attachment an address of each range set. One that holds an address already is refused, as the reference
/// does.
fn add(config: &NetworkConfig, call: &AttachmentCall) -> Result<Value, Failure> {
    let pool = config.pool(&call.args)?;
    let directory = config.data_dir.join(&config.name);
    let draft = Draft::write(&directory, &call.key)?;
    let given = host_local::lock(&directory)?.reserve(&draft, &pool.sets, &pool.requested)?;
    let mut addresses = Vec::new();
    for (set, address) in pool.sets.iter().zip(given) {
        // An address comes from a range of its set, whose subnet's prefix fits it.
        let Some(range) = set.range_of(address) else { continue };
        let Ok(address) = IpNet::new(address, range.subnet.prefix_len()) else { continue };
        addresses.push(Address { address, gateway: Some(range.gateway), interface: None });
    }
    let result = CniResult { interfaces: Vec::new(), addresses, routes: pool.routes, dns: pool.dns };
    Ok(result.to_json(config.version))
}

/// Does the attachment hold an address, and each that the previous result has of the ranges?
fn check(config: &NetworkConfig, call: &AttachmentCall) -> Result<(), Failure> {
    let pool = config.pool(&CniArgs::default())?;
    let previous = config.prev_result()?.unwrap_or_default();
    let found = host_local::open(&config.data_dir.join(&config.name))?;
    let Some(reservations) = found.filter(|reservations| reservations.holds(&call.key)) else {
        let id = &call.key.container_id;
        // The reference's words.
        let difference = format!("host-local: Failed to find address added by container {id}");
        return Err(Failure::CheckFailed(vec![difference]));
    };
    let offered = previous.addresses.iter().map(|told| told.address.addr());
    let offered = offered.filter(|address| pool.sets.iter().any(|set| set.range_of(*address).is_some()));
    let foreign = offered.filter(|address| !reservations.is_held_by(*address, &call.key));
    let differences: Vec<String> =
        foreign.map(|address| format!("the address {address} of prevResult is not reserved for it")).collect();
    if differences.is_empty() { Ok(()) } else { Err(Failure::CheckFailed(differences)) }
}

/// Returns what the attachment holds; a config whose ranges somebody broke doesn't keep it.
fn del(config: &NetworkConfig, call: &AttachmentCall) -> Result<(), Failure> {
    if let Some(reservations) = host_local::open(&config.data_dir.join(&config.name))? {
        reservations.release(&call.key)?;
    }
    Ok(())
}

/// Returns what is held by attachments that the runtime no longer knows; without a list nothing.
fn gc(config: &NetworkConfig) -> Result<(), Failure> {
    let Some(valid) = config.valid_attachments()? else { return Ok(()) };
    if let Some(reservations) = host_local::open(&config.data_dir.join(&config.name))? {
        reservations.retain(&valid)?;
    }
    Ok(())
}

/// Could ADD do its work? As with our own store, a full range is not asked about.
fn status(config: &NetworkConfig) -> Result<(), Failure> {
    config.pool(&CniArgs::default()).map_err(|error| Failure::Unavailable(error.to_string()))?;
    require_writable(&config.data_dir.join(&config.name))
}
