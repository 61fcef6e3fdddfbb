//! Bandwidth limits: what the kernel is told, that traffic passes there, and that nothing of it stays.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use common::{Node, addresses, ip};
use keelson_testkit::{Netns, is_root, missing, skip_unless};
use serde_json::{Value, json};

/// Both ways, with different values.
fn limited(node: &Node) -> Value {
    let mut config = node.config();
    config["ipMasq"] = json!(false);
    config["runtimeConfig"] = json!({"bandwidth": {
        "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
        "egressRate": 40_000_000, "egressBurst": 4_000_000,
    }});
    config
}

#[track_caller]
fn tc(namespace: &Netns, arguments: &[&str]) -> String {
    let output = namespace.command("tc").args(arguments).output().unwrap();
    assert!(output.status.success(), "tc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The root qdisc of `link`, with its counters.
#[track_caller]
fn root_qdisc(namespace: &Netns, link: &str) -> Value {
    let all: Value = serde_json::from_str(&tc(namespace, &["-j", "-s", "qdisc", "show", "dev", link])).unwrap();
    all.as_array().unwrap().iter().find(|qdisc| qdisc["root"] == true).unwrap_or_else(|| panic!("{all}")).clone()
}

/// Sends `length` bytes from one namespace to an address in the other, and prints how fast.
fn send(what: &str, from: &Netns, to: &Netns, address: IpAddr, length: usize) {
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let begin = Instant::now();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut received = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
            received.len()
        });
        from.run(|| TcpStream::connect(target).unwrap()).write_all(&vec![7; length]).unwrap();
        assert_eq!(receiver.join().unwrap(), length);
    });
    let bits = 8.0 * f64::from(u32::try_from(length).unwrap());
    println!("{what}: {:.1} Mbit/s", bits / begin.elapsed().as_secs_f64() / 1e6);
}

/// The names of the host's end and of the shaping link in an ADD's result.
fn host_links(result: &Value) -> (String, String) {
    let name = |index: usize| result["interfaces"][index]["name"].as_str().unwrap().to_owned();
    (name(1), name(3))
}

#[test]
fn both_ways_pass_a_bucket_and_nothing_of_it_stays() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["tc"]).is_empty(), "needs tc");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let config = limited(&node);
    let result = node.add("c", &pod, &config);
    let (host_end, shaping) = host_links(&result);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    let link: Value = serde_json::from_str(&ip(&node.host, &["-j", "-d", "link", "show", &shaping])).unwrap();
    assert_eq!(link[0]["linkinfo"]["info_kind"], "ifb");
    assert_eq!((&link[0]["address"], &link[0]["mtu"]), (&result["interfaces"][3]["mac"], &json!(1500)));

    for (link, rate) in [(&host_end, 10_000_000), (&shaping, 5_000_000)] {
        let qdisc = root_qdisc(&node.host, link);
        assert_eq!(qdisc["kind"], "tbf", "{qdisc}");
        assert_eq!(qdisc["options"]["rate"], rate);
        // What waits longer than 25 ms is dropped.
        assert_eq!(qdisc["options"]["lat"], 25_000);
    }
    let [address, _] = addresses(&result)[..] else { panic!("{result}") };
    let length = 2_000_000;
    for (what, link, from, to, target) in [
        ("to the Pod", &host_end, &node.host, &pod, address),
        ("from the Pod", &shaping, &pod, &node.host, "10.77.0.1".parse().unwrap()),
    ] {
        let before = root_qdisc(&node.host, link)["bytes"].as_u64().unwrap();
        send(what, from, to, target, length);
        let passed = root_qdisc(&node.host, link)["bytes"].as_u64().unwrap() - before;
        assert!(passed >= length as u64, "{what}: {passed}");
    }
    let mut check = config.clone();
    check["prevResult"] = result;
    node.call("CHECK", "c", Some(pod.path()), &check).silent();
    assert_eq!(node.add("c", &pod, &config), check["prevResult"], "a repeated ADD");
    node.call("DEL", "c", None, &config).silent();
    assert_eq!(node.traces(), ["link \"kt0\"", "store"]);
}

