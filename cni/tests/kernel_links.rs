//! What an attachment may ask of its links beyond addresses and routes: neighbours told, duplicate address detection,
//! a link left down, a promiscuous bridge, an MTU that follows the node's.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use common::{Node, addresses, ip, reference::VERSIONS};
use keelson_testkit::{Netns, is_root, scenario, skip_unless};
use serde_json::{Value, json};

/// How long the kernel may take for what it does by itself; reached only if it never does.
const PATIENCE: Duration = Duration::from_secs(10);

#[track_caller]
fn connect(client: &Netns, server: &Netns, address: IpAddr) {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    client.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
}

/// A link's description as `ip` gives it.
#[track_caller]
fn link(namespace: &Netns, name: &str) -> Value {
    let mut links: Value = serde_json::from_str(&ip(namespace, &["-j", "-d", "link", "show", name])).unwrap();
    links[0].take()
}

fn has_flag(link: &Value, flag: &str) -> bool {
    link["flags"].as_array().unwrap().iter().any(|own| own == flag)
}

#[test]
fn a_neighbour_with_a_stale_entry_is_told_at_once() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let peer = Netns::new().unwrap();
    node.add("peer", &peer, &config);
    let asked: [IpAddr; 2] = ["10.77.0.50".parse().unwrap(), "fd77::50".parse().unwrap()];
    let entries = || ip(&peer, &["neigh", "show", "dev", "eth0"]);
    // With each Ethernet address once: the second is that of another Pod, which got the same addresses.
    for (id, mac) in [("first", "02:00:5e:10:00:01"), ("second", "02:00:5e:10:00:02")] {
        let mut config = config.clone();
        config["runtimeConfig"] = json!({"mac": mac, "ips": asked});
        let pod = Netns::new().unwrap();
        let result = node.add(id, &pod, &config);
        assert_eq!(addresses(&result), asked);
        if id == "first" {
            asked.iter().for_each(|address| connect(&peer, &pod, *address));
            node.call("DEL", id, Some(pod.path()), &config).silent();
            assert!(entries().contains("02:00:5e:10:00:01"), "{}", entries());
        } else {
            // Nothing is sent to the Pod: only its own word can have changed the entries.
            let deadline = Instant::now() + PATIENCE;
            while entries().matches(mac).count() < 2 {
                assert!(Instant::now() < deadline, "{}", entries());
            }
            asked.iter().for_each(|address| connect(&peer, &pod, *address));
            // Nor is there an entry of the Pod for itself.
            assert!(!ip(&pod, &["neigh"]).contains("10.77.0.50"));
        }
    }
}

#[test]
fn duplicate_address_detection_is_waited_for() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let mut config = node.config();
    config["enabledad"] = json!(true);
    let pod = Netns::new().unwrap();
    let mut check = config.clone();
    check["prevResult"] = node.add("c", &pod, &config);
    let found: Value = serde_json::from_str(&ip(&pod, &["-j", "addr", "show", "eth0"])).unwrap();
    let six = found[0]["addr_info"].as_array().unwrap().iter().find(|address| address["local"] == "fd77::2").unwrap();
    assert_eq!((six.get("nodad"), six.get("tentative")), (None, None), "{six}");
    node.call("CHECK", "c", Some(pod.path()), &check).silent();

    // Somebody has the next Pod's address without our knowledge.
    ip(&pod, &["addr", "add", "fd77::3/64", "dev", "eth0", "nodad"]);
    let second = Netns::new().unwrap();
    let answer = node.call("ADD", "d", Some(second.path()), &config);
    assert_eq!(answer.code(), 100, "{answer:?}");
    assert!(answer.json()["msg"].as_str().unwrap().contains("fd77::3"), "{answer:?}");
    assert!(!ip(&second, &["link"]).contains("eth0"));
    assert_eq!(node.records(), ["c@eth0"]);
}

/// The store of a layer-2 network, which lies in the default place.
struct DefaultStore(String);

