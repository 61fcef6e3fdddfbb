//! The pair of links that ties a container to the bridge.

use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{
    KernelError, RouteSocket,
    attribute::Attributes,
    link::{self, State},
    message::RouteNetlinkMessage,
    netns::Namespace,
};
use crate::config::mac::Mac;

/// The longest alias of a link: the kernel takes `IFALIASZ - 1`, 255 bytes (linux/if.h), of which the attribute's NUL is
/// one. A Pod's namespace and name may be longer.
const LONGEST_ALIAS: usize = 254;

/// `linux/veth.h`: the other end, in the form of a message that would make it.
const VETH_INFO_PEER: u16 = 1;

/// `linux/if_link.h`: how an interface comes by an IPv6 link-local address, and the way not to.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// The address family in the type of an attribute.
const AF_INET6: u16 = 10;

/// Both ends of a pair.
#[derive(Clone, Debug)]
pub(crate) struct VethPair<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) host_mac: Mac,
    pub(crate) container_name: &'a str,
    pub(crate) container_mac: Mac,
    pub(crate) mtu: u32,
}

/// Makes the pair in one message: names, Ethernet addresses (given ones, so that udev's MACAddressPolicy leaves them),
/// MTU, the container's end in its namespace, the host's end in the bridge and up; without a bridge it stays down.
///
/// The container's end can't be brought up by the same message: the kernel opens it before its peer exists (ENOTCONN).
pub(crate) fn create(
    socket: &mut RouteSocket,
    pair: &VethPair<'_>,
    bridge: Option<u32>,
    namespace: &Namespace,
) -> Result<(), KernelError> {
    let peer = Attributes::new()
        .text(libc::IFLA_IFNAME, pair.container_name)
        .bytes(libc::IFLA_ADDRESS, &pair.container_mac.0)
        .native(libc::IFLA_MTU, pair.mtu)
        .native(libc::IFLA_NET_NS_FD, namespace.file().as_raw_fd().cast_unsigned());
    let host = Attributes::new()
        .text(libc::IFLA_IFNAME, pair.host_name)
        .bytes(libc::IFLA_ADDRESS, &pair.host_mac.0)
        .native(libc::IFLA_MTU, pair.mtu)
        .optional(libc::IFLA_MASTER, bridge)
        .nest(libc::IFLA_LINKINFO, &kind(&peer));
    let doing = format!("create the veth pair {} and {}", pair.host_name, pair.container_name);
    let state = if bridge.is_some() { State::Up } else { State::Kept };
    let message = link::message(libc::RTM_NEWLINK, 0, state, &host);
    socket.request(doing, message, NLM_F_CREATE | NLM_F_EXCL)?;
    Ok(())
}

/// The `IFLA_LINKINFO` of one end of a pair; `peer` are the attributes of the other.
pub(super) fn kind(peer: &Attributes) -> Attributes {
    let peer = [&link::fixed(0, State::Kept), peer.as_bytes()].concat();
    Attributes::new()
        .text(libc::IFLA_INFO_KIND, "veth")
        .nest(libc::IFLA_INFO_DATA, &Attributes::new().bytes(VETH_INFO_PEER, &peer))
}

/// What a bridge does with the frames of one port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortFlags {
    pub(crate) hairpin: bool,
    pub(crate) isolated: bool,
}

/// What the host's end is to be, besides up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostEnd {
    /// A port of a bridge.
    Port(PortFlags),
    /// A router's interface.
    Routed {
        /// Whether it is to have IPv6 addresses. Then it is kept from making up a link-local one and is given one: while
        /// its own was being verified, for a second or two, the node would ask for no container's Ethernet address on
        /// behalf of others.
        has_ipv6: bool,
    },
}

/// Sets what the creating message can't carry: the alias that names the Pod, a bridge port's flags, and how a router's
/// interface comes by its addresses.
pub(crate) fn configure_host_end(
    socket: &mut RouteSocket,
    name: &str,
    alias: &str,
    end: HostEnd,
) -> Result<(), KernelError> {
    let mut attributes = Attributes::new().text(libc::IFLA_IFNAME, name).text(libc::IFLA_IFALIAS, &alias_of(alias));
    match end {
        HostEnd::Port(PortFlags { hairpin, isolated }) => {
            let flags = Attributes::new()
                .bytes(link::IFLA_BRPORT_MODE, &[hairpin.into()])
                .bytes(link::IFLA_BRPORT_ISOLATED, &[isolated.into()]);
            let port =
                Attributes::new().text(libc::IFLA_INFO_SLAVE_KIND, "bridge").nest(libc::IFLA_INFO_SLAVE_DATA, &flags);
            attributes = attributes.nest(libc::IFLA_LINKINFO, &port);
        }
        HostEnd::Routed { has_ipv6: true } => {
            let ipv6 = Attributes::new().bytes(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            attributes = attributes.nest(libc::IFLA_AF_SPEC, &Attributes::new().nest(AF_INET6, &ipv6));
        }
        HostEnd::Routed { has_ipv6: false } => {}
    }
    let message = link::message(libc::RTM_NEWLINK, 0, State::Kept, &attributes);
    socket.request(format!("configure the link {name}"), message, 0)?;
    Ok(())
}

/// The part of `text` that an alias can hold, on one line: it comes from the runtime, and is shown on terminals.
pub(super) fn alias_of(text: &str) -> String {
    let mut alias = String::new();
    for letter in text.chars().filter(|letter| !letter.is_control()) {
        if alias.len() + letter.len_utf8() > LONGEST_ALIAS {
            break;
        }
        alias.push(letter);
    }
    alias
}

/// The message that brings link `index` up.
pub(crate) fn up(index: u32) -> RouteNetlinkMessage {
    link::message(libc::RTM_SETLINK, index, State::Up, &Attributes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_one_line_of_whole_characters() {
        assert_eq!(alias_of("keelson:net:a\nb\u{1b}[31m/c"), "keelson:net:ab[31m/c");
        let long = format!("{}éé", "x".repeat(253));
        assert_eq!(alias_of(&long), "x".repeat(253));
        assert_eq!(alias_of(&long[1..]).len(), 254);
    }
}
