//! Kernel switches that a network sets in its containers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs;

use common::{Answer, Node, call_environment, feed};
use keelson_testkit::{Netns, is_root, missing, skip_unless};
use serde_json::{Value, json};

fn read(namespace: &Netns, path: &str) -> String {
    namespace.run(|| fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim_end().to_owned())
}

fn tuned(node: &Node) -> Value {
    let mut config = node.config();
    config["sysctl"] = json!({"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_local_port_range": "20000 30000"});
    config["args"] = json!({"cni": {"sysctl": {"net.core.somaxconn": "500"}}});
    config
}

#[test]
fn switches_are_set_in_the_container_and_nowhere_else() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = tuned(&node);
    let pod = Netns::new().unwrap();
    let before = read(&node.host, "core/somaxconn");
    let mut check = config.clone();
    check["prevResult"] = node.add("c", &pod, &config);
    assert_eq!(read(&pod, "ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(read(&pod, "ipv4/ip_local_port_range"), "20000\t30000");
    assert_eq!(read(&pod, "core/somaxconn"), "500");
    assert_eq!(read(&node.host, "core/somaxconn"), before);
    node.call("CHECK", "c", Some(pod.path()), &check).silent();
    pod.run(|| fs::write("/proc/sys/net/core/somaxconn", "400").unwrap());
    let answer = node.call("CHECK", "c", Some(pod.path()), &check);
    assert_eq!(answer.code(), 105);
    assert!(answer.json()["details"].as_str().unwrap().contains("core/somaxconn is 400 instead of 500"), "{answer:?}");
}

#[test]
fn a_switch_that_cannot_be_set_leaves_nothing() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    for (key, code) in [("net.ipv4.no_such_switch", 100), ("net.ipv4.ip_forward.x", 100), ("kernel.hostname", 7)] {
        let mut config = node.config();
        config["sysctl"] = json!({ key: "1" });
        assert_eq!(node.call("ADD", "c", Some(pod.path()), &config).code(), code, "{key}");
        assert_eq!(node.records(), Vec::<String>::new());
        assert!(!common::ip(&pod, &["link"]).contains("eth0"));
    }
}

/// ADD on a node whose list of allowed switches is `list`.
fn add_with_list(node: &Node, pod: &Netns, config: &Value, list: &str) -> Answer {
    let script = "mount -t tmpfs none /etc && mkdir -p /etc/cni/tuning && printf %s \"$1\" > /etc/cni/tuning/allowlist.conf && exec \"$0\"";
    let mut command = node.host.command("unshare");
    call_environment(&mut command, "ADD", "c", Some(pod.path()));
    command.env("PATH", std::env::var_os("PATH").unwrap());
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_keelson-cni"), list]);
    feed(command, config.to_string().as_bytes())
}

#[test]
fn the_nodes_list_decides_what_may_be_set() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["unshare"]).is_empty(), "needs unshare");
    let node = Node::new();
    let config = tuned(&node);
    let pod = Netns::new().unwrap();
    let refused = [
        ("^net.ipv4.[a-zA-Z_.]*$", "\"net.core.somaxconn\" is not allowed"),
        ("", "is not allowed"),
        ("^net\n(a|b)", "allowlist.conf:2: \"(a|b)\" is a regular expression of a kind"),
    ];
    for (list, expected) in refused {
        let answer = add_with_list(&node, &pod, &config, list);
        assert_eq!(answer.code(), 7);
        assert!(answer.json()["msg"].as_str().unwrap().contains(expected), "{answer:?}");
        assert!(node.traces().is_empty());
    }
    let answer = add_with_list(&node, &pod, &config, "^net.ipv4.conf.IFNAME.[a-z_]*$\n^net.core.\nport_range");
    assert_eq!(answer.status, 0, "{answer:?}");
    assert_eq!(read(&pod, "core/somaxconn"), "500");
}
