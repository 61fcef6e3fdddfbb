//! The programs that are measured, built as they are shipped.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// The nearest peer in Rust, a published crate; only the bench runs it. A newer one needs nothing but this changed.
const NETAVARK: &str = "1.17.2";

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

/// The CSI driver without the supervisor.
pub(crate) fn keelson_csi_alone() -> Result<PathBuf> {
    build("keelson-csi", "keelson-csi-alone", Build::Release)
}

/// A program that ends at once, built as the CNI executable is.
pub(crate) fn nothing() -> Result<PathBuf> {
    build("keelson-benches", "keelson-bench-nothing", Build::Static)
}

/// How long a program that takes no input runs, started in the calling thread's namespaces.
pub(crate) fn start(program: &Path) -> Result<Duration> {
    let mut command = Command::new(program);
    // The same pipes as those of the programs that are held against it.
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output().with_context(|| format!("failed to run {}", program.display()))?;
    let time = start.elapsed();
    ensure!(output.status.success(), "{} failed: {}", program.display(), output.status);
    Ok(time)
}

/// netavark, built once and kept where the tools of the tests are.
///
/// # Errors
///
/// When it can't be downloaded or built, with cargo's own words; its build needs protoc.
pub(crate) fn netavark() -> Result<PathBuf> {
    let root = keelson_testkit::cache_dir()?.join(format!("netavark-{NETAVARK}"));
    let program = root.join("bin/netavark");
    if program.is_file() {
        return Ok(program);
    }
    ensure!(keelson_testkit::missing(&["protoc"]).is_empty(), "it is built with protoc: install protobuf-compiler");
    eprintln!("building netavark {NETAVARK}, once");
    fs::create_dir_all(&root).with_context(|| format!("failed to create {}", root.display()))?;
    let version = format!("={NETAVARK}");
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // Not in the workspace, whose settings are none of its business. It goes into place when it is whole.
        .current_dir(&root)
        .args(["install", "--quiet", "--locked", "netavark", "--bin", "netavark", "--version", &version, "--root"])
        .arg(&root)
        .output()
        .context("failed to run cargo")?;
    ensure!(output.status.success(), "cargo install failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(program)
}

fn build(package: &str, program: &str, build: Build) -> Result<PathBuf> {
    eprintln!("building {program}");
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let root = keelson_testkit::workspace_root();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&root).args(["build", "--quiet", "--locked", "--package", package, "--bin", program]);
    match build {
        // With --target, RUSTFLAGS reach the program only, and not the build scripts.
        Build::Static => cargo
            .args(["--profile", "cni", "--target", &target])
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static"),
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
