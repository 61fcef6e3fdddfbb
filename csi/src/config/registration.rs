//! `storage.registration`: how the kubelet gets to know the driver.

use std::path::{Component, Path, PathBuf};

use keelson_host::{LONGEST_SOCKET_PATH, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resolve;
use crate::registration;

/// Whether and where the driver registers itself with the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RegistrationSection {
    /// Whether it does. `false` where node-driver-registrar does it.
    pub enabled: bool,
    /// The kubelet's directory of registration sockets. One that isn't there is waited for.
    pub directory: PathBuf,
}

impl Default for RegistrationSection {
    fn default() -> Self {
        Self { enabled: true, directory: PathBuf::from("/var/lib/kubelet/plugins_registry") }
    }
}

impl RegistrationSection {
    /// Judges the section for a driver of this name, whose pools lie at `pools`.
    pub(super) fn validate(&self, driver_name: &str, pools: &[PathBuf]) -> Result<(), Problem> {
        if !self.enabled {
            return Ok(());
        }
        let refused = |wrong: String, remedy: &str| {
            Err(Problem::new("storage.registration.directory", self.directory.display(), wrong, remedy.to_owned()))
        };
        let plain = self.directory.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !self.directory.is_absolute() || !plain || self.directory == Path::new("/") {
            let remedy = "write the kubelet's own, such as /var/lib/kubelet/plugins_registry";
            return refused("is not an absolute path below / without \"..\"".to_owned(), remedy);
        }
        if self.directory.symlink_metadata().is_ok() && !self.directory.is_dir() {
            return refused("is not a directory".to_owned(), "write /var/lib/kubelet/plugins_registry");
        }
        let bytes = registration::longest_path(&self.directory, driver_name);
        if bytes > LONGEST_SOCKET_PATH {
            let wrong = format!("makes the path of a socket {bytes} bytes long, of at most {LONGEST_SOCKET_PATH}");
            return refused(wrong, "use a shorter one, or a shorter driverName");
        }
        if let Some(pool) = pools.iter().find(|pool| resolve(&self.directory).starts_with(pool)) {
            let wrong = format!("lies in the pool at {}", pool.display());
            return refused(wrong, "pools hold nothing but volumes; write the kubelet's own");
        }
        Ok(())
    }
}
