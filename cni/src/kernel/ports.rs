//! Host ports: elements of the maps that the rules look up ([`super::rules`] shows them).
//!
//! An element belongs to the attachment that its comment names, and leads to that one's address. It is only removed
//! while it does: after its container is gone another one may have got the port.

use std::net::IpAddr;

use super::{
    KernelError,
    address::octets,
    netlink::NetfilterSocket,
    nftables::{self, Element, LONGEST_COMMENT, NetfilterStep},
    rules::{ADDRESSED_PORTS4, ADDRESSED_PORTS6, LINKS, NAT, PORTS4, PORTS6, link_key},
};
use crate::config::ports::PortMapping;
use nix::errno::Errno;

/// What one attachment publishes.
#[derive(Clone, Debug)]
pub(crate) struct Publication<'a> {
    pub(crate) ports: &'a [PortMapping],
    pub(crate) addresses: Vec<IpAddr>,
    /// The link that clients may share with the container: its bridge, or its own host end.
    pub(crate) link: &'a str,
    /// Whether that link ends with the attachment.
    pub(crate) owns_link: bool,
    pub(crate) owner: Owner,
}

/// To whom an element belongs: its comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Without spaces. As long as it means something, so does the element.
    pub(crate) token: String,
    /// For people.
    pub(crate) text: String,
}

impl Owner {
    /// On one line, whole letters, no quotes (nft has no escape for them), and not too long: the text comes from the
    /// runtime.
    fn comment(&self) -> String {
        let mut comment = String::new();
        for letter in format!("{} {}", self.token, self.text).chars() {
            if comment.len() + letter.len_utf8() > LONGEST_COMMENT {
                break;
            }
            comment.push(if letter.is_control() || letter == '"' { '?' } else { letter });
        }
        comment
    }

    fn has(&self, element: &Element) -> bool {
        Self::parse(&element.comment).token == self.token
    }

    pub(super) fn parse(comment: &str) -> Self {
        let (token, text) = comment.split_once(' ').unwrap_or(("", comment));
        Self { token: token.to_owned(), text: text.to_owned() }
    }
}

/// Why ports could not be published.
#[derive(Debug)]
pub(crate) enum PublishError {
    Kernel(KernelError),
    Taken { port: String, holder: String },
}

impl From<KernelError> for PublishError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

/// One port in one map.
struct Entry {
    port: String,
    map: &'static str,
    /// Where the same port on another set of addresses would be.
    rival_map: &'static str,
    /// How many bytes of the key are the node's address.
    address_length: usize,
    element: Element,
}

impl Publication<'_> {
    fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for mapping in self.ports {
            for is_ipv4 in [true, false] {
                // Of several addresses of a family the first.
                let Some(target) = self.addresses.iter().find(|address| address.is_ipv4() == is_ipv4) else { continue };
                if !mapping.is_of(is_ipv4) {
                    continue;
                }
                let (wildcard, addressed) =
                    if is_ipv4 { (PORTS4, ADDRESSED_PORTS4) } else { (PORTS6, ADDRESSED_PORTS6) };
                let mut key = mapping.address().map(octets).unwrap_or_default();
                let address_length = key.len();
                key.extend([mapping.protocol.number(), 0, 0, 0]);
                key.extend(padded(mapping.host_port));
                let mut data = octets(*target);
                data.extend(padded(mapping.container_port));
                let (map, rival_map) = if address_length == 0 { (wildcard, addressed) } else { (addressed, wildcard) };
                let element = Element { key, data, comment: self.owner.comment(), is_end: false };
                entries.push(Entry { port: mapping.to_string(), map, rival_map, address_length, element });
            }
        }
        entries
    }
}

/// A port in network order, filled up to a register.
fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

impl Entry {
    /// The elements of the other map that the same packets would match.
    fn rivals(&self, socket: &mut NetfilterSocket) -> Result<Vec<Element>, KernelError> {
        let port = &self.element.key[self.address_length..];
        if self.address_length > 0 {
            return Ok(NAT.table.find(socket, self.rival_map, port)?.into_iter().collect());
        }
        let mut found = NAT.table.list(socket, self.rival_map)?;
        found.retain(|element| element.key.ends_with(port));
        Ok(found)
    }
}

/// Publishes all ports or none: of one that is taken, not even those that were there before stay.
///
/// A port that leads elsewhere is taken, and so is one on all addresses if somebody has it on one of them, or the other
/// way round; unless `is_gone` says of the owner that there is no such attachment any more.
pub(crate) fn publish(
    socket: &mut NetfilterSocket,
    publication: &Publication<'_>,
    is_gone: &mut dyn FnMut(&Owner) -> Result<bool, KernelError>,
) -> Result<(), PublishError> {
    let entries = publication.entries();
    let link = Element { key: link_key(publication.link), ..Element::default() };
    let mut steps = vec![NAT.table.add(LINKS, &[link])];
    steps.extend(by_map(&entries.iter().collect::<Vec<_>>(), |map, elements| NAT.table.add_new(map, elements)));
    let is_free = match nftables::commit(socket, steps) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => false,
        other => {
            other?;
            // Looked for after our own are there: of two at once, at least one sees the other.
            let mut is_free = true;
            for entry in &entries {
                is_free &= entry.rivals(socket)?.is_empty();
            }
            is_free
        }
    };
    let taken = if is_free { None } else { settle(socket, publication, &entries, is_gone, Wanted::All)? };
    taken.map_or(Ok(()), Err)
}

