//! A Pod that swaps directories for symbolic links while its volume is published and unpublished.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::{MIB, Place, Running, block, mounted, publication, request};
use keelson_proto::csi::v1::VolumeCapability;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};
use tonic::Code;

/// The volume is published and unpublished at least as often while the swapping goes on, and there are at least as many
/// swaps.
const ROUNDS: usize = 60;

/// Puts each of two paths where the other is, again and again; what is in use may refuse.
struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicUsize>,
    thread: thread::JoinHandle<()>,
}

impl Swapper {
    fn start(one: PathBuf, two: PathBuf) -> Self {
        let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&swaps));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match exchange(&one, &two) {
                    Ok(()) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                    Err(Errno::EBUSY | Errno::ENOENT) => {}
                    Err(error) => panic!("{error}"),
                }
                thread::yield_now();
            }
        });
        Self { stop, swaps, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn exchange(one: &Path, two: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, one, AT_FDCWD, two, RenameFlags::RENAME_EXCHANGE)
}

/// Everything below `path`: inode numbers and contents.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            found.extend(snapshot(&path));
        }
        let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        found.insert(path, (metadata.ino(), content));
    }
    found
}

/// What the Pod must not get at, shaped like the place of its own: `host/mount`, and more.
fn make_host(place: &Place, capability: &VolumeCapability) -> PathBuf {
    let host = place.path("host");
    fs::create_dir_all(host.join("secrets")).unwrap();
    fs::write(host.join("secrets/key"), b"precious").unwrap();
    // Empty, so that it looks just like what the driver makes to mount on, and removes.
    if *capability == mounted() {
        fs::create_dir(host.join("mount")).unwrap();
    } else {
        fs::write(host.join("mount"), b"").unwrap();
    }
    host
}

/// Publishes and unpublishes while `one` and `two` change places.
async fn publish_while_swapped(
    place: &Place,
    driver: &mut Running,
    capability: &VolumeCapability,
    target: &str,
    (one, two): (PathBuf, PathBuf),
) {
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", 16 * MIB, capability.clone())).await.unwrap().volume_id;
    driver.stage(&id, &staging, capability.clone()).await.unwrap();
    let host = place.path("host");
    let before = snapshot(&host);

    let swapper = Swapper::start(one.clone(), two.clone());
    // A path that is found to be a link, or another thing than it was a moment ago, is refused; nothing else may be.
    let check = |result: Result<(), tonic::Status>| {
        if let Err(status) = result {
            let expected = [Code::InvalidArgument, Code::FailedPrecondition, Code::Internal];
            assert!(expected.contains(&status.code()), "{status}");
        }
    };
    let mut rounds = 0;
    while rounds < ROUNDS || swapper.swaps.load(Ordering::Relaxed) < ROUNDS {
        rounds += 1;
        check(driver.publish(publication(&id, &staging, target, capability.clone())).await);
        let outside = |mount: &&keelson_host::Mount| mount.point.starts_with(&host);
        assert_eq!(place.mounts().iter().find(outside), None);
        check(driver.unpublish(&id, target).await);
    }
    swapper.stop();

    // Nothing outside was mounted on, removed, made or changed.
    assert_eq!(snapshot(&host), before);
    if fs::symlink_metadata(&one).is_ok_and(|found| found.is_symlink()) {
        // The Pod may have moved the very directory that the volume was being mounted on: its own loss.
        if place.mounts().iter().any(|mount| mount.point == two) {
            nix::mount::umount(&two).unwrap();
        }
        if two.exists() {
            exchange(&one, &two).unwrap();
        } else {
            fs::rename(&one, &two).unwrap();
        }
    }
    // With the swapping over, what may be left is undone by a retry.
    keelson_testkit::wait_until_async("the volume to be unpublished", Duration::from_secs(60), async || {
        driver.unpublish(&id, target).await.ok()
    })
    .await;
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    assert_eq!(snapshot(&host), before);
    place.expect_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_swapped_for_a_link_leads_nowhere() {
    needs_a_kernel!();
    for (kind, capability) in [("image", block()), ("directory", mounted())] {
        let place = Place::new();
        let host = make_host(&place, &capability);
        fs::create_dir(place.path("pods/uid")).unwrap();
        symlink(&host, place.path("pods/evil")).unwrap();
        let mut driver = Running::start(&place, &place.section(kind)).await;
        let pair = (place.path("pods/uid"), place.path("pods/evil"));
        publish_while_swapped(&place, &mut driver, &capability, &place.text("pods/uid/mount"), pair).await;
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_further_up_that_is_swapped_for_a_link_leads_nowhere() {
    needs_a_kernel!();
    let (place, capability) = (Place::new(), mounted());
    let host = make_host(&place, &capability);
    fs::create_dir_all(place.path("pods/uid/volumes")).unwrap();
    // Behind the link is a directory of the same name.
    symlink(host.parent().unwrap(), place.path("pods/evil")).unwrap();
    symlink(&host, place.path("volumes")).unwrap();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let pair = (place.path("pods/uid"), place.path("pods/evil"));
    publish_while_swapped(&place, &mut driver, &capability, &place.text("pods/uid/volumes/mount"), pair).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_swapped_for_a_link_leads_nowhere() {
    needs_a_kernel!();
    let (place, capability) = (Place::new(), mounted());
    let host = make_host(&place, &capability);
    fs::create_dir(place.path("pods/mount")).unwrap();
    symlink(host.join("mount"), place.path("pods/evil")).unwrap();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let pair = (place.path("pods/mount"), place.path("pods/evil"));
    publish_while_swapped(&place, &mut driver, &capability, &place.text("pods/mount"), pair).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unpublish_verifies_that_it_unmounted_and_never_deletes_recursively() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let id = driver.create(request("pvc-1", MIB, mounted())).await.unwrap().volume_id;
    driver.stage(&id, &staging, mounted()).await.unwrap();
    // Mounted four times on top of each other, on a directory with data of somebody else.
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    fs::write(place.path("pods/mount/file"), b"the volume's").unwrap();
    place.unmount("pods/mount");
    fs::write(place.path("pods/mount/below"), b"precious").unwrap();
    for _ in 0..4 {
        place.bind("staging", "pods/mount");
    }
    let status = driver.unpublish(&id, &target).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert_eq!(place.mount_at("pods/mount"), None);
    assert_eq!(fs::read(place.path("pods/mount/below")).unwrap(), b"precious");
    assert_eq!(fs::read(place.path("staging/file")).unwrap(), b"the volume's");

    // A mount of somebody else on top: what is under it is still mounted, so nothing is removed.
    fs::remove_file(place.path("pods/mount/below")).unwrap();
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    place.mount_tmpfs("pods/mount", "size=1m");
    let status = driver.unpublish(&id, &target).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    place.unmount("pods/mount");
    assert_eq!(fs::read(place.path("pods/mount/file")).unwrap(), b"the volume's");
    driver.unpublish(&id, &target).await.unwrap();
    assert_eq!(fs::read(place.path("staging/file")).unwrap(), b"the volume's");
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}
