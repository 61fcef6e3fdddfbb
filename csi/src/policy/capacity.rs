//! Sizes: what a request may ask for, what a volume costs its pool, what still fits.

use keelson_proto::csi::v1::CapacityRange;

use super::{ContentKind, FilesystemType};

/// Images have whole blocks of this size, whatever the disk's sectors are.
const GRANULE: u64 = 4096;

/// Below this, mkfs.ext4 leaves out the journal and little remains for files.
const SMALLEST_EXT4: u64 = 16 << 20;

/// mkfs.xfs refuses less (xfsprogs 5.19 and later).
const SMALLEST_XFS: u64 = 300 << 20;

/// mkfs.btrfs refuses less than 109 MiB where data and metadata lie apart; the rest is for versions that want more.
const SMALLEST_BTRFS: u64 = 128 << 20;

/// The kernel resizes btrfs to no less (fs/btrfs/ioctl.c, `btrfs_ioctl_resize`).
const SMALLEST_GROWN_BTRFS: u64 = 256 << 20;

/// A limit below this leaves no room for a single extent of metadata and data.
const SMALLEST_LIMIT: u64 = 1 << 20;

/// What a request without a size gets.
const DEFAULT_BYTES: u64 = 64 << 20;

/// Sizes are signed 64-bit numbers on the wire, and images must be addressable by the kernel.
const LARGEST: u64 = i64::MAX as u64 / GRANULE * GRANULE;

/// What one more volume costs beside its content: its folder, its record and the pool filesystem's own bookkeeping.
const BOOKKEEPING: u64 = 64 << 10;

/// The sizes that a request accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeRange {
    /// At least so many bytes; 0 is no wish.
    pub(crate) required: u64,
    /// At most so many bytes; none is no limit.
    pub(crate) limit: Option<u64>,
}

/// The request's sizes can't be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutOfRange {
    #[error("capacity_range.{field} {value} is negative; use 0 for no wish")]
    Negative { field: &'static str, value: i64 },
    #[error("capacity_range.limit_bytes {limit} is below required_bytes {required}")]
    Contradiction { required: u64, limit: u64 },
    #[error(
        "capacity_range allows at most {limit} bytes, but the volume would have {smallest}: sizes are multiples of \
         {GRANULE}, and each filesystem has a smallest one"
    )]
    Limit { limit: u64, smallest: u64 },
    #[error("capacity_range.limit_bytes {limit} is too low: volumes don't shrink, and it has {has} bytes")]
    Shrink { limit: u64, has: u64 },
    #[error(
        "capacity_range.limit_bytes {limit} is too low: a copy isn't smaller than its source, which has {has} bytes"
    )]
    Source { limit: u64, has: u64 },
    #[error(
        "capacity_range.limit_bytes {limit} is too low: a btrfs filesystem grows to no less than {SMALLEST_GROWN_BTRFS} \
         bytes"
    )]
    Growth { limit: u64 },
    #[error("capacity_range.required_bytes {required} is more than any volume can have, {LARGEST}")]
    TooLarge { required: u64 },
}

