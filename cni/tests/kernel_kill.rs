//! A process killed at each of its system calls: the next call finds what it left, nothing is lost, and nothing is given
//! twice.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeSet, fs, net::IpAddr, os::unix::fs::symlink, path::Path, time::Instant};

use common::{
    Node, addresses, feed, ip,
    kill::{Run, Victim, can_trace, run_until, stride},
    nft,
};
use keelson_testkit::{Chance, Netns, is_root, missing, skip_unless};
use serde_json::{Value, json};

macro_rules! skip_unless_it_can_be_killed {
    () => {
        skip_unless!(is_root(), "needs root");
        skip_unless!(can_trace(), "needs the right to trace processes");
        skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    };
}

/// Thirteen IPv4 addresses beside the gateway.
fn single_stack(node: &Node) -> Value {
    let mut config = node.config();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/28"}]]);
    config
}

/// The same with as many of IPv6, and what nftables, links and rules are needed for.
fn dual_stack(node: &Node) -> Value {
    let mut config = node.config();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/28"}], [{"subnet": "fd77::/124", "rangeEnd": "fd77::e"}]]);
    config["macspoofchk"] = json!(true);
    config["sbr"] = json!(true);
    config
}

fn routed(node: &Node) -> Value {
    let mut config = node.config();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/28"}], [{"subnet": "fd77::/124", "rangeEnd": "fd77::e"}]]);
    config["mode"] = json!("routed");
    for key in ["bridge", "hairpinMode"] {
        config.as_object_mut().unwrap().remove(key);
    }
    config
}

fn with_ports(mut config: Value) -> Value {
    config["runtimeConfig"] = json!({
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "10.77.0.1"},
        ],
    });
    config
}

/// With host ports, and limits that need a link of their own, which doesn't go with the pair.
fn with_ports_and_limits(config: Value) -> Value {
    let mut config = with_ports(config);
    config["runtimeConfig"]["bandwidth"] = json!({
        "ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000,
    });
    config
}

/// Attaches a Pod until no address is left, and detaches it; gives the addresses, each of which came once.
fn fill(node: &Node, config: &Value) -> BTreeSet<IpAddr> {
    let pod = Netns::new().unwrap();
    let call = |verb: &str, number: usize| {
        let mut command = node.command(verb, "fill", Some(pod.path()));
        command.env("CNI_IFNAME", format!("f{number}"));
        feed(command, config.to_string().as_bytes())
    };
    let mut given = Vec::new();
    let mut number = 0;
    loop {
        let answer = call("ADD", number);
        if answer.status != 0 {
            assert_eq!(answer.code(), 11);
            break;
        }
        given.extend(addresses(&answer.json()));
        number += 1;
    }
    (0..number).for_each(|number| call("DEL", number).silent());
    let distinct: BTreeSet<IpAddr> = given.iter().copied().collect();
    assert_eq!(distinct.len(), given.len(), "given twice: {given:?}");
    distinct
}

/// Kills everywhere; all the addresses are there after as before.
fn kill_everywhere(config: impl Fn(&Node) -> Value, ask: impl Fn(Value) -> Value) {
    let (node, pod) = (Node::new(), Netns::new().unwrap());
    let config = config(&node);
    let all = fill(&node, &config);
    assert!(all.len() >= 12, "{all:?}");
    Victim::new(&node, &pod, &ask(config.clone())).die_everywhere();
    assert_eq!(fill(&node, &config), all);
}

#[test]
fn single_stack_with_ports() {
    skip_unless_it_can_be_killed!();
    kill_everywhere(single_stack, with_ports);
}

#[test]
fn dual_stack_with_everything() {
    skip_unless_it_can_be_killed!();
    kill_everywhere(dual_stack, with_ports_and_limits);
}

#[test]
fn routed_dual_stack_with_ports() {
    skip_unless_it_can_be_killed!();
    kill_everywhere(routed, |config| {
        let mut config = with_ports(config);
        config["runtimeConfig"]["portMappings"][1].as_object_mut().unwrap().remove("hostIP").unwrap();
        config
    });
}

