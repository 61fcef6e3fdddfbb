//! Removing a boot's directory, and nothing else that may lie beside it or in it.
//!
//! The user chooses where the store lies. Next to our directories there may be somebody else's, or another network's
//! store; so only what has the names and the kinds that we give is removed, one level at a time, and no link followed.

use std::{
    ffi::OsStr,
    fs::{self, FileType},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    StoreError,
    file::{failed, ignore_absence, remove as remove_file, temporary_name},
};

/// Whether `name` is a boot id as the kernel writes it: `786e34df-2b17-43ec-a752-2a9c03c61333`.
fn is_boot_id(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.len() == 36
        && name.iter().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// The boots' directories in `network_dir` except that of `current`.
pub(super) fn others(network_dir: &Path, current: &str) -> Result<Vec<PathBuf>, StoreError> {
    let is_other = |(path, kind): &(PathBuf, FileType)| {
        let name = path.file_name().unwrap_or_default();
        kind.is_dir() && is_boot_id(name) && name != current
    };
    Ok(entries(network_dir)?.into_iter().filter(is_other).map(|(path, _)| path).collect())
}

/// Removes the boots' directories in `network_dir` except that of `current`.
pub(super) fn remove_others(network_dir: &Path, current: &str) -> Result<(), StoreError> {
    others(network_dir, current)?.iter().try_for_each(|path| remove(path))
}

/// Removes a boot's directory if all that is in it is a store's, else leaves all of it.
pub(super) fn remove(directory: &Path) -> Result<(), StoreError> {
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for (path, kind) in entries(directory)? {
        let name = name_of(&path);
        if kind.is_file() && (temporary_name(&path).is_some() || is_numbered(&name, "allocator-", ".json")) {
            files.push(path);
            continue;
        }
        let is_ours: fn(&Path, FileType) -> bool = match name.as_str() {
            "attachments" => {
                |path, kind| kind.is_file() && (temporary_name(path).is_some() || name_of(path).contains('@'))
            }
            "addresses" => |path, kind| kind.is_symlink() && name_of(path).parse::<IpAddr>().is_ok(),
            name if is_numbered(name, "released-", "") => {
                |path, kind| kind.is_symlink() && is_numbered(&name_of(path), "", "")
            }
            _ => return Ok(()),
        };
        if !kind.is_dir() {
            return Ok(());
        }
        for (inner, kind) in entries(&path)? {
            if !is_ours(&inner, kind) {
                return Ok(());
            }
            files.push(inner);
        }
        directories.push(path);
    }
    for file in &files {
        remove_file(file)?;
    }
    directories.push(directory.to_owned());
    for directory in &directories {
        remove_empty(directory)?;
    }
    Ok(())
}

/// Removes a directory unless there is something in it.
pub(super) fn remove_empty(directory: &Path) -> Result<(), StoreError> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => ignore_absence(other).map_err(failed("remove", directory)),
    }
}

/// What lies in a directory, with its kind, links not followed; nothing if the directory is gone.
fn entries(directory: &Path) -> Result<Vec<(PathBuf, FileType)>, StoreError> {
    let found = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("list", directory))?,
    };
    found
        .map(|entry| {
            let entry = entry.map_err(failed("list", directory))?;
            let kind = entry.file_type().map_err(failed("inspect", &entry.path()))?;
            Ok((entry.path(), kind))
        })
        .collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_numbered(name: &str, prefix: &str, suffix: &str) -> bool {
    name.strip_prefix(prefix)
        .and_then(|rest| rest.strip_suffix(suffix))
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}
