//! A synchronous netlink client: requests, batches and dumps, with the kernel's own words in the errors.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};

use super::{
    attribute::{attribute, text},
    message::RouteNetlinkMessage,
    netfilter::NetfilterMessage,
};
use crate::calls;

/// What the kernel may send in one datagram: it sizes dumps to the reader's buffer, up to 32 KiB (`netlink_dump`).
const DATAGRAM: usize = 32 * 1024;

/// How often an interrupted dump is repeated: each time, somebody changed what was being listed.
const DUMP_ATTEMPTS: usize = 20;

/// How many messages are sent at once: the answers wait in the socket's receive buffer, where with the kernel's defaults
/// there is room for some 270 (`net.core.rmem_default`).
const STEPS_AT_ONCE: usize = 64;

/// What an answer that waits takes of the receive buffer, bookkeeping included, at most.
const ANSWER: usize = 2048;

/// The kernel refused an operation, or could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing}: {source}{}", explanation(.detail))]
pub(crate) struct KernelError {
    /// What was being done to what.
    pub(crate) doing: String,
    /// The errno.
    pub(crate) source: io::Error,
    /// The kernel's extended acknowledgement, often empty.
    pub(crate) detail: String,
}

fn explanation(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

impl KernelError {
    pub(crate) fn new(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { doing: doing.into(), source: source.into(), detail: String::new() }
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        self.source.raw_os_error().map(Errno::from_raw)
    }
}

/// One message of a batch and what it does, for the error.
pub(crate) struct Step<M> {
    pub(crate) doing: String,
    pub(crate) message: M,
    pub(crate) flags: u16,
}

/// What the kernel sends last if it doesn't refuse.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The acknowledgement of the last step.
    Acknowledgement,
    /// The object that was asked for.
    Answer,
}

/// A socket of one netlink family, in the namespace in which it was opened.
pub(crate) struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
}

/// Links, addresses and routes.
pub(crate) struct RouteSocket(NetlinkSocket);

/// nftables.
pub(crate) struct NetfilterSocket(NetlinkSocket);

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace; it stays there when the thread moves on.
    pub(crate) fn open() -> Result<Self, KernelError> {
        let socket = NetlinkSocket::open(NETLINK_ROUTE)?;
        socket
            .socket
            .set_netlink_get_strict_chk(true)
            .map_err(|error| KernelError::new("ask netlink for strict checking", error))?;
        Ok(Self(socket))
    }

    /// Sends one message and gives what the kernel answers beside the acknowledgement.
    pub(crate) fn request(
        &mut self,
        doing: String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.0.exchange(&[Step { doing, message, flags }], End::Acknowledgement)
    }

    /// Asks for one object.
    pub(crate) fn get(
        &mut self,
        doing: String,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, KernelError> {
        Ok(self.0.exchange(&[Step { doing, message, flags: 0 }], End::Answer)?.pop())
    }

    /// Sends the steps, as many at once as the socket has room for the answers of; the kernel carries out each of
    /// those, and the first that failed is the error.
    pub(crate) fn batch(&mut self, steps: &[Step<RouteNetlinkMessage>]) -> Result<(), KernelError> {
        steps.chunks(STEPS_AT_ONCE).try_for_each(|steps| self.0.exchange(steps, End::Acknowledgement).map(drop))
    }

    /// Lists objects; a list that changed while it was read is read again.
    pub(crate) fn dump(
        &mut self,
        doing: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.0.dump(doing, message)
    }
}

impl NetfilterSocket {
    pub(crate) fn open() -> Result<Self, KernelError> {
        NetlinkSocket::open(NETLINK_NETFILTER).map(Self)
    }

    pub(crate) fn request(
        &mut self,
        doing: String,
        message: NetfilterMessage,
        flags: u16,
    ) -> Result<Vec<NetfilterMessage>, KernelError> {
        self.0.exchange(&[Step { doing, message, flags }], End::Acknowledgement)
    }

    /// Sends a transaction: all steps are carried out or none. `begin` and `end` are acknowledged only on failure.
    pub(crate) fn transaction(
        &mut self,
        begin: NetfilterMessage,
        steps: Vec<Step<NetfilterMessage>>,
        end: NetfilterMessage,
    ) -> Result<(), KernelError> {
        self.0.transaction(begin, steps, end)
    }

    pub(crate) fn dump(
        &mut self,
        doing: &str,
        message: &NetfilterMessage,
    ) -> Result<Vec<NetfilterMessage>, KernelError> {
        self.0.dump(doing, message)
    }
}

/// Told of each change of one kind of object in the namespace in which it was opened.
pub(crate) struct Events(Socket);

