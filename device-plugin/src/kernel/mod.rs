//! The side that looks at the kernel: finds device nodes, makes simulated ones, watches directories.

mod discovery;
mod node;
mod pattern;
mod simulated;
mod watch;

pub(crate) use discovery::{Skipped, discover, verify};
pub(crate) use node::{NodeAt, look_at};
pub(crate) use simulated::{SimulatedError, ensure_simulated, simulated_directory, sweep_simulated};
pub(crate) use watch::Watcher;
