//! What the first bytes of an image or a device say it is.

use std::{fs::File, io, os::unix::fs::FileExt};

use uuid::Uuid;

use crate::policy::FilesystemType;

/// What an image or a device shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    Filesystem(Superblock),
    /// Something that isn't ours, by its common name.
    Other(&'static str),
    /// Nothing that is known here; as with zeros only.
    None,
}

/// What the superblock of a filesystem says; unchecked beyond its magic number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) filesystem: FilesystemType,
    /// What tells it from others on the same host. Of btrfs the fsid, not the metadata_uuid, which a clone keeps.
    pub(crate) uuid: Uuid,
    /// The size of the filesystem, which can be smaller than what it lies on.
    pub(crate) bytes: u64,
}

/// The part that is looked at first: everything but btrfs and zfs is in it.
const HEAD: usize = 4096;

/// Where btrfs has its superblock.
const BTRFS_AT: u64 = 64 << 10;

/// The ring of superblocks of the first label of a zfs disk: its place, its length, and the step between two.
const ZFS_RING: (u64, usize, usize) = (128 << 10, 128 << 10, 1024);

/// Reads the signature of an image or a block device.
pub(crate) fn read(file: &File) -> io::Result<Signature> {
    let head = read_at(file, 0, HEAD)?;
    if let Some(found) = in_head(&head) {
        return Ok(found);
    }
    if let Some(found) = btrfs(&read_at(file, BTRFS_AT, HEAD)?) {
        return Ok(Signature::Filesystem(found));
    }
    let (at, length, step) = ZFS_RING;
    let ring = read_at(file, at, length)?;
    let is_zfs =
        ring.chunks(step).any(|one| [0xbab10c_u64.to_le_bytes(), 0xbab10c_u64.to_be_bytes()].contains(&part(one, 0)));
    Ok(if is_zfs { Signature::Other("zfs") } else { Signature::None })
}

/// `length` bytes from `at`; beyond the end there are zeros.
fn read_at(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// A field of a superblock; zeros if that is too short.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn in_head(head: &[u8]) -> Option<Signature> {
    if let Some(found) = xfs(head).or_else(|| ext4(head.get(EXT4_AT..)?)) {
        return Some(Signature::Filesystem(found));
    }
    let starts = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let other = if starts(0, b"LUKS\xba\xbe") {
        "LUKS"
    } else if (0..4).any(|sector| starts(sector * 512, b"LABELONE") && starts(sector * 512 + 24, b"LVM2")) {
        "LVM2"
    } else if starts(4086, b"SWAPSPACE2") {
        "swap"
    } else if starts(3, b"NTFS    ") {
        "ntfs"
    } else if starts(0x36, b"FAT") || starts(0x52, b"FAT32") {
        "vfat"
    } else if starts(512, b"EFI PART") {
        "gpt"
    } else if starts(510, &[0x55, 0xaa])
        && (0..4).any(|entry| head.get(446 + 16 * entry + 4).is_some_and(|kind| *kind != 0))
    {
        "mbr"
    } else {
        return None;
    };
    Some(Signature::Other(other))
}

/// fs/xfs/libxfs/xfs_format.h, `struct xfs_dsb`: all big-endian.
fn xfs(head: &[u8]) -> Option<Superblock> {
    if !head.starts_with(b"XFSB") {
        return None;
    }
    let block_bytes = u64::from(u32::from_be_bytes(part(head, 4)));
    let bytes = u64::from_be_bytes(part(head, 8)).saturating_mul(block_bytes);
    Some(Superblock { filesystem: FilesystemType::Xfs, uuid: Uuid::from_bytes(part(head, 32)), bytes })
}

/// fs/btrfs: include/uapi/linux/btrfs_tree.h, `struct btrfs_super_block`: all little-endian.
fn btrfs(superblock: &[u8]) -> Option<Superblock> {
    if part(superblock, 0x40) != *b"_BHRfS_M" {
        return None;
    }
    let uuid = Uuid::from_bytes(part(superblock, 0x20));
    let bytes = u64::from_le_bytes(part(superblock, 0x70));
    Some(Superblock { filesystem: FilesystemType::Btrfs, uuid, bytes })
}

/// Where ext4 has its superblock, and how long it is.
const EXT4_AT: usize = 1024;
const EXT4_BYTES: usize = 1024;

