//! `nodelab`: try Keelson on this machine, with no cluster.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use keelson_nodelab::{Cleaned, Options, Outcome, clean, run};
use keelson_testkit::workspace_root;
use tokio::signal::unix::{SignalKind, signal};

/// Pod manifests on a real containerd, through all of Keelson's plugins, on this machine.
#[derive(Debug, Parser)]
#[command(name = "nodelab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sample Pods through the suite and verify what they got
    Try {
        /// Leave the Pods running, and say how to look and how to clean up
        #[arg(long)]
        keep: bool,
        /// How to print what was seen
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        /// Where keelson and keelson-cni are [default: beside this program]
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<PathBuf>,
        /// The manifests to run: Pods app and peer and what they need [default: daemonset/samples]
        #[arg(long, value_name = "DIR")]
        samples: Option<PathBuf>,
    },
    /// Stop and remove every lab that was kept or whose process died
    Clean {
        /// One lab only, by its name such as keelson-lab-012abc or 012abc
        lab: Option<String>,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: a list of {"stage", "ok", "saw"}
    Json,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Try { keep, output, bin_dir, samples } => {
            options(keep, bin_dir, samples).and_then(|options| try_samples(&options, output))
        }
        Command::Clean { lab } => clean_labs(lab.as_deref()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("nodelab: {error:#}");
        ExitCode::FAILURE
    })
}

fn options(keep: bool, bin_dir: Option<PathBuf>, samples: Option<PathBuf>) -> Result<Options> {
    let own = std::env::current_exe().context("failed to find this program's own path")?;
    let programs = bin_dir.unwrap_or_else(|| own.parent().unwrap_or(Path::new("/")).to_owned());
    let programs = programs.canonicalize().with_context(|| format!("failed to find {}", programs.display()))?;
    Ok(Options { programs, samples: samples.unwrap_or_else(|| workspace_root().join("daemonset/samples")), keep })
}

fn try_samples(options: &Options, output: Format) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the event loop")?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // The terminal is gone, with an ssh connection for one.
        let mut hangup = signal(SignalKind::hangup())?;
        let progress = |line: &str| say(line);
        // Dropping the trial sweeps its lab away.
        anyhow::Ok(tokio::select! {
            outcome = run(options, &progress) => Some(outcome),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            _ = hangup.recv() => None,
        })
    })?;
    let Some(Outcome { report, lack, advice }) = outcome else {
        say("nodelab: interrupted; everything was removed");
        return Ok(ExitCode::from(130));
    };
    let text = match output {
        // One line says it all.
        Format::Table if lack.is_some() => String::new(),
        Format::Table => format!("\n{}", report.table()),
        Format::Json => format!("{}\n", report.json()?),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("failed to print")?;
    if let Some(lack) = lack {
        say(&format!("nodelab: {lack}"));
    }
    if let Some(advice) = advice {
        say(&format!("\n{advice}"));
    }
    Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints for people. A terminal that is gone must not keep the lab from being removed.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn clean_labs(lab: Option<&str>) -> Result<ExitCode> {
    let cleaned = clean(lab)?;
    for lab in &cleaned.removed {
        eprintln!("removed {lab}");
    }
    for lab in &cleaned.in_use {
        eprintln!("{lab} is in use by a running nodelab or test; left alone");
    }
    for failure in &cleaned.failed {
        eprintln!("nodelab: {failure}");
    }
    if cleaned == Cleaned::default() {
        eprintln!("nothing to clean up");
    }
    Ok(if cleaned.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
