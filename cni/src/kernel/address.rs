//! Addresses of links.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::errno::Errno;

use super::{
    KernelError, RouteSocket,
    attribute::{Attributes, attribute, native},
    message::RouteNetlinkMessage,
    netlink::Events,
    netns::{Namespace, NamespaceError},
};

/// `ifaddrmsg` (linux/if_addr.h): family, length of the prefix, flags, scope, index of the link.
fn fixed(family: u8, prefix_len: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix_len, 0, 0, a, b, c, d]
}

/// `IFA_F_NOPREFIXROUTE` (linux/if_addr.h).
const NO_PREFIX_ROUTE: u32 = 0x200;

/// The message `kind` that names `address` on link `index`, and `flags` of it.
fn message(kind: u16, index: u32, address: IpNet, flags: u32) -> RouteNetlinkMessage {
    let octets = octets(address.addr());
    let attributes = Attributes::new().bytes(libc::IFA_LOCAL, &octets).bytes(libc::IFA_ADDRESS, &octets);
    let attributes = match address {
        IpNet::V4(address) => {
            attributes.bytes(libc::IFA_BROADCAST, &address.broadcast().octets()).native(libc::IFA_FLAGS, flags)
        }
        IpNet::V6(_) => attributes.native(libc::IFA_FLAGS, flags),
    };
    RouteNetlinkMessage::new(kind, &fixed(family(address.addr()), address.prefix_len(), index), &attributes)
}

/// What an address may come without or with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AddressOptions {
    /// Without the route to its subnet: who says by which way its neighbours are reached adds that route.
    pub(crate) without_route: bool,
    /// With duplicate address detection (IPv6): it can't be used before nobody else was found to have it. Otherwise
    /// nothing needs the second that this takes: the store gives every address once.
    pub(crate) detects_duplicates: bool,
}

/// The message that adds `address` to link `index`, so.
pub(crate) fn add_with(index: u32, address: IpNet, options: AddressOptions) -> RouteNetlinkMessage {
    let route = if options.without_route { NO_PREFIX_ROUTE } else { 0 };
    let detection = if address.addr().is_ipv4() || options.detects_duplicates { 0 } else { libc::IFA_F_NODAD };
    message(libc::RTM_NEWADDR, index, address, route | detection)
}

/// The message that adds `address` to link `index`.
pub(crate) fn add(index: u32, address: IpNet) -> RouteNetlinkMessage {
    add_with(index, address, AddressOptions::default())
}

/// The message that removes `address` from link `index`.
pub(crate) fn remove(index: u32, address: IpNet) -> RouteNetlinkMessage {
    message(libc::RTM_DELADDR, index, address, 0)
}

/// The addresses of link `index`.
pub(crate) fn of_link(socket: &mut RouteSocket, index: u32) -> Result<Vec<IpNet>, KernelError> {
    Ok(list(socket, index)?.iter().filter_map(|answer| found(answer, index)).collect())
}

/// The addresses of all links, each with the link's index.
pub(crate) fn all(socket: &mut RouteSocket) -> Result<Vec<(u32, IpNet)>, KernelError> {
    Ok(list(socket, 0)?.iter().filter_map(found_anywhere).collect())
}

/// What the kernel tells of the addresses of link `index`, or of all for 0.
fn list(socket: &mut RouteSocket, index: u32) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
    let message = RouteNetlinkMessage::new(libc::RTM_GETADDR, &fixed(0, 0, index), &Attributes::new());
    socket.dump("list the addresses of links", &message)
}

/// The address that an answer tells of, if it is one of link `index`.
pub(super) fn found(answer: &RouteNetlinkMessage, index: u32) -> Option<IpNet> {
    found_anywhere(answer).filter(|(link, _)| *link == index).map(|(_, address)| address)
}

/// The address that an answer tells of, with its link's index.
fn found_anywhere(answer: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let (&[_, prefix_len, _, _, a, b, c, d], attributes) = answer.parts(libc::RTM_NEWADDR)?;
    // For IPv4 `IFA_LOCAL` is the link's own address; IPv6 has only `IFA_ADDRESS`.
    let own = attribute(attributes, libc::IFA_LOCAL).or_else(|| attribute(attributes, libc::IFA_ADDRESS))?;
    Some((u32::from_ne_bytes([a, b, c, d]), IpNet::new(from_octets(own)?, prefix_len).ok()?))
}

/// How long duplicate address detection may take: a second of probing after at most one of random delay, unless
/// somebody changed the namespace's switches.
const DETECTION_LIMIT: Duration = Duration::from_secs(10);

/// Waits until the kernel has found nobody else with one of the IPv6 addresses of link `index` among `addresses`.
pub(crate) fn wait_until_verified(
    socket: &mut RouteSocket,
    namespace: &Namespace,
    index: u32,
    addresses: &[IpAddr],
) -> Result<(), NamespaceError> {
    // Before the first look: what happens after it makes an event.
    let events = namespace.within(Events::of_ipv6_addresses)??;
    let deadline = Instant::now() + DETECTION_LIMIT;
    while !is_verified(socket, index, addresses)? {
        if !events.wait(deadline)? {
            let doing = "wait for the end of duplicate address detection";
            return Err(KernelError::new(doing, Errno::ETIMEDOUT).into());
        }
    }
    Ok(())
}

fn is_verified(socket: &mut RouteSocket, index: u32, addresses: &[IpAddr]) -> Result<bool, KernelError> {
    let fixed = fixed(family(Ipv6Addr::UNSPECIFIED.into()), 0, index);
    let list = RouteNetlinkMessage::new(libc::RTM_GETADDR, &fixed, &Attributes::new());
    let answers = socket.dump("list the addresses of a link", &list)?;
    let mut is_verified = true;
    for answer in answers {
        let Some(own) = found(&answer, index).map(|own| own.addr()).filter(|own| addresses.contains(own)) else {
            continue;
        };
        let told = answer.parts::<8>(libc::RTM_NEWADDR).map(|(_, told)| told).unwrap_or_default();
        let flags = attribute(told, libc::IFA_FLAGS).and_then(native).unwrap_or_default();
        if flags & libc::IFA_F_DADFAILED != 0 {
            return Err(KernelError::new(format!("use the address {own}, which somebody else has"), Errno::EADDRINUSE));
        }
        is_verified &= flags & libc::IFA_F_TENTATIVE == 0;
    }
    Ok(is_verified)
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
