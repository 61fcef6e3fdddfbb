//! Freeing what nobody will ever ask to be freed, without any call of the runtime.
//!
//! A veth pair dies with the container's namespace. So an attachment whose host end is gone has no container any more,
//! and its addresses and ports are free as soon as nobody can be just making it.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::add::undo;
use crate::{
    config::invocation::AttachmentKey,
    error::Failure,
    kernel::{RouteSocket, link},
    store::{Kind, Record, Request, Store, StoreError},
};

/// How old a record without a link must be; no ADD takes as long before it has made the link.
const GRACE: Duration = Duration::from_secs(30);

/// How an attachment's record and its link agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Its link is there, or it has none of ours.
    Whole,
    /// Its link is gone, or not made yet.
    Waiting,
    /// Its link is gone for good.
    Stale,
}

/// Judges a record by whether the host has a link of a name.
pub(super) fn life(record: &Record, has_link: impl FnOnce(&str) -> bool) -> Life {
    // The addresses of another plugin can't be returned without the call of a runtime.
    let is_ours = matches!(record.kind, Kind::Bridge | Kind::Routed) && record.ipam_plugin.is_none();
    if !is_ours || has_link(&record.host_interface) {
        return Life::Whole;
    }
    // A clock that was put back makes the record younger than it is: it waits.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = now.saturating_sub(Duration::from_secs(record.created_at_seconds));
    if age < GRACE { Life::Waiting } else { Life::Stale }
}

/// The names of the host's links, by one look.
pub(super) fn links(host: &mut RouteSocket) -> Result<HashSet<String>, Failure> {
    Ok(link::all(host)?.into_iter().map(|link| link.name).collect())
}

/// What [`heal`] found.
#[derive(Debug, Default)]
struct Healed {
    freed: usize,
    /// Attachments without a link that are too young, or that a call works on, or could not be freed.
    stale: usize,
}

/// Frees every attachment whose link is gone for good.
fn heal(store: &Store, host: &mut RouteSocket) -> Result<Healed, Failure> {
    let links = links(host)?;
    let mut healed = Healed::default();
    for (key, record) in store.records()? {
        // What can't be read waits for its DEL.
        let Ok(record) = record else { continue };
        match life(&record, |name| links.contains(name)) {
            Life::Whole => {}
            // Whoever else is at it, or can't free it: another try comes with the next call.
            Life::Stale if free_if_stale(store, host, &key).unwrap_or(false) => {
                healed.freed += 1;
            }
            Life::Stale | Life::Waiting => healed.stale += 1,
        }
    }
    Ok(healed)
}

/// Frees the attachment that holds something which is asked for, if its link is gone for good; tells whether it did.
///
/// An attachment that another call works on is left alone.
pub(super) fn heal_holder(store: &Store, host: &mut RouteSocket, key: &AttachmentKey) -> Result<bool, Failure> {
    free_if_stale(store, host, key)
}

/// Judges once more under the attachment's lock, by a new look at its link, as it may have been made since; and frees it.
fn free_if_stale(store: &Store, host: &mut RouteSocket, key: &AttachmentKey) -> Result<bool, Failure> {
    let Some(_lock) = store.lock_attachment_if_idle(key)? else { return Ok(false) };
    let Some(record) = store.read(key)? else { return Ok(false) };
    let exists = link::find(host, &record.host_interface)?.is_some();
    match life(&record, |_| exists) {
        Life::Stale => undo(store, host, &record, || Ok(())).map(|()| true),
        _ => Ok(false),
    }
}

/// Reserves addresses; where none is free, what can be freed is, and then asked again.
pub(super) fn reserve(
    store: &Store,
    host: &mut RouteSocket,
    record: &mut Record,
    request: &Request<'_>,
) -> Result<(), Failure> {
    match store.reserve(record, request) {
        Err(StoreError::Exhausted { .. }) => {
            let healed = heal(store, host)?;
            match store.reserve(record, request) {
                Err(StoreError::Exhausted { set, ranges, size, .. }) => {
                    Err(StoreError::Exhausted { set, ranges, size, stale: healed.stale }.into())
                }
                other => Ok(other?),
            }
        }
        Err(StoreError::Taken { key, .. }) if heal_holder(store, host, &key)? => Ok(store.reserve(record, request)?),
        other => Ok(other?),
    }
}
