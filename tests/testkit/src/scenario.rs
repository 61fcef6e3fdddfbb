//! Tests say which of the reference's scenarios they have played: `cargo xtask test` compares that with the table in
//! `cni/tests/reference.md`.

use std::{env, fs::OpenOptions, io::Write, thread};

/// The environment variable with the file that [`scenario`] appends to; `cargo xtask test` sets it.
pub const SCENARIO_LOG: &str = "KEELSON_SCENARIO_LOG";

/// Says that the calling test has played a scenario of the reference in a version of the spec; `-` where no version
/// plays a part. Called when all has been asserted, on the test's own thread.
///
/// # Panics
///
/// If the log can't be written: the table would then be wrong.
pub fn scenario(number: u16, version: &str) {
    let Some(path) = env::var_os(SCENARIO_LOG) else { return };
    let test = thread::current().name().unwrap_or("unnamed test").to_owned();
    // One write a line: tests run at the same time.
    let line = format!("{number} {version} {test}\n");
    let written =
        OpenOptions::new().create(true).append(true).open(&path).and_then(|mut log| log.write_all(line.as_bytes()));
    assert!(written.is_ok(), "failed to append to {}: {written:?}", path.display());
}
