//! Host ports: real traffic to ports of the node, from everywhere it may come from, and whose a port is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use common::{Node, addresses, traffic::world};
use keelson_testkit::{Netns, is_root, skip_unless};
use serde_json::{Value, json};

fn parse(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The node's config with host ports: `protocol/[address:]hostPort:containerPort`.
fn with_ports(config: &Value, ports: &[&str]) -> Value {
    let mappings = ports.iter().map(|text| {
        let (protocol, rest) = text.split_once('/').unwrap();
        let (rest, container) = rest.rsplit_once(':').unwrap();
        let (address, host) = rest.rsplit_once(':').unwrap_or(("", rest));
        let (host, container): (u16, u16) = (host.parse().unwrap(), container.parse().unwrap());
        json!({"protocol": protocol, "hostIP": address, "hostPort": host, "containerPort": container})
    });
    let mut config = config.clone();
    config["runtimeConfig"] = json!({"portMappings": mappings.collect::<Vec<Value>>()});
    config
}

/// Answers each TCP connection to `port` of the namespace with `name` and the client's address, for as long as it lives.
fn serve_tcp(namespace: &Netns, port: u16, name: &'static str) {
    let listener = namespace.run(|| TcpListener::bind(("::", port)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = write!(stream, "{name} {peer}");
        }
    });
}

/// The same for UDP, on one address: it is the one that answers.
fn serve_udp(namespace: &Netns, address: &str, port: u16, name: &'static str) {
    let socket = namespace.run(|| UdpSocket::bind((parse(address), port)).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// How long something may take that happens at once, or never.
const LIMIT: Duration = Duration::from_secs(5);

/// What the server behind `address` says to a TCP client in the namespace.
fn ask_tcp(client: &Netns, address: &str, port: u16) -> Result<String, ErrorKind> {
    let mut stream = client
        .run(|| TcpStream::connect_timeout(&SocketAddr::new(parse(address), port), LIMIT))
        .map_err(|error| error.kind())?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.kind())?;
    Ok(text)
}

/// The same for UDP.
fn ask_udp(client: &Netns, address: &str, port: u16) -> Result<String, ErrorKind> {
    let any = if parse(address).is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = client.run(|| UdpSocket::bind((parse(any), 0)).unwrap());
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect((parse(address), port)).unwrap();
    socket.send(b"?").map_err(|error| error.kind())?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).map_err(|error| error.kind())?;
    Ok(String::from_utf8(buffer[..length].to_vec()).unwrap())
}

#[test]
fn a_port_of_the_node_leads_to_the_pod_from_everywhere() {
    skip_unless!(is_root(), "needs root");
    for mode in ["bridge", "routed"] {
        let node = Node::new();
        let world = world(&node);
        let mut config = node.config();
        if mode == "routed" {
            config["mode"] = json!(mode);
            config.as_object_mut().unwrap().retain(|key, _| !["bridge", "hairpinMode"].contains(&key.as_str()));
        }
        let [pod, other] = [Netns::new().unwrap(), Netns::new().unwrap()];
        serve_tcp(&pod, 80, "pod");
        let ported = with_ports(&config, &["tcp/8080:80", "udp/8080:53"]);
        let result = node.add("c", &pod, &ported);
        serve_udp(&pod, "10.77.0.2", 53, "pod");
        serve_udp(&pod, "fd77::2", 53, "pod");
        assert_eq!(addresses(&result), [parse("10.77.0.2"), parse("fd77::2")]);
        node.add("other", &other, &config);
        for (from, client, address, seen) in [
            ("the world", &world, "192.0.2.1", "192.0.2.2"),
            ("the world", &world, "2001:db8::1", "2001:db8::2"),
            ("the node", &node.host, "192.0.2.1", "192.0.2.1"),
            ("the node", &node.host, "2001:db8::1", "2001:db8::1"),
            ("the node", &node.host, "127.0.0.1", "10.77.0.1"),
            ("the pod itself", &pod, "192.0.2.1", "10.77.0.1"),
            ("the pod itself", &pod, "2001:db8::1", "fd77::1"),
            ("the pod itself", &pod, "10.77.0.1", "10.77.0.1"),
            // A neighbour on the bridge is answered by way of the node; a routed one is there anyway.
            ("a neighbour", &other, "192.0.2.1", if mode == "bridge" { "10.77.0.1" } else { "10.77.0.3" }),
            ("a neighbour", &other, "2001:db8::1", if mode == "bridge" { "fd77::1" } else { "fd77::3" }),
        ] {
            let wanted = Ok(format!("pod {seen}"));
            assert_eq!(ask_tcp(client, address, 8080), wanted, "{mode}: TCP from {from} to {address}");
            assert_eq!(ask_udp(client, address, 8080), wanted, "{mode}: UDP from {from} to {address}");
        }
        // Only that port, and only until the end.
        assert_eq!(ask_tcp(&world, "192.0.2.1", 8081), Err(ErrorKind::ConnectionRefused));
        let mut check = ported.clone();
        check["prevResult"] = result;
        node.call("CHECK", "c", Some(pod.path()), &check).silent();
        node.call("DEL", "c", None, &config).silent();
        assert_eq!(ask_tcp(&world, "192.0.2.1", 8080), Err(ErrorKind::ConnectionRefused));
    }
}
