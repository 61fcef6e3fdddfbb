//! VLANs: a bridge that keeps Pods of different ones apart.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    time::Duration,
};

use common::{
    Node, addresses, ip,
    reference::{DUAL_STACK, IPV4, IPV6, Play, SEVERAL, Subnet, plays},
};
use keelson_testkit::{Netns, is_root, missing, scenario, skip_unless};
use serde_json::{Value, json};

/// Whether the kernel's bridges can keep VLANs apart (CONFIG_BRIDGE_VLAN_FILTERING).
fn has_vlans() -> bool {
    let namespace = Netns::new().unwrap();
    let bridge = ["link", "add", "name", "b", "type", "bridge", "vlan_filtering", "1"];
    namespace.command("ip").args(bridge).stderr(Stdio::null()).status().unwrap().success()
}

fn in_vlan(node: &Node, vlan: u16) -> Value {
    let mut config = node.config();
    config["vlan"] = json!(vlan);
    config["name"] = json!(format!("vlan-{vlan}"));
    config
}

/// The VLANs of the link called `name`, as `bridge` writes them: "100 PVID Egress Untagged".
fn vlans(node: &Node, name: &str) -> Vec<String> {
    let output = node.host.command("bridge").args(["-j", "vlan", "show", "dev", name]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Some(vlans) = found[0]["vlans"].as_array() else { return Vec::new() };
    let describe = |vlan: &Value| {
        let last = vlan["vlanEnd"].as_u64().map(|last| format!("-{last}")).unwrap_or_default();
        let flags = vlan["flags"].as_array().cloned().unwrap_or_default();
        let flags: String = flags.iter().map(|flag| format!(" {}", flag.as_str().unwrap())).collect();
        format!("{}{last}{flags}", vlan["vlan"])
    };
    vlans.iter().map(describe).collect()
}

fn reaches(client: &Netns, server: &Netns, address: IpAddr) -> bool {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    client.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(2))).is_ok()
}

fn host_end(result: &Value) -> &str {
    result["interfaces"][1]["name"].as_str().unwrap()
}

#[test]
fn a_bridge_that_cannot_keep_vlans_apart_is_refused() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    ip(&node.host, &["link", "add", "name", "kt0", "type", "bridge"]);
    let pod = Netns::new().unwrap();
    let answer = node.call("ADD", "c", Some(pod.path()), &in_vlan(&node, 100));
    assert_eq!(answer.code(), 102);
    assert!(answer.stdout.contains("ip link set kt0 type bridge vlan_filtering 1"), "{answer:?}");
    assert!(!ip(&pod, &["link"]).contains("eth0"));
}

#[test]
fn pods_of_one_vlan_talk_and_those_of_two_do_not() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["bridge"]).is_empty(), "needs bridge, of iproute2");
    skip_unless!(has_vlans(), "the kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)");
    let node = Node::new();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap(), Netns::new().unwrap()];
    let config = in_vlan(&node, 100);
    let first = node.add("a", &pods[0], &config);
    let second = node.add("b", &pods[1], &config);
    let mut other = in_vlan(&node, 200);
    other["isDefaultGateway"] = json!(false);
    other["runtimeConfig"] = json!({"ips": ["10.77.0.99", "fd77::99"]});
    let third = node.add("c", &pods[2], &other);
    assert_eq!(vlans(&node, host_end(&first)), ["100 PVID Egress Untagged"]);
    assert_eq!(vlans(&node, host_end(&third)), ["200 PVID Egress Untagged"]);
    for address in addresses(&second) {
        assert!(reaches(&pods[0], &pods[1], address), "{address}");
    }
    for address in addresses(&third) {
        assert!(!reaches(&pods[0], &pods[2], address), "{address}");
    }
    // The gateway is in the VLAN, on a link that comes after the three that chained plugins count on.
    assert_eq!(first["interfaces"][3]["name"], "kt0.100");
    for gateway in ["10.77.0.1", "fd77::1"] {
        assert!(reaches(&pods[0], &node.host, gateway.parse().unwrap()), "{gateway}");
    }
    let found: Value = serde_json::from_str(&ip(&node.host, &["-j", "addr", "show", "kt0.100"])).unwrap();
    assert_eq!(found[0]["address"], first["interfaces"][3]["mac"]);
    assert!(!ip(&node.host, &["addr", "show", "kt0"]).contains("10.77.0.1/24"));

    let mut check = config.clone();
    check["prevResult"] = first.clone();
    node.call("CHECK", "a", Some(pods[0].path()), &check).silent();
    assert_eq!(node.add("a", &pods[0], &config), first, "a repeated ADD");
    let status = node.host.command("bridge").args(["vlan", "del", "vid", "100", "dev", host_end(&first)]).status();
    assert!(status.unwrap().success());
    let answer = node.call("CHECK", "a", Some(pods[0].path()), &check);
    assert_eq!(answer.code(), 105);
    assert!(answer.stdout.contains("without a tag are not in VLAN 100"), "{answer:?}");
}

