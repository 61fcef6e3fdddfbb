//! The thread that writes records, so that a disk that hangs delays no container.

use std::{io, sync::mpsc, thread};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use super::{Record, Store};

/// One change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put(Box<Record>),
    /// By the container's id.
    Remove(String),
}

/// Writes changes in the order in which they are given.
#[derive(Debug)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    changes: Vec<Change>,
    written: oneshot::Sender<()>,
}

impl Recorder {
    /// Starts the thread, which ends with the recorder. What it fails to write it logs and counts in `failures`.
    pub(crate) fn start(store: Store, failures: Counter) -> io::Result<Self> {
        let (queue, jobs) = mpsc::channel::<Job>();
        thread::Builder::new().name("pinning-records".to_owned()).spawn(move || {
            for Job { changes, written } in jobs {
                for change in changes {
                    let (container, result) = match &change {
                        Change::Put(record) => (&record.container, store.put(record)),
                        Change::Remove(container) => (container, store.remove(container)),
                    };
                    if let Err(error) = result {
                        failures.inc();
                        tracing::warn!(container, %error, "failed to keep the record of a placement");
                    }
                }
                // Nobody waits any more if writing took too long.
                let _ = written.send(());
            }
        })?;
        Ok(Self { queue })
    }

    /// Queues changes; the receiver resolves when all of them were tried.
    pub(crate) fn record(&self, changes: Vec<Change>) -> oneshot::Receiver<()> {
        let (written, receiver) = oneshot::channel();
        // The thread ends only after this sender; were it gone, the receiver would say so at once.
        let _ = self.queue.send(Job { changes, written });
        receiver
    }
}

#[cfg(test)]
impl Recorder {
    /// A recorder on a disk that hangs: what is queued is never written. It hangs as long as the second value lives.
    pub(crate) fn hanging() -> (Self, impl Sized) {
        let (queue, jobs) = mpsc::channel();
        (Self { queue }, jobs)
    }
}
