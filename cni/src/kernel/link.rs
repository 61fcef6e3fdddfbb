//! Finding, awaiting and removing links.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{
    KernelError, RouteSocket,
    attribute::{Attributes, attribute, attributes, native, text},
    bridge,
    message::RouteNetlinkMessage,
    netlink::Events,
};

/// The length of `ifinfomsg` (linux/rtnetlink.h).
const FIXED: usize = 16;

/// `IFF_UP` (linux/if.h).
const UP: u32 = 1;

/// `IFF_PROMISC` there.
const PROMISCUOUS: u32 = 0x100;

/// `IF_OPER_UP` there: RFC 2863's ifOperStatus "up".
const IF_OPER_UP: u8 = 6;

/// `RTEXT_FILTER_SKIP_STATS` (linux/rtnetlink.h).
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// Of a bridge (linux/if_link.h): whether it keeps VLANs apart.
pub(crate) const IFLA_BR_VLAN_FILTERING: u16 = 7;

/// Of a bridge port (linux/if_link.h): whether it sends frames back to where they came from.
pub(crate) const IFLA_BRPORT_MODE: u16 = 4;

/// Of a bridge port (linux/if_link.h): whether it exchanges no frames with other such ports.
pub(crate) const IFLA_BRPORT_ISOLATED: u16 = 33;

/// What a message says of the link's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It stays as it is.
    Kept,
    /// Set it up.
    Up,
    /// Have it take every frame, whether it is up or not.
    Promiscuous,
    /// Set it down.
    Down,
}

/// `ifinfomsg`: family, type, index, flags, and which of the flags are meant.
pub(crate) fn fixed(index: u32, state: State) -> [u8; FIXED] {
    let mut fixed = [0; FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let (flag, mask) = match state {
        State::Kept => (0, 0),
        State::Up => (UP, UP),
        State::Down => (0, UP),
        State::Promiscuous => (PROMISCUOUS, PROMISCUOUS),
    };
    fixed[8..12].copy_from_slice(&flag.to_ne_bytes());
    fixed[12..].copy_from_slice(&mask.to_ne_bytes());
    fixed
}

/// The message `kind` about the link `index`, or about the one that the attributes name if it is 0.
pub(crate) fn message(kind: u16, index: u32, state: State, attributes: &Attributes) -> RouteNetlinkMessage {
    RouteNetlinkMessage::new(kind, &fixed(index, state), attributes)
}

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
    /// The index of the other end of a veth pair, in its own namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) alias: String,
    /// The kernel's name for its kind, such as `bridge`; empty for a device.
    pub(crate) kind: String,
    /// Whether a bridge port sends frames back to where they came from.
    pub(crate) hairpin: bool,
    /// Whether somebody asked it to take every frame.
    pub(crate) promiscuous: bool,
    /// Whether it is a bridge that keeps VLANs apart.
    pub(crate) filters_vlans: bool,
    /// Its namespace's switch `disable_ipv6`.
    pub(crate) ipv6_disabled: bool,
}

