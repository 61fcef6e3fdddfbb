//! The nftables rules: constant, and back again whoever took them away; and the check of Ethernet addresses.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use common::{
    Node, ip,
    kill::{Run, can_trace, run_until},
    nft,
    reference::VERSIONS,
    traffic::{talk, world},
};
use keelson_cni::operator::{Places, restore};
use keelson_host::HostRoot;
use keelson_testkit::{Netns, is_root, missing, scenario, skip_unless};
use serde_json::{Value, json};

/// The node's config with TCP host ports that lead to port 80.
fn with_ports(config: &Value, ports: &[u16]) -> Value {
    let mappings: Vec<Value> = ports.iter().map(|port| json!({"hostPort": port, "containerPort": 80})).collect();
    let mut config = config.clone();
    config["runtimeConfig"] = json!({"portMappings": mappings});
    config
}

fn ruleset(node: &Node) -> String {
    // Elements of a map come in no order, and handles count up.
    let text = nft(&node.host, &["list", "ruleset"]);
    let mut lines: Vec<String> = text
        .replace("elements = {", "\n")
        .split([',', '\n', '}'])
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    lines.sort();
    lines.join("\n")
}

/// How many rules and elements there are.
fn counts(node: &Node) -> (usize, usize) {
    let ruleset: Value = serde_json::from_str(&nft(&node.host, &["-j", "list", "ruleset"])).unwrap();
    let all = ruleset["nftables"].as_array().unwrap();
    let elements =
        |kind: &str| -> usize { all.iter().filter_map(|object| object[kind]["elem"].as_array()).map(Vec::len).sum() };
    (all.iter().filter(|object| object.get("rule").is_some()).count(), elements("set") + elements("map"))
}

#[test]
fn the_rules_are_as_many_for_twenty_pods_as_for_one() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let mut config = node.config();
    config["macspoofchk"] = json!(true);
    let pods: Vec<Netns> = (0..20).map(|_| Netns::new().unwrap()).collect();
    let mut seen = Vec::new();
    for (index, pod) in (0u16..).zip(&pods) {
        node.add(&format!("c{index}"), pod, &with_ports(&config, &[8000 + index, 9000 + index]));
        seen.push(counts(&node));
    }
    let rules = seen[0].0;
    assert!(rules >= 13, "{seen:?}");
    assert!(seen.iter().all(|(count, _)| *count == rules), "{seen:?}");
    // Two ports of two families, and two for the Ethernet address.
    assert_eq!(seen[19].1 - seen[0].1, 19 * 6, "{seen:?}");
    let empty = seen[0].1 - 6;
    for index in 0..20 {
        node.call("DEL", &format!("c{index}"), None, &config).silent();
    }
    assert_eq!(counts(&node), (rules, empty));
}

#[test]
fn what_was_flushed_comes_back_for_every_pod() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let mut config = node.config();
    config["macspoofchk"] = json!(true);
    let mut other_network = config.clone();
    other_network["name"] = json!("other");
    other_network["bridge"] = json!("kt1");
    other_network["ipam"]["ranges"] = json!([[{"subnet": "10.78.0.0/24"}]]);
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    let ported = with_ports(&config, &[8080, 8081]);
    let mut check = ported.clone();
    check["prevResult"] = node.add("first", &pods[0], &ported);
    node.add("second", &pods[1], &with_ports(&other_network, &[9090]));
    let whole = ruleset(&node);
    for damage in [
        &["flush", "ruleset"][..],
        &["delete", "table", "inet", "keelson"],
        &["flush", "table", "inet", "keelson"],
        &["flush", "chain", "inet", "keelson", "host_ports"],
    ] {
        node.call("CHECK", "first", Some(pods[0].path()), &check).silent();
        nft(&node.host, damage);
        let answer = node.call("CHECK", "first", Some(pods[0].path()), &check);
        assert_eq!(answer.code(), 105, "{damage:?}");
        let details = answer.json()["details"].as_str().unwrap().to_owned();
        assert!(details.contains("the nftables chain inet keelson host_ports is not as it was made"), "{details}");
        if damage[0] != "flush" {
            assert!(details.contains("the host port tcp/8080 does not lead to the container"), "{details}");
        }
        assert_eq!(details.contains("bridge keelson does not check"), damage[1] == "ruleset", "{details}");
        let late = Netns::new().unwrap();
        node.add("late", &late, &config);
        node.call("DEL", "late", None, &config).silent();
        assert_eq!(ruleset(&node), whole, "{damage:?}");
    }
    // One element alone: CHECK names it, and the daemon's look brings it back.
    nft(&node.host, &["delete", "element", "inet", "keelson", "ports4", "{ tcp . 8081 }"]);
    let answer = node.call("CHECK", "first", Some(pods[0].path()), &check);
    let details = answer.json()["details"].as_str().unwrap().to_owned();
    assert!(details.contains("the host port tcp/8081 does not lead") && !details.contains("8080"), "{details}");
    let mut places = Places::of_node(&HostRoot::system(), None);
    places.add(node.data_dir());
    node.host.run(|| restore(&places, None).unwrap());
    assert_eq!(ruleset(&node), whole);
}

