//! Project quotas of ext4 and xfs, against the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod primitives;

use std::{
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use keelson_testkit::wait_until;
use primitives::{
    Filesystem, MIB, errno,
    quota::{self, Enforcement, Limits, Quota, assign, assigned, clear, enforcement, projects, set_limits},
};

const PROJECT: u32 = 0x4B00_0000;
const OTHER: u32 = PROJECT + 7;
const EXT4: &[&str] = &["mkfs.ext4", "-q", "-O", "quota,project"];
const XFS: &[&str] = &["mkfs.xfs", "-q"];

/// Runs a test on a filesystem of each kind that can have project quotas here.
fn on_each(test: impl Fn(&Filesystem, &File)) {
    for (mkfs, bytes) in [(EXT4, 256 * MIB), (XFS, 512 * MIB)] {
        eprintln!("{}", mkfs[0]);
        let filesystem = Filesystem::new(mkfs, bytes, "prjquota");
        let top = filesystem.open("");
        test(&filesystem, &top);
    }
}

/// Why there are no project quotas here, if so.
fn lacking() -> Option<String> {
    let missing = keelson_testkit::missing(&["mkfs.ext4", "mkfs.xfs"]);
    if !missing.is_empty() {
        return Some(format!("needs {}", missing.join(", ")));
    }
    let mount = |mkfs, bytes| Filesystem::attempt(mkfs, bytes, "prjquota").is_some();
    let both = mount(EXT4, 256 * MIB) && mount(XFS, 512 * MIB);
    (!both).then(|| "the kernel has no project quotas of ext4 and xfs (CONFIG_QFMT_V2, CONFIG_XFS_QUOTA)".to_owned())
}

macro_rules! needs_quotas {
    () => {
        needs_a_kernel!();
        let lacking = lacking();
        keelson_testkit::skip_unless!(lacking.is_none(), lacking.unwrap_or_default());
    };
}

/// A directory of a volume that anybody may write to.
fn volume(filesystem: &Filesystem, name: &str, project: u32, limits: Limits) -> File {
    fs::create_dir(filesystem.join(name)).unwrap();
    fs::set_permissions(filesystem.join(name), Permissions::from_mode(0o777)).unwrap();
    let directory = filesystem.open(name);
    assign(&directory, project).unwrap();
    set_limits(&directory, project, limits).unwrap();
    directory
}

fn limits(bytes: u64, inodes: u64) -> Limits {
    Limits { bytes: Some(bytes), inodes: Some(inodes) }
}

/// Runs a program as a Pod would: root without CAP_SYS_RESOURCE is limited like this user.
fn as_somebody(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).env("LC_ALL", "C").uid(65534).gid(65534).output().unwrap()
}

