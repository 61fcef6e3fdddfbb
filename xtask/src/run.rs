//! Running other programs.

use std::{env, process::Command};

use anyhow::{Context, Result, ensure};
use keelson_testkit::workspace_root;

/// The cargo that runs this xtask, in the workspace's root, held to the lock file.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root()).args([subcommand, "--locked"]);
    command
}

/// Runs `command` to its end.
///
/// # Errors
///
/// When it can't be started or doesn't succeed, with its command line.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("failed to run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
