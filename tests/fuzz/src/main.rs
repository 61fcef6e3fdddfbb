//! `keelson-fuzz`: throws changed inputs at the parsers that meet the outside. `cargo xtask test fuzz` builds it with the
//! compiler's branch counters and runs it.
//!
//! The targets are plain functions of bytes that panic when a promise is broken, and the crates that they test have them
//! in a module `fuzzing`. An engine of our own drives them, because the usual ones come under licences that the
//! project doesn't take, or need a nightly compiler.

mod calls;
mod coverage;
mod engine;
mod messages;
mod mutate;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use keelson_cni::fuzzing as cni;
use keelson_csi::fuzzing as csi;

/// Where the seeds are: a directory for each target.
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds");

/// A parser, and what it promises.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
}

const TARGETS: [Target; 11] = [
    Target { name: "network", run: cni::network },
    Target { name: "environment", run: cni::environment },
    Target { name: "result", run: cni::result },
    Target { name: "store", run: cni::store },
    Target { name: "host_local", run: cni::host_local },
    Target { name: "netlink", run: cni::netlink },
    Target { name: "record", run: csi::record },
    Target { name: "pool", run: csi::pool },
    Target { name: "request", run: csi::request },
    Target { name: "kernel", run: csi::kernel },
    Target { name: "calls", run: calls::run },
];

/// Fuzzes the parsers that meet the outside.
#[derive(Debug, Parser)]
struct Options {
    /// The targets; all if none is named
    targets: Vec<String>,
    /// How long each target is fuzzed
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// What the random numbers start from; the same seed makes the same inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run the one target named on this file only
    #[arg(long)]
    input: Option<PathBuf>,
    /// Where an input that breaks a promise is written
    #[arg(long, default_value = "target/fuzz")]
    findings: PathBuf,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let (mut kept, mut broken) = (0, 0);
    for target in chosen(&options.targets)? {
        if let Some(path) = &options.input {
            let input = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
            (target.run)(&input);
            kept += 1;
        } else if fuzz(target, &options)? {
            kept += 1;
        } else {
            broken += 1;
        }
    }
    // As a test program says it, for `cargo xtask test`.
    let verdict = if broken == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {kept} passed; {broken} failed; 0 ignored");
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let find = |name: &String| match TARGETS.iter().find(|target| target.name == name) {
        Some(target) => Ok(target),
        None => bail!("there is no target {name}; there are: {}", TARGETS.map(|target| target.name).join(", ")),
    };
    names.iter().map(find).collect()
}

/// Whether the target kept its promises.
fn fuzz(target: &Target, options: &Options) -> Result<bool> {
    let duration = Duration::from_secs(options.seconds);
    match engine::fuzz(target.run, &seeds(target)?, duration, options.seed) {
        Ok(summary) => {
            println!(
                "{}: {} inputs, {} kept, {} of {} branches",
                target.name, summary.runs, summary.corpus, summary.taken, summary.branches
            );
            Ok(true)
        }
        Err(failure) => {
            fs::create_dir_all(&options.findings)?;
            let path = options.findings.join(format!("{}-{}", target.name, options.seed));
            fs::write(&path, &failure.input).with_context(|| format!("failed to write {}", path.display()))?;
            println!("{}: BROKEN by \"{}\"", target.name, failure.input.escape_ascii());
            println!("{}", failure.message);
            println!("again: cargo run -p keelson-fuzz -- {} --input {}", target.name, path.display());
            Ok(false)
        }
    }
}

/// The target's seeds, in the order of their names.
fn seeds(target: &Target) -> Result<Vec<Vec<u8>>> {
    let directory = Path::new(SEEDS).join(target.name);
    let entries = fs::read_dir(&directory).with_context(|| format!("failed to read {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(|path| fs::read(path).with_context(|| format!("failed to read {}", path.display()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_keeps_its_targets_promises() {
        for target in &TARGETS {
            let seeds = seeds(target).unwrap();
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            for seed in seeds {
                if let Err(message) = engine::run_once(target.run, &seed) {
                    panic!("{}: {}: {message}", target.name, seed.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn what_breaks_a_promise_is_found_and_made_small() {
        let broken = |input: &[u8]| assert!(!input.windows(2).any(|pair| pair == b"[["), "nested");
        let seeds = [br#"{"ranges": [1, 2], "name": "x"}"#.to_vec()];
        let failure = engine::fuzz(broken, &seeds, Duration::from_secs(600), 1).unwrap_err();
        assert_eq!(failure.input, b"[[");
        assert!(failure.message.contains("nested"), "{}", failure.message);
    }
}
