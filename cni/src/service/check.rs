//! CHECK: is the attachment still as it was made?

use std::collections::HashSet;

use ipnet::IpNet;
use keelson_host::Problem;

use super::{
    delegate::Delegate,
    rules, source_routing,
    wire::{gateway_link, gateways, masqueraded},
};
use crate::{
    config::{
        invocation::AttachmentCall,
        network::{Attachment, NetworkConfig},
        result::{CniResult, Interface},
        route::Route,
        sysctl::Switch,
    },
    error::Failure,
    kernel::{
        KernelError, RouteSocket, address, bridge,
        link::{self, Link},
        netns::Namespace,
        route::{self, FoundRoute},
        shaping, sysctl, vlan,
    },
    policy::needs,
    store::{Kind, Record, Store},
};

/// Compares record, previous result and config with the kernel, and names every difference.
///
/// Only what this plugin made is looked at, and more than that is no difference: later plugins of the chain may add.
pub(super) fn check(config: &NetworkConfig, call: &AttachmentCall) -> Result<(), Failure> {
    let namespace = Namespace::open(&call.netns.clone().unwrap_or_default())?;
    let mut inside = namespace.route_socket()?;
    let attachment = config.attachment(&call.args)?;
    let previous = required_result(config)?;
    if let Some(delegate) = Delegate::of(config)? {
        delegate.call("CHECK")?;
    }
    let store = Store::new(&config.data_dir, &config.name)?;
    let _lock = store.lock_attachment(&call.key)?;
    let Some(record) = store.read(&call.key)? else {
        return Err(Failure::CheckFailed(vec!["there is no record of the attachment".to_owned()]));
    };
    let mut host = RouteSocket::open()?;
    let mut differences = compare_with_record(&record, &mut host, &mut inside)?;
    differences.extend(compare_with_result(&record, &previous, &namespace, &mut inside)?);
    differences.extend(compare_network(&attachment, &record, &mut host)?);
    differences.extend(compare_switches(&attachment.options.switches, &record.key.ifname, &namespace)?);
    // Record and result mostly want the same.
    let mut told = HashSet::new();
    differences.retain(|difference| told.insert(difference.clone()));
    if differences.is_empty() { Ok(()) } else { Err(Failure::CheckFailed(differences)) }
}

/// The result of the ADD, without which there is nothing to compare with.
pub(super) fn required_result(config: &NetworkConfig) -> Result<CniResult, Problem> {
    config.prev_result()?.ok_or_else(|| {
        Problem::new("prevResult", "", "Required prevResult missing", "give CHECK the result of the ADD")
    })
}

/// What the kernel has otherwise than the record.
pub(super) fn compare_with_record(
    record: &Record,
    host: &mut RouteSocket,
    inside: &mut RouteSocket,
) -> Result<Vec<String>, Failure> {
    let mut differences = Vec::new();
    match link::find(host, &record.host_interface)? {
        None => differences.push(format!("the host has no link {}", record.host_interface)),
        Some(link) => {
            if !link.up {
                differences.push(format!("{} is down", link.name));
            }
            if record.kind == Kind::Routed {
                compare_host_routes(host, &link, record, &mut differences)?;
            } else {
                compare_port(host, &link, &record.bridge, &mut differences)?;
            }
        }
    }
    differences.extend(rules::differences(record)?);
    if let Some(bandwidth) = &record.bandwidth {
        let name = record.shaping_interface.as_deref();
        differences.extend(shaping::differences(host, &record.host_interface, bandwidth, name)?);
    }
    let ifname = &record.key.ifname;
    let Some(container) = link::find(inside, ifname)? else {
        differences.push(format!("the container has no interface {ifname}"));
        return Ok(differences);
    };
    if !container.up && !record.container_down {
        differences.push(format!("{ifname} is down"));
    }
    let wanted: Vec<IpNet> = record.addresses.iter().map(|lease| lease.address).collect();
    compare_addresses(inside, &container, &wanted, &mut differences)?;
    differences.extend(source_routing::differences(record, inside)?);
    compare_routes(&route::all(inside)?, &container, needs::container_routes(record), &mut differences);
    Ok(differences)
}

fn compare_port(
    host: &mut RouteSocket,
    link: &Link,
    bridge: &str,
    differences: &mut Vec<String>,
) -> Result<(), Failure> {
    match link::find(host, bridge)? {
        None => differences.push(format!("the host has no bridge {bridge}")),
        Some(found) => {
            if link.master != Some(found.index) {
                differences.push(format!("{} is no port of the bridge {bridge}", link.name));
            }
            if !found.up {
                differences.push(format!("{bridge} is down"));
            }
        }
    }
    Ok(())
}

