//! Volumes that are directories: with project quotas where the kernel has them, and without.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod primitives;

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use common::{MIB, Place, Running, expect_code, mounted, process::Process, publication, request};
use keelson_proto::csi::v1::{
    ControllerModifyVolumeRequest, CreateVolumeRequest, GetCapacityRequest, NodeExpandVolumeRequest,
};
use primitives::{
    Filesystem,
    quota::{self, Limits},
};
use tonic::Code;

const EXT4: &[&str] = &["mkfs.ext4", "-q", "-O", "quota,project"];
const XFS: &[&str] = &["mkfs.xfs", "-q"];
const KINDS: [(&[&str], u64); 2] = [(EXT4, 256 << 20), (XFS, 512 << 20)];

/// The project ids that are the driver's.
const PROJECTS: std::ops::RangeInclusive<u32> = 0x4B00_0000..=0x4BFF_FFFF;

macro_rules! needs_quotas {
    () => {
        needs_a_kernel!();
        let missing = keelson_testkit::missing(&["mkfs.ext4", "mkfs.xfs"]);
        keelson_testkit::skip_unless!(missing.is_empty(), format!("needs {}", missing.join(", ")));
        let all = KINDS.iter().all(|(mkfs, bytes)| Filesystem::attempt(mkfs, *bytes, "prjquota").is_some());
        keelson_testkit::skip_unless!(
            all,
            "the kernel has no project quotas of ext4 and xfs (CONFIG_QFMT_V2, CONFIG_XFS_QUOTA)"
        );
    };
}

/// A place whose pool lies on the filesystem.
fn place_on(filesystem: &Filesystem) -> Place {
    let place = Place::new();
    fs::create_dir(filesystem.join("pool")).unwrap();
    common::disk::run(Command::new("mount").arg("--bind").args([filesystem.join("pool"), place.path("pool")]));
    place
}

