//! `keelson storage gc`.

use clap::Args;
use keelson_csi::operator::{Collected, GcEntry, GcRequest, gc};

use super::{NodeArguments, plain};
use crate::{
    command::output::{print, print_json},
    error::Failure,
};

#[derive(Debug, Args)]
pub(in crate::command) struct GcArguments {
    /// Only tell what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Let go of a deleted image's loop device even if a process has it open; then it goes at the last close
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    node: NodeArguments,
}

/// Tells everything that was removed and left alone, and fails if something could not be removed.
pub(super) fn run(arguments: &GcArguments) -> Result<(), Failure> {
    let request = GcRequest { dry_run: arguments.dry_run, force: arguments.force };
    let collected = gc(&arguments.node.settings()?, request)?;
    if arguments.node.is_json() {
        print_json(&collected)?;
    } else {
        let text = text(&collected, arguments.dry_run);
        print(if text.is_empty() { "nothing to remove\n" } else { &text })?;
    }
    match collected.failed.len() {
        0 => Ok(()),
        failed => Err(Failure::StorageCollection { failed }),
    }
}

fn text(collected: &Collected, dry_run: bool) -> String {
    let removed = if dry_run { "would remove" } else { "removed" };
    let line = |done: &str, entry: &GcEntry| {
        format!("{done} {} {}: {}\n", entry.what, plain(&entry.place), plain(&entry.reason))
    };
    let mut text = String::new();
    text.extend(collected.removed.iter().map(|entry| line(removed, entry)));
    text.extend(collected.skipped.iter().map(|entry| line("left alone", entry)));
    text.extend(collected.failed.iter().map(|entry| line("failed to remove", entry)));
    text
}
