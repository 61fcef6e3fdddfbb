//! The thread that writes records, so that a disk that hangs delays no container.

use std::{
    collections::BTreeMap,
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use super::{Record, Store};

/// One change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put(Box<Record>),
    /// By the container's id.
    Remove(String),
}

impl Change {
    fn container(&self) -> &str {
        match self {
            Self::Put(record) => &record.container,
            Self::Remove(container) => container,
        }
    }
}

/// Has changes written. While the disk hangs it keeps the newest change of each container, however many there are.
#[derive(Debug)]
pub(crate) struct Recorder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Says that the queue has changed.
    changed: Condvar,
    /// How many requests were dealt with.
    done: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    /// What is to be written, by container.
    changes: BTreeMap<String, Change>,
    /// How many requests there have been.
    requests: u64,
    /// No more requests will come.
    closed: bool,
}

impl Recorder {
    fn new() -> Self {
        let (done, _) = watch::channel(0);
        Self { shared: Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), done }) }
    }

    /// Starts the thread, which ends with the recorder. What it fails to write it logs and counts in `failures`.
    pub(crate) fn start(store: Store, failures: Counter) -> io::Result<Self> {
        let recorder = Self::new();
        let shared = Arc::clone(&recorder.shared);
        thread::Builder::new().name("pinning-records".to_owned()).spawn(move || shared.write_all(&store, &failures))?;
        Ok(recorder)
    }

    /// Asks for changes to be written; the future resolves when all of them were tried.
    pub(crate) fn record(&self, changes: Vec<Change>) -> impl Future<Output = ()> + Send + use<> {
        let mut queue = self.shared.queue();
        queue.changes.extend(changes.into_iter().map(|change| (change.container().to_owned(), change)));
        queue.requests += 1;
        let request = queue.requests;
        drop(queue);
        self.shared.changed.notify_one();
        let mut done = self.shared.done.subscribe();
        async move {
            // An error says that the thread is gone and nothing more will be tried.
            let _ = done.wait_for(|done| *done >= request).await;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change of the queue is whole whatever panicked while it was locked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is asked for until the recorder is gone and all is written.
    fn write_all(&self, store: &Store, failures: &Counter) {
        loop {
            let is_idle = |queue: &mut Queue| queue.changes.is_empty() && !queue.closed;
            let mut queue = self.changed.wait_while(self.queue(), is_idle).unwrap_or_else(PoisonError::into_inner);
            if queue.changes.is_empty() {
                return;
            }
            let (changes, requests) = (mem::take(&mut queue.changes), queue.requests);
            drop(queue);
            for (container, change) in changes {
                let result = match change {
                    Change::Put(record) => store.put(&record),
                    Change::Remove(container) => store.remove(&container),
                };
                if let Err(error) = result {
                    failures.inc();
                    tracing::warn!(container, %error, "failed to keep the record of a placement");
                }
            }
            self.done.send_replace(requests);
        }
    }
}

#[cfg(test)]
impl Recorder {
    /// A recorder on a disk that hangs: what is asked for is never written.
    pub(crate) fn hanging() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    fn record(container: &str, reason: &str) -> Record {
        let text = json!({
            "version": 1,
            "container": container,
            "name": "main",
            "pod": {"sandbox": "5a", "namespace": "default", "name": "app", "uid": "0-1"},
            "mode": "enforce",
            "placement": {"kind": "shared"},
            "reasons": [reason],
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_disk_that_hangs_costs_one_change_a_container() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(directory.path()).unwrap();
        store.put(&record("bb", "from before")).unwrap();
        let recorder = Recorder::hanging();
        let mut waiting = Vec::new();
        for round in 0..1000 {
            let changes = vec![
                Change::Put(Box::new(record("aa", &round.to_string()))),
                Change::Put(Box::new(record("bb", "again"))),
                Change::Remove("bb".to_owned()),
            ];
            waiting.push(recorder.record(changes));
        }
        assert_eq!(recorder.shared.queue().changes.len(), 2);
        let shared = Arc::clone(&recorder.shared);
        let mut last = waiting.pop().unwrap().boxed();
        assert_eq!((&mut last).now_or_never(), None);

        // The disk is back.
        drop(recorder);
        shared.write_all(&store, &Counter::default());
        assert_eq!(last.now_or_never(), Some(()));
        assert!(waiting.into_iter().all(|written| written.now_or_never().is_some()));
        let (_, records) = Store::open(directory.path()).unwrap();
        assert_eq!(records.into_values().collect::<Vec<_>>(), [record("aa", "999")]);
    }
}
