//! A node moves from the reference bridge and host-local to this plugin and back, while its Pods run.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use common::{Answer, Node, addresses, call_environment, feed, ip};
use keelson_cni::migration::{Migration, MigrationOutcome, MigrationReport, export_host_local, import_host_local};
use keelson_testkit::{Netns, Tool, is_root, skip_unless, wait_until};
use serde_json::{Value, json};

use MigrationOutcome::{AlreadyThere, Migrated, Removed, Skipped};

struct Both {
    node: Node,
}

impl Both {
    fn new() -> Self {
        let both = Self { node: Node::new() };
        fs::create_dir_all(both.results()).unwrap();
        both
    }

    fn results(&self) -> PathBuf {
        self.node.directory.path().join("results")
    }

    fn reservations(&self) -> PathBuf {
        self.node.directory.path().join("networks")
    }

    /// The network as this plugin gets it.
    fn own(&self) -> Value {
        let mut config = self.node.config();
        config["ipMasq"] = json!(false);
        config["hairpinMode"] = json!(false);
        config
    }

    /// The same network as the reference gets it.
    fn other(&self) -> Value {
        let mut config = self.own();
        config["type"] = json!("bridge");
        config["ipam"]["type"] = json!("host-local");
        config["ipam"]["dataDir"] = json!(self.reservations());
        config
    }

    fn reference(&self, verb: &str, id: &str, pod: &Netns) -> Answer {
        let tools = Tool::CniPlugins.ensure().unwrap();
        let mut command = self.node.host.command(tools.join("bridge"));
        call_environment(&mut command, verb, id, Some(pod.path()));
        command.env("CNI_PATH", &tools);
        feed(command, self.other().to_string().as_bytes())
    }

    /// The reference's ADD, with what libcni remembers of it.
    fn reference_add(&self, id: &str, pod: &Netns) -> Value {
        let added = self.reference("ADD", id, pod);
        assert_eq!(added.status, 0, "{added:?}");
        let cached = json!({
            "kind": "cniCacheV1", "containerId": id, "ifName": "eth0", "networkName": "test", "netns": pod.path(),
            "cniArgs": [["K8S_POD_NAMESPACE", "ns"], ["K8S_POD_NAME", format!("pod-{id}")]],
            "result": added.json(),
        });
        fs::write(self.results().join(format!("test-{id}-eth0")), cached.to_string()).unwrap();
        added.json()
    }

    fn migration(&self) -> Migration {
        Migration {
            reservations: self.reservations(),
            results: self.results(),
            ..Migration::new(self.own().to_string().into_bytes())
        }
    }

    fn import(&self, dry_run: bool) -> MigrationReport {
        let migration = Migration { dry_run, ..self.migration() };
        self.node.host.run(|| import_host_local(&migration)).unwrap()
    }

    fn export(&self, dry_run: bool, replace: bool) -> MigrationReport {
        let migration = Migration { dry_run, replace, ..self.migration() };
        self.node.host.run(|| export_host_local(&migration)).unwrap()
    }

    fn reserved(&self) -> BTreeMap<String, String> {
        let Ok(entries) = fs::read_dir(self.reservations().join("test")) else { return BTreeMap::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip."));
        names
            .map(|name| (name.clone(), fs::read_to_string(self.reservations().join("test").join(&name)).unwrap()))
            .collect()
    }
}

fn outcomes(report: &MigrationReport) -> BTreeMap<String, (MigrationOutcome, String)> {
    let entry = |entry: &keelson_cni::migration::MigrationEntry| {
        let name =
            if entry.container_id.is_empty() { entry.addresses[0].to_string() } else { entry.container_id.clone() };
        (name, (entry.outcome, entry.detail.clone()))
    };
    report.entries.iter().map(entry).collect()
}

#[test]
fn pods_of_the_reference_become_ours_without_being_touched() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(Tool::CniPlugins.is_available(), "needs the reference plugins, or Go to build them");
    let both = Both::new();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap(), Netns::new().unwrap()];
    let first = both.reference_add("p0", &pods[0]);
    both.reference_add("p1", &pods[1]);
    let directory = both.reservations().join("test");
    for (name, content) in
        [("10.77.0.9", "old"), ("10.77.0.10", ""), ("10.77.0.11", "a b c"), ("192.0.2.7", "far\r\neth0")]
    {
        fs::write(directory.join(name), content).unwrap();
    }
    // The kernel tells a little later that the bridge and its two ports are up.
    let links = || ip(&both.node.host, &["link"]);
    wait_until("the links to be up", Duration::from_secs(60), || {
        (links().matches("state UP").count() == 3).then_some(())
    });
    let before = (both.reserved(), links());

    let dry = both.import(true);
    assert!(dry.dry_run && both.node.records().is_empty());
    let done = both.import(false);
    assert_eq!(dry.entries, done.entries);
    assert!(!done.is_complete());
    let found = outcomes(&done);
    assert_eq!(found["p0"], (Migrated, String::new()));
    assert_eq!(found["p1"], (Migrated, String::new()));
    assert_eq!(found["old"].0, Migrated);
    assert!(found["old"].1.contains("no link of it was found"), "{found:?}");
    assert_eq!((found["10.77.0.10"].0, found["10.77.0.11"].0, found["far"].0), (Skipped, Skipped, Skipped));
    let pod = done.entries.iter().find(|entry| entry.container_id == "p0").unwrap();
    assert_eq!((pod.pod.as_str(), pod.ifname.as_str()), ("ns/pod-p0", "eth0"));
    assert_eq!(pod.addresses, ["10.77.0.2".parse::<std::net::IpAddr>().unwrap(), "fd77::2".parse().unwrap()]);
    // Again, and nothing has been changed on the reference's side.
    let again = outcomes(&both.import(false));
    assert_eq!((again["p0"].0, again["old"].0), (AlreadyThere, AlreadyThere));
    assert_eq!((both.reserved(), links()), before);
    assert_eq!(both.node.records(), ["old@eth0", "p0@eth0", "p1@eth0"]);

    let own = both.own();
    let given = addresses(&both.node.add("p2", &pods[2], &own));
    assert_eq!(given, ["10.77.0.4".parse::<std::net::IpAddr>().unwrap(), "fd77::4".parse().unwrap()]);
    let mut check = own.clone();
    check["prevResult"] = first.clone();
    both.node.call("CHECK", "p0", Some(pods[0].path()), &check).silent();
    let host_end = first["interfaces"][1]["name"].as_str().unwrap();
    both.node.call("DEL", "p0", Some(pods[0].path()), &own).silent();
    assert!(!ip(&both.node.host, &["link"]).contains(host_end));
    assert!(!ip(&pods[0], &["link"]).contains("eth0"));
    assert_eq!(both.node.records(), ["old@eth0", "p1@eth0", "p2@eth0"]);
    // Without its namespace, as after a crash of the runtime.
    both.node.call("DEL", "p1", None, &own).silent();
    assert!(!ip(&pods[1], &["link"]).contains("eth0"));
    both.node.call("DEL", "old", None, &own).silent();
    assert_eq!(both.node.records(), ["p2@eth0"]);
}

