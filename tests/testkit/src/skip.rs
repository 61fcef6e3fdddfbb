//! Tests that can't run on this machine say so: libtest itself knows no skip at run time.

use std::{env, fs::OpenOptions, io::Write};

/// The environment variable with the file that [`report_skip`] appends to; `cargo xtask test` sets it and prints
/// what it finds there.
pub const SKIP_LOG: &str = "KEELSON_SKIP_LOG";

/// Says that `test` was skipped and why, on stderr and in the file named by [`SKIP_LOG`].
///
/// # Panics
///
/// If the log can't be written: a skip that nobody sees would be a silent pass.
pub fn report_skip(test: &str, reason: &str) {
    eprintln!("SKIP {test}: {reason}");
    if let Some(path) = env::var_os(SKIP_LOG) {
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut log| writeln!(log, "{test}: {reason}"));
        assert!(written.is_ok(), "failed to append to {}: {written:?}", path.display());
    }
}

/// Returns from the calling test, with the skip reported, unless the machine has what is named.
///
/// `skip_unless!(condition, reason)`: the reason tells what is missing. It is for what a
/// *machine* may lack; a failing condition of the code under test is an `assert!`.
#[macro_export]
macro_rules! skip_unless {
    ($condition:expr, $reason:expr) => {
        if !$condition {
            let name = std::thread::current().name().unwrap_or("unnamed test").to_owned();
            $crate::report_skip(&name, &$reason.to_string());
            return;
        }
    };
}

/// Whether this process is root, which every test of the kernel tier needs.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Which of `programs` are not on PATH.
#[must_use]
pub fn missing<'a>(programs: &[&'a str]) -> Vec<&'a str> {
    let path = env::var_os("PATH").unwrap_or_default();
    programs
        .iter()
        .copied()
        .filter(|program| !env::split_paths(&path).any(|directory| directory.join(program).is_file()))
        .collect()
}
