//! Which blocks of a volume have data, and which differ between two of its snapshots: told from where they lie on the
//! disk, without a look at the data.
//!
//! A range that is told may in truth be zero, or the same; one that isn't told never is not. Exact it is where the
//! filesystem knows the place of everything, and nothing moved.

use std::{iter::Peekable, ops::Range};

use super::{Extent, Physical};

/// Ranges begin and end at multiples of so many bytes, or at the volume's end.
pub(crate) const BLOCK: u64 = 4096;

/// The ranges of bytes that may have data, in ascending order, each as long as can be. Extents come in ascending order
/// and don't overlap.
pub(crate) fn allocated<E>(
    extents: impl Iterator<Item = Result<Extent, E>>,
    range: Range<u64>,
) -> impl Iterator<Item = Result<Range<u64>, E>> {
    let written = extents.filter(|extent| !extent.as_ref().is_ok_and(|extent| extent.unwritten));
    Merged::new(written.map(|extent| extent.map(|extent| extent.logical..extent.end())), range)
}

/// The ranges of bytes that may differ between two files, in ascending order, each as long as can be.
pub(crate) fn changed<E>(
    base: impl Iterator<Item = Result<Extent, E>>,
    target: impl Iterator<Item = Result<Extent, E>>,
    range: Range<u64>,
) -> impl Iterator<Item = Result<Range<u64>, E>> {
    Merged::new(Compared { base: Side::new(base), target: Side::new(target), at: 0 }, range)
}

/// One of two files that are compared.
struct Side<I> {
    extents: I,
    /// The extent that reaches beyond what was compared.
    current: Option<Extent>,
}

/// What a file has at one place, and up to where it goes on being so.
enum Run {
    Zeros { end: u64 },
    Data { at: Physical, end: u64 },
}

impl<E, I: Iterator<Item = Result<Extent, E>>> Side<I> {
    fn new(extents: I) -> Self {
        Self { extents, current: None }
    }

    fn run(&mut self, at: u64) -> Result<Run, E> {
        while self.current.is_none_or(|extent| extent.end() <= at) {
            match self.extents.next() {
                Some(extent) => self.current = Some(extent?),
                None => return Ok(Run::Zeros { end: u64::MAX }),
            }
        }
        // Just made sure of; without one there would be zeros.
        let Some(extent) = self.current else { return Ok(Run::Zeros { end: u64::MAX }) };
        if at < extent.logical {
            return Ok(Run::Zeros { end: extent.logical });
        }
        match extent.within(at, u64::MAX) {
            Some(rest) if !rest.unwritten => Ok(Run::Data { at: rest.physical, end: rest.end() }),
            _ => Ok(Run::Zeros { end: extent.end() }),
        }
    }
}

/// The parts of two files that aren't the same.
struct Compared<A, B> {
    base: Side<A>,
    target: Side<B>,
    at: u64,
}

impl<E, A, B> Compared<A, B>
where
    A: Iterator<Item = Result<Extent, E>>,
    B: Iterator<Item = Result<Extent, E>>,
{
    fn step(&mut self) -> Result<Option<Range<u64>>, E> {
        while self.at < u64::MAX {
            let start = self.at;
            let (is_same, end) = match (self.base.run(start)?, self.target.run(start)?) {
                (Run::Zeros { end }, Run::Zeros { end: other }) => (true, end.min(other)),
                (Run::Data { at, end }, Run::Data { at: there, end: other }) => (at.is_same(there), end.min(other)),
                (Run::Zeros { end }, Run::Data { end: other, .. })
                | (Run::Data { end, .. }, Run::Zeros { end: other }) => (false, end.min(other)),
            };
            self.at = end;
            if !is_same {
                return Ok(Some(start..end));
            }
        }
        Ok(None)
    }
}

impl<E, A, B> Iterator for Compared<A, B>
where
    A: Iterator<Item = Result<Extent, E>>,
    B: Iterator<Item = Result<Extent, E>>,
{
    type Item = Result<Range<u64>, E>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// Ascending ranges, widened to blocks, cut to a range, and joined where they touch.
struct Merged<I: Iterator> {
    ranges: Peekable<I>,
    within: Range<u64>,
}

impl<E, I: Iterator<Item = Result<Range<u64>, E>>> Merged<I> {
    fn new(ranges: I, within: Range<u64>) -> Self {
        let within = within.start / BLOCK * BLOCK..within.end;
        Self { ranges: ranges.peekable(), within }
    }
}

/// The blocks that a range touches, as far as they are within another.
fn whole(range: &Range<u64>, within: &Range<u64>) -> Range<u64> {
    let start = (range.start / BLOCK * BLOCK).max(within.start);
    let end = range.end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX).min(within.end);
    start..end
}

