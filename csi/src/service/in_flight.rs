//! One operation at a time on each volume.
//!
//! "The CO SHOULD ensure that there is only one call 'in-flight' per volume at a given time. [...] If a Plugin is unable
//! to [handle this] it MAY return ABORTED" (CSI spec, Concurrency).

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a call that only looks waits for one before it. Looking takes milliseconds, unless the disk hangs: then
/// one call that hangs with it is enough.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is being done to which volume right now.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<Operations>);

#[derive(Debug, Default)]
struct Operations {
    running: Mutex<BTreeMap<String, Operation>>,
    ended: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    name: &'static str,
    since: Instant,
    /// How many hold the key, if they share it.
    sharers: Option<u32>,
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
        let since = Instant::now();
        let held = running.entry(key.clone()).or_insert(Operation { name: operation, since, sharers: Some(0) });
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
        running.insert(key.clone(), Operation { name: operation, since: Instant::now(), sharers: None });
        Ok(Guard { in_flight: self.clone(), key })
    }

    /// A map is whole after every single call on it, so one that a panicking thread held is as good as any.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Operation>> {
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
