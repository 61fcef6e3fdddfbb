//! Reading and writing the store's files: each appears, changes and vanishes by one rename or unlink.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{StoreError, record::OLDEST_VERSION, record::VERSION};

/// Reads a versioned JSON file; `None` if it isn't there.
pub(super) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, StoreError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let corrupt = |error: serde_json::Error| StoreError::Corrupt { path: path.to_owned(), detail: error.to_string() };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(corrupt)?;
    if !(OLDEST_VERSION..=VERSION).contains(&version) {
        return Err(StoreError::OtherVersion { path: path.to_owned(), found: version });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(corrupt)
}

/// Replaces a file; the caller holds the lock under which alone it is written.
///
/// So the temporary file can have a name of its own for each file, and what a killed process left of it is found
/// without a look at the directory. Nothing is synced: what another boot left is void, and surviving this process is
/// enough.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|error| StoreError::Corrupt { path: path.to_owned(), detail: error.to_string() })?;
    bytes.push(b'\n');
    let temporary = temporary_of(path);
    let written = (|| {
        let mut options = fs::File::options();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(&temporary)?.write_all(&bytes)?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The write's own error is what the caller needs; a leftover goes with the next call.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed("write", path))
}

/// Where a file lies until it is whole: `.NAME.tmp` beside it.
pub(super) fn temporary_of(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.tmp", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// The name of the file that will be, if this is a file that has not yet been renamed.
pub(super) fn temporary_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix('.')?.strip_suffix(".tmp")
}

/// Removes a file; one that is gone already is no error.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    ignore_absence(fs::remove_file(path)).map_err(failed("remove", path))
}

/// The paths in a directory; none if it isn't there.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", directory)(error)),
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed("list", directory))).collect()
}

/// Where a symbolic link leads; `None` if it isn't there.
pub(super) fn read_link(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    match fs::read_link(path) {
        Ok(target) => Ok(Some(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

pub(super) fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}

pub(super) fn ignore_absence(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
