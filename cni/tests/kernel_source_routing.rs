//! Source-based routing of a Pod's second network: replies leave by the interface that the question came in by.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use common::{Answer, Node, addresses, feed, ip};
use keelson_testkit::{Netns, is_root, skip_unless};
use serde_json::{Value, json};

/// A second network of the node, whose interface in a Pod is not the way out.
fn second(node: &Node, sbr: &Value) -> Value {
    let mut config = node.config();
    config["name"] = json!("second");
    config["bridge"] = json!("kt1");
    config["ipMasq"] = json!(false);
    config["sbr"] = sbr.clone();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]]);
    config
}

/// A call about the interface `ifname` of container "c".
fn call(node: &Node, verb: &str, ifname: &str, pod: &Netns, config: &Value) -> Answer {
    let mut command = node.command(verb, "c", Some(pod.path()));
    command.env("CNI_IFNAME", ifname);
    feed(command, config.to_string().as_bytes())
}

#[track_caller]
fn add(node: &Node, ifname: &str, pod: &Netns, config: &Value) -> Value {
    let answer = call(node, "ADD", ifname, pod, config);
    assert_eq!(answer.status, 0, "{answer:?}");
    answer.json()
}

/// A namespace outside, tied to the host's, whose way back to the Pods is the host.
fn outside(node: &Node) -> Netns {
    let outside = Netns::new().unwrap();
    ip(&node.host, &["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    // `ip link set netns` takes a name below /run/netns or a process: give it a process that lives there.
    let mut holder = outside.command("sleep").arg("1000").spawn().unwrap();
    ip(&node.host, &["link", "set", "up1", "netns", &holder.id().to_string()]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    for (namespace, link, four, six) in
        [(&node.host, "up0", "192.0.2.1/24", "2001:db8::1/64"), (&outside, "up1", "192.0.2.2/24", "2001:db8::2/64")]
    {
        ip(namespace, &["addr", "add", four, "dev", link]);
        ip(namespace, &["addr", "add", six, "dev", link, "nodad"]);
        ip(namespace, &["link", "set", link, "up"]);
    }
    ip(&outside, &["route", "add", "default", "via", "192.0.2.1"]);
    ip(&outside, &["route", "add", "default", "via", "2001:db8::1"]);
    outside
}

/// How much `namespace` has sent by `link`.
fn sent(namespace: &Netns, link: &str) -> u64 {
    let links: Value = serde_json::from_str(&ip(namespace, &["-j", "-s", "link", "show", link])).unwrap();
    links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
}

/// Has `client` fetch `length` bytes from `address` in `server`.
fn fetch(client: &Netns, server: &Netns, address: IpAddr, length: usize) {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| listener.accept().unwrap().0.write_all(&vec![7; length]).unwrap());
        let mut received = Vec::new();
        client.run(|| TcpStream::connect(target).unwrap()).read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), length);
    });
}

/// The sources with a rule of their own, each with its table.
fn rules(pod: &Netns) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let rules: Value = serde_json::from_str(&ip(pod, &["-j", family, "rule"])).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let own = rules.as_array().unwrap().iter().filter(|rule| rule["src"] != "all");
        found.extend(own.map(|rule| (text(&rule["src"]), text(&rule["table"]))));
    }
    found
}

