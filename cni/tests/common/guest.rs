//! A whole machine of its own: a guest of the VM tier, whose network the tests may fill and whose power may go.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use keelson_testkit::{Netns, VM_DISK};
use serde_json::{Value, json};

use super::{Answer, addresses, call_environment, feed};

/// How many addresses a network of [`Guest::network`] has to give.
pub(crate) const ADDRESSES: usize = 13;

/// A network of a guest, with Pods in the machine's own namespace.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) config: Value,
    directory: PathBuf,
    first_port: usize,
}

/// The disk that survives, if this is a guest.
pub(crate) fn disk() -> Option<PathBuf> {
    env::var_os(VM_DISK).map(PathBuf::from)
}

/// This boot's id.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim_end().to_owned()
}

impl Network {
    /// The network `name` with its records below `directory`, a bridge of its own and [`ADDRESSES`] addresses below
    /// 10.`octet`.
    pub(crate) fn new(name: &str, directory: &Path, octet: u8) -> Self {
        let data_dir = directory.join("network");
        let config = json!({
            "cniVersion": "1.1.0",
            "name": name,
            "type": "keelson-cni",
            "bridge": format!("kt{octet}"),
            "isDefaultGateway": true,
            "ipMasq": true,
            "capabilities": {"portMappings": true},
            "ipam": {
                "type": "keelson-cni",
                "ranges": [[{"subnet": format!("10.{octet}.0.0/28")}]],
                "dataDir": data_dir,
            },
        });
        Self { config, directory: data_dir.join(name), first_port: 20_000 + 100 * usize::from(octet) }
    }

    pub(crate) fn call(&self, verb: &str, id: &str, netns: Option<&Path>) -> Answer {
        self.call_with(verb, id, netns, &self.config)
    }

    pub(crate) fn call_with(&self, verb: &str, id: &str, netns: Option<&Path>, config: &Value) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-cni"));
        call_environment(&mut command, verb, id, netns);
        feed(command, config.to_string().as_bytes())
    }

    /// Attaches Pods, each with a port of the host; gives each one's address.
    #[track_caller]
    pub(crate) fn fill(&self, prefix: &str, pods: &[Netns]) -> BTreeMap<String, IpAddr> {
        let mut given = BTreeMap::new();
        for (number, pod) in pods.iter().enumerate() {
            let id = format!("{prefix}{number}");
            let mut config = self.config.clone();
            let mapping = json!({"hostPort": self.first_port + number, "containerPort": 80, "protocol": "tcp"});
            config["runtimeConfig"] = json!({"portMappings": [mapping]});
            let answer = self.call_with("ADD", &id, Some(pod.path()), &config);
            assert_eq!(answer.status, 0, "{id}: {answer:?}");
            let mut check = config;
            check["prevResult"] = answer.json();
            self.call_with("CHECK", &id, Some(pod.path()), &check).silent();
            given.insert(id, addresses(&answer.json())[0]);
        }
        assert_eq!(given.values().collect::<BTreeSet<_>>().len(), pods.len(), "given twice: {given:?}");
        given
    }

    /// The records of a boot.
    pub(crate) fn records(&self, boot: &str) -> Vec<String> {
        names(&self.directory.join(boot).join("attachments"))
    }

    /// The boots that have left something, without this one.
    pub(crate) fn old_boots(&self) -> Vec<String> {
        let mut boots = names(&self.directory);
        boots.retain(|name| self.directory.join(name).is_dir() && *name != boot_id());
        boots
    }

    /// As a node is after a boot, whatever was going on before: nothing of the old boot counts, all addresses and ports
    /// can be given, and what is given can be taken back.
    pub(crate) fn works_after_a_boot(&self) {
        self.call("STATUS", "", None).silent();
        let pods: Vec<Netns> = (0..ADDRESSES).map(|_| Netns::new().unwrap()).collect();
        self.fill("new", &pods);
        assert_eq!(self.old_boots(), Vec::<String>::new(), "void records are still there");
        assert_eq!(self.records(&boot_id()).len(), ADDRESSES);
        for (number, pod) in pods.iter().enumerate() {
            self.call("DEL", &format!("new{number}"), Some(pod.path())).silent();
        }
        assert_eq!(self.records(&boot_id()), Vec::<String>::new());
        let addresses = self.directory.join(boot_id()).join("addresses");
        let mut taken = names(&addresses);
        // Others lead to the queue of released ones.
        taken.retain(|name| fs::read_link(addresses.join(name)).unwrap().starts_with("../attachments"));
        assert_eq!(taken, Vec::<String>::new());
        let bridge = self.config["bridge"].as_str().unwrap();
        let ports = names(&Path::new("/sys/class/net").join(bridge).join("brif"));
        assert_eq!(ports, Vec::<String>::new());
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
