//! `portmap`: host ports of a container that earlier plugins of the chain attached.

use serde_json::Value;

use super::{add::new_record, check::required_result, rules};
use crate::{
    config::{
        invocation::AttachmentCall,
        network::NetworkConfig,
        ports::PortMapping,
        result::{Address, CniResult},
    },
    error::Failure,
    kernel::{KernelError, RouteSocket, link, netns::Namespace, route},
    store::{AttachmentState, Kind, Lease, Record, Store, StoreError},
};

/// Publishes the ports, and passes on what the chain has made.
pub(super) fn add(config: &NetworkConfig, call: &AttachmentCall) -> Result<Value, Failure> {
    let previous = required_result(config)?;
    let addresses = container_addresses(&previous);
    let ports = config.host_ports(&addresses)?;
    let result = previous.to_json(config.version);
    if ports.is_empty() || addresses.is_empty() {
        return Ok(result);
    }
    // Looked at for what it is, not entered: the ports are the node's.
    let namespace = Namespace::open(&call.netns.clone().unwrap_or_default())?;
    let mut host = RouteSocket::open()?;
    let store = Store::new(&config.data_dir, &config.name)?;
    let mut record = Record {
        kind: Kind::Ports,
        netns_identity: Some(namespace.identity()),
        bridge: link_towards(&mut host, &addresses)?,
        addresses: addresses.iter().map(lease).collect(),
        ports,
        ..new_record(config, call, &store)
    };
    store.create()?;
    let _lock = store.lock_attachment(&call.key)?;
    store.sweep_attachment(&call.key)?;
    match store.read(&call.key)? {
        Some(earlier) if earlier.state == AttachmentState::Active && describes_the_same(&earlier, &record) => {
            let differences = rules::differences(&earlier)?;
            return if differences.is_empty() { Ok(result) } else { Err(Failure::AttachmentDiffers(differences)) };
        }
        Some(earlier) if earlier.state == AttachmentState::Active => {
            let text = "the ports or addresses are others than those of the earlier ADD".to_owned();
            return Err(Failure::AttachmentDiffers(vec![text]));
        }
        Some(earlier) => undo(&store, &earlier)?,
        None => {}
    }
    rules::refuse_listened_ports(&record.ports)?;
    store.write(&record)?;
    let published =
        rules::ensure(&config.data_dir, &record, &[]).and_then(|()| rules::start(&mut host, &record)).and_then(|()| {
            record.state = AttachmentState::Active;
            Ok(store.write(&record)?)
        });
    match published {
        Ok(()) => Ok(result),
        Err(failure) => match undo(&store, &record) {
            Ok(()) => Err(failure),
            Err(second) => Err(Failure::Several(vec![failure, second])),
        },
    }
}

/// Gives the ports up by the record, whatever the chain says by now.
pub(super) fn del(config: &NetworkConfig, call: &AttachmentCall) -> Result<(), Failure> {
    let store = Store::new(&config.data_dir, &config.name)?;
    let _lock = store.lock_attachment(&call.key)?;
    match store.read(&call.key) {
        Ok(Some(record)) => undo(&store, &record)?,
        Ok(None) => {}
        Err(StoreError::Corrupt { .. }) => store.discard(&call.key)?,
        Err(error) => return Err(error.into()),
    }
    Ok(store.sweep_attachment(&call.key)?)
}

/// Are the ports still published?
pub(super) fn check(config: &NetworkConfig, call: &AttachmentCall) -> Result<(), Failure> {
    let previous = required_result(config)?;
    let addresses = container_addresses(&previous);
    let ports = config.host_ports(&addresses)?;
    let store = Store::new(&config.data_dir, &config.name)?;
    let differences = match store.read(&call.key)? {
        Some(record) => rules::differences(&record)?,
        None if ports.is_empty() || addresses.is_empty() => Vec::new(),
        None => vec!["there is no record of the attachment's host ports".to_owned()],
    };
    if differences.is_empty() { Ok(()) } else { Err(Failure::CheckFailed(differences)) }
}

fn undo(store: &Store, record: &Record) -> Result<(), Failure> {
    store.mark_pending(record);
    rules::end(record)?;
    Ok(store.release(record)?)
}

/// The first address of each family that is on an interface in the container; an address that names no interface may be.
fn container_addresses(previous: &CniResult) -> Vec<Address> {
    let is_inside = |address: &&Address| {
        let interface = address.interface.and_then(|index| previous.interfaces.get(index));
        interface.is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let first = |is_ipv4: bool| {
        previous.addresses.iter().filter(is_inside).find(|address| address.address.addr().is_ipv4() == is_ipv4)
    };
    [first(true), first(false)].into_iter().flatten().cloned().collect()
}

fn lease(address: &Address) -> Lease {
    Lease { address: address.address, gateway: None, set: None }
}

fn describes_the_same(one: &Record, other: &Record) -> bool {
    let targets = |record: &Record| -> Vec<_> { record.addresses.iter().map(|lease| lease.address.addr()).collect() };
    let sorted = |ports: &[PortMapping]| {
        let mut texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
        texts.sort();
        texts
    };
    targets(one) == targets(other) && sorted(&one.ports) == sorted(&other.ports)
}

/// The name of the link by which the node reaches the container.
fn link_towards(host: &mut RouteSocket, addresses: &[Address]) -> Result<String, KernelError> {
    for address in addresses {
        if let Some(index) = route::link_towards(host, address.address.addr())?
            && let Some(found) = link::find_by_index(host, index)?
        {
            return Ok(found.name);
        }
    }
    Ok(String::new())
}
