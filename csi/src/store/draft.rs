//! Making and unmaking what a pool holds: one rename each.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, atomic::Ordering},
};

use keelson_host::Durability;

use super::{
    format::{create_record, write_record},
    index::{Index, Kept},
    pool::{Pool, StoreError, Syncs, lock},
    record::{GroupRecord, SnapshotRecord, VolumeRecord},
    space::{self, Promise},
};
use crate::kernel::{filesystem, tree};

impl Pool {
    /// Starts something new, of this id, in a folder that is nothing yet.
    pub(crate) fn build(&self, id: &str) -> Result<Draft<'_>, StoreError> {
        let folder = self.building().join(id);
        let site = Site::open(self, id);
        DirBuilder::new().mode(0o700).create(&folder).map_err(StoreError::io("create", &folder))?;
        Ok(Draft { site, folder })
    }

    /// Unmakes something: once the rename is durable it is gone, whatever becomes of the rest.
    pub(crate) fn remove<T: Kept + Promise>(&self, record: &T) -> Result<(), StoreError> {
        let id = record.id().to_string();
        let (folder, grave) = (self.folder(record), self.building().join(&id));
        let _site = Site::open(self, &id);
        lock(&self.leaving).extend(record.project());
        let renamed = self.rename(&folder, &grave, home(&folder), |index| {
            index.ledger.remove(&id);
            T::table_mut(index).remove(record.id());
        });
        // As long as something has the project, it is nobody else's; what can't be removed keeps it from being taken.
        let is_gone = renamed.is_ok() && self.bury(&grave);
        match record.project() {
            Some(project) if is_gone => self.forget_project(project),
            Some(project) => drop(lock(&self.leaving).remove(&project)),
            None => {}
        }
        renamed
    }

    /// Unmakes a group with all its snapshots.
    pub(crate) fn remove_group(&self, group: &GroupRecord) -> Result<(), StoreError> {
        let id = group.id.to_string();
        let (folder, grave) = (self.folder(group), self.building().join(&id));
        let _site = Site::open(self, &id);
        self.rename(&folder, &grave, home(&folder), |index| {
            for snapshot in &group.snapshots {
                index.ledger.remove(snapshot.as_str());
                index.snapshots.remove(snapshot);
            }
            index.groups.remove(&group.id);
        })?;
        self.bury(&grave);
        Ok(())
    }

    /// Whether it is gone.
    fn bury(&self, grave: &Path) -> bool {
        self.unsettled.store(true, Ordering::Relaxed);
        match tree::remove(grave) {
            Ok(deleted) => {
                self.forget_qgroups(&deleted);
                true
            }
            Err(error) => {
                // Its space comes back when the next scan sweeps it.
                let path = grave.display();
                tracing::warn!(pool = self.settings.name, %path, %error, "failed to remove a deleted folder");
                false
            }
        }
    }

    /// Replaces a volume's record, durably. Who calls this holds the volume.
    pub(crate) fn update(&self, record: VolumeRecord) -> Result<(), StoreError> {
        // A scan sees the old record or the new.
        let _arranging = self.arranging.read().unwrap_or_else(PoisonError::into_inner);
        write_record(&self.folder(&record).join(VolumeRecord::FILE), &record, Durability::PowerLoss)?;
        if let Some(index) = self.lock().as_mut() {
            index.ledger.promise(record.id.as_str(), record.promise(self));
            index.volumes.insert(record);
        }
        Ok(())
    }

    /// Makes something one, or none any more: what is renamed is in the index, and durable. Else the index is lost, and
    /// the next check looks at what is there. `home` is the side that isn't `building`: what lies there is swept, whatever
    /// a power cut makes of it.
    pub(super) fn rename(
        &self,
        from: &Path,
        to: &Path,
        home: &Path,
        change: impl FnOnce(&mut Index),
    ) -> Result<(), StoreError> {
        let _arranging = self.arranging.read().unwrap_or_else(PoisonError::into_inner);
        fs::rename(from, to).map_err(StoreError::io("rename", from))?;
        let synced = self.sync_home(home).map_err(StoreError::io("sync", home));
        let mut index = self.lock();
        match (&synced, index.as_mut()) {
            (Ok(()), Some(known)) => change(known),
            _ => *index = None,
        }
        synced
    }
}

