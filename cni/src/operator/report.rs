//! What the operator is told: plain data, for a table or for JSON.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::Serialize;

use super::Finding;
use crate::{
    Call,
    kernel::{link::Link, route::FoundRoute},
    store::{self, Kind, Record},
};

/// How an attachment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentState {
    /// Made, and its link is there.
    Active,
    /// An ADD or DEL works on it, or was killed.
    Pending,
    /// Made, but its link on the host is gone: nothing uses its addresses.
    Stale,
    /// Its record is damaged, or of another release's format.
    Unreadable,
}

/// One attachment as its record has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentReport {
    /// The network's name.
    pub network: String,
    /// Where the network's records lie.
    pub data_dir: PathBuf,
    /// The container's (the Pod sandbox's) id.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The Pod, where the runtime told it.
    pub pod: PodName,
    /// `bridge`, `routed`, `ipam` (addresses only) or `ports` (host ports only); empty if the record can't be read.
    pub kind: String,
    /// How it stands.
    pub state: AttachmentState,
    /// The network namespace's path as the runtime gave it.
    pub netns: String,
    /// The bridge; empty for an attachment without one, and likewise the next three.
    pub bridge: String,
    /// The name of the link's end on the host.
    pub host_interface: String,
    /// The Ethernet address of that end.
    pub host_mac: String,
    /// The Ethernet address of the container's end.
    pub container_mac: String,
    /// The MTU that both ends were made with.
    pub mtu: Option<u32>,
    /// The addresses that it holds.
    pub addresses: Vec<AddressReport>,
    /// The routes that it was made with.
    pub routes: Vec<RouteReport>,
    /// Its host ports: `tcp/8080->80`, `udp/192.0.2.1:53->53`.
    pub ports: Vec<String>,
    /// Whether what it sends to the world outside carries the node's address.
    pub masquerade: bool,
    /// The plugin that the addresses came from, if another one's.
    pub ipam_plugin: Option<String>,
    /// The link that what it sends is shaped on.
    pub shaping_interface: Option<String>,
    /// When it was made, in seconds since 1970 UTC; 0 if the record can't be read.
    pub created_at_seconds: u64,
    /// What is wrong with the record, if it can't be read.
    pub unreadable: Option<String>,
}

/// A Pod's names; empty where the runtime didn't tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// An address of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressReport {
    /// The address with its prefix length.
    pub address: IpNet,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteReport {
    /// Where it leads.
    pub dst: IpNet,
    /// By which router.
    pub gw: Option<IpAddr>,
    /// In which table.
    pub table: u32,
}

/// A link as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceReport {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: String,
    /// Its MTU.
    pub mtu: u32,
    /// Whether somebody set it up.
    pub up: bool,
    /// Whether packets pass.
    pub running: bool,
    /// The bridge that it is a port of.
    pub bridge: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// The routes that lead through it, outside the table `local`.
    pub routes: Vec<RouteReport>,
}

/// Everything about one attachment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownAttachment {
    /// Its record.
    pub attachment: AttachmentReport,
    /// Its link on the host, if that is there.
    pub host_interface: Option<InterfaceReport>,
    /// Its interface in the container, if that could be looked at and is there.
    pub container_interface: Option<InterfaceReport>,
    /// Why the container could not be looked into.
    pub namespace_problem: Option<String>,
    /// What differs from the record, each with its remedy.
    pub findings: Vec<Finding>,
    /// Its last calls, the newest last.
    pub calls: Vec<Call>,
}

impl AttachmentReport {
    pub(super) fn of_record(record: &Record, data_dir: PathBuf, state: AttachmentState) -> Self {
        let ports = record.ports.iter().map(|port| format!("{port}->{}", port.container_port));
        Self {
            network: record.network.clone(),
            data_dir,
            container_id: record.key.container_id.clone(),
            ifname: record.key.ifname.clone(),
            pod: PodName {
                namespace: record.pod.namespace.clone(),
                name: record.pod.name.clone(),
                uid: record.pod.uid.clone(),
            },
            kind: kind_name(record.kind).to_owned(),
            state,
            netns: record.netns.clone(),
            bridge: record.bridge.clone(),
            host_interface: record.host_interface.clone(),
            host_mac: record.host_mac.clone(),
            container_mac: record.container_mac.clone(),
            mtu: record.mtu,
            addresses: record
                .addresses
                .iter()
                .map(|lease| AddressReport { address: lease.address, gateway: lease.gateway })
                .collect(),
            routes: record
                .routes
                .iter()
                .map(|route| RouteReport { dst: route.dst, gw: route.gw, table: route.table() })
                .collect(),
            ports: ports.collect(),
            masquerade: record.masquerade,
            ipam_plugin: record.ipam_plugin.clone(),
            shaping_interface: record.shaping_interface.clone(),
            created_at_seconds: record.created_at_seconds,
            unreadable: None,
        }
    }

    /// Of a record that can't be read: what its file's name tells.
    pub(super) fn unreadable(network: &str, data_dir: PathBuf, key: (&str, &str), reason: String) -> Self {
        Self {
            network: network.to_owned(),
            data_dir,
            container_id: key.0.to_owned(),
            ifname: key.1.to_owned(),
            pod: PodName::default(),
            kind: String::new(),
            state: AttachmentState::Unreadable,
            netns: String::new(),
            bridge: String::new(),
            host_interface: String::new(),
            host_mac: String::new(),
            container_mac: String::new(),
            mtu: None,
            addresses: Vec::new(),
            routes: Vec::new(),
            ports: Vec::new(),
            masquerade: false,
            ipam_plugin: None,
            shaping_interface: None,
            created_at_seconds: 0,
            unreadable: Some(reason),
        }
    }
}

/// The record's state beside the host's links: one that was made and whose link is gone is stale.
pub(super) fn state_of(record: &Record, host_links: &[Link]) -> AttachmentState {
    match record.state {
        store::AttachmentState::Pending => AttachmentState::Pending,
        store::AttachmentState::Active if record.host_interface.is_empty() => AttachmentState::Active,
        store::AttachmentState::Active if host_links.iter().any(|link| link.name == record.host_interface) => {
            AttachmentState::Active
        }
        store::AttachmentState::Active => AttachmentState::Stale,
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Bridge => "bridge",
        Kind::Routed => "routed",
        Kind::Ipam => "ipam",
        Kind::Ports => "ports",
    }
}

impl InterfaceReport {
    /// Of `link`, among what was found in its namespace.
    pub(super) fn new(link: &Link, links: &[Link], addresses: &[(u32, IpNet)], routes: &[FoundRoute]) -> Self {
        let routes = routes.iter().filter(|route| route.link == Some(link.index) && !route.is_local());
        Self {
            name: link.name.clone(),
            index: link.index,
            mac: link.mac_text(),
            mtu: link.mtu,
            up: link.up,
            running: link.running,
            bridge: link
                .master
                .and_then(|master| links.iter().find(|other| other.index == master))
                .map(|bridge| bridge.name.clone()),
            addresses: addresses
                .iter()
                .filter(|(index, _)| *index == link.index)
                .map(|(_, address)| *address)
                .collect(),
            routes: routes.map(|route| RouteReport { dst: route.dst, gw: route.gateway, table: route.table }).collect(),
        }
    }
}
