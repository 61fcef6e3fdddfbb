//! All pools together: which one holds a volume, and what each can still promise.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    pool::{Lookup, Pool, StoreError, Unavailable},
    volume::VolumeRecord,
};
use crate::{
    config::PoolSettings,
    policy::{VolumeId, charge, largest_volume},
};

/// The pools of the config.
#[derive(Debug)]
pub(crate) struct Pools {
    pools: Vec<Pool>,
    /// For each filesystem, by device number: what is promised to volumes in the making.
    ledgers: Mutex<HashMap<u64, Ledger>>,
}

/// Bytes promised to volumes in the making; the lock is held while space is counted.
type Ledger = Arc<Mutex<u64>>;

/// The volume can't be told about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("there is no volume {0:?} on this node")]
    Unknown(String),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("volume {id} can't be read: {reason}")]
    Damaged { id: VolumeId, reason: String },
}

/// Room for one more volume can't be promised.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lacking {
    #[error("pool {pool} has no room for {bytes} bytes: the largest volume it can promise has {largest}")]
    Space { pool: String, bytes: u64, largest: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Space that is kept for a volume in the making, until dropped. By then the volume counts itself.
#[derive(Debug)]
pub(crate) struct Reservation {
    ledger: Ledger,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut reserved = lock(&self.ledger);
        *reserved = reserved.saturating_sub(self.bytes);
    }
}

impl Pools {
    pub(crate) fn new(settings: Vec<PoolSettings>, state_dir: &Path) -> Self {
        let pools = settings.into_iter().map(|settings| Pool::new(settings, state_dir)).collect();
        Self { pools, ledgers: Mutex::default() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.settings.name == name)
    }

    /// The volume with this id, in a pool that was just recognised.
    ///
    /// An id that no pool knows may lie in one whose disk is missing: then that is the answer. A pool that doesn't
    /// answer only holds up calls for its own volumes.
    pub(crate) fn locate(&self, id: &str) -> Result<(&Pool, VolumeRecord), LookupError> {
        let Ok(id) = id.parse::<VolumeId>() else { return Err(LookupError::Unknown(id.to_owned())) };
        let known = |pool: &&Pool| match pool.find(&id) {
            Lookup::Found(_) | Lookup::Damaged(_) => true,
            Lookup::Absent | Lookup::Unknown => false,
        };
        if let Some(pool) = self.pools.iter().find(known) {
            return Self::locate_in(pool, &id)?.ok_or_else(|| LookupError::Unknown(id.as_str().to_owned()));
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
        Err(unavailable.map_or_else(|| LookupError::Unknown(id.as_str().to_owned()), LookupError::Unavailable))
    }

    fn locate_in<'a>(pool: &'a Pool, id: &VolumeId) -> Result<Option<(&'a Pool, VolumeRecord)>, LookupError> {
        pool.check()?;
        match pool.find(id) {
            Lookup::Found(record) => Ok(Some((pool, record))),
            Lookup::Damaged(reason) => Err(LookupError::Damaged { id: id.clone(), reason }),
            Lookup::Absent => Ok(None),
            Lookup::Unknown => Err(pool.lost().into()),
        }
    }

    /// The volume that was created under this name, in whichever available pool; `wanted`, if any, must be available.
    pub(crate) fn find_by_name<'a>(
        &'a self,
        wanted: Option<&'a Pool>,
        name: &str,
    ) -> Result<Option<(&'a Pool, VolumeRecord)>, Unavailable> {
        if let Some(wanted) = wanted
            && let Some(record) = wanted.find_by_name(name)?
        {
            return Ok(Some((wanted, record)));
        }
        // A pool that is unavailable holds up nobody who doesn't ask for it.
        Ok(self.pools.iter().find_map(|pool| Some((pool, pool.find_by_name(name).ok()??))))
    }

    /// Every volume of every pool, by id.
    ///
    /// # Errors
    ///
    /// When a pool is unavailable: a list without its volumes would read as if they were gone.
    pub(crate) fn all(&self) -> Result<BTreeMap<VolumeId, VolumeRecord>, Unavailable> {
        let mut all = BTreeMap::new();
        for pool in &self.pools {
            pool.check()?;
            all.extend(pool.all()?);
        }
        Ok(all)
    }

    /// Bytes of the pool's filesystem that are neither used nor promised.
    pub(crate) fn available(&self, pool: &Pool) -> Result<u64, StoreError> {
        let ledger = self.ledger(pool);
        let reserved = lock(&ledger);
        self.count(pool, *reserved)
    }

    /// Keeps room for an image of `bytes`.
    pub(crate) fn reserve(&self, pool: &Pool, bytes: u64) -> Result<Reservation, Lacking> {
        let ledger = self.ledger(pool);
        let mut reserved = lock(&ledger);
        let available = self.count(pool, *reserved)?;
        let needed = charge(bytes);
        if needed > available {
            let pool = pool.settings.name.clone();
            return Err(Lacking::Space { pool, bytes, largest: largest_volume(available) });
        }
        *reserved += needed;
        drop(reserved);
        Ok(Reservation { ledger, bytes: needed })
    }

    /// Promises first, free space second: what a volume takes of its promise in between is then counted twice, and
    /// never not at all.
    fn count(&self, pool: &Pool, reserved: u64) -> Result<u64, StoreError> {
        let device = pool.device();
        let mut promised = reserved;
        for other in self.pools.iter().filter(|other| other.device() == device) {
            promised = promised.saturating_add(other.outstanding()?);
        }
        Ok(pool.usage()?.available_bytes.saturating_sub(promised))
    }

    /// Pools on one filesystem share its free space, and so its ledger.
    fn ledger(&self, pool: &Pool) -> Ledger {
        let mut ledgers = lock(&self.ledgers);
        Arc::clone(ledgers.entry(pool.device().unwrap_or_default()).or_default())
    }
}

/// The numbers are right after every single change, so a lock that a panicking thread held is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
