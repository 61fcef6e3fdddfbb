//! The mutants tier: does a unit test notice when the code decides otherwise?
//!
//! cargo-mutants changes one thing at a time in what is pure or nearly so, and runs the unit tests. What survives stands in
//! the crate's `mutants.md` with the reason why no unit test can or should notice it; anything else that survives is a
//! missing test.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use keelson_testkit::{cache_dir, workspace_root};

use crate::run::{cargo, check};

/// The version of cargo-mutants: another one finds other mutants.
const VERSION: &str = "27.1.0";

/// What is changed: decisions, parsers and the store.
const FILES: [&str; 6] = [
    "cni/src/policy/**",
    "cni/src/config/**",
    "cni/src/store/**",
    "csi/src/policy/**",
    "csi/src/store/**",
    "csi/src/kernel/superblock.rs",
];

/// The survivors that are known, a list item each: the mutant in backquotes, then the reason.
const KNOWN: [&str; 2] = ["cni/mutants.md", "csi/mutants.md"];

/// Which mutants are tried.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// In the mutants tier, change only these files (may be repeated)
    #[arg(long, value_name = "GLOB", default_values = FILES)]
    file: Vec<String>,
    /// In the mutants tier, try only this part of all mutants, such as 0/8
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
}

/// What became of the mutants that compile, each `file: mutation`.
#[derive(Debug)]
pub(crate) struct Mutants {
    pub(crate) caught: usize,
    /// The tests ran for more than five times as long as without the change, which a loaded machine can do, too.
    pub(crate) timed_out: Vec<String>,
    /// Nothing noticed these, with a reason in [`KNOWN`].
    pub(crate) known: usize,
    /// Nothing noticed these.
    pub(crate) missed: Vec<String>,
}

/// Runs cargo-mutants, and compares what survived with the known survivors.
///
/// # Errors
///
/// When cargo-mutants can't be installed or doesn't get to its end.
pub(crate) fn run(selection: &Selection) -> Result<Mutants> {
    let root = cache_dir()?.join(format!("cargo-mutants-{VERSION}"));
    let program = root.join("bin/cargo-mutants");
    if !program.exists() {
        eprintln!("Building cargo-mutants {VERSION} into {} (once; minutes)", root.display());
        check(
            cargo("install")
                .args(["--quiet", "--debug", "--version", VERSION, "--root"])
                .arg(&root)
                .arg("cargo-mutants"),
        )?;
    }
    let mut command = Command::new(&program);
    command.current_dir(workspace_root()).args(["mutants", "--output", "target"]);
    command.args(["--package", "keelson-cni", "--package", "keelson-csi"]);
    // For the build as well: without it, every mutant is linked into every test program.
    command.args(["--cargo-arg=--lib", "--minimum-test-timeout=60", "--exclude=**/fuzzing.rs"]);
    for file in &selection.file {
        command.args(["--file", file]);
    }
    if let Some(shard) = &selection.shard {
        command.args(["--shard", shard]);
    }
    // Back traces are of no use here, and the longest tests, a file torn at each of its bytes, take longer than all the
    // others. A mutant that only one in 256 cases notices shows a weak test, too.
    command.args(["--", "--", "--skip", "torn::a_file_torn", "--skip", "torn::an_altered_byte"]);
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("PROPTEST_CASES", "32");
    // The copy of the tree, what is built of it, and what the store's tests sync.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    let status = command.status().with_context(|| format!("failed to run {}", program.display()))?;
    // 2 and 3: some survived, or timed out.
    ensure!(matches!(status.code(), Some(0 | 2 | 3)), "cargo-mutants ended with {status}");

    let mut known = BTreeSet::new();
    for path in KNOWN {
        known.extend(survivors(&read(path)?));
    }
    let survived = list("missed")?;
    let missed: Vec<_> = survived.iter().filter(|mutant| !known.contains(*mutant)).cloned().collect();
    Ok(Mutants {
        caught: list("caught")?.len(),
        timed_out: list("timeout")?,
        known: survived.len() - missed.len(),
        missed,
    })
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(workspace_root().join(path)).with_context(|| format!("failed to read {path}"))
}

/// The mutants that came to `outcome`.
fn list(outcome: &str) -> Result<Vec<String>> {
    Ok(read(&format!("target/mutants.out/{outcome}.txt"))?.lines().map(without_position).collect())
}

fn survivors(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| Some(line.strip_prefix("- `")?.split_once('`')?.0.to_owned())).collect()
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
        let list = "# Text\n\n- `cni/src/policy/allocate.rs: replace < with <= in Range::size`: a reason.\n";
        assert_eq!(survivors(list), BTreeSet::from([without_position(line)]));
    }
}
