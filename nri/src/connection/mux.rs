//! NRI's multiplexer: several byte streams over one socket (nri pkg/net/multiplex).
//!
//! A frame is a header of two big-endian u32, the connection's id and the payload's length, and the payload. Frames and
//! what they carry are not aligned: a message may span frames, a frame may hold several messages.

/// The connection on which the runtime calls the plugin.
pub(crate) const PLUGIN: u32 = 1;
/// The connection on which the plugin calls the runtime.
pub(crate) const RUNTIME: u32 = 2;

const HEADER_BYTES: usize = 8;

/// The longest payload: a ttrpc header and 4 MiB.
const MOST_PAYLOAD_BYTES: u32 = 10 + (4 << 20);

/// The longest first frame of a message. Go reads through a buffer of 4096 bytes, and its multiplexer fails a read
/// whose buffer is shorter than the frame (ENOMEM). The buffer is only bypassed, and the rest of any length accepted,
/// once the message's header was read out of it.
const FIRST_FRAME_BYTES: usize = 4096;

/// A frame that no peer sends; nothing after it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame for connection {connection} announces {length} bytes, more than the {MOST_PAYLOAD_BYTES} allowed")]
pub(crate) struct OversizedFrame {
    connection: u32,
    length: u32,
}

/// Takes frames apart, whatever pieces the bytes arrive in. Holds no payload, so a peer can't make it grow.
#[derive(Debug, Default)]
pub(crate) struct Demultiplexer {
    header: [u8; HEADER_BYTES],
    /// How much of `header` was received.
    received: usize,
    connection: u32,
    /// How much of the frame's payload is still to come, once `header` is complete.
    missing: usize,
}

impl Demultiplexer {
    /// The next piece of payload in `input` with its connection's id; advances `input` past it. `None` when `input` is
    /// used up.
    ///
    /// # Errors
    ///
    /// [`OversizedFrame`]; the socket is then to be closed.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<(u32, &'a [u8])>, OversizedFrame> {
        while !input.is_empty() {
            if self.missing > 0 {
                let piece = take(input, self.missing);
                self.missing -= piece.len();
                return Ok(Some((self.connection, piece)));
            }
            let piece = take(input, HEADER_BYTES - self.received);
            self.header[self.received..self.received + piece.len()].copy_from_slice(piece);
            self.received += piece.len();
            if self.received == HEADER_BYTES {
                let [c0, c1, c2, c3, l0, l1, l2, l3] = self.header;
                let length = u32::from_be_bytes([l0, l1, l2, l3]);
                self.connection = u32::from_be_bytes([c0, c1, c2, c3]);
                if length > MOST_PAYLOAD_BYTES {
                    return Err(OversizedFrame { connection: self.connection, length });
                }
                self.missing = length as usize;
                self.received = 0;
            }
        }
        Ok(None)
    }
}

/// Cuts the first `count` bytes, or what there is, off `input`.
pub(super) fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (piece, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    piece
}

