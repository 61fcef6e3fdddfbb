//! What the reference's scenarios are played with: a network in a version of the spec, by the plugin's own name with its
//! own IPAM, or called as `bridge` with `host-local` beside it.

use std::{fs, net::IpAddr, os::unix::fs::symlink, process::Command};

use keelson_testkit::Netns;
use serde_json::{Value, json};

use super::{Answer, Node, call_environment, feed, ip};

/// Every version of the spec.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A subnet with its gateway's address and its first container's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subnet {
    pub(crate) subnet: &'static str,
    pub(crate) gateway: &'static str,
    pub(crate) first: &'static str,
}

const fn subnet(subnet: &'static str, gateway: &'static str, first: &'static str) -> Subnet {
    Subnet { subnet, gateway, first }
}

pub(crate) const IPV4: [Subnet; 1] = [subnet("10.1.2.0/24", "10.1.2.1", "10.1.2.2/24")];
pub(crate) const IPV6: [Subnet; 1] = [subnet("2001:db8::/64", "2001:db8::1", "2001:db8::2/64")];
pub(crate) const DUAL_STACK: [Subnet; 2] =
    [subnet("192.168.0.0/24", "192.168.0.1", "192.168.0.2/24"), subnet("fd00::/64", "fd00::1", "fd00::2/64")];
/// More than one of a family, which results of 0.1.0 and 0.2.0 have no place for.
pub(crate) const SEVERAL: [Subnet; 3] = [DUAL_STACK[0], DUAL_STACK[1], IPV6[0]];

/// A node with a container `c`, for one scenario.
pub(crate) struct Play {
    pub(crate) node: Node,
    pub(crate) pod: Netns,
    pub(crate) version: &'static str,
    as_bridge: bool,
}

/// A play for each version and each name.
pub(crate) fn plays() -> impl Iterator<Item = Play> {
    VERSIONS
        .into_iter()
        .flat_map(|version| [false, true].into_iter().map(move |as_bridge| Play::new(version, as_bridge)))
}

impl Play {
    fn new(version: &'static str, as_bridge: bool) -> Self {
        let node = Node::new();
        let programs = node.directory.path().join("bin");
        fs::create_dir(&programs).unwrap();
        for name in ["bridge", "host-local"] {
            symlink(env!("CARGO_BIN_EXE_keelson-cni"), programs.join(name)).unwrap();
        }
        Self { node, pod: Netns::new().unwrap(), version, as_bridge }
    }

