//! What can hang runs in a process of its own, with a deadline.
//!
//! A thread that is stuck in the kernel survives SIGKILL and keeps its process half alive. So the driver never calls
//! mount(2) or umount(2) itself, nor formats: it starts this same executable again (`keelson storage-helper VERB`),
//! writes the verb's arguments as one line of JSON to its standard input, and reads one line of JSON from its standard
//! output. Arguments may be sensitive (mount flags), so they are never part of the command line. Some helpers are started
//! ahead with the verb `wait`, and read which verb it is with its arguments. A helper that mounts
//! ends when its standard input is closed, and so with the driver. One that formats becomes `mkfs.ext4`, which the
//! kernel kills when the driver dies.
//!
//! All else runs in the driver, on threads that may block: what it does to files of a pool (fallocate, fsync, statfs,
//! renames), to loop devices (ioctl) and to the kubelet's paths (openat2). A disk that doesn't answer keeps those
//! threads; that it keeps no more than one for each volume and each question is the service's part.

use std::{
    collections::HashMap,
    ffi::OsString,
    io::{self, BufRead, Read, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode, Output, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, set_parent_process_death_signal},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    freeze, grow, mount,
    stock::{self, Started, Stock},
};
use crate::policy::{FilesystemType, MountOptions, TargetPath};

/// Programs that helpers execute come from here, whatever the environment says.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The verb of a helper that is told in its first line what to do.
const WAIT: &str = "wait";

/// Something that is kept until a helper process is really gone, such as the exclusive use of a volume.
pub(crate) type Hold = Arc<dyn Send + Sync>;

/// How the driver runs what can hang.
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
    arguments: Vec<OsString>,
    deadline: Duration,
    stock: Option<Arc<Stock>>,
}

/// What a helper is asked to do; every one can be repeated.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Mounts the filesystem on a device.
    #[serde(rename_all = "camelCase")]
    Mount { filesystem: FilesystemType, device: PathBuf, target: TargetPath, options: MountOptions },
    /// Mounts a directory or a device node a second time.
    #[serde(rename_all = "camelCase")]
    Bind { source: BindSource, target: TargetPath, options: MountOptions },
    /// Unmounts what is topmost at a path.
    #[serde(rename_all = "camelCase")]
    Unmount { target: TargetPath },
    /// Lets a mounted filesystem use so many bytes of its device.
    #[serde(rename_all = "camelCase")]
    Grow { filesystem: FilesystemType, target: TargetPath, bytes: u64 },
    /// Freezes filesystems until told, or so many milliseconds have passed.
    #[serde(rename_all = "camelCase")]
    Freeze { targets: Vec<TargetPath>, milliseconds: u64 },
    /// Thaws a filesystem that is frozen.
    #[serde(rename_all = "camelCase")]
    Thaw { target: TargetPath },
    /// Becomes another program, which neither reads nor answers anything.
    #[serde(rename_all = "camelCase")]
    Become { program: String, arguments: Vec<OsString> },
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
        Self::new("/proc/self/exe", ["storage-helper"]).with_stock()
    }

    /// `program arguments... VERB` must call [`helper_main`] with what follows `arguments`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            deadline: Duration::from_secs(60),
            stock: None,
        }
    }

    /// The same with processes that are started before they are needed.
    #[must_use]
    pub fn with_stock(self) -> Self {
        Self { stock: Some(Arc::default()), ..self }
    }

    /// The same with another deadline for each operation.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Does `request` in a helper process. If that outlives its deadline and even SIGKILL, `hold` is kept until it
    /// is really gone: until then nobody else may touch the volume.
    pub(crate) fn run(&self, request: &Request, hold: Hold) -> Result<(), HelperError> {
        let output = self.output_of(request, hold)?;
        match serde_json::from_slice(&output.stdout) {
            Ok(Answer::Done) if output.status.success() => Ok(()),
            Ok(Answer::Failed { step, errno, detail }) => Err(HelperError::Step { step, errno, detail }),
            _ => Err(unexpected_end("the helper", &output)),
        }
    }

    /// Runs a program in the same way, without input.
    pub(crate) fn run_program(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        hold: Hold,
    ) -> Result<(), HelperError> {
        let arguments = arguments.into_iter().map(Into::into).collect();
        let output = self.output_of(&Request::Become { program: program.to_owned(), arguments }, hold)?;
        if output.status.success() {
            return Ok(());
        }
        match serde_json::from_slice(&output.stdout) {
            Ok(Answer::Failed { step, errno, detail }) => Err(HelperError::Step { step, errno, detail }),
            _ => Err(unexpected_end(program, &output)),
        }
    }

    /// Runs a program that judges something: nothing if it found it good, else what it wrote.
    pub(crate) fn judge(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Result<Option<String>, HelperError> {
        let arguments = arguments.into_iter().map(Into::into).collect();
        let request = Request::Become { program: program.to_owned(), arguments };
        let output = self.output_of(&request, Arc::new(()))?;
        if output.status.success() {
            return Ok(None);
        }
        if let Ok(Answer::Failed { step, errno, detail }) = serde_json::from_slice(&output.stdout) {
            return Err(HelperError::Step { step, errno, detail });
        }
        if output.status.code().is_none() {
            return Err(unexpected_end(program, &output));
        }
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).trim().to_owned());
        Ok(Some(text.join("\n")))
    }

    fn output_of(&self, request: &Request, hold: Hold) -> Result<Output, HelperError> {
        let (verb, arguments) = encode(request).map_err(|source| self.failed_to_run(source))?;
        if let Request::Become { program, .. } = request {
            // The kernel is to kill it with the thread that started it, and so with the one that waits for it.
            let command = self.command_for(&verb);
            return supervise(move || stock::start(command), arguments, program, self.deadline, hold, || {});
        }
        let Some(stock) = self.stock.clone() else {
            let command = self.command_for(&verb);
            return supervise(move || stock::start(command), arguments, &verb, self.deadline, hold, || {});
        };
        let (start, input): (Box<dyn FnOnce() -> _ + Send>, _) = match stock.take() {
            Some(waiting) => (Box::new(|| Ok(waiting)), whole(request).map_err(|source| self.failed_to_run(source))?),
            None => {
                let command = self.command_for(&verb);
                (Box::new(|| stock::start(command)), arguments)
            }
        };
        let another = self.command_for(WAIT);
        supervise(start, input, &verb, self.deadline, hold, move || stock.refill(another))
    }

    /// The helper for `request`, and the line that it is to read first.
    pub(super) fn command(&self, request: &Request) -> Result<(Command, Vec<u8>), HelperError> {
        let (verb, arguments) = encode(request).map_err(|source| self.failed_to_run(source))?;
        Ok((self.command_for(&verb), arguments))
    }

    fn command_for(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(verb).env_clear();
        command
    }

    fn failed_to_run(&self, source: io::Error) -> HelperError {
        HelperError::Run { program: self.program.display().to_string(), source }
    }
}

