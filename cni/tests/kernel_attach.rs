//! ADD, CHECK and DEL between real network namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::HashSet, fs, net::IpAddr, path::Path};

use common::{
    Node, addresses, feed, ip, nft,
    traffic::{talk, world},
};
use keelson_testkit::{Netns, is_root, missing, skip_unless};
use serde_json::{Value, json};

fn parse(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn two_pods_talk_and_leave_nothing() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    let results: Vec<Value> = (0..2).map(|i| node.add(&format!("c{i}"), &pods[i], &config)).collect();
    let [first, second] = [addresses(&results[0]), addresses(&results[1])];
    assert_eq!(first, [parse("10.77.0.2"), parse("fd77::2")]);
    assert_eq!(second, [parse("10.77.0.3"), parse("fd77::3")]);
    for family in 0..2 {
        // No masquerading inside the network: the server sees the Pod's own address.
        assert_eq!(talk(&pods[0], &pods[1], second[family]), first[family]);
        talk(&node.host, &pods[0], first[family]);
    }
    for gateway in ["10.77.0.1", "fd77::1"] {
        talk(&pods[0], &node.host, parse(gateway));
    }
    for (index, pod) in pods.iter().enumerate() {
        let mut check = config.clone();
        check["prevResult"] = results[index].clone();
        node.call("CHECK", &format!("c{index}"), Some(pod.path()), &check).silent();
        node.call("DEL", &format!("c{index}"), Some(pod.path()), &check).silent();
        assert!(!ip(pod, &["link"]).contains("eth0"));
    }
    assert_eq!((node.records(), node.taken()), (vec![], vec![]));
    assert_eq!(node.traces(), ["link \"kt0\"", "store", "nftables"]);
}

#[test]
fn the_result_says_what_the_kernel_has_in_every_version() {
    skip_unless!(is_root(), "needs root");
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let node = Node::new();
        let mut config = node.config();
        config["cniVersion"] = json!(version);
        config["mtu"] = json!(1400);
        let pod = Netns::new().unwrap();
        let result = node.add("c", &pod, &config);
        assert_eq!(result["cniVersion"], version);
        let names: Vec<&str> =
            result["interfaces"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
        assert_eq!((names[0], names[2]), ("kt0", "eth0"));
        assert_eq!(result["interfaces"][2]["sandbox"], pod.path().to_str().unwrap());
        assert_eq!(result["interfaces"][0].get("sandbox"), None);
        for (index, namespace) in [(0, &node.host), (1, &node.host), (2, &pod)] {
            let link: Value =
                serde_json::from_str(&ip(namespace, &["-j", "-d", "link", "show", names[index]])).unwrap();
            assert_eq!(result["interfaces"][index]["mac"], link[0]["address"]);
            assert_eq!(link[0]["mtu"], 1400);
            let expected = if version == "1.1.0" { json!(1400) } else { Value::Null };
            assert_eq!(result["interfaces"][index]["mtu"], expected);
        }
        let port: Value = serde_json::from_str(&ip(&node.host, &["-j", "-d", "link", "show", names[1]])).unwrap();
        assert_eq!(port[0]["master"], "kt0");
        assert_eq!(port[0]["linkinfo"]["info_slave_data"]["hairpin"], true);
        assert_eq!(port[0]["ifalias"], "keelson:test:ns/pod-c");
        // Addresses work at once, with no wait for duplicate address detection.
        let found: Value = serde_json::from_str(&ip(&pod, &["-j", "addr", "show", "eth0"])).unwrap();
        let six = found[0]["addr_info"].as_array().unwrap().iter().find(|a| a["local"] == "fd77::2").unwrap();
        assert_eq!((&six["nodad"], six.get("tentative")), (&json!(true), None));
        for family in ["-4", "-6"] {
            let routes: Value = serde_json::from_str(&ip(&pod, &["-j", family, "route", "show", "default"])).unwrap();
            assert_eq!(routes[0]["protocol"], "107");
            assert_eq!(routes[0]["dev"], "eth0");
        }
    }
}

