//! ADD, CHECK and DEL between real network namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use common::{Node, addresses, ip};
use keelson_testkit::{Netns, is_root, skip_unless};
use serde_json::{Value, json};

/// Connects from `client` to `address` in `server`, and gives the address that the server saw.
fn talk(client: &Netns, server: &Netns, address: IpAddr) -> IpAddr {
    let listener = server.run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        let accepted = scope.spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            peer.ip()
        });
        let mut text = String::new();
        let mut stream = client.run(|| TcpStream::connect(SocketAddr::new(address, port)).unwrap());
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        accepted.join().unwrap()
    })
}

#[test]
fn two_pods_talk_and_leave_nothing() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    let results: Vec<Value> = (0..2).map(|i| node.add(&format!("c{i}"), &pods[i], &config)).collect();
    let [first, second] = [addresses(&results[0]), addresses(&results[1])];
    assert_eq!(first, ["10.77.0.2".parse::<IpAddr>().unwrap(), "fd77::2".parse().unwrap()]);
    assert_eq!(second, ["10.77.0.3".parse::<IpAddr>().unwrap(), "fd77::3".parse().unwrap()]);
    for family in 0..2 {
        assert_eq!(talk(&pods[0], &pods[1], second[family]), first[family]);
        assert_eq!(talk(&node.host, &pods[0], first[family]).is_ipv4(), first[family].is_ipv4());
    }
    let gateways: Vec<IpAddr> = vec!["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()];
    for gateway in gateways {
        talk(&pods[0], &node.host, gateway);
    }
    for (index, pod) in pods.iter().enumerate() {
        let mut check = config.clone();
        check["prevResult"] = results[index].clone();
        node.call("CHECK", &format!("c{index}"), Some(pod.path()), &check).silent();
        node.call("DEL", &format!("c{index}"), Some(pod.path()), &check).silent();
        assert!(!ip(pod, &["link"]).contains("eth0"));
    }
    assert_eq!(node.traces(), ["link \"kt0\"", "store", "nftables"]);
}
