//! Host ports: real traffic to ports of the node, from everywhere it may come from, and whose a port is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use common::{Answer, Node, addresses, ip, nft, traffic::world};
use keelson_testkit::{Netns, is_root, missing, skip_unless};
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

/// The whole of what an error says.
fn text_of(answer: &Answer) -> String {
    let error = answer.json();
    format!("{} {}", error["msg"].as_str().unwrap(), error["details"].as_str().unwrap())
}

/// Attaches a Pod that serves TCP port 80 as `name`.
fn add_server(node: &Node, id: &str, name: &'static str, config: &Value) -> (Netns, Value) {
    let pod = Netns::new().unwrap();
    serve_tcp(&pod, 80, name);
    let result = node.add(id, &pod, config);
    (pod, result)
}

/// Asserts that an ADD with these ports is refused with code 101 and the text, and leaves nothing.
#[track_caller]
fn refused(node: &Node, config: &Value, texts: &[&str]) {
    let pod = Netns::new().unwrap();
    let before = (node.traces(), node.records(), elements(node));
    let answer = node.call("ADD", "late", Some(pod.path()), config);
    assert_eq!(answer.code(), 101, "{answer:?}");
    for text in texts {
        assert!(text_of(&answer).contains(text), "{text}: {answer:?}");
    }
    assert_eq!((node.traces(), node.records(), elements(node)), before);
    assert!(!ip(&pod, &["link"]).contains("eth0"));
}

/// What the maps hold, as nft prints it.
fn elements(node: &Node) -> Vec<String> {
    let maps = nft(&node.host, &["list", "maps"]);
    maps.lines().filter(|line| line.contains("comment")).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_port_of_the_node_leads_to_the_pod_from_everywhere() {
    skip_unless!(is_root(), "needs root");
    for (mode, bridge_filtering) in [("bridge", "0"), ("bridge", "1"), ("routed", "0")] {
        let node = Node::new();
        // Whether what a bridge forwards passes the rules for IP; without the module br_netfilter it never does.
        for switch in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let _ = node.host.run(|| fs::write(format!("/proc/sys/net/bridge/{switch}"), bridge_filtering));
        }
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
            assert_eq!(
                ask_tcp(client, address, 8080),
                wanted,
                "{mode} {bridge_filtering}: TCP from {from} to {address}"
            );
            assert_eq!(
                ask_udp(client, address, 8080),
                wanted,
                "{mode} {bridge_filtering}: UDP from {from} to {address}"
            );
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

#[test]
fn many_ports_are_published_and_withdrawn_at_once() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let ports: Vec<String> = (0..2000).map(|index| format!("tcp/{}:80", 20_000 + index)).collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let mut config = with_ports(&node.config(), &ports);
    config["prevResult"] = node.add("c", &pod, &config);
    assert_eq!(elements(&node).len(), 2 * ports.len());
    node.call("CHECK", "c", Some(pod.path()), &config).silent();
    node.call("DEL", "c", Some(pod.path()), &config).silent();
    assert_eq!(elements(&node), Vec::<String>::new());
}

#[test]
fn a_host_ip_limits_a_port_to_one_address_or_family() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let world = world(&node);
    let ports = [
        "tcp/192.0.2.1:8080:80",
        "tcp/2001:db8::1:8080:80",
        "tcp/0.0.0.0:8081:80",
        "tcp/:::8082:80",
        "tcp/127.0.0.1:8083:80",
    ];
    let (_pod, _) = add_server(&node, "c", "pod", &with_ports(&node.config(), &ports));
    let refused = Err(ErrorKind::ConnectionRefused);
    for (address, port, answers) in [
        ("192.0.2.1", 8080, true),
        ("10.77.0.1", 8080, false),
        ("127.0.0.1", 8080, false),
        ("2001:db8::1", 8080, true),
        ("fd77::1", 8080, false),
        ("192.0.2.1", 8081, true),
        ("127.0.0.1", 8081, true),
        ("2001:db8::1", 8081, false),
        ("2001:db8::1", 8082, true),
        ("192.0.2.1", 8082, false),
        ("127.0.0.1", 8083, true),
        ("192.0.2.1", 8083, false),
    ] {
        let answer = ask_tcp(&node.host, address, port);
        assert!(if answers { answer.is_ok() } else { answer == refused }, "{address} {port}: {answer:?}");
    }
    assert_eq!(ask_tcp(&world, "192.0.2.1", 8080).as_deref(), Ok("pod 192.0.2.2"));
    assert_eq!(ask_tcp(&world, "192.0.2.1", 8083), refused);
}