/// Runs a program as a container would.
fn as_somebody(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").uid(65534).gid(65534).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

fn write(path: &Path, mib: u32) -> Result<(), String> {
    let (of, count) = (format!("of={}", path.display()), format!("count={}", mib * 16));
    as_somebody("dd", &["if=/dev/zero", &of, "bs=65536", &count, "conv=fsync"])
}

#[track_caller]
fn full(result: Result<(), String>) {
    let error = result.unwrap_err();
    // ext4 and xfs.
    assert!(error.contains("quota exceeded") || error.contains("No space left"), "{error}");
}

fn with_inodes(name: &str, bytes: i64, inodes: u32) -> CreateVolumeRequest {
    CreateVolumeRequest { mutable_parameters: inodes_of(inodes), ..request(name, bytes, mounted()) }
}

fn inodes_of(inodes: u32) -> BTreeMap<String, String> {
    BTreeMap::from([("inodes".to_owned(), inodes.to_string())])
}

async fn available(driver: &mut Running) -> i64 {
    let answer = driver.controller.get_capacity(GetCapacityRequest::default()).await.unwrap();
    answer.into_inner().available_capacity
}

async fn publish(place: &Place, driver: &mut Running, id: &str, name: &str) -> PathBuf {
    let (staging, target) = (place.text(&format!("staging/{name}")), place.path("pods").join(name));
    fs::create_dir(&staging).unwrap();
    driver.stage(id, &staging, mounted()).await.unwrap();
    driver.publish(publication(id, &staging, target.to_str().unwrap(), mounted())).await.unwrap();
    // As a kubelet with fsGroup would.
    for path in [place.path(""), place.path("pods"), target.clone()] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    target
}

async fn unpublish(place: &Place, driver: &mut Running, id: &str, name: &str) {
    driver.unpublish(id, &place.text(&format!("pods/{name}"))).await.unwrap();
    driver.unstage(id, &place.text(&format!("staging/{name}"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_more_bytes_or_files_than_the_volume_has_until_it_grows() {
    needs_quotas!();
    for (mkfs, bytes) in KINDS {
        eprintln!("{}", mkfs[0]);
        let filesystem = Filesystem::new(mkfs, bytes, "prjquota");
        let place = place_on(&filesystem);
        let mut driver = Running::start(&place, &place.section("directory")).await;
        let before = available(&mut driver).await;
        let volume = driver.create(with_inodes("pvc-1", 16 * MIB - 1, 10)).await.unwrap();
        assert_eq!(volume.capacity_bytes, 16 * MIB);
        let promised = before - available(&mut driver).await;
        assert!((16 * MIB..17 * MIB).contains(&promised), "{promised}");
        let other = driver.create(request("pvc-2", 16 * MIB, mounted())).await.unwrap().volume_id;
        expect_code(driver.create(request("pvc-3", 1 << 40, mounted())).await, Code::ResourceExhausted);
        let id = volume.volume_id;
        let pod = publish(&place, &mut driver, &id, "a").await;
        let neighbour = publish(&place, &mut driver, &other, "b").await;
        write(&pod.join("0"), 8).unwrap();
        full(write(&pod.join("0"), 32));
        write(&neighbour.join("0"), 12).unwrap();
        fs::remove_file(pod.join("0")).unwrap();
        let touch = |number: u32| as_somebody("touch", &[pod.join(number.to_string()).to_str().unwrap()]);
        // The directory is one.
        (1..10).for_each(|number| touch(number).unwrap());
        full(touch(10));
        let usage = rustix::fs::statvfs(&pod).unwrap();
        assert_eq!((usage.f_blocks * usage.f_frsize, usage.f_files), (16 << 20, 10), "what df shows");

        let change = |inodes| ControllerModifyVolumeRequest {
            volume_id: id.clone(),
            mutable_parameters: inodes_of(inodes),
            ..ControllerModifyVolumeRequest::default()
        };
        driver.controller.controller_modify_volume(change(12)).await.unwrap();
        touch(10).unwrap();
        touch(11).unwrap();
        full(touch(12));
        let grow = NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: pod.to_str().unwrap().to_owned(),
            capacity_range: request("", 32 * MIB, mounted()).capacity_range,
            ..NodeExpandVolumeRequest::default()
        };
        for _ in 0..2 {
            let grown = driver.node.node_expand_volume(grow.clone()).await.unwrap().into_inner();
            assert_eq!(grown.capacity_bytes, 32 * MIB);
        }
        write(&pod.join("1"), 24).unwrap();
        full(write(&pod.join("1"), 40));
        for (id, name) in [(&id, "a"), (&other, "b")] {
            unpublish(&place, &mut driver, id, name).await;
            driver.delete(id).await.unwrap();
        }
        place.expect_clean();
        assert_eq!(limited(&filesystem), [0; 0]);
        driver.stop().await;
    }
}

/// Our projects that have limits.
fn limited(filesystem: &Filesystem) -> Vec<u32> {
    let top = filesystem.open("");
    let mut found = quota::projects(&top, PROJECTS).unwrap();
    found.retain(|project| quota::quota(&top, *project).unwrap().limits != Limits::default());
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_volumes_have_one_project_whoever_is_killed() {
    needs_quotas!();
    for (mkfs, bytes) in KINDS {
        eprintln!("{}", mkfs[0]);
        let filesystem = Filesystem::new(mkfs, bytes, "prjquota");
        let place = place_on(&filesystem);
        let section = place.section("directory");
        let (process, clients) = Process::serve(&place, &section).await;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..16 {
            let mut controller = clients.controller.clone();
            let wanted = request(&format!("pvc-{number}"), MIB, mounted());
            calls.spawn(async move { controller.create_volume(wanted).await.unwrap() });
        }
        calls.join_all().await;
        drop((process, clients));
        assert_eq!(limited(&filesystem).len(), 16);

        // As kills leave them: one half made, one half deleted, limits of nothing; and one of another pool.
        let half = place.path("pool/building/v1-00000000000000000000000000000001/data");
        fs::create_dir_all(&half).unwrap();
        fs::create_dir(filesystem.join("foreign")).unwrap();
        let limits = Limits { bytes: Some(1 << 20), inodes: None };
        for (path, project) in [(half, 0x4B00_0100), (filesystem.join("foreign"), 0x4B00_0200)] {
            let directory = fs::File::open(path).unwrap();
            quota::assign(&directory, project).unwrap();
            quota::set_limits(&directory, project, limits).unwrap();
        }
        let top = filesystem.open("");
        quota::set_limits(&top, 0x4B00_0300, limits).unwrap();
        quota::set_limits(&top, 5, limits).unwrap();
        // And an administrator.
        quota::clear(&top, 0x4B00_0000).unwrap();

        let mut driver = Running::start(&place, &section).await;
        let mut left = limited(&filesystem);
        // xfs frees what was swept in the background, and it isn't a leak before.
        left.retain(|project| *project != 0x4B00_0100);
        assert_eq!(left, (0x4B00_0000..0x4B00_0010).chain([0x4B00_0200]).collect::<Vec<_>>());
        assert_eq!(quota::quota(&top, 5).unwrap().limits, limits, "not ours");
        drop(top);
        let id = driver.create(request("pvc-16", MIB, mounted())).await.unwrap().volume_id;
        assert!(limited(&filesystem).contains(&0x4B00_0010));
        let listed =
            driver.controller.list_volumes(keelson_proto::csi::v1::ListVolumesRequest::default()).await.unwrap();
        for entry in listed.into_inner().entries {
            driver.delete(&entry.volume.unwrap().volume_id).await.unwrap();
        }
        driver.delete(&id).await.unwrap();
        place.expect_clean();
        let mut left = limited(&filesystem);
        left.retain(|project| *project != 0x4B00_0100);
        assert_eq!(left, [0x4B00_0200]);
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_limits_a_directory_its_size_is_unknown_unless_asked_for() {
    needs_a_kernel!();
    let filesystem = Filesystem::new(&["mkfs.ext4", "-q"], 64 << 20, "rw");
    let place = place_on(&filesystem);
    let mut section = place.section("directory");
    for (told, capacity) in [(false, 0), (true, 12_345)] {
        section["pools"][0]["unenforcedSizes"] = told.into();
        let mut driver = Running::start(&place, &section).await;
        let before = available(&mut driver).await;
        let volume = driver.create(request("pvc-1", 12_345, mounted())).await.unwrap();
        assert_eq!(volume.capacity_bytes, capacity);
        assert!(before - available(&mut driver).await < MIB, "nothing is promised");
        expect_code(driver.create(with_inodes("pvc-2", MIB, 10)).await, Code::InvalidArgument);
        let pod = publish(&place, &mut driver, &volume.volume_id, if told { "a" } else { "b" }).await;
        write(&pod.join("file"), 4).unwrap();
        unpublish(&place, &mut driver, &volume.volume_id, if told { "a" } else { "b" }).await;
        driver.delete(&volume.volume_id).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}
