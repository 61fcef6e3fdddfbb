//! `keelson network gc`.

use clap::Args;
use keelson_cni::operator::{Collected, GcEntry, GcRequest, gc};

use super::{PlaceArguments, plain};
use crate::{
    command::{
        Format,
        output::{print, print_json},
    },
    error::Failure,
};

#[derive(Debug, Args)]
pub(in crate::command) struct GcArguments {
    /// Free the attachments of these containers and no others: ids, or their beginnings
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Only tell what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Free the named containers' attachments even if processes run in their namespace
    #[arg(long, requires = "containers")]
    force: bool,
    #[command(flatten)]
    places: PlaceArguments,
}

/// Tells everything that was freed, skipped and removed, and fails if something could not be freed.
pub(super) fn run(arguments: &GcArguments) -> Result<(), Failure> {
    let settings = arguments.places.settings()?;
    let request =
        GcRequest { containers: arguments.containers.clone(), dry_run: arguments.dry_run, force: arguments.force };
    let collected = gc(&arguments.places.places(settings.as_ref()), &request)?;
    if arguments.places.output == Format::Json {
        print_json(&collected)?;
    } else {
        let text: String = collected.iter().map(|network| text(network, arguments.dry_run)).collect();
        print(if text.is_empty() { "nothing to free\n" } else { &text })?;
    }
    match collected.iter().map(|network| network.failed.len()).sum() {
        0 => Ok(()),
        failed => Err(Failure::Collection { failed }),
    }
}

fn text(collected: &Collected, dry_run: bool) -> String {
    let (freed, removed) = if dry_run { ("would free", "would remove") } else { ("freed", "removed") };
    let network = &collected.network;
    let line = |done: &str, entry: &GcEntry| {
        let addresses = entry.addresses.join(", ");
        format!(
            "{network}: {done} {} ({}) [{addresses}]: {}\n",
            plain(&entry.owner),
            plain(&entry.container_id),
            plain(&entry.reason)
        )
    };
    let mut text = String::new();
    text.extend(collected.freed.iter().map(|entry| line(freed, entry)));
    text.extend(collected.skipped.iter().map(|entry| line("left alone", entry)));
    text.extend(collected.failed.iter().map(|entry| line("failed to free", entry)));
    text.extend(collected.removed.iter().map(|path| format!("{network}: {removed} {}\n", plain(path))));
    text
}