#[test]
fn trunks_carry_tags_and_the_default_vlan_is_kept_on_request() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["bridge"]).is_empty(), "needs bridge, of iproute2");
    skip_unless!(has_vlans(), "the kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)");
    let cases = [
        (
            json!({"vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 202}]}),
            vec!["1 PVID Egress Untagged", "101", "200", "201", "202"],
        ),
        (
            json!({"vlan": 201, "vlanTrunk": [{"minID": 200, "maxID": 202}]}),
            vec!["200", "201 PVID Egress Untagged", "202"],
        ),
        (json!({"vlan": 100, "preserveDefaultVlan": true}), vec!["1 Egress Untagged", "100 PVID Egress Untagged"]),
    ];
    for (keys, expected) in cases {
        let node = Node::new();
        let mut config = node.config();
        config["isDefaultGateway"] = json!(false);
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        let pod = Netns::new().unwrap();
        let mut check = config.clone();
        check["prevResult"] = node.add("c", &pod, &config);
        assert_eq!(vlans(&node, host_end(&check["prevResult"])), expected, "{keys}");
        node.call("CHECK", "c", Some(pod.path()), &check).silent();
        node.call("DEL", "c", Some(pod.path()), &config).silent();
    }
}

/// The VLANs of the container's port.
fn vlans_of_port(play: &Play) -> Vec<String> {
    vlans(&play.node, play.ports()[0]["ifname"].as_str().unwrap())
}

/// ADD, CHECK and DEL of a container in VLAN 100, whose gateways are in it.
fn comes_and_goes(play: &Play, subnets: &[Subnet], preserve: bool) {
    let mut config = play.config(subnets);
    config["vlan"] = json!(100);
    config["preserveDefaultVlan"] = json!(preserve);
    if play.has_old_results() && subnets.len() > 2 {
        play.refused(&config, "does not support more than 1 address per family");
        return;
    }
    let result = play.add(&config);
    play.gave(&result, subnets);
    let kept = preserve.then_some("1 Egress Untagged");
    let expected: Vec<&str> = kept.into_iter().chain(["100 PVID Egress Untagged"]).collect();
    assert_eq!(vlans_of_port(play), expected);
    let (inside, bridge) =
        (ip(&play.node.host, &["addr", "show", "kt0.100"]), ip(&play.node.host, &["addr", "show", "kt0"]));
    for subnet in subnets {
        let address = format!(" {}/", subnet.gateway);
        assert!(inside.contains(&address) && !bridge.contains(&address), "{inside} {bridge}");
        assert!(reaches(&play.pod, &play.node.host, subnet.gateway.parse().unwrap()), "{}", subnet.gateway);
    }
    play.check(&config, &result);
    play.del(&config);
}

#[test]
fn the_gateways_are_in_the_vlan() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["bridge"]).is_empty(), "needs bridge, of iproute2");
    skip_unless!(has_vlans(), "the kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)");
    for (number, subnets) in [(31, &IPV4[..]), (32, &IPV6), (33, &DUAL_STACK), (34, &SEVERAL)] {
        for play in plays() {
            comes_and_goes(&play, subnets, false);
            scenario(number, play.version);
        }
        for play in plays() {
            comes_and_goes(&play, subnets, true);
            scenario(if number < 33 { 35 } else { 36 }, play.version);
        }
    }
}

#[test]
fn a_layer_2_port_is_in_its_vlans() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["bridge"]).is_empty(), "needs bridge, of iproute2");
    skip_unless!(has_vlans(), "the kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)");
    let trunk = json!([{"id": 101}, {"minID": 200, "maxID": 210}]);
    let tagged: Vec<String> = std::iter::once(101).chain(200..=210).map(|id| id.to_string()).collect();
    let tagged: Vec<&str> = tagged.iter().map(String::as_str).collect();
    let both = [&["1 Egress Untagged", "100 PVID Egress Untagged"], &tagged[..]].concat();
    for (number, keys, expected) in [
        (38, json!({"vlan": 100, "preserveDefaultVlan": true}), both[..2].to_vec()),
        (39, json!({"vlanTrunk": trunk}), [&["1 PVID Egress Untagged"], &tagged[..]].concat()),
        (40, json!({"vlan": 100, "vlanTrunk": trunk, "preserveDefaultVlan": true}), both.clone()),
        (41, json!({"vlan": 100}), both[1..2].to_vec()),
    ] {
        for play in plays() {
            let mut config = play.config(&[]);
            config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            if play.has_old_results() {
                play.refused(&config, "no valid IP addresses");
            } else {
                let result = play.add(&config);
                assert_eq!(vlans_of_port(&play), expected, "{keys}");
                play.check(&config, &result);
                play.del(&config);
            }
            scenario(number, play.version);
        }
    }
}