impl<E, I: Iterator<Item = Result<Range<u64>, E>>> Iterator for Merged<I> {
    type Item = Result<Range<u64>, E>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut joined = loop {
            match self.ranges.next()? {
                Ok(range) if range.start >= self.within.end => return None,
                Ok(range) => {
                    let whole = whole(&range, &self.within);
                    if !whole.is_empty() {
                        break whole;
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        };
        while let Some(Ok(next)) = self.ranges.peek() {
            let next = whole(next, &self.within);
            if next.start > joined.end || next.is_empty() {
                break;
            }
            joined.end = joined.end.max(next.end);
            self.ranges.next();
        }
        Some(Ok(joined))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// What a model file has in one block.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Held {
        Hole,
        Unwritten,
        /// At this block of the disk.
        At(u64),
        Unknown,
    }

    /// The extents of a file, some of them split where they needn't be.
    fn extents(blocks: &[Held], splits: u64) -> Vec<Result<Extent, Infallible>> {
        let mut found: Vec<Extent> = Vec::new();
        for (index, held) in (0_u64..).zip(blocks) {
            let logical = index * BLOCK;
            let (physical, unwritten) = match held {
                Held::Hole => continue,
                Held::Unwritten => (Physical::At(1 << 40), true),
                Held::At(block) => (Physical::At(block * BLOCK), false),
                Held::Unknown => (Physical::Unknown, false),
            };
            if let Some(last) = found.last_mut()
                && last.end() == logical
                && last.unwritten == unwritten
                && splits >> (index % 64) & 1 == 0
                && match (last.physical, physical) {
                    (Physical::At(one), Physical::At(other)) => unwritten || one + last.bytes == other,
                    (Physical::Unknown, Physical::Unknown) => true,
                    _ => false,
                }
            {
                last.bytes += BLOCK;
                continue;
            }
            found.push(Extent { logical, bytes: BLOCK, physical, unwritten, shared: false });
        }
        found.into_iter().map(Ok).collect()
    }

    /// The blocks that a list of ranges names; checks that it is one as the CSI spec wants it.
    fn blocks(ranges: impl Iterator<Item = Result<Range<u64>, Infallible>>, end: u64) -> Vec<u64> {
        let mut last = None;
        let mut blocks = Vec::new();
        for range in ranges.map(Result::unwrap) {
            assert!(range.start < range.end && range.end <= end && range.start % BLOCK == 0, "{range:?}");
            assert!(last.is_none_or(|last| last < range.start), "{last:?} {range:?}");
            last = Some(range.end);
            blocks.extend(range.start / BLOCK..range.end.div_ceil(BLOCK));
        }
        blocks
    }

    fn file() -> impl Strategy<Value = Vec<Held>> {
        let held = prop_oneof![
            Just(Held::Hole),
            Just(Held::Unwritten),
            (0_u64..40).prop_map(Held::At),
            (0_u64..40).prop_map(Held::At),
            Just(Held::Unknown),
        ];
        proptest::collection::vec(held, 0..40)
    }

    proptest! {
        #[test]
        fn changed_is_what_lies_elsewhere(
            base in file(), target in file(), same in any::<u64>(), splits in any::<u64>(),
            start in 0_u64..45 * BLOCK, end in 0_u64..45 * BLOCK,
        ) {
            // Much is the same in both.
            let pick = |index: usize, own: Held| match base.get(index) {
                Some(held) if same >> (index % 64) & 1 == 1 => *held,
                _ => own,
            };
            let target: Vec<Held> = target.iter().enumerate().map(|(index, own)| pick(index, *own)).collect();
            let found = changed(extents(&base, splits).into_iter(), extents(&target, !splits).into_iter(), start..end);
            let at = |file: &[Held], block: u64| file.get(usize::try_from(block).unwrap()).copied().unwrap_or(Held::Hole);
            let differs = |block: &u64| match (at(&base, *block), at(&target, *block)) {
                (Held::Hole | Held::Unwritten, Held::Hole | Held::Unwritten) => false,
                (Held::At(one), Held::At(other)) => one != other,
                _ => true,
            };
            let expected: Vec<u64> = (start / BLOCK..end.div_ceil(BLOCK)).filter(differs).collect();
            prop_assert_eq!(blocks(found, end), expected);
        }

        #[test]
        fn allocated_is_what_was_written(
            file in file(), splits in any::<u64>(), start in 0_u64..45 * BLOCK, end in 0_u64..45 * BLOCK,
        ) {
            let found = allocated(extents(&file, splits).into_iter(), start..end);
            let is_written = |block: &u64| {
                matches!(file.get(usize::try_from(*block).unwrap()), Some(Held::At(_) | Held::Unknown))
            };
            let expected: Vec<u64> = (start / BLOCK..end.div_ceil(BLOCK)).filter(is_written).collect();
            prop_assert_eq!(blocks(found, end), expected);
        }
    }

    #[test]
    fn parts_of_blocks_count_as_whole_ones() {
        let extent =
            |logical, bytes| Extent { logical, bytes, physical: Physical::Unknown, unwritten: false, shared: false };
        let odd = [extent(100, 10), extent(5000, 10), extent(20_000, 1)].map(Ok::<_, Infallible>);
        let found: Vec<_> = allocated(odd.into_iter(), 0..20_001).map(Result::unwrap).collect();
        assert_eq!(found, [0..8192, 16_384..20_001]);
    }

    #[test]
    fn an_error_ends_up_in_the_list() {
        let extent = Extent { logical: 0, bytes: BLOCK, physical: Physical::At(0), unwritten: false, shared: false };
        let found: Vec<_> = allocated([Ok(extent), Err("gone")].into_iter(), 0..u64::MAX).collect();
        assert_eq!(found, [Ok(0..BLOCK), Err("gone")]);
        let none = std::iter::empty();
        let found: Vec<_> = changed(none, [Err("gone")].into_iter(), 0..u64::MAX).take(1).collect();
        assert_eq!(found, [Err("gone")]);
    }
}
