//! A filesystem of a test's own, in a file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use nix::mount::{MntFlags, umount2};

/// A mounted filesystem; gone when dropped.
pub(crate) struct Disk(PathBuf);

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
        Self(point.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Its loop device goes with the last mount.
        while umount2(&self.0, MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// Runs a command that must succeed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