/// Documentation/filesystems/ext4/super.rst, offsets within the superblock; all little-endian.
mod ext4_field {
    pub(super) const BLOCKS_LOW: usize = 0x4;
    pub(super) const LOG_BLOCK_SIZE: usize = 0x18;
    pub(super) const MAGIC: usize = 0x38;
    pub(super) const INCOMPATIBLE: usize = 0x60;
    pub(super) const READ_ONLY_COMPATIBLE: usize = 0x64;
    pub(super) const UUID: usize = 0x68;
    pub(super) const BLOCKS_HIGH: usize = 0x150;
    pub(super) const CHECKSUM: usize = 0x3fc;
}

/// `INCOMPAT_64BIT`
const EXT4_64BIT: u32 = 0x80;
/// `INCOMPAT_CSUM_SEED`: checksums don't depend on the UUID.
const EXT4_CSUM_SEED: u32 = 0x2000;
/// `RO_COMPAT_METADATA_CSUM`
const EXT4_METADATA_CSUM: u32 = 0x400;

fn ext4(superblock: &[u8]) -> Option<Superblock> {
    use ext4_field::{BLOCKS_HIGH, BLOCKS_LOW, INCOMPATIBLE, LOG_BLOCK_SIZE, MAGIC, UUID};
    if part(superblock, MAGIC) != [0x53, 0xef] {
        return None;
    }
    let number = |at| u64::from(u32::from_le_bytes(part(superblock, at)));
    let wide = number(INCOMPATIBLE) & u64::from(EXT4_64BIT) != 0;
    let blocks = number(BLOCKS_LOW) | if wide { number(BLOCKS_HIGH) << 32 } else { 0 };
    // "Block size is 2 ^ (10 + s_log_block_size)"; the largest is 64 KiB.
    let bytes = blocks.saturating_mul(1 << (10 + number(LOG_BLOCK_SIZE).min(6)));
    Some(Superblock { filesystem: FilesystemType::Ext4, uuid: Uuid::from_bytes(part(superblock, UUID)), bytes })
}

/// Why a filesystem got no other UUID; it is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetUuidError {
    #[error("there is no ext4 filesystem")]
    NotExt4,
    #[error("there is no btrfs filesystem")]
    NotBtrfs,
    #[error("the btrfs filesystem has checksums of kind {0}, and only crc32c (0) can be written here")]
    OtherChecksum(u16),
    #[error("the ext4 filesystem was made without metadata_csum_seed, so all its checksums depend on its UUID")]
    NoChecksumSeed,
    #[error("the superblock doesn't match its checksum")]
    Damaged,
    #[error("failed to read or write the superblock")]
    Io(#[from] io::Error),
}

/// The first block of a filesystem that others are cloned from.
#[derive(Debug)]
pub(crate) struct Head {
    block: Vec<u8>,
    superblock: Superblock,
}

impl Head {
    /// Reads it, or none if it shows another filesystem than `expected`, or is damaged.
    pub(crate) fn read(image: &File, expected: FilesystemType) -> io::Result<Option<Self>> {
        let block = read_at(image, 0, HEAD)?;
        let Signature::Filesystem(superblock) = read(image)? else { return Ok(None) };
        let is_whole = match expected {
            FilesystemType::Ext4 => check_ext4(&block[EXT4_AT..EXT4_AT + EXT4_BYTES]).is_ok(),
            FilesystemType::Xfs | FilesystemType::Btrfs => true,
        };
        Ok((is_whole && superblock.filesystem == expected).then_some(Self { block, superblock }))
    }

    pub(crate) fn uuid(&self) -> Uuid {
        self.superblock.uuid
    }

    /// Gives the ext4 filesystem in `clone` a UUID of its own. Nobody else may have it open: not a mount, not a loop
    /// device.
    ///
    /// Its copies of the superblock keep the old one, as after `tune2fs -U` on a mounted filesystem; only a repair reads
    /// them. The image isn't synced. A whole block is written, so that none has to be read.
    pub(crate) fn write_ext4(&self, clone: &File, uuid: Uuid) -> Result<(), SetUuidError> {
        use ext4_field::{CHECKSUM, UUID};
        let mut block = self.block.clone();
        let superblock = &mut block[EXT4_AT..EXT4_AT + EXT4_BYTES];
        check_ext4(superblock)?;
        superblock[UUID..UUID + 16].copy_from_slice(uuid.as_bytes());
        let checksum = crc32c(&superblock[..CHECKSUM]).to_le_bytes();
        superblock[CHECKSUM..].copy_from_slice(&checksum);
        Ok(clone.write_all_at(&block, 0)?)
    }
}

