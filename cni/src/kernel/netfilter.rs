//! The messages of the netfilter family: `nfgenmsg` (linux/netfilter/nfnetlink.h) and attributes, whose numbers are
//! big-endian.

use super::{attribute::Attributes, message::RouteNetlinkMessage};

/// The same type as the routing family's, so that the client's code is compiled once.
pub(crate) type NetfilterMessage = RouteNetlinkMessage;

/// The message `kind` of a subsystem, about an address family.
pub(crate) fn message(subsystem: u8, kind: u8, family: u8, attributes: &Attributes) -> NetfilterMessage {
    NetfilterMessage::new(number_of(subsystem, kind), &[family, 0, 0, 0], attributes)
}

/// What begins or ends a transaction of `subsystem`: a control message of no subsystem, which names it.
pub(crate) fn control(kind: u16, subsystem: u8, attributes: &Attributes) -> NetfilterMessage {
    NetfilterMessage::new(kind, &[0, 0, 0, subsystem], attributes)
}

/// The address family and the attributes of a message `kind`; `None` if it is another.
pub(crate) fn parts(message: &NetfilterMessage, subsystem: u8, kind: u8) -> Option<(u8, &[u8])> {
    let (&[family, ..], attributes) = message.parts::<4>(number_of(subsystem, kind))?;
    Some((family, attributes))
}

fn number_of(subsystem: u8, kind: u8) -> u16 {
    u16::from_be_bytes([subsystem, kind])
}

/// A big-endian number.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}
