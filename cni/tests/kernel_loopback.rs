//! The executable called as `loopback`, beside the reference plugin of that name.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{os::unix::process::CommandExt, path::Path, process::Command};

use common::{Answer, Node, call_environment, feed, ip};
use keelson_testkit::{Netns, Tool, is_root, skip_unless};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn run(mut command: Command, verb: &str, netns: Option<&Path>, config: &Value) -> Answer {
    call_environment(&mut command, verb, "c1", netns);
    feed(command, config.to_string().as_bytes())
}

fn call(node: &Node, verb: &str, netns: Option<&Path>, config: &Value) -> Answer {
    let mut command = node.host.command(env!("CARGO_BIN_EXE_keelson-cni"));
    command.arg0("loopback");
    run(command, verb, netns, config)
}

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "lo", "type": "loopback"})
}

fn is_up(pod: &Netns) -> bool {
    ip(pod, &["link", "show", "lo", "up"]).contains("lo")
}

#[test]
fn lo_is_up_between_add_and_del_in_every_version() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(Tool::CniPlugins.is_available(), "needs the reference plugins, or Go to build them");
    let node = Node::new();
    for version in VERSIONS {
        let pod = Netns::new().unwrap();
        assert!(!is_up(&pod));
        let added = call(&node, "ADD", Some(pod.path()), &config(version));
        assert_eq!(added.status, 0, "{added:?}");
        assert!(is_up(&pod));
        if version >= "1.0.0" {
            let reference = node.host.command(Tool::CniPlugins.ensure().unwrap().join("loopback"));
            let wanted = run(reference, "ADD", Some(pod.path()), &config(version));
            assert_eq!(added.json(), wanted.json(), "{version}");
        } else if version >= "0.3.0" {
            // The reference leaves out what the older versions have beside.
            let ips = json!([{"version": "4", "address": "127.0.0.1/8", "interface": 0},
                             {"version": "6", "address": "::1/128", "interface": 0}]);
            assert_eq!((&added.json()["ips"], &added.json()["dns"]), (&ips, &json!({})), "{version}");
        } else {
            assert_eq!(added.json()["ip4"], json!({"ip": "127.0.0.1/8"}), "{version}");
        }
        let mut checked = config(version);
        checked["prevResult"] = added.json();
        if version >= "0.4.0" {
            call(&node, "CHECK", Some(pod.path()), &checked).silent();
        } else {
            assert_eq!(call(&node, "CHECK", Some(pod.path()), &checked).code(), 1);
        }
        call(&node, "DEL", Some(pod.path()), &config(version)).silent();
        assert!(!is_up(&pod));
        if version >= "0.4.0" {
            let answer = call(&node, "CHECK", Some(pod.path()), &checked);
            assert_eq!((answer.code(), &answer.json()["details"]), (105, &json!("loopback interface is down")));
        }
        if version == "1.1.0" {
            call(&node, "GC", None, &config(version)).silent();
            call(&node, "STATUS", None, &config(version)).silent();
        }
    }
}

#[test]
fn a_previous_result_is_passed_on() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let mut config = config("1.0.0");
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": pod.path()}],
        "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["192.0.2.3"]},
    });
    config["prevResult"] = previous.clone();
    assert_eq!(call(&node, "ADD", Some(pod.path()), &config).json(), previous);
    assert!(is_up(&pod));
}

#[test]
fn del_touches_no_other_namespace_and_needs_none() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    call(&node, "DEL", None, &config("1.1.0")).silent();
    call(&node, "DEL", Some(Path::new("/nonexistent/netns")), &config("1.1.0")).silent();
    // What is left of a namespace that was unmounted.
    let file = tempfile::NamedTempFile::new().unwrap();
    call(&node, "DEL", Some(file.path()), &config("1.1.0")).silent();
    call(&node, "DEL", Some(node.host.path()), &config("1.1.0")).silent();
    assert!(is_up(&node.host));
    assert_eq!(call(&node, "ADD", Some(node.host.path()), &config("1.1.0")).code(), 8);
    assert_eq!(call(&node, "ADD", Some(Path::new("/nonexistent/netns")), &config("1.1.0")).code(), 4);
}