impl SizeRange {
    pub(crate) fn parse(range: Option<&CapacityRange>) -> Result<Self, OutOfRange> {
        let (required, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
        let unsigned = |field, value: i64| u64::try_from(value).map_err(|_| OutOfRange::Negative { field, value });
        let required = unsigned("required_bytes", required)?;
        // "A value of 0 is equal to an unspecified field value."
        let limit = Some(unsigned("limit_bytes", limit)?).filter(|limit| *limit > 0);
        if let Some(limit) = limit.filter(|limit| *limit < required) {
            return Err(OutOfRange::Contradiction { required, limit });
        }
        Ok(Self { required, limit })
    }

    /// Whether a volume of `bytes` is what this request wants.
    pub(crate) fn admits(self, bytes: u64) -> bool {
        bytes >= self.required && self.limit.is_none_or(|limit| bytes <= limit)
    }

    /// The smallest volume there can be, where the pool enforces sizes or doesn't.
    pub(crate) fn smallest(content: ContentKind, enforced: bool) -> u64 {
        match content {
            ContentKind::Block => GRANULE,
            ContentKind::Filesystem(filesystem) => match filesystem {
                FilesystemType::Ext4 => SMALLEST_EXT4,
                FilesystemType::Xfs => SMALLEST_XFS,
                FilesystemType::Btrfs => SMALLEST_BTRFS,
            },
            ContentKind::Directory | ContentKind::Subvolume if enforced => SMALLEST_LIMIT,
            ContentKind::Directory | ContentKind::Subvolume => 0,
        }
    }

    /// The size of a new volume: the smallest that it can have, which is reported as its capacity.
    ///
    /// A copy is at least as large as its source, which has `source` bytes (0 if there is none).
    pub(crate) fn choose(self, content: ContentKind, enforced: bool, source: u64) -> Result<u64, OutOfRange> {
        if let Some(limit) = self.limit.filter(|limit| *limit < source) {
            return Err(OutOfRange::Source { limit, has: source });
        }
        let bytes = self.at_least(source, content, enforced)?;
        if source == 0 { Ok(bytes) } else { self.reachable(content, source, bytes) }
    }

    /// The size of a volume that grows: at least the `has` bytes that it has, of which its filesystem has `filled`.
    pub(crate) fn grow(self, content: ContentKind, enforced: bool, has: u64, filled: u64) -> Result<u64, OutOfRange> {
        if let Some(limit) = self.limit.filter(|limit| *limit < has) {
            return Err(OutOfRange::Shrink { limit, has });
        }
        let bytes = self.at_least(has, content, enforced)?;
        self.reachable(content, filled, bytes)
    }

    /// A size that nothing enforces isn't rounded; what was asked for is taken as it is.
    fn at_least(self, floor: u64, content: ContentKind, enforced: bool) -> Result<u64, OutOfRange> {
        if !enforced {
            return Ok(self.required.max(floor));
        }
        if self.required > LARGEST {
            return Err(OutOfRange::TooLarge { required: self.required });
        }
        let smallest = self.required.next_multiple_of(GRANULE).max(Self::smallest(content, enforced)).max(floor);
        let wanted = if self.required == 0 && floor == 0 { DEFAULT_BYTES.max(smallest) } else { smallest };
        match self.limit {
            Some(limit) if limit < smallest => Err(OutOfRange::Limit { limit, smallest }),
            Some(limit) => Ok(wanted.min(limit / GRANULE * GRANULE)),
            None => Ok(wanted),
        }
    }

    /// `bytes`, or the next size that a filesystem of `filled` bytes can grow to.
    fn reachable(self, content: ContentKind, filled: u64, bytes: u64) -> Result<u64, OutOfRange> {
        let ContentKind::Filesystem(filesystem) = content else { return Ok(bytes) };
        if bytes <= filled || bytes >= smallest_growth(filesystem) {
            return Ok(bytes);
        }
        match self.limit.filter(|limit| *limit < smallest_growth(filesystem)) {
            Some(limit) => Err(OutOfRange::Growth { limit }),
            None => Ok(smallest_growth(filesystem)),
        }
    }
}

/// Whether a filesystem of `filled` bytes could have more of `bytes`.
pub(crate) fn is_smaller(filled: u64, bytes: u64) -> bool {
    /// A filesystem has whole blocks, and so may be that much smaller than what it lies on.
    const LARGEST_BLOCK: u64 = 64 << 10;
    filled.saturating_add(LARGEST_BLOCK) <= bytes
}

/// The least that a filesystem can be grown to.
fn smallest_growth(filesystem: FilesystemType) -> u64 {
    match filesystem {
        FilesystemType::Ext4 | FilesystemType::Xfs => 0,
        FilesystemType::Btrfs => SMALLEST_GROWN_BTRFS,
    }
}

/// What an image of `bytes` can come to occupy in its pool.
///
/// A sparse file written at random needs an extent record (12 bytes on ext4, 16 on xfs) for every 4 KiB at worst:
/// 1/256 covers that.
pub(crate) fn charge(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 256).saturating_add(BOOKKEEPING)
}

