//! The supervisor and the operator's command.
//!
//! `keelson run` starts one process per plugin and keeps it running; `keelson run --only X` is such a process. The
//! rooms: [`config`] reads and judges the config file, [`plugins`] connects each of its sections with the crate that
//! does the work, [`supervisor`] keeps the processes, [`observability`] answers `/healthz`, `/readyz`,
//! `/metrics` and `/operations`, [`command`] has one file per subcommand, [`error`] chooses the exit codes.

pub mod command;
pub mod config;
pub mod error;
pub mod observability;
pub mod plugins;
pub mod supervisor;
