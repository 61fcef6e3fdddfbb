//! A helper process doesn't outlive who started it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
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
