//! Putting the plugin where a container runtime finds it, and taking it away again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use keelson_host::{Durability, write_atomic};
use serde_json::{Value, json};

use crate::{
    config::{NetworkMode, NetworkSettings},
    kernel::{KernelError, NetfilterSocket, RouteSocket, bridge, masquerade, spoofing},
    store::{Store, StoreError},
};

/// What [`install`] found or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The network config in the runtime's directory.
    pub conflist: PathBuf,
    /// Whether the network config was missing or different.
    pub conflist_changed: bool,
    /// The executable in the runtime's directory.
    pub executable: PathBuf,
    /// Whether the executable was missing or different.
    pub executable_changed: bool,
}

/// Why [`install`] failed; what it wrote before that stays, whole, and the next call goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The executable to copy could not be read.
    #[error("failed to read the executable {}", path.display())]
    ReadExecutable {
        /// The executable.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory of the runtime's could not be made.
    #[error("failed to create the directory {}", path.display())]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be put in its place.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Copies `executable` into the runtime's directory and writes the network config, each only if it differs.
///
/// The executable comes first: a runtime that sees the config may run it at once. Each file is written beside its
/// place and renamed, as a running executable can't be written to and containerd's watcher only notices a rename.
///
/// # Errors
///
/// [`InstallError`] of the step that failed.
pub fn install(settings: &NetworkSettings, executable: &Path) -> Result<Installed, InstallError> {
    let program =
        fs::read(executable).map_err(|source| InstallError::ReadExecutable { path: executable.to_owned(), source })?;
    for directory in [&settings.bin_dir, &settings.conf_dir] {
        fs::create_dir_all(directory)
            .map_err(|source| InstallError::CreateDirectory { path: directory.clone(), source })?;
    }
    let installed_executable = settings.executable_path();
    let executable_changed = replace(&installed_executable, &program, 0o755)?;
    let conflist = settings.conflist_path();
    let conflist_changed = replace(&conflist, &conflist_text(settings), 0o644)?;
    Ok(Installed { conflist, conflist_changed, executable: installed_executable, executable_changed })
}

/// The files of [`install`] that are missing, and those that hold something else, without touching them.
pub(crate) fn look(settings: &NetworkSettings, executable: Option<&Path>) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut missing, mut different) = (Vec::new(), Vec::new());
    // Without the original there is nothing to compare with.
    let program = executable.and_then(|path| fs::read(path).ok());
    for (path, wanted) in
        [(settings.executable_path(), program), (settings.conflist_path(), Some(conflist_text(settings)))]
    {
        match fs::read(&path) {
            Err(_) => missing.push(path),
            Ok(found) if wanted.is_some_and(|wanted| wanted != found) => different.push(path),
            Ok(_) => {}
        }
    }
    (missing, different)
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    write_atomic(path, content, mode, Durability::PowerLoss)
        .map_err(|source| InstallError::Write { path: path.to_owned(), source })?;
    Ok(true)
}

/// The network config list that makes the executable do what `settings` say.
fn conflist_text(settings: &NetworkSettings) -> Vec<u8> {
    let ranges: Vec<Value> =
        settings.ranges.iter().map(|range| json!([{"subnet": range.subnet.to_string()}])).collect();
    let mut plugin = json!({
        "type": "keelson-cni",
        // What the runtime is to pass on in runtimeConfig.
        "capabilities": {"portMappings": true, "bandwidth": true, "dns": true, "ips": true, "mac": true},
        "isDefaultGateway": true,
        "ipMasq": settings.masquerade,
        "ipam": {
            "type": "keelson-cni",
            "ranges": ranges,
            "dataDir": settings.host_data_dir,
        },
    });
    match settings.mode {
        NetworkMode::Bridge => {
            plugin["bridge"] = settings.bridge.as_str().into();
            plugin["isGateway"] = true.into();
            plugin["hairpinMode"] = true.into();
        }
        NetworkMode::Routed => plugin["mode"] = "routed".into(),
    }
    let list = json!({
        // A runtime with libcni before 1.2 reads only cniVersion and knows 1.0.0; a newer one takes the highest of
        // cniVersions, and with 1.1.0 calls STATUS and GC.
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": settings.name,
        "plugins": [plugin],
    });
    format!("{list:#}\n").into_bytes()
}

