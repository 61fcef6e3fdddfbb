//! `cargo xtask ...`: the README's two commands and the developers' chores.

#![allow(clippy::print_stdout, reason = "a command line program")]

mod fuzz;
mod lint;
mod machine;
mod mutants;
mod run;
mod scenarios;
mod tiers;
mod trial;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Keelson's developer commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sample Pods through all four plugins on a real containerd, and show what each got
    Try(trial::Options),
    /// Run the tests: all tiers from unit to node, or the ones named
    Test(tiers::Options),
    /// Check formatting, clippy and the documentation
    Lint,
    /// Check the dependencies' licences, duplicates and sources (needs cargo-deny)
    Deny,
    /// Build the pinned Go programs that the tests run against
    Tools,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Try(options) => trial::run(&options),
        Command::Test(options) => tiers::run(&options),
        Command::Lint => lint::lint(),
        Command::Deny => lint::deny(),
        Command::Tools => machine::build_tools(&keelson_testkit::Tool::ALL),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        Arguments::command().debug_assert();
    }
}
