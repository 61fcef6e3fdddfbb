//! Figures: how many attachments there are, and how full the range sets.

use serde::Serialize;

use super::{AttachmentState, OperatorError, Places, gather, report::state_of};
use crate::kernel::{RouteSocket, link};

/// One network in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkUsage {
    /// The network's name.
    pub network: String,
    /// Attachments that are made, and whose link is there.
    pub active: u64,
    /// Attachments that an ADD or DEL works on, or whose call was killed.
    pub pending: u64,
    /// Attachments whose link is gone.
    pub stale: u64,
    /// Attachments whose record can't be read.
    pub unreadable: u64,
    /// Its range sets.
    pub sets: Vec<SetUsage>,
}

/// One range set in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetUsage {
    /// Its number, from 0.
    pub set: usize,
    /// Its ranges: `10.88.0.1-10.88.255.254`.
    pub ranges: String,
    /// Addresses that attachments hold.
    pub used: u64,
    /// Addresses that there are for attachments; `u64::MAX` for more than that.
    pub capacity: u64,
    /// Addresses that were released and wait to be given again.
    pub released: u64,
}

/// The figures of every network in `places`; none where there is no network.
///
/// # Errors
///
/// What kept it from reading records or links.
pub fn usage(places: &Places) -> Result<Vec<NetworkUsage>, OperatorError> {
    let networks = match places.networks() {
        Err(OperatorError::NoNetwork(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let links = link::all(&mut RouteSocket::open()?)?;
    let mut all = Vec::new();
    for network in networks {
        let mut usage = NetworkUsage { network: network.name.clone(), ..NetworkUsage::default() };
        let mut records = Vec::new();
        for key in network.store.keys()? {
            match network.store.read(&key) {
                Ok(Some(record)) => {
                    match state_of(&record, &links) {
                        AttachmentState::Active => usage.active += 1,
                        AttachmentState::Pending => usage.pending += 1,
                        AttachmentState::Stale | AttachmentState::Unreadable => usage.stale += 1,
                    }
                    records.push(record);
                }
                // A DEL removed it since.
                Ok(None) => {}
                Err(_) => usage.unreadable += 1,
            }
        }
        let bounded = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        usage.sets = gather::usage(&network, &records.iter().collect::<Vec<_>>())?
            .into_iter()
            .map(|set| SetUsage {
                set: set.set,
                ranges: set.ranges,
                used: bounded(set.used),
                capacity: bounded(set.capacity),
                released: set.released,
            })
            .collect();
        all.push(usage);
    }
    Ok(all)
}
