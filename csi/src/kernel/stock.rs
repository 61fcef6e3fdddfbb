//! Helper processes that are started before they are needed: each waits for one request, and then does it.
//!
//! To start a process takes longer than most mounts. One that waits has the driver's mount namespace, as every child
//! that asks for no other, so it sees each mount that was made since. It ends when its standard input is closed, and so
//! with the driver.

use std::{
    io,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fd::OwnedFd,
    process::{Pid, PidfdFlags, pidfd_open},
};

/// How many wait at most: one for a call, and one for the next while another is started. Those of a burst that find
/// none are started as they are needed.
const KEPT: usize = 2;

/// The processes that wait.
#[derive(Debug, Default)]
pub(super) struct Stock(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    waiting: Vec<Started>,
    /// How many are being started.
    starting: usize,
}

/// A process that was told nothing yet.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Child,
    /// Goes on to mean it when it has ended.
    pub(super) handle: OwnedFd,
}

impl Stock {
    /// One that waits, if any does.
    pub(super) fn take(&self) -> Option<Started> {
        loop {
            let mut started = self.lock().waiting.pop()?;
            // Somebody may have killed it.
            if let Ok(None) = started.child.try_wait() {
                return Some(started);
            }
        }
    }

    /// Starts one more, unless enough of them wait.
    pub(super) fn refill(&self, command: Command) {
        {
            let mut kept = self.lock();
            if kept.waiting.len() + kept.starting >= KEPT {
                return;
            }
            kept.starting += 1;
        }
        let started = start(command);
        let mut kept = self.lock();
        kept.starting -= 1;
        match started {
            Ok(started) => kept.waiting.push(started),
            // Whoever needs one starts one, and tells of the error.
            Err(error) => tracing::debug!(%error, "failed to start a helper process ahead"),
        }
    }

    /// What it guards is whole after every single change, so one that a panicking thread held is as good as any.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        for Started { child, .. } in &mut self.lock().waiting {
            // It waits for its input, so it ends at once.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a child, and opens a handle that goes on to mean it when it has ended.
pub(super) fn start(mut command: Command) -> io::Result<Started> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(handle) => Ok(Started { child, handle }),
        Err(error) => {
            // It was told nothing yet, so it has done nothing. It can't be gone: nobody has waited for it.
            let _ = child.kill();
            let _ = child.wait();
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keelson_testkit::wait_until;

    use super::*;

    fn cat() -> Command {
        Command::new("cat")
    }

    #[test]
    fn only_so_many_wait_and_none_outlives_the_stock() {
        let stock = Stock::default();
        (0..5).for_each(|_| stock.refill(cat()));
        let pids: Vec<u32> = stock.lock().waiting.iter().map(|started| started.child.id()).collect();
        assert_eq!(pids.len(), KEPT);
        let mut taken = stock.take().unwrap();
        drop(stock);
        let exists = |pid: &u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
        assert_eq!(pids.iter().filter(|pid| exists(pid)).collect::<Vec<_>>(), [&taken.child.id()]);
        taken.child.kill().unwrap();
        taken.child.wait().unwrap();
    }

    #[test]
    fn one_that_was_killed_is_not_given() {
        let stock = Stock::default();
        stock.refill(cat());
        stock.refill(cat());
        rustix::process::kill_process(Pid::from_child(&stock.lock().waiting[1].child), rustix::process::Signal::KILL)
            .unwrap();
        let living = stock.lock().waiting[0].child.id();
        wait_until("the killed process to have ended", Duration::from_secs(60), || {
            matches!(stock.lock().waiting[1].child.try_wait(), Ok(Some(_))).then_some(())
        });
        let mut taken = stock.take().unwrap();
        assert_eq!(taken.child.id(), living);
        assert!(stock.take().is_none());
        taken.child.kill().unwrap();
        taken.child.wait().unwrap();
    }

    #[test]
    fn what_does_not_start_is_left_to_who_needs_it() {
        let stock = Stock::default();
        stock.refill(Command::new("/nonexistent"));
        assert!(stock.take().is_none());
        assert_eq!(stock.lock().starting, 0);
    }
}
