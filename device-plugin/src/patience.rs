//! Work that blocks, and may do so for ever where a disk hangs.

use std::{panic, pin::pin, time::Duration};

use tokio::{task, time};

use crate::conditions::Conditions;

/// Nothing that this plugin does takes as long on a disk that works.
const PATIENCE: Duration = Duration::from_secs(5);

/// Does `work` on a thread of its own. Once that takes longer than it should, the plugin isn't ready for `subject`'s
/// sake, until it is done.
pub(crate) async fn patiently<T: Send + 'static>(
    conditions: &Conditions,
    subject: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    within(PATIENCE, conditions, subject, work).await
}

async fn within<T: Send + 'static>(
    patience: Duration,
    conditions: &Conditions,
    subject: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let mut work = pin!(task::spawn_blocking(work));
    let outcome = match time::timeout(patience, &mut work).await {
        Ok(outcome) => outcome,
        Err(_) => {
            conditions.set(subject, format!("not done after {patience:?}: a disk or a filesystem hangs"));
            let outcome = work.await;
            conditions.clear(subject);
            outcome
        }
    };
    match outcome {
        Ok(done) => done,
        // The task isn't aborted, so it panicked: so do we, rather than go on without what it held.
        Err(error) => panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn work_that_hangs_is_a_reason_not_to_be_ready_until_it_is_done() {
        let (ready, mut readiness) = watch::channel(Err("starting".to_owned()));
        let conditions = Conditions::new(ready, [], "");
        assert_eq!(*readiness.borrow(), Ok(()));
        let (disk, hangs) = mpsc::channel();
        let work = within(Duration::from_millis(1), &conditions, "the scan", move || hangs.recv());
        let repair = async {
            let reason = readiness.wait_for(Result::is_err).await.unwrap().clone().unwrap_err();
            disk.send(7).unwrap();
            reason
        };
        let (done, reason) = tokio::join!(work, repair);
        assert_eq!(done, Ok(7));
        assert_eq!(reason, "the scan: not done after 1ms: a disk or a filesystem hangs");
        assert_eq!(*readiness.borrow(), Ok(()));
    }
}
