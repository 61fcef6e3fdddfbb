//! Datagrams that may hold anything, read as answers to each of our requests.

use netlink_packet_core::NetlinkPayload;

use super::{
    address::found,
    link::Link,
    message::RouteNetlinkMessage,
    netlink::{packets, refusal},
    route::add_found,
};
use crate::config::route::ipv6_default;

/// Reads `datagram`; what isn't an answer of ours is skipped or refused.
pub(crate) fn check(datagram: &[u8]) {
    let Ok(packets) = packets::<RouteNetlinkMessage>(datagram) else { return };
    for packet in packets {
        match packet.payload {
            NetlinkPayload::InnerMessage(answer) => {
                let _ = Link::from_message(&answer);
                let _ = found(&answer, 1);
                let mut routes = Vec::new();
                add_found(&answer, ipv6_default(), &mut routes);
                assert!(routes.len() <= datagram.len());
            }
            NetlinkPayload::Error(error) => {
                let _ = refusal("fuzz", &error).map(|error| error.to_string());
            }
            _ => {}
        }
    }
}
