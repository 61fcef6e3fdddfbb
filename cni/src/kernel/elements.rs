//! The elements of our tables that serve one attachment or link, as the kernel has them.

use super::{
    KernelError,
    address::from_octets,
    netlink::NetfilterSocket,
    nftables::{self, BRIDGE, Element, Table},
    ports::{ELEMENTS_AT_ONCE, Owner},
    rules::{ADDRESSED_PORTS4, ADDRESSED_PORTS6, ALLOWED, CHECKED, LINKS, NAT, PORTS4, PORTS6, SPOOFING},
};

/// An element, and to whom it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnedElement {
    table: Table,
    set: &'static str,
    element: Element,
    /// Of a host port: who is named by its comment. Of a link's element: the link, without a text.
    pub(crate) owner: Owner,
}

/// How long the part of a key is that names a link, and one that names protocol and port.
const LINK: usize = 16;
const PORT: usize = 8;

/// All of them.
pub(crate) fn all(socket: &mut NetfilterSocket) -> Result<Vec<OwnedElement>, KernelError> {
    let mut all = Vec::new();
    for (table, sets) in [
        (NAT.table, &[PORTS4, PORTS6, ADDRESSED_PORTS4, ADDRESSED_PORTS6, LINKS][..]),
        (SPOOFING.table, &[CHECKED, ALLOWED]),
    ] {
        for set in sets {
            let elements = table.list(socket, set)?.into_iter();
            all.extend(elements.map(|element| OwnedElement::new(table, set, element)));
        }
    }
    Ok(all)
}

/// Removes those that `choose` chooses; it is asked anew if anybody changed the rules meanwhile.
pub(crate) fn remove(
    socket: &mut NetfilterSocket,
    choose: &mut dyn FnMut(Vec<OwnedElement>) -> Vec<OwnedElement>,
) -> Result<(), KernelError> {
    nftables::update(socket, &mut |socket| {
        let chosen = choose(all(socket)?);
        let mut steps = Vec::new();
        for of_set in chosen.chunk_by(|one, other| (one.table, one.set) == (other.table, other.set)) {
            for some in of_set.chunks(ELEMENTS_AT_ONCE) {
                let elements: Vec<Element> = some.iter().map(|chosen| chosen.element.clone()).collect();
                steps.push(some[0].table.remove(some[0].set, &elements));
            }
        }
        Ok(steps)
    })
}

impl OwnedElement {
    fn new(table: Table, set: &'static str, element: Element) -> Self {
        let owner = match set {
            LINKS | CHECKED | ALLOWED => Owner { token: link_name(&element.key), text: String::new() },
            _ => Owner::parse(&element.comment),
        };
        Self { table, set, element, owner }
    }

    /// Whether it is a host port; else it is of a link.
    pub(crate) fn is_port(&self) -> bool {
        !matches!(self.set, LINKS | CHECKED | ALLOWED)
    }

    /// As nft has it in commands: `inet keelson ports4 { tcp . 8080 }`.
    pub(crate) fn text(&self) -> String {
        let family = if self.table.family == BRIDGE { "bridge" } else { "inet" };
        let key = &self.element.key;
        let parts = if self.is_port() { port_text(key) } else { link_text(key) };
        format!("{family} {} {} {{ {parts} }}", self.table.name, self.set)
    }
}

fn link_name(key: &[u8]) -> String {
    let name: Vec<u8> = key.iter().take(LINK).copied().take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&name).into_owned()
}

/// A link's name, perhaps with an Ethernet address.
fn link_text(key: &[u8]) -> String {
    let mut text = format!("\"{}\"", link_name(key));
    if let Some(mac) = key.get(LINK..LINK + 6) {
        let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!(" . {}", bytes.join(":")));
    }
    text
}

/// Protocol and port, perhaps behind an address.
fn port_text(key: &[u8]) -> String {
    let (address, port) = key.split_at(key.len().saturating_sub(PORT));
    let &[protocol, _, _, _, high, low, _, _] = port else { return String::new() };
    let protocol = match protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    };
    let address = from_octets(address).map(|address| format!("{address} . ")).unwrap_or_default();
    format!("{address}{protocol} . {}", u16::from_be_bytes([high, low]))
}

#[cfg(test)]
impl OwnedElement {
    /// A host port of `owner`, or an element of a link.
    pub(crate) fn of(owner: Owner) -> Self {
        let (set, key) = match owner.text.as_str() {
            "" => (LINKS, super::rules::link_key(&owner.token)),
            _ => (PORTS4, vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0]),
        };
        Self { table: NAT.table, set, element: Element { key, ..Element::default() }, owner }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rules::link_key;

    fn text(table: Table, set: &'static str, key: Vec<u8>) -> String {
        OwnedElement::new(table, set, Element { key, ..Element::default() }).text()
    }

    #[test]
    fn an_elements_text_is_what_nft_takes() {
        let port = [17, 0, 0, 0, 0x1f, 0x90, 0, 0];
        assert_eq!(text(NAT.table, PORTS4, port.to_vec()), "inet keelson ports4 { udp . 8080 }");
        let addressed = [&[192, 0, 2, 1][..], &port].concat();
        assert_eq!(
            text(NAT.table, ADDRESSED_PORTS4, addressed),
            "inet keelson addressed_ports4 { 192.0.2.1 . udp . 8080 }"
        );
        assert_eq!(text(NAT.table, LINKS, link_key("kl0")), "inet keelson links { \"kl0\" }");
        let allowed = [&link_key("kl0")[..], &[2, 0, 0, 0, 0, 9, 0, 0]].concat();
        assert_eq!(text(SPOOFING.table, ALLOWED, allowed), "bridge keelson allowed { \"kl0\" . 02:00:00:00:00:09 }");
        // Whatever somebody else's element is like.
        assert_eq!(text(NAT.table, PORTS6, vec![1, 2]), "inet keelson ports6 {  }");
    }
}