/// Writes a file, and says what kept that from happening.
fn write(path: &Path, mib: u64) -> Result<(), String> {
    let of = format!("of={}", path.display());
    let output = as_somebody("dd", &["if=/dev/zero", &of, "bs=65536", &format!("count={}", mib * 16), "conv=fsync"]);
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[track_caller]
fn refused(result: Result<(), String>) {
    let error = result.unwrap_err();
    // ext4 and xfs.
    assert!(error.contains("quota exceeded") || error.contains("No space left"), "{error}");
}

#[test]
fn where_nothing_is_enforced_that_is_said() {
    needs_a_kernel!();
    let plain = Filesystem::new(&["mkfs.ext4", "-q"], 16 * MIB, "rw");
    assert_eq!(enforcement(plain.open("")).unwrap(), Enforcement::Off);
    assert_eq!(assigned(plain.open("")).unwrap(), None);
    assert!(assign(plain.open(""), PROJECT).is_err());
    assert!(set_limits(plain.open(""), PROJECT, limits(MIB, 1)).is_err());
    assert!(projects(plain.open(""), PROJECT..=OTHER).is_err());
}

#[test]
fn what_a_mount_enforces_is_told() {
    needs_quotas!();
    on_each(|_, top| assert_eq!(enforcement(top).unwrap(), Enforcement::Enforced));
    let counted = Filesystem::new(EXT4, 64 * MIB, "rw");
    assert_eq!(enforcement(counted.open("")).unwrap(), Enforcement::AccountingOnly);
    let counted = Filesystem::new(XFS, 512 * MIB, "pqnoenforce");
    assert_eq!(enforcement(counted.open("")).unwrap(), Enforcement::AccountingOnly);
    let off = Filesystem::new(XFS, 512 * MIB, "rw");
    assert_eq!(enforcement(off.open("")).unwrap(), Enforcement::Off);
    let users = Filesystem::new(XFS, 512 * MIB, "uquota");
    assert_eq!(enforcement(users.open("")).unwrap(), Enforcement::Off);
}

#[test]
fn nobody_writes_beyond_the_bytes() {
    needs_quotas!();
    on_each(|filesystem, top| {
        let directory = volume(filesystem, "v", PROJECT, limits(16 * MIB, 100));
        assert_eq!(assigned(&directory).unwrap(), Some(PROJECT));
        write(&filesystem.join("v/half"), 8).unwrap();
        let found = quota::quota(top, PROJECT).unwrap();
        assert_eq!(found.limits, limits(16 * MIB, 100));
        assert!(found.used_bytes >= 8 * MIB && found.used_bytes < 9 * MIB, "{found:?}");
        assert_eq!(found.used_inodes, 2, "the directory and the file");
        refused(write(&filesystem.join("v/more"), 16));
        assert!(quota::quota(top, PROJECT).unwrap().used_bytes <= 16 * MIB);
        // Also in a directory that was made in it.
        fs::remove_file(filesystem.join("v/more")).unwrap();
        let inner = as_somebody("mkdir", &[filesystem.join("v/inner").to_str().unwrap()]);
        assert!(inner.status.success(), "{inner:?}");
        refused(write(&filesystem.join("v/inner/more"), 16));
        // A neighbour has its own.
        volume(filesystem, "w", OTHER, limits(16 * MIB, 100));
        write(&filesystem.join("w/file"), 12).unwrap();

        // More, and less than there is.
        set_limits(top, PROJECT, limits(32 * MIB, 100)).unwrap();
        write(&filesystem.join("v/inner/more"), 16).unwrap();
        set_limits(top, PROJECT, limits(MIB, 100)).unwrap();
        refused(write(&filesystem.join("v/none"), 1));
        set_limits(top, PROJECT, Limits::default()).unwrap();
        write(&filesystem.join("v/none"), 32).unwrap();
    });
}

#[test]
fn nobody_makes_more_files_than_the_limit() {
    needs_quotas!();
    on_each(|filesystem, top| {
        volume(filesystem, "v", PROJECT, limits(16 * MIB, 10));
        let path = |number: u32| filesystem.join("v").join(number.to_string()).display().to_string();
        let touch = |numbers: std::ops::Range<u32>| {
            let paths: Vec<String> = numbers.map(path).collect();
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let output = as_somebody("touch", &paths);
            if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
        };
        // The directory is one.
        touch(0..9).unwrap();
        refused(touch(9..10));
        assert_eq!(quota::quota(top, PROJECT).unwrap().used_inodes, 10);
        set_limits(top, PROJECT, limits(16 * MIB, 12)).unwrap();
        touch(9..11).unwrap();
        refused(touch(11..12));
    });
}

#[test]
fn statfs_in_the_directory_shows_the_limits() {
    needs_quotas!();
    on_each(|filesystem, top| {
        let directory = volume(filesystem, "v", PROJECT, limits(16 * MIB, 100));
        write(&filesystem.join("v/file"), 4).unwrap();
        let usage = primitives::filesystem::usage(&directory).unwrap();
        assert_eq!((usage.total_bytes, usage.total_inodes), (16 * MIB, 100));
        assert!(usage.used_bytes >= 4 * MIB && usage.used_bytes < 5 * MIB, "{usage:?}");
        assert_eq!(usage.available_bytes, usage.total_bytes - usage.used_bytes);
        assert_eq!(usage.available_inodes, 98);
        assert!(primitives::filesystem::usage(top).unwrap().total_bytes > 100 * MIB);
    });
}

#[test]
fn nothing_comes_in_from_outside_without_being_counted() {
    needs_quotas!();
    on_each(|filesystem, top| {
        volume(filesystem, "v", PROJECT, limits(16 * MIB, 100));
        volume(filesystem, "w", OTHER, limits(16 * MIB, 100));
        for outside in ["file", "w/file"] {
            let (outside, inside) = (filesystem.join(outside), filesystem.join("v/file"));
            fs::write(&outside, b"x").unwrap();
            assert_eq!(errno(fs::rename(&outside, &inside)), libc::EXDEV);
            assert_eq!(errno(fs::hard_link(&outside, &inside)), libc::EXDEV);
        }
        assert_eq!(quota::quota(top, PROJECT).unwrap().used_inodes, 1);
        // The volume itself is renamed freely, with its project.
        fs::create_dir(filesystem.join("volumes")).unwrap();
        fs::rename(filesystem.join("v"), filesystem.join("volumes/v")).unwrap();
        assert_eq!(assigned(filesystem.open("volumes/v")).unwrap(), Some(PROJECT));
    });
}

#[test]
fn the_projects_in_use_are_listed_until_nothing_has_their_id() {
    needs_quotas!();
    on_each(|filesystem, top| {
        assert_eq!(projects(top, PROJECT..=OTHER).unwrap(), [0; 0]);
        assert_eq!(quota::quota(top, PROJECT).unwrap(), Quota::default());
        let unlimited = volume(filesystem, "v", PROJECT, Limits::default());
        volume(filesystem, "w", OTHER, limits(16 * MIB, 100));
        volume(filesystem, "foreign", OTHER + 1, limits(16 * MIB, 100));
        assert_eq!(projects(top, PROJECT..=OTHER).unwrap(), [PROJECT, OTHER]);
        assert_eq!(projects(top, PROJECT + 1..=OTHER).unwrap(), [OTHER]);
        assert_eq!(projects(top, PROJECT + 1..=OTHER - 1).unwrap(), [0; 0]);
        assert_eq!(projects(top, 1..=u32::MAX - 1).unwrap(), [PROJECT, OTHER, OTHER + 1]);
        drop(unlimited);
        for name in ["v", "w"] {
            fs::remove_dir(filesystem.join(name)).unwrap();
        }
        // Limits alone are remembered; xfs frees inodes in the background.
        wait_until("the inodes to be freed", Duration::from_secs(60), || {
            (projects(top, PROJECT..=OTHER).unwrap() == [OTHER]).then_some(())
        });
        for _ in 0..2 {
            clear(top, OTHER).unwrap();
            clear(top, OTHER + 100).unwrap();
        }
        assert_eq!(projects(top, PROJECT..=OTHER).unwrap(), [0; 0]);
        assert_eq!(quota::quota(top, OTHER).unwrap(), Quota::default());
    });
}