impl Drop for DefaultStore {
    fn drop(&mut self) {
        // Absent if the ADD failed, which the test tells by itself.
        let _ = fs::remove_dir_all(Path::new("/run/keelson/network").join(&self.0));
    }
}

#[test]
fn the_containers_end_can_be_left_down() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let mut config = node.config();
    config["disableContainerInterface"] = json!(true);
    let pod = Netns::new().unwrap();
    let answer = node.call("ADD", "c", Some(pod.path()), &config);
    assert_eq!(answer.code(), 7);
    assert!(node.traces().is_empty());

    config["ipam"] = json!({});
    // Without an IPAM the records lie in the default place.
    let store = DefaultStore(format!("down-{}", std::process::id()));
    config["name"] = json!(store.0);
    let mut check = config.clone();
    check["prevResult"] = node.add("c", &pod, &config);
    assert!(!has_flag(&link(&pod, "eth0"), "UP"));
    node.call("CHECK", "c", Some(pod.path()), &check).silent();
    assert_eq!(node.add("c", &pod, &config), check["prevResult"], "a repeated ADD");
    ip(&pod, &["link", "set", "eth0", "up"]);
    node.call("CHECK", "c", Some(pod.path()), &check).silent();
    node.call("DEL", "c", Some(pod.path()), &config).silent();
    assert!(!ip(&pod, &["link"]).contains("eth0"));
}

#[test]
fn a_bridge_is_promiscuous_when_asked_and_stays_so() {
    skip_unless!(is_root(), "needs root");
    for version in VERSIONS {
        let node = Node::new();
        let mut config = node.config();
        config["cniVersion"] = json!(version);
        config["promiscMode"] = json!(true);
        let pod = Netns::new().unwrap();
        let answer = node.call("ADD", "c", Some(pod.path()), &config);
        assert_eq!(answer.code(), 7, "with hairpinMode");
        config["hairpinMode"] = json!(false);
        // One that is there already is made promiscuous as well.
        let first = Netns::new().unwrap();
        let mut plain = config.clone();
        plain["promiscMode"] = json!(false);
        node.add("first", &first, &plain);
        assert!(!has_flag(&link(&node.host, "kt0"), "PROMISC"));
        let mut check = config.clone();
        check["prevResult"] = node.add("c", &pod, &config);
        assert!(has_flag(&link(&node.host, "kt0"), "PROMISC"));
        if version >= "0.4.0" {
            node.call("CHECK", "c", Some(pod.path()), &check).silent();
            ip(&node.host, &["link", "set", "kt0", "promisc", "off"]);
            let answer = node.call("CHECK", "c", Some(pod.path()), &check);
            assert_eq!(answer.code(), 105);
            assert!(answer.json()["details"].as_str().unwrap().contains("promiscuous"), "{answer:?}");
        }
        scenario(17, version);
    }
}

#[test]
fn an_automatic_mtu_is_that_of_the_way_out() {
    skip_unless!(is_root(), "needs root");
    for (route, expected) in
        [(Some(["default", "via", "192.0.2.1"]), 1400), (Some(["default", "via", "2001:db8::1"]), 1400), (None, 1500)]
    {
        let node = Node::new();
        let mut config = node.config();
        config["mtu"] = json!("auto");
        ip(&node.host, &["link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1"]);
        ip(&node.host, &["link", "set", "up1", "up"]);
        ip(&node.host, &["link", "set", "up0", "up"]);
        ip(&node.host, &["addr", "add", "192.0.2.2/24", "dev", "up0"]);
        ip(&node.host, &["addr", "add", "2001:db8::2/64", "dev", "up0", "nodad"]);
        if let Some(route) = route {
            ip(&node.host, &[&["route", "add"][..], &route[..], &["dev", "up0"][..]].concat());
        }
        let pod = Netns::new().unwrap();
        let result = node.add("c", &pod, &config);
        assert_eq!(result["interfaces"][0]["mtu"], expected, "{route:?}");
        assert_eq!(link(&pod, "eth0")["mtu"], expected, "{route:?}");
    }
}