#[test]
fn the_world_outside_sees_the_node() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let world = world(&node);
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &node.config());
    assert_eq!(node.rules(), ["keelson"]);
    assert_eq!(talk(&pod, &world, parse("192.0.2.2")), parse("192.0.2.1"));
    assert_eq!(talk(&pod, &world, parse("2001:db8::2")), parse("2001:db8::1"));
    // What somebody flushed is back with the next ADD.
    node.host.run(|| {
        let settings = settings(&node, "10.77.0.0/24");
        keelson_cni::uninstall(&settings).unwrap()
    });
    let second = Netns::new().unwrap();
    node.add("d", &second, &node.config());
    assert_eq!(talk(&second, &world, parse("192.0.2.2")), parse("192.0.2.1"));
}

#[test]
fn a_saved_ruleset_can_be_loaded_again() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &node.config());
    let saved = nft(&node.host, &["list", "ruleset"]);
    assert!(saved.contains("10.77.0.0/24"), "{saved}");
    let file = node.directory.path().join("ruleset");
    fs::write(&file, &saved).unwrap();
    nft(&node.host, &["-c", "-f", file.to_str().unwrap()]);
    let restored = Netns::new().unwrap();
    nft(&restored, &["-f", file.to_str().unwrap()]);
    assert_eq!(nft(&restored, &["list", "ruleset"]), saved);
}

#[test]
fn what_somebody_took_out_of_the_rules_check_tells_and_add_restores() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let world = world(&node);
    let first = Netns::new().unwrap();
    let mut check = node.config();
    check["prevResult"] = node.add("first", &first, &node.config());
    let whole = nft(&node.host, &["list", "ruleset"]);
    let cases: [(&[&str], &str); 5] = [
        (&["flush", "table", "inet", "keelson"], "the nftables chain inet keelson guard is not as it was made"),
        (&["flush", "chain", "inet", "keelson", "postrouting"], "chain inet keelson postrouting is not as it was made"),
        (&["delete", "element", "inet", "keelson", "pods4", "{ 10.77.0.0/24 }"], "lacks 10.77.0.0/24"),
        (&["flush", "set", "inet", "keelson", "pods6"], "lacks fd77::/64"),
        (&["delete", "table", "inet", "keelson"], "lacks 10.77.0.0/24"),
    ];
    for (index, (damage, expected)) in cases.iter().enumerate() {
        node.call("CHECK", "first", Some(first.path()), &check).silent();
        nft(&node.host, damage);
        let answer = node.call("CHECK", "first", Some(first.path()), &check);
        assert_eq!(answer.code(), 105, "{damage:?}");
        assert!(answer.json()["details"].as_str().unwrap().contains(expected), "{expected}: {answer:?}");
        let pod = Netns::new().unwrap();
        node.add(&format!("c{index}"), &pod, &node.config());
        assert_eq!(nft(&node.host, &["list", "ruleset"]), whole, "{damage:?}");
        assert_eq!(talk(&pod, &world, parse("192.0.2.2")), parse("192.0.2.1"));
    }
}

#[test]
fn without_masquerading_the_world_sees_the_pod() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let world = world(&node);
    ip(&world, &["route", "add", "10.77.0.0/24", "via", "192.0.2.1"]);
    let pod = Netns::new().unwrap();
    let mut config = node.config();
    config["ipMasq"] = json!(false);
    node.add("c", &pod, &config);
    assert!(node.rules().is_empty());
    assert_eq!(talk(&pod, &world, parse("192.0.2.2")), parse("10.77.0.2"));
}

fn settings(node: &Node, range: &str) -> keelson_cni::NetworkSettings {
    let section = keelson_cni::NetworkSection {
        name: "another".to_owned(),
        bridge: "kt9".to_owned(),
        ranges: vec![range.to_owned()],
        ..keelson_cni::NetworkSection::default()
    };
    let root = keelson_host::HostRoot::at(node.directory.path());
    section.validate(&keelson_host::Node { name: "n".to_owned(), state_dir: "/state".into(), root }).unwrap()
}

