//! All pools together: which one holds a thing, and what each can still promise.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    index::Kept,
    limits::Assigning,
    pool::{Lookup, Pool, StoreError, Unavailable, lock},
};
use crate::{
    config::PoolSettings,
    policy::{ForeignId, Provisioning, VolumeId, available, largest_volume},
};

/// The pools of the config.
#[derive(Debug)]
pub(crate) struct Pools {
    pools: Vec<Pool>,
    /// For each filesystem, by its number: what is promised to what is in the making.
    ledgers: Mutex<HashMap<u64, Making>>,
    /// For each filesystem, the lock of its project ids.
    projects: Mutex<HashMap<u64, Assigning>>,
}

/// The lock is held while space is counted.
type Making = Arc<Mutex<InTheMaking>>;

/// Bytes for what is in the making.
#[derive(Clone, Copy, Debug, Default)]
struct InTheMaking {
    promised: u64,
    /// How many of them are about to be taken.
    at_once: u64,
}

impl InTheMaking {
    fn add(&mut self, other: Self) {
        self.promised = self.promised.saturating_add(other.promised);
        self.at_once = self.at_once.saturating_add(other.at_once);
    }

    fn take_out(&mut self, other: Self) {
        self.promised = self.promised.saturating_sub(other.promised);
        self.at_once = self.at_once.saturating_sub(other.at_once);
    }
}

/// It can't be told about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("there is no {what} {id:?} on this node")]
    Unknown { what: &'static str, id: String },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("{what} {id} can't be read: {reason}")]
    Damaged { what: &'static str, id: String, reason: String },
}

/// Room for one more can't be promised.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lacking {
    #[error("pool {pool} has no room for {bytes} bytes: the largest volume it can promise has {largest}")]
    Space { pool: String, bytes: u64, largest: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Unavailable> for Lacking {
    fn from(error: Unavailable) -> Self {
        Self::Store(error.into())
    }
}

/// When something takes the space that it is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Bit by bit, if at all.
    AsWritten,
    /// When it is made.
    AtOnce,
    /// At once, of what it was promised before.
    Promised,
}

impl Pace {
    pub(crate) fn of(provisioning: Provisioning) -> Self {
        match provisioning {
            Provisioning::Thin => Self::AsWritten,
            Provisioning::Thick => Self::AtOnce,
        }
    }
}

/// Space that is kept for something in the making, until dropped. By then it counts itself.
#[derive(Debug)]
pub(crate) struct Reservation {
    making: Making,
    kept: InTheMaking,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.making).take_out(self.kept);
    }
}

/// What a pool has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// The size of its filesystem.
    pub(crate) total: u64,
    /// What is free there.
    pub(crate) free: u64,
    /// What is kept free.
    pub(crate) reserve: u64,
    /// What was promised, by all pools on the filesystem.
    pub(crate) promised: u64,
    /// How much of the promises is taken at least.
    pub(crate) taken: u64,
    /// What can still be promised.
    pub(crate) available: u64,
    /// What is there for something that takes it at once, however much is promised.
    pub(crate) at_once: u64,
}

impl Room {
    /// What can still be promised to something that takes it at that `pace`.
    pub(crate) fn available_to(self, pace: Pace) -> u64 {
        match pace {
            Pace::AsWritten => self.available,
            // However much is promised beyond what there is: this has to be there.
            Pace::AtOnce => self.available.min(self.at_once),
            Pace::Promised => self.at_once,
        }
    }
}

impl Pools {
    pub(crate) fn new(settings: Vec<PoolSettings>, state_dir: &Path) -> Self {
        let pools = settings.into_iter().map(|settings| Pool::new(settings, state_dir)).collect();
        Self { pools, ledgers: Mutex::default(), projects: Mutex::default() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.settings.name == name)
    }

    /// What has this id, in a pool that was just recognised.
    ///
    /// An id that no pool knows may lie in one whose disk is missing: then that is the answer. A pool that doesn't
    /// answer only holds up calls for what is its own.
    pub(crate) fn locate<T: Kept>(&self, id: &str) -> Result<(&Pool, Arc<T>), LookupError> {
        let unknown = || LookupError::Unknown { what: T::WHAT, id: id.to_owned() };
        let Ok(id) = id.parse::<T::Id>().map_err(|ForeignId| ()) else { return Err(unknown()) };
        let known = |pool: &&Pool| match pool.find::<T>(&id) {
            Lookup::Found(_) | Lookup::Damaged(_) => true,
            Lookup::Absent | Lookup::Unknown => false,
        };
        if let Some(pool) = self.pools.iter().find(known) {
            return Self::locate_in(pool, &id)?.ok_or_else(unknown);
        }
        let mut unavailable = None;
        for pool in &self.pools {
            match Self::locate_in(pool, &id) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(LookupError::Unavailable(error)) => unavailable = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(unavailable.map_or_else(unknown, LookupError::Unavailable))
    }

    fn locate_in<'a, T: Kept>(pool: &'a Pool, id: &T::Id) -> Result<Option<(&'a Pool, Arc<T>)>, LookupError> {
        let _turn = pool.enter()?;
        pool.check()?;
        match pool.find::<T>(id) {
            Lookup::Found(record) => Ok(Some((pool, record))),
            Lookup::Damaged(reason) => Err(LookupError::Damaged { what: T::WHAT, id: id.to_string(), reason }),
            Lookup::Absent => Ok(None),
            Lookup::Unknown => Err(pool.lost().into()),
        }
    }