impl Link {
    /// The link that an answer tells of.
    pub(super) fn from_message(answer: &RouteNetlinkMessage) -> Option<Self> {
        let (fixed, told) = answer.parts::<FIXED>(libc::RTM_NEWLINK)?;
        let field = |at: usize| fixed.get(at..at + 4).and_then(native).unwrap_or_default();
        let flags = field(8);
        let mut link =
            Self { index: field(4), up: flags & UP != 0, promiscuous: flags & PROMISCUOUS != 0, ..Self::default() };
        for (kind, value) in attributes(told) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_ADDRESS => link.mac = value.to_vec(),
                libc::IFLA_MTU => link.mtu = native(value).unwrap_or_default(),
                libc::IFLA_OPERSTATE => link.running = value == [IF_OPER_UP],
                libc::IFLA_LINK => link.peer = native(value),
                libc::IFLA_MASTER => link.master = native(value),
                libc::IFLA_IFALIAS => link.alias = text(value),
                libc::IFLA_AF_SPEC => link.ipv6_disabled = disables_ipv6(value),
                libc::IFLA_LINKINFO => {
                    link.kind = attribute(value, libc::IFLA_INFO_KIND).map(text).unwrap_or_default();
                    let port = attribute(value, libc::IFLA_INFO_SLAVE_DATA).unwrap_or_default();
                    link.hairpin = attribute(port, IFLA_BRPORT_MODE) == Some(&[1]);
                    let own = attribute(value, libc::IFLA_INFO_DATA).filter(|_| link.kind == bridge::KIND);
                    link.filters_vlans = own.and_then(|own| attribute(own, IFLA_BR_VLAN_FILTERING)) == Some(&[1]);
                }
                _ => {}
            }
        }
        Some(link)
    }

    /// Its Ethernet address as it is written: `6e:43:c4:58:2a:f3`.
    pub(crate) fn mac_text(&self) -> String {
        let bytes: Vec<String> = self.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(":")
    }
}

/// What `IFLA_AF_SPEC` holds of IPv6: below the family's number its switches, in the order of linux/ipv6.h.
fn disables_ipv6(families: &[u8]) -> bool {
    const AF_INET6: u16 = 10;
    const IFLA_INET6_CONF: u16 = 2;
    const DEVCONF_DISABLE_IPV6: usize = 26;
    let switches = attribute(families, AF_INET6).and_then(|family| attribute(family, IFLA_INET6_CONF));
    let (switches, _) = switches.unwrap_or_default().as_chunks::<4>();
    switches.get(DEVCONF_DISABLE_IPV6).is_some_and(|switch| *switch != [0; 4])
}

/// The link called `name`, if there is one.
pub(crate) fn find(socket: &mut RouteSocket, name: &str) -> Result<Option<Link>, KernelError> {
    get(socket, format!("look up the link {name}"), 0, Attributes::new().text(libc::IFLA_IFNAME, name))
}

/// The link with the number `index`, if there is one.
pub(crate) fn find_by_index(socket: &mut RouteSocket, index: u32) -> Result<Option<Link>, KernelError> {
    get(socket, format!("look up the link with the number {index}"), index, Attributes::new())
}

