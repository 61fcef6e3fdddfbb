//! Killing a process that serves, at one of the system calls that it makes for a request.
//!
//! What a process has done to anybody else it has done by system calls. So a SIGKILL at any instruction leaves what one
//! at the entry of the next system call that changes something leaves: that call isn't made, and all before it are.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    /// The process and all its children, as when a container ends.
    All,
    /// The process; a child that doesn't end by itself goes on.
    Parent,
    /// Whoever makes the system call: the process, or one of its children.
    Caller,
}

/// What was killed at which call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The number of the system call, as in `ausyscall --dump`.
    pub call: i64,
    /// Whether a child of the process was about to make it.
    pub by_child: bool,
    /// Whether the process itself is killed.
    pub is_parent_dead: bool,
}

/// A thread that traces a process with all its threads and children, until the last of them has ended. The process is
/// killed when this is dropped.
#[derive(Debug)]
pub struct Tracer {
    process: OwnedFd,
    thread: Option<JoinHandle<()>>,
    aim: Arc<Mutex<Aim>>,
}

impl Tracer {
    /// Traces a process from now on, and kills whom `doom` says at the entry of the `point`th system call that may
    /// change something, counted from 1 over all its threads and children.
    ///
    /// # Errors
    ///
    /// When this machine doesn't let it be traced.
    ///
    /// # Panics
    ///
    /// When no thread can be started.
    #[expect(clippy::needless_pass_by_value, reason = "who traces a child waits for it: nobody else can any more")]
    pub fn attach(child: Child, point: usize, doom: Doom) -> io::Result<Self> {
        let parent = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let process = pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty())?;
        let (sender, attached) = mpsc::channel();
        let aim = Arc::new(Mutex::new(Aim::Armed));
        let shared = Arc::clone(&aim);
        let work = move || {
            let mut trace = Trace { parent, point, doom, passed: 0, aim: shared, children: BTreeSet::new() };
            match trace.seize() {
                Ok(threads) => trace.run(threads, || drop(sender.send(Ok(())))),
                Err(error) => drop(sender.send(Err(error))),
            }
        };
        let thread = thread::Builder::new().name("tracer".to_owned()).spawn(work)?;
        // What the process does of its own accord may be the point already: then it is hit before all of it is traced.
        let attached = attached.recv().or_else(|gone| match &*lock(&aim) {
            Aim::Hit(_) => Ok(Ok(())),
            Aim::Armed | Aim::Disarmed => Err(gone),
        });
        let attached = attached.expect("the tracer answers");
        let tracer = Self { process, thread: Some(thread), aim };
        attached.map(|()| tracer)
    }

    /// Kills the process, if it is there still.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.process, rustix::process::Signal::KILL);
    }

    /// Waits until the process and all its children have ended, and says what was killed. `None` if they made fewer
    /// calls.
    ///
    /// # Panics
    ///
    /// When the tracer has.
    #[must_use]
    pub fn wait(mut self) -> Option<Hit> {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the tracer ends");
        }
        self.disarm()
    }

    /// Kills nobody from now on, and says what was killed until now.
    pub fn disarm(&self) -> Option<Hit> {
        let mut aim = lock(&self.aim);
        match &*aim {
            Aim::Hit(hit) => return Some(hit.clone()),
            Aim::Armed | Aim::Disarmed => *aim = Aim::Disarmed,
        }
        None
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.kill();
            let _ = thread.join();
        }
    }
}

/// Whether this machine lets processes be traced.
#[must_use]
pub fn can_trace() -> bool {
    let Ok(child) = Command::new("sleep").arg("60").spawn() else { return false };
    Tracer::attach(child, usize::MAX, Doom::All).is_ok()
}

/// What the next system call that counts meets.
#[derive(Debug)]
enum Aim {
    Armed,
    Disarmed,
    Hit(Hit),
}

fn lock(aim: &Mutex<Aim>) -> MutexGuard<'_, Aim> {
    aim.lock().expect("who holds it doesn't panic")
}

struct Trace {
    parent: Pid,
    point: usize,
    doom: Doom,
    passed: usize,
    aim: Arc<Mutex<Aim>>,
    /// The other processes, by their first threads.
    children: BTreeSet<Pid>,
}

/// A stop at a system call is told from a signal, what is started is traced too, and nothing outlives the test.
const OPTIONS: Options = Options::PTRACE_O_TRACESYSGOOD
    .union(Options::PTRACE_O_TRACECLONE)
    .union(Options::PTRACE_O_TRACEFORK)
    .union(Options::PTRACE_O_TRACEVFORK)
    .union(Options::PTRACE_O_TRACEEXEC)
    .union(Options::PTRACE_O_EXITKILL);

