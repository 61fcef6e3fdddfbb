//! `keelson storage-helper`: the storage plugin's own helper process.

use std::{ffi::OsString, process::ExitCode};

use clap::Args;

#[derive(Debug, Args)]
pub(super) struct StorageHelperArguments {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(super) fn run(arguments: StorageHelperArguments) -> ExitCode {
    // Only for process lists: /proc/self/exe would be called "exe" there, and the work matters more than its name.
    let _ = rustix::thread::set_name(c"keelson-helper");
    keelson_csi::helper_main(arguments.arguments)
}
