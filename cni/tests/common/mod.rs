//! A node in miniature: a network namespace that plays the host, others that play Pods and the world outside, and the
//! real executable between them.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod traffic;

pub(crate) mod guest;

pub(crate) mod reference;

pub(crate) mod kill;

use std::{
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use keelson_testkit::Netns;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host of its own, with a store of its own.
pub(crate) struct Node {
    pub(crate) host: Netns,
    pub(crate) directory: TempDir,
}

/// What the executable answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Success with nothing on stdout, as all verbs but ADD and VERSION have it.
    #[track_caller]
    pub(crate) fn silent(&self) {
        assert!(self.status == 0 && self.stdout.is_empty(), "{self:?}");
    }

    /// The code of an error, which must be whole: on stdout, with a message, exit code 1.
    #[track_caller]
    pub(crate) fn code(&self) -> u64 {
        assert_eq!(self.status, 1, "{self:?}");
        let error = self.json();
        assert!(error["msg"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        assert!(error["cniVersion"].is_string() && error["details"].is_string(), "{self:?}");
        error["code"].as_u64().unwrap()
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Node {
    pub(crate) fn new() -> Self {
        let host = Netns::new().unwrap();
        ip(&host, &["link", "set", "lo", "up"]);
        Self { host, directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("network")
    }

    /// A dual-stack network as `install` writes it.
    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "test",
            "type": "keelson-cni",
            "bridge": "kt0",
            "isDefaultGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "keelson-cni",
                "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
                "dataDir": self.data_dir(),
            },
        })
    }

    /// The executable, ready to be called about `eth0` of container `id`.
    pub(crate) fn command(&self, verb: &str, id: &str, netns: Option<&Path>) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_keelson-cni"));
        call_environment(&mut command, verb, id, netns);
        command
    }

    pub(crate) fn call(&self, verb: &str, id: &str, netns: Option<&Path>, config: &Value) -> Answer {
        feed(self.command(verb, id, netns), config.to_string().as_bytes())
    }

    /// The names of the records.
    pub(crate) fn records(&self) -> Vec<String> {
        self.files("attachments")
    }

    /// The addresses that are entered as taken.
    pub(crate) fn taken(&self) -> Vec<String> {
        let mut addresses = self.files("addresses");
        let directory = self.boot_dir().join("addresses");
        // Others lead to the queue of released ones.
        addresses.retain(|name| std::fs::read_link(directory.join(name)).unwrap().starts_with("../attachments"));
        addresses
    }

    /// Where this boot's records are.
    pub(crate) fn boot_dir(&self) -> PathBuf {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        self.data_dir().join("test").join(boot.trim_end())
    }

    fn files(&self, directory: &str) -> Vec<String> {
        let path = self.boot_dir().join(directory);
        let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[track_caller]
    pub(crate) fn add(&self, id: &str, pod: &Netns, config: &Value) -> Value {
        let answer = self.call("ADD", id, Some(pod.path()), config);
        assert_eq!(answer.status, 0, "{answer:?}");
        answer.json()
    }

    /// Every trace in the host's namespace: links, nftables sets and the store's files.
    pub(crate) fn traces(&self) -> Vec<String> {
        let links: Value = serde_json::from_str(&ip(&self.host, &["-j", "link"])).unwrap();
        let mut traces: Vec<String> =
            links.as_array().unwrap().iter().map(|link| format!("link {}", link["ifname"])).collect();
        traces.retain(|trace| trace != "link \"lo\"");
        if self.directory.path().join("network").exists() {
            traces.push("store".to_owned());
        }
        if !self.rules().is_empty() {
            traces.push("nftables".to_owned());
        }
        traces
    }

    /// The nftables tables of the host's namespace.
    pub(crate) fn rules(&self) -> Vec<String> {
        self.host.run(tables)
    }
}

/// Names of the nftables tables of this thread's namespace.
pub(crate) fn tables() -> Vec<String> {
    use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_netfilter::{
        NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
        nftables::{NfTablesMessage, TableAttribute, TableMessage},
    };
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let message = NfTablesMessage::GetTable(TableMessage { attributes: vec![] });
    let message = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), message);
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0).unwrap();
    let mut names = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full().unwrap();
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let packet = NetlinkMessage::<NetfilterMessage>::deserialize(rest).unwrap();
            rest = &rest[(packet.header.length as usize).next_multiple_of(4).min(rest.len())..];
            match packet.payload {
                NetlinkPayload::InnerMessage(message) => {
                    let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = message.inner else {
                        panic!("{message:?}")
                    };
                    names.extend(table.attributes.into_iter().filter_map(|attribute| match attribute {
                        TableAttribute::Name(name) => Some(name),
                        _ => None,
                    }));
                }
                NetlinkPayload::Done(_) => return names,
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn call_environment(command: &mut Command, verb: &str, id: &str, netns: Option<&Path>) {
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/nonexistent")
        .env("CNI_NETNS", netns.unwrap_or_else(|| Path::new("")))
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod-{id};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=uid-{id}"),
        );
}

/// Runs `command` with `input` on its stdin.
pub(crate) fn feed(mut command: Command, input: &[u8]) -> Answer {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A call that fails by its environment alone doesn't read; its closed pipe is no failure of the test.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap().into()
}

/// Runs `ip` in a namespace and gives its output.
#[track_caller]
pub(crate) fn ip(namespace: &Netns, arguments: &[&str]) -> String {
    let output = namespace.command("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `nft` in a namespace and gives its output.
#[track_caller]
pub(crate) fn nft(namespace: &Netns, arguments: &[&str]) -> String {
    let output = namespace.command("nft").args(arguments).output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The addresses of an ADD's result.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}
