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

/// To so many addresses connections are ended one after the other; to more by a look at all connections.
const FEW: usize = 64;

/// Ends the UDP connections to `port` of this host that lead elsewhere than to `container`: to another one that had the
/// port before, or to the host itself as nobody had it.
///
/// Those that lead to it already may end as well: it is only being attached, and nobody waits for its answer.
pub(crate) fn end_stale(
    socket: &mut NetfilterSocket,
    container: IpAddr,
    port: u16,
    own_addresses: &[IpAddr],
) -> Result<(), KernelError> {
    let container_octets = octets(container);
    let of_family = own_addresses.iter().filter(|address| address.is_ipv4() == container.is_ipv4());
    let own: Vec<Vec<u8>> = of_family.map(|address| octets(*address)).collect();
    let mut ended = own.len() <= FEW;
    for address in &own {
        ended =
            ended && end_matching(socket, container.is_ipv4(), port, Ends { called: Some(address), answering: None })?;
    }
    if ended {
        return Ok(());
    }
    end_listed(socket, container.is_ipv4(), port, &|connection| {
        connection.answering != container_octets && own.iter().any(|address| address == connection.called)
    })
}

/// Ends the UDP connections to `port` that lead to `container`.
pub(crate) fn end_those_to(socket: &mut NetfilterSocket, container: IpAddr, port: u16) -> Result<(), KernelError> {
    let container_octets = octets(container);
    let ends = Ends { called: None, answering: Some(&container_octets) };
    if end_matching(socket, container.is_ipv4(), port, ends)? {
        return Ok(());
    }
    end_listed(socket, container.is_ipv4(), port, &|connection| connection.answering == container_octets)
}

/// Whom the client called and who answers, where it matters.
#[derive(Clone, Copy)]
struct Ends<'a> {
    called: Option<&'a [u8]>,
    answering: Option<&'a [u8]>,
}

