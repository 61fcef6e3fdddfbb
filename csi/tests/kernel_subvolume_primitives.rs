//! Subvolumes and their limits, against the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod primitives;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    time::Duration,
};

use keelson_testkit::wait_until;
use primitives::{
    Filesystem, MIB, errno, fill,
    subvolume::{
        self, Figures, QuotaKind, SubvolumeError, SubvolumeId, Support, commit, create, delete, figures, find, nested,
        qgroup::Removal, quota_state, snapshot,
    },
};

/// Returns from the calling test where there is no btrfs.
macro_rules! needs_btrfs {
    () => {
        needs_a_kernel!();
        keelson_testkit::skip_unless!(
            keelson_testkit::missing(&["mkfs.btrfs"]).is_empty(),
            "needs mkfs.btrfs of btrfs-progs"
        );
        let kinds = fs::read_to_string("/proc/filesystems").unwrap();
        keelson_testkit::skip_unless!(kinds.contains("\tbtrfs\n"), "the kernel has no btrfs");
    };
}

/// What makes the figures those of now.
#[allow(unsafe_code, reason = "no crate of ours wraps these two")]
mod call {
    use std::{fs::File, os::fd::AsRawFd};

    // include/uapi/linux/btrfs.h: `_IO(0x94, 8)`, `_IO(0x94, 46)`
    nix::ioctl_none!(sync, 0x94, 8);
    nix::ioctl_none!(wait_for_rescan, 0x94, 46);

    /// Puts everything on the disk, which is what figures count.
    pub(crate) fn settle(filesystem: &File) {
        // SAFETY: the call takes no argument, and the file is open.
        unsafe { sync(filesystem.as_raw_fd()) }.unwrap();
    }

    /// Waits for the end of a count, if one is under way.
    pub(crate) fn wait_for_count(filesystem: &File) {
        // SAFETY: as above.
        unsafe { wait_for_rescan(filesystem.as_raw_fd()) }.unwrap();
    }
}

/// Transactions end when we say so.
const OPTIONS: &str = "commit=300";

/// A btrfs with the directories of a pool.
fn pool() -> Filesystem {
    let filesystem = Filesystem::new(&["mkfs.btrfs", "-q"], 512 * MIB, OPTIONS);
    for name in ["building", "volumes"] {
        fs::create_dir(filesystem.join(name)).unwrap();
    }
    filesystem
}

/// The same with limits.
fn limited_pool() -> (Filesystem, File) {
    let filesystem = pool();
    let top = filesystem.open("");
    subvolume::enable_quota(&top).unwrap();
    call::wait_for_count(&top);
    (filesystem, top)
}

fn made(directory: &File, name: &str) -> SubvolumeId {
    create(directory, name).unwrap();
    find(directory, name).unwrap().unwrap()
}

fn figures_of(file: &File, id: SubvolumeId) -> Figures {
    call::settle(file);
    figures(file, id).unwrap().unwrap()
}

#[track_caller]
fn error_of<T>(result: Result<T, SubvolumeError>) -> i32 {
    errno(result.map_err(|error| error.source))
}

#[test]
fn what_a_filesystem_can_do_is_found_out_by_doing_it() {
    needs_btrfs!();
    let pool = pool();
    let building = pool.open("building");
    create(&building, "probe").unwrap();
    assert!(matches!(subvolume::probe(&building, "probe").unwrap(), Support::Full));
    assert_eq!(fs::read_dir(pool.join("building")).unwrap().count(), 0);
    fs::create_dir(pool.join("building/precious")).unwrap();
    assert!(matches!(subvolume::probe(&building, "precious").unwrap(), Support::Refused(_)));
    assert!(pool.join("building/precious").exists());
    let proc = File::open("/proc").unwrap();
    assert!(matches!(subvolume::probe(proc, "probe").unwrap(), Support::OtherFilesystem));
}

