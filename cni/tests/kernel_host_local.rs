//! The executable called as `host-local` and killed at each of its system calls.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Answer, call_environment, feed};
use keelson_testkit::{Tool, go_version, missing, skip_unless};
use serde_json::{Value, json};

/// Whether this machine lets processes be traced.
fn can_trace() -> bool {
    missing(&["strace"]).is_empty()
        && Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}

fn call(mut command: Command, verb: &str, config: &Value) -> Answer {
    call_environment(&mut command, verb, "victim", Some(Path::new("/run/netns/none")));
    command.env("PATH", std::env::var_os("PATH").unwrap());
    feed(command, config.to_string().as_bytes())
}

/// How often a call of `verb` makes each system call.
fn system_calls(executable: &Path, directory: &Path, verb: &str, config: &Value) -> BTreeMap<String, u32> {
    let trace = directory.join("trace");
    let mut command = Command::new("strace");
    command.arg("-o").arg(&trace).arg(executable);
    let answer = call(command, verb, config);
    assert_eq!(answer.status, 0, "{answer:?}");
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(&trace).unwrap().lines() {
        if let Some((name, _)) = line.split_once('(') {
            *counts.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

/// The files of addresses and of what has none yet, with their contents.
fn reservations(directory: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip."));
    names.map(|name| (name.clone(), fs::read_to_string(directory.join(&name)).unwrap())).collect()
}

#[test]
fn killed_anywhere_host_local_leaves_nothing_that_the_references_del_does_not_remove() {
    skip_unless!(can_trace(), "needs strace, and the right to trace processes");
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let place = tempfile::tempdir().unwrap();
    let executable: PathBuf = place.path().join("host-local");
    symlink(env!("CARGO_BIN_EXE_keelson-cni"), &executable).unwrap();
    let reference = Tool::CniPlugins.ensure().unwrap().join("host-local");
    let config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "ipvlan",
        "ipam": {"type": "host-local", "dataDir": place.path(), "ranges": [[{"subnet": "10.0.0.0/29"}], [{"subnet": "fd00::/64"}]]},
    });
    let directory = place.path().join("net");
    let mut killed = 0;
    for verb in ["ADD", "DEL"] {
        if verb == "DEL" {
            assert_eq!(call(Command::new(&executable), "ADD", &config).status, 0);
        }
        let counts = system_calls(&executable, place.path(), verb, &config);
        call(Command::new(&executable), "DEL", &config).silent();
        for (name, last) in counts.iter().filter(|(name, _)| name.as_str() != "execve") {
            for count in 1..=*last {
                if verb == "DEL" {
                    assert_eq!(call(Command::new(&executable), "ADD", &config).status, 0);
                }
                let mut command = Command::new("strace");
                command.args(["-o", "/dev/null", "-e", &format!("trace={name}")]);
                command.args(["-e", &format!("inject={name}:signal=KILL:when={count}")]).arg(&executable);
                let answer = call(command, verb, &config);
                killed += u32::from(answer.status == -1);
                // Nobody ever sees a reservation without its content.
                for (file, content) in reservations(&directory) {
                    let is_address = file.parse::<std::net::IpAddr>().is_ok();
                    assert!(!is_address || content == "victim\r\neth0", "{verb} {name} {count}: {file} {content:?}");
                }
                let removed = call(Command::new(&reference), "DEL", &config);
                assert_eq!(removed.status, 0, "{removed:?}");
                let left: Vec<_> =
                    reservations(&directory).into_iter().filter(|(_, content)| !content.is_empty()).collect();
                assert!(left.is_empty(), "{verb} {name} {count}: {left:?}");
            }
        }
    }
    assert!(killed > 100, "{killed}");
    // What was killed before it had content has no address; only this plugin removes it.
    call(
        Command::new(&executable),
        "GC",
        &json!({
            "cniVersion": "1.1.0", "name": "net", "ipam": config["ipam"], "cni.dev/valid-attachments": [],
        }),
    )
    .silent();
    assert_eq!(call(Command::new(&executable), "ADD", &config).status, 0);
    assert_eq!(reservations(&directory).len(), 2, "{:?}", reservations(&directory));
}
