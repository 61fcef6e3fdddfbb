//! What the environment may say in the config's place.

use std::env;

use keelson_host::Problem;

/// The environment variables that win over the config file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `$NODE_NAME`: the node's name where the file has none. The DaemonSet sets it from `spec.nodeName`.
    pub node_name: Option<String>,
    /// `$CSI_ENDPOINT`: the storage plugin's socket, whatever the file says, as the CSI specification demands.
    pub csi_endpoint: Option<String>,
}

impl Environment {
    /// Reads this process's environment. An empty variable counts as absent.
    ///
    /// # Errors
    ///
    /// A variable that isn't UTF-8.
    pub fn of_this_process() -> Result<Self, Problem> {
        Ok(Self { node_name: variable("NODE_NAME")?, csi_endpoint: variable("CSI_ENDPOINT")? })
    }
}

fn variable(name: &str) -> Result<Option<String>, Problem> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(value)) => {
            Err(Problem::new(format!("${name}"), value.to_string_lossy(), "is not UTF-8", "set it to plain text"))
        }
    }
}