#[test]
fn a_subvolume_from_creation_to_deletion() {
    needs_btrfs!();
    let pool = pool();
    let (building, volumes) = (pool.open("building"), pool.open("volumes"));
    assert_eq!(find(&building, "v").unwrap(), None);
    let id = made(&building, "v");
    assert_eq!(error_of(create(&building, "v")), libc::EEXIST);
    assert_eq!(subvolume::id(pool.open("building/v")).unwrap(), Some(id));
    assert_eq!(subvolume::id(&building).unwrap(), None);
    fs::write(pool.join("building/v/file"), b"x").unwrap();

    fs::rename(pool.join("building/v"), pool.join("volumes/w")).unwrap();
    assert_eq!(find(&building, "v").unwrap(), None);
    assert_eq!(find(&volumes, "w").unwrap(), Some(id));
    assert_eq!(fs::read(pool.join("volumes/w/file")).unwrap(), b"x");

    assert_eq!(delete(&volumes, "w").unwrap(), Some(id));
    assert_eq!(delete(&volumes, "w").unwrap(), None);
    assert_ne!(made(&volumes, "w"), id, "an id is used once");
}

#[test]
fn what_is_no_subvolume_is_neither_found_nor_deleted() {
    needs_btrfs!();
    let pool = pool();
    let volumes = pool.open("volumes");
    create(&volumes, "v").unwrap();
    fs::create_dir(pool.join("volumes/directory")).unwrap();
    fs::write(pool.join("volumes/file"), b"x").unwrap();
    symlink("v", pool.join("volumes/link")).unwrap();
    for name in ["directory", "file", "link"] {
        assert_eq!(error_of(find(&volumes, name)), libc::ENOTDIR, "{name}");
        assert_eq!(error_of(delete(&volumes, name)), libc::ENOTDIR, "{name}");
        assert!(fs::symlink_metadata(pool.join("volumes").join(name)).is_ok(), "{name}");
    }
    for name in ["", ".", "..", "a/b"] {
        assert_eq!(error_of(create(&volumes, name)), libc::EINVAL, "{name}");
    }
    assert!(pool.join("volumes/v").exists());
}

