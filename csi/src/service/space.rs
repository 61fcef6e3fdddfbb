//! The figures of the pools' space, counted when they are asked for.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::{Service, State};
use crate::store::{Room, SnapshotRecord, VolumeRecord};

/// How long a scrape waits for the disks. What isn't counted by then is shown as it was counted last.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is known of each pool; it counts nothing by itself, and keeps no pool in use.
#[derive(Clone, Debug)]
pub(crate) struct PoolSpace {
    state: Weak<State>,
    known: Arc<Known>,
}

#[derive(Debug, Default)]
struct Known {
    pools: Mutex<Vec<Slot>>,
    counted: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    figures: Option<Figures>,
    /// A thread counts, or hangs with the disk: there is never a second one.
    counting: bool,
}

#[derive(Clone, Copy, Debug)]
struct Figures {
    room: Room,
    volumes: usize,
    snapshots: usize,
}

impl PoolSpace {
    pub(crate) fn new(service: &Service) -> Self {
        let pools = vec![Slot::default(); service.state().pools.iter().count()];
        let known = Known { pools: Mutex::new(pools), counted: Condvar::default() };
        Self { state: Arc::downgrade(&service.0), known: Arc::new(known) }
    }

    /// Starts to count in each pool where nobody counts yet, and waits a little. A pool that isn't available has no
    /// figures.
    fn refresh(&self, state: &State) {
        for (index, pool) in state.pools.iter().enumerate() {
            {
                let mut slots = self.lock();
                let Some(slot) = slots.get_mut(index) else { continue };
                if !pool.is_available() {
                    slot.figures = None;
                    continue;
                }
                if slot.counting {
                    continue;
                }
                slot.counting = true;
            }
            let (this, thread) = (self.clone(), thread::Builder::new().name("pool-space".to_owned()));
            let count = move || this.enter(index, this.count(index));
            if thread.spawn(count).is_err() {
                self.enter(index, None);
            }
        }
        let counting = |slots: &mut Vec<Slot>| slots.iter().any(|slot| slot.counting);
        drop(self.known.counted.wait_timeout_while(self.lock(), PATIENCE, counting));
    }

    fn count(&self, index: usize) -> Option<Figures> {
        let state = self.state.upgrade()?;
        let pool = state.pools.iter().nth(index)?;
        let _turn = pool.enter().ok()?;
        let room = state.pools.room(pool).ok()?;
        let volumes = pool.count::<VolumeRecord>()?;
        Some(Figures { room, volumes, snapshots: pool.count::<SnapshotRecord>()? })
    }

    fn enter(&self, index: usize, figures: Option<Figures>) {
        if let Some(slot) = self.lock().get_mut(index) {
            *slot = Slot { figures, counting: false };
        }
        self.known.counted.notify_all();
    }

    /// A slot is whole after every single change.
    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.known.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for PoolSpace {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(state) = self.state.upgrade() else { return Ok(()) };
        self.refresh(&state);
        let slots = self.lock().clone();
        let named = state.pools.iter().map(|pool| pool.settings.name.as_str()).zip(&slots);
        let known: Vec<_> = named.filter_map(|(name, slot)| Some((name, slot.figures?))).collect();
        type Part = fn(&Figures) -> u64;
        let parts: [(&str, &str, Part); 8] = [
            ("total_bytes", "Size of the pool's filesystem", |found| found.room.total),
            ("free_bytes", "What is free on the pool's filesystem", |found| found.room.free),
            ("reserve_bytes", "What is kept free", |found| found.room.reserve),
            ("promised_bytes", "What was promised to volumes and snapshots", |found| found.room.promised),
            ("taken_bytes", "How much of the promises is taken at least", |found| found.room.taken),
            ("available_bytes", "What can still be promised", |found| found.room.available),
            ("volumes", "Volumes in the pool", |found| found.volumes as u64),
            ("snapshots", "Snapshots in the pool, those in groups included", |found| found.snapshots as u64),
        ];
        for (name, help, part) in parts {
            let name = format!("keelson_storage_pool_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (pool, figures) in &known {
                let value = ConstGauge::new(i64::try_from(part(figures)).unwrap_or(i64::MAX));
                value.encode(metric.encode_family(&[("pool", *pool)])?)?;
            }
        }
        Ok(())
    }
}
