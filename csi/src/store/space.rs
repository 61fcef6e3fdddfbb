//! What lies in a pool, in bytes: promised, and taken.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    panic::resume_unwind,
    thread,
};

use super::{
    format::RecordError,
    index::{Index, Kept},
    pool::{Pool, StoreError, lock},
    record::{SnapshotRecord, VolumeRecord, content_path},
    scan::entries,
};
use crate::{
    kernel::{extents, quota, subvolume},
    policy::{ContentKind, Figures, Ledger, SnapshotId, VolumeId, charge},
};

/// What a pool promises to something that lies in it.
pub(crate) trait Promise: Kept {
    /// What it can come to take, in bytes.
    fn promise(&self, pool: &Pool) -> u64;

    /// What all those have in common that may share blocks with it.
    fn relatives(&self) -> &str;

    /// At most so many of its bytes are shared with a template.
    fn template_bytes(&self) -> u64;

    /// What it was cut from.
    fn cut_from(&self) -> Option<&str>;

    /// The project id of its quota.
    fn project(&self) -> Option<u32> {
        None
    }
}

impl Promise for VolumeRecord {
    fn promise(&self, pool: &Pool) -> u64 {
        if pool.enforces(self) { charge(self.bytes) } else { 0 }
    }

    fn relatives(&self) -> &str {
        self.family().as_str()
    }

    fn template_bytes(&self) -> u64 {
        self.template_bytes
    }

    fn cut_from(&self) -> Option<&str> {
        self.source.as_ref().map(super::record::Source::as_str)
    }

    fn project(&self) -> Option<u32> {
        self.project
    }
}

impl Promise for SnapshotRecord {
    fn promise(&self, _: &Pool) -> u64 {
        charge(self.held)
    }

    fn relatives(&self) -> &str {
        self.family.as_str()
    }

    fn template_bytes(&self) -> u64 {
        self.template_bytes
    }

    fn cut_from(&self) -> Option<&str> {
        Some(self.volume.as_str())
    }
}

/// What a volume of `bytes` can come to take: nothing is promised where nothing keeps it from taking all there is.
pub(crate) fn promise_of(kind: ContentKind, bytes: u64, pool: &Pool) -> u64 {
    if kind.is_image() || pool.abilities().enforces_sizes { charge(bytes) } else { 0 }
}

/// Enters a record that was committed just now.
pub(super) fn enter<T: Promise>(pool: &Pool, index: &mut Index, record: &T) {
    let key = record.id().to_string();
    let (family, promise, template) = (record.relatives(), record.promise(pool), record.template_bytes());
    match record.cut_from() {
        Some(source) if pool.abilities().shares_blocks => {
            index.ledger.insert_cut(&key, source, family, promise, template);
        }
        _ => index.ledger.insert(&key, family, promise, template),
    }
    T::table_mut(index).insert(record.clone());
}

/// Enters everything that a scan found into the ledger.
pub(super) fn enter_all(pool: &Pool, index: &mut Index) -> Result<(), RecordError> {
    let Index { volumes, snapshots, damaged, ledger, .. } = index;
    for volume in volumes.iter() {
        ledger.insert(volume.id.as_str(), volume.family().as_str(), volume.promise(pool), volume.template_bytes);
    }
    for snapshot in snapshots.iter() {
        ledger.insert(snapshot.id.as_str(), snapshot.family.as_str(), snapshot.promise(pool), snapshot.template_bytes);
    }
    // Whatever a damaged volume is, its file or subvolume may be filled.
    for name in damaged.keys() {
        let data = pool.volumes().join(name).join("data");
        if let Ok(Some(subvolume::Figures { exclusive, limit: Some(limit), .. })) = subvolume::figures_at(&data) {
            ledger.insert(name, name, charge(limit), 0);
            ledger.measured(name, 0, Figures { exclusive, shared: 0 });
        }
        let image = pool.volumes().join(name).join("image");
        match fs::metadata(&image) {
            Ok(found) => {
                ledger.insert(name, name, charge(found.len()), 0);
                let taken = Figures { exclusive: found.blocks().saturating_mul(512), shared: 0 };
                ledger.measured(name, 0, taken);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RecordError::io("look at", &image)(error)),
        }
    }
    enter_damaged_snapshots(pool, damaged, ledger)
}