#[test]
fn an_ipv6_address_is_given_where_ipv6_is_disabled() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    for conf in ["all", "default"] {
        pods[0].run(|| fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/disable_ipv6"), "1").unwrap());
    }
    let results = [node.add("c0", &pods[0], &node.config()), node.add("c1", &pods[1], &node.config())];
    talk(&pods[1], &pods[0], addresses(&results[0])[1]);
    // Only the interface that was asked to have it.
    let switch = |conf: &str| {
        pods[0].run(|| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{conf}/disable_ipv6")).unwrap())
    };
    assert_eq!((switch("eth0").as_str(), switch("lo").as_str(), switch("default").as_str()), ("0\n", "1\n", "1\n"));
    // An attachment without an IPv6 address leaves it disabled.
    let mut config = node.config();
    config["name"] = json!("four");
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24"}]]);
    let mut command = node.command("ADD", "c0", Some(pods[0].path()));
    command.env("CNI_IFNAME", "net1");
    assert_eq!(feed(command, config.to_string().as_bytes()).status, 0);
    assert_eq!(switch("net1"), "1\n");
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
fn a_layer_2_attachment_has_a_link_and_no_address() {
    skip_unless!(is_root(), "needs root");
    for ipam in [Value::Null, json!({})] {
        let node = Node::new();
        let pod = Netns::new().unwrap();
        let mut config = node.config();
        config["ipam"] = ipam;
        let store = DefaultStore(format!("l2-{}", std::process::id()));
        config["name"] = json!(store.0);
        let result = node.add("c", &pod, &config);
        assert_eq!(result.get("ips"), None);
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        assert!(ip(&pod, &["link", "show", "eth0"]).contains("state UP"));
        assert!(!ip(&pod, &["-4", "addr"]).contains("eth0"));
        let mut check = config.clone();
        check["prevResult"] = result;
        node.call("CHECK", "c", Some(pod.path()), &check).silent();
        node.call("DEL", "c", Some(pod.path()), &config).silent();
        assert!(!ip(&pod, &["link"]).contains("eth0"));
    }
}

#[test]
fn addresses_asked_for_are_given_once() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    let mut config = node.config();
    config["RuntimeConfig"] = json!({"ips": ["10.77.0.99/24"], "mac": "02:00:00:00:00:42"});
    let result = node.add("c0", &pods[0], &config);
    assert_eq!(addresses(&result), [parse("10.77.0.99"), parse("fd77::2")]);
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:42");
    let refused = node.call("ADD", "c1", Some(pods[1].path()), &config);
    assert_eq!(refused.code(), 11);
    assert!(refused.json()["msg"].as_str().unwrap().contains("in use by ns/pod-c0"), "{refused:?}");
    assert_eq!(node.records(), ["c0@eth0"]);
}

#[test]
fn a_smaller_mtu_of_another_network_leaves_the_bridges_alone() {
    skip_unless!(is_root(), "needs root");
    for (first, bridge) in [(Value::Null, 1500), (json!(1280), 1280), (json!(9000), 9000), (json!(65535), 65535)] {
        let node = Node::new();
        let mut config = node.config();
        let mut expect = |id: &str, mtu: &Value, expected: u32| {
            config["mtu"] = mtu.clone();
            let pod = Netns::new().unwrap();
            let result = node.add(id, &pod, &config);
            let found: Vec<&Value> = result["interfaces"].as_array().unwrap().iter().map(|i| &i["mtu"]).collect();
            assert_eq!(found, [&json!(bridge), &json!(expected), &json!(expected)], "{id} {mtu}");
            pod
        };
        let _first = expect("first", &first, bridge);
        let _small = expect("small", &json!(1280), 1280);
        let _later = expect("later", &json!(0), bridge);
        // With the last port gone too.
        for id in ["first", "small", "later"] {
            node.call("DEL", id, None, &node.config()).silent();
        }
        let _again = expect("again", &Value::Null, bridge);
    }
}

#[test]
fn routes_of_every_kind_are_made() {
    skip_unless!(is_root(), "needs root");
    for (routes, family, expected) in [
        (
            json!([{"dst": "10.9.0.0/16", "gw": "10.77.0.7"}, {"dst": "10.9.0.0/16", "gw": "10.77.0.8"}]),
            "-4",
            "10.77.0.8",
        ),
        (json!([{"dst": "10.9.0.0/16", "table": 1007}, {"dst": "10.9.0.0/16", "priority": 7}]), "-4", "metric 7"),
        (json!([{"dst": "10.8.0.1/32", "scope": 253}, {"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]), "-4", "via 10.8.0.1"),
        (json!([{"dst": "fd01::/64", "gw": "fe80::1"}]), "-6", "via fe80::1"),
    ] {
        let node = Node::new();
        let pod = Netns::new().unwrap();
        let mut config = node.config();
        config["ipam"]["routes"] = routes;
        config["prevResult"] = node.add("c", &pod, &config);
        let found = ip(&pod, &[family, "route"]);
        assert!(found.contains(expected), "{expected}: {found}");
        node.call("CHECK", "c", Some(pod.path()), &config).silent();
    }
}

#[test]
fn the_longest_names_are_attached() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let mut config = node.config();
    let identifier = "n".repeat(200);
    config["name"] = json!(identifier);
    let alias = |result: &Value| {
        let name = result["interfaces"][1]["name"].as_str().unwrap();
        let link: Value = serde_json::from_str(&ip(&node.host, &["-j", "link", "show", name])).unwrap();
        link[0]["ifalias"].as_str().unwrap().to_owned()
    };
    // Kubernetes' limits: 63 bytes for a namespace, 253 for a Pod's name. The kernel's for an alias is 254.
    for (namespace, name) in [(63, 253), (0, 0), (1, 44), (1, 45)] {
        let pod = Netns::new().unwrap();
        let mut command = node.command("ADD", &identifier, Some(pod.path()));
        command
            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={}", "s".repeat(namespace), "p".repeat(name)));
        let answer = feed(command, config.to_string().as_bytes());
        assert_eq!(answer.status, 0, "{namespace} {name}: {answer:?}");
        assert!(alias(&answer.json()).starts_with(&format!("keelson:{identifier}:")));
        node.call("DEL", &identifier, None, &config).silent();
    }
}

#[test]
fn a_second_interface_of_a_pod_is_an_attachment_of_its_own() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pod = Netns::new().unwrap();
    let first = node.add("c", &pod, &config);
    let mut command = node.command("ADD", "c", Some(pod.path()));
    command.env("CNI_IFNAME", "net1");
    let second = feed(command, config.to_string().as_bytes()).json();
    assert_eq!(addresses(&second), [parse("10.77.0.3"), parse("fd77::3")]);
    for (ifname, result) in [("eth0", &first), ("net1", &second)] {
        let mut check = config.clone();
        check["prevResult"] = result.clone();
        let mut command = node.command("CHECK", "c", Some(pod.path()));
        command.env("CNI_IFNAME", ifname);
        feed(command, check.to_string().as_bytes()).silent();
    }
    node.call("DEL", "c", None, &config).silent();
    assert_eq!(node.records(), ["c@net1"]);
    assert!(ip(&pod, &["link"]).contains("net1"));
}

#[test]
fn del_needs_neither_namespace_nor_a_valid_config() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    // Never added: nothing to do, and nothing made.
    node.call("DEL", "c", None, &config).silent();
    assert_eq!(node.traces(), Vec::<String>::new());

    let pod = Netns::new().unwrap();
    node.add("c", &pod, &config);
    node.call("DEL", "c", None, &config).silent();
    node.call("DEL", "c", None, &config).silent();
    assert!(!ip(&pod, &["link"]).contains("eth0"));

    // The namespace is gone, path and all.
    let path = pod.path().to_owned();
    node.add("c", &pod, &config);
    drop(pod);
    node.call("DEL", "c", Some(&path), &config).silent();

    // Somebody broke the ranges since.
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &config);
    let mut broken = config.clone();
    broken["ipam"]["ranges"] = json!([[{"subnet": "nonsense"}]]);
    node.call("DEL", "c", Some(pod.path()), &broken).silent();
    assert_eq!((node.records(), node.taken()), (vec![], vec![]));

    // The path leads to the host by now: clean by record, touch nothing there.
    node.add("c", &pod, &config);
    node.call("DEL", "c", Some(node.host.path()), &config).silent();
    assert_eq!((node.records(), node.taken()), (vec![], vec![]));
    assert_eq!(node.traces(), ["link \"kt0\"", "store", "nftables"]);

    // The record is gone, or not readable: the link is found all the same, and the address is free again.
    for damage in [None, Some("{")] {
        node.add("c", &pod, &config);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let record = node.data_dir().join("test").join(boot.trim_end()).join("attachments/c@eth0");
        match damage {
            None => fs::remove_file(record).unwrap(),
            Some(text) => fs::write(record, text).unwrap(),
        }
        node.call("DEL", "c", Some(pod.path()), &config).silent();
        assert!(!ip(&pod, &["link"]).contains("eth0"));
        assert_eq!(node.records(), Vec::<String>::new());
    }
}

#[test]
fn a_repeated_add_gives_the_same_result_or_changes_nothing() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pod = Netns::new().unwrap();
    let result = node.add("c", &pod, &config);
    assert_eq!(node.add("c", &pod, &config), result);
    ip(&pod, &["addr", "del", "10.77.0.2/24", "dev", "eth0"]);
    let before = node.traces();
    assert_eq!(node.call("ADD", "c", Some(pod.path()), &config).code(), 104);
    assert_eq!(node.traces(), before);
    assert_eq!(node.records(), ["c@eth0"]);
}

