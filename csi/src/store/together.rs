//! One wait for the disk that serves everybody who waits for it at the same time.

use std::{
    io,
    sync::{Condvar, Mutex, PoisonError},
};

/// Syncs of one directory. One runs at a time; those who come meanwhile wait for the next one, all for the same.
#[derive(Debug, Default)]
pub(super) struct Together {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    begun: u64,
    ended: u64,
    /// The last one that failed, and how.
    failed: Option<(u64, io::ErrorKind, Option<i32>)>,
}

impl Together {
    /// Gives the result of a `sync` that began after this was called: of one's own, or of somebody else's.
    pub(super) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = rounds.begun + 1;
        while rounds.ended < mine && rounds.begun != rounds.ended {
            rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
        }
        if rounds.ended >= mine {
            return match rounds.failed {
                // If a later one failed, nobody knows any more about this one.
                Some((round, kind, errno)) if round >= mine => {
                    Err(errno.map_or_else(|| kind.into(), io::Error::from_raw_os_error))
                }
                _ => Ok(()),
            };
        }
        rounds.begun += 1;
        let mut round = Round { together: self, number: rounds.begun, failed: Some((io::ErrorKind::Other, None)) };
        drop(rounds);
        let synced = sync();
        round.failed = synced.as_ref().err().map(|error| (error.kind(), error.raw_os_error()));
        synced
    }
}

/// A sync that has begun. One that panics has failed, and keeps nobody waiting.
struct Round<'a> {
    together: &'a Together,
    number: u64,
    failed: Option<(io::ErrorKind, Option<i32>)>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let mut rounds = self.together.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.ended = self.number;
        if let Some((kind, errno)) = self.failed {
            rounds.failed = Some((self.number, kind, errno));
        }
        drop(rounds);
        self.together.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc, Barrier,
            atomic::{AtomicU64, Ordering},
            mpsc,
        },
        thread,
        time::Duration,
    };

    use keelson_testkit::wait_until;

    use super::*;

    #[test]
    fn each_result_is_of_a_sync_that_began_afterwards() {
        let (together, written, durable, syncs) =
            (Together::default(), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..200 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        let sync = || {
                            let seen = written.load(Ordering::SeqCst);
                            thread::yield_now();
                            durable.fetch_max(seen, Ordering::SeqCst);
                            syncs.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        };
                        together.sync(sync).unwrap();
                        assert!(durable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert!(syncs.into_inner() <= 1600);
    }

    #[test]
    fn those_who_come_meanwhile_share_the_next_one_and_its_failure() {
        let together = Arc::new(Together::default());
        let ((go, gate), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
        let first = {
            let together = Arc::clone(&together);
            thread::spawn(move || {
                together.sync(|| {
                    tell.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok(())
                })
            })
        };
        told.recv().unwrap();
        let failures = Arc::new(AtomicU64::new(0));
        let others: Vec<_> = (0..4)
            .map(|_| {
                let (together, failures) = (Arc::clone(&together), Arc::clone(&failures));
                thread::spawn(move || {
                    together.sync(|| {
                        failures.fetch_add(1, Ordering::SeqCst);
                        Err(io::Error::from_raw_os_error(libc::EIO))
                    })
                })
            })
            .collect();
        // All four wait: nobody else has the other handles any more once they are inside.
        wait_until("the others to wait", Duration::from_secs(60), || (Arc::strong_count(&together) == 6).then_some(()));
        go.send(()).unwrap();
        first.join().unwrap().unwrap();
        for other in others {
            assert_eq!(other.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
        }
        assert!((1..=4).contains(&failures.load(Ordering::SeqCst)));
        assert!(together.sync(|| Ok(())).is_ok());
    }

    #[test]
    fn a_sync_that_panics_has_failed_and_keeps_nobody_waiting() {
        let together = Together::default();
        let panicked = thread::scope(|scope| scope.spawn(|| together.sync(|| panic!("on purpose"))).join().is_err());
        assert!(panicked);
        together.sync(|| Ok(())).unwrap();
    }
}
