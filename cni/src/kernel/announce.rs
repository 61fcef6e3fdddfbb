//! Telling the neighbours which Ethernet address an IP address has now, where it may have had another one before.

use std::{
    io::IoSlice,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6},
    os::fd::AsRawFd,
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendmsg, socket,
};

use super::{
    KernelError, RouteSocket, Step,
    attribute::Attributes,
    message::RouteNetlinkMessage,
    netns::{Namespace, NamespaceError},
};
use crate::config::mac::Mac;

/// Announces `addresses`, which link `index` inside the container has, with the Ethernet address `mac`.
pub(crate) fn announce(
    namespace: &Namespace,
    inside: &mut RouteSocket,
    index: u32,
    mac: Mac,
    addresses: &[IpAddr],
) -> Result<(), NamespaceError> {
    let mut steps = Vec::new();
    for address in addresses {
        match address {
            IpAddr::V4(address) => steps.extend(gratuitous_request(index, *address)),
            IpAddr::V6(address) => namespace.within(|| advertise(index, *address, mac))??,
        }
    }
    Ok(inside.batch(&steps)?)
}

/// Makes the kernel ask everybody for an address of its own, which is the ARP announcement of RFC 5227: sender and
/// target are the address, so whoever knows it takes the new Ethernet address.
///
/// The first message has the kernel look the neighbour up, and it sends the request before it answers; the second ends
/// the wait for a reply. A packet socket could send the same, but closing one waits for every CPU (`synchronize_net`),
/// which takes longer than the rest of an ADD.
fn gratuitous_request(index: u32, address: Ipv4Addr) -> [Step<RouteNetlinkMessage>; 2] {
    // struct ndmsg: family, link, state 0 (none), flags, type.
    let message = |kind: u16, flags: u8| {
        let [a, b, c, d] = index.to_ne_bytes();
        // AF_INET is 2.
        let fixed = [2, 0, 0, 0, a, b, c, d, 0, 0, flags, 0];
        RouteNetlinkMessage::new(kind, &fixed, &Attributes::new().bytes(libc::NDA_DST, &address.octets()))
    };
    let use_it = message(libc::RTM_NEWNEIGH, libc::NTF_USE);
    let doing = format!("announce {address}");
    [
        Step { doing: doing.clone(), message: use_it, flags: NLM_F_CREATE | NLM_F_REPLACE },
        Step { doing, message: message(libc::RTM_DELNEIGH, 0), flags: 0 },
    ]
}

/// Sends an unsolicited neighbour advertisement (RFC 4861, 4.4 and 7.2.6) to all nodes of the link.
fn advertise(index: u32, address: Ipv6Addr, mac: Mac) -> Result<(), KernelError> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ADVERTISEMENT: u8 = 136;
    /// The entry that somebody has is replaced.
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    let failed = |errno| KernelError::new(format!("announce {address}"), errno);
    // The checksum, bytes 2 and 3, is the kernel's business.
    let mut packet = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    packet.extend(address.octets());
    packet.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    packet.extend(mac.0);
    let socket =
        socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6).map_err(failed)?;
    let source = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: address.octets() }, ipi6_ifindex: index };
    // Routers don't forward it: a receiver checks that it came from the link itself.
    let hop_limit = 255;
    let control = [ControlMessage::Ipv6PacketInfo(&source), ControlMessage::Ipv6HopLimit(&hop_limit)];
    let target = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, index));
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&packet)], &control, MsgFlags::empty(), Some(&target))
        .map_err(failed)?;
    Ok(())
}
