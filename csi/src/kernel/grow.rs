//! Growing filesystems while they are mounted. It happens in the helper process.

use std::os::fd::{AsFd, BorrowedFd};

use super::{
    mount::{StepError, io_step, step},
    path, sys,
};
use crate::policy::{FilesystemType, TargetPath};

/// Whether this process may grow such filesystems: ext4 asks for CAP_SYS_RESOURCE (fs/ext4/resize.c,
/// `ext4_resize_begin`), bit 24 in capabilities(7).
pub(crate) fn may_grow(filesystem: FilesystemType) -> bool {
    let has_sys_resource = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        Some(u64::from_str_radix(set.trim(), 16).ok()? & (1 << 24) != 0)
    };
    // Where that can't be told, the kernel will.
    filesystem != FilesystemType::Ext4 || has_sys_resource().unwrap_or(true)
}

/// Lets the filesystem that is mounted at `target` have `bytes` of its device, which has them already. One that has
/// them, or more, stays as it is.
pub(super) fn perform_grow(filesystem: FilesystemType, target: &TargetPath, bytes: u64) -> Result<(), StepError> {
    let root = path::open_mounted(target).map_err(io_step("opening the mount point"))?;
    let root = root.as_fd();
    match filesystem {
        FilesystemType::Ext4 => grow_ext4(root, bytes),
        FilesystemType::Xfs => grow_xfs(root, bytes),
        FilesystemType::Btrfs => grow_btrfs(root, bytes),
    }
}

fn grow_ext4(root: BorrowedFd<'_>, bytes: u64) -> Result<(), StepError> {
    let found = rustix::fs::fstatvfs(root).map_err(step("reading the block size of ext4"))?;
    // A size that it has already is fine for the kernel; a smaller one is not, and nobody asks for that.
    sys::ext4_resize(root, bytes / found.f_bsize).map_err(io_step("growing ext4"))
}

fn grow_xfs(root: BorrowedFd<'_>, bytes: u64) -> Result<(), StepError> {
    let geometry = sys::xfs_geometry(root).map_err(io_step("reading the geometry of xfs"))?;
    let blocks = bytes / u64::from(geometry.block_bytes.max(1));
    if blocks <= geometry.data_blocks {
        return Ok(());
    }
    sys::xfs_grow(root, blocks, geometry.inode_percent).map_err(io_step("growing xfs"))
}

fn grow_btrfs(root: BorrowedFd<'_>, bytes: u64) -> Result<(), StepError> {
    let before = sys::btrfs_device_bytes(root).map_err(io_step("reading the size of btrfs"))?;
    if bytes <= before {
        return Ok(());
    }
    sys::btrfs_resize(root, bytes).map_err(io_step("growing btrfs"))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, os::unix::fs::FileExt, path::Path, sync::Arc};

    use keelson_host::HostRoot;
    use keelson_testkit::{is_root, missing, skip_unless};

    use super::*;
    use crate::kernel::{
        Discard, HelperError, LoopOptions, Request, filesystem, loop_device,
        testing::{Scratch, helper, pattern, run},
    };

    const SMALL: u64 = 512 << 20;
    const LARGE: u64 = 1 << 30;

    fn grow(filesystem: FilesystemType, target: &Path, bytes: u64) -> Result<(), HelperError> {
        let target = TargetPath::try_from(target.to_str().unwrap().to_owned()).unwrap();
        helper().run(&Request::Grow { filesystem, target, bytes }, Arc::new(()))
    }

    fn total(root: &Path) -> u64 {
        filesystem::usage(File::open(root).unwrap()).unwrap().total_bytes
    }

    #[test]
    fn ext4_grows_while_a_file_is_open() {
        skip_unless!(may_grow(FilesystemType::Ext4), "needs CAP_SYS_RESOURCE");
        grows_while_a_file_is_open(FilesystemType::Ext4);
    }

    #[test]
    fn xfs_grows_while_a_file_is_open() {
        grows_while_a_file_is_open(FilesystemType::Xfs);
    }

    #[test]
    fn btrfs_grows_while_a_file_is_open() {
        grows_while_a_file_is_open(FilesystemType::Btrfs);
    }

    fn grows_while_a_file_is_open(filesystem: FilesystemType) {
        skip_unless!(is_root(), "needs root to mount");
        let program = format!("mkfs.{filesystem}");
        skip_unless!(missing(&[&program]).is_empty(), format!("needs {program}"));
        let options = LoopOptions {
            read_only: false,
            direct_io: true,
            block_bytes: None,
            read_ahead_kib: None,
            discard: Discard::Allowed,
        };
        let scratch = Scratch::formatted(filesystem.as_str(), SMALL >> 20);
        let (root, image) = (scratch.root(), scratch.image());
        let attach = || loop_device::attach(&HostRoot::system(), &image, "test", &options).unwrap().node;
        run("mount", &[attach().to_str().unwrap(), root.to_str().unwrap()]);
        let contents = pattern(1, 10 << 20);
        let mut file = File::create_new(root.join("a")).unwrap();
        file.write_all(&contents[..5 << 20]).unwrap();
        let before = total(&root);
        assert!(before <= SMALL);
        // Nothing to do yet.
        grow(filesystem, &root, SMALL).unwrap();
        assert_eq!(total(&root), before, "{filesystem}");

        File::options().write(true).open(&image).unwrap().set_len(LARGE).unwrap();
        attach();
        for _ in 0..2 {
            grow(filesystem, &root, LARGE).unwrap();
            let after = total(&root);
            assert!(after > before + (450 << 20) && after <= LARGE, "{filesystem} {before} {after}");
        }
        file.write_all(&contents[5 << 20..]).unwrap();
        // More than there was room for.
        let big = File::create_new(root.join("b")).unwrap();
        for at in 0..60_u64 {
            big.write_all_at(&contents, at * (10 << 20)).unwrap();
        }
        big.sync_all().unwrap();
        assert!(std::fs::read(root.join("a")).unwrap() == contents);
        drop((file, big));
        run("umount", &[root.to_str().unwrap()]);
        run("mount", &["-o", "ro", attach().to_str().unwrap(), root.to_str().unwrap()]);
        assert!(std::fs::read(root.join("a")).unwrap() == contents, "{filesystem}");
        run("umount", &[root.to_str().unwrap()]);
        loop_device::detach(&HostRoot::system(), &image).unwrap();
    }

    #[test]
    fn a_device_that_is_too_small_is_an_error_and_an_unmounted_directory_too() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"]).is_empty(), "needs the mkfs programs");
        for filesystem in FilesystemType::ALL {
            let scratch = Scratch::new(filesystem.as_str(), 320);
            let before = total(&scratch.root());
            let error = grow(filesystem, &scratch.root(), LARGE).unwrap_err();
            assert!(matches!(&error, HelperError::Step { step, .. } if step.contains("growing")), "{error}");
            assert_eq!(total(&scratch.root()), before);
            run("umount", &[scratch.root().to_str().unwrap()]);
            let error = grow(filesystem, &scratch.root(), LARGE).unwrap_err();
            assert!(matches!(&error, HelperError::Step { step, .. } if step.contains("mount point")), "{error}");
        }
    }
}
