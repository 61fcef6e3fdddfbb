//! Routes inside a container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::errno::Errno;

use super::{
    KernelError, RouteSocket,
    address::{family, from_octets, octets},
    attribute::{Attributes, attribute, native},
    link,
    message::RouteNetlinkMessage,
};
use crate::config::route::{Route, ipv6_default};

/// The routing protocol number of the routes that Keelson adds (rtnetlink(7), `rtm_protocol`: above 4 it's the
/// adder's own): `ip route show proto 107`.
pub(crate) const PROTOCOL: u8 = 107;

/// The length of `rtmsg` (linux/rtnetlink.h): family, lengths of destination and source, type of service, table,
/// protocol, scope, type, flags.
const FIXED: usize = 12;

/// The length of `rtnexthop` there.
const NEXT_HOP: usize = 8;

/// The metrics there that we set.
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// The message that adds `route`, whose gateway has been filled in, by link `index`.
pub(crate) fn add(index: u32, route: &Route) -> RouteNetlinkMessage {
    add_from(index, route, None)
}

/// The same; `source` is what packets that have none yet get.
pub(crate) fn add_from(index: u32, route: &Route, source: Option<IpAddr>) -> RouteNetlinkMessage {
    let scope = match (route.scope, route.gw) {
        (Some(scope), _) => scope,
        (None, Some(_)) => libc::RT_SCOPE_UNIVERSE,
        (None, None) => libc::RT_SCOPE_LINK,
    };
    // A table's number above 255 only fits the attribute, which the kernel prefers.
    let table = if route.table.is_some() { libc::RT_TABLE_UNSPEC } else { libc::RT_TABLE_MAIN };
    let mut attributes = Attributes::new().optional(libc::RTA_TABLE, route.table);
    if route.dst.prefix_len() > 0 {
        attributes = attributes.bytes(libc::RTA_DST, &octets(route.dst.network()));
    }
    if let Some(gateway) = route.gw {
        attributes = attributes.bytes(libc::RTA_GATEWAY, &octets(gateway));
    }
    if let Some(source) = source {
        attributes = attributes.bytes(libc::RTA_PREFSRC, &octets(source));
    }
    let metrics = Attributes::new().optional(RTAX_MTU, route.mtu).optional(RTAX_ADVMSS, route.advmss);
    attributes = attributes.native(libc::RTA_OIF, index).optional(libc::RTA_PRIORITY, route.priority);
    if !metrics.as_bytes().is_empty() {
        attributes = attributes.nest(libc::RTA_METRICS, &metrics);
    }
    let (family, length) = (family(route.dst.addr()), route.dst.prefix_len());
    let fixed: [u8; FIXED] = [family, length, 0, 0, table, PROTOCOL, scope, libc::RTN_UNICAST, 0, 0, 0, 0];
    RouteNetlinkMessage::new(libc::RTM_NEWROUTE, &fixed, &attributes)
}

/// The message that asks by which route packets to `address` leave.
fn ask(address: IpAddr) -> RouteNetlinkMessage {
    let mut fixed = [0; FIXED];
    fixed[0] = family(address);
    fixed[1] = if address.is_ipv4() { 32 } else { 128 };
    RouteNetlinkMessage::new(libc::RTM_GETROUTE, &fixed, &Attributes::new().bytes(libc::RTA_DST, &octets(address)))
}

/// The index of the link that packets to `address` leave by; `None` if there is no route.
pub(crate) fn link_towards(socket: &mut RouteSocket, address: IpAddr) -> Result<Option<u32>, KernelError> {
    let answers = match socket.request(format!("look up the route to {address}"), ask(address), 0) {
        Err(error) if matches!(error.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => return Ok(None),
        other => other?,
    };
    Ok(answers.iter().find_map(|answer| {
        let (_, told) = answer.parts::<FIXED>(libc::RTM_NEWROUTE)?;
        attribute(told, libc::RTA_OIF).and_then(native)
    }))
}

/// The MTU of the link by which packets leave the node; `None` on one without a default route.
pub(crate) fn way_out_mtu(socket: &mut RouteSocket) -> Result<Option<u32>, KernelError> {
    /// In TEST-NET-2 (RFC 5737) and the documentation's prefix (RFC 3849): only a default route leads there.
    const ELSEWHERE: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1))];
    for address in ELSEWHERE {
        if let Some(index) = link_towards(socket, address)?
            && let Some(link) = link::find_by_index(socket, index)?
        {
            return Ok(Some(link.mtu));
        }
    }
    Ok(None)
}

/// A route as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundRoute {
    pub(crate) dst: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) link: Option<u32>,
    pub(crate) table: u32,
}

impl FoundRoute {
    /// Whether it is `wanted`, by the link of that index.
    pub(crate) fn is(&self, wanted: &Route, link: u32) -> bool {
        self.dst == wanted.dst && self.gateway == wanted.gw && self.link == Some(link) && self.table == wanted.table()
    }

    /// Whether it is one of the kernel's own, to the host's addresses (rtnetlink(7), `RT_TABLE_LOCAL`).
    pub(crate) fn is_local(&self) -> bool {
        self.table == 255
    }
}

/// The routes of both families in the socket's namespace.
pub(crate) fn all(socket: &mut RouteSocket) -> Result<Vec<FoundRoute>, KernelError> {
    let mut found = Vec::new();
    for unspecified in [IpNet::default(), ipv6_default()] {
        let mut fixed = [0; FIXED];
        fixed[0] = family(unspecified.addr());
        let message = RouteNetlinkMessage::new(libc::RTM_GETROUTE, &fixed, &Attributes::new());
        for answer in socket.dump("list the routes", &message)? {
            add_found(&answer, unspecified, &mut found);
        }
    }
    Ok(found)
}

/// Adds what an answer tells of; routes to one place by several gateways are told as one.
pub(super) fn add_found(answer: &RouteNetlinkMessage, unspecified: IpNet, found: &mut Vec<FoundRoute>) {
    let Some((fixed, told)) = answer.parts::<FIXED>(libc::RTM_NEWROUTE) else { return };
    let network = attribute(told, libc::RTA_DST).and_then(from_octets).unwrap_or(unspecified.addr());
    let Ok(dst) = IpNet::new(network, fixed[1]) else { return };
    let route = FoundRoute {
        dst,
        gateway: attribute(told, libc::RTA_GATEWAY).and_then(from_octets),
        link: attribute(told, libc::RTA_OIF).and_then(native),
        table: attribute(told, libc::RTA_TABLE).and_then(native).unwrap_or(u32::from(fixed[4])),
    };
    let mut hops = attribute(told, libc::RTA_MULTIPATH).unwrap_or_default();
    // `rtnexthop`: length, flags, hops, index of the link; behind it attributes.
    while let Some((&[a, b, _, _, index @ ..], _)) = hops.split_first_chunk::<NEXT_HOP>() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(attributes) = hops.get(NEXT_HOP..length) else { break };
        found.push(FoundRoute {
            gateway: attribute(attributes, libc::RTA_GATEWAY).and_then(from_octets),
            link: Some(u32::from_ne_bytes(index)),
            ..route.clone()
        });
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found.push(route);
}