fn get(
    socket: &mut RouteSocket,
    doing: String,
    index: u32,
    attributes: Attributes,
) -> Result<Option<Link>, KernelError> {
    // Counters are summed up over all CPUs, for nobody.
    let attributes = attributes.native(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    let message = message(libc::RTM_GETLINK, index, State::Kept, &attributes);
    match socket.get(doing, message) {
        Ok(answer) => Ok(answer.as_ref().and_then(Link::from_message)),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How long a veth pair whose ends are both up may take to carry packets: it takes the kernel well under a millisecond.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);

/// Waits until packets pass through the link called `name`.
///
/// The kernel makes a bridge port forward and a link transmit from a work queue, after the message that brought the
/// other end up was acknowledged. From Linux 6.7 on, looking a link up does that work first; before, its event tells:
/// `subscribe` opens [`Events::of_links`] in the socket's namespace.
pub(crate) fn wait_until_running<E: From<KernelError>>(
    socket: &mut RouteSocket,
    name: &str,
    subscribe: impl FnOnce() -> Result<Events, E>,
) -> Result<(), E> {
    let is_running =
        |socket: &mut RouteSocket| Ok::<_, KernelError>(find(socket, name)?.is_some_and(|link| link.running));
    if is_running(socket)? {
        return Ok(());
    }
    let events = subscribe()?;
    let deadline = Instant::now() + CARRIER_LIMIT;
    // Asked again after the subscription: what happened before it makes no event.
    while !is_running(socket)? {
        if !events.wait(deadline)? {
            let doing = format!("wait for the link {name} to carry packets");
            return Err(KernelError::new(doing, Errno::ETIMEDOUT).into());
        }
    }
    Ok(())
}

/// Sets link `index` up or down.
pub(crate) fn set(socket: &mut RouteSocket, index: u32, state: State) -> Result<(), KernelError> {
    let message = message(libc::RTM_SETLINK, index, state, &Attributes::new());
    let doing = format!("set a link {}", if state == State::Up { "up" } else { "down" });
    socket.request(doing, message, 0).map(drop)
}

/// Every link of the socket's namespace.
pub(crate) fn all(socket: &mut RouteSocket) -> Result<Vec<Link>, KernelError> {
    let message = message(libc::RTM_GETLINK, 0, State::Kept, &Attributes::new());
    let answers = socket.dump("list the links", &message)?;
    Ok(answers.iter().filter_map(Link::from_message).collect())
}

/// Removes the link called `name`, and with one end of a veth pair the other; an absent link is no error.
pub(crate) fn delete(socket: &mut RouteSocket, name: &str) -> Result<(), KernelError> {
    let message = message(libc::RTM_DELLINK, 0, State::Kept, &Attributes::new().text(libc::IFLA_IFNAME, name));
    match socket.request(format!("delete the link {name}"), message, 0) {
        Ok(_) => Ok(()),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes this very link, and no other that got its name since; whether it was there.
pub(crate) fn remove(socket: &mut RouteSocket, link: &Link) -> Result<bool, KernelError> {
    let message = message(libc::RTM_DELLINK, link.index, State::Kept, &Attributes::new());
    match socket.request(format!("delete the link {}", link.name), message, 0) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use keelson_testkit::{Netns, is_root, skip_unless};

    use super::*;
    use crate::kernel::Step;

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
                namespace
                    .run(|| wait_until_running(&mut RouteSocket::open().unwrap(), "one", Events::of_links).unwrap());
            });
            ip(&["link", "set", "two", "up"]);
            waiting.join().unwrap();
        });
    }

    #[test]
    fn a_new_link_of_the_name_is_not_removed_for_the_old_one() {
        skip_unless!(is_root(), "needs root to make a network namespace");
        let namespace = Netns::new().unwrap();
        let make = || {
            let arguments = ["link", "add", "one", "type", "veth", "peer", "name", "two"];
            assert!(namespace.command("ip").args(arguments).status().unwrap().success());
        };
        namespace.run(|| {
            let mut socket = RouteSocket::open().unwrap();
            make();
            let old = find(&mut socket, "one").unwrap().unwrap();
            assert!(remove(&mut socket, &old).unwrap());
            make();
            assert!(!remove(&mut socket, &old).unwrap());
            assert!(find(&mut socket, "one").unwrap().is_some());
        });
    }

    #[test]
    fn events_are_told_and_a_deadline_is_kept() {
        skip_unless!(is_root(), "needs root to make a network namespace");
        let namespace = Netns::new().unwrap();
        let events = namespace.run(|| Events::of_links().unwrap());
        assert!(!events.wait(Instant::now()).unwrap());
        assert!(namespace.command("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        assert!(events.wait(Instant::now() + CARRIER_LIMIT).unwrap());
    }

    #[test]
    fn of_a_batch_the_refused_step_is_named_and_the_others_are_carried_out() {
        skip_unless!(is_root(), "needs root to make a network namespace");
        let namespace = Netns::new().unwrap();
        let mut socket = namespace.run(|| RouteSocket::open().unwrap());
        let up = |name: &str| {
            let message = message(libc::RTM_SETLINK, 0, State::Up, &Attributes::new().text(libc::IFLA_IFNAME, name));
            Step { doing: format!("bring up {name}"), message, flags: 0 }
        };
        for steps in [[up("none"), up("lo")], [up("lo"), up("none")]] {
            let error = socket.batch(&steps).unwrap_err();
            assert_eq!((error.doing.as_str(), error.errno()), ("bring up none", Some(Errno::ENODEV)));
            // Nothing of the batch is left to be taken for an answer.
            assert!(find(&mut socket, "lo").unwrap().unwrap().up);
            assert_eq!(find(&mut socket, "none").unwrap(), None);
        }
    }
}
