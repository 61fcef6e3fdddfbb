//! One operation at a time on each volume.
//!
//! "The CO SHOULD ensure that there is only one call 'in-flight' per volume at a given time. [...] If a Plugin is unable
//! to [handle this] it MAY return ABORTED" (CSI spec, Concurrency).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use serde::{Deserialize, Serialize};

use super::call::{Call, Caller};

/// How long a call that only looks waits for one before it. Looking takes milliseconds, unless the disk hangs: then
/// one call that hangs with it is enough.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is being done to which volume right now.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    running: Mutex<BTreeMap<String, Running>>,
    ended: Condvar,
}

#[derive(Clone, Debug)]
struct Running {
    name: &'static str,
    since: Instant,
    /// How many hold the key, if they share it.
    sharers: Option<u32>,
    /// Whom it is done for, if not by the driver of its own accord: of those that share it, the first.
    caller: Option<Caller>,
}

/// What a driver is at, to be looked at from outside.
#[derive(Clone, Debug)]
pub struct Operations(InFlight);

/// One operation that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// What it has for itself: a volume's id, its name in quotes, a path, or what is asked about.
    pub subject: String,
    /// The RPC.
    pub operation: String,
    /// How long it has been going on.
    pub seconds: u64,
    /// The request's number in the log; `None` if the driver does it of its own accord.
    pub request: Option<u64>,
    /// The process that asked for it, where that can be seen: not from another container.
    pub client: Option<i32>,
    /// Whether that still waits for the answer. What nobody waits for goes on all the same.
    pub awaited: bool,
}

impl Operations {
    /// What is going on now, the longest first.
    #[must_use]
    pub fn list(&self) -> Vec<Operation> {
        let mut running: Vec<_> =
            self.0.lock().iter().map(|(subject, running)| (subject.clone(), running.clone())).collect();
        running.sort_by_key(|(_, running)| running.since);
        running
            .into_iter()
            .map(|(subject, Running { name, since, caller, .. })| Operation {
                subject,
                operation: name.to_owned(),
                seconds: since.elapsed().as_secs(),
                request: caller.as_ref().map(|caller| caller.request),
                client: caller.as_ref().and_then(|caller| caller.client),
                awaited: caller.as_ref().is_some_and(Caller::waits),
            })
            .collect()
    }
}

/// How many operations there are, and the oldest one's age, at each scrape.
impl Collector for InFlight {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let (count, oldest) = {
            let running = self.lock();
            (running.len(), running.values().map(|running| running.since.elapsed()).max().unwrap_or_default())
        };
        let count = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        let help = "Operations that have not ended, also those that no client waits for";
        let kind = count.metric_type();
        count.encode(encoder.encode_descriptor("keelson_storage_operations", help, None, kind)?)?;
        let oldest = ConstGauge::new(oldest.as_secs_f64());
        let help = "Age of the oldest operation that has not ended, 0 if there is none";
        let kind = oldest.metric_type();
        oldest.encode(encoder.encode_descriptor("keelson_storage_oldest_operation_seconds", help, None, kind)?)
    }
}

/// Exclusive access to one volume, until dropped. It moves into the work itself, so it also outlives a client that
/// went away and a helper process that can't be killed.
#[derive(Debug)]
pub(crate) struct Guard {
    in_flight: InFlight,
    key: String,
}

/// Another operation on the same volume has not ended.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {key} has been running for {seconds} s; try again when it has ended")]
pub(crate) struct Pending {
    key: String,
    operation: &'static str,
    seconds: u64,
}

impl Running {
    /// What begins now, for the call that this thread works for.
    fn new(name: &'static str, sharers: Option<u32>) -> Self {
        let caller = Call::current().map(|call| call.caller.clone());
        Self { name, since: Instant::now(), sharers, caller }
    }
}

impl InFlight {
    /// Takes `key`, a volume's id or quoted name, for `operation`.
    pub(crate) fn begin(&self, key: impl Into<String>, operation: &'static str) -> Result<Guard, Pending> {
        self.take(key.into(), operation, Duration::ZERO)
    }

    /// Takes `key` for an `operation` that only looks, once whoever looks already has ended. Blocks for some seconds at
    /// most, so it belongs on a thread that may.
    pub(crate) fn begin_in_turn(&self, key: impl Into<String>, operation: &'static str) -> Result<Guard, Pending> {
        self.take(key.into(), operation, PATIENCE)
    }

