//! The pair of links that ties a container to the bridge.

use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use super::{KernelError, RouteSocket, message::RouteNetlinkMessage, netns::Namespace};
use crate::config::mac::Mac;

/// The longest alias of a link: the kernel takes `IFALIASZ - 1`, 255 bytes (linux/if.h), of which the attribute's NUL is
/// one. A Pod's namespace and name may be longer.
const LONGEST_ALIAS: usize = 254;

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
/// MTU, the container's end in its namespace, the host's end up and, where there is one, in the bridge.
///
/// The container's end can't be brought up by the same message: the kernel opens it before its peer exists (ENOTCONN).
pub(crate) fn create(
    socket: &mut RouteSocket,
    pair: &VethPair<'_>,
    bridge: Option<u32>,
    namespace: &Namespace,
) -> Result<(), KernelError> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(pair.container_name.to_owned()));
    peer.attributes.push(LinkAttribute::Address(pair.container_mac.0.to_vec()));
    peer.attributes.push(LinkAttribute::Mtu(pair.mtu));
    peer.attributes.push(LinkAttribute::NetNsFd(namespace.file().as_raw_fd()));
    let mut host = LinkMessage::default();
    host.header.flags = LinkFlags::Up;
    host.header.change_mask = LinkFlags::Up;
    host.attributes.push(LinkAttribute::IfName(pair.host_name.to_owned()));
    host.attributes.push(LinkAttribute::Address(pair.host_mac.0.to_vec()));
    host.attributes.push(LinkAttribute::Mtu(pair.mtu));
    host.attributes.extend(bridge.map(LinkAttribute::Controller));
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let doing = format!("create the veth pair {} and {}", pair.host_name, pair.container_name);
    socket.request(doing, RouteNetlinkMessage::NewLink(host), NLM_F_CREATE | NLM_F_EXCL)?;
    Ok(())
}

/// What a bridge does with the frames of one port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortFlags {
    pub(crate) hairpin: bool,
    pub(crate) isolated: bool,
}

/// Sets what the creating message can't carry: the alias that names the Pod, and a bridge port's flags.
pub(crate) fn configure_host_end(
    socket: &mut RouteSocket,
    name: &str,
    alias: &str,
    port: Option<PortFlags>,
) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::IfAlias(alias_of(alias)));
    if let Some(PortFlags { hairpin, isolated }) = port {
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(hairpin),
                InfoBridgePort::Isolated(isolated),
            ])),
        ]));
    }
    socket.request(format!("configure the link {name}"), RouteNetlinkMessage::NewLink(message), 0)?;
    Ok(())
}

/// The part of `text` that an alias can hold, on one line: it comes from the runtime, and is shown on terminals.
fn alias_of(text: &str) -> String {
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
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
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
