//! Where the bytes of an image lie, and how many of them it shares.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use rustix::{fs::SeekFrom, io::Errno};

use super::sys::{self, FiemapExtent};
use crate::policy::{Extent, Physical};

/// What a file takes on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileUsage {
    /// All of it, shared or not, as `st_blocks` counts: also what xfs took ahead of writes, up to 128 KiB for each
    /// overwritten part of a shared file.
    pub(crate) allocated_bytes: u64,
    /// What removing the file gives back at least.
    pub(crate) exclusive_bytes: u64,
    /// What other files have as well.
    pub(crate) shared_bytes: u64,
}

/// How much space `file` takes, without reading its data or writing it out. Where the filesystem tells no extents
/// (tmpfs), it doesn't share any either.
pub(crate) fn usage(file: &File) -> io::Result<FileUsage> {
    let allocated_bytes = file.metadata()?.blocks() * 512;
    let mut shared_bytes = 0_u64;
    for extent in Extents::new(file, 0..u64::MAX, 0) {
        match extent {
            Ok(extent) if extent.shared => shared_bytes = shared_bytes.saturating_add(extent.bytes),
            Ok(_) => {}
            Err(error) if is_unsupported(&error) => break,
            Err(error) => return Err(error),
        }
    }
    // A compressed extent is longer in the file than on the disk.
    let shared_bytes = shared_bytes.min(allocated_bytes);
    Ok(FileUsage { allocated_bytes, exclusive_bytes: allocated_bytes - shared_bytes, shared_bytes })
}

/// How many extents `file` has, without writing it out; none where the filesystem tells no extents.
pub(crate) fn count(file: &File) -> io::Result<Option<u64>> {
    let mut found = 0;
    for extent in Extents::new(file, 0..u64::MAX, 0) {
        match extent {
            Ok(_) => found += 1,
            Err(error) if is_unsupported(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(found))
}

/// Whether the filesystem has no FIEMAP.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY))
}

/// The extents of `file` within `range` of bytes, in the order of the file, read a page at a time. What isn't written
/// out yet is first.
///
/// While the file is written to, the pages are of different instants.
pub(crate) fn extents(file: &File, range: Range<u64>) -> Extents<'_> {
    Extents::new(file, range, sys::FIEMAP_FLAG_SYNC)
}

/// What [`extents`] gives; ends after an error.
#[derive(Debug)]
pub(crate) struct Extents<'a> {
    file: &'a File,
    /// What wasn't asked for yet.
    rest: Range<u64>,
    flags: u32,
    page: VecDeque<Extent>,
}

impl<'a> Extents<'a> {
    fn new(file: &'a File, range: Range<u64>, flags: u32) -> Self {
        Self { file, rest: range, flags, page: VecDeque::new() }
    }

    /// Asks for the next page; with the last one, nothing is left to ask for.
    fn read(&mut self) -> io::Result<()> {
        let asked = self.rest.clone();
        self.rest = asked.end..asked.end;
        let found = sys::fiemap(self.file.as_fd(), asked.start, asked.end - asked.start, self.flags)?;
        let Some(last) = found.last() else { return Ok(()) };
        if last.flags & sys::FIEMAP_EXTENT_LAST == 0 {
            let next = last.logical.saturating_add(last.bytes);
            if next <= asked.start {
                return Err(io::Error::other("the filesystem's map of the file doesn't go forward"));
            }
            self.rest = next..asked.end.max(next);
        }
        self.page.extend(found.iter().filter_map(|found| extent(found).within(asked.start, asked.end)));
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(extent) = self.page.pop_front() {
                return Some(Ok(extent));
            }
            if self.rest.is_empty() {
                return None;
            }
            if let Err(error) = self.read() {
                return Some(Err(error));
            }
        }
    }
}

