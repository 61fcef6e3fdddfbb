//! The calls of keelson-cni beside the reference plugins, netavark and the floors that none can go below.
//!
//! Everything happens in network namespaces of the bench's own that play hosts, one for each program that is measured,
//! so that the machine's links and rules are neither touched nor measured. Samples are interleaved: what disturbs one
//! disturbs the others.

mod breakdown;
mod burst;
mod executable;
mod fullness;
mod netavark;
mod one;
mod plugins;
mod subject;
mod verbs;

use std::{
    env,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use keelson_testkit::{Tool, is_root, missing};
use tempfile::TempDir;

use crate::{programs, report::Report};

/// A group of measurements that share what they are measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// ADD and DEL, one at a time
    One,
    /// 32 and 110 ADDs at once
    Burst,
    /// ADD with many addresses in use
    Fullness,
    /// STATUS and VERSION
    Verbs,
    /// The executable's size, and the system calls of an ADD
    Executable,
    /// Where the time of an ADD goes
    Breakdown,
}

/// The programs that are measured, and where they keep their state.
struct Bench {
    keelson: PathBuf,
    nothing: PathBuf,
    /// The directory with the reference plugins.
    reference: PathBuf,
    /// Or why it isn't there.
    netavark: Result<PathBuf, String>,
    state: TempDir,
    /// `PATH` of everything that is measured.
    path: PathBuf,
}

pub(crate) fn measure(samples: usize, groups: &[Group]) -> Result<Report> {
    let chosen = |group| groups.is_empty() || groups.contains(&group);
    let netavark = if chosen(Group::One) {
        programs::netavark().map_err(|error| format!("{error:#}"))
    } else {
        Err("only ADDs and DELs one at a time are compared with it".to_owned())
    };
    let bench = Bench::new(netavark)?;
    let mut report = Report::default();
    if chosen(Group::One) {
        report.comparisons.extend(one::measure(&bench, samples)?);
    }
    if chosen(Group::Burst) {
        report.comparisons.extend(burst::measure(&bench, samples)?);
    }
    if chosen(Group::Fullness) {
        report.comparisons.extend(fullness::measure(&bench, samples)?);
    }
    if chosen(Group::Verbs) {
        report.comparisons.extend(verbs::measure(&bench, samples)?);
    }
    if chosen(Group::Executable) {
        report.figures.extend(executable::measure(&bench)?);
    }
    if chosen(Group::Breakdown) {
        report.breakdowns.push(breakdown::measure(&bench, samples)?);
    }
    report.notes = vec![
        "each call is one start of the program, timed from outside, into a fresh network namespace".to_owned(),
        "each program has a host of its own, with one Pod attached all the time, and its state in memory, as /run is"
            .to_owned(),
        "the peers use nftables, as keelson-cni does, and find nft but no iptables: with both, a DEL of the reference \
         cleans up twice, and fails where its iptables is iptables-nft 1.8.9"
            .to_owned(),
    ];
    if let Err(reason) = &bench.netavark {
        report.notes.push(format!("netavark skipped: {reason}"));
    }
    Ok(report)
}

impl Bench {
    fn new(netavark: Result<PathBuf, String>) -> Result<Self> {
        ensure!(is_root(), "measuring CNI plugins makes network namespaces: run it as root");
        let missing = missing(&["ip", "nft", "strace"]);
        ensure!(missing.is_empty(), "missing on PATH: {}: install iproute2, nftables and strace", missing.join(", "));
        let reference = Tool::CniPlugins.ensure().context("failed to build the reference plugins")?;
        let state = tempfile::tempdir_in("/dev/shm").context("failed to make a directory in /dev/shm")?;
        let path = state.path().join("bin");
        std::fs::create_dir(&path)?;
        symlink(program("nft")?, path.join("nft"))?;
        Ok(Self { keelson: programs::keelson_cni()?, nothing: programs::nothing()?, reference, netavark, state, path })
    }

    /// A fresh directory for the state of one subject.
    fn state(&self, name: &str) -> Result<PathBuf> {
        let parent = self.state.path();
        Ok(tempfile::Builder::new().prefix(name).tempdir_in(parent)?.keep())
    }
}

/// Where a program of the bench's own PATH is: what is measured has another.
fn program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory: PathBuf| directory.join(name))
        .find(|path: &PathBuf| Path::is_file(path))
        .with_context(|| format!("{name} is not on PATH"))
}