#[test]
fn one_direction_needs_no_more_than_its_own() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["tc"]).is_empty(), "needs tc");
    let node = Node::new();
    let mut config = limited(&node);
    config["runtimeConfig"] = json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 2_147_483_647}});
    let pod = Netns::new().unwrap();
    let result = node.add("in", &pod, &config);
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    let name = result["interfaces"][1]["name"].as_str().unwrap();
    assert_eq!(root_qdisc(&node.host, name)["options"]["rate"], 1_000_000);
    let mut check = config.clone();
    check["prevResult"] = result;
    node.call("CHECK", "in", Some(pod.path()), &check).silent();

    config["runtimeConfig"] = json!({});
    config["egressRate"] = json!(8_000_000_000_000_u64);
    config["egressBurst"] = json!(34_359_738_359_u64);
    let pod = Netns::new().unwrap();
    let result = node.add("out", &pod, &config);
    let (host_end, shaping) = host_links(&result);
    assert_ne!(root_qdisc(&node.host, &host_end)["kind"], "tbf");
    assert_eq!(root_qdisc(&node.host, &shaping)["options"]["rate"], 1_000_000_000_000_u64);
    let mut check = config.clone();
    check["prevResult"] = result;
    node.call("CHECK", "out", Some(pod.path()), &check).silent();
}

#[test]
fn check_tells_what_somebody_changed() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["tc"]).is_empty(), "needs tc");
    let node = Node::new();
    let config = limited(&node);
    for (index, expected) in [
        "is not limited to 80000000 bits a second",
        "is not limited to 40000000 bits a second",
        "does not go through",
        "is down",
        "has no link",
    ]
    .iter()
    .enumerate()
    {
        let pod = Netns::new().unwrap();
        let id = format!("c{index}");
        let mut check = config.clone();
        check["prevResult"] = node.add(&id, &pod, &config);
        let (host_end, shaping) = host_links(&check["prevResult"]);
        match index {
            0 => tc(&node.host, &["qdisc", "del", "dev", &host_end, "root"]),
            1 => {
                let rate = ["rate", "1mbit", "burst", "10k", "limit", "10k"];
                tc(&node.host, &[&["qdisc", "change", "dev", &shaping, "root", "tbf"][..], &rate[..]].concat())
            }
            2 => tc(&node.host, &["filter", "del", "dev", &host_end, "ingress"]),
            3 => ip(&node.host, &["link", "set", &shaping, "down"]),
            _ => ip(&node.host, &["link", "del", &shaping]),
        };
        let answer = node.call("CHECK", &id, Some(pod.path()), &check);
        assert_eq!(answer.code(), 105, "{expected}");
        assert!(answer.json()["details"].as_str().unwrap().contains(expected), "{expected}: {answer:?}");
        assert_eq!(node.call("ADD", &id, Some(pod.path()), &config).code(), 104);
        node.call("DEL", &id, Some(pod.path()), &config).silent();
    }
    assert_eq!(node.traces(), ["link \"kt0\"", "store"]);
}

#[test]
fn a_limit_that_cannot_be_met_changes_nothing() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let mut config = limited(&node);
    config["runtimeConfig"]["bandwidth"]["ingressBurst"] = json!(0);
    let pod = Netns::new().unwrap();
    let answer = node.call("ADD", "c", Some(pod.path()), &config);
    assert_eq!(answer.code(), 7);
    assert!(answer.stdout.contains("runtimeConfig.bandwidth.ingressRate"), "{answer:?}");
    assert!(node.traces().is_empty());
}

#[test]
fn an_unreadable_record_and_gc_leave_no_shaping_link() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = limited(&node);
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    node.add("torn", &pods[0], &config);
    node.add("gone", &pods[1], &config);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = node.data_dir().join("test").join(boot.trim_end()).join("attachments/torn@eth0");
    fs::write(record, "{").unwrap();
    node.call("DEL", "torn", None, &config).silent();
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    node.call("GC", "", None, &gc).silent();
    assert_eq!(node.traces(), ["link \"kt0\"", "store"]);
}
