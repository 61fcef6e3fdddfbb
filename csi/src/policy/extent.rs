//! Where the bytes of a file lie.

/// A part of a file that has space on the disk. What lies between two of them is a hole, and reads as zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Where it begins in the file, in bytes.
    pub(crate) logical: u64,
    pub(crate) bytes: u64,
    pub(crate) physical: Physical,
    /// Allocated but not written: it reads as zeros, as a hole does.
    pub(crate) unwritten: bool,
    /// Another file has the same space. A hint: btrfs may be wrong about it.
    pub(crate) shared: bool,
}

/// Where a part of a file begins on the disk. Not comparable by `==`: two unknown places aren't the same.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Physical {
    /// An address within the filesystem, in bytes; every other file with the same bytes there shares them.
    At(u64),
    /// No address, or one that doesn't tell the contents: compressed, encrypted, kept among metadata, packed with
    /// other files, or not yet written out. What can't be compared has to count as changed.
    Unknown,
}

impl Physical {
    /// Whether both are known, and one place.
    pub(crate) fn is_same(self, other: Self) -> bool {
        match (self, other) {
            (Self::At(this), Self::At(other)) => this == other,
            (Self::Unknown, _) | (_, Self::Unknown) => false,
        }
    }
}

impl Extent {
    /// The end of it in the file, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.logical.saturating_add(self.bytes)
    }

    /// What of it lies in `from..to` of the file; none if nothing does.
    pub(crate) fn within(mut self, from: u64, to: u64) -> Option<Self> {
        let skipped = from.saturating_sub(self.logical);
        let end = self.end().min(to);
        self.logical += skipped;
        self.bytes = end.checked_sub(self.logical).filter(|bytes| *bytes > 0)?;
        if let Physical::At(address) = &mut self.physical {
            *address = address.saturating_add(skipped);
        }
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, bytes: u64, physical: Physical) -> Extent {
        Extent { logical, bytes, physical, unwritten: false, shared: false }
    }

    #[test]
    fn unknown_places_are_never_the_same() {
        assert!(Physical::At(5).is_same(Physical::At(5)));
        assert!(!Physical::At(5).is_same(Physical::At(6)));
        assert!(!Physical::Unknown.is_same(Physical::Unknown));
        assert!(!Physical::Unknown.is_same(Physical::At(0)));
        assert!(!Physical::At(0).is_same(Physical::Unknown));
    }

    #[test]
    fn a_part_of_an_extent_begins_later_on_the_disk_too() {
        let whole = extent(100, 50, Physical::At(1000));
        let check = |from, to, expected: Option<(u64, u64, u64)>| {
            let found = whole.within(from, to).map(|part| {
                let Physical::At(address) = part.physical else { unreachable!() };
                (part.logical, part.bytes, address)
            });
            assert_eq!(found, expected, "{from}..{to}");
        };
        check(0, u64::MAX, Some((100, 50, 1000)));
        check(110, 120, Some((110, 10, 1010)));
        check(90, 101, Some((100, 1, 1000)));
        check(149, 200, Some((149, 1, 1049)));
        check(150, 200, None);
        check(0, 100, None);
        check(120, 110, None);
        assert!(matches!(extent(0, 9, Physical::Unknown).within(3, 9).unwrap().physical, Physical::Unknown));
    }
}