#[test]
fn the_same_port_of_another_host_is_left_alone() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let world = world(&node);
    serve_tcp(&world, 8080, "world");
    let (pod, _) = add_server(&node, "c", "pod", &with_ports(&node.config(), &["tcp/8080:80"]));
    let (other, _) = add_server(&node, "d", "other", &node.config());
    // What Pods and the node send to another host's port, and what comes through the node to a Pod's.
    for (client, address, wanted) in [
        (&pod, "192.0.2.2", "world 192.0.2.1"),
        (&other, "192.0.2.2", "world 192.0.2.1"),
        (&other, "2001:db8::2", "world 2001:db8::1"),
        (&node.host, "192.0.2.2", "world 192.0.2.1"),
    ] {
        assert_eq!(ask_tcp(client, address, 8080).as_deref(), Ok(wanted));
    }
    ip(&world, &["route", "add", "10.77.0.0/24", "via", "192.0.2.1"]);
    assert_eq!(ask_tcp(&world, "10.77.0.3", 80).as_deref(), Ok("other 192.0.2.2"));
    assert_eq!(ask_tcp(&world, "10.77.0.3", 8080), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn a_taken_port_is_refused_with_its_owner() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let config = node.config();
    let (_pod, _) = add_server(&node, "c", "pod", &with_ports(&config, &["tcp/8080:80", "udp/192.0.2.1:53:53"]));
    for ports in
        [&["tcp/8080:80"][..], &["tcp/9090:80", "tcp/8080:81"], &["tcp/192.0.2.1:8080:80"], &["tcp/::1:8080:80"]]
    {
        refused(&node, &with_ports(&config, ports), &["is taken by c@eth0 ns/pod-c", "tcp/", "8080"]);
    }
    refused(&node, &with_ports(&config, &["udp/53:53"]), &["udp/53 is taken by c@eth0 ns/pod-c"]);
    // Other protocols, other addresses and the other family are free.
    let free = ["udp/8080:80", "tcp/53:53", "udp/192.0.2.7:53:53", "udp/:::53:53"];
    let pod = Netns::new().unwrap();
    node.add("d", &pod, &with_ports(&config, &free));
    node.call("DEL", "d", None, &config).silent();
    node.call("DEL", "c", None, &config).silent();
    assert_eq!(elements(&node), Vec::<String>::new());
    node.add("d", &pod, &with_ports(&config, &["tcp/192.0.2.1:8080:80"]));
    refused(&node, &with_ports(&config, &["tcp/8080:80"]), &["tcp/8080 is taken by d@eth0 ns/pod-d"]);
}

#[test]
fn what_comes_back_are_the_ports_that_nobody_else_got() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let config = node.config();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap(), Netns::new().unwrap()];
    node.add("old", &pods[0], &with_ports(&config, &["tcp/0.0.0.0:8080:80", "tcp/0.0.0.0:9090:80"]));
    for port in ["8080", "9090"] {
        nft(&node.host, &["delete", "element", "inet", "keelson", "ports4", &format!("{{ tcp . {port} }}")]);
    }
    node.add("new", &pods[1], &with_ports(&config, &["tcp/192.0.2.1:8080:80"]));
    // The rules alone: the next ADD brings back what belongs to them.
    nft(&node.host, &["flush", "table", "inet", "keelson"]);
    node.add("late", &pods[2], &config);
    let [one, other] = &elements(&node)[..] else { panic!("{:?}", elements(&node)) };
    assert!(one.contains("tcp . 9090") && one.contains("old@eth0"), "{one}");
    assert!(other.contains("192.0.2.1 . tcp . 8080") && other.contains("new@eth0"), "{other}");
}