#[test]
fn an_add_that_is_killed_while_it_brings_them_back_leaves_that_to_the_next() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    skip_unless!(can_trace(), "needs the right to trace processes");
    let node = Node::new();
    let [pod, late] = [Netns::new().unwrap(), Netns::new().unwrap()];
    let config = node.config();
    node.add("c", &pod, &with_ports(&config, &[8080]));
    let whole = ruleset(&node);
    let mut killed = 0;
    // What there is to interrupt is longer than a step.
    for point in (1..).step_by(5) {
        nft(&node.host, &["flush", "ruleset"]);
        let command = node.command("ADD", "late", Some(late.path()));
        let Run::Killed(call) = run_until(command, config.to_string().as_bytes(), point) else { break };
        killed += 1;
        node.add("late", &late, &config);
        assert_eq!(ruleset(&node), whole, "killed at {point} (system call {call})");
        node.call("DEL", "late", Some(late.path()), &config).silent();
    }
    assert!(killed > 20, "{killed}");
}

#[test]
fn nft_prints_the_names_of_links() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let mut config = with_ports(&node.config(), &[8080]);
    config["macspoofchk"] = json!(true);
    let result = node.add("c", &pod, &config);
    let (host_end, mac) =
        (result["interfaces"][1]["name"].as_str().unwrap(), result["interfaces"][2]["mac"].as_str().unwrap());
    assert!(nft(&node.host, &["list", "table", "inet", "keelson"]).contains("elements = { \"kt0\" }"));
    let bridge = nft(&node.host, &["list", "table", "bridge", "keelson"]);
    for elements in [format!("\"{host_end}\""), format!("\"{host_end}\" . {mac}")] {
        assert!(bridge.contains(&format!("elements = {{ {elements} }}")), "{elements}: {bridge}");
    }
}

#[test]
fn the_table_of_the_last_release_is_taken_over() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let world = world(&node);
    let old = "table inet keelson {
        set pods4 { type ipv4_addr; flags interval; elements = { 10.77.0.0/24, 10.99.0.0/16 } }
        set pods6 { type ipv6_addr; flags interval; }
        chain postrouting {
            type nat hook postrouting priority 90;
            ip saddr @pods4 ip daddr != @pods4 @nh,128,8 < 0xe0 masquerade
            ip6 saddr @pods6 ip6 daddr != @pods6 @nh,192,8 != 0xff masquerade
        }
    }";
    let file = node.directory.path().join("old");
    std::fs::write(&file, old).unwrap();
    nft(&node.host, &["-f", file.to_str().unwrap()]);
    let pod = Netns::new().unwrap();
    let config = with_ports(&node.config(), &[8080]);
    let mut check = config.clone();
    check["prevResult"] = node.add("c", &pod, &config);
    node.call("CHECK", "c", Some(pod.path()), &check).silent();
    assert!(ruleset(&node).contains("10.99.0.0/16"));
    assert_eq!(talk(&pod, &world, "192.0.2.2".parse().unwrap()), "192.0.2.1".parse::<IpAddr>().unwrap());
}

#[test]
fn a_foreign_ethernet_address_is_dropped() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    for version in VERSIONS {
        let node = Node::new();
        let mut free = node.config();
        free["cniVersion"] = json!(version);
        let mut config = free.clone();
        config["macspoofchk"] = json!(true);
        let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
        let result = node.add("checked", &pods[0], &config);
        node.add("free", &pods[1], &free);
        let gateway: IpAddr = "10.77.0.1".parse().unwrap();
        let connects = |pod: &Netns| {
            let listener = node.host.run(|| TcpListener::bind(SocketAddr::new(gateway, 0)).unwrap());
            let address = listener.local_addr().unwrap();
            pod.run(|| TcpStream::connect_timeout(&address, Duration::from_millis(500))).is_ok()
        };
        let link: Value = serde_json::from_str(&ip(&pods[0], &["-j", "link", "show", "eth0"])).unwrap();
        let own = link[0]["address"].as_str().unwrap();
        for pod in &pods {
            assert!(connects(pod));
            ip(pod, &["link", "set", "eth0", "address", "02:00:00:00:00:99"]);
        }
        assert!(!connects(&pods[0]), "the foreign address got through");
        ip(&pods[0], &["link", "set", "eth0", "address", own]);
        ip(&pods[0], &["neigh", "flush", "all"]);
        ip(&node.host, &["neigh", "flush", "all"]);
        assert!(connects(&pods[0]));
        assert!(connects(&pods[1]), "nobody asked to check this one");
        if version >= "0.4.0" {
            let mut check = config.clone();
            check["prevResult"] = result;
            node.call("CHECK", "checked", Some(pods[0].path()), &check).silent();
            nft(&node.host, &["flush", "set", "bridge", "keelson", "allowed"]);
            let answer = node.call("CHECK", "checked", Some(pods[0].path()), &check);
            assert!(answer.json()["details"].as_str().unwrap().contains("bridge keelson does not check"), "{answer:?}");
        }
        node.call("DEL", "checked", None, &free).silent();
        assert!(!nft(&node.host, &["list", "table", "bridge", "keelson"]).contains("elements"));
        node.add("checked", &pods[0], &config);
        scenario(54, version);
    }
}