/// What a pool can still promise, in bytes.
///
/// What it has at all is what is `free` and what was `taken` of its promises already, less the `reserve`; of that it
/// promises `percent` hundredths. At 100 it promises no more than is there, so all promises can be kept at once.
pub(crate) fn available(free: u64, taken: u64, reserve: u64, promised: u64, percent: u32) -> u64 {
    let capacity = u128::from(free.saturating_add(taken).saturating_sub(reserve)) * u128::from(percent) / 100;
    u64::try_from(capacity).unwrap_or(u64::MAX).saturating_sub(promised)
}

/// The largest image whose [`charge`] fits into `available` bytes; 0 if none does.
pub(crate) fn largest_volume(available: u64) -> u64 {
    let room = available.saturating_sub(BOOKKEEPING).min(LARGEST);
    // bytes + bytes / 256 <= room, so bytes <= room * 256 / 257; in two parts, as the product may not fit.
    (room / 257 * 256 + room % 257 * 256 / 257) / GRANULE * GRANULE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(required_bytes: i64, limit_bytes: i64) -> Result<SizeRange, OutOfRange> {
        SizeRange::parse(Some(&CapacityRange { required_bytes, limit_bytes }))
    }

    #[track_caller]
    fn check(required: i64, limit: i64, content: ContentKind, expected: Option<u64>) {
        check_where(true, required, limit, content, expected);
    }

    #[track_caller]
    fn check_where(enforced: bool, required: i64, limit: i64, content: ContentKind, expected: Option<u64>) {
        let found = range(required, limit).and_then(|range| range.choose(content, enforced, 0));
        assert_eq!(found.as_ref().ok(), expected.as_ref(), "{found:?}");
    }

    #[test]
    fn sizes() {
        use ContentKind::{Block, Directory, Subvolume};
        let ext4 = ContentKind::Filesystem(FilesystemType::Ext4);
        check(64 << 20, 0, ext4, Some(67_108_864));
        check(64 << 20, 64 << 20, Block, Some(67_108_864));
        check(0, 0, ext4, Some(DEFAULT_BYTES));
        check(0, 20 << 20, ext4, Some(20 << 20));
        check(1, 0, ext4, Some(SMALLEST_EXT4));
        check(1, 0, Block, Some(4096));
        check(1, SMALLEST_EXT4 as i64 - 1, ext4, None);
        check(4097, 4097, Block, None);
        check(4097, 8192, Block, Some(8192));
        check(0, 5000, Block, Some(4096));
        check(5, 4, Block, None);
        check(-1, 0, Block, None);
        check(0, -1, Block, None);
        check(i64::MAX, 0, Block, None);
        check(i64::MAX, i64::MAX, ext4, None);
        for content in [Directory, Subvolume] {
            check(0, 0, content, Some(DEFAULT_BYTES));
            check(1, 0, content, Some(SMALLEST_LIMIT));
            check((2 << 20) + 1, 0, content, Some((2 << 20) + 4096));
            check((2 << 20) + 1, (2 << 20) + 1, content, None);
            check_where(false, 12_345, 12_345, content, Some(12_345));
            check_where(false, 0, 0, content, Some(0));
        }
    }

    #[test]
    fn a_copy_is_no_smaller_than_its_source() {
        for enforced in [true, false] {
            let choose = |limit| range(1, limit).unwrap().choose(ContentKind::Directory, enforced, 4 << 20);
            assert_eq!(choose(0), Ok(4 << 20));
            assert_eq!(choose(2 << 20), Err(OutOfRange::Source { limit: 2 << 20, has: 4 << 20 }));
        }
    }

    #[test]
    fn btrfs_grows_to_no_less_than_the_kernel_takes() {
        let btrfs = ContentKind::Filesystem(FilesystemType::Btrfs);
        let (mib, least) = (1_u64 << 20, SMALLEST_GROWN_BTRFS);
        for (required, limit, has, filled, expected) in [
            // As it is.
            (128, 0, 128, 128, Ok(128 * mib)),
            (129, 0, 128, 128, Ok(least)),
            (129, 256, 128, 128, Ok(least)),
            (129, 255, 128, 128, Err(OutOfRange::Growth { limit: 255 * mib })),
            (300, 0, 128, 128, Ok(300 * mib)),
            // The image is longer already.
            (0, 0, 200, 128, Ok(least)),
            (100, 127, 128, 128, Err(OutOfRange::Shrink { limit: 127 * mib, has: 128 * mib })),
        ] {
            let range = range(required << 20, limit << 20).unwrap();
            assert_eq!(range.grow(btrfs, true, has * mib, filled * mib), expected, "{required} {limit}");
            let ext4 = ContentKind::Filesystem(FilesystemType::Ext4);
            assert_ne!(range.grow(ext4, true, has * mib, filled * mib), Ok(least));
        }
        let copy =
            |required: i64, limit: i64| range(required << 20, limit << 20).unwrap().choose(btrfs, true, 128 * mib);
        assert_eq!(copy(0, 0), Ok(128 * mib));
        assert_eq!(copy(129, 0), Ok(least));
        assert_eq!(copy(129, 200), Err(OutOfRange::Growth { limit: 200 * mib }));
        // A new one is made in its size.
        assert_eq!(range(200 << 20, 0).unwrap().choose(btrfs, true, 0), Ok(200 * mib));
    }

    #[test]
    fn no_range_is_no_wish() {
        assert_eq!(SizeRange::parse(None), Ok(SizeRange { required: 0, limit: None }));
    }

    #[test]
    fn what_is_available() {
        for (free, taken, reserve, promised, percent, expected) in [
            (1000, 0, 0, 0, 100, 1000),
            // Half of the promise is taken: the other half is still to come.
            (950, 50, 0, 100, 100, 900),
            (950, 50, 10, 100, 100, 890),
            (950, 50, 0, 100, 200, 1900),
            // Others took what was promised: nothing is left, and nothing wraps around.
            (10, 0, 0, 100, 100, 0),
            (10, 0, 20, 0, 100, 0),
            (u64::MAX, u64::MAX, 0, 0, 10_000, u64::MAX),
        ] {
            assert_eq!(available(free, taken, reserve, promised, percent), expected);
        }
    }

    #[test]
    fn a_size_is_admitted_between_its_bounds() {
        let both = range(10, 20).unwrap();
        assert_eq!([9, 10, 20, 21].map(|bytes| both.admits(bytes)), [false, true, true, false]);
        assert!(range(10, 0).unwrap().admits(u64::MAX));
    }

    #[test]
    fn the_largest_size_of_all_can_be_asked_for() {
        check(LARGEST.cast_signed(), 0, ContentKind::Block, Some(LARGEST));
        check(LARGEST.cast_signed() + 1, 0, ContentKind::Block, None);
    }

    #[test]
    fn the_largest_volume_is_256_of_257_parts_of_what_is_left() {
        for available in [0, BOOKKEEPING, BOOKKEEPING + 4096, 1 << 20, 1 << 30, (1 << 40) + 12_345] {
            let room = u128::from(available.saturating_sub(BOOKKEEPING)) * 256 / 257;
            assert_eq!(u128::from(largest_volume(available)), room / u128::from(GRANULE) * u128::from(GRANULE));
        }
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_admitted_and_whole(
            required in prop_oneof![any::<i64>(), 0..(1_i64 << 40)],
            limit in prop_oneof![any::<i64>(), 0..(1_i64 << 40), Just(0)],
            content in proptest::sample::select(vec![ContentKind::Block, ContentKind::Filesystem(FilesystemType::Ext4)]),
        ) {
            if let Ok(range) = range(required, limit) && let Ok(bytes) = range.choose(content, true, 0) {
                prop_assert!(range.admits(bytes));
                prop_assert_eq!(bytes % GRANULE, 0);
                prop_assert!(bytes > 0 && i64::try_from(bytes).is_ok());
                prop_assert!(content == ContentKind::Block || bytes >= SMALLEST_EXT4);
            }
        }

        #[test]
        fn the_largest_volume_fits_and_the_next_larger_one_does_not(available in any::<u64>()) {
            let largest = largest_volume(available);
            if largest > 0 {
                prop_assert!(charge(largest) <= available);
            }
            // Rounding may cost up to a few blocks, never more.
            prop_assert!(largest >= LARGEST - LARGEST / 128 || charge(largest + 4 * GRANULE) > available);
        }
    }
}
