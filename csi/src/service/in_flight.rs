//! One operation at a time on each volume.
//!
//! "The CO SHOULD ensure that there is only one call 'in-flight' per volume at a given time. [...] If a Plugin is unable
//! to [handle this] it MAY return ABORTED" (CSI spec, Concurrency).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// What is being done to which volume right now.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<Mutex<BTreeMap<String, Operation>>>);

#[derive(Clone, Copy, Debug)]
struct Operation {
    name: &'static str,
    since: Instant,
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
        let key = key.into();
        let mut operations = self.lock();
        if let Some(running) = operations.get(&key) {
            return Err(Pending { key, operation: running.name, seconds: running.since.elapsed().as_secs() });
        }
        operations.insert(key.clone(), Operation { name: operation, since: Instant::now() });
        Ok(Guard { in_flight: self.clone(), key })
    }

    /// A map is whole after every single call on it, so one that a panicking thread held is as good as any.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Operation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.in_flight.lock().remove(&self.key);
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
