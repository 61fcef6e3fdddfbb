//! The CNI executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    keelson_cni::run()
}
