//! Routed mode: host routes instead of a bridge, and what it does that a bridge can't.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    process::Command,
    thread,
    time::Duration,
};

use common::{
    Node, addresses, call_environment, feed, ip,
    traffic::{talk, world},
};
use keelson_testkit::{Netns, is_root, missing, skip_unless};
use serde_json::{Value, json};

fn parse(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn routed(node: &Node) -> Value {
    let mut config = node.config();
    config["mode"] = json!("routed");
    for key in ["bridge", "hairpinMode"] {
        config.as_object_mut().unwrap().remove(key);
    }
    config
}

#[test]
fn two_pods_talk_by_host_routes_and_leave_nothing() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let world = world(&node);
    let config = routed(&node);
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    let before = node.traces();
    let results: Vec<Value> = (0..2).map(|i| node.add(&format!("c{i}"), &pods[i], &config)).collect();
    let [first, second] = [addresses(&results[0]), addresses(&results[1])];
    assert_eq!(first, [parse("10.77.0.2"), parse("fd77::2")]);
    for family in 0..2 {
        assert_eq!(talk(&pods[0], &pods[1], second[family]), first[family]);
        talk(&node.host, &pods[0], first[family]);
    }
    for gateway in ["10.77.0.1", "fd77::1"] {
        talk(&pods[0], &node.host, parse(gateway));
    }
    assert_eq!(talk(&pods[0], &world, parse("192.0.2.2")), parse("192.0.2.1"));
    assert_eq!(talk(&pods[0], &world, parse("2001:db8::2")), parse("2001:db8::1"));
    for (index, pod) in pods.iter().enumerate() {
        let mut check = config.clone();
        check["prevResult"] = results[index].clone();
        node.call("CHECK", &format!("c{index}"), Some(pod.path()), &check).silent();
        assert_eq!(node.add(&format!("c{index}"), pod, &config), results[index]);
        node.call("DEL", &format!("c{index}"), Some(pod.path()), &check).silent();
        assert!(!ip(pod, &["link"]).contains("eth0"));
    }
    assert_eq!((node.records(), node.taken()), (vec![], vec![]));
    for family in ["-4", "-6"] {
        assert_eq!(ip(&node.host, &[family, "route", "show", "proto", "107"]), "");
    }
    let left: Vec<String> = node.traces().into_iter().filter(|trace| !before.contains(trace)).collect();
    assert_eq!(left, ["store", "nftables"]);
}

#[test]
fn the_result_has_the_hosts_end_and_the_containers() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let result = node.add("c", &pod, &routed(&node));
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 2);
    assert_eq!(interfaces[0].get("sandbox"), None);
    assert_eq!(interfaces[1]["name"], "eth0");
    assert!(result["ips"].as_array().unwrap().iter().all(|ip| ip["interface"] == 1));
    // Nothing of IPv6 is being verified on the host's end, or connections from outside would wait for it.
    let host = interfaces[0]["name"].as_str().unwrap();
    let found: Value = serde_json::from_str(&ip(&node.host, &["-j", "-6", "addr", "show", host])).unwrap();
    let addresses = found[0]["addr_info"].as_array().unwrap();
    assert_eq!(addresses.len(), 2);
    assert!(addresses.iter().all(|info| info["nodad"] == true && info.get("tentative").is_none()), "{found}");
    // The neighbours of the Pod's subnet are reached by the gateway, not by the link.
    let routes: Value = serde_json::from_str(&ip(&pod, &["-j", "route"])).unwrap();
    let route = |dst: &str| routes.as_array().unwrap().iter().find(|route| route["dst"] == dst).unwrap().clone();
    assert_eq!(route("10.77.0.0/24")["gateway"], "10.77.0.1");
    assert_eq!(route("10.77.0.1")["scope"], "link");
    assert_eq!(route("default")["gateway"], "10.77.0.1");
}

#[test]
fn a_pod_cannot_configure_the_node_by_router_advertisements() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let mut config = routed(&node);
    // With IPv6 the node forwards it, and advertisements count for nothing.
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24"}]]);
    let result = node.add("c", &pod, &config);
    let switch = format!("/proc/sys/net/ipv6/conf/{}/accept_ra", result["interfaces"][0]["name"].as_str().unwrap());
    assert_eq!(node.host.run(|| fs::read_to_string(&switch).unwrap()), "0\n");
}

#[test]
fn check_names_a_lost_route() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let config = routed(&node);
    let mut check = config.clone();
    check["prevResult"] = node.add("c", &pod, &config);
    ip(&node.host, &["route", "del", "10.77.0.2/32"]);
    let answer = node.call("CHECK", "c", Some(pod.path()), &check);
    assert_eq!(answer.code(), 105);
    let details = answer.json()["details"].as_str().unwrap().to_owned();
    assert!(details.contains("the host has no route to 10.77.0.2"), "{details}");
    assert_eq!(node.call("ADD", "c", Some(pod.path()), &config).code(), 104);
    node.call("DEL", "c", Some(pod.path()), &config).silent();
}

