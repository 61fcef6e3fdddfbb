//! `nodelab` as a program: what it prints, what it keeps, and what it leaves when it is interrupted or killed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
};

use common::{lacks, programs};
use keelson_nodelab::traces;
use keelson_testkit::skip_unless;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn nodelab() -> Command {
    Command::new(programs().join("nodelab"))
}

/// A `nodelab try` under way; killed and cleaned up after when dropped.
struct Trial {
    child: Child,
    lab: Lab,
}

/// A lab's name; cleaned up when dropped.
struct Lab(String);

impl Drop for Lab {
    fn drop(&mut self) {
        // There is nothing to clean up where the test went well.
        let _ = nodelab().args(["clean", &self.0]).stderr(Stdio::null()).status();
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Trial {
    /// Starts a trial and returns when it is about to do `step`.
    fn start_until(step: &str) -> Self {
        let child = nodelab().arg("try").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut trial = Self { child, lab: Lab(String::new()) };
        let mut lines = BufReader::new(trial.child.stderr.take().unwrap());
        loop {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "nodelab ended before: {step}");
            if let Some(directory) = line.trim_end().strip_prefix("Starting containerd in /var/lib/") {
                directory.clone_into(&mut trial.lab.0);
            }
            if line.starts_with(step) {
                // Its later lines go nowhere, but it must be able to write them.
                std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
                return trial;
            }
        }
    }

    fn name(&self) -> &str {
        &self.lab.0
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn json_lists_the_stages_and_keep_leaves_the_pods_running() {
    skip_unless!(lacks().is_empty(), lacks());
    let output = nodelab().args(["try", "--keep", "--output", "json"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lab = stderr.lines().find_map(|line| line.strip_prefix("Starting containerd in /var/lib/")).unwrap();
    let lab = Lab(lab.to_owned());
    let stages: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{stages:#?}\n{stderr}");
    assert!(stages.len() >= 8, "{stages:#?}");
    assert!(stages.iter().all(|stage| stage["ok"] == true && stage["stage"].is_string() && stage["saw"].is_string()));

    let kept = traces(&lab.0).unwrap();
    for expected in ["process", "mount", "loop device", "cgroup", "link"] {
        assert!(kept.iter().any(|trace| trace.starts_with(expected)), "no {expected} in {kept:#?}");
    }
    assert!(nodelab().args(["clean", &lab.0]).status().unwrap().success());
    assert_eq!(traces(&lab.0).unwrap(), Vec::<String>::new());
}

#[test]
fn ctrl_c_removes_everything() {
    skip_unless!(lacks().is_empty(), lacks());
    let mut trial = Trial::start_until("Verifying: data");
    signal(&trial.child, Signal::SIGINT);
    assert_eq!(trial.child.wait().unwrap().code(), Some(130));
    assert_eq!(traces(trial.name()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_killed_lab_is_cleaned_up_by_the_next_call_and_a_running_one_is_left_alone() {
    skip_unless!(lacks().is_empty(), lacks());
    let mut trial = Trial::start_until("Verifying: data");
    let output = nodelab().args(["clean", trial.name()]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("is in use"), "{output:?}");
    assert!(!traces(trial.name()).unwrap().is_empty());

    signal(&trial.child, Signal::SIGKILL);
    trial.child.wait().unwrap();
    assert!(!traces(trial.name()).unwrap().is_empty());
    assert!(nodelab().args(["clean", trial.name()]).status().unwrap().success());
    assert_eq!(traces(trial.name()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_wrong_name_is_refused() {
    let output = nodelab().args(["clean", "keelson-lab-nosuch"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no lab"), "{output:?}");
}
