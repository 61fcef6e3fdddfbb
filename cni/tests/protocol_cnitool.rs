//! libcni's own cnitool drives the executable through an installed network.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path, process::Command};

use common::{Answer, Node, ip};
use keelson_cni::{NetworkSection, install};
use keelson_host::HostRoot;
use keelson_testkit::{Netns, Tool, go_version, is_root, skip_unless};
use serde_json::{Value, json};

/// A node with an installed network whose config asks for one spec version.
struct Installed {
    node: Node,
}

impl Installed {
    fn new(version: Option<&str>) -> Self {
        let node = Node::new();
        let directory = node.directory.path();
        let section = NetworkSection {
            name: "test".to_owned(),
            bridge: "kt0".to_owned(),
            ranges: vec!["10.77.0.0/24".to_owned(), "fd77::/64".to_owned()],
            conf_dir: directory.join("conf"),
            bin_dir: directory.join("bin"),
            ..NetworkSection::default()
        };
        let target =
            keelson_host::Node { name: "n".to_owned(), state_dir: directory.to_owned(), root: HostRoot::system() };
        let settings = section.validate(&target).unwrap();
        install(&settings, Path::new(env!("CARGO_BIN_EXE_keelson-cni"))).unwrap();
        if let Some(version) = version {
            let path = settings.conflist_path();
            let mut list: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            list["cniVersion"] = json!(version);
            list.as_object_mut().unwrap().remove("cniVersions");
            fs::write(&path, list.to_string()).unwrap();
        }
        fs::create_dir(directory.join("cache")).unwrap();
        Self { node }
    }

    /// Runs cnitool on the node. libcni's cache is always in /var/lib/cni: a mount namespace with another /var/lib
    /// keeps it out of the machine's.
    fn cnitool(&self, verb: &str, netns: &Path) -> Answer {
        let directory = self.node.directory.path();
        let tool = Tool::Cnitool.ensure().unwrap().join("cnitool");
        let mut command: Command = self.node.host.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .args([r#"mount --bind "$1" /var/lib && shift && exec "$@""#, "sh"])
            .arg(directory.join("cache"))
            .arg(tool)
            .args([verb, "test"])
            .arg(netns)
            .env("CNI_PATH", directory.join("bin"))
            .env("NETCONFPATH", directory.join("conf"))
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=app;K8S_POD_UID=u");
        command.output().unwrap().into()
    }
}

#[test]
fn cnitool_attaches_checks_and_detaches_in_every_version() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build cnitool");
    let versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"].map(Some);
    for version in versions.into_iter().chain([None]) {
        let installed = Installed::new(version);
        let pod = Netns::new().unwrap();
        installed.cnitool("status", pod.path()).silent();
        let added = installed.cnitool("add", pod.path());
        assert_eq!(added.status, 0, "{added:?}");
        let result = added.json();
        // An installed network offers 1.0.0 and 1.1.0, and libcni takes the newest it knows.
        assert_eq!(result["cniVersion"], version.unwrap_or("1.1.0"));
        let has_lists = version.is_none_or(|version| version >= "0.3.0");
        let addresses = match has_lists {
            true => [&result["ips"][0]["address"], &result["ips"][1]["address"]],
            false => [&result["ip4"]["ip"], &result["ip6"]["ip"]],
        };
        assert_eq!(addresses, ["10.77.0.2/24", "fd77::2/64"], "{result}");
        if version.is_none_or(|version| version >= "0.4.0") {
            installed.cnitool("check", pod.path()).silent();
            ip(&pod, &["route", "del", "default"]);
            let check = installed.cnitool("check", pod.path());
            assert!(check.stderr.contains("lacks the route to 0.0.0.0/0"), "{check:?}");
        }
        installed.cnitool("del", pod.path()).silent();
        installed.cnitool("del", pod.path()).silent();
        assert!(!ip(&pod, &["link"]).contains("eth0"));
        assert_eq!(installed.node.records(), Vec::<String>::new());
    }
}

#[test]
fn cnitool_collects_garbage() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build cnitool");
    let installed = Installed::new(None);
    let pod = Netns::new().unwrap();
    let added = installed.cnitool("add", pod.path());
    assert_eq!(added.status, 0, "{added:?}");
    assert_eq!(installed.node.records().len(), 1);
    installed.cnitool("gc", pod.path()).silent();
    assert_eq!(installed.node.records(), Vec::<String>::new());
    assert!(!ip(&pod, &["link"]).contains("eth0"));
}

#[test]
fn cnitool_understands_our_errors() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build cnitool");
    let installed = Installed::new(None);
    let answer = installed.cnitool("add", installed.node.host.path());
    assert_eq!(answer.status, 1);
    assert!(answer.stderr.contains("is the host's own network namespace"), "{answer:?}");
}