/// Frames one ttrpc message so that a Go peer can read it: at most 4096 bytes, then all the rest.
///
/// More frames than these two would fill the 256 places of the peer's queue.
pub(crate) fn frames(connection: u32, message: &[u8]) -> Vec<u8> {
    let (first, rest) = message.split_at(message.len().min(FIRST_FRAME_BYTES));
    let mut bytes = Vec::with_capacity(message.len() + 2 * HEADER_BYTES);
    for payload in [first, rest].into_iter().filter(|payload| !payload.is_empty()) {
        // A message is at most a header and 4 MiB (ttrpc::encode), so its length fits.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        bytes.extend(connection.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(payload);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// All payload by connection, fed in pieces of the given lengths.
    fn demultiplex(bytes: &[u8], pieces: &[usize]) -> Result<BTreeMap<u32, Vec<u8>>, OversizedFrame> {
        let mut demultiplexer = Demultiplexer::default();
        let mut streams: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut pieces = pieces.iter().copied().chain(std::iter::repeat(usize::MAX));
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut piece = take(&mut rest, pieces.next().unwrap().max(1));
            while let Some((connection, payload)) = demultiplexer.next(&mut piece)? {
                streams.entry(connection).or_default().extend(payload);
            }
        }
        Ok(streams)
    }

    /// What Go's reader does with the frames of one message: a `bufio.Reader` of 4096 bytes over a connection whose
    /// read fails if the buffer is shorter than the frame.
    fn go_reads(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
        let mut frames = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let header = take(&mut rest, 8);
            let length = u32::from_be_bytes(header[4..8].try_into().unwrap());
            frames.push(take(&mut rest, length as usize));
        }
        if frames.len() > 256 {
            return Err("failed to queue payload for reading");
        }
        let mut frames = frames.into_iter();
        let (mut buffered, mut message) = (Vec::new(), Vec::new());
        let mut wanted = 10;
        while message.len() < wanted {
            let missing = wanted - message.len();
            if buffered.is_empty() {
                let Some(frame) = frames.next() else { return Err("unexpected end") };
                // bufio reads straight into the caller's memory if that is at least as long as its own buffer.
                let room = if missing >= 4096 { missing } else { 4096 };
                if frame.len() > room {
                    return Err("cannot allocate memory");
                }
                buffered = frame.to_vec();
            }
            message.extend(buffered.drain(..missing.min(buffered.len())));
            if message.len() == 10 && wanted == 10 {
                wanted += u32::from_be_bytes(message[..4].try_into().unwrap()) as usize;
            }
        }
        Ok(message)
    }

    fn message(body: usize) -> Vec<u8> {
        let mut message = u32::try_from(body).unwrap().to_be_bytes().to_vec();
        message.extend([0, 0, 0, 1, 2, 0]);
        message.extend((0..body).map(|index| u8::try_from(index % 251).unwrap()));
        message
    }

    #[test]
    fn go_can_read_every_size_that_was_measured() {
        for body in [0, 100, 4085, 4086, 4087, 10_000, 2 << 20, 4 << 20] {
            let message = message(body);
            assert_eq!(go_reads(&frames(PLUGIN, &message)), Ok(message), "{body}");
        }
    }

    #[test]
    fn the_model_of_go_refuses_what_was_measured_to_fail() {
        let message = message(4087);
        let mut one_frame = vec![0, 0, 0, 1];
        one_frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        one_frame.extend(&message);
        assert_eq!(go_reads(&one_frame), Err("cannot allocate memory"));
    }

    #[test]
    fn an_oversized_frame_is_refused_by_its_header() {
        let longest = [0, 0, 0, 1, 0, 0x40, 0, 10];
        assert_eq!(demultiplex(&longest, &[]), Ok(BTreeMap::new()));
        let longer = [0, 0, 0, 1, 0, 0x40, 0, 11];
        assert_eq!(demultiplex(&longer, &[]), Err(OversizedFrame { connection: 1, length: (4 << 20) + 11 }));
    }

    proptest! {
        #[test]
        fn any_framing_in_gives_the_same_streams(
            sent in prop::collection::vec((0u32..4, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            pieces in prop::collection::vec(1usize..13, 0..200),
        ) {
            let mut bytes = Vec::new();
            let mut expected: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
            for (connection, payload) in &sent {
                bytes.extend(connection.to_be_bytes());
                bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
                bytes.extend(payload);
                if !payload.is_empty() {
                    expected.entry(*connection).or_default().extend(payload);
                }
            }
            prop_assert_eq!(demultiplex(&bytes, &pieces), Ok(expected));
        }

        #[test]
        fn go_can_read_any_message(body in 0usize..20_000) {
            let message = message(body);
            prop_assert_eq!(go_reads(&frames(RUNTIME, &message)), Ok(message));
        }

        #[test]
        fn random_bytes_give_no_more_than_they_are(
            bytes in prop::collection::vec(any::<u8>(), 0..2000), pieces in prop::collection::vec(1usize..50, 0..100),
        ) {
            if let Ok(streams) = demultiplex(&bytes, &pieces) {
                prop_assert!(streams.values().map(Vec::len).sum::<usize>() <= bytes.len());
            }
        }
    }
}
