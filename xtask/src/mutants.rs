//! `cargo xtask mutants`: does a test notice when the code decides otherwise?
//!
//! cargo-mutants changes one thing at a time in what is pure or nearly so, and runs the unit tests. What survives stands in
//! `cni/mutants.md` with the reason why no test can or should notice it; anything else that survives is a missing test.

use std::{collections::BTreeSet, fs, path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use keelson_testkit::{cache_dir, workspace_root};

use crate::run::{cargo, check};

/// The version of cargo-mutants: another one finds other mutants.
const VERSION: &str = "27.1.0";

/// What is changed: decisions, parsers and the store.
const FILES: [&str; 3] = ["cni/src/policy/**", "cni/src/config/**", "cni/src/store/**"];

/// The survivors that are known, a list item each: the mutant in backquotes, then the reason.
const KNOWN: &str = "cni/mutants.md";

/// What `cargo xtask mutants` may be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The files to change, as globs; all that are pure or nearly so if none is named
    files: Vec<String>,
    /// The part of all mutants to try, such as 0/8
    #[arg(long)]
    shard: Option<String>,
}

/// Runs cargo-mutants and compares what survived with the known survivors.
///
/// # Errors
///
/// When cargo-mutants can't be installed or doesn't get to its end.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let root = cache_dir()?.join(format!("cargo-mutants-{VERSION}"));
    let program = root.join("bin/cargo-mutants");
    if !program.exists() {
        eprintln!("Building cargo-mutants {VERSION} into {} (once; minutes)", root.display());
        check(cargo("install").args(["--quiet", "--version", VERSION, "--root"]).arg(&root).arg("cargo-mutants"))?;
    }
    let mut command = std::process::Command::new(&program);
    command.current_dir(workspace_root()).args(["mutants", "--package", "keelson-cni", "--output", "target"]);
    let defaults = FILES.map(str::to_owned);
    for file in if options.files.is_empty() { defaults.as_slice() } else { &options.files } {
        command.args(["--file", file]);
    }
    if let Some(shard) = &options.shard {
        command.args(["--shard", shard]);
    }
    // Fewer cases of each property test: a mutant that only one in 256 notices shows a weak test, too.
    let status = command.args(["--", "--lib"]).env("PROPTEST_CASES", "64").status().context("failed to run it")?;
    // 2 and 3: some survived, or ran for ever, which is noticed as well.
    ensure!(matches!(status.code(), Some(0 | 2 | 3)), "cargo-mutants ended with {status}");
    let missed = workspace_root().join("target/mutants.out/missed.txt");
    let text = fs::read_to_string(&missed).with_context(|| format!("failed to read {}", missed.display()))?;
    let known = known(&workspace_root().join(KNOWN))?;
    let new: Vec<String> = text.lines().map(without_position).filter(|mutant| !known.contains(mutant)).collect();
    for mutant in &new {
        println!("survived: {mutant}");
    }
    println!("{} survived, {} of them unknown to {KNOWN}", text.lines().count(), new.len());
    Ok(if new.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn known(path: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(text.lines().filter_map(|line| Some(line.strip_prefix("- `")?.split_once('`')?.0.to_owned())).collect())
}

/// The mutant without line and column, which change with every edit.
///
/// Sample: `cni/src/policy/allocate.rs:36:9: replace pick -> bool with true`
fn without_position(line: &str) -> String {
    let mut parts = line.splitn(4, ':');
    let (file, mutation) = (parts.next().unwrap_or_default(), parts.nth(2).unwrap_or_default());
    format!("{file}:{mutation}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_is_known_by_file_and_mutation() {
        let line = "cni/src/policy/allocate.rs:36:9: replace < with <= in Range::size";
        assert_eq!(without_position(line), "cni/src/policy/allocate.rs: replace < with <= in Range::size");
    }
}
