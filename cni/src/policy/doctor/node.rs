//! The node around the networks: forwarding, router advertisements, routes, MTUs, other networks.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{Finding, Snapshot, firewall::subnets};
use crate::{
    kernel::{
        link::Link,
        sysctl::{FORWARD_V4, FORWARD_V6},
    },
    policy::naming,
};

pub(super) fn examine(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = forwarding(snapshot);
    findings.extend(router_advertisements(snapshot));
    findings.extend(reverse_path(snapshot));
    findings.extend(overlaps(snapshot));
    findings.extend(uplink_mtu(snapshot));
    findings
}

fn forwarding(snapshot: &Snapshot) -> Vec<Finding> {
    let subnets = subnets(snapshot);
    let mut findings = Vec::new();
    for (is_ipv4, switch) in [(true, FORWARD_V4), (false, FORWARD_V6)] {
        let needed = subnets.iter().any(|subnet| subnet.addr().is_ipv4() == is_ipv4);
        if needed && snapshot.switches.get(switch).is_some_and(|value| value == "0") {
            let remedy = format!("sysctl -w net.{}=1", switch.replace('/', "."));
            let problem = "the node doesn't forward: its Pods reach nothing outside their bridge";
            findings.push(Finding::error("forwarding", switch, problem, remedy));
        }
    }
    findings
}

/// A host that forwards IPv6 takes no router advertisements unless it is told so twice, and loses its default route.
fn router_advertisements(snapshot: &Snapshot) -> Vec<Finding> {
    let forwards = snapshot.switches.get(FORWARD_V6).is_some_and(|value| value == "1");
    let candidates = snapshot.host.links.iter().filter(|link| forwards && !is_ours(link, snapshot));
    candidates
        .filter(|link| snapshot.switches.get(&format!("ipv6/conf/{}/accept_ra", link.name)).is_some_and(|on| on == "1"))
        // Without a default route of its family there are none to lose, or another way to have them.
        .filter(|link| snapshot.host.uplinks().any(|uplink| uplink.index == link.index))
        .map(|link| {
            let problem = "the node forwards IPv6 and accept_ra is 1: router advertisements are ignored, and a default route \
                           that came by one runs out";
            let remedy = format!("sysctl -w net.ipv6.conf.{}.accept_ra=2", link.name);
            Finding::warning("accept-ra", &link.name, problem, remedy)
        })
        .collect()
}

/// Strict reverse-path filtering drops what comes by another way than the answer would take: a second network's replies.
fn reverse_path(snapshot: &Snapshot) -> Vec<Finding> {
    let mut networks_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for record in snapshot.attachments().map(|attachment| &attachment.record) {
        if !record.host_interface.is_empty() {
            networks_of.entry(&record.key.container_id).or_default().insert(&record.bridge);
        }
    }
    let several: BTreeSet<&str> = networks_of.into_values().filter(|bridges| bridges.len() > 1).flatten().collect();
    let value = |name: &str| snapshot.switches.get(&format!("ipv4/conf/{name}/rp_filter")).map_or("0", String::as_str);
    // The kernel takes the larger of both: 2, loose, wins.
    let strict = |name: &str| value("all").max(value(name)) == "1";
    several
        .into_iter()
        .filter(|name| snapshot.host.link(name).is_some() && strict(name))
        .map(|name| {
            let problem = "Pods have an interface here and another one elsewhere, and rp_filter is strict: what they send by \
                           the wrong one of the two is dropped";
            Finding::warning("rp-filter", name, problem, format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2"))
        })
        .collect()
}

fn overlaps(snapshot: &Snapshot) -> Vec<Finding> {
    let mut owners: BTreeMap<IpNet, BTreeSet<&str>> = BTreeMap::new();
    for network in &snapshot.networks {
        for record in network.attachments.iter().map(|attachment| &attachment.record) {
            for lease in record.addresses.iter().filter(|_| !record.host_interface.is_empty()) {
                owners.entry(lease.address.trunc()).or_default().insert(&network.name);
            }
        }
    }
    let overlap = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    let remedy = "give each network a subnet of its own";
    let mut findings = Vec::new();
    let all: Vec<(&IpNet, &BTreeSet<&str>)> = owners.iter().collect();
    for (position, (subnet, names)) in all.iter().enumerate() {
        if names.len() > 1 {
            let names: Vec<&str> = names.iter().copied().collect();
            let problem = format!("the networks {} have one subnet", names.join(" and "));
            findings.push(Finding::warning("overlap", subnet.to_string(), problem, remedy));
        }
        for (other, others) in all[position + 1..].iter().filter(|(other, _)| overlap(subnet, other)) {
            let problem = format!("{} overlaps with {other} of {}", listed(names), listed(others));
            findings.push(Finding::warning("overlap", subnet.to_string(), problem, remedy));
        }
        for route in snapshot.host.routes.iter().filter(|route| !route.is_local() && route.dst.prefix_len() > 0) {
            let Some(link) = route.link.and_then(|index| snapshot.host.link_at(index)) else { continue };
            if overlap(subnet, &route.dst) && !is_ours(link, snapshot) {
                let problem =
                    format!("the host has a route to {} by {}: who is there can't be reached", route.dst, link.name);
                let remedy = "give the network another subnet in its config".to_owned();
                findings.push(Finding::error("overlap", subnet.to_string(), problem, remedy));
            }
        }
    }
    findings
}

fn listed(names: &BTreeSet<&str>) -> String {
    names.iter().copied().collect::<Vec<_>>().join(", ")
}

/// Larger packets than the uplink takes only get through where path MTU discovery works.
fn uplink_mtu(snapshot: &Snapshot) -> Vec<Finding> {
    let largest = snapshot
        .attachments()
        .filter_map(|attachment| Some((attachment.record.mtu?, &attachment.record.network)))
        .max();
    let Some((mtu, network)) = largest else { return Vec::new() };
    snapshot
        .host
        .uplinks()
        .filter(|uplink| uplink.mtu < mtu && !is_ours(uplink, snapshot))
        .map(|uplink| {
            let problem = format!("the uplink has the MTU {}, and Pods of {network} have {mtu}", uplink.mtu);
            let remedy = format!("set \"mtu\": {} in the network config of {network}, for new Pods", uplink.mtu);
            Finding::warning("mtu", &uplink.name, problem, remedy)
        })
        .collect()
}

/// A bridge or a host's end of the networks'.
fn is_ours(link: &Link, snapshot: &Snapshot) -> bool {
    naming::is_own_link(&link.name)
        || snapshot.configured.as_ref().is_some_and(|configured| configured.bridge == link.name)
        || snapshot
            .attachments()
            .any(|attachment| attachment.record.bridge == link.name || attachment.record.host_interface == link.name)
}
