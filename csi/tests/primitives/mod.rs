//! The parts of the driver that touch the kernel, built into the test because they are no interface of the crate, and
//! filesystems of a test's own.

#![allow(dead_code, unused_imports, reason = "each test file uses another part of it")]

use std::{
    env,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

#[path = "../../src/kernel/filesystem.rs"]
pub(crate) mod filesystem;
#[path = "../../src/kernel/quota/mod.rs"]
pub(crate) mod quota;
#[path = "../../src/kernel/subvolume/mod.rs"]
pub(crate) mod subvolume;
#[path = "../../src/kernel/sys.rs"]
mod sys;

pub(crate) const MIB: u64 = 1 << 20;

/// A filesystem in an image, mounted; gone with everything when dropped.
pub(crate) struct Filesystem {
    directory: TempDir,
    mounted: bool,
}

impl Filesystem {
    /// `mkfs` is the program with its arguments.
    pub(crate) fn new(mkfs: &[&str], bytes: u64, options: &str) -> Self {
        let mut filesystem = Self::formatted(mkfs, bytes);
        filesystem.mount(options);
        filesystem
    }

    /// The same, or none if it can't be mounted.
    pub(crate) fn attempt(mkfs: &[&str], bytes: u64, options: &str) -> Option<Self> {
        let mut filesystem = Self::formatted(mkfs, bytes);
        filesystem.mounted = filesystem.mount_command(options).output().unwrap().status.success();
        filesystem.mounted.then_some(filesystem)
    }

    fn formatted(mkfs: &[&str], bytes: u64) -> Self {
        let parent = env::var_os(keelson_testkit::VM_DISK).map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let directory = tempfile::Builder::new().prefix("keelson-csi-").tempdir_in(parent).unwrap();
        // Somebody else writes to it, too.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let filesystem = Self { directory, mounted: false };
        fs::create_dir(filesystem.path()).unwrap();
        File::create(filesystem.image()).unwrap().set_len(bytes).unwrap();
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(filesystem.image()));
        filesystem
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A handle of one of its directories.
    pub(crate) fn open(&self, name: &str) -> File {
        File::open(self.join(name)).unwrap()
    }

    fn mount(&mut self, options: &str) {
        run(&mut self.mount_command(options));
        self.mounted = true;
    }

    fn mount_command(&self, options: &str) -> Command {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("loop,{options}")]).arg(self.image()).arg(self.path());
        command
    }

    fn unmount(&mut self) {
        if self.mounted {
            run(Command::new("umount").arg(self.path()));
            self.mounted = false;
        }
    }

    /// What a loss of power would leave: everything that the filesystem hasn't given to its disk yet is gone.
    pub(crate) fn lose_power(&mut self, options: &str) {
        let copy = self.directory.path().join("copy");
        run(Command::new("cp").args(["--sparse=always"]).arg(self.image()).arg(&copy));
        self.unmount();
        fs::rename(copy, self.image()).unwrap();
        self.mount(options);
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        if self.mounted {
            // The test may fail with something open.
            let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes `bytes` that can't be compressed or shared to a new file, and says how far it got.
pub(crate) fn fill(path: &Path, bytes: u64) -> (u64, io::Result<()>) {
    use std::io::Write;
    let mut file = match File::create(path) {
        Ok(file) => file,
        Err(error) => return (0, Err(error)),
    };
    let block = vec![0xA5_u8; 64 << 10];
    let mut written = 0;
    while written < bytes {
        match file.write(&block) {
            Ok(count) => written += count as u64,
            Err(error) => return (written, Err(error)),
        }
    }
    (written, file.sync_all())
}

/// The error number of a call that must fail.
#[track_caller]
pub(crate) fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("it must fail"),
        Err(error) => error.raw_os_error().unwrap(),
    }
}
