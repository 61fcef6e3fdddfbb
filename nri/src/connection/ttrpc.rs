//! ttrpc's messages (github.com/containerd/ttrpc, PROTOCOL.md), as far as unary calls need them.
//!
//! A message is a header of 10 bytes, that is the data's length and the stream's id (both big-endian u32), the type and
//! the flags (a byte each), and the data: a `ttrpc.Request` or `ttrpc.Response`.

use super::mux::take;

const HEADER_BYTES: usize = 10;

/// The greatest length of a message's data.
pub(crate) const MOST_DATA_BYTES: usize = 4 << 20;

/// The type of a message that asks.
pub(crate) const REQUEST: u8 = 1;
/// The type of a message that answers.
pub(crate) const RESPONSE: u8 = 2;

/// A message that was received, without its flags: a unary call sets none that matter to its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) stream: u32,
    pub(crate) kind: u8,
    /// The data, or the announced length of data that exceeds [`MOST_DATA_BYTES`] and was skipped.
    pub(crate) data: Result<Vec<u8>, u32>,
}

/// Data longer than [`MOST_DATA_BYTES`], which no peer accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes exceeds ttrpc's {MOST_DATA_BYTES}")]
pub(crate) struct TooLong(usize);

/// Puts messages together, whatever pieces the bytes arrive in. Memory grows with what was received, never with what
/// was announced.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    header: Vec<u8>,
    data: Vec<u8>,
    /// How much of oversized data was skipped.
    skipped: usize,
}

impl Assembler {
    /// The next complete message in `input`; advances `input`. `None` when `input` is used up.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Option<Message> {
        self.header.extend(take(input, HEADER_BYTES - self.header.len()));
        let &[l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = self.header.as_slice() else { return None };
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        let expected = length as usize;
        let data = if expected > MOST_DATA_BYTES {
            self.skipped += take(input, expected - self.skipped).len();
            if self.skipped < expected {
                return None;
            }
            self.skipped = 0;
            Err(length)
        } else {
            self.data.extend(take(input, expected - self.data.len()));
            if self.data.len() < expected {
                return None;
            }
            Ok(std::mem::take(&mut self.data))
        };
        self.header.clear();
        Some(Message { stream, kind, data })
    }
}

/// The bytes of one message.
///
/// # Errors
///
/// [`TooLong`]
pub(crate) fn encode(stream: u32, kind: u8, data: &[u8]) -> Result<Vec<u8>, TooLong> {
    let length = u32::try_from(data.len()).map_err(|_| TooLong(data.len()))?;
    if data.len() > MOST_DATA_BYTES {
        return Err(TooLong(data.len()));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + data.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(data);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assemble(bytes: &[u8], pieces: &[usize]) -> Vec<Message> {
        let mut assembler = Assembler::default();
        let mut messages = Vec::new();
        let mut pieces = pieces.iter().copied().chain(std::iter::repeat(usize::MAX));
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut piece = take(&mut rest, pieces.next().unwrap().max(1));
            // A message without data is complete with its header, so the call that finds nothing left ends the piece.
            while let Some(message) = assembler.next(&mut piece) {
                messages.push(message);
            }
        }
        messages
    }

    #[test]
    fn data_that_is_too_long_is_skipped_and_reported() {
        let mut bytes = vec![0, 0x40, 0, 1, 0, 0, 0, 7, REQUEST, 0];
        bytes.extend(vec![0; (4 << 20) + 1]);
        bytes.extend(encode(9, REQUEST, b"next").unwrap());
        assert_eq!(
            assemble(&bytes, &[3, 1000]),
            [
                Message { stream: 7, kind: REQUEST, data: Err((4 << 20) + 1) },
                Message { stream: 9, kind: REQUEST, data: Ok(b"next".to_vec()) },
            ]
        );
    }

    #[test]
    fn a_message_that_is_too_long_is_not_made() {
        assert!(encode(1, RESPONSE, &vec![0; MOST_DATA_BYTES]).is_ok());
        assert_eq!(encode(1, RESPONSE, &vec![0; MOST_DATA_BYTES + 1]), Err(TooLong(MOST_DATA_BYTES + 1)));
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_same_messages(
            sent in prop::collection::vec((any::<u32>(), 1u8..3, prop::collection::vec(any::<u8>(), 0..60)), 0..10),
            pieces in prop::collection::vec(1usize..17, 0..100),
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (stream, kind, data) in sent {
                bytes.extend(encode(stream, kind, &data).unwrap());
                expected.push(Message { stream, kind, data: Ok(data) });
            }
            prop_assert_eq!(assemble(&bytes, &pieces), expected);
        }

        #[test]
        fn random_bytes_take_no_more_memory_than_they_are(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let mut assembler = Assembler::default();
            let mut input = bytes.as_slice();
            while assembler.next(&mut input).is_some() {}
            prop_assert!(input.is_empty());
            prop_assert!(assembler.data.capacity() <= 2 * bytes.len().max(16));
        }
    }
}
