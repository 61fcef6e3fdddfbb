//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    KernelError, RouteSocket,
    attribute::{Attributes, attribute},
    message::RouteNetlinkMessage,
};

/// `ifaddrmsg` (linux/if_addr.h): family, length of the prefix, flags, scope, index of the link.
fn fixed(family: u8, prefix_len: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix_len, 0, 0, a, b, c, d]
}

/// `IFA_F_NOPREFIXROUTE` (linux/if_addr.h).
const NO_PREFIX_ROUTE: u32 = 0x200;

/// The message `kind` that names `address` on link `index`, and `flags` of it beside NODAD.
///
/// NODAD: the store gives every address once, so nothing needs the second that duplicate address detection takes.
fn message(kind: u16, index: u32, address: IpNet, flags: u32) -> RouteNetlinkMessage {
    let octets = octets(address.addr());
    let attributes = Attributes::new().bytes(libc::IFA_LOCAL, &octets).bytes(libc::IFA_ADDRESS, &octets);
    let attributes = match address {
        IpNet::V4(address) => {
            attributes.bytes(libc::IFA_BROADCAST, &address.broadcast().octets()).native(libc::IFA_FLAGS, flags)
        }
        IpNet::V6(_) => attributes.native(libc::IFA_FLAGS, flags | libc::IFA_F_NODAD),
    };
    RouteNetlinkMessage::new(kind, &fixed(family(address.addr()), address.prefix_len(), index), &attributes)
}

/// The message that adds `address` to link `index` without the route to its subnet that comes with it otherwise: who
/// says by which way its neighbours are reached adds that route.
pub(crate) fn add_without_route(index: u32, address: IpNet) -> RouteNetlinkMessage {
    message(libc::RTM_NEWADDR, index, address, NO_PREFIX_ROUTE)
}

/// The message that adds `address` to link `index`.
pub(crate) fn add(index: u32, address: IpNet) -> RouteNetlinkMessage {
    message(libc::RTM_NEWADDR, index, address, 0)
}

/// The message that removes `address` from link `index`.
pub(crate) fn remove(index: u32, address: IpNet) -> RouteNetlinkMessage {
    message(libc::RTM_DELADDR, index, address, 0)
}

/// The addresses of link `index`.
pub(crate) fn of_link(socket: &mut RouteSocket, index: u32) -> Result<Vec<IpNet>, KernelError> {
    list(socket, index)
}

/// The addresses of all links.
pub(crate) fn all(socket: &mut RouteSocket) -> Result<Vec<IpAddr>, KernelError> {
    Ok(list(socket, 0)?.iter().map(IpNet::addr).collect())
}

/// The addresses of link `index`, or of all for 0.
fn list(socket: &mut RouteSocket, index: u32) -> Result<Vec<IpNet>, KernelError> {
    let message = RouteNetlinkMessage::new(libc::RTM_GETADDR, &fixed(0, 0, index), &Attributes::new());
    let answers = socket.dump("list the addresses of links", &message)?;
    Ok(answers.iter().filter_map(|answer| found(answer, index)).collect())
}

/// The address that an answer tells of, if it is one of link `index`; 0 means any.
fn found(answer: &RouteNetlinkMessage, index: u32) -> Option<IpNet> {
    let (&[_, prefix_len, _, _, a, b, c, d], attributes) = answer.parts(libc::RTM_NEWADDR)?;
    if index != 0 && u32::from_ne_bytes([a, b, c, d]) != index {
        return None;
    }
    // For IPv4 `IFA_LOCAL` is the link's own address; IPv6 has only `IFA_ADDRESS`.
    let own = attribute(attributes, libc::IFA_LOCAL).or_else(|| attribute(attributes, libc::IFA_ADDRESS))?;
    IpNet::new(from_octets(own)?, prefix_len).ok()
}

/// The number of the address's family.
pub(crate) fn family(address: IpAddr) -> u8 {
    // AF_INET is 2, AF_INET6 10 (linux/socket.h); messages have a byte for it.
    if address.is_ipv4() { 2 } else { 10 }
}

/// The address as it goes over the wire.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address of which these are the [`octets`].
pub(crate) fn from_octets(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}
