//! Finding, awaiting and removing links.

use std::time::{Duration, Instant};

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use nix::errno::Errno;

use super::{KernelError, RouteSocket, message::RouteNetlinkMessage, netlink::LinkEvents};

/// What is compared of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    /// Set up by somebody.
    pub(crate) up: bool,
    /// Up in fact: packets pass (RFC 2863's ifOperStatus).
    pub(crate) running: bool,
    /// The index of the bridge that it is a port of.
    pub(crate) master: Option<u32>,
    pub(crate) alias: String,
    pub(crate) kind: Option<InfoKind>,
    /// Whether a bridge port sends frames back to where they came from.
    pub(crate) hairpin: bool,
    /// Its namespace's switch `disable_ipv6`.
    pub(crate) ipv6_disabled: bool,
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
                LinkAttribute::OperState(state) => link.running = state == State::Up,
                LinkAttribute::Controller(master) => link.master = Some(master),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::AfSpecUnspec(families) => link.ipv6_disabled = families.iter().any(disables_ipv6),
                LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| link.add(info)),
                _ => {}
            }
        }
        link
    }

    fn add(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind),
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                self.hairpin = port.contains(&InfoBridgePort::HairpinMode(true));
            }
            _ => {}
        }
    }
}

fn disables_ipv6(family: &AfSpecUnspec) -> bool {
    let AfSpecUnspec::Inet6(attributes) = family else { return false };
    attributes.iter().any(|attribute| matches!(attribute, AfSpecInet6::DevConf(conf) if conf.disable_ipv6 != 0))
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

/// How long a veth pair whose ends are both up may take to carry packets: it takes the kernel well under a millisecond.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);

/// Waits until packets pass through the link called `name`.
///
/// The kernel makes a bridge port forward and a link transmit from a work queue, after the message that brought the
/// other end up was acknowledged. From Linux 6.7 on, looking a link up does that work first; before, its event tells.
pub(crate) fn wait_until_running(socket: &mut RouteSocket, name: &str) -> Result<(), KernelError> {
    let is_running = |socket: &mut RouteSocket| Ok(find(socket, name)?.is_some_and(|link| link.running));
    if is_running(socket)? {
        return Ok(());
    }
    let events = LinkEvents::open()?;
    let deadline = Instant::now() + CARRIER_LIMIT;
    // Asked again after the subscription: what happened before it makes no event.
    while !is_running(socket)? {
        if !events.wait(deadline)? {
            return Err(KernelError::new(format!("wait for the link {name} to carry packets"), Errno::ETIMEDOUT));
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use keelson_testkit::{Netns, is_root, skip_unless};

    use super::*;

    #[test]
    fn a_link_that_comes_up_later_is_waited_for() {
        skip_unless!(is_root(), "needs root to make a network namespace");
        let namespace = Netns::new().unwrap();
        let ip = |arguments: &[&str]| {
            assert!(namespace.command("ip").args(arguments).status().unwrap().success(), "{arguments:?}");
        };
        ip(&["link", "add", "one", "type", "veth", "peer", "name", "two"]);
        ip(&["link", "set", "one", "up"]);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                namespace.run(|| wait_until_running(&mut RouteSocket::open().unwrap(), "one").unwrap());
            });
            ip(&["link", "set", "two", "up"]);
            waiting.join().unwrap();
        });
    }

    #[test]
    fn events_are_told_and_a_deadline_is_kept() {
        skip_unless!(is_root(), "needs root to make a network namespace");
        let namespace = Netns::new().unwrap();
        let events = namespace.run(|| LinkEvents::open().unwrap());
        assert!(!events.wait(Instant::now()).unwrap());
        assert!(namespace.command("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        assert!(events.wait(Instant::now() + CARRIER_LIMIT).unwrap());
    }
}
