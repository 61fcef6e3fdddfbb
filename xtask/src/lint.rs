//! The gates that aren't tests.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use keelson_testkit::{missing, workspace_root};

use crate::run::{cargo, check};

/// Formatting, clippy with warnings as errors, and the documentation's links.
///
/// # Errors
///
/// The first gate that doesn't pass.
pub(crate) fn lint() -> Result<ExitCode> {
    // `cargo fmt` knows no --locked.
    check(Command::new("cargo").current_dir(workspace_root()).args(["fmt", "--all", "--check"]))?;
    check(cargo("clippy").args(["--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    check(cargo("doc").args(["--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    println!("formatting, clippy and documentation: ok");
    Ok(ExitCode::SUCCESS)
}

/// Licences, duplicates and sources of the dependencies, by `deny.toml`.
///
/// # Errors
///
/// When cargo-deny is missing or finds something.
pub(crate) fn deny() -> Result<ExitCode> {
    ensure!(
        missing(&["cargo-deny"]).is_empty(),
        "cargo-deny is missing; install it with: cargo install --locked cargo-deny"
    );
    // Advisories need a database that CI can't always reach; they are for whoever updates a dependency.
    check(
        Command::new("cargo")
            .current_dir(workspace_root())
            .args(["deny", "--locked", "check", "licenses", "bans", "sources"]),
    )?;
    Ok(ExitCode::SUCCESS)
}
