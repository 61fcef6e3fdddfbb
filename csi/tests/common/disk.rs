//! A filesystem of a test's own, in a file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use keelson_testkit::wait_until;
use nix::mount::{MntFlags, umount2};

/// A mounted filesystem; gone when dropped.
pub(crate) struct Disk {
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    /// Makes a filesystem in a new file at `image`, and mounts it at `point`.
    pub(crate) fn make(image: &Path, filesystem: &str, bytes: u64, point: &Path) -> Self {
        File::create_new(image).unwrap().set_len(bytes).unwrap();
        let quiet = if filesystem == "ext4" { "-Fq" } else { "-fq" };
        run(Command::new(format!("mkfs.{filesystem}")).arg(quiet).arg(image));
        Self::mount(image, point)
    }

    /// Mounts the filesystem in the file `image`.
    pub(crate) fn mount(image: &Path, point: &Path) -> Self {
        fs::create_dir_all(point).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).args([image, point]));
        Self { image: image.to_owned(), point: point.to_owned() }
    }

    /// Unmounts it, and waits until the kernel has let go of the file.
    pub(crate) fn unmount(self) {
        let patience = Duration::from_secs(60);
        let unmounted = || umount2(&self.point, MntFlags::empty()).is_ok().then_some(());
        wait_until("the disk to be unmounted", patience, unmounted);
        // A mount namespace that others made meanwhile has a copy for a moment.
        wait_until("the disk's loop device to be gone", patience, || (!is_backing(&self.image)).then_some(()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Its loop device goes with the last mount.
        while umount2(&self.point, MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// Whether a loop device has this file.
fn is_backing(image: &Path) -> bool {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let mut files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.any(|file| Path::new(file.trim_end()) == image)
}

/// Runs a command that must succeed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
