//! What the tests of this room share: filesystems of their own on loop devices, and a helper that is this executable.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use tempfile::TempDir;

use super::{Helper, helper_main};

/// A filesystem on an image of its own, mounted; all of it goes when this is dropped.
pub(super) struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// Formats an image of `mebibytes` and mounts it.
    pub(super) fn new(filesystem: &str, mebibytes: u64) -> Self {
        let scratch = Self::formatted(filesystem, mebibytes);
        run("mount", &["-o", "loop", scratch.image().to_str().unwrap(), scratch.root().to_str().unwrap()]);
        scratch
    }

    /// Formats an image of `mebibytes`, without mounting it.
    pub(super) fn formatted(filesystem: &str, mebibytes: u64) -> Self {
        let scratch = Self::empty(mebibytes);
        run(&format!("mkfs.{filesystem}"), &["-q", scratch.image().to_str().unwrap()]);
        scratch
    }

    /// An image of `mebibytes` of zeros.
    pub(super) fn empty(mebibytes: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("keelson-csi-").tempdir_in("/var/tmp").unwrap();
        let scratch = Self { directory };
        std::fs::create_dir(scratch.root()).unwrap();
        File::create_new(scratch.image()).unwrap().set_len(mebibytes << 20).unwrap();
        scratch
    }

    /// Where the filesystem is mounted, once it is.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub(super) fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-q", "-l", self.root().to_str().unwrap_or_default()]).status();
        let _ = Command::new("sh")
            .args([
                "-c",
                "losetup -j \"$0\" -O NAME -n | xargs -r losetup -d",
                self.image().to_str().unwrap_or_default(),
            ])
            .status();
    }
}

/// Runs a program of the system that must succeed; gives what it prints.
#[track_caller]
pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes that don't repeat within a block, and that differ from `seed` to `seed`.
pub(super) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(step).flatten().take(length).collect()
}

/// The names in `directory`, in order.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A helper that is this very test program. libtest prints to standard output before a test starts, so the answers
/// take another way there and back: the shell gives the real one as descriptor 3.
pub(super) fn helper() -> Helper {
    let script = "export HELPER_VERB=\"$1\"; exec \"$0\" --exact kernel::testing::helper_process --ignored \
                  --nocapture 3>&1 >/dev/null";
    let this = std::env::current_exe().unwrap().into_os_string();
    Helper::new("/bin/sh", ["-c".into(), script.into(), this]).with_deadline(Duration::from_secs(120))
}

/// No test, but the process of [`helper`].
#[test]
#[ignore = "is run by other tests, as their helper"]
fn helper_process() {
    let Some(verb) = std::env::var_os("HELPER_VERB") else { return };
    let answers = File::options().write(true).open("/proc/self/fd/3").unwrap();
    nix::unistd::dup2_stdout(&answers).unwrap();
    let code = helper_main([verb]);
    std::process::exit(i32::from(code != ExitCode::SUCCESS));
}