/// A damaged snapshot holds what it has.
fn enter_damaged_snapshots(
    pool: &Pool,
    damaged: &BTreeMap<String, String>,
    ledger: &mut Ledger,
) -> Result<(), RecordError> {
    let mut names = damaged.keys().filter(|name| name.parse::<SnapshotId>().is_ok()).peekable();
    if names.peek().is_none() {
        return Ok(());
    }
    let mut homes = entries(&pool.groups())?;
    homes.push(pool.snapshots());
    for name in names {
        let Some(folder) = homes.iter().map(|home| home.join(name)).find(|folder| folder.exists()) else { continue };
        let held = match subvolume::figures_at(&folder.join("data")) {
            Ok(Some(subvolume::Figures { exclusive, referenced, .. })) => Some((referenced, exclusive)),
            _ => File::open(folder.join("image")).ok().and_then(|image| {
                let allocated = image.metadata().ok()?.blocks().saturating_mul(512);
                let shares = pool.abilities().shares_blocks;
                let alone = if shares { extents::usage(&image).ok()?.exclusive_bytes } else { allocated };
                Some((allocated, alone))
            }),
        };
        let Some((held, exclusive)) = held else { continue };
        ledger.insert(name, name, charge(held), 0);
        ledger.measured(name, 0, Figures { exclusive, shared: 0 });
    }
    Ok(())
}

/// What a look at a pool is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    First,
    /// Once more: what a Pod gave back since the first one is no longer taken.
    Again,
}

impl Pool {
    /// What was promised to all that lies here, and how much of that is taken at least.
    ///
    /// Only what may have changed is measured: what a Pod can write to, and what shares blocks with something that came
    /// or went.
    pub(crate) fn promises(&self) -> Result<(u64, u64), StoreError> {
        self.measure(Look::First)
    }

    /// As [`Pool::promises`], after the free space was told: of what is written to, what was taken both times counts.
    pub(super) fn promises_again(&self) -> Result<(u64, u64), StoreError> {
        self.measure(Look::Again)
    }

    fn measure(&self, look: Look) -> Result<(u64, u64), StoreError> {
        let changed: Vec<Subject> = {
            let mut index = self.lock();
            let index = index.as_mut().ok_or_else(|| self.lost())?;
            let mut attached = lock(&self.attached);
            // Of what was attached when the driver started, all pools were told.
            attached.retain(|id| index.volumes.get(id).is_some());
            for id in attached.iter() {
                index.ledger.touch(id.as_str());
            }
            let stale = index.ledger.stale().into_iter();
            let wanted = stale
                .filter(|(key, _)| look == Look::First || key.parse().is_ok_and(|id: VolumeId| attached.contains(&id)));
            wanted.filter_map(|(key, epoch)| Subject::find(self, index, key, epoch)).collect()
        };
        // Figures that are wrong are none; these are told later.
        let counts = self.counts();
        let changed = if counts { changed } else { Vec::new() };
        // Without the lock: a disk that doesn't answer must not hold up who only looks whether a volume is here.
        let measured = measure_all(self, &changed)?;
        let mut index = self.lock();
        let index = index.as_mut().ok_or_else(|| self.lost())?;
        for (Subject { key, epoch, .. }, Measured { figures, length }) in changed.iter().zip(measured) {
            match look {
                Look::First => index.ledger.measured(key, *epoch, figures),
                Look::Again => index.ledger.lowered(key, *epoch, figures),
            }
            // An interrupted growth leaves an image that is longer than its record says, and can be filled.
            if let Some(volume) = key.parse().ok().and_then(|id| index.volumes.get(&id)) {
                let promise = volume.promise(self).max(length.map_or(0, charge));
                index.ledger.promise(key, promise);
            }
        }
        // What the kernel is still counting may be less than what was known.
        Ok((index.ledger.promised(), if counts { index.ledger.taken() } else { 0 }))
    }

    /// What the volume or snapshot of this id takes, as far as it was measured.
    pub(crate) fn figures(&self, id: &str) -> Option<Figures> {
        self.lock().as_ref().and_then(|index| index.ledger.figures(id))
    }
}

