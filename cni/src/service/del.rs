//! DEL: detach a container from the network.

use super::{
    add::undo,
    delegate::{Delegate, delete_by},
    rules,
};
use crate::{
    config::{
        invocation::{AttachmentCall, AttachmentKey},
        network::NetworkConfig,
    },
    error::Failure,
    kernel::{RouteSocket, link},
    policy::naming,
    store::{Record, Store, StoreError},
};

/// Removes what ADD made, by the record: the namespace may be gone, empty, or another container's by now, so nothing is
/// looked for there. The link on the host takes its other end, the addresses and the routes with it.
///
/// What is gone already is no error, and a config whose ranges somebody broke doesn't keep an address taken.
pub(super) fn del(config: &NetworkConfig, call: &AttachmentCall) -> Result<(), Failure> {
    let store = Store::new(&config.data_dir, &config.name)?;
    let mut host = RouteSocket::open()?;
    let _lock = match store.lock_attachment(&call.key) {
        // The store can't be written: its record stays, and says so; but the container loses its network.
        Err(error @ StoreError::Io { .. }) => {
            delete_links(&mut host, &config.name, &call.key)?;
            return Err(error.into());
        }
        other => other?,
    };
    // Not before the lock is ours: an ADD that is still at work would get its addresses after they were returned.
    detach_locked(&store, &mut host, &config.name, &call.key, |record| {
        delete_by(Delegate::of(config)?.as_ref(), record)
    })
}

/// Undoes one attachment whose lock the caller holds; `give_back` returns addresses that are another plugin's.
pub(super) fn detach_locked(
    store: &Store,
    host: &mut RouteSocket,
    network: &str,
    key: &AttachmentKey,
    give_back: impl FnOnce(Option<&Record>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let detached = match store.read(key) {
        Ok(Some(record)) => undo(store, host, &record, || give_back(Some(&record))),
        found => {
            // Without a readable record the names still follow from the attachment.
            if found.is_err() {
                rules::end_unknown(&naming::host_interface(network, key))?;
            }
            delete_links(host, network, key)?;
            give_back(None)?;
            match found {
                Err(StoreError::Corrupt { .. }) => store.discard(key).map_err(Failure::from),
                other => other.map(drop).map_err(Failure::from),
            }
        }
    };
    detached.and_then(|()| Ok(store.sweep_attachment(key)?))
}

fn delete_links(host: &mut RouteSocket, network: &str, key: &AttachmentKey) -> Result<(), Failure> {
    link::delete(host, &naming::host_interface(network, key))?;
    Ok(link::delete(host, &naming::shaping_interface(network, key))?)
}