/// What [`uninstall`] left, if anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uninstalled {
    /// Pods that are still attached. While there are any, nothing is removed: they are in use.
    pub attachments_left: usize,
    /// Whether the bridge is gone. It stays if it has ports, or if it isn't the network's own.
    pub bridge_removed: bool,
}

/// Why [`uninstall`] failed; calling it again goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The network config could not be removed.
    #[error("failed to remove {}", path.display())]
    RemoveConfig {
        /// The network config.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store could not be read or removed.
    #[error("failed to remove the network's records: {0}")]
    Records(String),
    /// The kernel refused to remove the masquerading rules or the bridge.
    #[error("failed to remove the network: {0}")]
    Kernel(String),
}

impl From<StoreError> for UninstallError {
    fn from(error: StoreError) -> Self {
        Self::Records(error.to_string())
    }
}

impl From<KernelError> for UninstallError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error.to_string())
    }
}

/// Takes the network off the node once no Pod is attached: its records, its config, the subnets in the nftables table
/// (with the last one the table), and the bridge that it made.
///
/// While a Pod is attached everything stays, the config too: without it a runtime can't detach the Pod.
///
/// The executable stays, as other networks may use it. Must be called in the host's network namespace. Two networks on
/// a node with the same subnet share its masquerading, and lose it together.
///
/// # Errors
///
/// [`UninstallError`] of the step that failed. Something that is gone already is no error, and neither are Pods that
/// are still attached: [`Uninstalled`] tells of them.
pub fn uninstall(settings: &NetworkSettings) -> Result<Uninstalled, UninstallError> {
    let store = Store::new(&settings.data_dir, &settings.name)?;
    if !store.remove_if_empty()? {
        return Ok(Uninstalled { attachments_left: store.keys()?.len(), bridge_removed: false });
    }
    let path = settings.conflist_path();
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(UninstallError::RemoveConfig { path, source });
        }
        _ => {}
    }
    let subnets: Vec<_> = settings.ranges.iter().map(|range| range.subnet).collect();
    masquerade::remove(&subnets)?;
    spoofing::remove_if_unused(&mut NetfilterSocket::open()?)?;
    let bridge_removed = bridge::remove_if_unused(&mut RouteSocket::open()?, &settings.bridge, &settings.name)?;
    Ok(Uninstalled { attachments_left: 0, bridge_removed })
}

#[cfg(test)]
mod tests {
    use keelson_host::{HostRoot, Node};

    use super::*;
    use crate::config::NetworkSection;

    #[test]
    fn a_second_install_changes_nothing_and_a_changed_file_is_put_right() {
        let root = tempfile::tempdir().unwrap();
        let node = Node { name: "a".to_owned(), state_dir: "/var/lib/keelson".into(), root: HostRoot::at(root.path()) };
        let settings = NetworkSection::default().validate(&node).unwrap();
        let program = root.path().join("program");
        fs::write(&program, b"one").unwrap();
        let first = install(&settings, &program).unwrap();
        assert!(first.conflist_changed && first.executable_changed);
        let second = install(&settings, &program).unwrap();
        assert!(!second.conflist_changed && !second.executable_changed);
        fs::write(&program, b"two").unwrap();
        fs::write(&second.conflist, b"{").unwrap();
        let third = install(&settings, &program).unwrap();
        assert!(third.conflist_changed && third.executable_changed);
        let list: Value = serde_json::from_slice(&fs::read(&third.conflist).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["ipam"]["dataDir"], "/var/lib/keelson/network");
        assert_eq!(list["plugins"][0]["ipam"]["ranges"], json!([[{"subnet": "10.88.0.0/16"}]]));
        assert_eq!(fs::read_dir(third.conflist.parent().unwrap()).unwrap().count(), 1);
    }
}
