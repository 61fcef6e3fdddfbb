//! One log format for every process: text for people at a terminal, JSON lines for everything else, on stderr.

use std::{env, io};

use std::io::IsTerminal;
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `--log-level` or `$RUST_LOG` isn't a filter.
    #[error(
        "{origin} {value:?} is not a log level; write error, warn, info, debug, trace or a filter such as keelson_csi=debug"
    )]
    Filter {
        /// Where it came from.
        origin: &'static str,
        /// What it said.
        value: String,
        /// Why it isn't one.
        source: ParseError,
    },
}

/// Starts logging: `level` wins over `$RUST_LOG`, which wins over `info`.
///
/// # Errors
///
/// When the level is none.
pub fn init(level: Option<&str>) -> Result<(), LogError> {
    let variable = env::var("RUST_LOG").ok().filter(|value| !value.is_empty());
    let (origin, value) = match (level, &variable) {
        (Some(level), _) => ("--log-level", level),
        (None, Some(variable)) => ("RUST_LOG", variable.as_str()),
        (None, None) => ("the default", "info"),
    };
    let filter =
        EnvFilter::try_new(value).map_err(|source| LogError::Filter { origin, value: value.to_owned(), source })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).with_ansi(false).init();
    }
    Ok(())
}
