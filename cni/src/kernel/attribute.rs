//! Netlink attributes (linux/netlink.h, `nlattr`), written and read one by one.
//!
//! We need a few dozen of them. A crate's types for all that the kernel can say of a link, an address or a route would
//! bring the writers and readers of all of it into the executable.

/// The length and the type in front of every value.
const HEADER: usize = 4;

/// `NLA_F_NESTED`: the value is a list of attributes.
const NESTED: u16 = 1 << 15;

/// What of an attribute's type is its number; the rest is flags (`NLA_TYPE_MASK`).
const NUMBER: u16 = 0x3fff;

/// A list of attributes, being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // No value of ours comes near 64 KiB; a longer one would be refused by the kernel as malformed.
        let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number in the machine's byte order, as the routing family has them.
    pub(crate) fn native(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A big-endian number, as netfilter has them.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// As [`Attributes::native`], if there is a number.
    pub(crate) fn optional(self, kind: u16, value: Option<u32>) -> Self {
        match value {
            Some(value) => self.native(kind, value),
            None => self,
        }
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in `bytes`, each with its number; what is malformed ends them.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[a, b, c, d], _) = bytes.split_first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NUMBER, value))
    })
}

/// The value of the first attribute `kind` in `bytes`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A number in the machine's byte order.
pub(crate) fn native(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A text with or without its NUL.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Attributes::new().text(2, "abc").native(3, 7);
        let written = Attributes::new().bytes(1, &[9]).nest(4, &inner);
        assert_eq!(attribute(written.as_bytes(), 1), Some(&[9][..]));
        let nested = attribute(written.as_bytes(), 4).unwrap();
        assert_eq!(attribute(nested, 2).map(text).as_deref(), Some("abc"));
        assert_eq!(attribute(nested, 3).and_then(native), Some(7));
        assert_eq!(attribute(nested, 5), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(attributes(&bytes).count() <= 20);
        }
    }
}
