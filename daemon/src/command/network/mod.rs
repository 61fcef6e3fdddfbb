//! `keelson network`: what the node's networks have given to whom, what is wrong with them, and what to do about it.

mod doctor;
mod explain;
mod gc;
mod list;
mod migrate;
mod restore;
mod show;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use keelson_cni::{
    NetworkSection, NetworkSettings,
    operator::{Finding, Places, Severity},
};
use keelson_host::{HostRoot, Problems, error_chain};

use super::{Format, HostArguments};
use crate::{config::NodeConfig, error::Failure, plugins::PluginKind};

/// Where the config is unless `--config` says otherwise; here it may be missing.
const DEFAULT_CONFIG: &str = "/etc/keelson/config.yaml";

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// List the attachments: which Pod has which addresses, by which link
    Ls(list::ListArguments),
    /// Show everything about a Pod's attachments: records, links, differences, last calls
    Show(show::ShowArguments),
    /// Free what nobody uses: attachments whose link is gone, and what killed processes and earlier boots left
    Gc(gc::GcArguments),
    /// Bring back rules, gateway addresses and forwarding that somebody removed under running Pods
    Restore(restore::RestoreArguments),
    /// Compare records and kernel, and tell a remedy for each finding; fails if one is an error
    Doctor(doctor::DoctorArguments),
    /// Take over the Pods of the reference's bridge and host-local, which run on
    Import(migrate::ImportArguments),
    /// Give the Pods back to the reference's host-local, which run on
    Export(migrate::ExportArguments),
    /// Tell what an error code of the plugin's means, or list them all
    Explain(explain::ExplainArguments),
}

/// Where records are looked for.
#[derive(Debug, Args)]
struct PlaceArguments {
    /// The node's config, whose network comes first [default: /etc/keelson/config.yaml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Look in this directory as well: ipam.dataDir of a network config of your own; may be repeated
    #[arg(long, value_name = "DIR")]
    data_dir: Vec<PathBuf>,
    /// Only this network
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    #[command(flatten)]
    host: HostArguments,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl PlaceArguments {
    fn places(&self, settings: Option<&NetworkSettings>) -> Places {
        let mut places = Places::of_node(&HostRoot::at(&self.host.host_root), settings);
        for directory in &self.data_dir {
            places.add(directory.clone());
        }
        if let Some(network) = &self.network {
            places.choose(network.clone());
        }
        places
    }

    /// The network of the node's config. A file that wasn't asked for may be missing, and if it is broken there is still
    /// the rest to look at.
    fn settings(&self) -> Result<Option<NetworkSettings>, Failure> {
        let root = &self.host.host_root;
        match &self.config {
            Some(path) => settings(path, root),
            None if !Path::new(DEFAULT_CONFIG).exists() => Ok(None),
            None => Ok(settings(Path::new(DEFAULT_CONFIG), root).unwrap_or_else(|failure| {
                eprintln!("keelson: going on without the node's config: {}", error_chain(&failure));
                None
            })),
        }
    }
}

fn settings(path: &Path, root: &Path) -> Result<Option<NetworkSettings>, Failure> {
    let config = NodeConfig::load(path, HostRoot::at(root))?;
    if !config.enabled().contains(&PluginKind::Network) {
        return Ok(None);
    }
    let judged = |problems: Problems| Failure::Section { path: path.to_owned(), problems };
    let section: NetworkSection = config.section(PluginKind::Network).map_err(judged)?;
    section.validate(config.node()).map(Some).map_err(judged)
}

pub(super) fn run(command: &NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::Ls(arguments) => list::run(arguments),
        NetworkCommand::Show(arguments) => show::run(arguments),
        NetworkCommand::Gc(arguments) => gc::run(arguments),
        NetworkCommand::Restore(arguments) => restore::run(arguments),
        NetworkCommand::Doctor(arguments) => doctor::run(arguments),
        NetworkCommand::Import(arguments) => migrate::import(arguments),
        NetworkCommand::Export(arguments) => migrate::export(arguments),
        NetworkCommand::Explain(arguments) => explain::run(arguments),
    }
}

/// A finding as people read it, its remedy on a line of its own.
fn finding_text(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let Finding { check, subject, problem, remedy, .. } = finding;
    format!("{severity} [{check}] {}: {}\n    remedy: {}\n", plain(subject), plain(problem), plain(remedy))
}

/// `text` on one line, and harmless to a terminal: Pods' names come from whoever called the plugin.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// `text`, or a dash for none.
fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { plain(text) }
}
