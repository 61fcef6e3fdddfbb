//! The messages of the routing family that we send and receive.
//!
//! The crate's own enum of all messages would bring the parsers of traffic control, rules, neighbours and more into an
//! executable that needs none of them: a tenth of its size.

use netlink_packet_core::{
    DecodeError, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable, Parseable,
};
use netlink_packet_route::{address::AddressMessage, link::LinkMessage, route::RouteMessage};

/// One message, named as in rtnetlink(7).
#[derive(Clone, Debug)]
pub(crate) enum RouteNetlinkMessage {
    NewLink(LinkMessage),
    SetLink(LinkMessage),
    DelLink(LinkMessage),
    GetLink(LinkMessage),
    NewAddress(AddressMessage),
    DelAddress(AddressMessage),
    GetAddress(AddressMessage),
    NewRoute(RouteMessage),
    GetRoute(RouteMessage),
}

impl RouteNetlinkMessage {
    fn body(&self) -> &dyn Emitable {
        match self {
            Self::NewLink(body) | Self::SetLink(body) | Self::DelLink(body) | Self::GetLink(body) => body,
            Self::NewAddress(body) | Self::DelAddress(body) | Self::GetAddress(body) => body,
            Self::NewRoute(body) | Self::GetRoute(body) => body,
        }
    }
}

impl NetlinkSerializable for RouteNetlinkMessage {
    fn message_type(&self) -> u16 {
        match self {
            Self::NewLink(_) => libc::RTM_NEWLINK,
            Self::SetLink(_) => libc::RTM_SETLINK,
            Self::DelLink(_) => libc::RTM_DELLINK,
            Self::GetLink(_) => libc::RTM_GETLINK,
            Self::NewAddress(_) => libc::RTM_NEWADDR,
            Self::DelAddress(_) => libc::RTM_DELADDR,
            Self::GetAddress(_) => libc::RTM_GETADDR,
            Self::NewRoute(_) => libc::RTM_NEWROUTE,
            Self::GetRoute(_) => libc::RTM_GETROUTE,
        }
    }

    fn buffer_len(&self) -> usize {
        self.body().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.body().emit(buffer);
    }
}

impl NetlinkDeserializable for RouteNetlinkMessage {
    type Error = DecodeError;

    /// Parses an answer: the kernel answers requests for an object with the message that would make it.
    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            libc::RTM_NEWLINK => LinkMessage::parse(payload).map(Self::NewLink),
            libc::RTM_NEWADDR => AddressMessage::parse(payload).map(Self::NewAddress),
            libc::RTM_NEWROUTE => RouteMessage::parse(payload).map(Self::NewRoute),
            other => Err(DecodeError::from(format!("message type {other} answers none of our requests"))),
        }
    }
}

impl From<RouteNetlinkMessage> for NetlinkPayload<RouteNetlinkMessage> {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self::InnerMessage(message)
    }
}