#[test]
fn a_snapshot_holds_one_instant_and_needs_its_source_no_more() {
    needs_btrfs!();
    let pool = pool();
    let volumes = pool.open("volumes");
    create(&volumes, "source").unwrap();
    fs::write(pool.join("volumes/source/file"), b"before").unwrap();
    create(pool.open("volumes/source"), "inner").unwrap();
    fs::write(pool.join("volumes/source/inner/file"), b"x").unwrap();
    snapshot(pool.open("volumes/source"), &volumes, "frozen", true).unwrap();
    snapshot(pool.open("volumes/source"), &volumes, "clone", false).unwrap();
    fs::write(pool.join("volumes/source/file"), b"after").unwrap();
    delete(&volumes, "source").unwrap();

    let (frozen, clone) = (pool.open("volumes/frozen"), pool.open("volumes/clone"));
    let refused = fs::write(pool.join("volumes/frozen/new"), b"x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    fs::write(pool.join("volumes/clone/new"), b"x").unwrap();
    for name in ["frozen", "clone"] {
        assert_eq!(fs::read(pool.join("volumes").join(name).join("file")).unwrap(), b"before");
        let inner = pool.join("volumes").join(name).join("inner");
        assert_eq!(fs::read_dir(inner).unwrap().count(), 0, "what lies in the source isn't part of the snapshot");
    }
    assert_eq!(errno(fs::write(pool.join("volumes/frozen/file"), b"x")), libc::EROFS);
    fs::write(pool.join("volumes/clone/file"), b"its own").unwrap();
    assert_eq!(fs::read(pool.join("volumes/frozen/file")).unwrap(), b"before");
    // A read-only one stays in its directory, but that can be renamed. It can be cloned and deleted like any.
    let rename = fs::rename(pool.join("volumes/frozen"), pool.join("building/frozen"));
    assert_eq!(errno(rename), libc::EROFS);
    fs::rename(pool.join("volumes/frozen"), pool.join("volumes/again")).unwrap();
    fs::rename(pool.join("volumes"), pool.join("elsewhere")).unwrap();
    fs::rename(pool.join("elsewhere"), pool.join("volumes")).unwrap();
    snapshot(&frozen, pool.open("building"), "restored", false).unwrap();
    fs::write(pool.join("building/restored/file"), b"x").unwrap();
    drop((frozen, clone));
    for name in ["again", "clone"] {
        assert!(delete(&volumes, name).unwrap().is_some());
    }
}

#[test]
fn a_snapshot_of_something_else_is_refused() {
    needs_btrfs!();
    let (pool, other) = (pool(), Filesystem::new(&["mkfs.ext4", "-q"], 16 * MIB, "rw"));
    let volumes = pool.open("volumes");
    assert_eq!(error_of(snapshot(&volumes, &volumes, "s", false)), libc::EINVAL);
    assert_eq!(error_of(snapshot(other.open(""), &volumes, "s", false)), libc::EXDEV);
    assert_eq!(fs::read_dir(pool.join("volumes")).unwrap().count(), 0);
}

#[test]
fn subvolumes_that_lie_in_one_are_deleted_with_it_and_no_others() {
    needs_btrfs!();
    let pool = pool();
    let volumes = pool.open("volumes");
    let outer = made(&volumes, "v");
    create(&volumes, "neighbour").unwrap();
    fs::write(pool.join("volumes/neighbour/file"), b"x").unwrap();
    fs::create_dir_all(pool.join("volumes/v/deep/er")).unwrap();
    let inner = made(&pool.open("volumes/v/deep/er"), "inner");
    let innermost = made(&pool.open("volumes/v/deep/er/inner"), "innermost");
    fs::write(pool.join("volumes/v/deep/er/inner/innermost/file"), b"x").unwrap();
    snapshot(pool.open("volumes/v/deep/er/inner"), pool.open("volumes/v"), "frozen", true).unwrap();
    symlink("../neighbour", pool.join("volumes/v/link")).unwrap();
    symlink("../../../../neighbour", pool.join("volumes/v/deep/er/inner/link")).unwrap();

    let mut found = nested(&volumes, outer).unwrap();
    assert!(found.iter().position(|id| *id == inner) < found.iter().position(|id| *id == innermost));
    found.sort_unstable();
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(nested(&volumes, innermost).unwrap(), []);

    assert_eq!(delete(&volumes, "v").unwrap(), Some(outer));
    assert_eq!(nested(&volumes, outer).unwrap(), []);
    assert_eq!(fs::read(pool.join("volumes/neighbour/file")).unwrap(), b"x");
    assert_eq!(fs::read_dir(pool.join("volumes")).unwrap().count(), 1);
}

#[test]
fn many_subvolumes_that_lie_in_one_are_all_found() {
    needs_btrfs!();
    let pool = pool();
    let volumes = pool.open("volumes");
    let outer = made(&volumes, "v");
    let top = pool.open("volumes/v");
    // More than one answer of the kernel holds.
    let name = |number: u32| format!("{number}-{}", "x".repeat(240));
    let count = 100;
    (0..count).for_each(|number| create(&top, &name(number)).unwrap());
    assert_eq!(nested(&volumes, outer).unwrap().len(), 100);
    drop(top);
    assert_eq!(delete(&volumes, "v").unwrap(), Some(outer));
}

#[test]
fn what_was_committed_survives_a_loss_of_power() {
    needs_btrfs!();
    let mut pool = pool();
    let top = pool.open("");
    commit(&top).unwrap();
    // As the pool does it: a folder that holds the subvolume is renamed.
    for name in ["kept", "lost"] {
        let folder = pool.join("building").join(name);
        fs::create_dir(&folder).unwrap();
        create(File::open(&folder).unwrap(), "data").unwrap();
        let mut file = File::create(folder.join("data/file")).unwrap();
        io::Write::write_all(&mut file, b"x").unwrap();
        file.sync_all().unwrap();
    }
    fs::create_dir(pool.join("building/snapshot")).unwrap();
    snapshot(pool.open("building/kept/data"), pool.open("building/snapshot"), "data", true).unwrap();
    for name in ["kept", "snapshot"] {
        fs::rename(pool.join("building").join(name), pool.join("volumes").join(name)).unwrap();
    }
    commit(&top).unwrap();
    // The same without a commit: the test would be no test if this one survived.
    fs::rename(pool.join("building/lost"), pool.join("volumes/lost")).unwrap();
    drop(top);
    pool.lose_power(OPTIONS);
    for name in ["kept", "snapshot"] {
        assert_eq!(fs::read(pool.join("volumes").join(name).join("data/file")).unwrap(), b"x", "{name}");
    }
    assert!(!pool.join("volumes/lost").exists());
    assert!(pool.join("building/lost").exists());
}

#[test]
fn quotas_are_off_until_they_are_switched_on() {
    needs_btrfs!();
    let pool = pool();
    let top = pool.open("");
    let id = made(&pool.open("volumes"), "v");
    assert_eq!(quota_state(&top).unwrap(), None);
    assert_eq!(figures(&top, id).unwrap(), None);
    assert_eq!(error_of(subvolume::set_limit(&top, id, Some(MIB))), libc::ENOTCONN);
    assert_eq!(subvolume::remove_qgroup(&top, SubvolumeId(1 << 20)).unwrap(), Removal::Gone);
    let filesystem = primitives::filesystem::usage(&top).unwrap();
    assert_eq!(subvolume::usage(pool.open("volumes/v")).unwrap().total_bytes, filesystem.total_bytes);

    for _ in 0..2 {
        subvolume::enable_quota(&top).unwrap();
    }
    call::wait_for_count(&top);
    commit(&top).unwrap();
    let state = quota_state(&top).unwrap().unwrap();
    assert_eq!((state.kind, state.counting, state.inconsistent), (QuotaKind::Full, false, false));
    assert!(figures(&top, id).unwrap().is_some());
}

#[test]
fn what_was_there_before_quotas_is_counted() {
    needs_btrfs!();
    let pool = pool();
    let top = pool.open("");
    let id = made(&pool.open("volumes"), "v");
    fill(&pool.join("volumes/v/file"), 8 * MIB).1.unwrap();
    subvolume::enable_quota(&top).unwrap();
    for _ in 0..2 {
        // It may be under way already.
        subvolume::count_anew(&top).unwrap();
    }
    call::wait_for_count(&top);
    let found = figures_of(&top, id);
    assert!(found.referenced >= 8 * MIB && found.referenced < 9 * MIB, "{found:?}");
}

#[test]
fn who_writes_more_than_the_limit_gets_edquot() {
    needs_btrfs!();
    let (pool, top) = limited_pool();
    let volumes = pool.open("volumes");
    let id = made(&volumes, "v");
    for _ in 0..2 {
        subvolume::set_limit(&top, id, Some(16 * MIB)).unwrap();
    }
    fill(&pool.join("volumes/v/half"), 8 * MIB).1.unwrap();
    let found = figures_of(&top, id);
    assert_eq!(found.limit, Some(16 * MIB));
    assert!(found.referenced >= 8 * MIB && found.referenced < 9 * MIB, "{found:?}");
    let usage = subvolume::usage(pool.open("volumes/v")).unwrap();
    assert_eq!((usage.total_bytes, usage.used_bytes), (16 * MIB, found.referenced));
    assert_eq!(usage.available_bytes, 16 * MIB - found.referenced);

    let (written, result) = fill(&pool.join("volumes/v/more"), 16 * MIB);
    assert_eq!(errno(result), libc::EDQUOT);
    assert!(written > 6 * MIB && written < 8 * MIB, "{written}");
    let found = figures_of(&top, id);
    assert!(found.referenced <= 16 * MIB, "{found:?}");
    // And the same after a commit in between.
    assert_eq!(errno(fill(&pool.join("volumes/v/again"), 2 * MIB).1), libc::EDQUOT);
    // Another volume isn't concerned.
    create(&volumes, "other").unwrap();
    fill(&pool.join("volumes/other/file"), 32 * MIB).1.unwrap();

    // A full volume can be emptied.
    fs::remove_file(pool.join("volumes/v/more")).unwrap();
    call::settle(&top);
    fill(&pool.join("volumes/v/room"), 4 * MIB).1.unwrap();
    // A limit below what is there stops writes, and nothing else.
    subvolume::set_limit(&top, id, Some(4 * MIB)).unwrap();
    assert_eq!(errno(fill(&pool.join("volumes/v/none"), 2 * MIB).1), libc::EDQUOT);
    assert_eq!(subvolume::usage(pool.open("volumes/v")).unwrap().available_bytes, 0);
    // A larger one, and none, lets them through.
    for limit in [Some(64 * MIB), None] {
        subvolume::set_limit(&top, id, limit).unwrap();
        fill(&pool.join("volumes/v/large"), 20 * MIB).1.unwrap();
        assert_eq!(figures_of(&top, id).limit, limit);
    }
    fill(&pool.join("volumes/v/larger"), 80 * MIB).1.unwrap();
}

#[test]
fn a_subvolume_in_a_limited_one_is_found_and_has_figures_but_no_limit() {
    needs_btrfs!();
    let (pool, top) = limited_pool();
    let id = made(&pool.open("volumes"), "v");
    subvolume::set_limit(&top, id, Some(16 * MIB)).unwrap();
    let inner = made(&pool.open("volumes/v"), "inner");
    fill(&pool.join("volumes/v/inner/file"), 32 * MIB).1.unwrap();
    assert_eq!(nested(&top, id).unwrap(), [inner]);
    let found = figures_of(&top, inner);
    assert!(found.referenced >= 32 * MIB && found.limit.is_none(), "{found:?}");
    assert!(figures_of(&top, id).referenced < MIB);
}

#[test]
fn a_clone_refers_to_everything_and_has_the_limit_of_its_source_until_it_gets_its_own() {
    needs_btrfs!();
    let (pool, top) = limited_pool();
    let volumes = pool.open("volumes");
    let source = made(&volumes, "source");
    subvolume::set_limit(&top, source, Some(16 * MIB)).unwrap();
    fill(&pool.join("volumes/source/file"), 8 * MIB).1.unwrap();
    snapshot(pool.open("volumes/source"), &volumes, "clone", false).unwrap();
    let clone = find(&volumes, "clone").unwrap().unwrap();
    for id in [source, clone] {
        let found = figures_of(&top, id);
        assert!(found.referenced >= 8 * MIB && found.exclusive < MIB, "{id}: {found:?}");
        assert_eq!(found.limit, Some(16 * MIB), "{id}");
    }
    assert_eq!(errno(fill(&pool.join("volumes/clone/more"), 12 * MIB).1), libc::EDQUOT);
    fs::remove_file(pool.join("volumes/clone/more")).unwrap();
    call::settle(&top);
    subvolume::set_limit(&top, clone, Some(32 * MIB)).unwrap();
    fill(&pool.join("volumes/clone/more"), 12 * MIB).1.unwrap();
    let found = figures_of(&top, clone);
    assert!(found.referenced >= 20 * MIB && found.exclusive >= 12 * MIB && found.exclusive < 13 * MIB, "{found:?}");
    assert_eq!(figures_of(&top, source).limit, Some(16 * MIB));
    // What only the source held besides the clone is the clone's alone now.
    delete(&volumes, "source").unwrap();
    wait_until("the source's space", Duration::from_secs(60), || {
        call::settle(&top);
        (figures(&top, clone).unwrap().unwrap().exclusive >= 20 * MIB).then_some(())
    });
}

#[test]
fn the_qgroup_of_a_deleted_subvolume_goes_away_and_no_other() {
    needs_btrfs!();
    let (pool, top) = limited_pool();
    let volumes = pool.open("volumes");
    let (kept, gone) = (made(&volumes, "kept"), made(&volumes, "gone"));
    subvolume::set_limit(&top, kept, Some(16 * MIB)).unwrap();
    assert_eq!(subvolume::remove_qgroup(&top, kept).unwrap(), Removal::InUse);
    assert_eq!(figures_of(&top, kept).limit, Some(16 * MIB));
    fill(&pool.join("volumes/gone/file"), 8 * MIB).1.unwrap();
    call::settle(&top);
    delete(&volumes, "gone").unwrap();
    wait_until("the qgroup's removal", Duration::from_secs(60), || {
        call::settle(&top);
        (subvolume::remove_qgroup(&top, gone).unwrap() == Removal::Gone).then_some(())
    });
    assert_eq!(figures(&top, gone).unwrap(), None);
    assert!(figures(&top, kept).unwrap().is_some());
}
