//! `keelson network import` and `export`: to this plugin from the reference's host-local, and back.

use std::{fs, path::PathBuf};

use clap::Args;
use keelson_cni::migration::{Migration, MigrationOutcome, MigrationReport, export_host_local, import_host_local};

use super::{or_dash, plain, settings};
use crate::{
    command::{
        ConfigArguments, Format,
        output::{print, print_json, table},
    },
    error::Failure,
};

#[derive(Debug, Args)]
struct NetworkArguments {
    /// The network's config with keelson-cni in it [default: the one that the node's config installs]
    #[arg(long, value_name = "FILE")]
    conflist: Option<PathBuf>,
    /// The network's name on host-local's side, if it is another
    #[arg(long, value_name = "NAME")]
    other_name: Option<String>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    config: ConfigArguments,
}

#[derive(Debug, Args)]
pub(in crate::command) struct ImportArguments {
    /// host-local's dataDir
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/networks")]
    from: PathBuf,
    /// Where the container runtime keeps the results of ADD, which tell interfaces and routes
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/results")]
    results: PathBuf,
    #[command(flatten)]
    network: NetworkArguments,
}

#[derive(Debug, Args)]
pub(in crate::command) struct ExportArguments {
    /// host-local's dataDir
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/networks")]
    to: PathBuf,
    /// Replace reservations that differ from the records, and remove those without a record
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) fn import(arguments: &ImportArguments) -> Result<(), Failure> {
    let mut migration = migration(&arguments.network)?;
    migration.reservations.clone_from(&arguments.from);
    migration.results.clone_from(&arguments.results);
    tell(&import_host_local(&migration)?, arguments.network.output)
}

pub(super) fn export(arguments: &ExportArguments) -> Result<(), Failure> {
    let mut migration = migration(&arguments.network)?;
    migration.reservations.clone_from(&arguments.to);
    migration.replace = arguments.replace;
    tell(&export_host_local(&migration)?, arguments.network.output)
}

fn migration(arguments: &NetworkArguments) -> Result<Migration, Failure> {
    let path = match &arguments.conflist {
        Some(path) => path.clone(),
        None => settings(&arguments.config.config, &arguments.config.host.host_root)?
            .ok_or(Failure::NoConflist)?
            .conflist_path(),
    };
    let config = fs::read(&path).map_err(|source| Failure::Conflist { path, source })?;
    let mut migration = Migration::new(config);
    migration.other_name.clone_from(&arguments.other_name);
    migration.dry_run = arguments.dry_run;
    Ok(migration)
}

/// Tells what became of each attachment, and fails if something stays to be done by hand.
fn tell(report: &MigrationReport, output: Format) -> Result<(), Failure> {
    if output == Format::Json {
        print_json(report)?;
    } else {
        let mut rows = vec![["POD", "CONTAINER", "IFNAME", "ADDRESSES", "OUTCOME", "DETAIL"].map(str::to_owned)];
        rows.extend(report.entries.iter().map(|entry| {
            let addresses: Vec<String> = entry.addresses.iter().map(ToString::to_string).collect();
            let outcome = match (entry.outcome, report.dry_run) {
                (MigrationOutcome::Migrated, false) => "migrated",
                (MigrationOutcome::Migrated, true) => "would migrate",
                (MigrationOutcome::AlreadyThere, _) => "there already",
                (MigrationOutcome::Removed, false) => "removed",
                (MigrationOutcome::Removed, true) => "would remove",
                (MigrationOutcome::Skipped, _) => "skipped",
            };
            [
                or_dash(&entry.pod),
                or_dash(&entry.container_id),
                or_dash(&entry.ifname),
                or_dash(&addresses.join(",")),
                outcome.to_owned(),
                plain(&entry.detail),
            ]
        }));
        print(&table(&rows))?;
    }
    if report.is_complete() { Ok(()) } else { Err(Failure::Incomplete) }
}
