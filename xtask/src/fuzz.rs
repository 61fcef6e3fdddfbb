//! The fuzz tier: `keelson-fuzz`, compiled with LLVM's branch counters.

use std::{env, path::Path, process::Command};

use crate::run::cargo;

/// What makes the compiler count branches (SanitizerCoverage); no nightly compiler is needed for these.
const COUNTERS: &str = "-C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=3 \
                        -C llvm-args=-sanitizer-coverage-inline-8bit-counters";

/// Fuzzes every target for `seconds`.
pub(crate) fn command(seconds: u64) -> Command {
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut command = cargo("run");
    command
        .args(["--quiet", "--release", "--package", "keelson-fuzz"])
        // With --target, RUSTFLAGS reach the program only, and not the build scripts. A directory of its own keeps
        // the counted build and the plain one from replacing each other.
        .args(["--target", &target, "--target-dir", "target/fuzz"])
        .args(["--", "--seconds", &seconds.to_string()])
        .env("RUSTFLAGS", COUNTERS)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    // The store's target makes files for every input.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    command
}