/// How many things are worth a thread of their own to be measured. After a start it is all that there is.
const SHARE: usize = 256;

/// What measuring tells.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) figures: Figures,
    /// The length of an image.
    length: Option<u64>,
}

impl Measured {
    const NOTHING: Self = Self { figures: Figures { exclusive: 0, shared: 0 }, length: None };
}

/// The figures of each.
fn measure_all(pool: &Pool, subjects: &[Subject]) -> Result<Vec<Measured>, StoreError> {
    let measure = |share: &[Subject]| share.iter().map(|subject| subject.measure(pool)).collect::<Result<Vec<_>, _>>();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(subjects.len().div_ceil(SHARE));
    if threads < 2 {
        return measure(subjects);
    }
    thread::scope(|scope| {
        let shares = subjects.chunks(subjects.len().div_ceil(threads));
        let workers: Vec<_> = shares.map(|share| scope.spawn(move || measure(share))).collect();
        let mut all = Vec::with_capacity(subjects.len());
        for worker in workers {
            all.extend(worker.join().unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Something whose figures are to be measured.
pub(super) struct Subject {
    key: String,
    epoch: u64,
    kind: ContentKind,
    path: std::path::PathBuf,
    /// The project of its quota.
    project: Option<u32>,
    /// What it shared when it was measured last, if nobody but a template can share with it: that only gets less.
    pub(super) shared_with_template: Option<u64>,
}

impl Subject {
    pub(super) fn find(pool: &Pool, index: &Index, key: String, epoch: u64) -> Option<Self> {
        let (folder, kind, project) = if let Some(volume) = key.parse().ok().and_then(|id| index.volumes.get(&id)) {
            (pool.folder(&**volume), volume.content.kind(), volume.project)
        } else {
            let snapshot = key.parse().ok().and_then(|id| index.snapshots.get(&id))?;
            (pool.folder(&**snapshot), snapshot.content.kind(), None)
        };
        let before = index.ledger.figures(&key).unwrap_or_default();
        let known = index.ledger.is_alone(&key) && before != Figures::default();
        let shared_with_template = known.then_some(before.shared);
        Some(Self { path: content_path(&folder, kind), project, key, epoch, kind, shared_with_template })
    }

    pub(super) fn measure(&self, pool: &Pool) -> Result<Measured, StoreError> {
        let measured = fs::metadata(&self.path).map_err(StoreError::io("measure", &self.path)).and_then(|found| {
            let length = self.kind.is_image().then_some(found.len());
            Ok(Measured { figures: self.figures(pool, &found)?, length })
        });
        match measured {
            // It was deleted meanwhile, before the first look or after it.
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Measured::NOTHING),
            other => other,
        }
    }

    fn figures(&self, pool: &Pool, found: &fs::Metadata) -> Result<Figures, StoreError> {
        let failed = StoreError::io("measure", &self.path);
        let allocated = found.blocks().saturating_mul(512);
        match self.kind {
            ContentKind::Block | ContentKind::Filesystem(_) => match self.shared_with_template {
                _ if !pool.abilities().shares_blocks => Ok(Figures { exclusive: allocated, shared: 0 }),
                Some(shared) => Ok(Figures { exclusive: allocated.saturating_sub(shared), shared }),
                None => {
                    let usage = File::open(&self.path).and_then(|file| extents::usage(&file)).map_err(failed)?;
                    Ok(Figures { exclusive: usage.exclusive_bytes, shared: usage.shared_bytes })
                }
            },
            ContentKind::Directory => match self.project {
                Some(project) => {
                    let quota = File::open(&self.path)
                        .map_err(&failed)
                        .and_then(|directory| quota::quota(directory, project).map_err(|error| failed(error.source)))?;
                    Ok(Figures { exclusive: quota.used_bytes, shared: 0 })
                }
                None => Ok(Figures::default()),
            },
            ContentKind::Subvolume => {
                let found = subvolume::figures_at(&self.path).map_err(|error| failed(error.source))?;
                let shared = |found: subvolume::Figures| found.referenced.saturating_sub(found.exclusive);
                Ok(found.map_or_else(Figures::default, |found| Figures {
                    exclusive: found.exclusive,
                    shared: shared(found),
                }))
            }
        }
    }
}
