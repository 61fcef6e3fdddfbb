//! Copies of images: by sharing their blocks where the filesystem can, by reading and writing elsewhere.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, SeekFrom, ioctl_ficlone},
    io::Errno,
};

use super::{image, sys};

/// include/uapi/linux/magic.h: `BTRFS_SUPER_MAGIC`, `XFS_SUPER_MAGIC`
const BTRFS: u64 = 0x9123_683e;
const XFS: u64 = 0x5846_5342;

/// What one call to the kernel copies at most, and so how often progress is told.
const STEP: u64 = 16 << 20;

/// What is read and written at once where the kernel can't copy by itself.
const BUFFER: usize = 1 << 20;

/// Why a file was not cloned; nothing is left of the new one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloneError {
    /// It never will be: the filesystem can't share blocks, or the two lie on different ones.
    #[error("the filesystem can't share blocks between files, so there is no clone at {}", target.display())]
    Unsupported { target: PathBuf, source: io::Error },
    #[error("failed to clone a file to {}", target.display())]
    Failed { target: PathBuf, source: io::Error },
}

/// Makes the new file `target` with the contents of `source` as of one instant, sharing its blocks.
///
/// What was written to `source` before is in it; neither is synced.
pub(crate) fn clone_file(source: &File, target: &Path) -> Result<File, CloneError> {
    let fail = |source| CloneError::Failed { target: target.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(target).map_err(fail)?;
    let cloned = image::prepare_like(&file, source).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let Err(error) = cloned.and_then(|()| ioctl_ficlone(&file, source)) else { return Ok(file) };
    drop(file);
    if let Err(error) = std::fs::remove_file(target) {
        tracing::warn!(path = %target.display(), %error, "failed to remove what a failed clone left");
    }
    Err(if is_unsupported(error) {
        CloneError::Unsupported { target: target.to_owned(), source: error.into() }
    } else {
        fail(error.into())
    })
}

/// ioctl_ficlone(2): EOPNOTSUPP, the filesystem can't; EXDEV, not on the same one; EINVAL, "the filesystem does not
/// support reflinking the ranges of the given files".
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL)
}

