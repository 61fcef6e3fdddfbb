//! Ours and the reference's plugins in one chain, driven by libcni's cnitool.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    thread,
};

use common::{Answer, Node, ip, traffic::world};
use keelson_testkit::{Netns, Tool, go_version, is_root, missing, skip_unless};
use serde_json::{Value, json};

/// A node with a chain of plugins.
struct Chain {
    node: Node,
}

impl Chain {
    fn new(version: &str, plugins: &Value) -> Self {
        let node = Node::new();
        let directory = node.directory.path();
        for name in ["conf", "bin", "cache"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        for entry in fs::read_dir(Tool::CniPlugins.ensure().unwrap()).unwrap() {
            let entry = entry.unwrap();
            symlink(entry.path(), directory.join("bin").join(entry.file_name())).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_keelson-cni"), directory.join("bin/keelson-cni")).unwrap();
        // In a directory of its own it is called `portmap`; libcni looks there first.
        fs::create_dir(directory.join("ours")).unwrap();
        symlink(env!("CARGO_BIN_EXE_keelson-cni"), directory.join("ours/portmap")).unwrap();
        let list = json!({"cniVersion": version, "name": "test", "plugins": plugins});
        fs::write(directory.join("conf/10-test.conflist"), list.to_string()).unwrap();
        Self { node }
    }

    /// Runs cnitool on the node, with ours before the reference's plugins where `first`. libcni's cache is always in
    /// /var/lib/cni: a mount namespace with another /var/lib keeps it out of the machine's.
    fn cnitool(&self, verb: &str, pod: &Netns, first: &str) -> Answer {
        let directory = self.node.directory.path();
        let tool = Tool::Cnitool.ensure().unwrap().join("cnitool");
        let mut command: Command = self.node.host.command("unshare");
        let path = format!("{}:{}", directory.join(first).display(), directory.join("bin").display());
        let arguments = json!({
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000},
        });
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .args([r#"mount --bind "$1" /var/lib && shift && exec "$@""#, "sh"])
            .arg(directory.join("cache"))
            .arg(tool)
            .args([verb, "test"])
            .arg(pod.path())
            .env("CNI_PATH", path)
            .env("NETCONFPATH", directory.join("conf"))
            .env("CAP_ARGS", arguments.to_string());
        command.output().unwrap().into()
    }

    /// Attaches a Pod, reaches its port by the node's from outside, and detaches it: nothing may be left.
    #[track_caller]
    fn works(&self, version: &str, first: &str) {
        let world = world(&self.node);
        let pod = Netns::new().unwrap();
        let added = self.cnitool("add", &pod, first);
        assert_eq!(added.status, 0, "{added:?}");
        self.reaches(&world, &pod);
        let qdiscs = self.qdiscs();
        assert!(qdiscs.contains("tbf") && qdiscs.contains("ingress"), "{qdiscs}");
        if version >= "0.4.0" {
            self.cnitool("check", &pod, first).silent();
        }
        self.cnitool("del", &pod, first).silent();
        self.cnitool("del", &pod, first).silent();
        assert!(!ip(&pod, &["link"]).contains("eth0"));
        assert!(!self.qdiscs().contains("tbf"));
        let links: Vec<String> = self.node.traces().into_iter().filter(|trace| trace.starts_with("link")).collect();
        assert_eq!(links, ["link \"up0\"", "link \"kt0\""]);
        assert_eq!(self.node.records(), Vec::<String>::new());
        let rules = self.node.host.command("nft").args(["list", "ruleset"]).output().unwrap();
        assert!(!String::from_utf8(rules.stdout).unwrap().contains("8080"));
    }

    fn reaches(&self, client: &Netns, pod: &Netns) {
        let listener = pod.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let server = thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
        let target: SocketAddr = "192.0.2.1:8080".parse().unwrap();
        let mut text = String::new();
        client.run(|| TcpStream::connect(target).unwrap()).read_to_string(&mut text).unwrap();
        server.join().unwrap();
        assert_eq!(text, "hello");
    }

    fn qdiscs(&self) -> String {
        let output = self.node.host.command("tc").args(["qdisc"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn ours(node: &Path) -> Value {
    json!({
        "type": "keelson-cni",
        "bridge": "kt0",
        "isDefaultGateway": true,
        "ipMasq": true,
        "dataDir": node,
        "ipam": {"ranges": [[{"subnet": "10.77.0.0/24"}]]},
    })
}

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn the_references_plugins_follow_ours() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build cnitool and the reference plugins");
    skip_unless!(missing(&["nft", "tc"]).is_empty(), "needs nft and tc");
    for version in VERSIONS {
        let state = tempfile::tempdir().unwrap();
        let plugins = json!([
            ours(state.path()),
            {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}, "dataDir": state.path().join("tuning")},
        ]);
        Chain::new(version, &plugins).works(version, "bin");
    }
}

#[test]
fn ours_as_portmap_stands_between_the_references_plugins() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build cnitool and the reference plugins");
    skip_unless!(missing(&["nft", "tc"]).is_empty(), "needs nft and tc");
    for version in VERSIONS {
        let state = tempfile::tempdir().unwrap();
        let plugins = json!([
            {
                "type": "bridge", "bridge": "kt0", "isDefaultGateway": true,
                "ipam": {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": state.path().join("host-local")},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "dataDir": state.path().join("ports")},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ]);
        let chain = Chain::new(version, &plugins);
        chain.works(version, "ours");
    }
}

#[test]
fn ours_does_it_all_alone() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build cnitool");
    skip_unless!(missing(&["nft", "tc"]).is_empty(), "needs nft and tc");
    for version in VERSIONS {
        let state = tempfile::tempdir().unwrap();
        let mut plugin = ours(state.path());
        plugin["capabilities"] = json!({"portMappings": true, "bandwidth": true});
        Chain::new(version, &json!([plugin])).works(version, "bin");
    }
}