impl Events {
    pub(crate) fn of_links() -> Result<Self, KernelError> {
        Self::open(libc::RTNLGRP_LINK)
    }

    pub(crate) fn of_ipv6_addresses() -> Result<Self, KernelError> {
        Self::open(libc::RTNLGRP_IPV6_IFADDR)
    }

    fn open(group: u32) -> Result<Self, KernelError> {
        let failed = |error| KernelError::new("subscribe to the kernel's events", error);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.add_membership(group).map_err(failed)?;
        Ok(Self(socket))
    }

    /// Waits for an event, and takes it; `false` if there was none until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> Result<bool, KernelError> {
        let failed = |error| KernelError::new("wait for an event of the kernel", error);
        let _phase = calls::phase("wait for an event");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the last part of a millisecond isn't spent turning round.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let descriptor = self.0.as_fd();
            match poll(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno.into())),
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) => {}
                Ok(_) => break,
            }
        }
        // What the event says doesn't matter, nor that events were lost: the caller looks for itself.
        match self.0.recv_from_full() {
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(failed(error)),
            _ => Ok(true),
        }
    }
}

impl NetlinkSocket {
    fn open(protocol: isize) -> Result<Self, KernelError> {
        let failed = |error| KernelError::new("open a netlink socket", error);
        let socket = Socket::new(protocol).map_err(failed)?;
        // This gives it an address as well, and keeps out messages of anybody but the kernel.
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        socket.set_ext_ack(true).map_err(failed)?;
        // Without it a refused message is sent back whole, in front of the explanation.
        socket.set_cap_ack(true).map_err(failed)?;
        Ok(Self { socket, sequence: 0 })
    }

    fn encode<M: NetlinkSerializable>(&mut self, message: M, flags: u16, into: &mut Vec<u8>) -> u32 {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let start = into.len();
        into.resize(start + packet.buffer_len(), 0);
        packet.serialize(&mut into[start..]);
        self.sequence
    }

