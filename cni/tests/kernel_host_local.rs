//! The executable called as `host-local` and killed at each of its system calls.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    Answer, call_environment, feed,
    kill::{Run, can_trace, run_until},
};
use keelson_testkit::{Tool, go_version, skip_unless};
use serde_json::{Value, json};

fn environment(mut command: Command, verb: &str) -> Command {
    call_environment(&mut command, verb, "victim", Some(Path::new("/run/netns/none")));
    command
}

fn call(command: Command, verb: &str, config: &Value) -> Answer {
    feed(environment(command, verb), config.to_string().as_bytes())
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
    skip_unless!(can_trace(), "needs the right to trace processes");
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
        for point in 1.. {
            if verb == "DEL" {
                assert_eq!(call(Command::new(&executable), "ADD", &config).status, 0);
            }
            let command = environment(Command::new(&executable), verb);
            let run = run_until(command, config.to_string().as_bytes(), point);
            // Nobody ever sees a reservation without its content.
            for (file, content) in reservations(&directory) {
                let is_address = file.parse::<std::net::IpAddr>().is_ok();
                assert!(!is_address || content == "victim\r\neth0", "{verb} {point} {run:?}: {file} {content:?}");
            }
            let removed = call(Command::new(&reference), "DEL", &config);
            assert_eq!(removed.status, 0, "{removed:?}");
            let left: Vec<_> =
                reservations(&directory).into_iter().filter(|(_, content)| !content.is_empty()).collect();
            assert!(left.is_empty(), "{verb} {point} {run:?}: {left:?}");
            match run {
                Run::Killed(_) => killed += 1,
                Run::Ended(answer) => {
                    assert_eq!(answer.status, 0, "{answer:?}");
                    break;
                }
            }
        }
    }
    println!("killed at {killed} points");
    assert!(killed > 50, "{killed}");
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