/// Lets the kernel find and end the UDP connections to `port` with these ends; `false` if it is one that can't.
///
/// It passes over what is empty in its table, where a list takes a lock for each of a quarter of a million entries. From
/// Linux 6.8 on; before, it takes the ends for those of one connection, and misses half of them.
fn end_matching(socket: &mut NetfilterSocket, is_ipv4: bool, port: u16, ends: Ends<'_>) -> Result<bool, KernelError> {
    // CTA_IP_V4_SRC to CTA_IP_V6_DST are 1 to 4.
    let (source, destination) = if is_ipv4 { (1, 2) } else { (3, 4) };
    // What of each direction counts: the source is bit 0, the destination bit 1.
    let (mut original_bits, mut reply_bits) = (PROTOCOL_AND_PORT, 0);
    let mut original = Attributes::new().nest(2, &udp_to(port));
    let mut wanted = Attributes::new();
    if let Some(address) = ends.called {
        original = original.nest(1, &Attributes::new().bytes(destination, address));
        original_bits |= 0b10;
    }
    if let Some(address) = ends.answering {
        wanted = wanted.nest(2, &Attributes::new().nest(1, &Attributes::new().bytes(source, address)));
        reply_bits |= 0b1;
    }
    let wanted = wanted.nest(1, &original).nest(25, &filter(original_bits, reply_bits));
    let delete = netfilter::message(SUBSYSTEM, 2, family(is_ipv4), &wanted);
    match socket.request("end UDP connections".to_owned(), delete, 0) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn end_listed(
    socket: &mut NetfilterSocket,
    is_ipv4: bool,
    port: u16,
    is_wanted: &dyn Fn(&Connection<'_>) -> bool,
) -> Result<(), KernelError> {
    // A kernel before 5.8 takes no notice of the filter and lists all.
    let wanted =
        Attributes::new().nest(1, &Attributes::new().nest(2, &udp_to(port))).nest(25, &filter(PROTOCOL_AND_PORT, 0));
    let list = netfilter::message(SUBSYSTEM, 1, family(is_ipv4), &wanted);
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
        let delete = netfilter::message(SUBSYSTEM, 2, family(is_ipv4), &named);
        match socket.request("end a UDP connection".to_owned(), delete, 0) {
            Err(error) if error.errno() != Some(Errno::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Bits 3 and 5 of a direction in CTA_FILTER.
const PROTOCOL_AND_PORT: u32 = 0b10_1000;

/// CTA_TUPLE_PROTO: CTA_PROTO_NUM 1, CTA_PROTO_DST_PORT 3.
fn udp_to(port: u16) -> Attributes {
    Attributes::new().bytes(1, &[UDP]).bytes(3, &port.to_be_bytes())
}

/// CTA_FILTER, which says what of CTA_TUPLE_ORIG (1) and CTA_TUPLE_REPLY (2) to compare.
fn filter(original: u32, reply: u32) -> Attributes {
    Attributes::new().bytes(1, &original.to_ne_bytes()).bytes(2, &reply.to_ne_bytes())
}

fn family(is_ipv4: bool) -> u8 {
    if is_ipv4 { IPV4 } else { IPV6 }
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

#[cfg(test)]
mod tests {
    use std::{fs, net::UdpSocket};

    use keelson_testkit::{Netns, is_root, missing, skip_unless};

    use super::*;

    /// The destination and port of each UDP connection that is tracked.
    fn tracked(socket: &mut NetfilterSocket) -> Vec<String> {
        let list = netfilter::message(SUBSYSTEM, 1, IPV4, &Attributes::new());
        let mut found = Vec::new();
        for message in socket.dump("list the connections", &list).unwrap() {
            let (_, attributes) = netfilter::parts(&message, SUBSYSTEM, 0).unwrap();
            for port in [53, 54] {
                if let Some(connection) = Connection::read(attributes, true, port) {
                    found.push(format!("{}:{port}", connection.called[3]));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn both_ways_end_the_same_connections() {
        skip_unless!(is_root(), "needs root to make a network namespace");
        skip_unless!(missing(&["ip", "nft"]).is_empty(), "needs iproute2 and nftables");
        let namespace = Netns::new().unwrap();
        let run = |program: &str, arguments: &str| {
            let arguments = arguments.split(' ');
            assert!(namespace.command(program).args(arguments).status().unwrap().success());
        };
        run("ip", "link set lo up");
        // A rule that looks at connections makes the kernel track them.
        run("nft", "add table ip t");
        run("nft", "add chain ip t c { type filter hook output priority 0 ; }");
        run("nft", "add rule ip t c ct state new accept");
        namespace.run(|| {
            let mut socket = NetfilterSocket::open().unwrap();
            let call = || {
                for address in ["127.0.0.1:53", "127.0.0.1:54", "127.0.0.2:53"] {
                    UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", address).unwrap();
                }
            };
            let one = [127, 0, 0, 1];
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
            let is_able = (numbers.next(), numbers.next()) >= (Some(6), Some(8));
            for ends in [Ends { called: Some(&one), answering: None }, Ends { called: None, answering: Some(&one) }] {
                call();
                assert_eq!(tracked(&mut socket), ["1:53", "1:54", "2:53"]);
                assert_eq!(end_matching(&mut socket, true, 53, ends).unwrap(), is_able, "Linux {release}");
                let left: &[_] = if is_able { &["1:54", "2:53"] } else { &["1:53", "1:54", "2:53"] };
                assert_eq!(tracked(&mut socket), left);
                call();
                end_listed(&mut socket, true, 53, &|connection| {
                    ends.called.is_none_or(|called| called == connection.called)
                        && ends.answering.is_none_or(|answering| answering == connection.answering)
                })
                .unwrap();
                let left = tracked(&mut socket);
                assert!(!left.contains(&"1:53".to_owned()) && left.contains(&"2:53".to_owned()), "{left:?}");
                end_listed(&mut socket, true, 53, &|_| true).unwrap();
                end_listed(&mut socket, true, 54, &|_| true).unwrap();
                assert_eq!(tracked(&mut socket), Vec::<String>::new());
            }
        });
    }
}