#[test]
fn called_as_ptp_it_is_routed() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let program = node.directory.path().join("ptp");
    symlink(env!("CARGO_BIN_EXE_keelson-cni"), &program).unwrap();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let config = json!({
            "cniVersion": version, "name": "test", "type": "ptp", "mtu": 1400, "ipMasq": true,
            "ipam": {"type": "keelson-cni", "subnet": "10.77.0.0/24", "routes": [{"dst": "0.0.0.0/0"}], "dataDir": node.data_dir()},
        });
        let call = |verb: &str| {
            let mut command: Command = node.host.command(&program);
            call_environment(&mut command, verb, "c", Some(pod.path()));
            feed(command, config.to_string().as_bytes())
        };
        let answer = call("ADD");
        assert_eq!(answer.status, 0, "{answer:?}");
        let result = answer.json();
        let address = if version < "0.3.0" { &result["ip4"]["ip"] } else { &result["ips"][0]["address"] };
        assert!(address.as_str().unwrap().starts_with("10.77.0."), "{result}");
        assert!(ip(&pod, &["link", "show", "eth0"]).contains("mtu 1400"));
        call("DEL").silent();
        assert_eq!(node.records(), Vec::<String>::new());
    }
}

fn nft(node: &Node, rules: &str) {
    let path = node.directory.path().join("rules");
    fs::write(&path, rules).unwrap();
    let output = node.host.command("nft").arg("-f").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether `client` gets an answer from the Service address, behind which a server in `server` is.
fn service_answers(node: &Node, client: &Netns, server: &Netns, endpoint: IpAddr) -> bool {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(endpoint, 8080)).unwrap());
    nft(
        node,
        &format!(
            "table ip services {{
                chain pre {{
                    type nat hook prerouting priority dstnat;
                    ip daddr 10.96.0.1 tcp dport 80 dnat to {endpoint}:8080
                }}
            }}"
        ),
    );
    let server = thread::spawn(move || {
        // Ends with the first connection, that of `unblock` if no other came.
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"hello");
    });
    let connect = |address: SocketAddr| -> Option<String> {
        let mut stream = client.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(2))).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    let answer = connect(SocketAddr::new(parse("10.96.0.1"), 80));
    if answer.is_none() {
        let unblock = connect(SocketAddr::new(endpoint, 8080));
        assert_eq!(unblock.as_deref(), Some("hello"));
    }
    server.join().unwrap();
    answer.as_deref() == Some("hello")
}

/// A node whose bridged frames don't pass the IP rules, as without br_netfilter.
fn without_bridge_netfilter(node: &Node) {
    node.host.run(|| {
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if fs::exists(switch).unwrap() {
            fs::write(switch, "0").unwrap();
        }
    });
}

#[test]
fn a_service_whose_endpoint_is_on_the_same_network_answers_in_routed_mode_only() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    for (is_routed, expected) in [(true, true), (false, false)] {
        let node = Node::new();
        without_bridge_netfilter(&node);
        let config = if is_routed { routed(&node) } else { node.config() };
        let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
        let given: Vec<IpAddr> = (0..2).map(|i| addresses(&node.add(&format!("c{i}"), &pods[i], &config))[0]).collect();
        let answers = service_answers(&node, &pods[0], &pods[1], given[1]);
        assert_eq!(answers, expected, "routed: {is_routed}");
    }
}

#[test]
fn rules_of_the_forward_hook_see_traffic_between_pods_in_routed_mode_only() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    for is_routed in [true, false] {
        let node = Node::new();
        without_bridge_netfilter(&node);
        let config = if is_routed { routed(&node) } else { node.config() };
        let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
        let given: Vec<IpAddr> = (0..2).map(|i| addresses(&node.add(&format!("c{i}"), &pods[i], &config))[0]).collect();
        nft(&node, "table ip watch {\nchain seen {\ntype filter hook forward priority 0;\ncounter\n}\n}\n");
        talk(&pods[0], &pods[1], given[1]);
        let output = node.host.command("nft").args(["-j", "list", "table", "ip", "watch"]).output().unwrap();
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rule = listed["nftables"].as_array().unwrap().iter().find(|entry| entry.get("rule").is_some()).unwrap();
        let packets = rule["rule"]["expr"][0]["counter"]["packets"].as_u64().unwrap();
        assert_eq!(packets > 0, is_routed, "{packets} packets were seen");
    }
}
