//! Sockets in the kubelet's directory: its own and ours.

use std::{
    fs, io,
    os::{linux::fs::MetadataExt, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
};

use keelson_host::is_dead_socket;
use uuid::Uuid;

const PREFIX: &str = "keelson-";
const SUFFIX: &str = ".sock";

/// A path for a socket that no registration has had.
///
/// The kubelet takes a registration of a path that it still holds a stream to as done already, and then loses the
/// resource when that stream ends (kubernetes/kubernetes#139765).
pub(super) fn fresh_path(directory: &Path) -> PathBuf {
    let (random, _) = Uuid::new_v4().as_u64_pair();
    directory.join(format!("{PREFIX}{random:016x}{SUFFIX}"))
}

/// Which socket is at a path. A kubelet that starts makes its own anew; the inode's number may be the old one's again,
/// its time isn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketIdentity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

/// The kubelet's socket, if there is one.
pub(super) fn kubelet_socket(directory: &Path) -> io::Result<Option<SocketIdentity>> {
    match fs::symlink_metadata(kubelet_path(directory)) {
        Ok(found) if found.file_type().is_socket() => Ok(Some(SocketIdentity {
            device: found.st_dev(),
            inode: found.st_ino(),
            modified: (found.st_mtime(), found.st_mtime_nsec()),
        })),
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the kubelet listens for registrations (deviceplugin/v1beta1/constants.go).
pub(super) fn kubelet_path(directory: &Path) -> PathBuf {
    directory.join("kubelet.sock")
}

/// Removes sockets of ours that nobody serves: a killed process leaves them, and the kubelet removes them only when it
/// starts.
pub(crate) fn sweep_dead_sockets(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Bound under a temporary name first: see `PrivateSocket`.
        let ours = name.starts_with(PREFIX) && (name.ends_with(SUFFIX) || name.ends_with(".tmp"));
        if ours && entry.file_type()?.is_socket() && is_dead_socket(&entry.path())? {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}
