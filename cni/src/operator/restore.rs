//! Bringing back what somebody removed under running Pods: rules, gateway addresses, forwarding.

use std::os::fd::OwnedFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use serde::Serialize;

use super::{OperatorError, Places, gather::is_here};
use crate::{
    NetworkSettings,
    kernel::{RouteSocket, address, bridge, link, sysctl, veth, watch},
    policy::needs,
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
/// up and gets the gateways' addresses that records and the node's config tell of. Nothing is done for a network without
/// Pods, or of which no link is in this namespace.
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
    mend_links(&mut host, &served, settings, &mut repairs)?;
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

/// Brings up the bridges, and the links that carry gateways' addresses, and gives them those. Links that are gone stay so.
fn mend_links(
    host: &mut RouteSocket,
    served: &[Record],
    settings: Option<&NetworkSettings>,
    repairs: &mut Vec<Repair>,
) -> Result<(), OperatorError> {
    let attached = || served.iter().filter(|record| record.kind == Kind::Bridge);
    let mut wanted = needs::gateways(attached());
    // Records of earlier releases don't tell; the config does.
    if let Some(settings) = settings.filter(|settings| attached().any(|record| record.network == settings.name)) {
        for range in &settings.ranges {
            let gateway = IpNet::new(range.gateway, range.subnet.prefix_len()).ok();
            let own = gateway.map(|gateway| (settings.bridge.as_str(), gateway));
            wanted.extend(own.filter(|own| !wanted.contains(own)));
        }
    }
    let mut names: Vec<&str> = attached().map(|record| record.bridge.as_str()).collect();
    names.extend(wanted.iter().map(|(name, _)| *name));
    names.sort_unstable();
    names.dedup();
    for name in names {
        let Some(link) = link::find(host, name)? else { continue };
        if !link.up {
            host.request(format!("bring up {name}"), veth::up(link.index), 0)?;
            repairs.push(Repair { what: "bridge", missing: format!("the bridge {name} was down") });
        }
        let found = address::of_link(host, link.index)?;
        let is_missing = |gateway: IpNet| !bridge::has_address(&found, gateway.addr());
        for (_, gateway) in wanted.iter().filter(|(link, gateway)| *link == name && is_missing(*gateway)) {
            let doing = format!("add the address {gateway} to {name}");
            host.request(doing, address::add(link.index, *gateway), NLM_F_CREATE | NLM_F_EXCL)?;
            repairs.push(Repair { what: "address", missing: format!("the bridge {name} lacked {gateway}") });
        }
    }
    Ok(())
}
