//! The `pinning` section: its keys as the user's guide names them, and what is wrong with a wrong one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use keelson_host::{HostRoot, Node, Problems, fixture::Spec, parse_section};
use keelson_nri::{Mode, PinningSection};
use serde_json::{Value, json};

fn parse(value: &Value) -> Result<PinningSection, String> {
    parse_section("pinning", value).map_err(|problem| problem.to_string())
}

/// The problems that a machine with CPUs 0-3 and 5-7 has with a section.
fn problems(value: &Value) -> Result<(), Problems> {
    let directory = tempfile::tempdir().unwrap();
    let root = "cores=8 offline=4".parse::<Spec>().unwrap().build(directory.path()).unwrap();
    let node = Node { name: "node-a".to_owned(), state_dir: directory.path().join("state"), root };
    let checked = parse(value).unwrap().validate(&node).map(|_| ());
    assert!(!node.state_dir.exists(), "validation changes nothing");
    checked
}

#[track_caller]
fn check(value: &Value, expected: &str) {
    assert_eq!(problems(value).unwrap_err().to_string(), expected);
}

#[test]
fn every_key_has_its_documented_default() {
    let section = parse(&json!({})).unwrap();
    assert_eq!(section, PinningSection::default());
    assert_eq!(
        serde_json::to_value(&section).unwrap(),
        json!({"socket": "/var/run/nri/nri.sock", "pluginIndex": "10", "mode": "enforce", "reservedCpus": ""})
    );
}

#[test]
fn a_section_with_every_key_is_taken() {
    let value = json!({"socket": "/run/nri.sock", "pluginIndex": "00", "mode": "observe", "reservedCpus": "0-1, 7"});
    assert_eq!(parse(&value).unwrap().mode, Mode::Observe);
    problems(&value).unwrap();
}

#[test]
fn what_is_no_key_or_no_mode_is_named() {
    assert_eq!(
        parse(&json!({"reservedCPUs": "0"})).unwrap_err(),
        "pinning.reservedCPUs: \"0\" is the value of an unknown key; did you mean \"reservedCpus\"?"
    );
    let error = parse(&json!({"mode": "dry-run"})).unwrap_err();
    assert_eq!(error, "pinning.mode: \"dry-run\" is not valid here; write one of: enforce, observe");
    let error = parse(&json!({"pluginIndex": 10})).unwrap_err();
    assert!(error.starts_with("pinning.pluginIndex: \"10\" is not valid here; write text, in quotes"), "{error}");
}

#[test]
fn an_index_has_two_digits() {
    for index in ["", "1", "100", "a1", "-1", "1 ", "١٠"] {
        let remedy = "write exactly two digits in quotes, such as \"10\"";
        let value = if index.is_empty() { String::new() } else { format!("{index:?} ") };
        check(
            &json!({"pluginIndex": index}),
            &format!("pinning.pluginIndex: {value}is not an NRI plugin index; {remedy}"),
        );
    }
}

#[test]
fn reserved_cpus_are_a_list_of_online_cpus() {
    check(
        &json!({"reservedCpus": "0-3,4,99"}),
        "pinning.reservedCpus: \"0-3,4,99\" names CPUs that are not online (4,99); \
         choose among the online CPUs 0-3,5-7",
    );
    check(
        &json!({"reservedCpus": "3-1"}),
        "pinning.reservedCpus: \"3-1\" is not a CPU list (the range \"3-1\" in a CPU list ends before it starts); \
         write CPUs and ranges such as \"0-1,8\"",
    );
    for list in ["zero", "0,", "0-", "-1", "0x1", "0-4294967296", "1;2"] {
        let problems = problems(&json!({"reservedCpus": list})).unwrap_err();
        assert_eq!(problems.0.len(), 1);
        assert_eq!((problems.0[0].path.as_str(), problems.0[0].value.as_str()), ("pinning.reservedCpus", list));
    }
}

#[test]
fn a_host_that_can_not_be_read_is_a_problem_of_the_key_that_needs_it() {
    let node = Node {
        name: "node-a".to_owned(),
        state_dir: "/nowhere".into(),
        root: HostRoot::at(Path::new("/nonexistent-host-root")),
    };
    let section = PinningSection { reserved_cpus: "0".to_owned(), ..PinningSection::default() };
    let problem = section.validate(&node).unwrap_err().to_string();
    assert!(
        problem.starts_with("pinning.reservedCpus: \"0\" can't be checked against this machine's CPUs"),
        "{problem}"
    );
    PinningSection::default().validate(&node).unwrap();
}

#[test]
fn the_socket_is_an_absolute_path_of_a_socket_or_of_nothing_yet() {
    check(
        &json!({"socket": "nri.sock"}),
        "pinning.socket: \"nri.sock\" is not an absolute path; write the whole path, such as /var/run/nri/nri.sock",
    );
    let long = format!("/run/{}", "x".repeat(110));
    check(
        &json!({"socket": long}),
        &format!(
            "pinning.socket: {long:?} is longer than the 107 bytes of a Unix socket's path; choose a shorter path"
        ),
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nri.sock");
    problems(&json!({"socket": file})).unwrap();
    fs::write(&file, b"").unwrap();
    check(
        &json!({"socket": file}),
        &format!(
            "pinning.socket: {file:?} is not a Unix socket; \
             name the runtime's NRI socket, by default /var/run/nri/nri.sock"
        ),
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let found = problems(&json!({"socket": "x", "pluginIndex": "x", "reservedCpus": "x"})).unwrap_err();
    let paths: Vec<&str> = found.0.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["pinning.socket", "pinning.pluginIndex", "pinning.reservedCpus"]);
}
