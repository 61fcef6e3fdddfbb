//! The messages of the routing family (rtnetlink(7)).

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable};

use super::attribute::Attributes;

/// One message: its type, and what follows the netlink header.
#[derive(Clone, Debug)]
pub(crate) struct RouteNetlinkMessage {
    kind: u16,
    body: Vec<u8>,
}

impl RouteNetlinkMessage {
    /// The message `kind` with the fixed part that all messages about such an object have.
    pub(crate) fn new(kind: u16, fixed: &[u8], attributes: &Attributes) -> Self {
        Self { kind, body: [fixed, attributes.as_bytes()].concat() }
    }

    /// The fixed part of `LENGTH` bytes, and the attributes behind it; `None` if this is a message of another type.
    pub(crate) fn parts<const LENGTH: usize>(&self, kind: u16) -> Option<(&[u8; LENGTH], &[u8])> {
        if self.kind == kind { self.body.split_first_chunk() } else { None }
    }
}

impl NetlinkSerializable for RouteNetlinkMessage {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for RouteNetlinkMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

impl From<RouteNetlinkMessage> for NetlinkPayload<RouteNetlinkMessage> {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self::InnerMessage(message)
    }
}
