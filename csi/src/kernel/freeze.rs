//! Stopping all writing to several filesystems at once, for as long as it takes to clone their images.
//!
//! A frozen filesystem whose freezer is gone blocks its writers for ever. So a helper process freezes, and it alone
//! thaws: when it is told to, when its standard input is closed, and so when the driver dies, when its deadline has
//! passed, and when one of the filesystems can't be frozen. It outlives the driver for that, and the signals that end
//! one. What only the end of the helper itself leaves frozen, [`thaw_leftover`] thaws.
//!
//! The helper reads its request and then one more line, or the end; it writes a [`Report`] per line.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::fd::{AsFd, OwnedFd},
    process::{ChildStdin, ExitCode, Stdio},
    sync::{
        Condvar, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    helper::{Helper, HelperError, Hold, Request},
    mount::{StepError, io_step},
    path, sys,
};
use crate::policy::TargetPath;

/// How much longer than the helper's own deadline its answer is waited for.
const GRACE: Duration = Duration::from_secs(10);

/// How long the helper waits for a thaw before it says that there was none yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the helper tells the driver.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Report {
    /// All are frozen.
    Frozen,
    /// All are thawed, as was asked for: so long after the first began to freeze.
    #[serde(rename_all = "camelCase")]
    Thawed { microseconds: u64 },
    /// All are thawed, before anybody asked.
    Expired,
    /// Not all could be frozen, or stayed so; those that were are thawed.
    #[serde(rename_all = "camelCase")]
    Failed { step: String, errno: Option<i32>, detail: String },
}

/// Why filesystems were not frozen, or not for long enough.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezeError {
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error("the filesystems were frozen for {} ms and thawed then, so what was cloned is not of one instant", deadline.as_millis())]
    Expired { deadline: Duration },
    #[error("the process that froze the filesystems ended before it thawed them")]
    Lost,
}

/// Filesystems that nobody can write to. Dropping it thaws them soon.
pub(crate) struct Frozen {
    helper: Helper,
    targets: Vec<TargetPath>,
    deadline: Duration,
    hold: Hold,
    /// Its end tells the helper to thaw.
    stdin: ChildStdin,
    reports: Receiver<Report>,
    process: u32,
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Frozen").field("targets", &self.targets).field("process", &self.process).finish()
    }
}

/// Freezes the filesystems mounted at `targets`, all of them different, for at most `deadline` in all. `hold` is kept
/// until the helper is gone.
pub(crate) fn freeze(
    helper: &Helper,
    targets: &[TargetPath],
    deadline: Duration,
    hold: Hold,
) -> Result<Frozen, FreezeError> {
    let milliseconds = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let (mut command, line) = helper.command(&Request::Freeze { targets: targets.to_vec(), milliseconds })?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let failed = |source| HelperError::Run { program: "the freezing helper".to_owned(), source };
    let mut child = command.spawn().map_err(failed)?;
    let process = child.id();
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(failed(io::Error::other("it has no pipes")).into());
    };
    let (sender, reports) = mpsc::channel();
    let kept = hold.clone();
    // Alone waits for the child, for as long as it takes.
    let listen = move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Ok(report) = serde_json::from_str(&line) {
                let _ = sender.send(report);
            }
        }
        drop(sender);
        let _ = child.wait();
        drop(kept);
    };
    thread::Builder::new().name("storage-freezer".to_owned()).spawn(listen).map_err(failed)?;
    stdin.write_all(&line).map_err(failed)?;
    let frozen = Frozen { helper: helper.clone(), targets: targets.to_vec(), deadline, hold, stdin, reports, process };
    match frozen.reports.recv_timeout(deadline.saturating_add(GRACE)) {
        Ok(Report::Frozen) => Ok(frozen),
        other => Err(frozen.failure(other)),
    }
}

impl Frozen {
    /// Lets writing go on, and tells how long it could not: from the begin of the first freeze to the end of the last
    /// thaw. An error means that somebody may have written in between.
    pub(crate) fn thaw(mut self) -> Result<Duration, FreezeError> {
        // If the helper is gone, what it reported before says why.
        let _ = self.stdin.write_all(b"thaw\n");
        match self.reports.recv_timeout(GRACE) {
            Ok(Report::Thawed { microseconds }) => Ok(Duration::from_micros(microseconds)),
            other => Err(self.failure(other)),
        }
    }

