//! Many calls at once, a full range, and a process killed at each of its system calls.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::IpAddr,
    process::Command,
    thread,
};

use common::{Node, addresses, call_environment, feed, nft};
use keelson_testkit::{Netns, is_root, missing, skip_unless};
use serde_json::{Value, json};

#[test]
fn concurrent_adds_never_share_an_address() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pods: Vec<Netns> = (0..32).map(|_| Netns::new().unwrap()).collect();
    for _ in 0..2 {
        let given: Vec<IpAddr> = thread::scope(|scope| {
            let (node, config) = (&node, &config);
            let calls: Vec<_> = pods
                .iter()
                .enumerate()
                .map(|(index, pod)| {
                    let mut config = config.clone();
                    let ports = json!([{"hostPort": 10000 + index, "containerPort": 80, "protocol": "udp"}]);
                    config["runtimeConfig"] = json!({ "portMappings": ports });
                    scope.spawn(move || addresses(&node.add(&format!("c{index}"), pod, &config)))
                })
                .collect();
            calls.into_iter().flat_map(|call| call.join().unwrap()).collect()
        });
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), 64);
        assert_eq!(node.records().len(), 32);
        thread::scope(|scope| {
            for (index, pod) in pods.iter().enumerate() {
                let (node, config) = (&node, &config);
                scope.spawn(move || node.call("DEL", &format!("c{index}"), Some(pod.path()), config).silent());
            }
        });
        assert_eq!((node.records(), node.taken()), (vec![], vec![]));
        assert_eq!(node.traces(), ["link \"kt0\"", "store", "nftables"]);
    }
}

/// A network of thirteen addresses beside the gateway.
fn small(node: &Node) -> Value {
    let mut config = node.config();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/28"}]]);
    config
}

/// Attaches one Pod many times, as container `id`, until the range is full; gives the addresses.
fn fill(node: &Node, config: &Value, pod: &Netns, id: &str) -> Vec<IpAddr> {
    let mut given = Vec::new();
    loop {
        let mut command = node.command("ADD", id, Some(pod.path()));
        command.env("CNI_IFNAME", format!("f{}", given.len()));
        let before = node.traces();
        let answer = feed(command, config.to_string().as_bytes());
        if answer.status != 0 {
            assert_eq!(answer.code(), 11);
            let message = answer.json()["msg"].as_str().unwrap().to_owned();
            assert!(message.contains("no IP addresses available in range set: 10.77.0.1-10.77.0.14"), "{message}");
            assert_eq!(node.traces(), before, "a refused ADD left something");
            return given;
        }
        given.extend(addresses(&answer.json()));
    }
}

#[test]
fn a_full_range_is_code_11_and_a_released_address_is_given_again() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = small(&node);
    let pod = Netns::new().unwrap();
    let given = fill(&node, &config, &pod, "fill");
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), 13);
    let mut command = node.command("DEL", "fill", None);
    command.env("CNI_IFNAME", "f4");
    feed(command, config.to_string().as_bytes()).silent();
    let other = Netns::new().unwrap();
    assert_eq!(addresses(&node.add("other", &other, &config)), [given[4]]);
    assert_eq!(fill(&node, &config, &Netns::new().unwrap(), "late"), Vec::<IpAddr>::new());
}

#[test]
fn a_changed_range_keeps_what_was_given() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = small(&node);
    let pod = Netns::new().unwrap();
    let old = fill(&node, &config, &pod, "fill");
    let mut wider = config.clone();
    wider["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24", "gateway": "10.77.0.1"}]]);
    wider["forceAddress"] = json!(true);
    let other = Netns::new().unwrap();
    let new = addresses(&node.add("other", &other, &wider));
    assert!(!old.contains(&new[0]), "{new:?}");
}