/// Whether an ext4 superblock is whole, and can get another UUID without anything else being written.
fn check_ext4(superblock: &[u8]) -> Result<(), SetUuidError> {
    use ext4_field::{CHECKSUM, INCOMPATIBLE, READ_ONLY_COMPATIBLE};
    if ext4(superblock).is_none() {
        return Err(SetUuidError::NotExt4);
    }
    let has = |at, flag| u32::from_le_bytes(part(superblock, at)) & flag != 0;
    if !has(INCOMPATIBLE, EXT4_CSUM_SEED) || !has(READ_ONLY_COMPATIBLE, EXT4_METADATA_CSUM) {
        return Err(SetUuidError::NoChecksumSeed);
    }
    if part(superblock, CHECKSUM) != crc32c(&superblock[..CHECKSUM]).to_le_bytes() {
        return Err(SetUuidError::Damaged);
    }
    Ok(())
}

/// include/uapi/linux/btrfs_tree.h, `struct btrfs_super_block`, offsets; all little-endian.
mod btrfs_field {
    pub(super) const FSID: usize = 0x20;
    /// Where this copy of the superblock lies.
    pub(super) const ADDRESS: usize = 0x30;
    pub(super) const TOTAL_BYTES: usize = 0x70;
    pub(super) const INCOMPATIBLE: usize = 0xbc;
    pub(super) const CHECKSUM_KIND: usize = 0xc4;
    pub(super) const METADATA_UUID: usize = 0x23b;
}

/// `BTRFS_FEATURE_INCOMPAT_METADATA_UUID` (Linux 5.0): what the metadata shows is in a field of its own, and the fsid
/// is free.
const BTRFS_METADATA_UUID: u64 = 1 << 10;

/// Where btrfs keeps the copies of its superblock, beside the first: fs/btrfs/disk-io.h, `btrfs_sb_offset`.
const BTRFS_COPIES_AT: [u64; 2] = [64 << 20, 256 << 30];

/// Gives the btrfs filesystem in `image` another fsid. Nobody else may have it open: not a mount, not a loop device.
///
/// `btrfstune -M` would do as well, were the filesystem unmounted cleanly. In a copy of a mounted one there may be a log
/// of what was fsynced; it belongs to the superblock's generation, which btrfstune counts up: then the kernel can't
/// replay it and refuses to mount. Here nothing but the identity changes. The image isn't synced.
pub(crate) fn set_btrfs_fsid(image: &File, fsid: Uuid) -> Result<(), SetUuidError> {
    use btrfs_field::{CHECKSUM_KIND, TOTAL_BYTES};
    let first = read_at(image, BTRFS_AT, HEAD)?;
    if btrfs(&first).is_none() {
        return Err(SetUuidError::NotBtrfs);
    }
    let kind = u16::from_le_bytes(part(&first, CHECKSUM_KIND));
    if kind != 0 {
        return Err(SetUuidError::OtherChecksum(kind));
    }
    let renamed = with_fsid(first.clone(), BTRFS_AT, fsid).ok_or(SetUuidError::Damaged)?;
    let bytes = u64::from_le_bytes(part(&first, TOTAL_BYTES));
    for at in BTRFS_COPIES_AT.into_iter().filter(|at| at + HEAD as u64 <= bytes) {
        // The kernel reads the first only; a copy that a cut left half-written helps nobody, whatever its fsid.
        if let Some(copy) = with_fsid(read_at(image, at, HEAD)?, at, fsid) {
            image.write_all_at(&copy, at)?;
        }
    }
    Ok(image.write_all_at(&renamed, BTRFS_AT)?)
}

