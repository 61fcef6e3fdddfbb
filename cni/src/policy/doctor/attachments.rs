//! One attachment's links, addresses and routes, and what several have in common that they must not.

use std::collections::BTreeMap;

use super::{AttachmentFacts, Finding, Interfaces, NamespaceFacts, Severity, Snapshot, word};
use crate::{
    config::route::Route,
    kernel::link::Link,
    policy::{naming, needs},
    store::{AttachmentState, Kind, Record, describe},
};

/// An ADD or DEL takes less than a second; the longest it waits is for a lock, 30 seconds.
const LONGEST_CALL_SECONDS: u64 = 120;

/// What differs between a record and its links on both sides.
pub(crate) fn examine_attachment(attachment: &AttachmentFacts, snapshot: &Snapshot) -> Vec<Finding> {
    let record = &attachment.record;
    let subject = describe(record);
    if record.state == AttachmentState::Pending {
        let age = snapshot.now_seconds.saturating_sub(record.created_at_seconds);
        let killed = age > LONGEST_CALL_SECONDS;
        let problem = format!("an ADD or DEL began {age} s ago and didn't end: it was killed");
        return killed.then(|| Finding::warning("pending", subject, problem, collect(record))).into_iter().collect();
    }
    if record.host_interface.is_empty() {
        return Vec::new();
    }
    let Some(host) = snapshot.host.link(&record.host_interface) else {
        let problem = format!("the host's link {} is gone", record.host_interface);
        return vec![match attachment.namespace {
            NamespaceFacts::Gone => Finding::warning(
                "stale",
                subject,
                format!("{problem}, and so is the container's namespace; the record keeps its addresses"),
                collect(record),
            ),
            _ => Finding::error("link-missing", subject, format!("{problem}: the Pod has no network"), replace(record)),
        }];
    };
    let mut findings = host_side(record, &subject, host, snapshot);
    findings.extend(shaping(attachment, &subject, snapshot));
    match &attachment.namespace {
        NamespaceFacts::Entered(inside) => findings.extend(container_side(attachment, &subject, host, inside)),
        NamespaceFacts::Gone => findings.push(Finding::warning(
            "namespace-gone",
            subject,
            format!("{} is not the container's namespace any more, but its link lives", record.netns),
            collect(record),
        )),
        NamespaceFacts::Closed(reason) => findings.push(Finding::warning(
            "namespace-closed",
            subject,
            format!("the container could not be looked into: {reason}"),
            "run this on the host, or in a Pod with hostNetwork, hostPID and the host's /run",
        )),
    }
    findings
}

fn host_side(record: &Record, subject: &str, host: &Link, snapshot: &Snapshot) -> Vec<Finding> {
    let name = &host.name;
    let mut findings = Vec::new();
    if !host.up {
        let problem = format!("the host's link {name} is down");
        findings.push(Finding::error("link-down", subject, problem, format!("ip link set {name} up")));
    }
    if record.kind == Kind::Bridge
        && let Some(bridge) = snapshot.host.link(&record.bridge)
        && host.master != Some(bridge.index)
    {
        let problem = format!("the host's link {name} is no port of the bridge {}", bridge.name);
        let remedy = format!("ip link set {name} master {}", bridge.name);
        findings.push(Finding::error("not-in-bridge", subject, problem, remedy));
    }
    if record.kind == Kind::Routed {
        for lease in &record.addresses {
            let address = lease.address.addr();
            let leads_there = snapshot.host.routes.iter().any(|route| {
                route.dst.addr() == address
                    && route.dst.prefix_len() == route.dst.max_prefix_len()
                    && route.link == Some(host.index)
            });
            if !leads_there {
                let problem = format!("the host has no route to {address} by {name}");
                findings.push(Finding::error(
                    "host-route",
                    subject,
                    problem,
                    format!("ip route add {address} dev {name}"),
                ));
            }
        }
    }
    let found = host.mac_text();
    if !record.host_mac.is_empty() && found != record.host_mac {
        let mut problem = format!("{name} has the Ethernet address {found} instead of {}", record.host_mac);
        let mut remedy = format!("ip link set {name} address {}", record.host_mac);
        if let Some(file) = snapshot.mac_policies.first() {
            problem.push_str(&format!("; udev may have done that: {} has MACAddressPolicy=persistent", file.display()));
            remedy.push_str(
                "; to keep udev from it: printf '[Match]\\nOriginalName=kl*\\n[Link]\\nMACAddressPolicy=none\\n' \
                 > /etc/systemd/network/10-keelson.link",
            );
        }
        findings.push(Finding::warning("mac-changed", subject, problem, remedy));
    }
    findings
}

