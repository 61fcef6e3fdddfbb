//! Where networks keep their records on a node.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use keelson_host::HostRoot;

use super::OperatorError;
use crate::{NetworkSettings, store::Store};

/// Where records lie that no config of the node speaks of: the defaults of the executable under each of its names, and
/// of `stateDir`.
const DEFAULTS: [&str; 3] = ["/run/keelson/network", "/var/lib/keelson/network", "/run/keelson/portmap"];

/// The directories to look for records in, and which network's.
#[derive(Clone, Debug)]
pub struct Places {
    root: HostRoot,
    directories: Vec<PathBuf>,
    network: Option<String>,
}

/// A network that has records.
#[derive(Debug)]
pub(crate) struct FoundNetwork {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) store: Store,
}

impl Places {
    /// The usual places below `root`, that of the network in the node's config first.
    #[must_use]
    pub fn of_node(root: &HostRoot, settings: Option<&NetworkSettings>) -> Self {
        let mut places = Self { root: root.clone(), directories: Vec::new(), network: None };
        let own = settings.map(|settings| settings.data_dir().to_owned());
        for directory in own.into_iter().chain(DEFAULTS.iter().map(|default| root.join(default))) {
            places.add(directory);
        }
        places
    }

    /// Looks in `directory`, too: the `ipam.dataDir` of a network config of one's own.
    pub fn add(&mut self, directory: PathBuf) {
        if !self.directories.contains(&directory) {
            self.directories.push(directory);
        }
    }

    /// Looks at the network called `name` only.
    pub fn choose(&mut self, name: String) {
        self.network = Some(name);
    }

    /// The directories that are looked in.
    #[must_use]
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    pub(crate) fn root(&self) -> &HostRoot {
        &self.root
    }

    /// Those that were not chosen, too; none where there is none.
    pub(crate) fn all_networks(&self) -> Result<Vec<FoundNetwork>, OperatorError> {
        match (Self { network: None, ..self.clone() }).networks() {
            Err(OperatorError::NoNetwork(_)) => Ok(Vec::new()),
            other => other,
        }
    }

    /// The networks with records, each once: two of the directories may be one by different ways.
    pub(crate) fn networks(&self) -> Result<Vec<FoundNetwork>, OperatorError> {
        let mut seen = Vec::new();
        let mut networks = Vec::new();
        for directory in &self.directories {
            let Ok(real) = directory.canonicalize() else { continue };
            if seen.contains(&real) {
                continue;
            }
            for name in names(directory)? {
                if self.network.as_ref().is_none_or(|chosen| *chosen == name) {
                    let store = Store::new(directory, &name)?;
                    networks.push(FoundNetwork { name, data_dir: directory.clone(), store });
                }
            }
            seen.push(real);
        }
        if networks.is_empty() { Err(OperatorError::NoNetwork(self.directories.clone())) } else { Ok(networks) }
    }
}

/// The names of the stores in `directory`: a network that was ever used has the file that its attachments are locked by.
fn names(directory: &Path) -> Result<Vec<String>, OperatorError> {
    let failed = |error: io::Error| OperatorError::Records(format!("failed to list {}: {error}", directory.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string()
            && Store::is_at(&entry.path())
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
