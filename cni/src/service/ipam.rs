//! Addresses only: another plugin makes the interface, and executes this one as its IPAM (the spec's section 4).
//!
//! DEL, GC and STATUS are the same as for a whole attachment: a record of this kind has no link to undo.

use serde_json::Value;

use super::{add::new_record, check::required_result, heal};
use crate::{
    config::{
        invocation::AttachmentCall,
        network::NetworkConfig,
        result::{Address, CniResult},
    },
    error::Failure,
    kernel::RouteSocket,
    store::{AttachmentState, Kind, Record, Request, Store},
};

/// Gives the attachment its addresses; asked again, the same.
pub(super) fn add(config: &NetworkConfig, call: &AttachmentCall) -> Result<Value, Failure> {
    let attachment = config.attachment(&call.args)?;
    let store = Store::new(&config.data_dir, &config.name)?;
    store.create()?;
    let _lock = store.lock_attachment(&call.key)?;
    store.sweep_attachment(&call.key)?;
    let record = match store.read(&call.key)? {
        Some(mut record) => {
            if record.state == AttachmentState::Pending {
                // A DEL was killed before it gave anything back.
                record.state = AttachmentState::Active;
                store.write(&record)?;
            }
            record
        }
        None => {
            // Nothing is made beside the record: written, it is complete.
            let request = Request::from(&attachment);
            let mut record = Record {
                kind: Kind::Ipam,
                state: AttachmentState::Active,
                dns: if attachment.ipam_dns.is_empty() { &attachment.dns } else { &attachment.ipam_dns }.clone(),
                routes: attachment.routes.clone(),
                ..new_record(config, call, &store)
            };
            heal::reserve(&store, &mut RouteSocket::open()?, &mut record, &request)?;
            record
        }
    };
    let result = CniResult {
        interfaces: Vec::new(),
        addresses: record
            .addresses
            .iter()
            .map(|lease| Address { address: lease.address, gateway: lease.gateway, interface: None })
            .collect(),
        // Who asked fills in the gateways, as it makes them.
        routes: record.routes,
        dns: record.dns,
    };
    Ok(result.to_json(config.version))
}

/// Does the attachment still have the addresses that it was given?
pub(super) fn check(config: &NetworkConfig, call: &AttachmentCall) -> Result<(), Failure> {
    let previous = required_result(config)?;
    let store = Store::new(&config.data_dir, &config.name)?;
    let Some(record) = store.read(&call.key)? else {
        return Err(Failure::CheckFailed(vec!["there is no record of the attachment".to_owned()]));
    };
    let has = |address| previous.addresses.iter().any(|given| given.address == address);
    let lacking = record.addresses.iter().filter(|lease| !has(lease.address));
    let differences: Vec<String> =
        lacking.map(|lease| format!("prevResult lacks the address {}", lease.address)).collect();
    if differences.is_empty() { Ok(()) } else { Err(Failure::CheckFailed(differences)) }
}
