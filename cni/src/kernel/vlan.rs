//! VLANs of a bridge's ports, and the network's gateway inside a VLAN.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::{
    KernelError, RouteSocket,
    attribute::{Attributes, attribute, attributes},
    bridge,
    link::{self, Link, State},
    message::RouteNetlinkMessage,
    sysctl, veth,
};
use crate::config::{
    mac::Mac,
    vlan::{DEFAULT_VLAN, Vlans},
};

/// `IFLA_BRIDGE_VLAN_INFO`, and the flags of it (linux/if_bridge.h).
const VLAN_INFO: u16 = 2;
const PVID: u16 = 1 << 1;
const UNTAGGED: u16 = 1 << 2;
const RANGE_BEGIN: u16 = 1 << 3;
const RANGE_END: u16 = 1 << 4;

/// `RTEXT_FILTER_BRVLAN` (linux/rtnetlink.h).
const RTEXT_FILTER_BRVLAN: u32 = 1 << 1;

/// The gateway of a VLAN: a pair of links on the host, of which one carries the addresses and the other is a port of the
/// bridge in that VLAN.
#[derive(Clone, Debug)]
pub(crate) struct Gateway<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) port: &'a str,
    pub(crate) port_mac: Mac,
}

/// Puts the port called `name` into its VLANs.
pub(crate) fn set(socket: &mut RouteSocket, name: &str, vlans: &Vlans) -> Result<(), KernelError> {
    let port = link::find(socket, name)?
        .ok_or_else(|| KernelError::new(format!("find the bridge port {name}"), Errno::ENODEV))?;
    if vlans.leaves_default {
        let doing = format!("take {name} out of VLAN {DEFAULT_VLAN}");
        let message = port_message(libc::RTM_DELLINK, port.index, &vlan_info(Attributes::new(), 0, DEFAULT_VLAN));
        match socket.request(doing, message, 0) {
            // The bridge puts its ports in another one, or in none.
            Err(error) if error.errno() == Some(Errno::ENOENT) => {}
            other => drop(other?),
        }
    }
    let mut infos = Attributes::new();
    for (first, last) in &vlans.tagged {
        infos = if first == last {
            vlan_info(infos, 0, *first)
        } else {
            vlan_info(vlan_info(infos, RANGE_BEGIN, *first), RANGE_END, *last)
        };
    }
    // Last: a trunk that has the VLAN too would take the flags from it.
    infos = vlan_info(infos, PVID | UNTAGGED, vlans.untagged);
    let message = port_message(libc::RTM_SETLINK, port.index, &infos);
    socket.request(format!("put {name} into its VLANs"), message, 0)?;
    Ok(())
}

/// `ifinfomsg` of the family that bridge ports are.
fn fixed(index: u32) -> [u8; 16] {
    /// `AF_BRIDGE` (linux/socket.h).
    const BRIDGE: u8 = 7;
    let mut fixed = link::fixed(index, State::Kept);
    fixed[0] = BRIDGE;
    fixed
}

/// The message `kind` about the VLANs of a bridge port.
fn port_message(kind: u16, index: u32, infos: &Attributes) -> RouteNetlinkMessage {
    RouteNetlinkMessage::new(kind, &fixed(index), &Attributes::new().nest(libc::IFLA_AF_SPEC, infos))
}

/// Adds a `bridge_vlan_info`.
fn vlan_info(infos: Attributes, flags: u16, vlan: u16) -> Attributes {
    let [a, b] = flags.to_ne_bytes();
    let [c, d] = vlan.to_ne_bytes();
    infos.bytes(VLAN_INFO, &[a, b, c, d])
}

/// The VLANs of a port as the kernel has them, each with whether frames without a tag are in it, both ways.
fn of_port(socket: &mut RouteSocket, port: &Link) -> Result<Vec<(u16, bool)>, KernelError> {
    let asked = Attributes::new().native(libc::IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN);
    let list = RouteNetlinkMessage::new(libc::RTM_GETLINK, &fixed(0), &asked);
    let answers = socket.dump("list the VLANs of bridge ports", &list)?;
    let mut found = Vec::new();
    for answer in &answers {
        let Some((fixed, told)) = answer.parts::<16>(libc::RTM_NEWLINK) else { continue };
        if fixed[4..8] != port.index.to_ne_bytes() {
            continue;
        }
        let infos = attributes(attribute(told, libc::IFLA_AF_SPEC).unwrap_or_default());
        found.extend(infos.filter(|(kind, _)| *kind == VLAN_INFO).filter_map(|(_, info)| match *info {
            [a, b, c, d] => {
                let flags = u16::from_ne_bytes([a, b]);
                Some((u16::from_ne_bytes([c, d]), flags & PVID != 0 && flags & UNTAGGED != 0))
            }
            _ => None,
        }));
    }
    Ok(found)
}

