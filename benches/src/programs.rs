//! The programs that are measured, built as they are shipped.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// How cargo builds a program for shipping.
#[derive(Clone, Copy, Debug)]
enum Build {
    /// Static, the `cni` profile.
    Static,
    /// The `release` profile.
    Release,
}

/// The CNI executable.
pub(crate) fn keelson_cni() -> Result<PathBuf> {
    build("keelson-cni", "keelson-cni", Build::Static)
}

/// The daemon and command line.
pub(crate) fn keelson() -> Result<PathBuf> {
    build("keelson", "keelson", Build::Release)
}

/// A program that ends at once, built as the CNI executable is.
pub(crate) fn nothing() -> Result<PathBuf> {
    build("keelson-benches", "keelson-bench-nothing", Build::Static)
}

fn build(package: &str, program: &str, build: Build) -> Result<PathBuf> {
    eprintln!("building {program}");
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let root = keelson_testkit::workspace_root();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&root).args(["build", "--quiet", "--locked", "--package", package, "--bin", program]);
    match build {
        // With --target, RUSTFLAGS reach the program only, and not the build scripts.
        Build::Static => {
            cargo.args(["--profile", "cni", "--target", &target]).env("RUSTFLAGS", "-C target-feature=+crt-static")
        }
        Build::Release => cargo.arg("--release"),
    };
    let status = cargo.status().context("failed to run cargo")?;
    ensure!(status.success(), "cargo failed to build {program}");
    let directory = match build {
        Build::Static => Path::new(&target).join("cni"),
        Build::Release => PathBuf::from("release"),
    };
    let target_dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let path = target_dir.join(directory).join(program);
    path.canonicalize().with_context(|| format!("cargo left no {}", path.display()))
}
