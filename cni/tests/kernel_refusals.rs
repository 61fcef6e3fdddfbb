//! Bad input of every kind: the right code on stdout, and nothing left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path};

use common::{Node, feed, ip};
use keelson_testkit::{Netns, is_root, skip_unless};
use serde_json::{Value, json};

/// A config with one change.
fn changed(node: &Node, change: impl FnOnce(&mut Value)) -> Value {
    let mut config = node.config();
    change(&mut config);
    config
}

#[test]
fn a_bad_config_is_refused_with_its_code() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let ranges = |value: Value| changed(&node, |config| config["ipam"]["ranges"] = value);
    let cases: Vec<(u64, &str, Value)> = vec![
        (1, "\"9.9.9\"", changed(&node, |config| config["cniVersion"] = json!("9.9.9"))),
        (
            7,
            "no valid IP addresses",
            changed(&node, |config| {
                // Without a version it is 0.1.0, whose results must hold an address.
                _ = config.as_object_mut().unwrap().remove("cniVersion");
                config["ipam"] = json!({});
            }),
        ),
        (
            7,
            "more than 1 address per family",
            changed(&node, |config| {
                config["cniVersion"] = json!("0.2.0");
                config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "10.78.0.0/24"}]]);
            }),
        ),
        (2, "ipMasqBackend: \"pf\"", changed(&node, |config| config["ipMasqBackend"] = json!("pf"))),
        (7, "vlan: \"4095\" is not a VLAN", changed(&node, |config| config["vlan"] = json!(4095))),
        (
            107,
            "failed to find plugin \"host-local\"",
            changed(&node, |config| config["ipam"]["type"] = json!("host-local")),
        ),
        (
            7,
            "ipam.resolvConf: \"/dev/zero\" can't be read",
            changed(&node, |config| config["ipam"]["resolvConf"] = json!("/dev/zero")),
        ),
        (7, "mode: \"macvlan\"", changed(&node, |config| config["mode"] = json!("macvlan"))),
        (7, "prevResult", changed(&node, |config| config["prevResult"] = json!({"ips": [{"address": "here"}]}))),
        (6, "", changed(&node, |config| config["cniVersion"] = json!(1))),
        (7, "name", changed(&node, |config| config["name"] = json!("../x"))),
        (7, "name", changed(&node, |config| config["name"] = json!(""))),
        (7, "mtu: \"many\" is not a whole number", changed(&node, |config| config["mtu"] = json!("many"))),
        (7, "bridge: \"a/b\" has a '/'", changed(&node, |config| config["bridge"] = json!("a/b"))),
        (7, "dataDir", changed(&node, |config| config["ipam"]["dataDir"] = json!("relative"))),
        (7, "overlaps", ranges(json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "10.77.0.0/16"}]]))),
        (7, "too small", ranges(json!([[{"subnet": "10.77.0.0/31"}]]))),
        (7, "host bits", ranges(json!([[{"subnet": "10.77.0.1/24"}]]))),
        (7, "gateway", ranges(json!([[{"subnet": "10.77.0.0/24", "gateway": "10.78.0.1"}]]))),
        (
            7,
            "rangeStart",
            ranges(json!([[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.9", "rangeEnd": "10.77.0.2"}]])),
        ),
        (7, "rangeEnd", ranges(json!([[{"subnet": "10.77.0.0/24", "rangeEnd": "fd77::9"}]]))),
        (7, "another family", ranges(json!([[{"subnet": "10.77.0.0/24"}, {"subnet": "fd77::/64"}]]))),
        (7, "subnet", ranges(json!([[{"subnet": "not a subnet"}]]))),
    ];
    for (code, word, config) in cases {
        let answer = node.call("ADD", "c", Some(pod.path()), &config);
        assert_eq!(answer.code(), code, "{config}: {answer:?}");
        let error = answer.json();
        // Of an unknown version the details tell: the message is libcni's own.
        let told = if code == 1 { &error["details"] } else { &error["msg"] };
        assert!(told.as_str().unwrap().contains(word), "{word} is not in {answer:?}");
        assert_eq!(node.traces(), Vec::<String>::new(), "{config}");
        assert!(!ip(&pod, &["link"]).contains("eth0"));
    }
    let version =
        node.call("ADD", "c", Some(pod.path()), &changed(&node, |config| config["cniVersion"] = json!("9.9.9")));
    let details = r#"config is "9.9.9", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#;
    assert_eq!(version.json()["details"], details);
}

#[test]
fn an_error_is_of_the_configs_version() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        for key in ["name", "mtu"] {
            let config = changed(&node, |config| {
                config["cniVersion"] = json!(version);
                config[key] = json!([]);
            });
            let answer = node.call("ADD", "c", Some(pod.path()), &config);
            assert_eq!(answer.code(), 7, "{answer:?}");
            assert_eq!(answer.json()["cniVersion"], version);
        }
    }
}

