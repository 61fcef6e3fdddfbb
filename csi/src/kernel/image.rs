//! How the pool's filesystem is to treat an image: as a disk, which is written to in small pieces.
//!
//! - xfs copies what is shared in pieces of 32 blocks before it is written to (the default of its `cowextsize`), so a
//!   volume that is written to at random after a snapshot would take up to 32 times what was written. For images it is
//!   one block.
//! - btrfs does direct I/O to a file with checksums through the page cache (since Linux 6.15), and the loop device has
//!   to wait for each write. Images have none: `FS_NOCOW_FL`, as `chattr +C`. What is shared is still copied once.

use std::{fs::File, io, os::fd::AsFd};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::quota;

/// include/uapi/linux/magic.h: `BTRFS_SUPER_MAGIC`, `XFS_SUPER_MAGIC`
const BTRFS: u64 = 0x9123_683E;
const XFS: u64 = 0x5846_5342;

/// Prepares a new file, which must be empty, to become an image.
pub(crate) fn prepare(image: &File) -> io::Result<()> {
    match filesystem(image)? {
        (BTRFS, _) => without_checksums(image),
        (XFS, block) => copy_by(image, block),
        _ => Ok(()),
    }
}

/// Prepares a new file, which must be empty, to share the blocks of `source`: on btrfs both must be the same in whether
/// they have checksums.
pub(crate) fn prepare_like(image: &File, source: &File) -> io::Result<()> {
    match filesystem(image)? {
        (BTRFS, _) if !ioctl_getflags(source)?.contains(IFlags::NOCOW) => Ok(()),
        (BTRFS, _) => without_checksums(image),
        (XFS, block) => copy_by(image, block),
        _ => Ok(()),
    }
}

/// The magic number of the filesystem that the file lies on, and the size of its blocks.
fn filesystem(file: &File) -> io::Result<(u64, u64)> {
    let found = rustix::fs::fstatfs(file)?;
    // The types of the fields differ between machines; the magic number fits all of them.
    #[allow(clippy::cast_sign_loss, reason = "neither has a sign")]
    let (magic, block) = (found.f_type as u64, found.f_bsize as u64);
    Ok((magic & 0xFFFF_FFFF, block))
}

fn without_checksums(image: &File) -> io::Result<()> {
    let flags = ioctl_getflags(image)?;
    Ok(ioctl_setflags(image, flags | IFlags::NOCOW)?)
}

/// An xfs that can't share blocks refuses that, and needs it not.
fn copy_by(image: &File, block: u64) -> io::Result<()> {
    match quota::copy_by(image.as_fd(), u32::try_from(block).unwrap_or(4096)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use keelson_testkit::{is_root, missing, skip_unless};

    use crate::kernel::{content::create_image, filesystem, reflink::clone_file, testing::Scratch};

    /// 1,000 writes of 4 KiB to places that were written before, and are shared: no two of them next to each other.
    #[test]
    fn small_writes_after_a_snapshot_take_small_space() {
        skip_unless!(is_root(), "needs root to mount");
        for filesystem in ["xfs", "btrfs"] {
            skip_unless!(missing(&[&format!("mkfs.{filesystem}")]).is_empty(), "needs xfsprogs and btrfs-progs");
            let scratch = Scratch::new(filesystem, 1 << 10);
            let root = scratch.root();
            let first = create_image(&root.join("first"), 256 << 20).unwrap();
            for mebibyte in 0..256 {
                first.write_all_at(&vec![1; 1 << 20], mebibyte << 20).unwrap();
            }
            // A snapshot of a snapshot is as good; and the first itself, too.
            let second = clone_file(&first, &root.join("second")).unwrap();
            let third = clone_file(&second, &root.join("third")).unwrap();
            for image in [&first, &third] {
                let used = || {
                    rustix::fs::syncfs(image).unwrap();
                    filesystem::usage(image).unwrap().used_bytes
                };
                let before = used();
                for write in 0..1000_u64 {
                    // 61 has no common factor with 1000: every 65th block, in another order.
                    image.write_all_at(&[2; 4096], (write * 61 % 1000) * 65 * 4096).unwrap();
                    if write % 100 == 99 {
                        image.sync_all().unwrap();
                    }
                }
                // The extents have to be noted as well.
                let taken = used() - before;
                assert!((1000 << 12..(1000 << 12) + (4 << 20)).contains(&taken), "{filesystem}: {taken}");
            }
        }
    }
}