/// Publishes the ports that nobody else has by now.
pub(crate) fn restore(
    socket: &mut NetfilterSocket,
    publication: &Publication<'_>,
    is_gone: &mut dyn FnMut(&Owner) -> Result<bool, KernelError>,
) -> Result<(), KernelError> {
    settle(socket, publication, &publication.entries(), is_gone, Wanted::Free).map(drop)
}

/// How many elements a step has at most: an attribute holds 64 KiB, and each step is acknowledged, for which the socket
/// has little room.
pub(super) const ELEMENTS_AT_ONCE: usize = 256;

/// A step for all entries of a map, or several for very many.
fn by_map(entries: &[&Entry], step: impl Fn(&'static str, &[Element]) -> NetfilterStep) -> Vec<NetfilterStep> {
    let mut steps = Vec::new();
    for map in [PORTS4, PORTS6, ADDRESSED_PORTS4, ADDRESSED_PORTS6] {
        let of_map = entries.iter().filter(|entry| entry.map == map);
        let elements: Vec<Element> = of_map.map(|entry| entry.element.clone()).collect();
        steps.extend(elements.chunks(ELEMENTS_AT_ONCE).map(|elements| step(map, elements)));
    }
    steps
}

/// Which ports are published if one of them is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// All or none.
    All,
    /// Those that are free.
    Free,
}

/// Publishes what is missing in place of what nobody owns any more, and withdraws what may not be there; tells of the
/// first port that is taken.
fn settle(
    socket: &mut NetfilterSocket,
    publication: &Publication<'_>,
    entries: &[Entry],
    is_gone: &mut dyn FnMut(&Owner) -> Result<bool, KernelError>,
    wanted: Wanted,
) -> Result<Option<PublishError>, KernelError> {
    let mut taken = None;
    nftables::update(socket, &mut |socket| {
        taken = None;
        let (mut published, mut missing, mut beaten, mut gone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            let found = NAT.table.find(socket, entry.map, &entry.element.key)?;
            let is_there = found.as_ref() == Some(&entry.element);
            let others = found.filter(|_| !is_there).map(|element| (entry.map, element)).into_iter();
            let rivals = entry.rivals(socket)?.into_iter().map(|element| (entry.rival_map, element));
            let mut is_free = true;
            for other in others.chain(rivals) {
                let owner = Owner::parse(&other.1.comment);
                if !is_gone(&owner)? {
                    is_free = false;
                    taken.get_or_insert(PublishError::Taken { port: entry.port.clone(), holder: owner.text });
                } else if !gone.contains(&other) {
                    gone.push(other);
                }
            }
            match (is_there, is_free) {
                (true, true) => published.push(entry),
                (true, false) => beaten.push(entry),
                (false, true) => missing.push(entry),
                (false, false) => {}
            }
        }
        let remove = |map, elements: &[Element]| NAT.table.remove(map, elements);
        if taken.is_some() && wanted == Wanted::All {
            beaten.append(&mut published);
            return Ok(by_map(&beaten, remove));
        }
        let link = Element { key: link_key(publication.link), ..Element::default() };
        let mut steps = vec![NAT.table.add(LINKS, &[link])];
        steps.extend(gone.into_iter().map(|(map, element)| NAT.table.remove(map, &[element])));
        steps.extend(by_map(&beaten, remove));
        steps.extend(by_map(&missing, |map, elements| NAT.table.add_new(map, elements)));
        Ok(steps)
    })?;
    Ok(taken)
}

/// Removes the ports that lead to the attachment; what is gone, or leads elsewhere by now, is left alone.
pub(crate) fn withdraw(socket: &mut NetfilterSocket, publication: &Publication<'_>) -> Result<(), KernelError> {
    let entries = publication.entries();
    nftables::update(socket, &mut |socket| {
        let mut own = Vec::new();
        for entry in &entries {
            let found = NAT.table.find(socket, entry.map, &entry.element.key)?;
            if found.is_some_and(|found| found.data == entry.element.data && publication.owner.has(&found)) {
                own.push(entry);
            }
        }
        let mut steps = by_map(&own, |map, elements| NAT.table.remove(map, elements));
        if publication.owns_link
            && let Some(found) = NAT.table.find(socket, LINKS, &link_key(publication.link))?
        {
            steps.push(NAT.table.remove(LINKS, &[found]));
        }
        Ok(steps)
    })
}

