//! A filesystem of the bench's own on the root disk.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::run;

/// The size of the filesystem. The file is sparse: only what is written takes space.
const BYTES: u64 = 64 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filesystem {
    Xfs,
    Btrfs,
}

impl Filesystem {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// The mounted filesystem; unmounted, and its file removed, when dropped.
pub(super) struct Place {
    pub(super) filesystem: Filesystem,
    mount: PathBuf,
    device: String,
    _directory: TempDir,
}

impl Place {
    pub(super) fn new(filesystem: Filesystem) -> Result<Self> {
        // Not where temporary files may live in memory.
        let directory = tempfile::Builder::new().prefix("keelson-bench-").tempdir_in("/var/tmp")?;
        let (image, mount) = (directory.path().join("image"), directory.path().join(filesystem.name()));
        let kind = run("stat", &["-f", "-c", "%T", "/var/tmp"].map(OsStr::new))?;
        ensure!(kind.trim() != "tmpfs", "/var/tmp is in memory, where nothing is ever flushed");
        File::create_new(&image)?.set_len(BYTES)?;
        run(&format!("mkfs.{}", filesystem.name()), &["-q".as_ref(), image.as_os_str()])?;
        let device =
            run("losetup", &["--direct-io=on".as_ref(), "--find".as_ref(), "--show".as_ref(), image.as_ref()])?;
        let device = device.trim().to_owned();
        let place = Self { filesystem, mount, device, _directory: directory };
        fs::create_dir(&place.mount)?;
        run("mount", &[place.device.as_ref(), place.mount.as_os_str()])?;
        Ok(place)
    }

    pub(super) fn path(&self) -> &Path {
        &self.mount
    }

    /// A new directory in it.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.mount.join(name);
        fs::create_dir(&path).with_context(|| format!("failed to create {}", path.display()))?;
        Ok(path)
    }

    /// Writes everything that is left to write, so that the next sample doesn't.
    pub(super) fn settle(&self) -> Result<()> {
        rustix::fs::syncfs(File::open(&self.mount)?).context("failed to sync the filesystem")?;
        Ok(())
    }

    /// Gives what is free back to the root disk.
    pub(super) fn trim(&self) -> Result<()> {
        self.settle()?;
        run("fstrim", &[self.mount.as_os_str()])?;
        Ok(())
    }

    /// Sectors of 512 bytes that were read from its device so far.
    pub(super) fn sectors_read(&self) -> Result<u64> {
        let name = Path::new(&self.device).file_name().unwrap_or_default();
        let path = Path::new("/sys/block").join(name).join("stat");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        // Documentation/block/stat.rst: the third number.
        text.split_whitespace().nth(2).and_then(|value| value.parse().ok()).context("stat has three numbers")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[self.mount.as_os_str()]) {
            eprintln!("left behind: {error}");
        }
        if let Err(error) = run("losetup", &["-d".as_ref(), self.device.as_ref()]) {
            eprintln!("left behind: {error}");
        }
    }
}
