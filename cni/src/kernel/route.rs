//! Routes inside a container.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};

use nix::errno::Errno;

use super::{KernelError, RouteSocket, address::family, message::RouteNetlinkMessage};
use crate::config::route::Route;

/// The routing protocol number of the routes that Keelson adds (rtnetlink(7), `rtm_protocol`: above 4 it's the
/// adder's own): `ip route show proto 107`.
pub(crate) const PROTOCOL: u8 = 107;

/// The message that adds `route`, whose gateway has been filled in, by link `index`.
pub(crate) fn add(index: u32, route: &Route) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst.addr());
    message.header.destination_prefix_length = route.dst.prefix_len();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match (route.scope, route.gw) {
        (Some(scope), _) => RouteScope::from(scope),
        (None, Some(_)) => RouteScope::Universe,
        (None, None) => RouteScope::Link,
    };
    match route.table {
        None => message.header.table = RouteHeader::RT_TABLE_MAIN,
        // Numbers above 255 only fit the attribute, which the kernel prefers.
        Some(table) => message.attributes.push(RouteAttribute::Table(table)),
    }
    if route.dst.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.dst.network())));
    }
    if let Some(gateway) = route.gw {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    if let Some(priority) = route.priority {
        message.attributes.push(RouteAttribute::Priority(priority));
    }
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    metrics.extend(route.advmss.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    RouteNetlinkMessage::NewRoute(message)
}

/// The message that asks by which route packets to `address` leave.
fn ask(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
    RouteNetlinkMessage::GetRoute(message)
}

/// The index of the link that packets to `address` leave by; `None` if there is no route.
pub(crate) fn link_towards(socket: &mut RouteSocket, address: IpAddr) -> Result<Option<u32>, KernelError> {
    let answers = match socket.request(format!("look up the route to {address}"), ask(address), 0) {
        Err(error) if matches!(error.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => return Ok(None),
        other => other?,
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(message) => {
            message.attributes.into_iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(index),
                _ => None,
            })
        }
        _ => None,
    }))
}

/// A route as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundRoute {
    pub(crate) dst: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) link: Option<u32>,
    pub(crate) table: u32,
}

/// The routes of both families in the socket's namespace.
pub(crate) fn all(socket: &mut RouteSocket) -> Result<Vec<FoundRoute>, KernelError> {
    let mut found = Vec::new();
    for unspecified in [IpNet::default(), crate::config::route::ipv6_default()] {
        let mut message = RouteMessage::default();
        message.header.address_family = family(unspecified.addr());
        for answer in socket.dump("list the routes", &RouteNetlinkMessage::GetRoute(message))? {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            let mut route =
                FoundRoute { dst: unspecified, gateway: None, link: None, table: u32::from(message.header.table) };
            let mut network = unspecified.addr();
            let mut next_hops = Vec::new();
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Destination(address) => network = ip(&address).unwrap_or(network),
                    RouteAttribute::Gateway(address) => route.gateway = ip(&address),
                    RouteAttribute::Oif(index) => route.link = Some(index),
                    RouteAttribute::Table(table) => route.table = table,
                    RouteAttribute::MultiPath(hops) => next_hops = hops,
                    _ => {}
                }
            }
            let Ok(dst) = IpNet::new(network, message.header.destination_prefix_length) else { continue };
            route.dst = dst;
            // Routes to one place by several gateways are told as one.
            found.extend(next_hops.into_iter().map(|hop| FoundRoute {
                gateway: hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(address) => ip(address),
                    _ => None,
                }),
                link: Some(hop.interface_index),
                ..route.clone()
            }));
            found.push(route);
        }
    }
    Ok(found)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
