//! STATUS: could ADD do its work?

use std::{fs, path::Path};

use nix::{
    sys::statvfs::statvfs,
    unistd::{AccessFlags, access},
};

use super::delegate::Delegate;
use crate::{
    config::{
        invocation::CniArgs,
        network::{ConfigError, NetworkConfig},
    },
    error::Failure,
    kernel::{RouteSocket, bridge, bridge::BridgeError, link},
    store::{AttachmentState, Kind, Store},
};

/// Answers without a lock and without a change: the kubelet asks every few seconds.
///
/// OK means that ADD can do its work, creating what is missing included. A full range fails it only on demand: it must
/// not make the node NotReady, for then the kubelet evicts the Pods that would free an address.
pub(super) fn status(config: &NetworkConfig) -> Result<(), Failure> {
    let attachment = match config.attachment(&CniArgs::default()) {
        Ok(attachment) => attachment,
        // What is wrong with it ADD and CHECK tell by codes of their own; STATUS has this one for all of it.
        Err(ConfigError::Invalid(problems)) => return Err(Failure::Unavailable(problems.to_string())),
        Err(ConfigError::Unsupported(problem)) => return Err(Failure::Unavailable(problem.to_string())),
        Err(error) => return Err(error.into()),
    };
    let delegate = Delegate::of(config).map_err(|error| Failure::Unavailable(error.to_string()))?;
    let store = Store::new(&config.data_dir, &config.name)?;
    require_writable(store.directory())?;
    if let Some(bridge) = attachment.bridge.as_deref().filter(|_| config.makes_links()) {
        let mut host = RouteSocket::open()?;
        match bridge::find(&mut host, bridge) {
            Ok(Some(_)) => {}
            Ok(None) => require_bridges(&store, &mut host)?,
            Err(error @ BridgeError::NotABridge { .. }) => return Err(Failure::Unavailable(error.to_string())),
            Err(error) => return Err(error.into()),
        }
    }
    if attachment.fails_when_full {
        let mut sets = attachment.sets.iter().enumerate();
        if let Some((index, set)) = sets.find(|(index, set)| store.is_exhausted(*index, set)) {
            let size = set.size();
            let first = set.0.first().map(|range| range.subnet.to_string()).unwrap_or_default();
            let text = format!("range set {index} ({first}) is full: {size} of {size} addresses are in use");
            return Err(Failure::Unavailable(text));
        }
    }
    match delegate {
        Some(delegate) => Ok(delegate.call("STATUS")?),
        None => Ok(()),
    }
}

/// Fails if running Pods lack their bridge. It is judged by some of them: what is asked for every few seconds takes no
/// longer the more there are.
fn require_bridges(store: &Store, host: &mut RouteSocket) -> Result<(), Failure> {
    let mut bridges: Vec<String> = Vec::new();
    for record in store.sample()? {
        let is_alive = record.kind == Kind::Bridge && record.state == AttachmentState::Active;
        if is_alive && !bridges.contains(&record.bridge) {
            if link::find(host, &record.bridge)?.is_none() {
                return Err(Failure::Degraded(format!("the bridge {} of running Pods is gone", record.bridge)));
            }
            bridges.push(record.bridge);
        }
    }
    Ok(())
}

/// Whether files can be made in `directory`, which need not be there yet.
pub(super) fn require_writable(directory: &Path) -> Result<(), Failure> {
    // What is missing is made below the nearest directory that there is.
    let mut found = directory.ancestors().filter_map(|path| Some((path, fs::metadata(path).ok()?)));
    let (existing, is_directory) = found.next().map_or((Path::new("/"), true), |(path, found)| (path, found.is_dir()));
    if !is_directory {
        return Err(Failure::Unavailable(format!("{} is not a directory", existing.display())));
    }
    if let Err(errno) = access(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Err(Failure::Unavailable(format!("the store can't be written: {}: {errno}", existing.display())));
    }
    let space = statvfs(existing)
        .map_err(|errno| Failure::Unavailable(format!("failed to inspect {}: {errno}", existing.display())))?;
    // A filesystem that makes inodes as it goes tells of none at all.
    if space.blocks_free() == 0 || (space.files() > 0 && space.files_free() == 0) {
        return Err(Failure::Unavailable(format!("the store can't be written: {} is full", existing.display())));
    }
    Ok(())
}
