//! What the tests, the benches and xtask share: real tools, skips that say why, network namespaces, waiting.

#![allow(clippy::expect_used, reason = "a helper of tests fails the test")]

mod chance;
mod leftovers;
mod netns;
mod scenario;
mod skip;
mod tools;
mod tracer;
mod vm;
mod wait;

pub use chance::Chance;
pub use leftovers::{Leftovers, Snapshot};
pub use netns::Netns;
pub use scenario::{SCENARIO_LOG, scenario};
pub use skip::{SKIP_LOG, is_root, missing, report_skip};
pub use tools::{Tool, cache_dir, go_module_file, go_version, workspace_root};
pub use tracer::{Doom, Hit, Tracer, can_trace};
pub use vm::{VM_CALL, VM_DISK, VM_HEARD};
pub use wait::{wait_until, wait_until_async};
