//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
};

use super::{KernelError, RouteSocket, message::RouteNetlinkMessage};

/// The message body that names `address` on link `index`.
///
/// NODAD: the store gives every address once, so nothing needs the second that duplicate address detection takes.
fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.family = family(address.addr());
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    match address {
        IpNet::V4(address) => message.attributes.push(AddressAttribute::Broadcast(address.broadcast())),
        IpNet::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}

/// The message that adds `address` to link `index` without the route to its subnet that comes with it otherwise: who
/// says by which way its neighbours are reached adds that route.
pub(crate) fn add_without_route(index: u32, address: IpNet) -> RouteNetlinkMessage {
    let mut message = message(index, address);
    message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
    let nodad = if address.addr().is_ipv6() { AddressFlags::Nodad } else { AddressFlags::empty() };
    message.attributes.push(AddressAttribute::Flags(nodad | AddressFlags::Noprefixroute));
    RouteNetlinkMessage::NewAddress(message)
}

/// The message that adds `address` to link `index`.
pub(crate) fn add(index: u32, address: IpNet) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(message(index, address))
}

/// The message that removes `address` from link `index`.
pub(crate) fn remove(index: u32, address: IpNet) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(message(index, address))
}

/// The addresses of link `index`.
pub(crate) fn of_link(socket: &mut RouteSocket, index: u32) -> Result<Vec<IpNet>, KernelError> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    let answers = socket.dump("list the addresses of a link", &RouteNetlinkMessage::GetAddress(message))?;
    let addresses = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
            // For IPv4 `Local` is the link's own address; IPv6 has only `Address`.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let address = local.or_else(|| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            })?;
            IpNet::new(address, message.header.prefix_len).ok()
        }
        _ => None,
    });
    Ok(addresses.collect())
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
