//! `keelson storage fsck`.

use std::time::Duration;

use clap::Args;
use keelson_csi::operator::{FsckReport, FsckRequest, fsck};

use super::{NodeArguments, finding_text};
use crate::{
    command::output::{print, print_json},
    error::Failure,
};

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 nothing is wrong, 1 there are findings, 2 not everything could be looked at, \
                        78 the config can't be used")]
pub(in crate::command) struct FsckArguments {
    /// Only these volumes and snapshots, by id or name
    #[arg(value_name = "ID|NAME")]
    selectors: Vec<String>,
    /// Also run e2fsck, xfs_repair or btrfs check, read-only, on what isn't in use
    #[arg(long)]
    deep: bool,
    /// How long such a program may take for one volume
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, requires = "deep")]
    deadline: u64,
    #[command(flatten)]
    node: NodeArguments,
}

pub(super) fn run(arguments: &FsckArguments) -> Result<(), Failure> {
    let request = FsckRequest {
        selectors: arguments.selectors.clone(),
        deep: arguments.deep,
        deadline: Some(Duration::from_secs(arguments.deadline)),
    };
    let report = fsck(&arguments.node.settings()?, &request).map_err(Failure::StorageUnseen)?;
    if arguments.node.is_json() {
        print_json(&report)?;
    } else {
        print(&text(&report, arguments.deep))?;
    }
    match (report.unread_pools.len(), report.wrong()) {
        (0, 0) => Ok(()),
        (0, findings) => Err(Failure::StorageFindings { findings }),
        _ => Err(Failure::StorageUnread { pools: report.unread_pools }),
    }
}

fn text(report: &FsckReport, deep: bool) -> String {
    let mut text: String = report.findings.iter().map(finding_text).collect();
    let deeply =
        if deep { format!(", {} of them by their filesystem's program", report.checked_deeply) } else { String::new() };
    let verdict = if report.wrong() == 0 && report.unread_pools.is_empty() { "nothing is wrong; " } else { "" };
    text.push_str(&format!("{verdict}looked at {} volumes and snapshots{deeply}\n", report.checked));
    text
}
