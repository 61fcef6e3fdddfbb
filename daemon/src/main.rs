//! The `keelson` executable: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use keelson::command::Arguments;

fn main() -> ExitCode {
    keelson::command::run(Arguments::parse())
}
