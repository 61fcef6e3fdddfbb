//! The CDI files: one per resource, `keelson-VENDOR_CLASS.json` in the runtime's directory for dynamic specifications.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use keelson_host::{Durability, write_atomic};

use super::StoreError;
use crate::{config::ResourceName, policy::CdiSpec};

/// Files of that start are the plugin's own. Two files that name the same device make the runtime refuse both, so what
/// another version left has to be recognized.
const PREFIX: &str = "keelson-";

/// The directory of CDI files.
#[derive(Clone, Debug)]
pub(crate) struct CdiStore {
    directory: PathBuf,
}

impl CdiStore {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Makes the directory if it isn't there: runtimes differ in what they do about a missing one.
    pub(crate) fn create_directory(&self) -> Result<(), StoreError> {
        fs::create_dir_all(&self.directory)
            .map_err(|source| StoreError::Directory { path: self.directory.clone(), source })
    }

    /// Writes a resource's file, or removes it if there is nothing to write. True if that changed anything.
    ///
    /// The files don't survive a reboot where the directory is a tmpfs, and are written again by then; so nothing is
    /// synced.
    pub(crate) fn put(&self, name: &ResourceName, spec: Option<&CdiSpec>) -> Result<bool, StoreError> {
        let path = self.path(name);
        let Some(spec) = spec else { return remove(&path) };
        let mut content =
            serde_json::to_vec_pretty(spec).map_err(|source| StoreError::Json { path: path.clone(), source })?;
        content.push(b'\n');
        if fs::read(&path).is_ok_and(|found| found == content) {
            return Ok(false);
        }
        self.create_directory()?;
        write_atomic(&path, &content, 0o644, Durability::Process)
            .map_err(|source| StoreError::Write { path, source })?;
        Ok(true)
    }

    /// Removes every file of ours that belongs to none of these resources, and what a killed process left half
    /// written. The first error is returned after all else was tried.
    pub(crate) fn sweep<'a>(&self, keep: impl IntoIterator<Item = &'a ResourceName>) -> Result<(), StoreError> {
        let keep: BTreeSet<PathBuf> = keep.into_iter().map(|name| self.path(name)).collect();
        let failed = |source| StoreError::Read { path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let mut outcome = Ok(());
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours = name.starts_with(PREFIX) && name.ends_with(".json");
            let half_written =
                name.strip_prefix('.').is_some_and(|rest| rest.starts_with(PREFIX)) && name.ends_with(".tmp");
            if (ours && !keep.contains(&path)) || half_written {
                outcome = outcome.and(remove(&path).map(drop));
            }
        }
        outcome
    }

    fn path(&self, name: &ResourceName) -> PathBuf {
        // A DNS name has no underscore, so no two kinds share a file.
        let (vendor, class) = name.cdi_kind();
        self.directory.join(format!("{PREFIX}{vendor}_{class}.json"))
    }
}

fn remove(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StoreError::Remove { path: path.to_owned(), source }),
    }
}
