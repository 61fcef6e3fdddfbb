//! Killing a process at one of its system calls, and looking whether the next call brings the node to a clean state.
//!
//! What a process has done to anybody else it has done by system calls. So a SIGKILL at any instruction leaves what one
//! at the entry of the next system call leaves: that call isn't made, and all before it are.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use keelson_testkit::{Chance, Netns};
use nix::{
    libc,
    net::if_::if_nameindex,
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{Answer, Node, call_environment, feed, guest, ip, nft};

/// Whether this machine lets processes be traced.
pub(crate) fn can_trace() -> bool {
    let mut command = Command::new("true");
    trace(&mut command);
    let Ok(mut child) = command.spawn() else { return false };
    let pid = pid_of(child.id());
    let stopped = waitpid(pid, None).is_ok_and(|status| matches!(status, WaitStatus::Stopped(..)));
    let can = stopped && ptrace::setoptions(pid, OPTIONS).is_ok() && ptrace::syscall(pid, None).is_ok();
    let _ = child.kill();
    let _ = child.wait();
    can
}

/// A stop at a system call is told from a signal, and nothing that is traced outlives the test.
const OPTIONS: Options = Options::PTRACE_O_TRACESYSGOOD.union(Options::PTRACE_O_EXITKILL);

fn trace(command: &mut Command) {
    #[expect(unsafe_code, reason = "asking to be traced between fork and exec has no safe form")]
    // SAFETY: ptrace(2) is async-signal-safe, and the closure allocates nothing.
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(io::Error::from));
    }
}

fn pid_of(id: u32) -> Pid {
    Pid::from_raw(id.try_into().unwrap())
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Run {
    /// By SIGKILL, when it was about to make the system call of this number (as in `ausyscall --dump`).
    Killed(u64),
    /// By itself: it makes fewer calls.
    Ended(Answer),
}

/// Runs `command` with `input` on its stdin, and kills it when it enters its `point`th system call, counted from 1 for the
/// first that reads stdin: before it has read what it is to do, a process has only set itself up.
///
/// The calls of other processes and threads that it starts aren't counted; this waits until all of those that hold its
/// stdout have ended.
#[expect(clippy::zombie_processes, reason = "waited for by waitpid, which tells of each stop")]
pub(crate) fn run_until(mut command: Command, input: &[u8], point: usize) -> Run {
    trace(&mut command);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let pid = pid_of(child.id());
    let status = waitpid(pid, None).unwrap();
    assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGTRAP), "at the end of execve");
    ptrace::setoptions(pid, OPTIONS).unwrap();
    let (mut signal, mut passed, mut killed) = (None, 0, None);
    let status = loop {
        if killed.is_none() {
            ptrace::syscall(pid, signal.take()).unwrap();
        }
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                let Some((call, argument)) = entered(pid) else { continue };
                let reads_stdin = call == u64::try_from(libc::SYS_read).unwrap() && argument == 0;
                passed += usize::from(passed > 0 || reads_stdin);
                if passed == point {
                    child.kill().unwrap();
                    killed = Some(call);
                }
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, status) => break status,
            WaitStatus::Signaled(_, Signal::SIGKILL, _) if killed.is_some() => break -1,
            other => panic!("{other:?}"),
        }
    };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    match killed {
        Some(call) => Run::Killed(call),
        None => Run::Ended(Answer { status, stdout, stderr }),
    }
}

/// The system call that a stopped process is about to make, with its first argument; `None` if it comes from one.
fn entered(pid: Pid) -> Option<(u64, u64)> {
    let info = ptrace::syscall_info(pid).unwrap();
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    #[expect(unsafe_code, reason = "the union's active member is told by `op`")]
    // SAFETY: the kernel has filled in `entry` where `op` says so.
    let entry = unsafe { info.u.entry };
    Some((entry.nr, entry.args[0]))
}

