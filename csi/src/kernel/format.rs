//! Making filesystems.

use std::{ffi::OsStr, path::Path};

use uuid::Uuid;

use super::helper::{Helper, HelperError, Hold};
use crate::policy::FilesystemType;

/// The program that makes filesystems of that type.
pub(crate) fn program(filesystem: FilesystemType) -> &'static str {
    match filesystem {
        FilesystemType::Ext4 => "mkfs.ext4",
        FilesystemType::Xfs => "mkfs.xfs",
        FilesystemType::Btrfs => "mkfs.btrfs",
    }
}

/// Makes a filesystem in `image`, which must be new: all of it a hole. That it is new nobody checks here.
///
/// None of them is to discard, as a new image has nothing to discard. Blocks and sectors are of 4096 bytes, so that the
/// image can be used on disks of any sector size. Metadata takes the space of the pool only when it is used:
///
/// - ext4: `assume_storage_prezeroed` (e2fsprogs 1.46.6 or later) leaves out to zero the inode tables and the journal,
///   and marks them as zeroed. Without it either mkfs allocates them (33 MiB of 1 GiB, 1.6 GiB of 100 GiB, on ext4) or
///   a thread of the kernel writes them in the background after the first mount. `-m 0`: no part of a volume is kept
///   for root. `metadata_csum_seed` lets a clone get another UUID without every checksum being written anew.
/// - xfs: its log of 64 MiB is allocated, unwritten.
/// - btrfs: as it is by default, with two copies of its metadata.
pub(crate) fn format(
    helper: &Helper,
    filesystem: FilesystemType,
    image: &Path,
    uuid: Uuid,
    hold: Hold,
) -> Result<(), HelperError> {
    let uuid = uuid.to_string();
    let xfs_uuid = format!("uuid={uuid}");
    let options: &[&str] = match filesystem {
        FilesystemType::Ext4 => {
            let features = "metadata_csum,metadata_csum_seed";
            let extended = "nodiscard,assume_storage_prezeroed=1";
            &["-q", "-b", "4096", "-m", "0", "-O", features, "-E", extended, "-U", &uuid]
        }
        FilesystemType::Xfs => &["-q", "-K", "-b", "size=4096", "-s", "size=4096", "-m", &xfs_uuid],
        FilesystemType::Btrfs => &["-q", "-K", "-s", "4096", "-U", &uuid],
    };
    let arguments = options.iter().map(OsStr::new).chain([image.as_os_str()]);
    helper.run_program(program(filesystem), arguments, hold)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt, sync::Arc};

    use keelson_testkit::{is_root, missing, skip_unless};

    use super::*;
    use crate::{
        kernel::{
            filesystem,
            superblock::{self, Signature, Superblock},
            testing::{Scratch, helper, run},
        },
        policy::{ContentKind, SizeRange},
    };

    const UUID: Uuid = Uuid::from_u128(0x6f0c_2f9e_5a57_4c0f_9a77_0d7c_9d3f_1a11);

    fn formatted(filesystem: FilesystemType, mebibytes: u64) -> Scratch {
        let scratch = Scratch::empty(mebibytes);
        format(&helper(), filesystem, &scratch.image(), UUID, Arc::new(())).unwrap();
        scratch
    }

    fn mount(scratch: &Scratch) {
        run("mount", &["-o", "loop", scratch.image().to_str().unwrap(), scratch.root().to_str().unwrap()]);
    }

    #[test]
    fn the_smallest_size_of_each_filesystem_can_be_formatted_mounted_and_filled() {
        skip_unless!(is_root(), "needs root to mount");
        for filesystem in FilesystemType::ALL {
            skip_unless!(missing(&[program(filesystem)]).is_empty(), format!("needs {}", program(filesystem)));
            let smallest = SizeRange::smallest(ContentKind::Filesystem(filesystem), true);
            let scratch = formatted(filesystem, smallest >> 20);
            let expected = Superblock { filesystem, uuid: UUID, bytes: smallest };
            let found = superblock::read(&File::open(scratch.image()).unwrap()).unwrap();
            assert_eq!(found, Signature::Filesystem(expected));
            mount(&scratch);
            // btrfs has two copies of its metadata, which weigh most in a small one.
            let usage = filesystem::usage(File::open(scratch.root()).unwrap()).unwrap();
            assert!(usage.available_bytes >= smallest / 3, "{filesystem} {usage:?}");
            std::fs::write(scratch.root().join("a"), vec![1; usize::try_from(smallest / 3).unwrap()]).unwrap();
            run("sync", &["-f", scratch.root().to_str().unwrap()]);
        }
    }

    #[test]
    fn a_new_filesystem_takes_little_of_the_pool_and_nothing_later() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.ext4", "dumpe2fs"]).is_empty(), "needs e2fsprogs");
        let scratch = formatted(FilesystemType::Ext4, 10 << 10);
        let taken = std::fs::metadata(scratch.image()).unwrap().blocks() * 512;
        assert!(taken < 8 << 20, "{taken}");
        // A group whose inode table isn't marked as zeroed is one that the kernel zeroes after the first mount.
        let groups = run("dumpe2fs", &[scratch.image().to_str().unwrap()]);
        let with = |text: &str| groups.lines().filter(|line| line.contains("(Blocks ") && line.contains(text)).count();
        assert_eq!((with(""), with("ITABLE_ZEROED")), (80, 80));
        run("e2fsck", &["-fn", scratch.image().to_str().unwrap()]);
    }
}