/// Whether `program` can be run by [`Helper::run_program`].
pub(crate) fn program_exists(program: &str) -> bool {
    PATH.split(':').any(|directory| std::path::Path::new(directory).join(program).is_file())
}

/// A request as one line, verb and all.
fn whole(request: &Request) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    Ok(line)
}

/// A request as its verb and its arguments: `{"unmount": {...}}`, the key and the value.
pub(super) fn encode(request: &Request) -> io::Result<(String, Vec<u8>)> {
    let mut by_verb: HashMap<String, Value> = serde_json::from_value(serde_json::to_value(request)?)?;
    let Some((verb, arguments)) = by_verb.drain().next() else {
        return Err(io::Error::other("a request has no verb"));
    };
    let mut line = serde_json::to_vec(&arguments)?;
    line.push(b'\n');
    Ok((verb, line))
}

/// Runs what `start` gives to its end or to the deadline. `after` is what else its thread does then.
fn supervise(
    start: impl FnOnce() -> io::Result<Started> + Send + 'static,
    input: Vec<u8>,
    what: &str,
    deadline: Duration,
    hold: Hold,
    after: impl FnOnce() + Send + 'static,
) -> Result<Output, HelperError> {
    let failed = |source| HelperError::Run { program: what.to_owned(), source };
    let (started, began) = mpsc::channel();
    let (ended, end) = mpsc::channel();
    // This thread alone waits for the child, for as long as it takes; it reaps it, and frees the volume. It also starts
    // it: what the kernel kills with its parent, it kills with the thread that started it.
    let supervisor = thread::Builder::new().name("storage-helper".to_owned());
    let work = move || {
        let Started { mut child, handle } = match start() {
            Ok(started) => started,
            // The receivers are there as long as nothing was received, or the deadline hasn't passed.
            Err(error) => return drop(started.send(Err(error))),
        };
        let _ = started.send(Ok(handle));
        // Held open until the child is gone: its end tells the child that the driver has died.
        let mut stdin = child.stdin.take();
        let written = stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(&input));
        let output = child.wait_with_output();
        drop(stdin);
        drop(hold);
        let _ = ended.send(output.and_then(|output| match written {
            // A child that ended early said why on its other streams.
            Err(error) if output.status.success() => Err(error),
            _ => Ok(output),
        }));
        after();
    };
    supervisor.spawn(work).map_err(failed)?;
    let lost = || io::Error::other("the thread that supervises it has ended");
    let handle = began.recv().map_err(|_| lost()).flatten().map_err(failed)?;
    match end.recv_timeout(deadline) {
        Ok(output) => output.map_err(failed),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(failed(lost())),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            // It may have ended this very moment; the handle can't mean another process.
            let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
            Err(HelperError::Deadline { what: what.to_owned(), deadline })
        }
    }
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
        Ok(Some(request)) => request,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            // Its only reader is who called it by hand.
            let _ = writeln!(io::stderr(), "storage-helper is for the storage plugin's own use: {error}");
            return ExitCode::from(2);
        }
    };
    if let Request::Freeze { targets, milliseconds } = &request {
        return freeze::perform_freeze(targets, Duration::from_millis(*milliseconds));
    }
    let done = end_with_the_driver(&request).and_then(|()| match &request {
        Request::Mount { filesystem, device, target, options } => {
            mount::perform_mount(*filesystem, device, target, options)
        }
        Request::Bind { source, target, options } => mount::perform_bind(source, target, options),
        Request::Unmount { target } => mount::perform_unmount(target),
        Request::Grow { filesystem, target, bytes } => grow::perform_grow(*filesystem, target, *bytes),
        Request::Thaw { target } => freeze::perform_thaw(target),
        // Above; it has answers of its own.
        Request::Freeze { .. } => Ok(()),
        Request::Become { program, arguments } => Err(become_program(program, arguments)),
    });
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