/// An attachment that is killed again and again while it is made and removed.
pub(crate) struct Victim<'a> {
    node: &'a Node,
    pod: &'a Netns,
    config: Value,
    program: PathBuf,
    /// What the node is like without it.
    clean: BTreeSet<String>,
}

/// How many ways there are to come to a clean state.
const WAYS: usize = 4;

impl<'a> Victim<'a> {
    /// Makes and removes the attachment once, so that the bridge, the rules and the store are there.
    pub(crate) fn new(node: &'a Node, pod: &'a Netns, config: &Value) -> Self {
        Self::called(Path::new(env!("CARGO_BIN_EXE_keelson-cni")), node, pod, config)
    }

    /// The same with the executable by another name. The plugins that it calls are beside it.
    pub(crate) fn called(program: &Path, node: &'a Node, pod: &'a Netns, config: &Value) -> Self {
        let clean = BTreeSet::new();
        let mut victim = Self { node, pod, config: config.clone(), program: program.to_owned(), clean };
        victim.attach_whole("the first time");
        victim.call("DEL", true, &victim.config).silent();
        victim.clean = victim.state();
        victim
    }

    fn command(&self, verb: &str, has_netns: bool) -> Command {
        let mut command = self.node.host.command(&self.program);
        call_environment(&mut command, verb, "victim", has_netns.then(|| self.pod.path()));
        command.env("CNI_PATH", self.program.parent().unwrap());
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command
    }

    fn call(&self, verb: &str, has_netns: bool, config: &Value) -> Answer {
        feed(self.command(verb, has_netns), config.to_string().as_bytes())
    }

    #[track_caller]
    fn attach(&self, at: &str) -> Value {
        let answer = self.call("ADD", true, &self.config);
        assert_eq!(answer.status, 0, "{at}: {answer:?}");
        answer.json()
    }

    /// Attaches it, and sees that it is whole.
    fn attach_whole(&self, at: &str) {
        let result = self.attach(at);
        let mut check = self.config.clone();
        check["prevResult"] = result;
        let answer = self.call("CHECK", true, &check);
        assert_eq!((answer.status, answer.stdout.as_str()), (0, ""), "{at}: {answer:?}");
    }

    fn gc(&self) -> Value {
        let mut config = self.config.clone();
        config.as_object_mut().unwrap().remove("prevResult");
        config["cni.dev/valid-attachments"] = json!([]);
        config
    }

    /// Kills `verb` at a point; `None` if it is done before it comes there. `at` tells of it.
    fn kill(&self, verb: &str, point: usize) -> Option<String> {
        let config = if verb == "GC" { self.gc() } else { self.config.clone() };
        match run_until(self.command(verb, verb != "GC"), config.to_string().as_bytes(), point) {
            Run::Killed(call) => Some(format!("{verb} killed at {point} (system call {call})")),
            Run::Ended(answer) => {
                assert_eq!(answer.status, 0, "{verb}: {answer:?}");
                None
            }
        }
    }

    /// Does what a runtime may do about a call that was killed, and looks whether anything is left.
    fn recover(&self, way: usize, at: &str) {
        let answer = match way % WAYS {
            0 => {
                self.attach_whole(at);
                self.call("DEL", false, &self.config)
            }
            1 => self.call("DEL", true, &self.config),
            2 => self.call("DEL", false, &self.config),
            _ => self.call("GC", false, &self.gc()),
        };
        assert_eq!((answer.status, answer.stdout.as_str()), (0, ""), "{at}: {answer:?}");
        self.assert_clean(at);
    }

    fn assert_clean(&self, at: &str) {
        let state = self.state();
        let (left, lost): (Vec<_>, Vec<_>) =
            (state.difference(&self.clean).collect(), self.clean.difference(&state).collect());
        assert!(left.is_empty() && lost.is_empty(), "{at}: left {left:#?}, lost {lost:#?}");
    }

