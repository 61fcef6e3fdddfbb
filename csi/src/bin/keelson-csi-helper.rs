//! The storage helper as a program of its own, for this crate's tests; production starts `keelson storage-helper`.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    keelson_csi::helper_main(env::args_os().skip(1))
}
