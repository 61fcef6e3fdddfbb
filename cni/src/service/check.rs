//! CHECK: is the attachment still as it was made?

use std::collections::HashSet;

use ipnet::IpNet;
use keelson_host::Problem;

use crate::{
    config::{
        invocation::AttachmentCall,
        network::{Attachment, NetworkConfig, Route},
        previous::{PreviousInterface, PreviousResult},
    },
    error::Failure,
    kernel::{
        RouteSocket, address, bridge,
        link::{self, Link},
        masquerade,
        netns::Namespace,
        route::{self, FoundRoute},
        sysctl,
    },
    store::{Record, Store},
};

/// Compares record, previous result and config with the kernel, and names every difference.
///
/// Only what this plugin made is looked at, and more than that is no difference: later plugins of the chain may add.
pub(super) fn check(config: &NetworkConfig, call: &AttachmentCall) -> Result<(), Failure> {
    let namespace = Namespace::open(&call.netns.clone().unwrap_or_default())?;
    let mut inside = namespace.route_socket()?;
    let attachment = config.attachment(&call.args)?;
    let Some(previous) = config.prev_result() else {
        let remedy = "give CHECK the result of the ADD";
        return Err(Problem::new("prevResult", "", "Required prevResult missing", remedy).into());
    };
    let previous = PreviousResult::parse(previous)?;
    let store = Store::new(&config.data_dir, &config.name)?;
    let _lock = store.lock_attachment(&call.key)?;
    let Some(record) = store.read(&call.key)? else {
        return Err(Failure::CheckFailed(vec!["there is no record of the attachment".to_owned()]));
    };
    let mut host = RouteSocket::open()?;
    let mut differences = compare_with_record(&record, &mut host, &mut inside)?;
    differences.extend(compare_with_result(&record, &previous, &namespace, &mut inside)?);
    differences.extend(compare_network(&attachment, &record, &mut host)?);
    // Record and result mostly want the same.
    let mut told = HashSet::new();
    differences.retain(|difference| told.insert(difference.clone()));
    if differences.is_empty() { Ok(()) } else { Err(Failure::CheckFailed(differences)) }
}

/// What the kernel has otherwise than the record.
pub(super) fn compare_with_record(
    record: &Record,
    host: &mut RouteSocket,
    inside: &mut RouteSocket,
) -> Result<Vec<String>, Failure> {
    let mut differences = Vec::new();
    let bridge = link::find(host, &record.bridge)?;
    match (link::find(host, &record.host_interface)?, &bridge) {
        (None, _) => differences.push(format!("the host has no link {}", record.host_interface)),
        (Some(_), None) => differences.push(format!("the host has no bridge {}", record.bridge)),
        (Some(link), Some(bridge)) => {
            if link.master != Some(bridge.index) {
                differences.push(format!("{} is no port of the bridge {}", link.name, bridge.name));
            }
            for link in [&link, bridge] {
                if !link.up {
                    differences.push(format!("{} is down", link.name));
                }
            }
        }
    }
    let ifname = &record.key.ifname;
    let Some(container) = link::find(inside, ifname)? else {
        differences.push(format!("the container has no interface {ifname}"));
        return Ok(differences);
    };
    if !container.up {
        differences.push(format!("{ifname} is down"));
    }
    compare_mac(&container, &record.container_mac, &mut differences);
    let wanted: Vec<IpNet> = record.addresses.iter().map(|lease| lease.address).collect();
    compare_addresses(inside, &container, &wanted, &mut differences)?;
    compare_routes(&route::all(inside)?, &container, &record.routes, &mut differences);
    Ok(differences)
}

