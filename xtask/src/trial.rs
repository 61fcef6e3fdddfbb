//! `cargo xtask try`: the samples through the whole suite.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};
use keelson_testkit::{Tool, workspace_root};

use crate::{
    machine::{PACKAGES, check_privileges, provide_packages, provide_tools},
    run::{cargo, check},
};

/// What `cargo xtask try` may be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Refuse to install or build third-party programs: say what is missing instead
    #[arg(long)]
    no_install: bool,
    /// Leave the Pods running, and say how to look and how to clean up
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove what an earlier run left, with --keep or by being killed
    #[arg(long)]
    clean: bool,
    /// Print the facts in this form
    #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
    output: String,
}

/// Installs, builds and runs.
///
/// # Errors
///
/// When the machine lacks something or the build fails. A stage that isn't verified is no error here but the exit
/// code of the trial itself.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    check_privileges()?;
    if !options.clean {
        provide_packages(&PACKAGES, options.no_install)?;
        provide_tools(&[Tool::Containerd], options.no_install)?;
    }
    eprintln!("Building Keelson");
    let packages = ["keelson", "keelson-cni", "keelson-nodelab"];
    let mut build = cargo("build");
    build.arg("--bins").stdout(Stdio::from(std::io::stderr()));
    for package in packages {
        build.args(["--package", package]);
    }
    check(&mut build)?;

    let mut nodelab = Command::new(target_directory().join("nodelab"));
    nodelab.current_dir(workspace_root());
    if options.clean {
        nodelab.arg("clean");
    } else {
        nodelab.args(["try", "--output", &options.output]);
        if options.keep {
            nodelab.arg("--keep");
        }
    }
    // In this process's place, so that Ctrl-C and the exit code are nodelab's own and the shell waits for its sweep.
    Err(nodelab.exec()).with_context(|| format!("failed to run {nodelab:?}"))
}

/// Where cargo puts the programs of the dev profile.
pub(crate) fn target_directory() -> std::path::PathBuf {
    // This program lies there itself.
    let own = std::env::current_exe().ok().and_then(|path| path.parent().map(std::path::Path::to_owned));
    own.unwrap_or_else(|| workspace_root().join("target/debug"))
}