impl Trace {
    /// Seizes every thread, and gives those that are about to stop. What a seized one starts is seized by the kernel.
    fn seize(&self) -> io::Result<BTreeSet<Pid>> {
        let mut seized = BTreeSet::new();
        loop {
            let mut fresh = 0;
            for entry in fs::read_dir(format!("/proc/{}/task", self.parent))? {
                let thread = entry?.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
                let thread = Pid::from_raw(thread);
                if seized.contains(&thread) {
                    continue;
                }
                match ptrace::seize(thread, OPTIONS) {
                    Ok(()) => fresh += usize::from(seized.insert(thread)),
                    // It has just ended, or was just seized by the kernel.
                    Err(Errno::ESRCH) => {}
                    Err(Errno::EPERM) if is_mine(self.parent, thread) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if fresh == 0 {
                break;
            }
        }
        // Only from its first stop on does a thread stop at system calls.
        seized.retain(|thread| ptrace::interrupt(*thread).is_ok());
        Ok(seized)
    }

    fn run(&mut self, mut running: BTreeSet<Pid>, attached: impl FnOnce()) {
        let mut attached = Some(attached);
        loop {
            // The calling thread's own tracees, and no child of a test beside it.
            let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => break,
                Err(error) => panic!("waitpid: {error}"),
            };
            // Any stop will do, and so will its end.
            if let Some(thread) = status.pid() {
                running.remove(&thread);
            }
            let (thread, signal) = match status {
                WaitStatus::PtraceSyscall(thread) => {
                    self.look_at(thread);
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                // Gone.
                _ => continue,
            };
            let is_armed = matches!(*lock(&self.aim), Aim::Armed);
            // All run freely then. What is killed meanwhile can't be told to go on.
            let _ = if is_armed { ptrace::syscall(thread, signal) } else { ptrace::cont(thread, signal) };
            if running.is_empty() {
                attached.take().into_iter().for_each(|attached| attached());
            }
        }
    }

    /// Looks at a stop of a thread at a system call, and kills if it is the one.
    fn look_at(&mut self, thread: Pid) {
        let Some((call, arguments)) = entered(thread) else { return };
        if !may_change(thread, call, arguments) {
            return;
        }
        self.passed += 1;
        let process = process_of(thread).unwrap_or(thread);
        if process != self.parent {
            self.children.insert(process);
        }
        if self.passed != self.point {
            return;
        }
        let mut aim = lock(&self.aim);
        if !matches!(*aim, Aim::Armed) {
            return;
        }
        let by_child = process != self.parent;
        let is_parent_dead = self.doom != Doom::Caller || !by_child;
        *aim = Aim::Hit(Hit { call, by_child, is_parent_dead });
        if is_parent_dead {
            let _ = kill(self.parent, Signal::SIGKILL);
        }
        if self.doom == Doom::All {
            for child in &self.children {
                let _ = kill(*child, Signal::SIGKILL);
            }
        } else if self.doom == Doom::Caller {
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

fn is_mine(process: Pid, thread: Pid) -> bool {
    let path = format!("/proc/{process}/task/{thread}/status");
    let tracer = format!("TracerPid:\t{}\n", nix::unistd::gettid());
    fs::read_to_string(path).is_ok_and(|status| status.contains(&tracer))
}

fn process_of(thread: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok().map(Pid::from_raw)
}

/// The system call that a stopped thread is about to make, with its arguments; `None` if it comes from one.
fn entered(thread: Pid) -> Option<(i64, [u64; 6])> {
    // A thread that is killed meanwhile shows nothing.
    let info = ptrace::syscall_info(thread).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    #[expect(unsafe_code, reason = "the union's active member is told by `op`")]
    // SAFETY: the kernel has filled in `entry` where `op` says so.
    let entry = unsafe { info.u.entry };
    Some((entry.nr.cast_signed(), entry.args))
}

/// System calls that change nothing for anybody else. Syncs are among them: a killed process loses no cache.
const HARMLESS: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_pidfd_open,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
];

fn may_change(thread: Pid, call: i64, arguments: [u64; 6]) -> bool {
    match call {
        libc::SYS_openat => arguments[2] & u64::from((libc::O_CREAT | libc::O_TRUNC).cast_unsigned()) != 0,
        // What wakes another thread of the same process changes nothing.
        libc::SYS_write => {
            let file = fs::read_link(Path::new("/proc").join(thread.to_string()).join(format!("fd/{}", arguments[0])));
            !file.is_ok_and(|file| file.starts_with("anon_inode:[eventfd]"))
        }
        _ => !HARMLESS.contains(&call),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        process::Stdio,
    };

    use super::*;

    /// A shell that makes directories on demand; how many of three are there when it is killed at `point`.
    fn made(point: usize, doom: Doom) -> (Option<Hit>, usize) {
        let place = tempfile::tempdir().unwrap();
        let script = "echo ready; read line; mkdir a; mkdir b; mkdir c; echo done";
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(place.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut said).unwrap();
        let mut input = child.stdin.take().unwrap();
        let tracer = Tracer::attach(child, point, doom).unwrap();
        input.write_all(b"go\n").unwrap();
        let hit = tracer.wait();
        let is_done = output.read_line(&mut said).unwrap() > 0;
        assert_eq!(is_done, !hit.as_ref().is_some_and(|hit| hit.is_parent_dead), "{hit:?} {said}");
        (hit, fs::read_dir(place.path()).unwrap().count())
    }

    #[test]
    fn each_call_is_reached_once() {
        crate::skip_unless!(can_trace(), "needs the right to trace processes");
        let mut counts = BTreeSet::new();
        for point in 1.. {
            let (hit, count) = made(point, Doom::All);
            counts.insert(count);
            if hit.is_none() {
                assert_eq!(count, 3);
                break;
            }
            assert!(point < 200);
        }
        assert_eq!(counts, (0..=3).collect());
    }

    #[test]
    fn a_child_is_killed_alone() {
        crate::skip_unless!(can_trace(), "needs the right to trace processes");
        let hits: Vec<_> = (1..20).filter_map(|point| made(point, Doom::Caller).0).collect();
        assert!(hits.iter().any(|hit| hit.by_child && !hit.is_parent_dead), "{hits:?}");
        assert!(hits.iter().any(|hit| !hit.by_child && hit.is_parent_dead), "{hits:?}");
    }
}
