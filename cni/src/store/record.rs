//! One attachment's record: who, what, where, since when.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{
    bandwidth::Bandwidth,
    dns::Dns,
    invocation::{AttachmentKey, Pod},
    ports::PortMapping,
    route::Route,
};

/// The version of the format that this program writes.
pub(crate) const VERSION: u32 = 2;

/// The oldest version that it reads: 1 had bridge attachments only, with none of the optional keys.
pub(crate) const OLDEST_VERSION: u32 = 1;

/// What kind of attachment a record is about: what there is to undo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A veth pair whose host end is a port of a bridge.
    #[default]
    Bridge,
    /// A veth pair with host routes.
    Routed,
    /// Addresses only: another plugin, which calls this one as its IPAM, makes the interface.
    Ipam,
    /// Host ports only, of a container that another plugin attached.
    Ports,
}

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
    #[serde(default)]
    pub(crate) kind: Kind,
    pub(crate) network: String,
    #[serde(flatten)]
    pub(crate) key: AttachmentKey,
    /// The namespace's path as the runtime gave it.
    pub(crate) netns: String,
    /// That namespace's device and inode numbers, by which its processes are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) netns_identity: Option<(u64, u64)>,
    pub(crate) pod: Pod,
    /// Empty for a kind without one; likewise the names and addresses of the links.
    pub(crate) bridge: String,
    pub(crate) host_interface: String,
    pub(crate) host_mac: String,
    pub(crate) container_mac: String,
    /// That of both ends; a record may lack it while the attachment is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    pub(crate) addresses: Vec<Lease>,
    pub(crate) routes: Vec<Route>,
    /// The name servers that the result told, for an ADD that is repeated.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub(crate) dns: Dns,
    /// The plugin that the addresses came from and return to; `None` for the built-in IPAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ipam_plugin: Option<String>,
    /// Whether the subnets of the addresses are masqueraded.
    #[serde(default)]
    pub(crate) masquerade: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<PortMapping>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bandwidth: Option<Bandwidth>,
    /// The link that what the container sends is shaped on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shaping_interface: Option<String>,
    /// Whether the container's interface is left down.
    #[serde(default)]
    pub(crate) container_down: bool,
    /// The host's link that carries the gateways' addresses: the bridge, or that of a VLAN. `None` if they are elsewhere,
    /// or in records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway_interface: Option<String>,
    /// The routing tables of the addresses, if what is sent from them is routed by its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source_tables: Option<SourceTables>,
    /// Whether frames with another Ethernet address than the container's are dropped.
    #[serde(default)]
    pub(crate) spoof_check: bool,
    /// Seconds since 1970, UTC.
    pub(crate) created_at_seconds: u64,
}

/// Source-based routing: the table of each address, in the addresses' order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceTables {
    pub(crate) tables: Vec<u32>,
    /// Whether the interface's routes are there instead of in the main table.
    pub(crate) moved: bool,
    /// Whether those routes name the address as the source.
    pub(crate) hints: bool,
}

/// An address that an attachment holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lease {
    pub(crate) address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
    /// The index of the range set that it came from, and to whose queue it returns; `None` for another plugin's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set: Option<usize>,
}

impl Record {
    /// A pending record of an attachment that names nothing yet.
    pub(crate) fn blank(boot_id: &str, network: &str, key: AttachmentKey) -> Self {
        Self {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            state: AttachmentState::Pending,
            kind: Kind::Bridge,
            network: network.to_owned(),
            key,
            netns: String::new(),
            netns_identity: None,
            pod: Pod::default(),
            bridge: String::new(),
            host_interface: String::new(),
            host_mac: String::new(),
            container_mac: String::new(),
            mtu: None,
            addresses: Vec::new(),
            routes: Vec::new(),
            dns: Dns::default(),
            ipam_plugin: None,
            masquerade: false,
            ports: Vec::new(),
            bandwidth: None,
            shaping_interface: None,
            container_down: false,
            gateway_interface: None,
            source_tables: None,
            spoof_check: false,
            created_at_seconds: 0,
        }
    }

    /// What is to be looked up where: each address, and its table.
    pub(crate) fn source_rules(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        let tables = self.source_tables.iter().flat_map(|source| &source.tables);
        self.addresses.iter().map(|lease| lease.address.addr()).zip(tables.copied())
    }

    /// The table that the routes of the address at `index` are in, if it isn't the main one.
    pub(crate) fn moved_table(&self, index: usize) -> Option<u32> {
        self.source_tables.as_ref().filter(|source| source.moved)?.tables.get(index).copied()
    }

    /// The source that `route` names: the address whose table it is in.
    pub(crate) fn source_hint(&self, route: &Route) -> Option<IpAddr> {
        self.source_tables.as_ref().filter(|source| source.hints)?;
        let is_ipv4 = route.dst.addr().is_ipv4();
        let mut rules = self.source_rules().filter(|(source, _)| source.is_ipv4() == is_ipv4);
        rules.find(|(_, table)| Some(*table) == route.table).map(|(source, _)| source)
    }

    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|lease| lease.address.addr() == address)
    }
}
