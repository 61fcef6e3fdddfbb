//! The bridges that attachments are ports of.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{Finding, Snapshot};
use crate::{
    config::mac::Mac,
    kernel::{bridge, link::Link},
    policy::{naming, needs},
    store::{AttachmentState, Kind, Record},
};

pub(super) fn examine(snapshot: &Snapshot) -> Vec<Finding> {
    let mut by_bridge: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for attachment in snapshot.attachments().filter(|attachment| attachment.record.kind == Kind::Bridge) {
        by_bridge.entry(&attachment.record.bridge).or_default().push(&attachment.record);
    }
    let mut findings = gateways(snapshot);
    for (name, records) in by_bridge {
        let Some(first) = records.first() else { continue };
        match snapshot.host.link(name) {
            None => findings.push(missing(name, first, records.len())),
            Some(link) if link.kind != "bridge" => {
                let problem = "Pods are to be ports of this bridge, and it is no bridge";
                let remedy = format!("ip link set {name} name {}, then keelson network restore", renamed(name));
                findings.push(Finding::error("not-a-bridge", name, problem, remedy));
            }
            Some(link) => findings.extend(existing(link, &records, snapshot)),
        }
    }
    findings
}

fn missing(name: &str, record: &Record, pods: usize) -> Finding {
    let mac = naming::bridge_mac(&record.boot_id, name);
    let mtu = record.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
    let mut remedy = format!(
        "ip link add {name} address {mac} type bridge && ip link set {name} alias {} up{mtu}",
        bridge::alias(&record.network)
    );
    for lease in &record.addresses {
        if let Some(gateway) = lease.gateway {
            remedy.push_str(&format!(" && ip address add {gateway}/{} dev {name}", lease.address.prefix_len()));
        }
    }
    Finding::error("bridge-missing", name, format!("the bridge of {pods} attachments is gone"), remedy)
}

/// A name that fits the kernel's 15 bytes.
fn renamed(name: &str) -> String {
    let short: String = name.chars().take(11).collect();
    format!("{short}-old")
}

fn existing(link: &Link, records: &[&Record], snapshot: &Snapshot) -> Vec<Finding> {
    let name = &link.name;
    let mut findings = Vec::new();
    if !link.up {
        findings.push(Finding::error("bridge-down", name, "the bridge is down", format!("ip link set {name} up")));
    }
    if let Some(mtu) = records.iter().filter_map(|record| record.mtu).max().filter(|mtu| *mtu > link.mtu) {
        let problem = format!("the bridge has the MTU {}, and a Pod on it {mtu}: its large packets are lost", link.mtu);
        findings.push(Finding::error("mtu", name, problem, format!("ip link set {name} mtu {mtu}")));
    }
    findings.extend(ethernet_address(link, records, snapshot));
    findings
}

/// A bridge's Ethernet address that changes breaks every Pod's neighbour entry.
fn ethernet_address(link: &Link, records: &[&Record], snapshot: &Snapshot) -> Option<Finding> {
    let name = &link.name;
    let found = link.mac_text();
    let is_ours = records.iter().any(|record| link.alias == bridge::alias(&record.network));
    let wanted: Option<Mac> = records.first().map(|record| naming::bridge_mac(&record.boot_id, name));
    if let Some(wanted) = wanted.filter(|wanted| is_ours && wanted.0[..] != link.mac[..]) {
        let problem =
            format!("the bridge has the Ethernet address {found} instead of {wanted}, with which it was made");
        let remedy = format!("ip link set {name} address {wanted}");
        return Some(Finding::warning("mac-changed", name, problem, remedy));
    }
    let follows_port = |port: &&Link| port.master == Some(link.index) && port.mac == link.mac;
    let port = snapshot.host.links.iter().find(follows_port)?;
    let problem = format!("the bridge has the Ethernet address of its port {}: it changes with the ports", port.name);
    // Setting the address that it has pins it.
    Some(Finding::warning("mac-not-pinned", name, problem, format!("ip link set {name} address {found}")))
}

/// What links have to carry by the config and by records, and what they seem to have to by records that don't tell.
fn gateways(snapshot: &Snapshot) -> Vec<Finding> {
    let records = || snapshot.attachments().map(|attachment| &attachment.record).filter(|record| is_complete(record));
    let mut wanted = needs::gateways(records());
    if let Some(configured) = &snapshot.configured
        && records().any(|record| record.bridge == configured.bridge)
    {
        for gateway in &configured.gateways {
            let own = (configured.bridge.as_str(), *gateway);
            wanted.extend(Some(own).filter(|own| !wanted.contains(own)));
        }
    }
    let mut findings: Vec<Finding> = Vec::new();
    for (name, gateway) in &wanted {
        // That the bridge is missing is told.
        let Some(link) = snapshot.host.link(name) else { continue };
        let is_there = |(index, own): &(u32, IpNet)| *index == link.index && own.addr() == gateway.addr();
        if !snapshot.host.addresses.iter().any(is_there) {
            let problem = format!("the link lacks the gateway's address {gateway}: its Pods reach nothing outside it");
            let remedy = format!("ip address add {gateway} dev {name}");
            findings.push(Finding::error("gateway-missing", *name, problem, remedy));
        }
    }
    let mut told: Vec<IpAddr> = wanted.iter().map(|(_, gateway)| gateway.addr()).collect();
    for record in records().filter(|record| record.gateway_interface.is_none()) {
        let Some(link) = snapshot.host.link(&record.bridge) else { continue };
        for lease in &record.addresses {
            let Some(gateway) = lease.gateway else { continue };
            let is_used = record.routes.iter().any(|route| route.gw == Some(gateway));
            let is_somewhere = snapshot.host.addresses.iter().any(|(_, own)| own.addr() == gateway);
            if is_used && !is_somewhere && !told.contains(&gateway) {
                told.push(gateway);
                let problem =
                    format!("the bridge lacks the gateway's address {gateway}, unless a router elsewhere on it has it");
                let remedy = format!("ip address add {gateway}/{} dev {}", lease.address.prefix_len(), link.name);
                findings.push(Finding::warning("gateway-missing", &link.name, problem, remedy));
            }
        }
    }
    findings
}

fn is_complete(record: &Record) -> bool {
    record.kind == Kind::Bridge && record.state == AttachmentState::Active
}
