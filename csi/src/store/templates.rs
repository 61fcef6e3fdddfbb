//! Formatted images that nobody uses: a new volume of the same filesystem and size is cloned from one, which takes a
//! fraction of the time of formatting it.
//!
//! `<pool>/templates/<filesystem>-<bytes>` holds nothing of anybody's and can be removed at any time.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, TryLockError, atomic::Ordering},
};

use super::{
    pool::{Pool, StoreError, create_directory, lock},
    stamp::Stamp,
};
use crate::{
    kernel::{subvolume, superblock::Head},
    policy::FilesystemType,
};

/// How many are kept; the oldest goes first. Sizes of volumes come in few kinds.
const MOST: usize = 8;

/// What is no template yet.
pub(super) const HALF: &str = ".half";

impl Pool {
    /// The template of that filesystem and size, if there is one.
    pub(crate) fn template(&self, filesystem: FilesystemType, bytes: u64) -> Result<Option<File>, StoreError> {
        let path = self.template_path(filesystem, bytes);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", &path)(error)),
        }
    }

    /// Makes the template of that filesystem and size, by `format`, unless somebody is making one at the moment.
    ///
    /// It needn't survive a power cut, but if it does it must be whole: so it is synced before it gets its name.
    pub(crate) fn make_template<E: From<StoreError>>(
        &self,
        filesystem: FilesystemType,
        bytes: u64,
        format: impl FnOnce(&Path) -> Result<File, E>,
    ) -> Result<Option<File>, E> {
        let _making = match self.making_template.try_lock() {
            Ok(making) => making,
            // A panic left half a template at most, which is removed.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        let directory = self.templates();
        create_directory(&directory).map_err(StoreError::from)?;
        let path = self.template_path(filesystem, bytes);
        let half = directory.join(HALF);
        remove_if_there(&half)?;
        let file = format(&half)?;
        file.sync_all().map_err(StoreError::io("sync", &half))?;
        fs::rename(&half, &path).map_err(StoreError::io("rename", &half))?;
        self.thin_out(&path);
        Ok(Some(file))
    }

    /// The first block of a template, or none if it shows no filesystem. Read once, and again if the file has changed.
    pub(crate) fn template_head(
        &self,
        filesystem: FilesystemType,
        bytes: u64,
        template: &File,
    ) -> Result<Option<Arc<Head>>, StoreError> {
        let path = self.template_path(filesystem, bytes);
        let failed = StoreError::io("read", &path);
        let stamp = template.metadata().map(Stamp::from).map_err(&failed)?;
        let kind = (filesystem, bytes);
        if let Some((of, head)) = lock(&self.heads).get(&kind)
            && *of == stamp
        {
            return Ok(Some(Arc::clone(head)));
        }
        let head = Head::read(template, filesystem).map_err(&failed)?.map(Arc::new);
        let mut heads = lock(&self.heads);
        match &head {
            Some(head) => drop(heads.insert(kind, (stamp, Arc::clone(head)))),
            None => drop(heads.remove(&kind)),
        }
        if heads.len() > MOST {
            heads.retain(|other, _| *other == kind);
        }
        Ok(head)
    }

    /// Gives back what the pool can do without, for something that it has no room for: whether that was anything.
    pub(crate) fn make_room(&self) -> Result<bool, StoreError> {
        let directory = self.templates();
        let failed = StoreError::io("list", &directory);
        let templates = match fs::read_dir(&directory) {
            Ok(listed) => listed.collect::<io::Result<Vec<_>>>().map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        // One that is being made has a hidden name.
        let whole = |template: &&fs::DirEntry| !template.file_name().to_string_lossy().starts_with('.');
        let mut removed = false;
        for template in templates.iter().filter(whole) {
            // Not cut short first: somebody may be cloning it.
            remove_if_there(&template.path())?;
            removed = true;
        }
        Ok(self.settle_deletions()? || removed)
    }

    /// Makes the space of what was deleted free: btrfs gives it back with its next transaction. Whether anything was
    /// deleted since the last time.
    pub(crate) fn settle_deletions(&self) -> Result<bool, StoreError> {
        if !self.unsettled.swap(false, Ordering::Relaxed) {
            return Ok(false);
        }
        let path = &self.settings.path;
        let failed = StoreError::io("commit the deletions in", path);
        let directory = File::open(path).map_err(&failed)?;
        if subvolume::is_btrfs(&directory).map_err(&failed)? {
            subvolume::commit(&directory).map_err(failed)?;
        }
        Ok(true)
    }

    /// Forgets a template that can't be used, if nobody has yet.
    pub(crate) fn drop_template(&self, filesystem: FilesystemType, bytes: u64) -> Result<(), StoreError> {
        remove_if_there(&self.template_path(filesystem, bytes))
    }

    fn template_path(&self, filesystem: FilesystemType, bytes: u64) -> PathBuf {
        self.templates().join(format!("{filesystem}-{bytes}"))
    }

    /// Removes the oldest until few enough are left, but not `newest`.
    fn thin_out(&self, newest: &Path) {
        let listed = || -> io::Result<Vec<_>> {
            let mut found = Vec::new();
            for entry in fs::read_dir(self.templates())? {
                let entry = entry?;
                found.push((entry.metadata()?.modified()?, entry.path()));
            }
            found.sort();
            Ok(found)
        };
        let removed = listed().and_then(|found| {
            let surplus = found.len().saturating_sub(MOST);
            found
                .iter()
                .filter(|(_, path)| path != newest)
                .take(surplus)
                .try_for_each(|(_, path)| fs::remove_file(path))
        });
        if let Err(error) = removed {
            tracing::warn!(pool = self.settings.name, %error, "failed to remove old templates");
        }
    }
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
