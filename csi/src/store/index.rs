//! What a pool holds, by id and by name, once it was scanned.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{Debug, Display},
    ops::Bound,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
};

use super::{
    format::Format,
    pool::Pool,
    record::{GroupRecord, SnapshotRecord, VolumeRecord},
};
use crate::policy::{ForeignId, GroupId, Ledger, SnapshotId, VolumeId};

/// A kind of thing that lies in a pool in a folder of its own, with a record of itself.
pub(crate) trait Kept: Format + Clone + Debug + Send + Sync {
    type Id: FromStr<Err = ForeignId> + Clone + Ord + std::hash::Hash + Display + Debug + Send + Sync;
    /// What it is called in messages.
    const WHAT: &'static str;
    /// The record's file name.
    const FILE: &'static str;

    fn id(&self) -> &Self::Id;
    fn name(&self) -> &str;
    /// The folder in which it lies.
    fn folder(&self, pool: &Pool) -> PathBuf;
    fn table(index: &Index) -> &Table<Self>;
    fn table_mut(index: &mut Index) -> &mut Table<Self>;
}

/// Everything of one kind.
#[derive(Debug)]
pub(crate) struct Table<T: Kept> {
    by_id: BTreeMap<T::Id, Arc<T>>,
    by_name: HashMap<String, T::Id>,
}

impl<T: Kept> Default for Table<T> {
    fn default() -> Self {
        Self { by_id: BTreeMap::new(), by_name: HashMap::new() }
    }
}

impl<T: Kept> Table<T> {
    pub(super) fn insert(&mut self, record: T) {
        self.by_name.insert(record.name().to_owned(), record.id().clone());
        self.by_id.insert(record.id().clone(), Arc::new(record));
    }

    pub(super) fn remove(&mut self, id: &T::Id) {
        if let Some(record) = self.by_id.remove(id)
            && self.by_name.get(record.name()) == Some(id)
        {
            // The members of groups all have the same.
            self.by_name.remove(record.name());
        }
    }

    pub(super) fn get(&self, id: &T::Id) -> Option<&Arc<T>> {
        self.by_id.get(id)
    }

    pub(super) fn named(&self, name: &str) -> Option<&Arc<T>> {
        self.by_name.get(name).and_then(|id| self.by_id.get(id))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.by_id.values()
    }

    /// At most `count` records whose ids come after `after`, in the order of their ids.
    pub(super) fn after(&self, after: Option<&T::Id>, count: usize) -> Vec<Arc<T>> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_id.range((start, Bound::Unbounded)).take(count).map(|(_, record)| Arc::clone(record)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}

/// What one scan of a pool finds, and what has changed since.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// The number of the filesystem that the pool lies on.
    pub(super) device: u64,
    pub(super) volumes: Table<VolumeRecord>,
    pub(super) snapshots: Table<SnapshotRecord>,
    pub(super) groups: Table<GroupRecord>,
    /// Folders whose record can't be read, by name, and why.
    pub(super) damaged: BTreeMap<String, String>,
    /// What was promised to all of them.
    pub(super) ledger: Ledger,
}

impl Kept for VolumeRecord {
    type Id = VolumeId;
    const WHAT: &'static str = "volume";
    const FILE: &'static str = "volume.json";

    fn id(&self) -> &VolumeId {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn folder(&self, pool: &Pool) -> PathBuf {
        pool.volumes().join(self.id.as_str())
    }

    fn table(index: &Index) -> &Table<Self> {
        &index.volumes
    }

    fn table_mut(index: &mut Index) -> &mut Table<Self> {
        &mut index.volumes
    }
}

impl Kept for SnapshotRecord {
    type Id = SnapshotId;
    const WHAT: &'static str = "snapshot";
    const FILE: &'static str = "snapshot.json";

    fn id(&self) -> &SnapshotId {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn folder(&self, pool: &Pool) -> PathBuf {
        let home = self.group.as_ref().map_or_else(|| pool.snapshots(), |group| pool.groups().join(group.as_str()));
        home.join(self.id.as_str())
    }

    fn table(index: &Index) -> &Table<Self> {
        &index.snapshots
    }

    fn table_mut(index: &mut Index) -> &mut Table<Self> {
        &mut index.snapshots
    }
}

impl Kept for GroupRecord {
    type Id = GroupId;
    const WHAT: &'static str = "group snapshot";
    const FILE: &'static str = "group.json";

    fn id(&self) -> &GroupId {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn folder(&self, pool: &Pool) -> PathBuf {
        pool.groups().join(self.id.as_str())
    }

    fn table(index: &Index) -> &Table<Self> {
        &index.groups
    }

    fn table_mut(index: &mut Index) -> &mut Table<Self> {
        &mut index.groups
    }
}