#[test]
fn replies_leave_by_the_interface_they_were_asked_by() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let outside = outside(&node);
    let pod = Netns::new().unwrap();
    add(&node, "eth0", &pod, &node.config());
    let config = second(&node, &json!(true));
    let mut check = config.clone();
    check["prevResult"] = add(&node, "net1", &pod, &config);
    assert_eq!(rules(&pod), [("10.88.0.2", "100"), ("fd88::2", "101")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    let length: usize = 300_000;
    for address in addresses(&check["prevResult"]) {
        let before = [sent(&pod, "net1"), sent(&pod, "eth0")];
        fetch(&outside, &pod, address, length);
        fetch(&node.host, &pod, address, length);
        let passed = [sent(&pod, "net1") - before[0], sent(&pod, "eth0") - before[1]];
        assert!(passed[0] >= 2 * length as u64 && passed[1] < length as u64, "{address}: {passed:?}");
    }
    // The first network is as it was: what has no source yet leaves by it.
    let way: Value = serde_json::from_str(&ip(&pod, &["-j", "route", "get", "192.0.2.2"])).unwrap();
    assert_eq!((&way[0]["dev"], &way[0]["prefsrc"]), (&json!("eth0"), &json!("10.77.0.2")));

    assert_eq!(add(&node, "net1", &pod, &config), check["prevResult"], "a repeated ADD");
    call(&node, "CHECK", "net1", &pod, &check).silent();
    ip(&pod, &["rule", "del", "from", "10.88.0.2"]);
    let answer = call(&node, "CHECK", "net1", &pod, &check);
    assert_eq!(answer.code(), 105);
    assert!(answer.json()["details"].as_str().unwrap().contains("the rule from 10.88.0.2 to table 100"), "{answer:?}");
    call(&node, "DEL", "net1", &pod, &config).silent();
    assert_eq!(rules(&pod), []);
    call(&node, "DEL", "net1", &pod, &config).silent();
}

#[test]
fn networks_that_come_at_once_take_different_tables() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    add(&node, "eth0", &pod, &node.config());
    let config = second(&node, &json!({"addSourceHints": true}));
    thread::scope(|scope| {
        for number in 1..=6 {
            let (node, pod, config) = (&node, &pod, &config);
            scope.spawn(move || add(node, &format!("net{number}"), pod, config));
        }
    });
    let mut tables: Vec<String> = rules(&pod).into_iter().map(|(_, table)| table).collect();
    tables.sort();
    tables.dedup();
    assert_eq!(tables.len(), 12);
    // Packets that are sent by such a table's route, for lack of a source, get the address that it belongs to.
    for (source, table) in rules(&pod).iter().filter(|(source, _)| source.starts_with("10.")) {
        let routes: Value = serde_json::from_str(&ip(&pod, &["-j", "route", "show", "table", table])).unwrap();
        assert_eq!(routes.as_array().unwrap().len(), 2, "{routes}");
        assert!(routes.as_array().unwrap().iter().all(|route| route["prefsrc"] == source.as_str()), "{routes}");
    }
}

#[test]
fn a_table_of_ones_own_gets_the_rules_and_no_more() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let mut config = second(&node, &json!({"table": 5000}));
    config["isDefaultGateway"] = json!(false);
    config["isGateway"] = json!(true);
    config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "table": 5000}]);
    let mut check = config.clone();
    check["prevResult"] = add(&node, "net1", &pod, &config);
    assert_eq!(rules(&pod), [("10.88.0.2", "5000"), ("fd88::2", "5000")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert!(ip(&pod, &["route", "show", "table", "main"]).contains("10.88.0.0/24"));
    assert!(ip(&pod, &["route", "show", "table", "5000"]).contains("default via 10.88.0.1"));
    call(&node, "CHECK", "net1", &pod, &check).silent();
    call(&node, "DEL", "net1", &pod, &config).silent();
    assert_eq!(rules(&pod), []);
}

#[test]
fn another_containers_namespace_at_the_same_path_is_left_alone() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = second(&node, &json!(true));
    let pod = Netns::new().unwrap();
    add(&node, "eth0", &pod, &config);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = node.data_dir().join("second").join(boot.trim_end()).join("attachments/c@eth0");
    let text = fs::read_to_string(&record).unwrap();
    let other = Netns::new().unwrap();
    ip(&other, &["rule", "add", "from", "10.88.0.2", "table", "100"]);
    fs::write(&record, text.replace(pod.path().to_str().unwrap(), other.path().to_str().unwrap())).unwrap();
    call(&node, "DEL", "eth0", &other, &config).silent();
    assert_eq!(rules(&other).len(), 1);
}
