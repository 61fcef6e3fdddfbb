//! Which pool is which: a marker in the pool, and the memory of it outside.
//!
//! If what lies at a pool's path isn't the pool that is remembered there, its disk isn't mounted, or another one is.
//! An unmounted disk must never read as "all volumes are gone".

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use keelson_host::Durability;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::format::{Format, RecordError, read_record, write_record};
use crate::config::PoolKind;

/// The marker's name in the pool's directory.
pub(super) const MARKER: &str = "keelson-pool.json";

/// `<pool>/keelson-pool.json`: makes a directory a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Marker {
    /// This pool's own; a copy of the pool has the same.
    pub(crate) uuid: Uuid,
    /// How its volumes are kept; can't be changed later.
    pub(crate) kind: PoolKind,
}

impl Format for Marker {
    const NEWEST: u32 = 1;
}

/// `<stateDir>/storage/pools/<name>.json`: what the pool of that name was when it was first used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Remembered {
    /// The marker's UUID.
    pub(crate) uuid: Uuid,
    /// The UUID of the filesystem it lies on; none where the filesystem or the kernel doesn't tell.
    pub(crate) filesystem_uuid: Option<Uuid>,
    /// Where it was.
    pub(crate) path: PathBuf,
}

impl Format for Remembered {
    const NEWEST: u32 = 1;
}

impl Marker {
    /// A new pool's.
    pub(crate) fn generate(kind: PoolKind) -> Self {
        Self { uuid: Uuid::new_v4(), kind }
    }

    /// The marker of the pool at `pool`, or none.
    pub(crate) fn read(pool: &Path) -> Result<Option<Self>, RecordError> {
        read_record(&pool.join(MARKER))
    }

    pub(crate) fn write(&self, pool: &Path) -> Result<(), RecordError> {
        write_record(&pool.join(MARKER), self, Durability::PowerLoss)
    }
}

impl Remembered {
    pub(crate) fn new(marker: &Marker, filesystem_uuid: Option<Uuid>, path: &Path) -> Self {
        Self { uuid: marker.uuid, filesystem_uuid, path: path.to_owned() }
    }

    /// Where the memory of the pool `name` is kept.
    pub(crate) fn path_of(state_dir: &Path, name: &str) -> PathBuf {
        state_dir.join("storage/pools").join(format!("{name}.json"))
    }

    /// What is remembered of the pool `name`, or none if it was never used.
    pub(crate) fn read(state_dir: &Path, name: &str) -> Result<Option<Self>, RecordError> {
        read_record(&Self::path_of(state_dir, name))
    }

    pub(crate) fn write(&self, state_dir: &Path, name: &str) -> Result<(), RecordError> {
        let path = Self::path_of(state_dir, name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(RecordError::io("create", directory))?;
        }
        write_record(&path, self, Durability::PowerLoss)
    }
}

/// Whether a pool, whichever, lies at `path`.
pub(crate) fn is_some_pool(path: &Path) -> bool {
    path.join(MARKER).exists()
}

/// What a directory is to a pool of the config.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    /// It is a pool of that kind, and no other one is remembered.
    Pool(PoolKind),
    /// It can become one.
    Empty,
    /// It holds what isn't a pool's.
    NotEmpty,
    /// Another pool is remembered, whose disk may come back.
    Unknown,
}

/// What the directory at `path` is to the pool that is remembered as `remembered`, if it is.
pub(crate) fn fitness(path: &Path, remembered: Option<&Remembered>) -> Result<Fitness, RecordError> {
    Ok(match (Marker::read(path)?, remembered) {
        (Some(marker), None) => Fitness::Pool(marker.kind),
        (Some(marker), Some(remembered)) if marker.uuid == remembered.uuid => Fitness::Pool(marker.kind),
        (None, None) if is_empty(path).map_err(RecordError::io("list", path))? => Fitness::Empty,
        (None, None) => Fitness::NotEmpty,
        (_, Some(_)) => Fitness::Unknown,
    })
}

/// Whether the directory holds nothing that somebody would miss if it became a pool.
pub(crate) fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        // mkfs.ext4 makes lost+found; write_atomic of a killed process leaves the other.
        if name != "lost+found" && !name.to_string_lossy().starts_with(&format!(".{MARKER}.")) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_as_documented() {
        let directory = tempfile::tempdir().unwrap();
        let marker = r#"{"version": 1, "uuid": "6f0c2f9e-5a57-4c0f-9a77-0d7c9d3f1a11", "kind": "image"}"#;
        fs::write(directory.path().join(MARKER), marker).unwrap();
        let found = Marker::read(directory.path()).unwrap().unwrap();
        assert_eq!(found.kind, PoolKind::Image);
        let remembered = Remembered::new(&found, None, directory.path());
        remembered.write(directory.path(), "default").unwrap();
        assert_eq!(Remembered::read(directory.path(), "default").unwrap(), Some(remembered));
        assert_eq!(Remembered::read(directory.path(), "other").unwrap(), None);
    }

    #[test]
    fn a_directory_is_a_pool_or_may_become_one_or_is_somebodys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let fit = |remembered: Option<&Remembered>| fitness(path, remembered).unwrap();
        assert!(!is_some_pool(path) && is_empty(path).unwrap());
        assert_eq!(fit(None), Fitness::Empty);
        fs::create_dir(path.join("lost+found")).unwrap();
        fs::write(path.join(format!(".{MARKER}.1.0.tmp")), "").unwrap();
        assert_eq!(fit(None), Fitness::Empty);
        fs::write(path.join("file"), "").unwrap();
        assert_eq!(fit(None), Fitness::NotEmpty);
        let (marker, other) = (Marker::generate(PoolKind::Image), Marker::generate(PoolKind::Image));
        let (own, foreign) = (Remembered::new(&marker, None, path), Remembered::new(&other, None, path));
        assert_eq!(fit(Some(&own)), Fitness::Unknown);
        marker.write(path).unwrap();
        assert!(is_some_pool(path));
        assert_eq!((fit(None), fit(Some(&own))), (Fitness::Pool(PoolKind::Image), Fitness::Pool(PoolKind::Image)));
        assert_eq!(fit(Some(&foreign)), Fitness::Unknown);
    }

    #[test]
    fn a_later_version_is_named_as_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(MARKER), r#"{"version": 2, "more": true}"#).unwrap();
        let error = Marker::read(directory.path()).unwrap_err();
        assert!(error.to_string().ends_with("has version 2; this program reads version 1 to 1"), "{error}");
    }

    #[test]
    fn anything_else_is_an_error_and_not_an_absence() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["", "{", "[]", "{}", r#"{"version": 1}"#, r#"{"version": -1}"#] {
            fs::write(directory.path().join(MARKER), text).unwrap();
            assert!(Marker::read(directory.path()).is_err(), "{text:?}");
        }
    }
}
