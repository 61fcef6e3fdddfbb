//! Side-by-side measurements: `cargo run -p keelson-benches --release -- cni|sandbox|memory|sizes`.
//!
//! Absolute times depend on the machine and the moment; read the ratios, which come from one interleaved run.

mod cni;
mod memory;
mod network;
mod programs;
mod report;
mod sandbox;
mod sizes;

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
        What::Sizes => sizes::measure()?,
        What::Memory => tokio::runtime::Runtime::new()?.block_on(memory::measure())?,
    };
    match arguments.output {
        Format::Table => print!("{}", report.table()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}