    /// A network of `subnets`; of layer 2 without one.
    pub(crate) fn config(&self, subnets: &[Subnet]) -> Value {
        let (kind, ipam, data_dir) = if self.as_bridge {
            ("bridge", "host-local", self.node.directory.path().join("networks"))
        } else {
            ("keelson-cni", "keelson-cni", self.node.data_dir())
        };
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet.subnet}])).collect();
        let ipam =
            if ranges.is_empty() { json!({}) } else { json!({"type": ipam, "ranges": ranges, "dataDir": data_dir}) };
        json!({
            "cniVersion": self.version,
            "name": "test",
            "type": kind,
            "bridge": "kt0",
            "isDefaultGateway": !subnets.is_empty(),
            "dataDir": self.node.data_dir(),
            "ipam": ipam,
        })
    }

    pub(crate) fn command(&self, verb: &str) -> Command {
        let programs = self.node.directory.path().join("bin");
        let program = if self.as_bridge { programs.join("bridge") } else { env!("CARGO_BIN_EXE_keelson-cni").into() };
        let mut command = self.node.host.command(program);
        call_environment(&mut command, verb, "c", Some(self.pod.path()));
        command.env("CNI_PATH", programs);
        command
    }

    pub(crate) fn call(&self, verb: &str, config: &Value) -> Answer {
        feed(self.command(verb), config.to_string().as_bytes())
    }

    /// Attaches the container; the answer is a result of the asked version.
    #[track_caller]
    pub(crate) fn add(&self, config: &Value) -> Value {
        let answer = self.call("ADD", config);
        assert_eq!(answer.status, 0, "{config}: {answer:?}");
        let result = answer.json();
        assert_eq!(result["cniVersion"], self.version);
        assert_eq!(result.get("interfaces").is_some(), !self.has_old_results(), "{result}");
        result
    }

    /// ADD that must be refused with code 7 and `words`, and leave nothing.
    #[track_caller]
    pub(crate) fn refused(&self, config: &Value, words: &str) {
        let answer = self.call("ADD", config);
        assert_eq!(answer.code(), 7, "{config}: {answer:?}");
        assert!(answer.json()["msg"].as_str().unwrap().contains(words), "{words}: {answer:?}");
        self.left();
    }

    /// CHECK where the version has it.
    #[track_caller]
    pub(crate) fn check(&self, config: &Value, result: &Value) {
        if self.has_check() {
            let mut config = config.clone();
            config["prevResult"] = result.clone();
            self.call("CHECK", &config).silent();
        }
    }

    /// DEL, twice, after which nothing is left of the container.
    #[track_caller]
    pub(crate) fn del(&self, config: &Value) {
        self.call("DEL", config).silent();
        self.call("DEL", config).silent();
        self.left();
    }

    /// Asserts that no link, record or address of the container is there.
    #[track_caller]
    pub(crate) fn left(&self) {
        assert!(!ip(&self.pod, &["link"]).contains("eth0"));
        assert_eq!((self.node.records(), self.node.taken()), (vec![], vec![]));
        assert_eq!(self.ports(), Vec::<Value>::new());
        let Ok(entries) = fs::read_dir(self.node.directory.path().join("networks/test")) else { return };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let reserved: Vec<String> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
        assert_eq!(reserved, Vec::<String>::new());
    }

    /// The addresses of `subnets`' first container are in the result, in the version's form.
    #[track_caller]
    pub(crate) fn gave(&self, result: &Value, subnets: &[Subnet]) {
        if self.has_old_results() {
            for (key, is_ipv4) in [("ip4", true), ("ip6", false)] {
                let of_family = subnets.iter().find(|subnet| subnet.first.contains('.') == is_ipv4);
                let found = [&result[key]["ip"], &result[key]["gateway"]].map(Value::as_str);
                assert_eq!(found, [of_family.map(|subnet| subnet.first), of_family.map(|subnet| subnet.gateway)]);
            }
            return;
        }
        let expected: Vec<Value> = subnets
            .iter()
            .map(|subnet| {
                let mut ip = json!({"address": subnet.first, "gateway": subnet.gateway, "interface": 2});
                if self.version < "1.0.0" {
                    ip["version"] = json!(if subnet.first.contains('.') { "4" } else { "6" });
                }
                ip
            })
            .collect();
        assert_eq!(result["ips"], json!(expected), "{result}");
    }

    /// The bridge's ports as `ip` describes them, without the one by which gateway addresses are in VLAN 100.
    #[track_caller]
    pub(crate) fn ports(&self) -> Vec<Value> {
        let links: Value = serde_json::from_str(&ip(&self.node.host, &["-j", "-d", "link"])).unwrap();
        links
            .as_array()
            .unwrap()
            .iter()
            .filter(|link| link["master"] == "kt0" && link["link"] != "kt0.100")
            .cloned()
            .collect()
    }

    /// The bridge as `ip` describes it.
    #[track_caller]
    pub(crate) fn bridge(&self) -> Value {
        let mut links: Value =
            serde_json::from_str(&ip(&self.node.host, &["-j", "-d", "addr", "show", "kt0"])).unwrap();
        links[0].take()
    }

    /// Whether results hold one address of each family at most, and no interfaces.
    pub(crate) fn has_old_results(&self) -> bool {
        self.version < "0.3.0"
    }

    pub(crate) fn has_check(&self) -> bool {
        self.version >= "0.4.0"
    }
}