/// Removes every port whose comment begins with `token`, a link's name, wherever it leads.
pub(crate) fn withdraw_all(socket: &mut NetfilterSocket, token: &str) -> Result<(), KernelError> {
    nftables::update(socket, &mut |socket| {
        let mut steps = Vec::new();
        for map in [PORTS4, PORTS6, ADDRESSED_PORTS4, ADDRESSED_PORTS6] {
            let mut found = NAT.table.list(socket, map)?;
            found.retain(|element| Owner::parse(&element.comment).token == token);
            steps.extend(found.chunks(ELEMENTS_AT_ONCE).map(|elements| NAT.table.remove(map, elements)));
        }
        if let Some(found) = NAT.table.find(socket, LINKS, &link_key(token))? {
            steps.push(NAT.table.remove(LINKS, &[found]));
        }
        Ok(steps)
    })
}

/// The ports that don't lead to the attachment, each as a part of a sentence.
pub(crate) fn differences(
    socket: &mut NetfilterSocket,
    publication: &Publication<'_>,
) -> Result<Vec<String>, KernelError> {
    let mut differences = Vec::new();
    for Entry { port, map, element, .. } in publication.entries() {
        if NAT.table.find(socket, map, &element.key)?.is_none_or(|found| found.data != element.data) {
            differences.push(format!(
                "the host port {port} does not lead to the container: see the map {map} of the nftables table inet {}",
                NAT.table.name
            ));
        }
    }
    if NAT.table.find(socket, LINKS, &link_key(publication.link))?.is_none() {
        differences.push(format!("the nftables set {LINKS} lacks {}", publication.link));
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use keelson_testkit::{Netns, is_root, skip_unless};

    use super::*;
    use crate::config::ports::Protocol;

    fn mappings(ports: &[(&str, u16)]) -> Vec<PortMapping> {
        let mapping = |(address, host_port): &(&str, u16)| PortMapping {
            protocol: Protocol::Tcp,
            host_ip: address.parse().ok(),
            host_port: *host_port,
            container_port: 80,
        };
        ports.iter().map(mapping).collect()
    }

    fn publication<'a>(token: &str, ports: &'a [PortMapping]) -> Publication<'a> {
        let owner = Owner { token: token.to_owned(), text: "somebody".to_owned() };
        let addresses = vec!["10.0.0.2".parse().unwrap()];
        Publication { ports, addresses, link: "br0", owns_link: false, owner }
    }

    fn tokens(socket: &mut NetfilterSocket, map: &str) -> Vec<String> {
        let found = NAT.table.list(socket, map).unwrap();
        let mut tokens: Vec<String> = found.iter().map(|element| Owner::parse(&element.comment).token).collect();
        tokens.sort();
        tokens
    }

    #[test]
    fn of_two_in_both_maps_who_comes_second_has_nothing() {
        skip_unless!(is_root(), "needs root to make a network namespace");
        let namespace = Netns::new().unwrap();
        namespace.run(|| {
            let mut socket = NetfilterSocket::open().unwrap();
            NAT.ensure(&mut socket).unwrap();
            let (one, two) = (mappings(&[("192.0.2.1", 8080)]), mappings(&[("", 8080), ("", 9090)]));
            publish(&mut socket, &publication("one", &one), &mut |_| Ok(false)).unwrap();
            let two = publication("two", &two);
            let refused = publish(&mut socket, &two, &mut |_| Ok(false));
            assert!(matches!(refused, Err(PublishError::Taken { .. })), "{refused:?}");
            assert_eq!(
                (tokens(&mut socket, ADDRESSED_PORTS4), tokens(&mut socket, PORTS4)),
                (vec!["one".to_owned()], vec![])
            );
            // The free one of the two, as often as it is asked for.
            for _ in 0..2 {
                restore(&mut socket, &two, &mut |_| Ok(false)).unwrap();
                assert_eq!(tokens(&mut socket, PORTS4), ["two"]);
                assert!(NAT.table.find(&mut socket, PORTS4, &two.entries()[1].element.key).unwrap().is_some());
            }
            publish(&mut socket, &two, &mut |owner| Ok(owner.token == "one")).unwrap();
            assert_eq!((tokens(&mut socket, ADDRESSED_PORTS4), tokens(&mut socket, PORTS4).len()), (vec![], 2));
        });
    }

    #[test]
    fn an_owners_comment_is_short_and_can_be_read_back() {
        let owner = Owner { token: "kl0123456789a".to_owned(), text: format!("{}@eth0 ns/\"pöd\"\n", "f".repeat(64)) };
        let comment = owner.comment();
        assert_eq!(comment, format!("kl0123456789a {}@eth0 ns/?pöd??", "f".repeat(64)));
        assert_eq!(Owner::parse(&comment).token, owner.token);
        let long = Owner { text: "é".repeat(200), ..owner };
        assert_eq!(long.comment().len(), 126);
        assert_eq!(Owner::parse("unknown"), Owner { token: String::new(), text: "unknown".to_owned() });
    }
}
