//! Many calls at once, and a full range.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::HashSet, net::IpAddr, thread};

use common::{Node, addresses, feed};
use keelson_testkit::{Netns, is_root, skip_unless};
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
