//! The pools of the config as they are now.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use keelson_host::error_chain;

use crate::{
    StorageSettings,
    policy::Content,
    store::{GroupRecord, Kept, Pool, Pools, Sight, SnapshotRecord, Unavailable, VolumeRecord, content_path},
};

/// What a look at each pool found.
pub(super) struct Survey {
    pub(super) pools: Pools,
    sights: Vec<Result<Sight, Unavailable>>,
}

impl Survey {
    pub(super) fn take(settings: &StorageSettings) -> Self {
        let pools = Pools::new(settings.pools.clone(), &settings.state_dir);
        let sights = pools.iter().map(Pool::survey).collect();
        Self { pools, sights }
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (&Pool, &Result<Sight, Unavailable>)> {
        self.pools.iter().zip(&self.sights)
    }

    /// The pools that could be read.
    pub(super) fn read(&self) -> impl Iterator<Item = &Pool> {
        self.each().filter(|(_, sight)| matches!(sight, Ok(Sight::Pool { .. }))).map(|(pool, _)| pool)
    }

    /// The names of those that could not, and may hold anything.
    pub(super) fn unread(&self) -> Vec<String> {
        self.each().filter(|(_, sight)| sight.is_err()).map(|(pool, _)| pool.settings.name.clone()).collect()
    }

    /// All records of one kind, by id within each pool.
    pub(super) fn records<T: Kept>(&self) -> impl Iterator<Item = (&Pool, Arc<T>)> {
        self.read().flat_map(|pool| {
            // It was read, and nobody else has this picture of it.
            pool.filtered::<T>(|_| true).unwrap_or_default().into_iter().map(move |record| (pool, record))
        })
    }

    /// Everything that has content, by id within each pool.
    pub(super) fn items(&self) -> Vec<Item<'_>> {
        let volumes = self.records::<VolumeRecord>().map(|(pool, record)| Item::new(pool, Subject::Volume(record)));
        let snapshots =
            self.records::<SnapshotRecord>().map(|(pool, record)| Item::new(pool, Subject::Snapshot(record)));
        volumes.chain(snapshots).collect()
    }

    /// Everything whose record can't be read, by id within each pool.
    pub(super) fn damaged(&self) -> Vec<Damaged<'_>> {
        let of = |pool: &'_ Pool| {
            let mut found = pool.damaged().unwrap_or_default();
            found.sort();
            found
        };
        let each = self.read().flat_map(|pool| of(pool).into_iter().map(move |found| (pool, found)));
        each.map(|(pool, (id, reason))| Damaged { pool, folder: folder_of(pool, &id), id, reason }).collect()
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = (&Pool, Arc<GroupRecord>)> {
        self.records()
    }
}

/// A volume, snapshot or group whose record can't be read.
pub(super) struct Damaged<'a> {
    pub(super) pool: &'a Pool,
    pub(super) id: String,
    pub(super) folder: PathBuf,
    pub(super) reason: String,
}

/// Where what is called so lies, by its name alone; the pool itself if it is gone.
fn folder_of(pool: &Pool, id: &str) -> PathBuf {
    let path = &pool.settings.path;
    let mut places = ["volumes", "snapshots", "groups"].map(|home| path.join(home).join(id)).into_iter();
    places.find(|place| place.exists()).unwrap_or_else(|| path.clone())
}

/// Something that has content: a volume or a snapshot.
pub(super) struct Item<'a> {
    pub(super) pool: &'a Pool,
    pub(super) subject: Subject,
    pub(super) folder: PathBuf,
}

pub(super) enum Subject {
    Volume(Arc<VolumeRecord>),
    Snapshot(Arc<SnapshotRecord>),
}

impl<'a> Item<'a> {
    fn new(pool: &'a Pool, subject: Subject) -> Self {
        let folder = match &subject {
            Subject::Volume(record) => pool.folder(&**record),
            Subject::Snapshot(record) => pool.folder(&**record),
        };
        Self { pool, subject, folder }
    }

    pub(super) fn id(&self) -> &str {
        match &self.subject {
            Subject::Volume(record) => record.id.as_str(),
            Subject::Snapshot(record) => record.id.as_str(),
        }
    }

    pub(super) fn name(&self) -> &str {
        match &self.subject {
            Subject::Volume(record) => &record.name,
            Subject::Snapshot(record) => &record.name,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match &self.subject {
            Subject::Volume(record) => record.bytes,
            Subject::Snapshot(record) => record.bytes,
        }
    }

    pub(super) fn content(&self) -> &Content {
        match &self.subject {
            Subject::Volume(record) => &record.content,
            Subject::Snapshot(record) => &record.content,
        }
    }

    pub(super) fn family(&self) -> &str {
        match &self.subject {
            Subject::Volume(record) => record.family().as_str(),
            Subject::Snapshot(record) => record.family.as_str(),
        }
    }

    pub(super) fn volume(&self) -> Option<&VolumeRecord> {
        match &self.subject {
            Subject::Volume(record) => Some(record),
            Subject::Snapshot(_) => None,
        }
    }

    pub(super) fn is_image(&self) -> bool {
        self.content().kind().is_image()
    }

    /// Its image or directory.
    pub(super) fn path(&self) -> PathBuf {
        content_path(&self.folder, self.content().kind())
    }

    /// Whether it was deleted since it was listed.
    pub(super) fn is_gone(&self) -> bool {
        is_absent(&self.folder)
    }

    /// How it is spoken of.
    pub(super) fn title(&self) -> String {
        let what = if self.volume().is_some() { "volume" } else { "snapshot" };
        if self.name().is_empty() {
            // A member of a group has no name of its own.
            return format!("{what} {}", self.id());
        }
        format!("{what} {} ({})", self.id(), self.name())
    }

    pub(super) fn is_called(&self, selector: &str) -> bool {
        self.id() == selector || self.name() == selector
    }
}

/// Why a pool can't be used, without its name and path, which who asks has said already.
pub(super) fn why(unavailable: &Unavailable) -> String {
    std::error::Error::source(unavailable).map_or_else(|| unavailable.to_string(), error_chain)
}

pub(super) fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// As `ls` and `show` name it.
pub(super) fn content_name(content: &Content) -> &'static str {
    match content {
        Content::Block => "block",
        Content::Filesystem { filesystem, .. } => filesystem.as_str(),
        Content::Directory => "directory",
        Content::Subvolume => "subvolume",
    }
}