    /// Sends all steps at once and gives what the kernel answers beside acknowledgements.
    ///
    /// The kernel takes one after the other, and tells of each that it refuses; so only the last needs an answer.
    fn exchange<M>(&mut self, steps: &[Step<M>], end: End) -> Result<Vec<M>, KernelError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        let Some((first, last)) = steps.first().zip(steps.len().checked_sub(1)) else { return Ok(Vec::new()) };
        let _phase = calls::phase(&first.doing);
        let mut bytes = Vec::new();
        let first_sequence = self.sequence + 1;
        for (index, step) in steps.iter().enumerate() {
            let is_acknowledged = index == last && end == End::Acknowledgement;
            let flags = step.flags | if is_acknowledged { NLM_F_ACK } else { 0 };
            self.encode(step.message.clone(), flags, &mut bytes);
        }
        self.send(&bytes).map_err(|error| KernelError::new(&first.doing, error))?;
        let mut answers = Vec::new();
        let mut failure = None;
        let mut is_done = false;
        while !is_done {
            let packets = self.receive().map_err(|error| KernelError::new(&first.doing, error))?;
            for packet in packets {
                // Invariant: the kernel echoes the sequence number; anything else answers an abandoned request.
                let index = packet.header.sequence_number.checked_sub(first_sequence);
                let Some(index) = index.and_then(|index| usize::try_from(index).ok()) else { continue };
                let Some(step) = steps.get(index) else { continue };
                match packet.payload {
                    NetlinkPayload::Error(error) => {
                        failure = failure.or_else(|| refusal(&step.doing, &error));
                        is_done |= index == last;
                    }
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer);
                        is_done |= end == End::Answer;
                    }
                    _ => {}
                }
            }
        }
        failure.map_or(Ok(answers), Err)
    }

    fn transaction<M>(&mut self, begin: M, steps: Vec<Step<M>>, end: M) -> Result<(), KernelError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let whole = "commit the nftables transaction";
        let _phase = calls::phase(whole);
        let mut bytes = Vec::new();
        let first = self.encode(begin, 0, &mut bytes);
        let mut pending = Vec::new();
        for step in steps {
            let sequence = self.encode(step.message, step.flags | NLM_F_ACK, &mut bytes);
            pending.push((sequence, step.doing));
        }
        let last = self.encode(end, 0, &mut bytes);
        self.make_room(bytes.len(), pending.len()).map_err(|error| KernelError::new(whole, error))?;
        self.send(&bytes).map_err(|error| KernelError::new(whole, error))?;
        let mut failure = None;
        while !pending.is_empty() {
            for packet in self.receive::<M>().map_err(|error| KernelError::new(whole, error))? {
                let NetlinkPayload::Error(error) = packet.payload else { continue };
                let sequence = packet.header.sequence_number;
                if let Some(index) = pending.iter().position(|(expected, _)| *expected == sequence) {
                    let (_, doing) = pending.swap_remove(index);
                    failure = failure.or_else(|| refusal(&doing, &error));
                } else if (sequence == first || sequence == last)
                    && let Some(error) = refusal(whole, &error)
                {
                    // The transaction as a whole was refused; a refused beginning is the only answer.
                    if sequence == first {
                        return Err(error);
                    }
                    failure = failure.or(Some(error));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Makes room for a long transaction, which can't be sent in parts.
    fn make_room(&self, bytes: usize, answers: usize) -> nix::Result<()> {
        if bytes > DATAGRAM {
            setsockopt(&self.socket, sockopt::SndBufForce, &bytes)?;
        }
        if answers > STEPS_AT_ONCE {
            setsockopt(&self.socket, sockopt::RcvBufForce, &(answers * ANSWER))?;
        }
        Ok(())
    }

    fn dump<M>(&mut self, doing: &str, message: &M) -> Result<Vec<M>, KernelError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        let _phase = calls::phase(doing);
        for _ in 0..DUMP_ATTEMPTS {
            let mut bytes = Vec::new();
            let sequence = self.encode(message.clone(), NLM_F_DUMP, &mut bytes);
            self.send(&bytes).map_err(|error| KernelError::new(doing, error))?;
            if let Some(found) = self.receive_dump(doing, sequence)? {
                return Ok(found);
            }
        }
        Err(KernelError::new(doing, Errno::EINTR))
    }

    /// One dump's answers; `None` if it was interrupted by a change.
    fn receive_dump<M>(&mut self, doing: &str, sequence: u32) -> Result<Option<Vec<M>>, KernelError>
    where
        M: NetlinkDeserializable,
    {
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            for packet in self.receive().map_err(|error| KernelError::new(doing, error))? {
                if packet.header.sequence_number != sequence {
                    continue;
                }
                interrupted |= packet.header.flags & NLM_F_DUMP_INTR != 0;
                match packet.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(KernelError::new(doing, io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
                    NetlinkPayload::Error(error) => {
                        if let Some(error) = refusal(doing, &error) {
                            return Err(error);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send(bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// The messages of one datagram.
    fn receive<M: NetlinkDeserializable>(&self) -> io::Result<Vec<NetlinkMessage<M>>> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            // With MSG_TRUNC the result is the datagram's length even if it didn't fit.
            match self.socket.recv(&mut buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(length) if length > buffer.len() => {
                    let message = format!("a netlink datagram of {length} bytes exceeds the buffer's {DATAGRAM}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
                Ok(_) => break,
            }
        }
        packets(&buffer)
    }
}

/// The messages in a datagram.
pub(super) fn packets<M: NetlinkDeserializable>(datagram: &[u8]) -> io::Result<Vec<NetlinkMessage<M>>> {
    let malformed = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut packets = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = NetlinkBuffer::new_checked(rest).map_err(|error| malformed(error.to_string()))?.length();
        let length = usize::try_from(length).map_err(|error| malformed(error.to_string()))?;
        packets.push(NetlinkMessage::deserialize(rest).map_err(|error| malformed(error.to_string()))?);
        // Messages are aligned to four bytes (NLMSG_ALIGN).
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(packets)
}

/// The error of a negative acknowledgement, `None` of a positive one.
pub(super) fn refusal(doing: &str, error: &ErrorMessage) -> Option<KernelError> {
    let code = error.code?;
    Some(KernelError {
        doing: doing.to_owned(),
        source: io::Error::from_raw_os_error(code.get().saturating_neg()),
        detail: extended_text(&error.header),
    })
}

/// The text of an extended acknowledgement (linux/netlink.h, `nlmsgerr`): after the refused message's header come
/// attributes, of which 1 (`NLMSGERR_ATTR_MSG`) is the kernel's explanation.
fn extended_text(after_code: &[u8]) -> String {
    const HEADER: usize = 16;
    const TEXT: u16 = 1;
    let found = attribute(after_code.get(HEADER..).unwrap_or_default(), TEXT);
    found.map(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernels_explanation_is_found_behind_other_attributes() {
        let mut bytes = vec![0; 16];
        bytes.extend([8, 0, 2, 0, 9, 9, 9, 9]);
        bytes.extend([7, 0, 1, 0, b'n', b'o', 0, 0]);
        assert_eq!(extended_text(&bytes), "no");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = extended_text(&bytes);
        }
    }
}