#[test]
fn an_unreadable_record_leaves_no_port() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    let mut config = with_ports(&node.config(), &["tcp/8080:80", "udp/10.77.0.1:53:53"]);
    config["macspoofchk"] = json!(true);
    node.add("torn", &pods[0], &config);
    let other = with_ports(&config, &["tcp/8081:80"]);
    node.add("other", &pods[1], &other);
    fs::write(node.boot_dir().join("attachments/torn@eth0"), "{").unwrap();
    node.call("DEL", "torn", Some(pods[0].path()), &config).silent();
    let left = elements(&node).join(" ");
    assert!(!left.contains("torn") && left.contains("other@eth0"), "{left}");
    let checked = nft(&node.host, &["list", "set", "bridge", "keelson", "checked"]);
    assert_eq!(checked.matches('"').count(), 2, "the other's alone: {checked}");
}

#[test]
fn hundreds_of_ports_and_routes_fit() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let texts: Vec<String> = (20_000..20_700).map(|port| format!("tcp/{port}:{port}")).collect();
    let mut config = with_ports(&node.config(), &texts.iter().map(String::as_str).collect::<Vec<_>>());
    let routes: Vec<Value> =
        (0..700).map(|number| json!({"dst": format!("10.{}.{}.0/24", 100 + number / 256, number % 256)})).collect();
    config["ipam"]["routes"] = json!(routes);
    // Somebody's file is no network whose rules were to be restored.
    fs::create_dir_all(node.data_dir()).unwrap();
    fs::write(node.data_dir().join("README"), "").unwrap();
    node.add("c", &pod, &config);
    assert_eq!(nft(&node.host, &["list", "map", "inet", "keelson", "ports4"]).matches("c@eth0").count(), 700);
    assert_eq!(ip(&pod, &["route"]).matches("/24 via").count(), 700);
    // All are taken, and it is said of one.
    refused(&node, &config, &["ns/pod-c"]);
    node.call("DEL", "c", Some(pod.path()), &config).silent();
    assert_eq!(elements(&node), Vec::<String>::new());
}

#[test]
fn a_port_that_the_host_listens_on_is_refused() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let config = node.config();
    let own = format!("is taken by the process {} (", std::process::id());
    let listener = node.host.run(|| TcpListener::bind("127.0.0.1:8080").unwrap());
    refused(&node, &with_ports(&config, &["tcp/8080:80"]), &["tcp/8080", &own]);
    let socket = node.host.run(|| UdpSocket::bind("[::]:8080").unwrap());
    refused(&node, &with_ports(&config, &["udp/0.0.0.0:8080:80"]), &["udp/0.0.0.0:8080", &own]);
    drop((listener, socket));
    // An outgoing connection that happens to have the number is no listener.
    let listener = node.host.run(|| TcpListener::bind("127.0.0.1:9090").unwrap());
    let stream = node.host.run(|| TcpStream::connect("127.0.0.1:9090").unwrap());
    let port = stream.local_addr().unwrap().port();
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &with_ports(&config, &[&format!("tcp/{port}:80")]));
    drop(listener);
}

#[test]
fn a_port_whose_pod_is_gone_can_be_taken_over() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let world = world(&node);
    let config = with_ports(&node.config(), &["tcp/8080:80", "tcp/192.0.2.1:8081:80"]);
    let (pod, _) = add_server(&node, "old", "old", &config);
    // With its namespace goes the link; the runtime hasn't called DEL yet.
    ip(&pod, &["link", "del", "eth0"]);
    let config = with_ports(&node.config(), &["tcp/8080:80", "tcp/8081:80"]);
    let (_new, _) = add_server(&node, "new", "new", &config);
    assert_eq!(ask_tcp(&world, "192.0.2.1", 8080).as_deref(), Ok("new 192.0.2.2"));
    assert_eq!(ask_tcp(&world, "192.0.2.1", 8081).as_deref(), Ok("new 192.0.2.2"));
    let before = elements(&node);
    node.call("DEL", "old", None, &node.config()).silent();
    assert_eq!(elements(&node), before, "the late DEL took the new Pod's ports");
    assert_eq!(ask_tcp(&world, "192.0.2.1", 8080).as_deref(), Ok("new 192.0.2.2"));
}