#[test]
fn broken_json_is_code_6() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for text in ["", "{", "[]", "nonsense", "\u{0}"] {
            let answer = feed(node.command(verb, "c", Some(pod.path())), text.as_bytes());
            assert_eq!(answer.code(), 6, "{verb} {text:?}: {answer:?}");
        }
    }
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[test]
fn a_bad_environment_is_code_4() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let fifo = node.directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let file = node.directory.path().join("file");
    fs::write(&file, "").unwrap();
    let config = node.config().to_string();
    let cases: [(&str, &str); 12] = [
        ("CNI_COMMAND", "NONSENSE"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../../../tmp/x"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "../x"),
        ("CNI_IFNAME", "a-name-that-is-too-long"),
        ("CNI_IFNAME", "all"),
        ("CNI_NETNS", ""),
        ("CNI_NETNS", "/nonexistent"),
        ("CNI_NETNS", fifo.to_str().unwrap()),
        ("CNI_NETNS", file.to_str().unwrap()),
        ("CNI_ARGS", "FOO=bar"),
    ];
    for (name, value) in cases {
        let mut command = node.command("ADD", "c", Some(pod.path()));
        command.env(name, value);
        let answer = feed(command, config.as_bytes());
        assert_eq!(answer.code(), 4, "{name}={value}: {answer:?}");
        assert!(answer.json()["msg"].as_str().unwrap().contains(name), "{answer:?}");
        assert_eq!(node.traces(), Vec::<String>::new());
    }
    // A namespace, but of another kind.
    let answer = node.call("ADD", "c", Some(Path::new("/proc/self/ns/uts")), &node.config());
    assert_eq!(answer.code(), 4);
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[test]
fn the_hosts_own_namespace_is_code_8_before_anything_is_done() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    for path in [node.host.path(), Path::new("/proc/self/ns/net")] {
        for verb in ["ADD", "CHECK"] {
            assert_eq!(node.call(verb, "c", Some(path), &node.config()).code(), 8);
            assert_eq!(node.traces(), Vec::<String>::new());
        }
    }
}

#[test]
fn an_interface_or_a_bridge_in_the_way_is_left_alone() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    ip(&pod, &["link", "add", "eth0", "type", "veth", "peer", "name", "other"]);
    let answer = node.call("ADD", "c", Some(pod.path()), &node.config());
    assert_eq!(answer.code(), 103);
    let message = answer.json()["msg"].as_str().unwrap().to_owned();
    assert!(message.starts_with("container veth name (\"eth0\") peer provided (\"kl"), "{message}");
    assert!(message.ends_with("\") already exists"), "{message}");
    assert!(ip(&pod, &["link"]).contains("eth0@other"));
    assert_eq!(node.traces(), Vec::<String>::new());

    let pod = Netns::new().unwrap();
    ip(&node.host, &["link", "add", "kt0", "type", "veth", "peer", "name", "kt1"]);
    assert_eq!(node.call("ADD", "c", Some(pod.path()), &node.config()).code(), 102);
    ip(&node.host, &["link", "del", "kt0"]);
    assert_eq!(node.traces(), Vec::<String>::new());

    // A bridge of somebody else's, with another address.
    ip(&node.host, &["link", "add", "kt0", "type", "bridge"]);
    ip(&node.host, &["addr", "add", "10.1.1.1/24", "dev", "kt0"]);
    let refused = node.call("ADD", "c", Some(pod.path()), &node.config());
    assert_eq!(refused.code(), 102);
    assert!(refused.stdout.contains("already has an IP address different from 10.77.0.1/24"), "{refused:?}");
    assert_eq!((node.records(), node.taken()), (vec![], vec![]));
    let forced = changed(&node, |config| config["forceAddress"] = json!(true));
    node.add("c", &pod, &forced);
    assert!(!ip(&node.host, &["addr", "show", "kt0"]).contains("10.1.1.1"));
}

#[test]
fn verbs_and_versions_fit_together() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let old = changed(&node, |config| config["cniVersion"] = json!("1.0.0"));
    for verb in ["GC", "STATUS"] {
        let answer = node.call(verb, "", None, &old);
        assert_eq!(answer.code(), 1);
        assert!(answer.json()["details"].as_str().unwrap().contains(verb), "{answer:?}");
    }
    let pod = Netns::new().unwrap();
    let older = changed(&node, |config| config["cniVersion"] = json!("0.3.1"));
    assert_eq!(node.call("CHECK", "c", Some(pod.path()), &older).code(), 1);
    for stated in ["1.0.0", "0.3.1", "7.7.7"] {
        let answer = node.call("VERSION", "", None, &json!({"cniVersion": stated}));
        let expected = json!({"cniVersion": stated, "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
        assert_eq!(answer.json(), expected);
    }
    let silent = feed(node.command("VERSION", "", None), b"");
    assert_eq!(silent.json()["cniVersion"], "1.1.0");
}