#[test]
fn check_names_what_somebody_changed() {
    skip_unless!(is_root(), "needs root");
    let cases: [(&[&str], bool, &str); 9] = [
        (&["link", "set", "eth0", "mtu", "1600"], true, "eth0 has the MTU 1600 instead of 1500"),
        (&["link", "set", "eth0", "down"], true, "eth0 is down"),
        (&["addr", "del", "10.77.0.2/24", "dev", "eth0"], true, "eth0 lacks the address 10.77.0.2/24"),
        (&["-6", "addr", "del", "fd77::2/64", "dev", "eth0"], true, "eth0 lacks the address fd77::2/64"),
        (&["route", "del", "default"], true, "the container lacks the route to 0.0.0.0/0 via 10.77.0.1"),
        (&["link", "set", "eth0", "address", "02:00:00:00:00:01"], true, "instead of 6a:6c:0a:4d:00:02"),
        (&["link", "del", "eth0"], true, "the container has no interface eth0"),
        (&["addr", "flush", "dev", "kt0"], false, "kt0 lacks the gateway address 10.77.0.1"),
        (&["link", "del", "kt0"], false, "the host has no bridge kt0"),
    ];
    for (tamper, inside, expected) in cases {
        let node = Node::new();
        let pod = Netns::new().unwrap();
        let mut config = node.config();
        config["prevResult"] = node.add("c", &pod, &config);
        node.call("CHECK", "c", Some(pod.path()), &config).silent();
        ip(if inside { &pod } else { &node.host }, tamper);
        let answer = node.call("CHECK", "c", Some(pod.path()), &config);
        assert_eq!(answer.code(), 105);
        let details = answer.json()["details"].as_str().unwrap().to_owned();
        assert!(details.contains(expected), "{expected}: {answer:?}");
        let lines: Vec<&str> = details.split("; ").collect();
        assert_eq!(lines.iter().collect::<HashSet<_>>().len(), lines.len(), "{details}");
    }
}