    /// Takes `key` together with others for an `operation` that changes nothing of it, such as copying it.
    pub(crate) fn begin_shared(&self, key: impl Into<String>, operation: &'static str) -> Result<Guard, Pending> {
        let key = key.into();
        let mut running = self.lock();
        let held = running.entry(key.clone()).or_insert_with(|| Running::new(operation, Some(0)));
        match &mut held.sharers {
            Some(sharers) => *sharers += 1,
            None => return Err(Pending { key, operation: held.name, seconds: held.since.elapsed().as_secs() }),
        }
        Ok(Guard { in_flight: self.clone(), key })
    }

    fn take(&self, key: String, operation: &'static str, patience: Duration) -> Result<Guard, Pending> {
        let waited = self.0.ended.wait_timeout_while(self.lock(), patience, |running| running.contains_key(&key));
        let (mut running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = running.get(&key) {
            return Err(Pending { key, operation: other.name, seconds: other.since.elapsed().as_secs() });
        }
        running.insert(key.clone(), Running::new(operation, None));
        Ok(Guard { in_flight: self.clone(), key })
    }

    /// A view of it for who only looks.
    pub(crate) fn operations(&self) -> Operations {
        Operations(self.clone())
    }

    /// A map is whole after every single call on it, so one that a panicking thread held is as good as any.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut running = self.in_flight.lock();
        match running.get_mut(&self.key).and_then(|operation| operation.sharers.as_mut()) {
            Some(sharers @ 2..) => *sharers -= 1,
            _ => drop(running.remove(&self.key)),
        }
        drop(running);
        self.in_flight.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_caller_is_told_what_is_running() {
        let in_flight = InFlight::default();
        let guard = in_flight.begin("v", "NodeStageVolume").unwrap();
        let pending = in_flight.begin("v", "DeleteVolume").unwrap_err();
        assert!(pending.to_string().starts_with("NodeStageVolume on v has been running for "), "{pending}");
        let other = in_flight.begin("w", "DeleteVolume").unwrap();
        drop(guard);
        drop(in_flight.begin("v", "DeleteVolume").unwrap());
        drop(other);
    }

    #[test]
    fn who_shares_keeps_out_who_does_not() {
        let in_flight = InFlight::default();
        let first = in_flight.begin_shared("s", "CreateVolume").unwrap();
        let second = in_flight.begin_shared("s", "CreateVolume").unwrap();
        assert!(in_flight.begin("s", "DeleteSnapshot").is_err());
        drop(first);
        assert!(in_flight.begin("s", "DeleteSnapshot").is_err());
        drop(second);
        let alone = in_flight.begin("s", "DeleteSnapshot").unwrap();
        assert!(in_flight.begin_shared("s", "CreateVolume").is_err());
        drop(alone);
        assert!(in_flight.lock().is_empty());
    }

    #[test]
    fn operations_are_listed_with_their_callers_the_oldest_first() {
        let in_flight = InFlight::default();
        let caller = Caller::next(Some(7));
        let guard = Call::within(Some(Call::new(caller.clone(), None)), || in_flight.begin("w", "NodeStageVolume"));
        let own = in_flight.begin("a", "DeleteVolume").unwrap();
        let listed = || in_flight.operations().list();
        let of = |listed: &[Operation]| -> Vec<(String, Option<u64>, Option<i32>, bool)> {
            listed.iter().map(|one| (one.subject.clone(), one.request, one.client, one.awaited)).collect()
        };
        let request = Some(caller.request);
        let expected = |awaited| [("w".to_owned(), request, Some(7), awaited), ("a".to_owned(), None, None, false)];
        assert_eq!(of(&listed()), expected(true));
        caller.leave();
        assert_eq!(of(&listed()), expected(false));
        drop((guard, own));
        assert_eq!(listed(), []);
    }

    #[test]
    fn those_who_only_look_take_turns() {
        let in_flight = InFlight::default();
        let first = in_flight.begin("the list", "ListVolumes").unwrap();
        std::thread::scope(|scope| {
            let others: Vec<_> =
                (0..8).map(|_| scope.spawn(|| in_flight.begin_in_turn("the list", "ListVolumes").map(drop))).collect();
            assert!(in_flight.begin("the list", "ListVolumes").is_err());
            drop(first);
            for other in others {
                assert!(other.join().unwrap().is_ok());
            }
        });
    }

    #[test]
    fn a_panicking_operation_lets_go() {
        let in_flight = InFlight::default();
        let shared = in_flight.clone();
        let panicked = std::thread::spawn(move || {
            let _guard = shared.begin("v", "NodeStageVolume").unwrap();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(in_flight.begin("v", "NodeStageVolume").is_ok());
    }
}