    /// Kills ADD and DEL once at each of their system calls.
    pub(crate) fn die_everywhere(&self) {
        for verb in ["ADD", "DEL"] {
            let (begin, mut killed) = (Instant::now(), 0);
            for point in (1..).step_by(stride()) {
                if verb == "DEL" {
                    self.attach("before a DEL");
                }
                let at = self.kill(verb, point);
                killed += usize::from(at.is_some());
                self.recover(killed, at.as_deref().unwrap_or(verb));
                if at.is_none() {
                    break;
                }
            }
            println!("{verb} killed at {killed} points, in {:.1} s", begin.elapsed().as_secs_f32());
            assert!(killed * stride() > 50, "{verb} makes more system calls than {killed}");
        }
    }

    /// Kills ADD or DEL at a point, what is then called to clean up at another, and so on at times; all by chance.
    pub(crate) fn die_by_chance(&self, times: usize, chance: &mut Chance) {
        let mut told = Vec::new();
        for _ in 0..times {
            if chance.below(2) == 0 {
                self.attach("before");
            }
            told.clear();
            for _ in 0..2 + chance.below(2) {
                let verb = ["ADD", "DEL", "GC"][chance.below(3)];
                told.push(self.kill(verb, 1 + chance.below(300)).unwrap_or_else(|| format!("{verb} whole")));
            }
            self.recover(chance.below(WAYS), &format!("seed {}: {told:?}", chance.seed()));
        }
    }

    /// What somebody could find of the attachment, in the node's namespace, the Pod's and the files. What a link has goes
    /// with it: qdiscs, addresses, neighbours.
    fn state(&self) -> BTreeSet<String> {
        let mut state = BTreeSet::new();
        for (whose, namespace) in [("node", &self.node.host), ("Pod", self.pod)] {
            let (links, routes) = namespace.run(links_and_routes);
            state.extend(links.iter().map(|link| format!("{whose}: link {link}")));
            state.extend(routes.iter().map(|route| format!("{whose}: route {route}")));
        }
        for family in ["-4", "-6"] {
            let rules = ip(self.pod, &[family, "rule"]);
            state.extend(rules.lines().map(|rule| format!("Pod: rule {family} {rule}")));
        }
        let mut place = "";
        let ruleset = nft(&self.node.host, &["list", "ruleset"]);
        for line in ruleset.lines() {
            if line.ends_with('{') {
                place = line.trim();
            }
            state.insert(format!("nft: {place} {}", line.trim()));
        }
        files(self.node.directory.path(), &mut state);
        state
    }
}

/// The names of this thread's links, and the routes that don't belong to the network as a whole.
fn links_and_routes() -> (Vec<String>, Vec<String>) {
    let links = if_nameindex().unwrap();
    let links = links.iter().map(|link| link.name().to_str().unwrap().to_owned()).collect();
    let mut routes = Vec::new();
    for table in ["route", "ipv6_route"] {
        let text = fs::read_to_string(Path::new("/proc/thread-self/net").join(table)).unwrap();
        // The bridge's come and go with its own verification of addresses.
        let is_of_all = |line: &&str| line.split_whitespace().any(|word| ["Iface", "lo", "kt0"].contains(&word));
        routes.extend(text.lines().filter(|line| !is_of_all(line)).map(str::to_owned));
    }
    (links, routes)
}

/// The files below a directory, but for those that say nothing about an attachment: the log, where the next allocation
/// begins, and the entries of addresses that lead nowhere.
fn files(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name().into_string().unwrap())).unwrap();
        let is_void = path.is_symlink() && !path.exists();
        let is_general =
            ["calls.log", "allocator-", "released-", "last_reserved_ip."].iter().any(|part| name.starts_with(part));
        if is_void || is_general {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            files(&path, found);
        } else {
            found.insert(format!("file {}", path.display()));
        }
    }
}

/// How many points are passed over for each that is killed, plus one. A guest of the VM tier may be an emulated machine,
/// where each takes a second.
pub(crate) fn stride() -> usize {
    if guest::disk().is_some() { 11 } else { 1 }
}