#[test]
fn check_names_what_somebody_switched_off() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let mut config = node.config();
    config["cniVersion"] = json!("1.0.0");
    config["prevResult"] = node.add("c", &pod, &config);
    let port = config["prevResult"]["interfaces"][1]["name"].as_str().unwrap().to_owned();
    ip(&node.host, &["link", "set", &port, "type", "bridge_slave", "hairpin", "off"]);
    // A result of 1.0.0 tells no MTU; the record does.
    ip(&pod, &["link", "set", "eth0", "mtu", "1600"]);
    node.host.run(|| {
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
    });
    let answer = node.call("CHECK", "c", Some(pod.path()), &config);
    assert_eq!(answer.code(), 105);
    let expected = format!(
        "eth0 has the MTU 1600 instead of 1500; {port} is not in hairpin mode; \
         the host does not forward: /proc/sys/net/ipv4/ip_forward is 0; \
         the host does not forward: /proc/sys/net/ipv6/conf/all/forwarding is 0"
    );
    assert_eq!(answer.json()["details"], expected);
    // Nobody asked for what is off.
    config["isDefaultGateway"] = json!(false);
    config["hairpinMode"] = json!(false);
    ip(&pod, &["link", "set", "eth0", "mtu", "1500"]);
    node.call("CHECK", "c", Some(pod.path()), &config).silent();
}