impl Pool {
    /// Makes durable what was renamed in `home`. Those who come at the same time wait for the disk together.
    fn sync_home(&self, home: &Path) -> io::Result<()> {
        let Syncs { volumes, snapshots, groups } = &self.syncs;
        let together = [(self.volumes(), volumes), (self.snapshots(), snapshots), (self.groups(), groups)];
        match together.iter().find(|(path, _)| path == home) {
            Some((_, together)) => together.sync(|| self.sync(home)),
            // A group's folder.
            None => self.sync(home),
        }
    }
}

/// The directory in which a folder lies.
fn home(folder: &Path) -> &Path {
    folder.parent().unwrap_or(folder)
}

/// A folder in `building` that this process is at work on; no scan sweeps it until this is dropped.
#[derive(Debug)]
struct Site<'a> {
    pool: &'a Pool,
    name: String,
}

impl<'a> Site<'a> {
    fn open(pool: &'a Pool, name: &str) -> Self {
        lock(&pool.sites).insert(name.to_owned());
        Self { pool, name: name.to_owned() }
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        lock(&self.pool.sites).remove(&self.name);
    }
}

/// Something in the making; dropped before it is committed, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    site: Site<'a>,
    folder: PathBuf,
}

impl Draft<'_> {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a folder in the draft, for a member of a group.
    pub(crate) fn make_folder(&self, name: &str) -> Result<PathBuf, StoreError> {
        let folder = self.folder.join(name);
        DirBuilder::new().mode(0o700).create(&folder).map_err(StoreError::io("create", &folder))?;
        Ok(folder)
    }

    /// Makes the draft what `record` says: from the rename on it is. `content` is synced before, if it isn't yet.
    pub(crate) fn commit<T: Kept + Promise>(self, record: T, content: Option<&File>) -> Result<Arc<T>, StoreError> {
        self.seal(&self.folder, &record, content)?;
        let pool = self.site.pool;
        let record = Arc::new(record);
        let folder = pool.folder(&*record);
        pool.rename(&self.folder, &folder, home(&folder), |index| space::enter(pool, index, &*record))?;
        Ok(record)
    }

    /// Makes the draft a group of the `snapshots` that were sealed in folders of their own below it.
    pub(crate) fn commit_group(self, group: &GroupRecord, snapshots: Vec<SnapshotRecord>) -> Result<(), StoreError> {
        self.seal(&self.folder, group, None)?;
        let pool = self.site.pool;
        let folder = pool.folder(group);
        pool.rename(&self.folder, &folder, home(&folder), |index| {
            index.groups.insert(group.clone());
            for snapshot in snapshots {
                space::enter(pool, index, &snapshot);
            }
        })
    }

    /// Writes a record into `folder` and makes it, its entry and the content durable.
    ///
    /// Each sync of a file is a wait for the disk, unless the one before has written all there was: so the content is
    /// written first and synced last. A directory has no content to sync here: it is as new as its folder.
    pub(crate) fn seal<T: Kept>(&self, folder: &Path, record: &T, content: Option<&File>) -> Result<(), StoreError> {
        let failed = StoreError::io("sync the content in", folder);
        if let Some(content) = content {
            filesystem::write_back(content).map_err(&failed)?;
        }
        let path = folder.join(T::FILE);
        create_record(&path, record)?.sync_all().map_err(StoreError::io("sync", &path))?;
        match content {
            // A new file is synced together with its name.
            Some(content) => content.sync_all().map_err(failed),
            None => self.site.pool.sync_new(folder).map_err(failed),
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // Once it was committed, there is nothing at this path.
        match tree::remove(&self.folder) {
            Ok(deleted) => self.site.pool.forget_qgroups(&deleted),
            Err(error) => tracing::warn!(path = %self.folder.display(), %error, "failed to remove what was half made"),
        }
    }
}