/// What of `file` isn't a hole, at places unknown: for filesystems without FIEMAP.
pub(crate) fn data(file: &File) -> impl Iterator<Item = io::Result<Extent>> + '_ {
    let mut position = Some(0);
    std::iter::from_fn(move || {
        let found = next_data(file, position?).transpose()?;
        position = found.as_ref().ok().map(Extent::end);
        Some(found)
    })
}

fn next_data(file: &File, position: u64) -> io::Result<Option<Extent>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(start) => start,
        // "There is no data after offset."
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    let (bytes, physical) = (end.saturating_sub(start), Physical::Unknown);
    Ok(Some(Extent { logical: start, bytes, physical, unwritten: false, shared: false }))
}

pub(super) fn extent(found: &FiemapExtent) -> Extent {
    // Documentation/filesystems/fiemap.rst: with ENCODED or NOT_ALIGNED the address isn't that of the data as it is;
    // INLINE and TAIL set NOT_ALIGNED, DELALLOC sets UNKNOWN.
    const NO_ADDRESS: u32 = sys::FIEMAP_EXTENT_UNKNOWN
        | sys::FIEMAP_EXTENT_DELALLOC
        | sys::FIEMAP_EXTENT_ENCODED
        | sys::FIEMAP_EXTENT_DATA_ENCRYPTED
        | sys::FIEMAP_EXTENT_NOT_ALIGNED
        | sys::FIEMAP_EXTENT_DATA_INLINE
        | sys::FIEMAP_EXTENT_DATA_TAIL;
    let known = found.flags & NO_ADDRESS == 0;
    Extent {
        logical: found.logical,
        bytes: found.bytes,
        physical: if known { Physical::At(found.physical) } else { Physical::Unknown },
        unwritten: found.flags & sys::FIEMAP_EXTENT_UNWRITTEN != 0,
        shared: found.flags & sys::FIEMAP_EXTENT_SHARED != 0,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use keelson_testkit::{is_root, missing, skip_unless};
    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;
    use crate::kernel::{
        reflink::clone_file,
        testing::{Scratch, pattern, run},
    };

    const BLOCK: u64 = 4096;

    fn file(scratch: &Scratch, name: &str) -> File {
        File::options().read(true).write(true).create_new(true).open(scratch.root().join(name)).unwrap()
    }

    fn all(file: &File, range: Range<u64>) -> Vec<Extent> {
        extents(file, range).map(Result::unwrap).collect()
    }

    #[test]
    fn every_block_of_a_scattered_file_is_found_over_many_pages() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"]).is_empty(), "needs the mkfs programs");
        for filesystem in ["ext4", "xfs", "btrfs"] {
            let scratch = Scratch::new(filesystem, 320);
            let file = file(&scratch, "a");
            // Every other block, so that no two are one extent.
            let count = 3 * sys::FIEMAP_PAGE as u64;
            for index in 0..count {
                file.write_all_at(&pattern(index, 4096), 2 * index * BLOCK).unwrap();
            }
            // xfs allocates more than is written, for a while.
            let written = |range| all(&file, range).into_iter().filter(|extent| !extent.unwritten).collect::<Vec<_>>();
            let found = written(0..u64::MAX);
            assert!(found.iter().map(|one| one.logical).eq((0..count).map(|index| 2 * index * BLOCK)), "{filesystem}");
            assert!(found.iter().all(|one| one.bytes == BLOCK && matches!(one.physical, Physical::At(_))));
            let part = written(5 * BLOCK..8 * BLOCK + 100);
            let ends: Vec<_> = part.iter().map(|extent| (extent.logical, extent.bytes)).collect();
            assert_eq!(ends, [(6 * BLOCK, BLOCK), (8 * BLOCK, 100)], "{filesystem}");
            assert_eq!(written(BLOCK..2 * BLOCK).len(), 0);
            assert_eq!(all(&file, 0..0).len(), 0);
        }
    }

    #[test]
    fn only_what_was_overwritten_in_a_clone_has_another_place() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.xfs", "mkfs.btrfs"]).is_empty(), "needs xfsprogs and btrfs-progs");
        for filesystem in ["xfs", "btrfs"] {
            let scratch = Scratch::new(filesystem, 320);
            let source = file(&scratch, "a");
            source.write_all_at(&pattern(1, 100 * 4096), 0).unwrap();
            source.sync_all().unwrap();
            let before = usage(&source).unwrap();
            assert_eq!((before.exclusive_bytes, before.shared_bytes), (100 * BLOCK, 0), "{filesystem}");
            let clone = clone_file(&source, &scratch.root().join("b")).unwrap();
            source.write_all_at(&pattern(2, 4096), 7 * BLOCK).unwrap();
            let changed: Vec<u64> = (0..100)
                .filter(|index| {
                    let one = |file| all(file, index * BLOCK..(index + 1) * BLOCK)[0].physical;
                    !one(&source).is_same(one(&clone))
                })
                .collect();
            assert_eq!(changed, [7], "{filesystem}");
            let after = usage(&source).unwrap();
            assert_eq!(after.shared_bytes, 99 * BLOCK, "{filesystem}");
            // xfs takes up to 128 KiB at once to copy on write into, and gives the rest back later.
            assert!((BLOCK..=128 << 10).contains(&after.exclusive_bytes), "{filesystem} {after:?}");
        }
    }

    #[test]
    fn what_is_only_allocated_is_told_from_what_is_written() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.ext4"]).is_empty(), "needs e2fsprogs");
        let scratch = Scratch::new("ext4", 64);
        let file = file(&scratch, "a");
        fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 8 * BLOCK).unwrap();
        let written: Vec<_> = all(&file, 0..u64::MAX).into_iter().filter(|extent| !extent.unwritten).collect();
        assert_eq!(written.iter().map(|one| (one.logical, one.bytes)).collect::<Vec<_>>(), [(8 * BLOCK, BLOCK)]);
        assert!(usage(&file).unwrap().allocated_bytes >= 1 << 20);
    }

    #[test]
    fn data_without_an_address_of_its_own_is_unknown() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.btrfs"]).is_empty(), "needs btrfs-progs");
        let scratch = Scratch::new("btrfs", 128);
        let inline = file(&scratch, "inline");
        inline.write_all_at(b"short", 0).unwrap();
        assert!(matches!(all(&inline, 0..u64::MAX)[..], [Extent { physical: Physical::Unknown, .. }]));
        run("mount", &["-o", "remount,compress-force=zlib", scratch.root().to_str().unwrap()]);
        let compressed = file(&scratch, "compressed");
        compressed.write_all_at(&[7; 1 << 20], 0).unwrap();
        let found = all(&compressed, 0..u64::MAX);
        assert!(!found.is_empty() && found.iter().all(|one| matches!(one.physical, Physical::Unknown)), "{found:?}");
    }

    #[test]
    fn a_filesystem_without_a_map_shares_nothing() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = File::create_new(directory.path().join("a")).unwrap();
        file.write_all_at(&[1; 8192], 0).unwrap();
        let error = extents(&file, 0..8192).next().unwrap().unwrap_err();
        assert!(is_unsupported(&error), "{error}");
        assert_eq!(usage(&file).unwrap(), FileUsage { allocated_bytes: 8192, exclusive_bytes: 8192, shared_bytes: 0 });
    }

    #[test]
    fn every_flag_that_makes_an_address_meaningless_does() {
        let with = |flags| {
            let mut found = FiemapExtent::default();
            (found.physical, found.bytes, found.flags) = (4096, 4096, flags);
            extent(&found)
        };
        for flags in [0x2, 0x4, 0x8, 0x80, 0x100, 0x200, 0x400, 0x2 | 0x2000] {
            assert!(matches!(with(flags).physical, Physical::Unknown), "{flags:#x}");
        }
        for flags in [0, 0x1, 0x800, 0x1000, 0x2000] {
            assert!(matches!(with(flags).physical, Physical::At(4096)), "{flags:#x}");
        }
    }
}