/// What is sent through a link that is gone or down is lost; else there is only no limit.
fn shaping(attachment: &AttachmentFacts, subject: &str, snapshot: &Snapshot) -> Option<Finding> {
    let record = &attachment.record;
    let problem = attachment.shaping_differences.join("; ");
    let is_cut =
        record.shaping_interface.as_deref().is_some_and(|name| snapshot.host.link(name).is_none_or(|link| !link.up));
    let severity = if is_cut { Severity::Error } else { Severity::Warning };
    let found = Finding { severity, ..Finding::error("shaping", subject, problem, replace(record)) };
    (!found.problem.is_empty()).then_some(found)
}

fn container_side(attachment: &AttachmentFacts, subject: &str, host: &Link, inside: &Interfaces) -> Vec<Finding> {
    let record = &attachment.record;
    let ifname = &record.key.ifname;
    let enter = format!("nsenter --net={} ip", word(&record.netns));
    let Some(link) = inside.link(ifname) else {
        let problem = format!("the container has no interface {ifname}");
        return vec![Finding::error("interface-missing", subject, problem, replace(record))];
    };
    let mut findings = Vec::new();
    if !link.up && !record.container_down {
        let problem = format!("{ifname} in the container is down");
        findings.push(Finding::error("interface-down", subject, problem, format!("{enter} link set {ifname} up")));
    }
    let found = link.mac_text();
    if !record.container_mac.is_empty() && !found.eq_ignore_ascii_case(&record.container_mac) {
        let problem = format!("{ifname} has the Ethernet address {found} instead of {}", record.container_mac);
        let remedy = format!("{enter} link set {ifname} address {}", record.container_mac);
        findings.push(Finding::warning("mac-changed", subject, problem, remedy));
    }
    for lease in record.addresses.iter().filter(|lease| !inside.has_address(link.index, lease.address)) {
        let problem = format!("{ifname} in the container lacks the address {}", lease.address);
        let no_dad = if lease.address.addr().is_ipv6() { " nodad" } else { "" };
        let remedy = format!("{enter} address add {} dev {ifname}{no_dad}", lease.address);
        findings.push(Finding::error("address-missing", subject, problem, remedy));
    }
    let is_there = |wanted: &Route| inside.routes.iter().any(|found| found.is(wanted, link.index));
    for route in needs::container_routes(record).filter(|route| !is_there(route)) {
        let via = route.gw.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        let problem = format!("the container lacks the route to {}{via}", route.dst);
        let table = route.table.map(|table| format!(" table {table}")).unwrap_or_default();
        let remedy = format!("{enter} route add {}{via} dev {ifname}{table}", route.dst);
        findings.push(Finding::error("route-missing", subject, problem, remedy));
    }
    for (source, table) in &attachment.missing_source_rules {
        let problem = format!("the container lacks the rule from {source} to table {table}");
        let family = if source.is_ipv6() { " -6" } else { "" };
        let remedy = format!("{enter}{family} rule add from {source} lookup {table}");
        findings.push(Finding::error("source-rule", subject, problem, remedy));
    }
    if link.mtu != host.mtu {
        let problem = format!("{ifname} has the MTU {}, the host's link {} has {}", link.mtu, host.name, host.mtu);
        let mtu = record.mtu.unwrap_or(link.mtu);
        let remedy = format!("ip link set {} mtu {mtu} && {enter} link set {ifname} mtu {mtu}", host.name);
        findings.push(Finding::error("mtu", subject, problem, remedy));
    }
    findings
}