    fn failure(self, answer: Result<Report, RecvTimeoutError>) -> FreezeError {
        match answer {
            Ok(Report::Expired) => FreezeError::Expired { deadline: self.deadline },
            Ok(Report::Failed { step, errno, detail }) => HelperError::Step { step, errno, detail }.into(),
            Err(RecvTimeoutError::Timeout) => {
                let what = "freezing or thawing the filesystems".to_owned();
                HelperError::Deadline { what, deadline: self.deadline.saturating_add(GRACE) }.into()
            }
            Ok(Report::Frozen | Report::Thawed { .. }) | Err(RecvTimeoutError::Disconnected) => {
                for target in &self.targets {
                    if let Err(error) = thaw_leftover(&self.helper, target, self.hold.clone()) {
                        tracing::error!(%target, %error, "failed to thaw what a lost helper froze");
                    }
                }
                FreezeError::Lost
            }
        }
    }
}

/// Thaws the filesystem mounted at `target` if it is frozen, by whomever.
pub(crate) fn thaw_leftover(helper: &Helper, target: &TargetPath, hold: Hold) -> Result<(), HelperError> {
    helper.run(&Request::Thaw { target: target.clone() }, hold)
}

/// The helper's side of [`thaw_leftover`].
pub(super) fn perform_thaw(target: &TargetPath) -> Result<(), StepError> {
    let root = path::open_mounted(target).map_err(io_step("opening the mount point"))?;
    match sys::thaw(root.as_fd()) {
        // ioctl_fs: "not frozen".
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        thawed => thawed.map_err(io_step("thawing the filesystem")),
    }
}

/// What the helper waits for.
enum Event {
    Frozen(io::Result<()>),
    Thawed(io::Result<()>),
    /// The driver wants an end, or is gone.
    Told,
    /// The deadline has passed.
    Late,
}

/// The helper's side of [`freeze`]. Ends when everything is thawed, be the kernel ever so slow to freeze it.
pub(super) fn perform_freeze(targets: &[TargetPath], deadline: Duration) -> ExitCode {
    let began = Instant::now();
    sys::ignore_terminations();
    let opened: io::Result<Vec<OwnedFd>> = targets.iter().map(path::open_mounted).collect();
    let roots = match opened {
        Ok(roots) => roots,
        Err(error) => return end(&failed("opening a mount point", &error)),
    };
    let (events, received) = mpsc::channel();
    let told = events.clone();
    // It may still read when this process ends.
    let listener = thread::Builder::new().spawn(move || {
        let _ = io::stdin().lock().read_line(&mut String::new());
        let _ = told.send(Event::Told);
    });
    if let Err(error) = listener {
        return end(&failed("starting a thread", &error));
    }
    let release = Release::default();
    thread::scope(|scope| {
        for root in roots {
            let (own, release) = (events.clone(), &release);
            let started = thread::Builder::new().spawn_scoped(scope, move || keep_frozen(root, &own, release));
            if let Err(error) = started {
                let _ = events.send(Event::Frozen(Err(error)));
            }
        }
        let next = |within: Duration| received.recv_timeout(within).unwrap_or(Event::Late);
        end(&oversee(targets.len(), began, deadline, next, || release.now()))
        // The scope waits for every thread.
    })
}

/// Freezes one filesystem, and thaws it when that is due, which it may be by the time it is frozen. When the last event
/// is told, nothing keeps it from being unmounted.
fn keep_frozen(root: OwnedFd, events: &Sender<Event>, release: &Release) {
    let frozen = sys::freeze(root.as_fd());
    if frozen.is_ok() {
        let _ = events.send(Event::Frozen(frozen));
        release.wait();
        let thawed = sys::thaw(root.as_fd());
        drop(root);
        let _ = events.send(Event::Thawed(thawed));
    } else {
        drop(root);
        let _ = events.send(Event::Frozen(frozen));
    }
}