fn compare_host_routes(
    host: &mut RouteSocket,
    link: &Link,
    record: &Record,
    differences: &mut Vec<String>,
) -> Result<(), Failure> {
    for lease in &record.addresses {
        let address = lease.address.addr();
        if route::link_towards(host, address)? != Some(link.index) {
            differences.push(format!("the host has no route to {address} by {}", link.name));
        }
    }
    Ok(())
}

/// What the previous result says otherwise than record and kernel.
fn compare_with_result(
    record: &Record,
    previous: &CniResult,
    namespace: &Namespace,
    inside: &mut RouteSocket,
) -> Result<Vec<String>, Failure> {
    let mut differences = Vec::new();
    let ifname = &record.key.ifname;
    let is_own = |interface: &Interface| interface.name == *ifname && namespace.is_at(&interface.sandbox);
    let Some(index) = previous.interfaces.iter().position(is_own) else {
        differences.push(format!("prevResult has no interface {ifname} in the sandbox {}", namespace.path().display()));
        return Ok(differences);
    };
    // That it's gone, the record has told.
    let Some(container) = link::find(inside, ifname)? else { return Ok(differences) };
    let stated = &previous.interfaces[index];
    // The result first: a later plugin of the chain may have changed the MTU, and said so there. The reference's tuning
    // doesn't say so: a smaller one works, with a larger one packets are lost at the host's end.
    if let Some(wanted) = stated.mtu.or(record.mtu).filter(|wanted| *wanted < container.mtu) {
        differences.push(format!("{ifname} has the MTU {} instead of {wanted}", container.mtu));
    }
    // As with the MTU.
    let wanted = if stated.mac.is_empty() { &record.container_mac } else { &stated.mac };
    compare_mac(&container, wanted, &mut differences);
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
    if attachment.hairpin && link::find(host, &record.host_interface)?.is_some_and(|port| !port.hairpin) {
        differences.push(format!("{} is not in hairpin mode", record.host_interface));
    }
    if attachment.is_gateway || attachment.bridge.is_none() {
        for (is_ipv4, switch) in [(true, sysctl::FORWARD_V4), (false, sysctl::FORWARD_V6)] {
            let has_family = record.addresses.iter().any(|lease| lease.address.addr().is_ipv4() == is_ipv4);
            if has_family && sysctl::read(switch)? == "0" {
                differences.push(format!("the host does not forward: /proc/sys/net/{switch} is 0"));
            }
        }
    }
    if let Some(vlans) = &attachment.options.vlans {
        differences.extend(vlan::differences(host, &record.host_interface, vlans)?);
    }
    if attachment.options.is_promiscuous
        && bridge::find(host, &record.bridge)?.is_some_and(|bridge| !bridge.promiscuous)
    {
        differences.push(format!("the bridge {} is not promiscuous", record.bridge));
    }
    if attachment.is_gateway
        && let Some(name) = gateway_link(attachment).as_ref().or(attachment.bridge.as_ref())
        && let Some(bridge) = link::find(host, name)?
    {
        let found = address::of_link(host, bridge.index)?;
        for gateway in gateways(attachment, &record.addresses) {
            if !bridge::has_address(&found, gateway.addr()) {
                differences.push(format!("{name} lacks the gateway address {}", gateway.addr()));
            }
        }
    }
    if attachment.masquerade {
        differences.extend(rules::masquerade_differences(&masqueraded(attachment, &record.addresses))?);
    }
    Ok(differences)
}

fn compare_switches(switches: &[Switch], ifname: &str, namespace: &Namespace) -> Result<Vec<String>, Failure> {
    let compare = |switch: &Switch| {
        let path = switch.path(ifname);
        let found = sysctl::read(&path)?;
        // The kernel separates the numbers of a list by tabs.
        let is_wanted = found.split_whitespace().eq(switch.value.split_whitespace());
        Ok((!is_wanted).then(|| format!("/proc/sys/net/{path} is {found} instead of {}", switch.value)))
    };
    if switches.is_empty() {
        return Ok(Vec::new());
    }
    let found: Result<Vec<Option<String>>, KernelError> =
        namespace.within(|| switches.iter().map(compare).collect())?;
    Ok(found?.into_iter().flatten().collect())
}

pub(super) fn compare_mac(link: &Link, wanted: &str, differences: &mut Vec<String>) {
    let found = link.mac_text();
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

fn compare_routes(
    found: &[FoundRoute],
    link: &Link,
    wanted: impl Iterator<Item = Route>,
    differences: &mut Vec<String>,
) {
    for route in wanted {
        if !found.iter().any(|candidate| candidate.is(&route, link.index)) {
            let via = route.gw.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            differences.push(format!("the container lacks the route to {}{via}", route.dst));
        }
    }
}
