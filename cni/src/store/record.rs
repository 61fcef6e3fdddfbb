//! One attachment's record: who, what, where, since when.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{
    invocation::{AttachmentKey, Pod},
    network::Route,
};

/// The version of the format that this program writes, and the only one that it reads.
pub(crate) const VERSION: u32 = 1;

/// How far the attachment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AttachmentState {
    /// An ADD or DEL is at work, or was killed: the kernel may hold any part of it.
    Pending,
    /// The ADD is complete.
    Active,
}

/// What the store holds about one attachment; docs/formats-network.md shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) boot_id: String,
    pub(crate) state: AttachmentState,
    pub(crate) network: String,
    #[serde(flatten)]
    pub(crate) key: AttachmentKey,
    /// The namespace's path as the runtime gave it.
    pub(crate) netns: String,
    pub(crate) pod: Pod,
    pub(crate) bridge: String,
    pub(crate) host_interface: String,
    pub(crate) host_mac: String,
    pub(crate) container_mac: String,
    /// That of both ends; a record may lack it while the attachment is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    pub(crate) addresses: Vec<Lease>,
    pub(crate) routes: Vec<Route>,
    /// Seconds since 1970, UTC.
    pub(crate) created_at_seconds: u64,
}

/// An address that an attachment holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lease {
    pub(crate) address: IpNet,
    pub(crate) gateway: IpAddr,
    /// The index of the range set that it came from, and to whose queue it returns.
    pub(crate) set: usize,
}

impl Record {
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|lease| lease.address.addr() == address)
    }
}
