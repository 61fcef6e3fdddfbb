//! The bridge that attachments are ports of.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::{
    KernelError, RouteSocket, address,
    attribute::Attributes,
    link::{self, Link, State},
    sysctl, veth,
};
use crate::config::mac::Mac;

/// Why the bridge is not as the network needs it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgeError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("the link {name} exists and is not a bridge; name another one in the config's key \"bridge\"")]
    NotABridge { name: String },
    #[error(
        "{name:?} already has an IP address different from {wanted}: {found}; remove it (ip address del {found} dev {name}) \
         or set forceAddress"
    )]
    OtherAddress { name: String, wanted: IpNet, found: IpNet },
    #[error(
        "the bridge {name} does not keep VLANs apart; on a kernel that can (CONFIG_BRIDGE_VLAN_FILTERING) this makes it: \
         ip link set {name} type bridge vlan_filtering 1"
    )]
    NoVlans { name: String },
}

/// The kernel's name for this kind of link.
pub(super) const KIND: &str = "bridge";

/// A new bridge's MTU unless the config has one: Ethernet's, and the kernel's own default.
pub(crate) const DEFAULT_MTU: u32 = 1500;

/// The alias of a bridge that a network made: it tells whose it is.
pub(crate) fn alias(network: &str) -> String {
    format!("keelson:{network}")
}

