//! Bringing back what somebody removed under running Pods: rules, gateway addresses, forwarding.

use std::os::fd::OwnedFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use serde::Serialize;

use super::{OperatorError, Places, gather::is_here};
use crate::{
    NetworkSettings,
    kernel::{
        RouteSocket, address,
        link::{self, Link},
        sysctl, veth, watch,
    },
    service,
    store::{AttachmentState, Kind, Record},
};

/// Something that was brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// What kind of thing: `rules`, `bridge`, `address`, `forwarding`.
    pub what: &'static str,
    /// What was missing.
    pub missing: String,
}

/// Sockets that don't block and become readable when there may be something to [`restore`]. What is read doesn't matter,
/// nor that the kernel had no room for more (`ENOBUFS`).
///
/// # Errors
///
/// What the kernel refuses: rules are only told to who may administer the network (`CAP_NET_ADMIN`).
pub fn changes() -> Result<[OwnedFd; 2], OperatorError> {
    Ok(watch::changes()?)
}

/// Brings back what running Pods need and somebody removed or switched off, and tells each thing.
///
/// The nftables tables' rules and elements and forwarding are those of every network in `places`; the bridge is brought
/// up and gets its gateway's addresses only for the network of the node's config, as records of others don't tell what
/// its addresses have to be. Nothing is done for a network without Pods, or of which no link is in this namespace.
///
/// # Errors
///
/// What kept it from looking or from repairing; what came before that is done, and told by no one.
pub fn restore(places: &Places, settings: Option<&NetworkSettings>) -> Result<Vec<Repair>, OperatorError> {
    let networks = match places.networks() {
        Err(OperatorError::NoNetwork(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let mut repairs = Vec::new();
    let mut host = RouteSocket::open()?;
    let mut served: Vec<Record> = Vec::new();
    let mut directories = Vec::new();
    let links = link::all(&mut host)?;
    for network in &networks {
        // Rules in another network namespace than the links' would serve nobody.
        if !is_here(network, &links)? {
            continue;
        }
        // One that can't be read has nothing that could be restored.
        let records = network.store.records()?.into_iter().filter_map(|(_, record)| record.ok());
        served.extend(records.filter(|record| record.state == AttachmentState::Active));
        if !directories.contains(&&network.data_dir) {
            directories.push(&network.data_dir);
        }
    }
    let missing = service::rule_differences(served.iter())?;
    if !missing.is_empty() {
        for directory in directories {
            service::restore(directory).map_err(|failure| OperatorError::Kernel(failure.one_line()))?;
        }
        repairs.extend(missing.into_iter().map(|missing| Repair { what: "rules", missing }));
    }
    forward(&served, &mut repairs)?;
    if let Some(settings) = settings
        && served.iter().any(|record| record.kind == Kind::Bridge && record.network == settings.name)
        && let Some(bridge) = link::find(&mut host, &settings.bridge)?
    {
        mend_bridge(&mut host, &bridge, settings, &mut repairs)?;
    }
    Ok(repairs)
}

fn forward(served: &[Record], repairs: &mut Vec<Repair>) -> Result<(), OperatorError> {
    for (is_ipv4, switch) in [(true, sysctl::FORWARD_V4), (false, sysctl::FORWARD_V6)] {
        // A Pod with a gateway reaches others through this node.
        let is_needed = served.iter().filter(|record| !record.host_interface.is_empty()).any(|record| {
            record.addresses.iter().any(|lease| lease.gateway.is_some() && lease.address.addr().is_ipv4() == is_ipv4)
        });
        if is_needed && sysctl::read(switch)? == "0" {
            sysctl::ensure(switch, "1")?;
            repairs.push(Repair { what: "forwarding", missing: format!("/proc/sys/net/{switch} was 0") });
        }
    }
    Ok(())
}

fn mend_bridge(
    host: &mut RouteSocket,
    bridge: &Link,
    settings: &NetworkSettings,
    repairs: &mut Vec<Repair>,
) -> Result<(), OperatorError> {
    if !bridge.up {
        host.request(format!("bring up the bridge {}", bridge.name), veth::up(bridge.index), 0)?;
        repairs.push(Repair { what: "bridge", missing: format!("the bridge {} was down", bridge.name) });
    }
    let found = address::of_link(host, bridge.index)?;
    let gateways = settings.ranges.iter().filter_map(|range| IpNet::new(range.gateway, range.subnet.prefix_len()).ok());
    for gateway in gateways.filter(|gateway| !found.contains(gateway)) {
        let doing = format!("add the address {gateway} to {}", bridge.name);
        host.request(doing, address::add(bridge.index, gateway), NLM_F_CREATE | NLM_F_EXCL)?;
        repairs.push(Repair { what: "address", missing: format!("the bridge {} lacked {gateway}", bridge.name) });
    }
    Ok(())
}