/// Sees `count` filesystems frozen and thawed again; what has frozen by the end is thawed, what hasn't yet will be.
fn oversee(
    count: usize,
    began: Instant,
    deadline: Duration,
    mut next: impl FnMut(Duration) -> Event,
    release: impl FnOnce(),
) -> Report {
    let left = || deadline.saturating_sub(began.elapsed());
    let timeout = || io::Error::from_raw_os_error(libc::ETIMEDOUT);
    let (mut frozen, mut failure) = (0, None);
    while frozen < count && failure.is_none() {
        match next(left()) {
            Event::Frozen(Ok(())) => frozen += 1,
            Event::Frozen(Err(error)) => failure = Some(failed("freezing a filesystem", &error)),
            Event::Late => failure = Some(failed("freezing all filesystems in time", &timeout())),
            Event::Told | Event::Thawed(_) => failure = Some(Report::Expired),
        }
    }
    if failure.is_none() {
        say(&Report::Frozen);
        failure = match next(left()) {
            Event::Told => None,
            Event::Late | Event::Frozen(_) | Event::Thawed(_) => Some(Report::Expired),
        };
    }
    release();
    let mut late = false;
    while frozen > 0 && !late {
        match next(PATIENCE) {
            Event::Thawed(Ok(())) => frozen -= 1,
            Event::Thawed(Err(error)) => {
                frozen -= 1;
                // EINVAL: somebody else has thawed it already.
                failure.get_or_insert(failed("thawing a filesystem that was frozen", &error));
            }
            // One that was slow.
            Event::Frozen(Ok(())) => frozen += 1,
            Event::Frozen(Err(_)) | Event::Told => {}
            Event::Late => late = true,
        }
    }
    let microseconds = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    failure.unwrap_or(if late { Report::Expired } else { Report::Thawed { microseconds } })
}

fn failed(step: &str, error: &io::Error) -> Report {
    Report::Failed { step: step.to_owned(), errno: error.raw_os_error(), detail: error.to_string() }
}

/// Tells the driver, if it is there.
fn say(report: &Report) {
    let mut out = io::stdout().lock();
    let _ = serde_json::to_writer(&mut out, report).map_err(io::Error::from).and_then(|()| writeln!(out));
    let _ = out.flush();
}

fn end(report: &Report) -> ExitCode {
    say(report);
    match report {
        Report::Thawed { .. } => ExitCode::SUCCESS,
        Report::Frozen | Report::Expired | Report::Failed { .. } => ExitCode::FAILURE,
    }
}

/// Becomes true once, for all who wait for it.
#[derive(Default)]
struct Release {
    is_due: Mutex<bool>,
    changed: Condvar,
}