/// Whether files in `directory` can be cloned there. Tried with two files that have no name, so nothing is left, even
/// if the process is killed.
pub(crate) fn can_clone(directory: &Path) -> io::Result<bool> {
    let unnamed = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600)).map(File::from)
    };
    let (source, target) = match (unnamed(), unnamed()) {
        (Ok(source), Ok(target)) => (source, target),
        // Every filesystem of the kernel that shares blocks has unnamed files as well (open(2), O_TMPFILE).
        (Err(Errno::OPNOTSUPP), _) => return Ok(false),
        (Err(error), _) | (_, Err(error)) => return Err(error.into()),
    };
    source.write_all_at(&[1; 4096], 0)?;
    match ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported(error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What [`can_clone`] would find, told by the kind of the filesystem: nothing is tried, and so nothing written.
pub(crate) fn shares_blocks(directory: &Path) -> io::Result<bool> {
    let directory = File::open(directory)?;
    Ok(match u64::try_from(rustix::fs::fstatfs(&directory)?.f_type) {
        Ok(BTRFS) => true,
        Ok(XFS) => sys::xfs_geometry(directory.as_fd())?.flags & sys::XFS_REFLINK != 0,
        _ => false,
    })
}

/// Copies `source`, which nobody may write to meanwhile, into the empty file `target`; holes stay holes. Gives how
/// many bytes were copied.
///
/// `progress` hears how far it has come, in bytes of the file's size. The copy isn't synced.
pub(crate) fn copy_sparse(source: &File, target: &File, progress: impl FnMut(u64)) -> io::Result<u64> {
    Copy { source, target, by_kernel: true, buffer: Vec::new() }.all(progress)
}

/// The same, and the copy shares no block with the source, which the kernel's own copying may do.
pub(crate) fn copy_apart(source: &File, target: &File) -> io::Result<u64> {
    Copy { source, target, by_kernel: false, buffer: Vec::new() }.all(|_| ())
}

/// A copy under way.
struct Copy<'a> {
    source: &'a File,
    target: &'a File,
    /// Whether the kernel can copy between the two; found out by the first try.
    by_kernel: bool,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    /// Copies all that isn't a hole.
    fn all(mut self, mut progress: impl FnMut(u64)) -> io::Result<u64> {
        let (source, target) = (self.source, self.target);
        let bytes = source.metadata()?.len();
        target.set_len(bytes)?;
        let (mut position, mut copied) = (0, 0);
        while position < bytes {
            let start = match rustix::fs::seek(source, SeekFrom::Data(position)) {
                Ok(start) => start,
                // "There is no data after offset."
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(source, SeekFrom::Hole(start))?.min(bytes);
            position = start;
            while position < end {
                let length = self.some(position, (end - position).min(STEP))?;
                position += length;
                copied += length;
                progress(position);
            }
        }
        progress(bytes);
        Ok(copied)
    }

    /// Copies at most `length` bytes at `position`, and at least one.
    fn some(&mut self, position: u64, length: u64) -> io::Result<u64> {
        if self.by_kernel {
            let (mut from, mut to) = (position, position);
            let length = usize::try_from(length).unwrap_or(BUFFER);
            match rustix::fs::copy_file_range(self.source, Some(&mut from), self.target, Some(&mut to), length) {
                Ok(copied @ 1..) => return Ok(copied as u64),
                Err(Errno::INTR) => return Ok(0),
                // copy_file_range(2); 0 where the source's filesystem doesn't tell its size.
                Ok(0) | Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.by_kernel = false,
                Err(error) => return Err(error.into()),
            }
        }
        self.buffer.resize(BUFFER, 0);
        let length = usize::try_from(length).unwrap_or(BUFFER).min(BUFFER);
        let part = &mut self.buffer[..length];
        self.source.read_exact_at(part, position)?;
        self.target.write_all_at(part, position)?;
        Ok(length as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use keelson_testkit::{is_root, missing, skip_unless};
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::testing::{Scratch, names, pattern};

    fn file(directory: &Path, name: &str) -> File {
        File::options().read(true).write(true).create_new(true).open(directory.join(name)).unwrap()
    }

    #[test]
    fn a_clone_has_the_contents_and_is_independent() {
        skip_unless!(is_root(), "needs root to mount");
        for filesystem in ["xfs", "btrfs"] {
            skip_unless!(missing(&[&format!("mkfs.{filesystem}")]).is_empty(), "needs xfsprogs and btrfs-progs");
            let scratch = Scratch::new(filesystem, 320);
            let root = scratch.root();
            assert!(can_clone(&root).unwrap());
            assert_eq!(names(&root), [""; 0]);
            let source = file(&root, "source");
            let contents = pattern(1, 3 << 20);
            source.write_all_at(&contents, 0).unwrap();
            let target = clone_file(&source, &root.join("target")).unwrap();
            source.write_all_at(&[7; 4096], 8192).unwrap();
            assert!(std::fs::read(root.join("target")).unwrap() == contents);
            target.write_all_at(&[8; 4096], 0).unwrap();
            let mut block = [0; 4096];
            source.read_exact_at(&mut block, 0).unwrap();
            assert!(block[..] == contents[..4096]);
            // What exists is never overwritten.
            let again = clone_file(&source, &root.join("target")).unwrap_err();
            assert!(
                matches!(&again, CloneError::Failed { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
            );
            assert_eq!(names(&root), ["source", "target"]);
        }
    }

    #[test]
    fn a_filesystem_that_cannot_clone_is_told_from_other_errors() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.ext4", "mkfs.btrfs"]).is_empty(), "needs e2fsprogs and btrfs-progs");
        let (ext4, btrfs) = (Scratch::new("ext4", 32), Scratch::new("btrfs", 128));
        assert!(!can_clone(&ext4.root()).unwrap());
        let (here, there) = (file(&ext4.root(), "a"), file(&btrfs.root(), "a"));
        here.write_all_at(&[1; 4096], 0).unwrap();
        there.write_all_at(&[1; 4096], 0).unwrap();
        for source in [&here, &there] {
            let error = clone_file(source, &ext4.root().join("b")).unwrap_err();
            assert!(matches!(error, CloneError::Unsupported { .. }), "{error:?}");
        }
        assert!(matches!(clone_file(&here, &btrfs.root().join("b")), Err(CloneError::Unsupported { .. })));
        let error = clone_file(&there, &btrfs.root().join("no/b")).unwrap_err();
        assert!(matches!(error, CloneError::Failed { .. }), "{error:?}");
        assert!(!btrfs.root().join("b").exists());
        assert!(can_clone(&ext4.root().join("no")).is_err());
    }

    #[test]
    fn a_copy_to_another_filesystem_keeps_holes() {
        let (here, there) = (tempfile::tempdir_in("/var/tmp").unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let source = file(here.path(), "source");
        source.set_len(64 << 20).unwrap();
        let contents = pattern(3, 2_500_000);
        source.write_all_at(&contents, 20 << 20).unwrap();
        source.write_all_at(&contents[..10_000], 50 << 20).unwrap();
        let target = file(there.path(), "target");
        let mut seen = Vec::new();
        let copied = copy_sparse(&source, &target, |position| seen.push(position)).unwrap();
        assert!(copied < 4 << 20, "{copied}");
        assert!(target.metadata().unwrap().blocks() * 512 < 4 << 20);
        assert!(seen.is_sorted() && seen.last() == Some(&(64 << 20)), "{seen:?}");
        let read = |directory: &Path, name: &str| std::fs::read(directory.join(name)).unwrap();
        assert!(read(here.path(), "source") == read(there.path(), "target"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_copy_is_the_same_bytes(
            size in 0_u64..3_000_000,
            writes in proptest::collection::vec((0_u64..3_000_000, 1_usize..200_000), 0..6),
            by_kernel in any::<bool>(),
        ) {
            let here = tempfile::tempdir_in("/var/tmp").unwrap();
            let there = tempfile::tempdir_in(if by_kernel { "/var/tmp" } else { "/dev/shm" }).unwrap();
            let source = file(here.path(), "source");
            source.set_len(size).unwrap();
            for (seed, (position, length)) in writes.into_iter().enumerate() {
                source.write_all_at(&pattern(seed as u64, length), position).unwrap();
            }
            let target = file(there.path(), "target");
            copy_sparse(&source, &target, |_| {}).unwrap();
            let (left, right) = (here.path().join("source"), there.path().join("target"));
            prop_assert!(std::fs::read(left).unwrap() == std::fs::read(right).unwrap());
        }
    }
}