/// The superblock that lies at `at`, with another fsid; none if that isn't a whole one.
fn with_fsid(mut superblock: Vec<u8>, at: u64, fsid: Uuid) -> Option<Vec<u8>> {
    use btrfs_field::{ADDRESS, FSID, INCOMPATIBLE, METADATA_UUID};
    let checksum = |superblock: &[u8]| (!crc32c(&superblock[FSID..])).to_le_bytes();
    btrfs(&superblock)?;
    if u64::from_le_bytes(part(&superblock, ADDRESS)) != at || part(&superblock, 0) != checksum(&superblock) {
        return None;
    }
    let features = u64::from_le_bytes(part(&superblock, INCOMPATIBLE));
    if features & BTRFS_METADATA_UUID == 0 {
        superblock.copy_within(FSID..FSID + 16, METADATA_UUID);
        superblock[INCOMPATIBLE..INCOMPATIBLE + 8].copy_from_slice(&(features | BTRFS_METADATA_UUID).to_le_bytes());
    }
    superblock[FSID..FSID + 16].copy_from_slice(fsid.as_bytes());
    let checksum = checksum(&superblock);
    superblock[..4].copy_from_slice(&checksum);
    Some(superblock)
}

/// The checksum of the kernel's `crc32c(~0, bytes)`: that of RFC 3720 without the inversion at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| CRC32C[usize::from(sum.to_le_bytes()[0] ^ byte)] ^ (sum >> 8))
}