    /// What was created under this name, in whichever available pool; `wanted`, if any, must be available.
    pub(crate) fn find_by_name<'a, T: Kept>(
        &'a self,
        wanted: Option<&'a Pool>,
        name: &str,
    ) -> Result<Option<(&'a Pool, Arc<T>)>, Unavailable> {
        if let Some(wanted) = wanted
            && let Some(record) = wanted.find_by_name(name)?
        {
            return Ok(Some((wanted, record)));
        }
        // A pool that is unavailable holds up nobody who doesn't ask for it.
        Ok(self.pools.iter().find_map(|pool| Some((pool, pool.find_by_name(name).ok()??))))
    }

    /// At most `count` records of all pools, by id, whose ids come after `after`.
    ///
    /// # Errors
    ///
    /// When a pool is unavailable: a list without what it holds would read as if that were gone.
    pub(crate) fn after<T: Kept>(
        &self,
        after: Option<&T::Id>,
        count: usize,
    ) -> Result<Vec<(&Pool, Arc<T>)>, Unavailable> {
        let mut all = Vec::new();
        for pool in &self.pools {
            let _turn = pool.enter()?;
            pool.check()?;
            all.extend(pool.after::<T>(after, count)?.into_iter().map(|record| (pool, record)));
        }
        all.sort_by(|(_, one), (_, other)| one.id().cmp(other.id()));
        all.truncate(count);
        Ok(all)
    }

    /// What the pool has, and what of it can still be promised.
    pub(crate) fn room(&self, pool: &Pool) -> Result<Room, StoreError> {
        let shared = self.sharing_with(pool)?;
        let making = self.making(pool)?;
        let reserved = lock(&making);
        Self::count(pool, &shared, *reserved)
    }

    /// The same without taking a pool into use: what can't be read counts as promising nothing.
    pub(crate) fn room_as_seen(&self, pool: &Pool) -> Result<Room, StoreError> {
        Self::count(pool, &self.on_filesystem_of(pool).collect::<Vec<_>>(), InTheMaking::default())
    }

    /// Keeps `needed` bytes for something of `bytes`, which takes them at that `pace`.
    pub(crate) fn reserve(&self, pool: &Pool, bytes: u64, needed: u64, pace: Pace) -> Result<Reservation, Lacking> {
        let shared = self.sharing_with(pool)?;
        let making = self.making(pool)?;
        let mut reserved = lock(&making);
        let room = Self::count(pool, &shared, *reserved)?;
        let available = room.available_to(pace);
        if needed > available {
            let pool = pool.settings.name.clone();
            return Err(Lacking::Space { pool, bytes, largest: largest_volume(available) });
        }
        let kept = match pace {
            Pace::AsWritten => InTheMaking { promised: needed, at_once: 0 },
            Pace::AtOnce => InTheMaking { promised: needed, at_once: needed },
            Pace::Promised => InTheMaking { promised: 0, at_once: needed },
        };
        reserved.add(kept);
        drop(reserved);
        Ok(Reservation { making, kept })
    }

    /// What is written to is measured before and after the free space is told, and the smaller counts: what a volume takes
    /// of its promise meanwhile, or gives back, is then counted twice or not yet as free, and never as free and taken.
    fn count(pool: &Pool, shared: &[&Pool], reserved: InTheMaking) -> Result<Room, StoreError> {
        for other in shared {
            other.promises()?;
        }
        let usage = pool.usage()?;
        let (mut promised, mut taken) = (reserved.promised, 0_u64);
        for other in shared {
            let (its_promised, its_taken) = other.promises_again()?;
            promised = promised.saturating_add(its_promised);
            taken = taken.saturating_add(its_taken);
        }
        let (total, free) = (usage.total_bytes, usage.available_bytes);
        let reserve = pool.settings.reserve.bytes_of(total);
        let available = available(free, taken, reserve, promised, pool.settings.overcommit_percent);
        let at_once = free.saturating_sub(reserve).saturating_sub(reserved.at_once);
        Ok(Room { total, free, reserve, promised, taken, available, at_once })
    }

    /// The pools that lie on the same filesystem, this one among them.
    ///
    /// # Errors
    ///
    /// When one of them isn't available: nobody knows what it promises.
    fn sharing_with(&self, pool: &Pool) -> Result<Vec<&Pool>, Unavailable> {
        let device = Some(pool.device().ok_or_else(|| pool.lost())?);
        let mut shared = Vec::new();
        for other in &self.pools {
            if other.device().is_none() && other.lies_on(device) {
                let _turn = other.enter()?;
                other.check()?;
            }
            if other.device() == device {
                shared.push(other);
            }
        }
        Ok(shared)
    }

    /// Tells every pool that the volume may be written to; only the one that holds it will care.
    pub(crate) fn attached(&self, id: &VolumeId) {
        self.pools.iter().for_each(|pool| pool.attached(id));
    }

    /// The pools that lie on the same filesystem, this one among them.
    pub(crate) fn on_filesystem_of(&self, pool: &Pool) -> impl Iterator<Item = &Pool> {
        let device = pool.device();
        self.pools.iter().filter(move |other| other.device() == device)
    }

    pub(super) fn assigning(&self, pool: &Pool) -> Assigning {
        Arc::clone(lock(&self.projects).entry(pool.device().unwrap_or_default()).or_default())
    }

    /// Pools on one filesystem share its free space.
    fn making(&self, pool: &Pool) -> Result<Making, Unavailable> {
        let device = pool.device().ok_or_else(|| pool.lost())?;
        Ok(Arc::clone(lock(&self.ledgers).entry(device).or_default()))
    }
}