#[test]
fn a_udp_client_that_never_stops_reaches_the_next_pod() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let world = world(&node);
    let config = with_ports(&node.config(), &["udp/8053:53"]);
    // Each with a port of its own, kept for as long as the test asks: the kernel must see one connection.
    for (address, own_port) in [("192.0.2.1", 4004), ("2001:db8::1", 4006)] {
        let any = if parse(address).is_ipv4() { "0.0.0.0" } else { "::" };
        let client = world.run(|| UdpSocket::bind((parse(any), own_port)).unwrap());
        client.connect((parse(address), 8053)).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let ask = || {
            // Errors tell that nobody was there when the last packet came.
            let _ = client.send(b"?");
            let mut buffer = [0; 64];
            client.recv(&mut buffer).map(|length| String::from_utf8(buffer[..length].to_vec()).unwrap())
        };
        assert!(ask().is_err());
        for name in ["one", "two", "three"] {
            let pod = Netns::new().unwrap();
            let result = node.add(name, &pod, &config);
            for own in addresses(&result) {
                serve_udp(&pod, &own.to_string(), 53, name);
            }
            // Answers of the last Pod may still be in the queue.
            assert!((0..250).any(|_| ask().is_ok_and(|answer| answer.starts_with(name))), "{name} never heard of it");
            node.call("DEL", name, Some(pod.path()), &node.config()).silent();
            // While nobody has the port, the connection becomes one to the node itself.
            let _ = ask();
        }
    }
}

#[test]
fn del_needs_nothing_but_the_id() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let config = with_ports(&node.config(), &["tcp/8080:80", "udp/8080:80", "tcp/192.0.2.1:9090:80"]);
    let pod = Netns::new().unwrap();
    let mut gc = node.config();
    gc["cni.dev/valid-attachments"] = json!([]);
    for end in ["DEL", "GC"] {
        node.add("c", &pod, &config);
        assert_eq!(elements(&node).len(), 5, "{:?}", elements(&node));
        if end == "DEL" {
            node.call("DEL", "c", None, &node.config()).silent();
            node.call("DEL", "c", None, &node.config()).silent();
        } else {
            node.call("GC", "", None, &gc).silent();
        }
        assert_eq!(elements(&node), Vec::<String>::new(), "{end}");
    }
}

#[test]
fn loopback_addresses_are_reached_from_the_node_only() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    let node = Node::new();
    let config = with_ports(&node.config(), &["tcp/8080:80"]);
    let (pod, _) = add_server(&node, "c", "pod", &config);
    let listener = node.host.run(|| TcpListener::bind("127.0.0.1:9090").unwrap());
    // A Pod that may configure its network asks for the node's own loopback address.
    pod.run(|| fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap());
    ip(&pod, &["route", "add", "127.0.0.0/8", "via", "10.77.0.1", "src", "10.77.0.2"]);
    let ask = |limit| pod.run(|| TcpStream::connect_timeout(&"127.0.0.1:9090".parse().unwrap(), limit)).is_ok();
    assert!(!ask(Duration::from_millis(300)));
    // Without the rule it would get there.
    nft(&node.host, &["flush", "chain", "inet", "keelson", "guard"]);
    assert!(ask(LIMIT));
    let other = Netns::new().unwrap();
    node.add("d", &other, &node.config());
    assert!(!ask(Duration::from_millis(300)));
    drop(listener);
}

#[test]
fn sctp_has_host_ports() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(fs::read_to_string("/proc/net/protocols").unwrap().contains("SCTP "), "needs a kernel with SCTP");
    let node = Node::new();
    let world = world(&node);
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &with_ports(&node.config(), &["sctp/8080:80"]));
    // socket(2): SOCK_STREAM of IPPROTO_SCTP has TCP's calls, so the standard library's types fit.
    let sctp = |namespace: &Netns| -> TcpListener {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
        let socket = namespace
            .run(|| socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp).unwrap());
        socket.into()
    };
    let (server, client) = (sctp(&pod), sctp(&world));
    use nix::sys::socket::{Backlog, SockaddrIn, bind, connect, listen};
    use std::os::fd::AsRawFd;
    bind(server.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 80)).unwrap();
    listen(&server, Backlog::new(1).unwrap()).unwrap();
    let calling =
        thread::spawn(move || connect(client.as_raw_fd(), &SockaddrIn::new(192, 0, 2, 1, 8080)).map(|()| client));
    let (_, peer) = server.accept().unwrap();
    assert_eq!(peer.ip(), parse("192.0.2.2"));
    calling.join().unwrap().unwrap();
}
