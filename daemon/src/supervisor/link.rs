//! The socket between the supervisor and a plugin's process.
//!
//! It is the process's standard input. The process reports its state on it, one JSON object a line, and learns from its
//! end that the supervisor is gone, however that died: no process outlives its supervisor.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process, thread,
    time::Duration,
};

use rustix::stdio;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a plugin's process tells its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Report {
    /// It can do its work.
    Ready,
    /// It can't.
    NotReady {
        /// Why.
        reason: String,
    },
    /// It ends because its config can't be used.
    Misconfigured {
        /// Every problem, as `keelson config check` prints them.
        problems: String,
    },
}

/// The process's end of the socket.
#[derive(Debug)]
pub struct SupervisorLink {
    stream: UnixStream,
}

impl SupervisorLink {
    /// Takes the socket off standard input, so that no program that this process starts inherits it.
    ///
    /// # Errors
    ///
    /// When standard input is no Unix socket: this process was not started by a supervisor.
    pub fn take() -> io::Result<Self> {
        let stream = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(stdio::stdin(), 3)?);
        stream.peer_addr().map_err(|error| {
            io::Error::new(error.kind(), format!("--supervised is for the supervisor's own use: {error}"))
        })?;
        let nothing = OwnedFd::from(File::open("/dev/null")?);
        stdio::dup2_stdin(&nothing)?;
        Ok(Self { stream })
    }

    /// Sends one report. A supervisor that is gone doesn't miss it, and [`SupervisorLink::watch`] notices.
    pub fn report(&self, report: &Report) {
        #[expect(clippy::expect_used, reason = "an enum of strings is always JSON")]
        let mut line = serde_json::to_string(report).expect("a report is JSON");
        line.push('\n');
        if let Err(error) = (&self.stream).write_all(line.as_bytes()) {
            tracing::debug!(error = %error, "no supervisor to report to");
        }
    }

    /// Cancels `shutdown` when the supervisor is gone, and ends this process if it is still there after `grace`.
    ///
    /// It is a thread of its own: an event loop that hangs must not keep the process.
    ///
    /// # Errors
    ///
    /// When the socket can't be duplicated or the thread not started.
    pub fn watch(&self, shutdown: CancellationToken, grace: Duration) -> io::Result<()> {
        let mut stream = self.stream.try_clone()?;
        thread::Builder::new().name("supervisor-watch".to_owned()).spawn(move || {
            let mut buffer = [0; 64];
            // The supervisor never writes: a read returns at its end.
            while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
            tracing::warn!("the supervisor is gone, stopping");
            shutdown.cancel();
            thread::sleep(grace);
            tracing::error!("still busy {grace:?} after the supervisor's end, giving up");
            process::exit(1);
        })?;
        Ok(())
    }

    /// Reports each change of `readiness` from a task of its own.
    ///
    /// # Errors
    ///
    /// When the socket can't be duplicated.
    pub fn forward(&self, mut readiness: watch::Receiver<Result<(), String>>) -> io::Result<()> {
        let link = std::sync::Arc::new(Self { stream: self.stream.try_clone()? });
        tokio::spawn(async move {
            loop {
                let report = match &*readiness.borrow_and_update() {
                    Ok(()) => Report::Ready,
                    Err(reason) => Report::NotReady { reason: reason.clone() },
                };
                let link = link.clone();
                // The socket is shared with the watching thread and so blocks.
                if tokio::task::spawn_blocking(move || link.report(&report)).await.is_err() {
                    return;
                }
                if readiness.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }
}

/// A new socket: the supervisor's end, and the one to become the standard input of a plugin's process.
pub(super) fn pair() -> io::Result<(tokio::net::UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs.into()))
}
