//! Connections that the kernel tracks: those of UDP outlive what they were translated by.
//!
//! A client that keeps sending keeps its connection, and with it the translation, or none, that its first packet met:
//! after a container was replaced, such packets would go nowhere for ever.
//! The numbers are those of linux/netfilter/nfnetlink_conntrack.h.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{
    KernelError,
    address::octets,
    attribute::{Attributes, attribute},
    netfilter,
    netlink::NetfilterSocket,
    nftables::{IPV4, IPV6},
};

/// `NFNL_SUBSYS_CTNETLINK` (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u8 = 1;

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// A tracked connection.
struct Connection<'a> {
    attributes: &'a [u8],
    /// Whom the client called, and who answers.
    called: &'a [u8],
    answering: &'a [u8],
}

/// Ends the UDP connections to `port` of this host that lead elsewhere than to `container`: to another one that had the
/// port before, or to the host itself as nobody had it.
pub(crate) fn end_stale(
    socket: &mut NetfilterSocket,
    container: IpAddr,
    port: u16,
    own_addresses: &[IpAddr],
) -> Result<(), KernelError> {
    let container_octets = octets(container);
    let own: Vec<Vec<u8>> = own_addresses.iter().map(|address| octets(*address)).collect();
    end(socket, container.is_ipv4(), port, &|connection| {
        connection.answering != container_octets && own.iter().any(|address| address == connection.called)
    })
}

/// Ends the UDP connections to `port` that lead to `container`.
pub(crate) fn end_those_to(socket: &mut NetfilterSocket, container: IpAddr, port: u16) -> Result<(), KernelError> {
    let container_octets = octets(container);
    end(socket, container.is_ipv4(), port, &|connection| connection.answering == container_octets)
}

fn end(
    socket: &mut NetfilterSocket,
    is_ipv4: bool,
    port: u16,
    is_wanted: &dyn Fn(&Connection<'_>) -> bool,
) -> Result<(), KernelError> {
    let family = if is_ipv4 { IPV4 } else { IPV6 };
    // CTA_TUPLE_ORIG 1 with CTA_TUPLE_PROTO 2: CTA_PROTO_NUM 1, CTA_PROTO_DST_PORT 3.
    let protocol = Attributes::new().bytes(1, &[UDP]).bytes(3, &port.to_be_bytes());
    // CTA_FILTER 25 says which of it to compare: protocol and destination port are bits 3 and 5. A kernel before 5.8
    // takes no notice of it and lists all.
    let filter = Attributes::new().bytes(1, &0b10_1000u32.to_ne_bytes()).bytes(2, &0u32.to_ne_bytes());
    let wanted = Attributes::new().nest(1, &Attributes::new().nest(2, &protocol)).nest(25, &filter);
    let list = netfilter::message(SUBSYSTEM, 1, family, &wanted);
    for message in socket.dump("list the UDP connections", &list)? {
        // IPCTNL_MSG_CT_NEW is 0.
        let connection = netfilter::parts(&message, SUBSYSTEM, 0)
            .and_then(|(_, attributes)| Connection::read(attributes, is_ipv4, port));
        let Some(connection) = connection else { continue };
        if !is_wanted(&connection) {
            continue;
        }
        // With its number, so that a new one between the same ends isn't meant: CTA_ID 12; CTA_ZONE 18.
        let mut named = Attributes::new();
        for kind in [1, 12, 18] {
            if let Some(value) = attribute(connection.attributes, kind) {
                named = named.bytes(kind, value);
            }
        }
        let delete = netfilter::message(SUBSYSTEM, 2, family, &named);
        match socket.request("end a UDP connection".to_owned(), delete, 0) {
            Err(error) if error.errno() != Some(Errno::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl<'a> Connection<'a> {
    /// A UDP connection to `port`.
    fn read(attributes: &'a [u8], is_ipv4: bool, port: u16) -> Option<Self> {
        let (original, reply) = (attribute(attributes, 1)?, attribute(attributes, 2)?);
        let protocol = attribute(original, 2)?;
        if attribute(protocol, 1)? != [UDP] || attribute(protocol, 3)? != port.to_be_bytes() {
            return None;
        }
        // CTA_IP_V4_SRC to CTA_IP_V6_DST are 1 to 4.
        let (source, destination) = if is_ipv4 { (1, 2) } else { (3, 4) };
        Some(Self {
            attributes,
            called: attribute(attribute(original, 1)?, destination)?,
            answering: attribute(attribute(reply, 1)?, source)?,
        })
    }
}