/// Finds the bridge, or makes it, and sees that it is up.
///
/// A new bridge gets its Ethernet address at once: one that the kernel picks from the ports would change with them,
/// and break every Pod's neighbour entry each time. Likewise its MTU is pinned, or the kernel would lower it to that of
/// the smallest port, for all Pods of all networks on it.
pub(crate) fn ensure(
    socket: &mut RouteSocket,
    name: &str,
    network: &str,
    mac: Mac,
    mtu: Option<u32>,
    filters_vlans: bool,
) -> Result<Link, BridgeError> {
    let mtu = mtu.unwrap_or(DEFAULT_MTU);
    match find(socket, name)? {
        Some(found) if found.up => return Ok(found),
        // A bridge that is down is only brought up, unless it has our Ethernet address and no alias: left half made.
        Some(found) if found.mac != mac.0 || !found.alias.is_empty() => {
            socket.request(format!("bring up the bridge {name}"), veth::up(found.index), 0)?;
            return Ok(found);
        }
        Some(_) => {}
        None => create(socket, name, mac, unpinned(mtu), filters_vlans)?,
    }
    // A Pod must not be able to configure the host by router advertisements.
    sysctl::ensure_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    // Until its link-local address counts, the node asks for no Pod's Ethernet address on behalf of others: the first
    // seconds' connections from outside would fail. The address follows from our own Ethernet address.
    sysctl::ensure_if_present(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
    // Neither alias nor up is taken by the creating message; up comes last, so that a bridge that is up is whole.
    let attributes = Attributes::new()
        .text(libc::IFLA_IFNAME, name)
        .text(libc::IFLA_IFALIAS, &alias(network))
        .native(libc::IFLA_MTU, mtu);
    let message = link::message(libc::RTM_SETLINK, 0, State::Up, &attributes);
    socket.request(format!("bring up the bridge {name}"), message, 0)?;
    find(socket, name)?.ok_or_else(|| KernelError::new(format!("find the bridge {name}"), Errno::ENODEV).into())
}

/// An MTU that isn't `mtu`: only a change of it pins it (`br_change_mtu`), and a bridge isn't made with it pinned.
fn unpinned(mtu: u32) -> u32 {
    // Not below, where IPv6's smallest might be crossed; the largest is 65535.
    if mtu < 65535 { mtu + 1 } else { mtu - 1 }
}

fn create(socket: &mut RouteSocket, name: &str, mac: Mac, mtu: u32, filters_vlans: bool) -> Result<(), KernelError> {
    let mut info = Attributes::new().text(libc::IFLA_INFO_KIND, KIND);
    let mut kind = "bridge";
    if filters_vlans {
        info = info.nest(libc::IFLA_INFO_DATA, &Attributes::new().bytes(link::IFLA_BR_VLAN_FILTERING, &[1]));
        kind = "bridge with VLANs";
    }
    let attributes = Attributes::new()
        .text(libc::IFLA_IFNAME, name)
        .bytes(libc::IFLA_ADDRESS, &mac.0)
        .native(libc::IFLA_MTU, mtu)
        .nest(libc::IFLA_LINKINFO, &info);
    let create = link::message(libc::RTM_NEWLINK, 0, State::Kept, &attributes);
    match socket.request(format!("create the {kind} {name}"), create, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(()),
        // Another network's ADD made it since we looked.
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Refuses a bridge that doesn't keep VLANs apart: whoever is on it would be in one network.
pub(crate) fn require_vlans(bridge: &Link) -> Result<(), BridgeError> {
    if bridge.filters_vlans { Ok(()) } else { Err(BridgeError::NoVlans { name: bridge.name.clone() }) }
}

/// Sees that the bridge takes every frame, to whomever it is sent.
pub(crate) fn ensure_promiscuous(socket: &mut RouteSocket, bridge: &Link) -> Result<(), KernelError> {
    if bridge.promiscuous {
        return Ok(());
    }
    let message = link::message(libc::RTM_SETLINK, bridge.index, State::Promiscuous, &Attributes::new());
    socket.request(format!("make {} promiscuous", bridge.name), message, 0)?;
    Ok(())
}

/// The bridge called `name`, if there is one.
pub(crate) fn find(socket: &mut RouteSocket, name: &str) -> Result<Option<Link>, BridgeError> {
    match link::find(socket, name)? {
        Some(found) if found.kind != KIND => Err(BridgeError::NotABridge { name: name.to_owned() }),
        found => Ok(found),
    }
}

/// Gives the bridge the gateways' addresses.
///
/// As in the reference bridge, an IPv4 address of another network there is an error unless `force`, and so is an IPv6
/// one whose subnet overlaps; further disjoint IPv6 addresses and gateways of our own (`gateways` holds all) are fine.
pub(crate) fn ensure_addresses(
    socket: &mut RouteSocket,
    bridge: &Link,
    gateways: &[IpNet],
    force: bool,
) -> Result<(), BridgeError> {
    let found = address::of_link(socket, bridge.index)?;
    for wanted in gateways.iter().filter(|wanted| !found.contains(wanted)) {
        for other in found.iter().filter(|other| !gateways.contains(other) && conflicts(**other, *wanted)) {
            if !force {
                return Err(BridgeError::OtherAddress { name: bridge.name.clone(), wanted: *wanted, found: *other });
            }
            let doing = format!("remove the address {other} from {}", bridge.name);
            match socket.request(doing, address::remove(bridge.index, *other), 0) {
                Ok(_) => {}
                Err(error) if error.errno() == Some(Errno::EADDRNOTAVAIL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let doing = format!("add the address {wanted} to {}", bridge.name);
        match socket.request(doing, address::add(bridge.index, *wanted), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => {}
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn conflicts(found: IpNet, wanted: IpNet) -> bool {
    match (found, wanted) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(found), IpNet::V6(wanted)) => found.contains(&wanted.network()) || wanted.contains(&found.network()),
        _ => false,
    }
}

/// Removes the bridge if a network of this name made it and nothing is attached to it; tells whether it is gone.
pub(crate) fn remove_if_unused(socket: &mut RouteSocket, name: &str, network: &str) -> Result<bool, KernelError> {
    let Some(found) = link::find(socket, name)? else { return Ok(true) };
    if found.kind != KIND || found.alias != alias(network) {
        return Ok(false);
    }
    if link::all(socket)?.iter().any(|port| port.master == Some(found.index)) {
        return Ok(false);
    }
    link::delete(socket, name)?;
    Ok(true)
}

/// Whether `address` is one of the link's own.
pub(crate) fn has_address(found: &[IpNet], address: IpAddr) -> bool {
    found.iter().any(|own| own.addr() == address)
}