#[test]
fn check_takes_what_a_later_plugin_of_the_chain_changed() {
    skip_unless!(is_root(), "needs root");
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let node = Node::new();
        let pod = Netns::new().unwrap();
        let mut config = node.config();
        config["cniVersion"] = json!(version);
        config["mtu"] = json!(1450);
        config["prevResult"] = node.add("c", &pod, &config);
        // As the reference's tuning does it: the Ethernet address is told in the result, the MTU isn't.
        ip(&pod, &["link", "set", "eth0", "mtu", "1400", "address", "02:00:00:00:00:01"]);
        assert_eq!(node.call("CHECK", "c", Some(pod.path()), &config).code(), 105);
        config["prevResult"]["interfaces"][2]["mac"] = json!("02:00:00:00:00:01");
        node.call("CHECK", "c", Some(pod.path()), &config).silent();
    }
}

#[test]
fn a_long_list_of_routes_is_added_whole() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let mut config = node.config();
    let routes: Vec<Value> =
        (0..1000).map(|i| json!({"dst": format!("172.{}.{}.0/24", 16 + i / 256, i % 256)})).collect();
    config["ipam"]["routes"] = json!(routes);
    let result = node.add("c", &pod, &config);
    // With the two default routes.
    assert_eq!(result["routes"].as_array().unwrap().len(), 1002);
    assert_eq!(ip(&pod, &["-4", "route", "show", "proto", "107"]).lines().count(), 1001);
    config["prevResult"] = result;
    node.call("CHECK", "c", Some(pod.path()), &config).silent();
}

#[test]
fn a_namespace_is_known_by_every_path_to_it() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let mut config = node.config();
    let mut expected = node.add("c", &pod, &config);
    let other = node.directory.path().join("other");
    std::os::unix::fs::symlink(pod.path(), &other).unwrap();
    config["prevResult"] = expected.clone();
    node.call("CHECK", "c", Some(&other), &config).silent();
    // A repeated ADD answers in its own call's words.
    let answer = node.call("ADD", "c", Some(&other), &node.config());
    expected["interfaces"][2]["sandbox"] = json!(other);
    assert_eq!(answer.json(), expected);
    config["prevResult"] = expected;
    node.call("CHECK", "c", Some(pod.path()), &config).silent();
    // Another namespace is another one, whatever is in it.
    let stranger = Netns::new().unwrap();
    config["prevResult"]["interfaces"][2]["sandbox"] = json!(stranger.path());
    let answer = node.call("CHECK", "c", Some(pod.path()), &config);
    assert!(answer.json()["details"].as_str().unwrap().contains("prevResult has no interface eth0"), "{answer:?}");
}

