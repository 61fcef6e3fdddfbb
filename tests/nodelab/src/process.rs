//! The long-running programs of a lab: containerd and `keelson run`.

use std::{
    fs::{self, File},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::layout::Layout;

/// Every program that a lab starts carries the lab's directory in this variable, and hands it down.
pub(crate) const LAB_VARIABLE: &str = "KEELSON_LAB";

/// A program that runs until it is told to end; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output appended to `log`, in a process group of its own: the terminal's Ctrl-C is
    /// for the lab, which then ends its programs in their order.
    ///
    /// `spawn` forks from the calling thread, so the program sees that thread's namespaces.
    pub(crate) fn start(name: &str, mut command: Command, lab: &Path, log: PathBuf) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("failed to open {}", log.display()))?;
        let child = command
            .env(LAB_VARIABLE, lab)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("failed to run {:?}", command.get_program()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of the log if the program has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended ({status}); the end of {}:\n{}", self.name, self.log.display(), self.tail())
            }
        }
    }

    /// Waits for `condition`, for as long as the program runs.
    pub(crate) async fn wait_for<T>(&mut self, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        // A net under a hang, far above what any of the conditions takes.
        let limit = Duration::from_secs(60);
        let start = Instant::now();
        loop {
            if let Some(value) = condition().await {
                return Ok(value);
            }
            self.check_running()?;
            if start.elapsed() > limit {
                bail!("waited {limit:?} for {what}; the end of {}:\n{}", self.log.display(), self.tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends `signal`.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(as_pid(self.pid())?, signal).with_context(|| format!("failed to send {signal} to {}", self.name))
    }

    /// Ends the program with SIGTERM and returns how it ended.
    ///
    /// # Errors
    ///
    /// When it doesn't end by itself; it is then killed.
    pub(crate) fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let limit = Duration::from_secs(30);
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                self.child.kill()?;
                self.child.wait()?;
                bail!(
                    "{} did not end within {limit:?} of SIGTERM and was killed; the end of its log:\n{}",
                    self.name,
                    self.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills the program as a crash would.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("failed to kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Lets the program run on when this process ends.
    pub(crate) fn leave(self) -> u32 {
        let pid = self.pid();
        std::mem::forget(self);
        pid
    }

    fn tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already: both calls fail, and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes of a lab: those whose environment names it, those in its cgroups, and those that run its programs, since
/// the suite's helpers get no environment.
pub(crate) fn processes_of(layout: &Layout) -> Result<Vec<(u32, String)>> {
    let root = layout.root().as_os_str().as_bytes();
    let variable = [LAB_VARIABLE.as_bytes(), b"=", root].concat();
    let cgroup = format!("{}/", layout.cgroup());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("failed to list /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        // A process that ends meanwhile is none to report; a zombie has nothing of all this.
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let names_lab = || read("environ").split(|byte| *byte == 0).any(|entry| entry == variable);
        let is_in_cgroup = || String::from_utf8_lossy(&read("cgroup")).contains(&cgroup);
        let is_helper = || {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.starts_with(layout.join("programs")))
        };
        if names_lab() || is_in_cgroup() || is_helper() {
            found.push((pid, String::from_utf8_lossy(&read("comm")).trim_end().to_owned()));
        }
    }
    Ok(found)
}

/// The children of process `parent` with `arguments` among theirs, in a row.
pub(crate) fn child_with_arguments(parent: u32, arguments: &[&str]) -> Result<Option<u32>> {
    let wanted: Vec<u8> = arguments.iter().flat_map(|argument| [argument.as_bytes(), b"\0"].concat()).collect();
    for entry in fs::read_dir("/proc").context("failed to list /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parents =
            status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|value| value.trim().parse().ok());
        if parents == Some(parent) && command_line.windows(wanted.len()).any(|window| window == wanted) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// `pid` as the kernel's calls want it.
pub(crate) fn as_pid(pid: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(pid).context("a process id is below 2^22")?))
}
