//! `keelson storage`: what the node's pools hold and have left, what is wrong with them, and what to do about it.

mod df;
mod fsck;
mod gc;
mod list;
mod operations;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use keelson_csi::{
    StorageSection, StorageSettings,
    operator::{DamagedReport, Finding, Severity},
};
use keelson_host::{HostRoot, Problems};

use super::{Format, HostArguments};
use crate::{config::NodeConfig, error::Failure, plugins::PluginKind};

#[derive(Debug, Subcommand)]
pub(super) enum StorageCommand {
    /// Show each pool: its space, what is promised and left, what it holds, what it can do
    Df(df::DfArguments),
    /// List volumes, snapshots or groups of snapshots
    Ls(list::ListArguments),
    /// Show everything behind a volume: record, image, loop devices, mounts, Pods, relatives, operations
    Show(show::ShowArguments),
    /// Compare records, images and kernel, and tell a remedy for each finding; repairs nothing
    Fsck(fsck::FsckArguments),
    /// Remove what is nobody's: leftovers, records and loop devices of deleted volumes; never a volume or snapshot
    Gc(gc::GcArguments),
}

/// Which pools, and how to print.
#[derive(Debug, Args)]
struct NodeArguments {
    /// The node's config, which names the pools
    #[arg(long, value_name = "FILE", default_value = "/etc/keelson/config.yaml")]
    config: PathBuf,
    #[command(flatten)]
    host: HostArguments,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl NodeArguments {
    fn load(&self) -> Result<(NodeConfig, StorageSettings), Failure> {
        let config = NodeConfig::load(&self.config, HostRoot::at(&self.host.host_root))?;
        let judged = |problems: Problems| Failure::Section { path: self.config.clone(), problems };
        let section: StorageSection = config.section(PluginKind::Storage).map_err(judged)?;
        let settings = section.validate(config.node()).map_err(judged)?;
        Ok((config, settings))
    }

    fn settings(&self) -> Result<StorageSettings, Failure> {
        Ok(self.load()?.1)
    }

    fn is_json(&self) -> bool {
        self.output == Format::Json
    }
}

pub(super) fn run(command: &StorageCommand) -> Result<(), Failure> {
    match command {
        StorageCommand::Df(arguments) => df::run(arguments),
        StorageCommand::Ls(arguments) => list::run(arguments),
        StorageCommand::Show(arguments) => show::run(arguments),
        StorageCommand::Fsck(arguments) => fsck::run(arguments),
        StorageCommand::Gc(arguments) => gc::run(arguments),
    }
}

/// A finding as people read it, its place and its remedy on lines of their own.
fn finding_text(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let Finding { check, subject, place, problem, remedy, .. } = finding;
    let [subject, place, problem, remedy] = [subject, place, problem, remedy].map(|text| plain(text));
    format!("{severity} [{check}] {subject}: {problem}\n    at: {place}\n    remedy: {remedy}\n")
}

/// `text` on one line, and harmless to a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// `text`, or a dash for none.
fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).map_or_else(|| "-".to_owned(), plain)
}

/// Bytes in the unit that fits, with one digit after the point: 4096B, 1.5Ki, 64.0Mi.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let Some(power) = bytes.checked_ilog2().map(|bits| (bits / 10) as usize).filter(|power| *power > 0) else {
        return format!("{bytes}B");
    };
    // One less than 2^64 has 6 tens of bits.
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[power - 1])
}

fn size_or_dash(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), size)
}

fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

/// Says on standard error which pools a list lacks.
fn tell_unread(pools: &[String]) {
    for pool in pools {
        eprintln!("keelson: pool {pool} could not be read, so what it holds is missing here; see `keelson storage df`");
    }
}

/// Says on standard error what a list lacks because its record can't be read.
fn tell_damaged<'a>(damaged: impl Iterator<Item = &'a DamagedReport>) {
    for DamagedReport { id, pool, .. } in damaged {
        let id = plain(id);
        eprintln!(
            "keelson: the record of {id} in pool {pool} can't be read, so it is missing here; see `keelson storage show {id}`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        for (bytes, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0Ki"),
            (1536, "1.5Ki"),
            (64 << 20, "64.0Mi"),
            ((1 << 30) - 1, "1023.9Mi"),
            (5 << 40, "5.0Ti"),
            (u64::MAX, "15.9Ei"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }
}
