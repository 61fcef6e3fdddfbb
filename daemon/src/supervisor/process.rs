//! One plugin's process as the supervisor holds it.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::UnixStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::link::{self, Report};
use crate::plugins::PluginKind;

/// How a plugin's process may take to end after SIGTERM; its own patience is shorter.
const TERMINATE_GRACE: Duration = Duration::from_secs(15);
/// How long a killed process may take to be gone: one that hangs in the kernel stays for as long as that.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// What every plugin's process is started with.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program: this one.
    pub program: PathBuf,
    /// The config file.
    pub config: PathBuf,
    /// Where the host's file trees are.
    pub host_root: PathBuf,
    /// The log level, if one was asked for.
    pub log_level: Option<String>,
}

impl Launch {
    fn arguments(&self, plugin: PluginKind) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            vec!["run".into(), "--supervised".into(), "--only".into(), plugin.name().into(), "--config".into()];
        arguments.push(self.config.clone().into());
        arguments.push("--host-root".into());
        arguments.push(self.host_root.clone().into());
        if let Some(level) = &self.log_level {
            arguments.push("--log-level".into());
            arguments.push(level.into());
        }
        arguments
    }
}

/// What a process did next.
#[derive(Debug)]
pub(super) enum Event {
    /// It reported.
    Reported(Report),
    /// It ended.
    Ended(ExitStatus),
}

/// A running plugin process. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    reports: Option<Lines<BufReader<UnixStream>>>,
}

impl Process {
    pub(super) fn start(launch: &Launch, plugin: PluginKind) -> io::Result<Self> {
        let (ours, theirs) = link::pair()?;
        let child = Command::new(&launch.program)
            .arg0("keelson")
            .args(launch.arguments(plugin))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let program = Path::new(&launch.program).display();
                io::Error::new(error.kind(), format!("failed to start {program}: {error}"))
            })?;
        Ok(Self { child, reports: Some(BufReader::new(ours).lines()) })
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the next report or the end; every report that was sent comes before the end. Cancelling it loses
    /// nothing.
    pub(super) async fn next(&mut self) -> io::Result<Event> {
        while let Some(reports) = &mut self.reports {
            let line = tokio::select! {
                biased;
                line = reports.next_line() => line,
                // The socket can only stay open past the process if another holds it: don't wait for that.
                _ = self.child.wait() => match timeout(Duration::from_secs(1), reports.next_line()).await {
                    Ok(line) => line,
                    Err(_) => Ok(None),
                },
            };
            match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(report) => return Ok(Event::Reported(report)),
                    Err(error) => tracing::warn!(line, %error, "not a report"),
                },
                Ok(None) | Err(_) => self.reports = None,
            }
        }
        self.child.wait().await.map(Event::Ended)
    }

    /// Ends it with SIGTERM, after a grace with SIGKILL; false unless it ended by itself and without a failure.
    pub(super) async fn stop(mut self, plugin: PluginKind) -> bool {
        self.signal(Signal::SIGTERM);
        match timeout(TERMINATE_GRACE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => return true,
            Ok(Ok(status)) => {
                tracing::error!(%plugin, how = describe(status), "plugin's process did not stop cleanly");
                return false;
            }
            Ok(Err(error)) => {
                tracing::error!(%plugin, %error, "failed to wait for a plugin's process");
                return false;
            }
            Err(_) => {}
        }
        tracing::error!(%plugin, "still there {TERMINATE_GRACE:?} after SIGTERM, killing it");
        self.signal(Signal::SIGKILL);
        if timeout(KILL_GRACE, self.child.wait()).await.is_err() {
            tracing::error!(%plugin, pid = self.id(), "survives SIGKILL: it hangs in the kernel, look at its storage");
        }
        false
    }

    fn signal(&self, signal: Signal) {
        // The id is gone once the process was waited for, so it can't be another's.
        let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) else { return };
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            tracing::warn!(pid, %signal, %error, "failed to signal a plugin's process");
        }
    }
}

/// How a process ended, in words.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

/// A wait that ends early when `stop` does; true if it did.
pub(super) async fn wait_or(delay: Duration, stop: impl Future<Output = ()>) -> bool {
    tokio::select! {
        () = sleep(delay) => false,
        () = stop => true,
    }
}