/// What of its VLANs the port called `name` lacks.
pub(crate) fn differences(socket: &mut RouteSocket, name: &str, vlans: &Vlans) -> Result<Vec<String>, KernelError> {
    let Some(port) = link::find(socket, name)? else { return Ok(Vec::new()) };
    let found = of_port(socket, &port)?;
    let mut differences = Vec::new();
    if !found.contains(&(vlans.untagged, true)) {
        differences.push(format!("frames of {name} without a tag are not in VLAN {}", vlans.untagged));
    }
    let lacking = |vlan: &u16| !found.iter().any(|(other, _)| other == vlan);
    let tagged = vlans.tagged.iter().flat_map(|(first, last)| *first..=*last);
    if let Some(vlan) = tagged.clone().find(lacking) {
        differences.push(format!("{name} is not in VLAN {vlan}"));
    }
    if vlans.leaves_default
        && found.iter().any(|(vlan, _)| *vlan == DEFAULT_VLAN)
        && !tagged.clone().any(|vlan| vlan == DEFAULT_VLAN)
    {
        differences.push(format!("{name} is in VLAN {DEFAULT_VLAN}"));
    }
    Ok(differences)
}

/// Finds the link that carries a VLAN's gateway addresses, or makes it, and sees that it is up.
///
/// It comes up last: one that is down may be half made. One that somebody else made, as with `ip link add type vlan`, is
/// as good.
pub(crate) fn ensure_gateway(
    socket: &mut RouteSocket,
    gateway: &Gateway<'_>,
    bridge: &Link,
    network: &str,
    vlans: &Vlans,
) -> Result<Link, KernelError> {
    let name = gateway.name;
    let missing = || KernelError::new(format!("find the link {name}"), Errno::ENODEV);
    let found = match link::find(socket, name)? {
        Some(found) if found.up => return Ok(found),
        Some(found) => found,
        None => {
            create_pair(socket, gateway, bridge)?;
            link::find(socket, name)?.ok_or_else(missing)?
        }
    };
    if link::find(socket, gateway.port)?.is_some() {
        set(socket, gateway.port, &Vlans { tagged: Vec::new(), ..vlans.clone() })?;
        for link in [name, gateway.port] {
            let alias =
                Attributes::new().text(libc::IFLA_IFNAME, link).text(libc::IFLA_IFALIAS, &bridge::alias(network));
            let message = link::message(libc::RTM_SETLINK, 0, State::Kept, &alias);
            socket.request(format!("set the alias of {link}"), message, 0)?;
        }
    }
    // As on a bridge of ours.
    sysctl::ensure_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    socket.request(format!("bring up {name}"), veth::up(found.index), 0)?;
    link::find(socket, name)?.ok_or_else(missing)
}

fn create_pair(socket: &mut RouteSocket, gateway: &Gateway<'_>, bridge: &Link) -> Result<(), KernelError> {
    let peer = Attributes::new()
        .text(libc::IFLA_IFNAME, gateway.name)
        .bytes(libc::IFLA_ADDRESS, &gateway.mac.0)
        .native(libc::IFLA_MTU, bridge.mtu);
    let port = Attributes::new()
        .text(libc::IFLA_IFNAME, gateway.port)
        .bytes(libc::IFLA_ADDRESS, &gateway.port_mac.0)
        .native(libc::IFLA_MTU, bridge.mtu)
        .native(libc::IFLA_MASTER, bridge.index)
        .nest(libc::IFLA_LINKINFO, &veth::kind(&peer));
    let create = link::message(libc::RTM_NEWLINK, 0, State::Up, &port);
    match socket.request(format!("create the gateway {}", gateway.name), create, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(()),
        // Another ADD made it since we looked.
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}