/// How often a run of `verb` makes each system call, by strace's account.
fn system_calls(node: &Node, verb: &str, pod: &Netns, config: &Value) -> BTreeMap<String, u32> {
    let trace = node.directory.path().join("trace");
    let mut command = node.host.command("strace");
    command.args(["-o", trace.to_str().unwrap(), env!("CARGO_BIN_EXE_keelson-cni")]);
    environment(&mut command, verb, pod);
    let answer = feed(command, config.to_string().as_bytes());
    assert_eq!(answer.status, 0, "{answer:?}");
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(&trace).unwrap().lines() {
        // Sample: openat(AT_FDCWD, "/run/netns/x", O_RDONLY|O_NONBLOCK|O_CLOEXEC) = 3
        if let Some((name, _)) = line.split_once('(') {
            *counts.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

fn environment(command: &mut Command, verb: &str, pod: &Netns) {
    call_environment(command, verb, "victim", Some(pod.path()));
    command.env("PATH", std::env::var_os("PATH").unwrap());
}

/// Runs `verb` and kills it when it enters the `count`th system call `name`; whether it came that far.
fn kill_at(node: &Node, verb: &str, pod: &Netns, config: &Value, name: &str, count: u32) -> bool {
    let mut command = node.host.command("strace");
    command.args(["-o", "/dev/null", "-e", &format!("trace={name}")]);
    command.args(["-e", &format!("inject={name}:signal=KILL:when={count}"), env!("CARGO_BIN_EXE_keelson-cni")]);
    environment(&mut command, verb, pod);
    let answer = feed(command, config.to_string().as_bytes());
    // strace ends as its child did, by the signal. A run that needed fewer calls than the counted one ends well.
    assert!(answer.status == -1 || answer.status == 0, "{name} {count}: {answer:?}");
    answer.status == -1
}

/// Whether this machine lets processes be traced.
fn can_trace() -> bool {
    missing(&["strace"]).is_empty()
        && Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}

/// The calls that change something or stand between two that do; the others only widen the same gaps.
const WORTH_A_KILL: [&str; 16] = [
    "openat",
    "fcntl",
    "flock",
    "symlink",
    "readlink",
    "rename",
    "unlink",
    "mkdir",
    "sendto",
    "recvfrom",
    "write",
    "setns",
    "socket",
    "close",
    "statx",
    "exit_group",
];

#[test]
fn killed_at_any_system_call_nothing_is_lost() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(can_trace(), "needs strace, and the right to trace processes");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let mut config = small(&node);
    config["macspoofchk"] = json!(true);
    config["runtimeConfig"] = json!({
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "10.77.0.1"},
        ],
        // It needs a link of its own, which doesn't go with the pair.
        "bandwidth": {"egressRate": 80_000_000, "egressBurst": 8_000_000},
    });
    let pod = Netns::new().unwrap();
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    let (mut killed, mut tried) = (0, 0);
    // The first run makes the directories and the bridge; the test below kills that one.
    node.add("victim", &pod, &config);
    node.call("DEL", "victim", None, &config).silent();
    for verb in ["ADD", "DEL"] {
        if verb == "DEL" {
            node.add("victim", &pod, &config);
        }
        let counts = system_calls(&node, verb, &pod, &config);
        node.call("DEL", "victim", None, &config).silent();
        let points = counts
            .iter()
            .filter(|(name, _)| WORTH_A_KILL.contains(&name.as_str()))
            .flat_map(|(name, count)| (1..=*count).map(move |number| (name, number)));
        for (index, (name, number)) in points.enumerate() {
            if verb == "DEL" {
                node.add("victim", &pod, &config);
            }
            tried += 1;
            killed += u32::from(kill_at(&node, verb, &pod, &config, name, number));
            match index % 3 {
                0 => {
                    // The runtime tries again: it gets a whole attachment.
                    let answer = node.call("ADD", "victim", Some(pod.path()), &config);
                    assert_eq!(answer.status, 0, "{verb} killed at {name} {number}: {answer:?}");
                    let mut check = config.clone();
                    check["prevResult"] = answer.json();
                    node.call("CHECK", "victim", Some(pod.path()), &check).silent();
                    node.call("DEL", "victim", None, &config).silent();
                }
                1 => node.call("DEL", "victim", Some(pod.path()), &config).silent(),
                _ => node.call("GC", "", None, &gc).silent(),
            }
            let at = format!("{verb} killed at {name} {number}");
            assert_eq!(node.traces(), ["link \"kt0\"", "store", "nftables"], "{at}");
            assert!(!common::ip(&pod, &["link"]).contains("eth0"), "{at}");
            for list in [&["list", "maps"][..], &["list", "table", "bridge", "keelson"]] {
                let found = nft(&node.host, list);
                assert!(!found.contains("elements"), "{at}: {found}");
            }
            // Not even a temporary file.
            assert_eq!(node.records(), Vec::<String>::new(), "{at}");
        }
    }
    // Runs differ by a call or two; nearly all must have been killed, or nothing was shown.
    assert!(tried > 100 && killed * 10 > tried * 9, "{killed} of {tried} runs were killed");
    // Every address can be given, once.
    let given = fill(&node, &small(&node), &pod, "fill");
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), 13);
}

#[test]
fn killed_while_the_network_is_made_the_next_call_makes_it() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(can_trace(), "needs strace, and the right to trace processes");
    for (name, last) in [("mkdir", 4), ("sendto", 24)] {
        for count in 1..=last {
            let node = Node::new();
            let config = small(&node);
            let pod = Netns::new().unwrap();
            kill_at(&node, "ADD", &pod, &config, name, count);
            node.add("victim", &pod, &config);
            let bridge = common::ip(&node.host, &["-d", "link", "show", "kt0"]);
            assert!(bridge.contains("state UP") && bridge.contains("alias keelson:test"), "{name} {count}: {bridge}");
        }
    }
}
