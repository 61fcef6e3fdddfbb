//! The command line: one file per subcommand.

mod config;
mod inspect;
mod network;
mod output;
mod run;
mod storage;
mod storage_helper;
mod uninstall;
mod version;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use keelson_host::error_chain;

/// Network, storage, devices and pinning for one Kubernetes node.
#[derive(Debug, Parser)]
#[command(
    name = "keelson",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 78 the config can't be used"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the plugins that the config has a section for
    Run(run::RunArguments),
    /// Print, check or explain the config
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Show what this machine is: CPUs, NUMA nodes, devices, links, mounts, cgroups
    Inspect(inspect::InspectArguments),
    /// Look at the node's networks and look after them
    ///
    /// Reads records and kernel directly, whether or not a daemon runs. Links and rules are those of the network
    /// namespace that it is started in: run it on the host, or in a Pod with hostNetwork.
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Look at the node's volumes and pools and look after them
    ///
    /// Reads pools and kernel directly, whether or not a driver runs. Mounts are those that it sees: run it on the host, or
    /// in the driver's container.
    #[command(subcommand)]
    Storage(storage::StorageCommand),
    /// Remove what Keelson put on the node, except volumes
    Uninstall(ConfigArguments),
    /// Print the version
    Version,
    /// What the storage plugin runs in a process of its own because it may block for ever
    #[command(hide = true, disable_help_flag = true)]
    StorageHelper(storage_helper::StorageHelperArguments),
}

/// Where the config is, and the host that it is for.
#[derive(Clone, Debug, Args)]
struct ConfigArguments {
    /// The config file
    #[arg(long, value_name = "FILE", default_value = "/etc/keelson/config.yaml")]
    config: PathBuf,
    #[command(flatten)]
    host: HostArguments,
}

/// Where the host's file trees are.
#[derive(Clone, Debug, Args)]
struct HostArguments {
    /// Where the host's /sys, /proc and /dev are found
    #[arg(long, value_name = "DIR", default_value = "/")]
    host_root: PathBuf,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Does what the command line says, and tells the process's exit code: 0, 1 for a failure, 2 for wrong arguments, 78
/// for a config that can't be used.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let outcome = match arguments.command {
        // It logs, so its failure is logged too.
        Command::Run(arguments) => return run::run(&arguments),
        Command::StorageHelper(arguments) => return storage_helper::run(arguments),
        Command::Config(command) => config::run(&command),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Network(command) => network::run(&command),
        Command::Storage(command) => storage::run(&command),
        Command::Uninstall(arguments) => uninstall::run(&arguments),
        Command::Version => version::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("keelson: {}", error_chain(&failure));
            failure.exit_code()
        }
    }
}