/// What the previous result says otherwise than record and kernel.
fn compare_with_result(
    record: &Record,
    previous: &PreviousResult,
    namespace: &Namespace,
    inside: &mut RouteSocket,
) -> Result<Vec<String>, Failure> {
    let mut differences = Vec::new();
    let ifname = &record.key.ifname;
    let is_own = |interface: &PreviousInterface| interface.name == *ifname && namespace.is_at(&interface.sandbox);
    let Some(index) = previous.interfaces.iter().position(is_own) else {
        differences.push(format!("prevResult has no interface {ifname} in the sandbox {}", namespace.path().display()));
        return Ok(differences);
    };
    // That it's gone, the record has told.
    let Some(container) = link::find(inside, ifname)? else { return Ok(differences) };
    // The result first: a later plugin of the chain may have changed the MTU, and said so there.
    if let Some(wanted) = previous.interfaces[index].mtu.or(record.mtu).filter(|wanted| *wanted != container.mtu) {
        differences.push(format!("{ifname} has the MTU {} instead of {wanted}", container.mtu));
    }
    if !previous.interfaces[index].mac.is_empty() {
        compare_mac(&container, &previous.interfaces[index].mac, &mut differences);
    }
    let wanted: Vec<IpNet> = previous
        .addresses
        .iter()
        .filter(|address| address.interface == Some(index))
        .map(|address| address.address)
        .collect();
    for lease in record.addresses.iter().filter(|lease| !wanted.contains(&lease.address)) {
        differences.push(format!("prevResult lacks the address {}", lease.address));
    }
    compare_addresses(inside, &container, &wanted, &mut differences)?;
    Ok(differences)
}

/// What the network has otherwise than the config asks for.
fn compare_network(attachment: &Attachment, record: &Record, host: &mut RouteSocket) -> Result<Vec<String>, Failure> {
    let mut differences = Vec::new();
    let ranges = || attachment.sets.iter().flat_map(|set| &set.0);
    if attachment.hairpin && link::find(host, &record.host_interface)?.is_some_and(|port| !port.hairpin) {
        differences.push(format!("{} is not in hairpin mode", record.host_interface));
    }
    if attachment.is_gateway {
        for (is_ipv4, switch) in [(true, sysctl::FORWARD_V4), (false, sysctl::FORWARD_V6)] {
            if attachment.sets.iter().any(|set| set.is_ipv4() == is_ipv4) && sysctl::read(switch)? == "0" {
                differences.push(format!("the host does not forward: /proc/sys/net/{switch} is 0"));
            }
        }
    }
    if attachment.is_gateway
        && let Some(bridge) = link::find(host, &attachment.bridge)?
    {
        let found = address::of_link(host, bridge.index)?;
        for range in ranges().filter(|range| !bridge::has_address(&found, range.gateway)) {
            differences.push(format!("the bridge {} lacks the gateway address {}", bridge.name, range.gateway));
        }
    }
    if attachment.masquerade {
        let subnets: Vec<IpNet> = ranges().map(|range| range.subnet).collect();
        differences.extend(masquerade::differences(&subnets)?);
    }
    Ok(differences)
}

fn compare_mac(link: &Link, wanted: &str, differences: &mut Vec<String>) {
    let found: Vec<String> = link.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let found = found.join(":");
    if !found.eq_ignore_ascii_case(wanted) {
        differences.push(format!("{} has the Ethernet address {found} instead of {wanted}", link.name));
    }
}

fn compare_addresses(
    inside: &mut RouteSocket,
    link: &Link,
    wanted: &[IpNet],
    differences: &mut Vec<String>,
) -> Result<(), Failure> {
    if wanted.is_empty() {
        return Ok(());
    }
    let found = address::of_link(inside, link.index)?;
    for address in wanted.iter().filter(|address| !found.contains(address)) {
        differences.push(format!("{} lacks the address {address}", link.name));
    }
    Ok(())
}

fn compare_routes(found: &[FoundRoute], link: &Link, wanted: &[Route], differences: &mut Vec<String>) {
    for route in wanted {
        let is_there = found.iter().any(|candidate| {
            candidate.dst == route.dst
                && candidate.gateway == route.gw
                && candidate.link == Some(link.index)
                && candidate.table == route.table()
        });
        if !is_there {
            let via = route.gw.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            differences.push(format!("the container lacks the route to {}{via}", route.dst));
        }
    }
}