#[test]
fn as_portmap() {
    skip_unless_it_can_be_killed!();
    let (node, pod) = (Node::new(), Netns::new().unwrap());
    ip(&node.host, &["link", "add", "kt0", "type", "bridge"]);
    ip(&node.host, &["addr", "add", "10.77.0.1/24", "dev", "kt0"]);
    ip(&node.host, &["addr", "add", "fd77::1/64", "dev", "kt0", "nodad"]);
    ip(&node.host, &["link", "set", "kt0", "up"]);
    let program = node.directory.path().join("portmap");
    symlink(env!("CARGO_BIN_EXE_keelson-cni"), &program).unwrap();
    let mut config = with_ports(json!({
        "cniVersion": "1.1.0", "name": "test", "type": "portmap", "dataDir": node.data_dir(),
    }));
    config["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": pod.path()}],
        "ips": [{"address": "10.77.0.2/24", "interface": 0}, {"address": "fd77::2/64", "interface": 0}],
    });
    Victim::called(&program, &node, &pod, &config).die_everywhere();
}

#[test]
fn as_ipam() {
    skip_unless_it_can_be_killed!();
    let config = |node: &Node| {
        let mut config = single_stack(node);
        config["type"] = json!("bridge");
        config
    };
    kill_everywhere(config, |config| config);
}

#[test]
fn again_and_again() {
    skip_unless_it_can_be_killed!();
    let (node, pod) = (Node::new(), Netns::new().unwrap());
    let config = dual_stack(&node);
    let all = fill(&node, &config);
    let mut chance = Chance::new();
    Victim::new(&node, &pod, &with_ports_and_limits(config.clone())).die_by_chance(100 / stride(), &mut chance);
    assert_eq!(fill(&node, &config), all);
}

/// Takes a node back to before its first Pod.
fn forget(node: &Node) {
    let _ = node.host.command("ip").args(["link", "delete", "kt0"]).output().unwrap();
    nft(&node.host, &["flush", "ruleset"]);
    let _ = fs::remove_dir_all(node.data_dir());
}

#[test]
fn while_the_network_is_made() {
    skip_unless_it_can_be_killed!();
    let (node, pod) = (Node::new(), Netns::new().unwrap());
    let config = with_ports_and_limits(dual_stack(&node));
    let text = config.to_string();
    let begin = Instant::now();
    let mut killed = 0;
    // Each point is at the others' expense: a new bridge takes longer than all the rest. One of three, others each time.
    let step = 3 * stride();
    for point in (1 + Chance::new().below(step)..).step_by(step) {
        forget(&node);
        let Run::Killed(call) = run_until(node.command("ADD", "c", Some(pod.path())), text.as_bytes(), point) else {
            break;
        };
        killed += 1;
        let at = format!("killed at {point} (system call {call})");
        if killed % 2 == 0 {
            node.call("DEL", "c", Some(pod.path()), &config).silent();
        }
        let answer = node.call("ADD", "c", Some(pod.path()), &config);
        assert_eq!(answer.status, 0, "{at}: {answer:?}");
        let mut check = config.clone();
        check["prevResult"] = answer.json();
        let checked = node.call("CHECK", "c", Some(pod.path()), &check);
        assert_eq!((checked.status, checked.stdout.as_str()), (0, ""), "{at}: {checked:?}");
        let bridge = ip(&node.host, &["-d", "link", "show", "kt0"]);
        assert!(bridge.contains("state UP") && bridge.contains("alias keelson:test"), "{at}: {bridge}");
        node.call("DEL", "c", Some(pod.path()), &config).silent();
        assert_eq!(node.records(), Vec::<String>::new(), "{at}");
        assert!(!Path::new(&node.boot_dir().join("attachments/.c@eth0.tmp")).exists());
    }
    println!("killed at {killed} points, in {:.1} s", begin.elapsed().as_secs_f32());
    assert!(killed * step > 200, "{killed}");
}
