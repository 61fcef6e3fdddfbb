//! Finding and removing links.

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use nix::errno::Errno;

use super::{KernelError, RouteSocket, message::RouteNetlinkMessage};

/// What is compared of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// The index of the bridge that it is a port of.
    pub(crate) master: Option<u32>,
    pub(crate) alias: String,
    pub(crate) kind: Option<InfoKind>,
}

impl Link {
    fn from_message(message: LinkMessage) -> Self {
        let mut link =
            Self { index: message.header.index, up: message.header.flags.contains(LinkFlags::Up), ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(master) => link.master = Some(master),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

/// The link called `name`, if there is one.
pub(crate) fn find(socket: &mut RouteSocket, name: &str) -> Result<Option<Link>, KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    // Counters are summed up over all CPUs, for nobody.
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match socket.request(format!("look up the link {name}"), RouteNetlinkMessage::GetLink(message), 0) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
            _ => None,
        })),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every link of the socket's namespace.
pub(crate) fn all(socket: &mut RouteSocket) -> Result<Vec<Link>, KernelError> {
    let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = socket.dump("list the links", &message)?;
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
        _ => None,
    });
    Ok(links.collect())
}

/// Removes the link called `name`, and with one end of a veth pair the other; an absent link is no error.
pub(crate) fn delete(socket: &mut RouteSocket, name: &str) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match socket.request(format!("delete the link {name}"), RouteNetlinkMessage::DelLink(message), 0) {
        Ok(_) => Ok(()),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
        Err(error) => Err(error),
    }
}
