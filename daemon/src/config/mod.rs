//! The node's config file: read, judged and shown with the origin of each value.
//!
//! What the four plugins share (`apiVersion`, `kind`, `nodeName`, `stateDir`, `observability`, and that there is no
//! other key) is judged here, and a problem with it stops everything. A plugin's section is judged by the plugin's
//! crate, and a problem with it stops that plugin only.

mod document;
mod effective;
mod environment;
mod section;
mod yaml;

use std::{
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use keelson_host::{HostRoot, Node, Problem, Problems};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{error::by_line, plugins::PluginKind};
use document::Document;

pub use document::{API_VERSION, KIND, schema};
pub(crate) use effective::to_value;
pub use effective::{Effective, EffectiveValue, Origin};
pub use environment::Environment;

/// The config that `keelson config default` prints: every key with its default and what it means.
pub const DEFAULT: &str = include_str!("default.yaml");

/// Why a config file can't be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("failed to read {}: {cause}{}", path.display(), remedy(cause))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file isn't YAML, or not the part of YAML that a config needs.
    #[error("{} is not valid YAML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// What all plugins share is wrong.
    #[error("{}", by_line(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong.
        problems: Problems,
    },
}

/// A config file whose shared part is valid.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    path: PathBuf,
    /// The file as it was written, with no default filled in.
    written: Value,
    document: Document,
    environment: Environment,
    node: Node,
    address: SocketAddr,
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "; write one with `keelson config default > FILE`, or name one with --config FILE",
        _ => "",
    }
}

impl NodeConfig {
    /// Reads the config at `path`, with what the environment says in its place.
    ///
    /// # Errors
    ///
    /// When the file can't be read, isn't YAML, or its shared part is wrong. A wrong section is not an error here:
    /// [`crate::plugins::check`] judges it.
    pub fn load(path: &Path, root: HostRoot) -> Result<Self, ConfigError> {
        let text = read(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Environment::of_this_process()
            .map_err(Problems::from)
            .map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
            .and_then(|environment| Self::parse(path, &text, root, environment))
    }

    /// Judges the text of a config; `path` is for messages.
    ///
    /// # Errors
    ///
    /// As [`NodeConfig::load`].
    pub fn parse(path: &Path, text: &str, root: HostRoot, environment: Environment) -> Result<Self, ConfigError> {
        let value = yaml::parse(text).map_err(|message| ConfigError::Syntax { path: path.to_owned(), message })?;
        let invalid = |problems| ConfigError::Invalid { path: path.to_owned(), problems };
        document::check_version(&value).map_err(invalid)?;
        let document: Document = section::parse_whole("", &value).map_err(invalid)?;
        let mut problems = Problems::default();
        let name = node_name(&document, &environment).unwrap_or_else(|problem| {
            problems.push(problem);
            String::new()
        });
        if let Err(problem) = document::check_state_dir(&document.state_dir) {
            problems.push(problem);
        }
        let address = document.observability.parse().unwrap_or_else(|problem| {
            problems.push(problem);
            SocketAddr::from(([127, 0, 0, 1], 0))
        });
        let node = Node { name, state_dir: document.state_dir.clone(), root };
        problems.into_result(()).map_err(invalid)?;
        Ok(Self { path: path.to_owned(), written: value, document, environment, node, address })
    }

    /// The file it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What every plugin is told.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where the supervisor serves health and metrics.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the process of one plugin serves them: some ports above the supervisor's, or any free one if that is
    /// port 0.
    #[must_use]
    pub fn plugin_address(&self, kind: PluginKind) -> SocketAddr {
        let mut address = self.address;
        if address.port() != 0 {
            // Document::observability.parse() left room for every offset.
            address.set_port(address.port().saturating_add(kind.port_offset()));
        }
        address
    }

    /// The plugins that have a section, in their order.
    #[must_use]
    pub fn enabled(&self) -> Vec<PluginKind> {
        self.document.sections().collect()
    }

    /// One plugin's section, or its type's problems; the environment's values are in it.
    ///
    /// # Errors
    ///
    /// Every key that is unknown or of the wrong type, or that the section is missing.
    pub fn section<T: DeserializeOwned>(&self, kind: PluginKind) -> Result<T, Problems> {
        let path = kind.name();
        let Some(value) = self.document.section(kind) else {
            let remedy = format!("write `{path}: {{}}` to run it with its defaults");
            return Err(Problem::new(path, "", "is missing, so this plugin doesn't run", remedy).into());
        };
        section::parse_whole(path, &self.with_environment(kind, value))
    }

    /// The section's value with what the environment overrides in it.
    fn with_environment(&self, kind: PluginKind, value: &Value) -> Value {
        let mut value = value.clone();
        if let (PluginKind::Storage, Some(endpoint), Value::Object(map)) =
            (kind, &self.environment.csi_endpoint, &mut value)
        {
            map.insert("endpoint".to_owned(), Value::String(endpoint.clone()));
        }
        value
    }
}

/// The file's text; refuses what is no regular file, which could block for ever, or longer than any config.
fn read(path: &Path) -> io::Result<String> {
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(yaml::MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > yaml::MAX_BYTES {
        let message = format!("longer than {} bytes, which no config is", yaml::MAX_BYTES);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// The file's name for the node, else `$NODE_NAME`, else the host name as the kubelet takes it: in lower case.
fn node_name(document: &Document, environment: &Environment) -> Result<String, Problem> {
    let (path, name) = if let Some(name) = &document.node_name {
        ("nodeName", name.clone())
    } else if let Some(name) = &environment.node_name {
        ("$NODE_NAME", name.clone())
    } else {
        let name = nix::unistd::gethostname().map_err(|error| {
            Problem::new("nodeName", "", format!("is missing, and the host name can't be read: {error}"), "write it")
        })?;
        ("the host name, as nodeName is missing", name.to_string_lossy().trim().to_lowercase())
    };
    document::check_node_name(path, &name)?;
    Ok(name)
}

#[cfg(test)]
mod tests;