#[test]
fn check_tolerates_what_later_plugins_add() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let mut config = node.config();
    let mut result = node.add("c", &pod, &config);
    ip(&pod, &["addr", "add", "10.99.0.1/32", "dev", "eth0"]);
    ip(&pod, &["route", "add", "10.98.0.0/16", "via", "10.77.0.1"]);
    result["interfaces"].as_array_mut().unwrap().push(json!({"name": "other0", "mac": "02:00:00:00:00:09"}));
    config["prevResult"] = result.clone();
    node.call("CHECK", "c", Some(pod.path()), &config).silent();
    // A result that isn't this attachment's is told.
    result["ips"].as_array_mut().unwrap().remove(0);
    config["prevResult"] = result;
    assert_eq!(node.call("CHECK", "c", Some(pod.path()), &config).code(), 105);
    config["prevResult"] = Value::Null;
    assert_eq!(node.call("CHECK", "c", Some(pod.path()), &config).code(), 7);
}

#[test]
fn gc_frees_exactly_what_is_not_valid() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let mut config = node.config();
    let pods: Vec<Netns> = (0..3).map(|_| Netns::new().unwrap()).collect();
    for (index, pod) in pods.iter().enumerate() {
        node.add(&format!("c{index}"), pod, &config);
    }
    // No word is not the word "none".
    node.call("GC", "", None, &config).silent();
    assert_eq!(node.records().len(), 3);
    config["cni.dev/valid-attachments"] =
        json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c0", "ifname": "net1"}]);
    node.call("GC", "", None, &config).silent();
    assert_eq!(node.records(), ["c1@eth0"]);
    assert_eq!(node.taken(), ["10.77.0.3", "fd77::3"]);
    assert!(!ip(&pods[0], &["link"]).contains("eth0"));
    assert!(ip(&pods[1], &["link"]).contains("eth0"));
    config["cni.dev/valid-attachments"] = json!([]);
    node.call("GC", "", None, &config).silent();
    assert_eq!((node.records(), node.taken()), (vec![], vec![]));
}

#[test]
fn status_tells_the_truth() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    node.call("STATUS", "", None, &config).silent();
    assert_eq!(node.traces(), Vec::<String>::new(), "STATUS made something");
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &config);
    node.call("STATUS", "", None, &config).silent();
    ip(&node.host, &["link", "del", "kt0"]);
    assert_eq!(node.call("STATUS", "", None, &config).code(), 51);
    ip(&node.host, &["link", "add", "kt0", "type", "veth", "peer", "name", "kt1"]);
    assert_eq!(node.call("STATUS", "", None, &config).code(), 50);
    let mut elsewhere = config.clone();
    let file = node.directory.path().join("file");
    fs::write(&file, "").unwrap();
    elsewhere["bridge"] = json!("kt2");
    elsewhere["ipam"]["dataDir"] = json!(file);
    assert_eq!(node.call("STATUS", "", None, &elsewhere).code(), 50);
    for (key, value) in [("ipMasqBackend", json!("pf")), ("mtu", json!("many"))] {
        let mut config = config.clone();
        config[key] = value;
        let answer = node.call("STATUS", "", None, &config);
        assert_eq!(answer.code(), 50);
        assert!(answer.json()["msg"].as_str().unwrap().contains(key), "{answer:?}");
    }
}

#[test]
fn nobodys_call_is_told_what_this_is() {
    let command = std::process::Command::new(env!("CARGO_BIN_EXE_keelson-cni"));
    let answer = feed(command, b"");
    assert_eq!((answer.status, answer.stdout.as_str()), (0, ""));
    assert!(answer.stderr.contains("0.4.0, 1.0.0, 1.1.0"), "{answer:?}");
}
