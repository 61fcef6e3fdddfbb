//! `nodelab` as a program: what it prints, what it keeps, and what it leaves when it is interrupted or killed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
};

use common::{lacks, programs, samples};
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
    // What it says to type is short and works.
    assert!(stderr.lines().all(|line| line.len() <= 160), "{stderr}");
    let exports: Vec<&str> = stderr.lines().map(str::trim).filter(|line| line.starts_with("export ")).collect();
    let script = format!("{}\nctr tasks list", exports.join("\n"));
    let tasks = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&tasks.stdout).matches("RUNNING").count(), 4, "{tasks:?}");
    let remove = stderr.lines().find_map(|line| line.strip_prefix("To remove this lab: ")).unwrap();
    assert!(Command::new("sh").args(["-c", remove]).status().unwrap().success(), "{remove}");
    assert_eq!(traces(&lab.0).unwrap(), Vec::<String>::new());
}

/// Runs the samples with a device that nobody has; returns the lab and what was said.
fn fail(options: &[&str]) -> (Lab, String) {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(samples()).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap().replace("example.com/fpga", "example.com/nosuch");
        std::fs::write(directory.path().join(path.file_name().unwrap()), text).unwrap();
    }
    let output = nodelab().arg("try").args(options).arg("--samples").arg(directory.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 example.com/nosuch"), "{stderr}");
    let lab = stderr.lines().find_map(|line| line.strip_prefix("Starting containerd in /var/lib/")).unwrap();
    (Lab(lab.to_owned()), stderr)
}

#[test]
fn a_failure_can_be_looked_at_if_it_is_kept() {
    skip_unless!(lacks().is_empty(), lacks());
    let (kept, stderr) = fail(&["--keep"]);
    for log in ["keelson.log", "containerd.log"] {
        let path = format!("/var/lib/{}/log/{log}", kept.0);
        assert!(stderr.contains(&path), "{stderr}");
        assert!(!std::fs::read(path).unwrap().is_empty());
    }
    assert!(stderr.contains(&format!("nodelab clean {}\n", kept.0)), "{stderr}");

    let (gone, stderr) = fail(&[]);
    assert!(stderr.contains("run again with --keep"), "{stderr}");
    assert!(stderr.lines().next().unwrap().contains(&kept.0), "the lab that was left isn't mentioned: {stderr}");
    assert_eq!(traces(&gone.0).unwrap(), Vec::<String>::new());

    let id = kept.0.strip_prefix("keelson-lab-").unwrap();
    assert!(nodelab().args(["clean", id]).status().unwrap().success());
    assert_eq!(traces(&kept.0).unwrap(), Vec::<String>::new());
}

#[test]
fn a_lack_is_one_line_and_for_programs_a_list_as_well() {
    let run = |format| nodelab().args(["try", "--samples", "/nosuch", "--output", format]).output().unwrap();
    let output = run("table");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let output = run("json");
    assert_eq!(output.status.code(), Some(1));
    let stages: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(stages.len() >= 8 && stages.iter().all(|stage| stage["ok"] == false), "{stages:#?}");
}

#[test]
fn ctrl_c_and_a_closed_terminal_remove_everything() {
    skip_unless!(lacks().is_empty(), lacks());
    for sent in [Signal::SIGINT, Signal::SIGHUP] {
        let mut trial = Trial::start_until("Verifying: data");
        signal(&trial.child, sent);
        assert_eq!(trial.child.wait().unwrap().code(), Some(130), "{sent}");
        assert_eq!(traces(trial.name()).unwrap(), Vec::<String>::new(), "{sent}");
    }
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
