//! `keelson inspect`: the picture of the host that every plugin decides on.

use std::{fs, io};

use clap::Args;
use keelson_host::{HostRoot, Inspection};

use super::{
    Format, HostArguments,
    output::{print, print_json},
};
use crate::error::Failure;

#[derive(Debug, Args)]
pub(super) struct InspectArguments {
    #[command(flatten)]
    host: HostArguments,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints all that could be read, and fails if something could not.
pub(super) fn run(arguments: &InspectArguments) -> Result<(), Failure> {
    let root = &arguments.host.host_root;
    // Otherwise each part would complain on its own.
    fs::read_dir(root).map_err(|error| Failure::System {
        action: "look at the host",
        source: io::Error::new(error.kind(), format!("{}: {error}", root.display())),
    })?;
    let inspection = Inspection::read(&HostRoot::at(root));
    match arguments.output {
        Format::Text => print(&format!("{inspection}\n"))?,
        Format::Json => print_json(&inspection)?,
    }
    if inspection.unread.is_empty() {
        return Ok(());
    }
    Err(Failure::Inspect { unread: inspection.unread })
}
