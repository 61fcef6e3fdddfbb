//! Side-by-side measurements: `cargo run -p keelson-benches --release -- cni|sandbox|csi|memory|sizes`.
//!
//! Absolute times depend on the machine and the moment; read the ratios, which come from one interleaved run.

mod cni;
mod csi;
mod memory;
mod network;
mod programs;
mod report;
mod sandbox;
mod sizes;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

/// Measures Keelson beside its peers and floors.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// How to print the findings
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum What {
    /// CNI calls beside the reference plugins and netavark (needs root, Go, nft, strace and, for netavark, protoc)
    Cni {
        /// How many calls of each program and network
        #[arg(long, default_value_t = 200)]
        samples: usize,
        /// Measure only these, all if none is named
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<cni::Group>,
    },
    /// RunPodSandbox of a real containerd beside the same (needs root, Go and runc)
    Sandbox {
        /// How many sandboxes of each plugin and network
        #[arg(long, default_value_t = 20)]
        samples: usize,
    },
    /// CSI calls beside csi-driver-host-path (needs root, loop devices, and mkfs of xfs, btrfs and ext4)
    Csi {
        /// How many calls of each driver; what takes long is done less often
        #[arg(long, default_value_t = 100)]
        samples: usize,
        /// Measure only these, all if none is named
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<csi::Group>,
        /// The program of csi-driver-host-path, hostpathplugin; without it, what it would run and write is measured
        #[arg(long)]
        host_path: Option<PathBuf>,
    },
    /// Sizes of the stripped binaries
    Sizes,
    /// Resident memory of each process of `keelson run` (needs what `cargo xtask try` needs)
    Memory,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let report = match arguments.what {
        What::Cni { samples, only } => cni::measure(samples, &only)?,
        What::Sandbox { samples } => sandbox::measure(samples)?,
        What::Csi { samples, only, host_path } => {
            tokio::runtime::Runtime::new()?.block_on(csi::measure(samples, &only, host_path.as_deref()))?
        }
        What::Sizes => sizes::measure()?,
        What::Memory => tokio::runtime::Runtime::new()?.block_on(memory::measure())?,
    };
    match arguments.output {
        Format::Table => print!("{}", report.table()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}
