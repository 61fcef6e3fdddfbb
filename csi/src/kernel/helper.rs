//! What can hang runs in a process of its own, with a deadline.
//!
//! A thread that is stuck in the kernel survives SIGKILL and keeps its process half alive. So the driver never calls
//! mount(2) or umount(2) itself: it starts this same executable again (`keelson storage-helper VERB`), writes the
//! verb's arguments as one line of JSON to its standard input, and reads one line of JSON from its standard output.
//! Arguments may be sensitive (mount flags), so they are never part of the command line. The helper ends when its
//! standard input is closed, and so with the driver. `mkfs.ext4` is run in the same way.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    io::{self, BufRead, Read, Write},
    path::PathBuf,
    process::{Child, Command, ExitCode, Output, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mount;
use crate::policy::{MountOptions, TargetPath};

/// Programs that helpers execute come from here, whatever the environment says.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Something that is kept until a helper process is really gone, such as the exclusive use of a volume.
pub(crate) type Hold = Arc<dyn Send + Sync>;

/// How the driver runs what can hang.
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
    arguments: Vec<OsString>,
    deadline: Duration,
}

/// What a helper is asked to do; every one can be repeated.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Mounts the ext4 filesystem on a device.
    #[serde(rename_all = "camelCase")]
    Mount { device: PathBuf, target: TargetPath, options: MountOptions },
    /// Mounts a directory or a device node a second time.
    #[serde(rename_all = "camelCase")]
    Bind { source: BindSource, target: TargetPath, options: MountOptions },
    /// Unmounts what is topmost at a path.
    #[serde(rename_all = "camelCase")]
    Unmount { target: TargetPath },
}

/// What is mounted a second time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum BindSource {
    /// A path of our own choice: a pool's or a device's.
    Own(PathBuf),
    /// A path of a request, in which no link is followed.
    Requested(TargetPath),
}

/// How a helper ended.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Done,
    #[serde(rename_all = "camelCase")]
    Failed {
        step: String,
        errno: Option<i32>,
        detail: String,
    },
}

/// Why something that runs in a helper process did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    #[error("failed to run {program}")]
    Run { program: String, source: io::Error },
    #[error("{what} did not end within {} s; its process was killed", deadline.as_secs())]
    Deadline { what: String, deadline: Duration },
    #[error("{step} failed: {detail}")]
    Step { step: String, errno: Option<i32>, detail: String },
    #[error("{what} ended with {status}: {stderr}")]
    Exit { what: String, status: String, stderr: String },
}

impl Helper {
    /// This very executable, also after an upgrade replaced its file, with the argument `storage-helper`.
    #[must_use]
    pub fn own_executable() -> Self {
        Self::new("/proc/self/exe", ["storage-helper"])
    }

    /// `program arguments... VERB` must call [`helper_main`] with what follows `arguments`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            deadline: Duration::from_secs(60),
        }
    }

    /// The same with another deadline for each operation.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Does `request` in a helper process. If that outlives its deadline and even SIGKILL, `hold` is kept until it
    /// is really gone: until then nobody else may touch the volume.
    pub(crate) fn run(&self, request: &Request, hold: Hold) -> Result<(), HelperError> {
        let (verb, arguments) = encode(request).map_err(|source| self.failed_to_run(source))?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(&verb).env_clear();
        let output = supervise(command, arguments, &verb, self.deadline, hold)?;
        match serde_json::from_slice(&output.stdout) {
            Ok(Answer::Done) if output.status.success() => Ok(()),
            Ok(Answer::Failed { step, errno, detail }) => Err(HelperError::Step { step, errno, detail }),
            _ => Err(unexpected_end(&verb, &output)),
        }
    }

    /// Runs a program in the same way, without input.
    pub(crate) fn run_program(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        hold: Hold,
    ) -> Result<(), HelperError> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C");
        let output = supervise(command, Vec::new(), program, self.deadline, hold)?;
        if output.status.success() { Ok(()) } else { Err(unexpected_end(program, &output)) }
    }

    fn failed_to_run(&self, source: io::Error) -> HelperError {
        HelperError::Run { program: self.program.display().to_string(), source }
    }
}

/// Whether `program` can be run by [`Helper::run_program`].
pub(crate) fn program_exists(program: &str) -> bool {
    PATH.split(':').any(|directory| std::path::Path::new(directory).join(program).is_file())
}

/// A request as its verb and its arguments: `{"unmount": {...}}`, the key and the value.
fn encode(request: &Request) -> io::Result<(String, Vec<u8>)> {
    let mut by_verb: HashMap<String, Value> = serde_json::from_value(serde_json::to_value(request)?)?;
    let Some((verb, arguments)) = by_verb.drain().next() else {
        return Err(io::Error::other("a request has no verb"));
    };
    let mut line = serde_json::to_vec(&arguments)?;
    line.push(b'\n');
    Ok((verb, line))
}