impl Release {
    fn now(&self) {
        *self.is_due.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let is_due = self.is_due.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(is_due, |is_due| !*is_due).unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::unix::fs::FileExt,
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use keelson_testkit::{is_root, missing, skip_unless};

    use super::*;
    use crate::kernel::{
        reflink::clone_file,
        testing::{Scratch, helper, run},
    };

    const MINUTE: Duration = Duration::from_secs(60);

    fn target(path: &Path) -> TargetPath {
        TargetPath::try_from(path.to_str().unwrap().to_owned()).unwrap()
    }

    fn freeze_all(roots: &[&Path], deadline: Duration) -> Result<Frozen, FreezeError> {
        let targets: Vec<_> = roots.iter().map(|root| target(root)).collect();
        freeze(&helper(), &targets, deadline, Arc::new(()))
    }

    /// Ends once the filesystem can be written to; the test's own time limit is the limit.
    fn write_to(root: &Path) {
        std::fs::write(root.join("written"), b"x").unwrap();
    }

    fn is_frozen(root: &Path) -> bool {
        let root = File::open(root).unwrap();
        match sys::freeze(root.as_fd()) {
            Ok(()) => {
                sys::thaw(root.as_fd()).unwrap();
                false
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
                true
            }
        }
    }

    #[test]
    fn two_filesystems_are_cloned_at_one_instant_under_a_writer() {
        skip_unless!(is_root(), "needs root to mount");
        skip_unless!(missing(&["mkfs.xfs", "mkfs.ext4"]).is_empty(), "needs the mkfs programs");
        let pool = Scratch::new("xfs", 1 << 10);
        let volumes: Vec<_> =
            ["first", "second"].map(|name| (pool.root().join(name), pool.root().join(format!("{name}.root")))).into();
        for (image, root) in &volumes {
            File::create_new(image).unwrap().set_len(64 << 20).unwrap();
            run("mkfs.ext4", &["-q", image.to_str().unwrap()]);
            std::fs::create_dir(root).unwrap();
            run("mount", &["-o", "loop", image.to_str().unwrap(), root.to_str().unwrap()]);
        }
        let files: Vec<File> = volumes.iter().map(|(_, root)| File::create_new(root.join("count")).unwrap()).collect();
        let stop = AtomicBool::new(false);
        let (started, start) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                // The second is never ahead of the first, and never more than one behind.
                for count in 1_u64.. {
                    for file in &files {
                        file.write_all_at(&count.to_le_bytes(), 0).unwrap();
                    }
                    if count == 1000 {
                        started.send(()).unwrap();
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            start.recv().unwrap();
            for round in 0..3 {
                let frozen = freeze_all(&[&volumes[0].1, &volumes[1].1], MINUTE).unwrap();
                assert!(volumes.iter().all(|(_, root)| is_frozen(root)));
                for (image, _) in &volumes {
                    clone_file(&File::open(image).unwrap(), &image.with_extension(round.to_string())).unwrap();
                }
                let pause = frozen.thaw().unwrap();
                assert!(pause > Duration::ZERO && pause < MINUTE);
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop(files);
        let mut before = 999;
        for round in 0..3 {
            let counts = volumes.iter().map(|(image, _)| {
                let clone = image.with_extension(round.to_string());
                let root = image.with_extension("clone");
                std::fs::create_dir_all(&root).unwrap();
                // Frozen is clean: no journal to replay.
                run("e2fsck", &["-fn", clone.to_str().unwrap()]);
                run("mount", &["-o", "loop,ro,noload", clone.to_str().unwrap(), root.to_str().unwrap()]);
                let read = std::fs::read(root.join("count")).unwrap();
                run("umount", &[root.to_str().unwrap()]);
                u64::from_le_bytes(read.try_into().unwrap())
            });
            let counts: Vec<u64> = counts.collect();
            assert!(counts[0] > before && (counts[1] == counts[0] || counts[1] + 1 == counts[0]), "{counts:?}");
            before = counts[0];
        }
        for (_, root) in &volumes {
            run("umount", &[root.to_str().unwrap()]);
        }
    }

    #[test]
    fn after_its_deadline_it_is_thawed_and_the_instant_is_lost() {
        skip_unless!(is_root(), "needs root to mount");
        let scratch = Scratch::new("ext4", 64);
        let frozen = freeze_all(&[&scratch.root()], Duration::from_millis(700)).unwrap();
        write_to(&scratch.root());
        assert!(matches!(frozen.thaw(), Err(FreezeError::Expired { .. })));
    }

    #[test]
    fn who_forgets_to_thaw_does() {
        skip_unless!(is_root(), "needs root to mount");
        for filesystem in ["ext4", "xfs", "btrfs"] {
            skip_unless!(missing(&[&format!("mkfs.{filesystem}")]).is_empty(), "needs the mkfs programs");
            let scratch = Scratch::new(filesystem, 320);
            let frozen = freeze_all(&[&scratch.root()], MINUTE * 60).unwrap();
            assert!(is_frozen(&scratch.root()));
            drop(frozen);
            write_to(&scratch.root());
        }
    }

    #[test]
    fn where_one_cannot_be_frozen_none_stays_so() {
        skip_unless!(is_root(), "needs root to mount");
        let (free, busy) = (Scratch::new("ext4", 64), Scratch::new("ext4", 64));
        let by_others = File::open(busy.root()).unwrap();
        sys::freeze(by_others.as_fd()).unwrap();
        let error = freeze_all(&[&free.root(), &busy.root()], MINUTE).unwrap_err();
        assert!(matches!(&error, FreezeError::Helper(HelperError::Step { errno: Some(libc::EBUSY), .. })), "{error}");
        write_to(&free.root());
        // What others froze is theirs.
        assert!(is_frozen(&busy.root()));
        for _ in 0..2 {
            thaw_leftover(&helper(), &target(&busy.root()), Arc::new(())).unwrap();
        }
        write_to(&busy.root());
        drop(by_others);
        // The filesystem around a directory is never taken for the one that should be mounted there.
        run("umount", &["-l", busy.root().to_str().unwrap()]);
        let error = freeze_all(&[&free.root(), &busy.root()], MINUTE).unwrap_err();
        assert!(error.to_string().contains("mount point"), "{error}");
        write_to(&free.root());
    }

    #[test]
    fn what_a_killed_helper_froze_is_thawed_by_the_driver() {
        skip_unless!(is_root(), "needs root to mount");
        let scratch = Scratch::new("ext4", 64);
        let frozen = freeze_all(&[&scratch.root()], MINUTE).unwrap();
        run("kill", &["-9", &frozen.process.to_string()]);
        assert!(matches!(frozen.thaw(), Err(FreezeError::Lost)));
        write_to(&scratch.root());
    }

    #[test]
    fn what_somebody_else_thawed_is_of_no_instant() {
        skip_unless!(is_root(), "needs root to mount");
        let scratch = Scratch::new("ext4", 64);
        let frozen = freeze_all(&[&scratch.root()], MINUTE).unwrap();
        thaw_leftover(&helper(), &target(&scratch.root()), Arc::new(())).unwrap();
        write_to(&scratch.root());
        let error = frozen.thaw().unwrap_err();
        assert!(matches!(&error, FreezeError::Helper(HelperError::Step { .. })), "{error}");
    }
}
