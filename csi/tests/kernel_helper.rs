//! A helper process doesn't outlive who started it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use keelson_testkit::wait_until;
use serde_json::{Value, json};

/// Kills a helper when its test fails.
struct Helper(Child);

impl Helper {
    /// Starts a helper for `verb`. Its standard input stays open.
    fn start(verb: &str, arguments: &Value) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-csi-alone"));
        command.args(["storage-helper", verb]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut helper = Self(command.spawn().unwrap());
        writeln!(helper.0.stdin.as_mut().unwrap(), "{arguments}").unwrap();
        helper
    }

    fn wait_for(&self, program: &str) {
        let name = format!("/proc/{}/comm", self.0.id());
        wait_until("the helper to become the program", Duration::from_secs(60), || {
            (fs::read_to_string(&name).unwrap().trim() == program).then_some(())
        });
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_program_is_killed_when_the_thread_that_started_it_ends() {
    // An argument is kept as its bytes: "600".
    let arguments = json!({"program": "sleep", "arguments": [{"Unix": [54, 48, 48]}]});
    let start = move || {
        let helper = Helper::start("become", &arguments);
        helper.wait_for("sleep");
        helper
    };
    let mut helper = thread::spawn(start).join().unwrap();
    // Else this takes ten minutes, and the status is another one.
    let status = helper.0.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
}

/// A small ext4, mounted; nothing of it is left afterwards.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Self {
        let mounted = Self(tempfile::tempdir_in("/var/tmp").unwrap());
        let path = |name| mounted.0.path().join(name).to_str().unwrap().to_owned();
        fs::File::create_new(path("image")).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(path("root")).unwrap();
        run("mkfs.ext4", &["-q", &path("image")]);
        run("mount", &["-o", "loop", &path("image"), &path("root")]);
        mounted
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join("root")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.root()).status();
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

#[test]
fn what_is_frozen_is_thawed_when_the_driver_is_killed() {
    needs_a_kernel!();
    let mounted = Mounted::new();
    // The first process of the pipe stands for the driver: it alone has the other end of the helper's input.
    let request = json!({"targets": [mounted.root()], "milliseconds": 3_600_000});
    let script = "(echo \"$1\"; echo $BASHPID >&2; exec sleep 3600) | \"$0\" storage-helper freeze";
    let mut command = Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_keelson-csi-alone"), &request.to_string()]);
    let mut shell = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let line = |from: &mut dyn Read| {
        let mut line = String::new();
        BufReader::new(from).read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    let driver = line(shell.stderr.as_mut().unwrap());
    assert_eq!(line(shell.stdout.as_mut().unwrap()), "\"frozen\"");
    let (written, done) = mpsc::channel();
    let root = mounted.root();
    let writer = thread::spawn(move || {
        fs::write(root.join("a"), "a").unwrap();
        written.send(()).unwrap();
    });
    // Before it can be written to, the driver has to be killed; whatever is in between.
    assert_eq!(done.try_recv(), Err(mpsc::TryRecvError::Empty));
    run("kill", &["-9", &driver]);
    writer.join().unwrap();
    done.recv().unwrap();
    shell.wait().unwrap();
}

#[test]
fn a_program_that_does_not_exist_is_an_answer() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-csi-alone"));
    command.args(["storage-helper", "become"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", json!({"program": "no-such-program", "arguments": []})).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["failed"]["errno"], 2, "{answer}");
}