#[test]
fn a_pod_without_a_remembered_result_keeps_its_addresses() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(Tool::CniPlugins.is_available(), "needs the reference plugins, or Go to build them");
    let both = Both::new();
    let (pod, other) = (Netns::new().unwrap(), Netns::new().unwrap());
    both.reference_add("p0", &pod);
    fs::write(both.results().join("test-p0-eth0"), "").unwrap();
    let found = outcomes(&both.import(false));
    assert!(found["p0"].0 == Migrated && found["p0"].1.contains("is no JSON object"), "{found:?}");
    let own = both.own();
    assert_eq!(addresses(&both.node.add("p1", &other, &own))[0].to_string(), "10.77.0.3");
    both.node.call("DEL", "p0", None, &own).silent();
    assert_eq!(both.node.records(), ["p1@eth0"]);
}

#[test]
fn our_pods_become_the_references_without_being_touched() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(Tool::CniPlugins.is_available(), "needs the reference plugins, or Go to build them");
    let both = Both::new();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap(), Netns::new().unwrap(), Netns::new().unwrap()];
    // One of the reference's that was imported and then removed: its file is still there.
    both.reference_add("p0", &pods[0]);
    both.import(false);
    let own = both.own();
    both.node.call("DEL", "p0", Some(pods[0].path()), &own).silent();
    both.node.add("p1", &pods[1], &own);
    both.node.add("p2", &pods[2], &own);
    let before = both.reserved();

    let dry = both.export(true, false);
    assert_eq!(both.reserved(), before);
    let done = both.export(false, false);
    assert_eq!(dry.entries, done.entries);
    let found = outcomes(&done);
    assert_eq!((found["p1"].0, found["p2"].0, found["10.77.0.2"].0), (Migrated, Migrated, Skipped));
    assert_eq!(both.reserved()["10.77.0.3"], "p1\r\neth0");
    assert_eq!(both.reserved()["fd77::4"], "p2\r\neth0");
    assert_eq!(fs::read_to_string(both.reservations().join("test/last_reserved_ip.0")).unwrap(), "10.77.0.4");
    assert_eq!(outcomes(&both.export(false, false))["p1"].0, AlreadyThere);
    // What differs is replaced only when asked for.
    fs::remove_file(both.reservations().join("test/10.77.0.3")).unwrap();
    fs::write(both.reservations().join("test/10.77.0.3"), "p0\r\neth0").unwrap();
    let differs = outcomes(&both.export(false, false));
    assert_eq!(differs["p1"], (Skipped, "10.77.0.3 is held by eth0 of container p0".to_owned()));
    let replaced = both.export(false, true);
    assert!(replaced.is_complete());
    assert_eq!((outcomes(&replaced)["p1"].0, outcomes(&replaced)["10.77.0.2"].0), (Migrated, Removed));
    let all: Vec<String> = both.reserved().into_keys().collect();
    assert_eq!(all, ["10.77.0.3", "10.77.0.4", "fd77::3", "fd77::4"]);

    let added = both.reference("ADD", "p3", &pods[3]);
    assert_eq!(addresses(&added.json())[0].to_string(), "10.77.0.5");
    let removed = both.reference("DEL", "p1", &pods[1]);
    assert_eq!(removed.status, 0, "{removed:?}");
    assert!(!ip(&pods[1], &["link"]).contains("eth0"));
    assert!(!both.reserved().contains_key("10.77.0.3"));
}