/// What each byte does to the checksum.
const CRC32C: [u32; 256] = {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let (mut table, mut byte) = ([0; 256], 0_u32);
    while byte < 256 {
        let (mut sum, mut bit) = (byte, 0);
        while bit < 8 {
            sum = (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte as usize] = sum;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use keelson_testkit::{is_root, missing, skip_unless};
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::testing::{Scratch, run};

    const NEW: Uuid = Uuid::from_u128(0x6f0c_2f9e_5a57_4c0f_9a77_0d7c_9d3f_1a11);

    fn open(scratch: &Scratch) -> File {
        File::options().read(true).write(true).open(scratch.image()).unwrap()
    }

    /// An image that `command` was run on; `$0` is the image.
    fn image(mebibytes: u64, command: &str) -> Scratch {
        let scratch = Scratch::empty(mebibytes);
        run("sh", &["-c", command, scratch.image().to_str().unwrap()]);
        scratch
    }

    #[test]
    fn each_filesystem_tells_its_uuid_and_size() {
        skip_unless!(missing(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"]).is_empty(), "needs the mkfs programs");
        for (filesystem, command) in [
            (FilesystemType::Ext4, format!("mkfs.ext4 -q -b 4096 -U {NEW} $0 320M")),
            (FilesystemType::Ext4, format!("mkfs.ext4 -q -b 1024 -O ^64bit -U {NEW} $0 320M")),
            (FilesystemType::Xfs, format!("mkfs.xfs -q -m uuid={NEW} -d size=320M $0")),
            (FilesystemType::Btrfs, format!("mkfs.btrfs -q -U {NEW} -b 320M $0")),
        ] {
            let image = image(400, &command);
            let expected = Superblock { filesystem, uuid: NEW, bytes: 320 << 20 };
            assert_eq!(read(&open(&image)).unwrap(), Signature::Filesystem(expected), "{command}");
        }
    }

    #[test]
    fn a_btrfs_clone_is_told_by_its_own_fsid() {
        skip_unless!(missing(&["mkfs.btrfs", "btrfstune"]).is_empty(), "needs btrfs-progs");
        let image = image(128, &format!("mkfs.btrfs -q $0 && btrfstune -M {NEW} $0"));
        let Signature::Filesystem(found) = read(&open(&image)).unwrap() else { panic!("no filesystem") };
        assert_eq!(found.uuid, NEW);
    }

    #[test]
    fn what_is_not_ours_is_named() {
        skip_unless!(missing(&["mkswap", "sfdisk"]).is_empty(), "needs util-linux");
        for (command, expected) in [
            ("true", Signature::None),
            ("mkswap -q $0", Signature::Other("swap")),
            ("echo 'label: gpt' | sfdisk -q $0", Signature::Other("gpt")),
            ("printf 'label: dos\\n,,\\n' | sfdisk -q $0", Signature::Other("mbr")),
        ] {
            assert_eq!(read(&open(&image(8, command))).unwrap(), expected, "{command}");
        }
        for (at, bytes, name) in [
            (0, &b"LUKS\xba\xbe"[..], "LUKS"),
            (512, b"LABELONE................LVM2 001", "LVM2"),
            (3, b"NTFS    ", "ntfs"),
            (0x52, b"FAT32   ", "vfat"),
            (0x36, b"FAT16   ", "vfat"),
            ((128 << 10) + 5 * 1024, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], "zfs"),
        ] {
            let scratch = Scratch::empty(1);
            open(&scratch).write_all_at(bytes, at).unwrap();
            assert_eq!(read(&open(&scratch)).unwrap(), Signature::Other(name));
        }
    }

    /// The first bytes of a disk with these in them.
    fn head_with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, bytes) in parts {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn half_a_signature_is_none_and_any_entry_is_enough() {
        const LABEL: (usize, &[u8]) = (3 * 512, b"LABELONE");
        const MBR: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        let entry = |number: usize| (446 + 16 * number + 4, &[0x83_u8][..]);
        for (parts, expected) in [
            (vec![LABEL], None),
            (vec![(3 * 512 + 24, b"LVM2")], None),
            (vec![LABEL, (3 * 512 + 24, b"LVM2")], Some("LVM2")),
            (vec![(4 * 512, LABEL.1), (4 * 512 + 24, b"LVM2")], None),
            (vec![MBR], None),
            (vec![entry(0)], None),
            (vec![MBR, entry(0)], Some("mbr")),
            (vec![MBR, entry(3)], Some("mbr")),
            // Of the second entry, what is no kind.
            (vec![MBR, (446 + 16 + 5, &[1, 1, 1])], None),
        ] {
            assert_eq!(in_head(&head_with(&parts)), expected.map(Signature::Other), "{parts:?}");
        }
    }

    #[test]
    fn the_high_half_of_ext4s_blocks_counts_where_there_is_one() {
        let bytes = |incompatible: u8| {
            let parts: [(usize, &[u8]); 4] =
                [(0x4, &[3]), (0x38, &[0x53, 0xef]), (0x60, &[incompatible]), (0x150, &[1])];
            ext4(&head_with(&parts)).unwrap().bytes
        };
        assert_eq!(bytes(0x80), ((1 << 32) + 3) * 1024);
        assert_eq!(bytes(0x42), 3 * 1024);
    }

    #[test]
    fn an_image_that_ends_early_shows_nothing() {
        let scratch = Scratch::empty(0);
        assert_eq!(read(&open(&scratch)).unwrap(), Signature::None);
        open(&scratch).write_all_at(b"XFS", 0).unwrap();
        assert_eq!(read(&open(&scratch)).unwrap(), Signature::None);
    }

    #[test]
    fn a_new_ext4_uuid_is_accepted_by_its_tools_and_the_kernel() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.ext4", "e2fsck", "dumpe2fs"]).is_empty(), "needs e2fsprogs");
        let scratch = image(64, "mkfs.ext4 -q -O metadata_csum_seed $0");
        let path = scratch.image();
        let path = path.to_str().unwrap();
        let head = Head::read(&open(&scratch), FilesystemType::Ext4).unwrap().unwrap();
        head.write_ext4(&open(&scratch), NEW).unwrap();
        let Signature::Filesystem(found) = read(&open(&scratch)).unwrap() else { panic!("no filesystem") };
        assert_eq!(found.uuid, NEW);
        run("e2fsck", &["-fn", path]);
        assert!(run("dumpe2fs", &["-h", path]).contains(&NEW.to_string()));
        run("mount", &["-o", "loop", path, scratch.root().to_str().unwrap()]);
        std::fs::write(scratch.root().join("a"), b"a").unwrap();
        if let Some(uuid) = crate::kernel::filesystem::uuid(&scratch.root()).unwrap() {
            assert_eq!(uuid, NEW);
        }
        run("umount", &[scratch.root().to_str().unwrap()]);
        run("e2fsck", &["-fn", path]);
    }

    #[test]
    fn a_uuid_that_checksums_depend_on_is_not_changed() {
        skip_unless!(missing(&["mkfs.ext4"]).is_empty(), "needs e2fsprogs");
        let changed = |command: &str, spoil: Option<u64>| {
            let scratch = image(64, command);
            let file = open(&scratch);
            if let Some(at) = spoil {
                file.write_all_at(&[0xa5], at).unwrap();
            }
            // A template that is so isn't used at all.
            assert!(Head::read(&file, FilesystemType::Ext4).unwrap().is_none());
            check_ext4(&read_at(&file, 1024, 1024).unwrap()).unwrap_err()
        };
        let with_seed = "mkfs.ext4 -q -O metadata_csum_seed $0";
        let without = changed("mkfs.ext4 -q -O ^metadata_csum_seed $0", None);
        assert!(matches!(without, SetUuidError::NoChecksumSeed));
        let bare = changed("mkfs.ext4 -q -O ^metadata_csum $0", None);
        assert!(matches!(bare, SetUuidError::NoChecksumSeed));
        assert!(matches!(changed(with_seed, Some(1024 + 0x200)), SetUuidError::Damaged));
        assert!(matches!(changed("true", None), SetUuidError::NotExt4));
    }

    #[test]
    fn a_copy_of_a_mounted_btrfs_with_another_fsid_is_mounted_beside_it_with_all_that_was_synced() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.btrfs", "btrfs", "cp"]).is_empty(), "needs btrfs-progs");
        let source = image(300, "mkfs.btrfs -q $0");
        let path = source.image().to_str().unwrap().to_owned();
        run("mount", &["-o", "loop", &path, source.root().to_str().unwrap()]);
        // Each fsync after the first goes into the log.
        for number in 0..20 {
            let file = File::create_new(source.root().join(format!("{number}"))).unwrap();
            file.write_all_at(&[number; 5000], 0).unwrap();
            file.sync_all().unwrap();
        }
        let mut copies = Vec::new();
        for fsid in [NEW, Uuid::from_u128(7)] {
            let copy = image(0, &format!("cp {path} $0"));
            let super_of =
                |copy: &Scratch| run("btrfs", &["inspect-internal", "dump-super", copy.image().to_str().unwrap()]);
            let log = |text: &str| text.lines().find(|line| line.starts_with("log_root\t")).unwrap().to_owned();
            assert!(!log(&super_of(&copy)).ends_with("\t0"), "there is no log to replay");
            // From the one that has a metadata_uuid as well.
            set_btrfs_fsid(&open(&copy), Uuid::from_u128(1)).unwrap();
            set_btrfs_fsid(&open(&copy), fsid).unwrap();
            let Signature::Filesystem(found) = read(&open(&copy)).unwrap() else { panic!("no filesystem") };
            assert_eq!(found.uuid, fsid);
            let all = run("btrfs", &["inspect-internal", "dump-super", "-a", copy.image().to_str().unwrap()]);
            assert_eq!(all.matches(&format!("fsid\t\t\t{fsid}")).count(), 2, "{all}");
            assert!(!all.contains("DON'T MATCH"), "{all}");
            run("mount", &["-o", "loop", copy.image().to_str().unwrap(), copy.root().to_str().unwrap()]);
            copies.push(copy);
        }
        for number in 0..20 {
            for copy in &copies {
                assert_eq!(std::fs::read(copy.root().join(format!("{number}"))).unwrap(), [number; 5000]);
            }
        }
        for copy in &copies {
            run("umount", &[copy.root().to_str().unwrap()]);
            run("btrfs", &["check", copy.image().to_str().unwrap()]);
        }
    }

    #[test]
    fn a_damaged_btrfs_keeps_its_fsid() {
        skip_unless!(missing(&["mkfs.btrfs"]).is_empty(), "needs btrfs-progs");
        let scratch = image(128, "mkfs.btrfs -q $0");
        open(&scratch).write_all_at(&[0xa5], BTRFS_AT + 0x300).unwrap();
        assert!(matches!(set_btrfs_fsid(&open(&scratch), NEW), Err(SetUuidError::Damaged)));
        let scratch = image(128, "mkfs.btrfs -q --csum sha256 $0");
        assert!(matches!(set_btrfs_fsid(&open(&scratch), NEW), Err(SetUuidError::OtherChecksum(2))));
        assert!(matches!(set_btrfs_fsid(&open(&Scratch::empty(1)), NEW), Err(SetUuidError::NotBtrfs)));
    }

    #[test]
    fn the_checksum_is_the_kernels() {
        // RFC 3720, B.4: 32 bytes of zeros, inverted at the end.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(head in proptest::collection::vec(any::<u8>(), 0..5000), magic in 0_usize..4) {
            let mut head = head;
            let (at, bytes): (usize, &[u8]) = [(0, &b"XFSB"[..]), (1080, b"\x53\xef"), (0x40, b"_BHRfS_M"), (0, b"")][magic];
            if let Some(part) = head.get_mut(at..at + bytes.len()) {
                part.copy_from_slice(bytes);
            }
            let _ = in_head(&head);
            let _ = btrfs(&head);
        }
    }
}