/// Sees to it that this process ends when the driver does: nobody would hear the answer, and a successor may already
/// retry.
fn end_with_the_driver(request: &Request) -> Result<(), mount::StepError> {
    match request {
        Request::Freeze { .. } => {}
        Request::Mount { .. }
        | Request::Bind { .. }
        | Request::Unmount { .. }
        | Request::Grow { .. }
        | Request::Thaw { .. } => {
            let watch = || {
                let _ = io::stdin().read_to_end(&mut Vec::new());
                std::process::exit(1);
            };
            thread::Builder::new().spawn(watch).map_err(mount::io_step("starting a thread"))?;
        }
        Request::Become { .. } => {
            let step = mount::step("asking to be killed with the driver");
            // Stays in force for the program that this process becomes.
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(&step)?;
            // The driver may have died before that; then nobody holds the other end of the pipe any more.
            let stdin = io::stdin();
            let mut ends = [PollFd::new(&stdin, PollFlags::empty())];
            poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_err(&step)?;
            if ends[0].revents().contains(PollFlags::HUP) {
                std::process::exit(1);
            }
        }
    }
    Ok(())
}

/// Becomes `program`; returns why that failed.
fn become_program(program: &str, arguments: &[OsString]) -> mount::StepError {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null());
    mount::io_step("running a program")(command.exec())
}

/// What is to be done; nothing if the driver ended, or didn't need this helper, before it said so.
fn decode(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Request>, String> {
    let mut arguments = arguments.into_iter();
    let (Some(verb), None) = (arguments.next(), arguments.next()) else { return Err("expected one verb".to_owned()) };
    let verb = verb.into_string().map_err(|verb| format!("unknown verb {}", verb.display()))?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|error| format!("failed to read standard input: {error}"))?;
    if verb == WAIT && line.is_empty() {
        return Ok(None);
    }
    decode_line(&verb, &line).map(Some)
}

/// A verb and its arguments as a request.
pub(super) fn decode_line(verb: &str, line: &str) -> Result<Request, String> {
    let body: Value = serde_json::from_str(line).map_err(|error| format!("expected a line of JSON: {error}"))?;
    let request = if verb == WAIT { body } else { serde_json::json!({ verb: body }) };
    serde_json::from_value(request).map_err(|error| error.to_string())
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

    fn command(program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments);
        command
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let command = command("sh", &["-c", "echo no good >&2; exit 3"]);
        let output =
            supervise(|| stock::start(command), Vec::new(), "sh", Duration::from_secs(60), Arc::new(()), || {})
                .unwrap();
        assert_eq!(unexpected_end("sh", &output).to_string(), "sh ended with exit status: 3: no good");
    }

    #[test]
    fn a_program_that_does_not_start_frees_the_volume() {
        let hold = Arc::new(());
        let held = Arc::downgrade(&hold);
        let command = command("/nonexistent", &[]);
        let error =
            supervise(|| stock::start(command), Vec::new(), "it", Duration::from_secs(60), hold, || {}).unwrap_err();
        assert!(matches!(error, HelperError::Run { .. }), "{error}");
        keelson_testkit::wait_until("the volume to be free", Duration::from_secs(60), || {
            held.upgrade().is_none().then_some(())
        });
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_only_then_frees_the_volume() {
        let hold = Arc::new(());
        let held = Arc::downgrade(&hold);
        let command = command("sleep", &["600"]);
        let error = supervise(|| stock::start(command), Vec::new(), "sleep", Duration::from_millis(50), hold, || {})
            .unwrap_err();
        assert!(matches!(error, HelperError::Deadline { .. }), "{error}");
        keelson_testkit::wait_until("the killed process to be gone", Duration::from_secs(60), || {
            held.upgrade().is_none().then_some(())
        });
    }
}
