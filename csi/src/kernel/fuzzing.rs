//! What the kernel, a disk and the helper's parent say, as any bytes.

#![allow(clippy::unwrap_used, reason = "a broken promise is a panic")]

use std::{fs::File, os::unix::fs::FileExt, path::Component};

use rustix::fs::{MemfdFlags, memfd_create};
use uuid::Uuid;

use super::{
    extents::extent,
    helper::{Request, decode_line, encode},
    subvolume::sys as btrfs,
    superblock::{self, Signature},
    sys::FiemapExtent,
};
use crate::policy::{Extent, FilesystemType, Physical, TargetPath, client_timeout};

/// The verbs of the helper.
const VERBS: [&str; 7] = ["mount", "bind", "unmount", "grow", "freeze", "thaw", "become"];

/// The first byte says which of them the rest is.
pub(crate) fn check(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    match which {
        b's' => disk(rest),
        b'e' => extents(rest),
        b'b' => btrfs_items(rest),
        b'h' => helper_line(rest),
        b't' => timeout(rest),
        _ => {}
    }
}

/// The start of a disk, from the byte that the first two bytes say, in KiB.
fn disk(bytes: &[u8]) {
    let Some((at, content)) = bytes.split_first_chunk::<2>() else { return };
    let at = u64::from(u16::from_le_bytes(*at) % 320) << 10;
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(content, at).unwrap();
    let before = superblock::read(&file).unwrap();
    let uuid = Uuid::from_u128(0x1234);
    let Some(head) = superblock::Head::read(&file, FilesystemType::Ext4).unwrap() else { return };
    match head.write_ext4(&file, uuid) {
        Ok(()) => {
            let Signature::Filesystem(before) = before else { panic!("{before:?} has another UUID now") };
            let after = superblock::Superblock { uuid, ..before };
            assert_eq!(superblock::read(&file).unwrap(), Signature::Filesystem(after));
        }
        Err(_) => assert_eq!(superblock::read(&file).unwrap(), before),
    }
}

/// FIEMAP's answer: (logical, physical, length: u64; flags: u32) each, and before them the range that was asked for.
fn extents(bytes: &[u8]) {
    let number =
        |bytes: &[u8], at: usize| bytes.get(at..at + 8).map(|part| u64::from_le_bytes(part.try_into().unwrap()));
    let (Some(from), Some(to)) = (number(bytes, 0), number(bytes, 8)) else { return };
    for record in bytes[16..].chunks_exact(28) {
        let mut found = FiemapExtent::default();
        found.logical = number(record, 0).unwrap();
        found.physical = number(record, 8).unwrap();
        found.bytes = number(record, 16).unwrap();
        found.flags = u32::from_le_bytes(record[24..28].try_into().unwrap());
        let whole = extent(&found);
        let Some(part) = whole.within(from, to) else { continue };
        assert!(part.bytes > 0 && part.logical >= from && part.end() <= to, "{whole:?} {part:?}");
        assert!(part.logical >= whole.logical && part.end() <= whole.end(), "{whole:?} {part:?}");
        check_place(&whole, &part);
    }
}

/// A part lies as far into its extent on the disk as it does in the file.
fn check_place(whole: &Extent, part: &Extent) {
    match (whole.physical, part.physical) {
        (Physical::At(whole_at), Physical::At(part_at)) => {
            assert_eq!(part_at, whole_at.saturating_add(part.logical - whole.logical));
        }
        (Physical::Unknown, Physical::Unknown) => {}
        other => panic!("{other:?}"),
    }
}

/// The answer to a search in a tree of btrfs: a count, and the items.
fn btrfs_items(bytes: &[u8]) {
    let Some((count, buffer)) = bytes.split_first() else { return };
    let Ok(items) = btrfs::parse(buffer, u32::from(*count)) else { return };
    assert_eq!(items.len(), usize::from(*count));
    assert!(items.iter().map(|item| item.content.len()).sum::<usize>() <= buffer.len());
    for item in &items {
        let numbers = (0..6).take_while(|index| item.number(*index).is_ok()).count();
        assert_eq!(numbers, (item.content.len() / 8).min(6));
    }
}

/// The line that a helper reads, as the arguments of every verb.
fn helper_line(line: &[u8]) {
    let Ok(line) = str::from_utf8(line) else { return };
    // The request with its verb, for a helper that was kept in stock.
    let _ = decode_line("wait", line);
    for verb in VERBS {
        let Ok(request) = decode_line(verb, line) else { continue };
        let (again, text) = encode(&request).unwrap();
        assert_eq!(again, verb);
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        let back = decode_line(verb, str::from_utf8(&text).unwrap()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{request:?}"));
        targets(&request).into_iter().for_each(check_target);
    }
}

fn targets(request: &Request) -> Vec<&TargetPath> {
    match request {
        Request::Mount { target, .. }
        | Request::Bind { target, .. }
        | Request::Unmount { target }
        | Request::Grow { target, .. }
        | Request::Thaw { target } => vec![target],
        Request::Freeze { targets, .. } => targets.iter().collect(),
        Request::Become { .. } => Vec::new(),
    }
}

fn check_target(target: &TargetPath) {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    assert!(target.as_path().is_absolute() && target.as_path().components().all(plain), "{target}");
    assert!(!target.name().is_empty() && target.as_path().starts_with(target.parent()), "{target}");
}

/// A header `grpc-timeout`.
fn timeout(header: &[u8]) {
    let Ok(header) = str::from_utf8(header) else { return };
    if client_timeout(header).is_some() {
        assert!((2..=9).contains(&header.len()), "{header:?}");
    }
}
