//! The config's `pinning` section: what the user may say, and what the plugin makes of it.

use std::{
    fmt, fs, io,
    os::unix::{ffi::OsStrExt, fs::FileTypeExt},
    path::{Path, PathBuf},
};

use keelson_host::{CpuSet, HostRoot, LONGEST_SOCKET_PATH, Node, Problem, Problems, Topology};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `pinning` section of a NodeConfig as the user writes it; every key has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PinningSection {
    /// The container runtime's NRI socket.
    pub socket: PathBuf,
    /// Two digits that place this plugin among the node's other NRI plugins: the runtime calls them in ascending order.
    pub plugin_index: String,
    /// Whether placements are applied or only computed, recorded and logged.
    pub mode: Mode,
    /// CPUs that are never given to one container alone, as a CPU list such as "0-1,8"; containers that share CPUs fall
    /// back to them. Empty: none.
    pub reserved_cpus: String,
}

/// What becomes of the plugin's decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Containers are placed as decided.
    Enforce,
    /// Decisions are recorded, logged and counted; no container is changed.
    Observe,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        })
    }
}

impl Default for PinningSection {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/var/run/nri/nri.sock"),
            plugin_index: "10".to_owned(),
            mode: Mode::Enforce,
            reserved_cpus: String::new(),
        }
    }
}

/// A [`PinningSection`] that was checked against its node.
#[derive(Clone, Debug)]
pub struct PinningSettings {
    pub(crate) socket: PathBuf,
    pub(crate) plugin_index: String,
    pub(crate) mode: Mode,
    pub(crate) reserved: CpuSet,
    pub(crate) root: HostRoot,
    /// Where the records of placements live: `pinning` below the node's state directory.
    pub(crate) state_dir: PathBuf,
}

impl PinningSection {
    /// Checks the section against the node and gives what [`crate::Plugin`] needs. Reads the host, changes nothing.
    ///
    /// A socket that isn't there yet is no problem: the runtime may start later.
    ///
    /// # Errors
    ///
    /// Every key with a wrong value, each path starting with `pinning.`.
    pub fn validate(&self, node: &Node) -> Result<PinningSettings, Problems> {
        let mut problems = Problems::default();
        if let Some(problem) = check_socket(&self.socket) {
            problems.push(problem);
        }
        // nri pkg/api/plugin.go accepts exactly two digits and orders plugins by them as strings.
        if self.plugin_index.len() != 2 || !self.plugin_index.bytes().all(|byte| byte.is_ascii_digit()) {
            problems.push(Problem::new(
                "pinning.pluginIndex",
                &self.plugin_index,
                "is not an NRI plugin index",
                "write exactly two digits in quotes, such as \"10\"",
            ));
        }
        let reserved = self.reserved(node).unwrap_or_else(|problem| {
            problems.push(problem);
            CpuSet::new()
        });
        problems.into_result(PinningSettings {
            socket: self.socket.clone(),
            plugin_index: self.plugin_index.clone(),
            mode: self.mode,
            reserved,
            root: node.root.clone(),
            state_dir: node.state_dir.join("pinning"),
        })
    }

    fn reserved(&self, node: &Node) -> Result<CpuSet, Problem> {
        let problem =
            |wrong: String, remedy: String| Problem::new("pinning.reservedCpus", &self.reserved_cpus, wrong, remedy);
        let reserved: CpuSet = self.reserved_cpus.parse().map_err(|error| {
            problem(format!("is not a CPU list ({error})"), "write CPUs and ranges such as \"0-1,8\"".to_owned())
        })?;
        if reserved.is_empty() {
            return Ok(reserved);
        }
        let online = Topology::read(&node.root)
            .map_err(|error| {
                let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
                problem(
                    format!("can't be checked against this machine's CPUs: {error}{cause}"),
                    "mount the host's /sys below the host root".to_owned(),
                )
            })?
            .online();
        let absent = reserved.difference(&online);
        if !absent.is_empty() {
            return Err(problem(
                format!("names CPUs that are not online ({absent})"),
                format!("choose among the online CPUs {online}"),
            ));
        }
        Ok(reserved)
    }
}

fn check_socket(path: &Path) -> Option<Problem> {
    let problem = |wrong: String, remedy: &str| Some(Problem::new("pinning.socket", path.display(), wrong, remedy));
    let bytes = path.as_os_str().as_bytes();
    if !path.is_absolute() || bytes.contains(&0) {
        return problem("is not an absolute path".to_owned(), "write the whole path, such as /var/run/nri/nri.sock");
    }
    if bytes.len() > LONGEST_SOCKET_PATH {
        return problem(
            format!("is longer than the {LONGEST_SOCKET_PATH} bytes of a Unix socket's path"),
            "choose a shorter path",
        );
    }
    match fs::metadata(path) {
        Ok(found) if !found.file_type().is_socket() => problem(
            "is not a Unix socket".to_owned(),
            "name the runtime's NRI socket, by default /var/run/nri/nri.sock",
        ),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            problem(format!("can't be looked at: {error}"), "name the runtime's NRI socket")
        }
        Ok(_) | Err(_) => None,
    }
}
