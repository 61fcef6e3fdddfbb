//! Rules that choose a routing table by a packet's source.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{
    KernelError, RouteSocket,
    address::{family, from_octets, octets},
    attribute::{Attributes, attribute, native},
    message::RouteNetlinkMessage,
};

/// Attributes of linux/fib_rules.h.
const SOURCE: u16 = 2;
const TABLE: u16 = 15;

/// The length of `fib_rule_hdr` there.
const FIXED: usize = 12;

/// "From `source` look up `table`".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceRule {
    /// `None`: any source.
    pub(crate) source: Option<IpAddr>,
    pub(crate) table: u32,
}

/// The message that adds the rule for what `source` sends.
pub(crate) fn add(source: IpAddr, table: u32) -> RouteNetlinkMessage {
    message(libc::RTM_NEWRULE, source, table)
}

fn message(kind: u16, source: IpAddr, table: u32) -> RouteNetlinkMessage {
    /// `FR_ACT_TO_TBL`.
    const LOOK_UP: u8 = 1;
    let mut fixed = [0; FIXED];
    fixed[0] = family(source);
    // The whole address, in bits.
    fixed[2] = if source.is_ipv4() { 32 } else { 128 };
    fixed[7] = LOOK_UP;
    RouteNetlinkMessage::new(kind, &fixed, &Attributes::new().bytes(SOURCE, &octets(source)).native(TABLE, table))
}

/// Removes the rule for what `source` sends; an absent one is no error.
pub(crate) fn remove(socket: &mut RouteSocket, source: IpAddr, table: u32) -> Result<(), KernelError> {
    let doing = format!("remove the rule from {source} to table {table}");
    match socket.request(doing, message(libc::RTM_DELRULE, source, table), 0) {
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EAFNOSUPPORT)) => Ok(()),
        other => other.map(drop),
    }
}

/// The rules of both families in the socket's namespace.
pub(crate) fn all(socket: &mut RouteSocket) -> Result<Vec<SourceRule>, KernelError> {
    let list = RouteNetlinkMessage::new(libc::RTM_GETRULE, &[0; FIXED], &Attributes::new());
    let answers = socket.dump("list the routing rules", &list)?;
    Ok(answers.iter().filter_map(parse).collect())
}

fn parse(answer: &RouteNetlinkMessage) -> Option<SourceRule> {
    let (fixed, told) = answer.parts::<FIXED>(libc::RTM_NEWRULE)?;
    let is_whole = |source: &IpAddr| fixed[2] == if source.is_ipv4() { 32 } else { 128 };
    Some(SourceRule {
        source: attribute(told, SOURCE).and_then(from_octets).filter(is_whole),
        // Numbers above 255 only fit the attribute.
        table: attribute(told, TABLE).and_then(native).unwrap_or_else(|| fixed[4].into()),
    })
}