/// Addresses that two containers hold, or a container and the host.
pub(super) fn duplicates(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut holders: BTreeMap<_, Vec<&Record>> = BTreeMap::new();
    for attachment in snapshot.attachments() {
        for lease in &attachment.record.addresses {
            holders.entry(lease.address.addr()).or_default().push(&attachment.record);
        }
    }
    for (address, records) in &holders {
        // One container may hold it by two records: one of its addresses, one of its host ports.
        let Some(first) = records.first() else { continue };
        if let Some(other) = records.iter().find(|other| other.key.container_id != first.key.container_id) {
            let (older, newer) =
                if other.created_at_seconds < first.created_at_seconds { (*other, *first) } else { (*first, *other) };
            let problem = format!(
                "{} of the network {} and {} of the network {} both have it",
                describe(older),
                older.network,
                describe(newer),
                newer.network
            );
            findings.push(Finding::error("duplicate-address", address.to_string(), problem, replace(newer)));
        }
        for (index, own) in snapshot.host.addresses.iter().filter(|(_, own)| own.addr() == *address) {
            let link = snapshot.host.link_at(*index).map_or("?", |link| link.name.as_str());
            let problem = format!("{} has it, and so does the host's link {link}", describe(first));
            let remedy = format!("ip address del {own} dev {link}");
            findings.push(Finding::error("duplicate-address", address.to_string(), problem, remedy));
        }
    }
    findings
}

/// Links of ours that no record knows.
pub(super) fn orphans(snapshot: &Snapshot) -> Vec<Finding> {
    let mut known: Vec<String> = Vec::new();
    for network in &snapshot.networks {
        for record in network.attachments.iter().map(|attachment| &attachment.record) {
            known.push(record.host_interface.clone());
            known.extend(record.shaping_interface.clone());
        }
        // A record that can't be read still has its links.
        known.extend(network.unreadable.iter().flat_map(|(key, _)| naming::own_links(&network.name, key)));
    }
    let orphans = snapshot
        .host
        .links
        .iter()
        .filter(|link| !known.contains(&link.name))
        .filter_map(|link| Some((link, owner(link)?)));
    orphans
        .map(|(link, network)| {
            let name = &link.name;
            match snapshot.networks.iter().find(|found| found.name == network) {
                Some(_) => Finding::warning(
                    "orphan-link",
                    name,
                    format!("the link is the network {network}'s ({}), and no record knows it", link.alias),
                    format!("keelson network gc --network {network}"),
                ),
                None => Finding::warning(
                    "unknown-network",
                    name,
                    format!("the link is the network {network}'s, whose records were not found"),
                    "name their directory with --data-dir; if there is none any more: ip link del ".to_owned() + name,
                ),
            }
        })
        .collect()
}

/// The network that made a link, from its alias; `None` for links that aren't ours.
pub(crate) fn owner(link: &Link) -> Option<&str> {
    naming::is_own_link(&link.name).then_some(())?;
    link.alias.strip_prefix("keelson:")?.split_once(':').map(|(network, _)| network)
}

fn collect(record: &Record) -> String {
    format!("keelson network gc --network {}", record.network)
}

/// What is gone inside a container only comes back with a new one.
fn replace(record: &Record) -> String {
    if record.pod.name.is_empty() {
        return format!("remove the container {}; its runtime makes the network anew", record.key.container_id);
    }
    format!("kubectl delete pod --namespace {} {}", word(&record.pod.namespace), word(&record.pod.name))
}