/// Runs `command` to its end or to the deadline.
fn supervise(
    mut command: Command,
    input: Vec<u8>,
    what: &str,
    deadline: Duration,
    hold: Hold,
) -> Result<Output, HelperError> {
    let failed = |source| HelperError::Run { program: what.to_owned(), source };
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let handle = handle_of(&child).map_err(failed)?;
    let (sender, receiver) = mpsc::channel();
    // This thread alone waits for the child, for as long as it takes; it reaps it, and frees the volume.
    thread::spawn(move || {
        // Held open until the child is gone: its end tells the child that the driver has died.
        let mut stdin = child.stdin.take();
        let written = stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(&input));
        let output = child.wait_with_output();
        drop(stdin);
        drop(hold);
        // The receiver is gone if the deadline has passed.
        let _ = sender.send(output.and_then(|output| match written {
            // A child that ended early said why on its other streams.
            Err(error) if output.status.success() => Err(error),
            _ => Ok(output),
        }));
    });
    match receiver.recv_timeout(deadline) {
        Ok(output) => output.map_err(failed),
        Err(_) => {
            // It may have ended this very moment; the handle can't mean another process.
            let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
            Err(HelperError::Deadline { what: what.to_owned(), deadline })
        }
    }
}

fn handle_of(child: &Child) -> io::Result<rustix::fd::OwnedFd> {
    Ok(rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

fn unexpected_end(what: &str, output: &Output) -> HelperError {
    HelperError::Exit {
        what: what.to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    }
}

/// The main function of the helper program; `arguments` is what follows `storage-helper` on its command line.
///
/// Exit code 0: done. 1: the operation failed, standard output says why. 2: called in another way than by the driver.
pub fn helper_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let request = match decode(arguments) {
        Ok(request) => request,
        Err(error) => {
            // Its only reader is who called it by hand.
            let _ = writeln!(io::stderr(), "storage-helper is for the storage plugin's own use: {error}");
            return ExitCode::from(2);
        }
    };
    thread::spawn(|| {
        // Ends with the driver: nobody would hear the answer, and a successor may already retry.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let done = match &request {
        Request::Mount { device, target, options } => mount::perform_mount(device, target, options),
        Request::Bind { source, target, options } => mount::perform_bind(source, target, options),
        Request::Unmount { target } => mount::perform_unmount(target),
    };
    let (answer, code) = match done {
        Ok(()) => (Answer::Done, ExitCode::SUCCESS),
        Err(mount::StepError { step, source, detail }) => {
            let errno = source.raw_os_error();
            let detail = if detail.is_empty() { source.to_string() } else { format!("{source} ({detail})") };
            (Answer::Failed { step: step.to_owned(), errno, detail }, ExitCode::FAILURE)
        }
    };
    match serde_json::to_writer(io::stdout(), &answer) {
        Ok(()) => code,
        Err(_) => ExitCode::from(2),
    }
}

fn decode(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut arguments = arguments.into_iter();
    let (Some(verb), None) = (arguments.next(), arguments.next()) else { return Err("expected one verb".to_owned()) };
    let verb = verb.into_string().map_err(|verb| format!("unknown verb {}", verb.display()))?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|error| format!("failed to read standard input: {error}"))?;
    let body: Value = serde_json::from_str(&line).map_err(|error| format!("expected a line of JSON: {error}"))?;
    serde_json::from_value(serde_json::json!({ verb: body })).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_its_way_to_the_helper() {
        let target = TargetPath::try_from("/a/b".to_owned()).unwrap();
        let (verb, line) = encode(&Request::Unmount { target: target.clone() }).unwrap();
        assert_eq!(verb, "unmount");
        let body: Value = serde_json::from_slice(&line).unwrap();
        let back: Request = serde_json::from_value(serde_json::json!({ verb: body })).unwrap();
        assert!(matches!(back, Request::Unmount { target: found } if found == target));
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let helper = Helper::own_executable();
        let error = helper.run_program("sh", ["-c", "echo no good >&2; exit 3"], Arc::new(())).unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 3: no good");
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_only_then_frees_the_volume() {
        let hold = Arc::new(());
        let held = Arc::downgrade(&hold);
        let helper = Helper::own_executable().with_deadline(Duration::from_millis(50));
        let error = helper.run_program("sleep", ["600"], hold).unwrap_err();
        assert!(matches!(error, HelperError::Deadline { .. }), "{error}");
        keelson_testkit::wait_until("the killed process to be gone", Duration::from_secs(60), || {
            held.upgrade().is_none().then_some(())
        });
    }
}
