//! Looking at a pool from outside: what is there, while a driver may be using it. Nothing is made, swept or locked.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::atomic::Ordering,
};

use super::{
    format::RecordError,
    identity::{MARKER, Marker, Remembered, is_empty},
    pool::{IdentityError, Pool, Unavailable, lock},
    scan::entries,
};
use crate::{
    config::PoolKind,
    kernel::{filesystem, reflink},
    policy::{Abilities, GroupId, SnapshotId, VolumeId},
};

/// What a look at a pool found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The pool: it can be asked as one that was checked.
    Pool {
        read_only: bool,
        /// Whether it is remembered under its name; one that isn't will be at its first use.
        remembered: bool,
    },
    /// What becomes the pool when it is first used: an empty directory, or none.
    Unused,
}

impl Pool {
    /// Recognises the pool and reads what it holds, as a check does, but leaves everything as it is.
    pub(crate) fn survey(&self) -> Result<Sight, Unavailable> {
        self.recognise_only().map_err(|source| self.unavailable(source))
    }

    fn recognise_only(&self) -> Result<Sight, IdentityError> {
        let settings = &self.settings;
        let path = &settings.path;
        let remembered = Remembered::read(&self.state_dir, &settings.name)?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(IdentityError::NotADirectory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let may_come = remembered.is_none() && settings.may_create;
                return if may_come { Ok(Sight::Unused) } else { Err(IdentityError::Missing) };
            }
            Err(error) => return Err(RecordError::io("look at", path)(error).into()),
        }
        let Some(marker) = Marker::read(path)? else {
            return match remembered {
                Some(_) => Err(IdentityError::NoMarker),
                None if is_empty(path).map_err(RecordError::io("list", path))? => Ok(Sight::Unused),
                None => Err(IdentityError::NotEmpty),
            };
        };
        if marker.kind != settings.kind {
            return Err(IdentityError::OtherKind { found: marker.kind, wanted: settings.kind });
        }
        let is_remembered = remembered.is_some();
        if let Some(remembered) = remembered {
            let filesystem_uuid = filesystem::uuid(path).map_err(IdentityError::Filesystem)?;
            self.compare(&marker, filesystem_uuid, &remembered)?;
        }
        let read_only = filesystem::is_read_only(path).map_err(IdentityError::Filesystem)?;
        self.read_only.store(read_only, Ordering::Relaxed);
        let least = Abilities::least(settings.kind);
        *lock(&self.abilities) = Some(match settings.kind {
            PoolKind::Image => {
                let shares_blocks = reflink::shares_blocks(path).map_err(IdentityError::Filesystem)?;
                Abilities { shares_blocks, ..least }
            }
            PoolKind::Directory | PoolKind::Subvolume => {
                Abilities { enforces_sizes: self.probe_limits(true).is_ok(), ..least }
            }
        });
        let index = self.read()?;
        *self.lock() = Some(index);
        Ok(Sight::Pool { read_only, remembered: is_remembered })
    }

    /// Takes the pool for this process alone, which no driver has now, until [`Pool::release`].
    pub(crate) fn claim_now(&self) -> Result<(), Unavailable> {
        self.claim().map_err(|source| self.unavailable(source))
    }

    /// The file that tells which pool it is, and that who uses the pool has locked.
    pub(crate) fn marker(&self) -> PathBuf {
        self.settings.path.join(MARKER)
    }

    /// What lies in `building`: half made, or half removed.
    pub(crate) fn leftovers(&self) -> Result<Vec<PathBuf>, RecordError> {
        entries(&self.building())
    }

    /// What lies among the templates, finished or not.
    pub(crate) fn template_files(&self) -> Result<Vec<PathBuf>, RecordError> {
        entries(&self.templates())
    }

    /// What lies among volumes, snapshots and groups and isn't named like one of them.
    pub(crate) fn strangers(&self) -> Result<Vec<PathBuf>, RecordError> {
        let mut found = Vec::new();
        collect::<VolumeId>(&self.volumes(), &mut found)?;
        collect::<SnapshotId>(&self.snapshots(), &mut found)?;
        collect::<GroupId>(&self.groups(), &mut found)?;
        Ok(found)
    }
}

fn collect<Id: FromStr>(home: &Path, found: &mut Vec<PathBuf>) -> Result<(), RecordError> {
    let is_id = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<Id>().ok()).is_some();
    found.extend(entries(home)?.into_iter().filter(|path| !is_id(path)));
    Ok(())
}
