//! GC that can't be talked into harm, and healing without it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
};

use common::{Node, addresses, feed, ip};
use keelson_cni::{
    GcOptions, GcReport, collect_garbage, last_calls,
    operator::{GcRequest, Places, gc},
};
use keelson_host::HostRoot;
use keelson_testkit::{Netns, is_root, skip_unless};
use serde_json::{Value, json};

/// A process in a namespace.
struct Inhabitant(Child);

impl Inhabitant {
    fn of(pod: &Netns) -> Self {
        let mut command = pod.command("cat");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // What it gives back it has read: it is in the namespace by now.
        let mut byte = [0];
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"x").unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        Self(child)
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

fn gc_config(config: &Value, valid: &Value) -> Value {
    let mut config = config.clone();
    config["cni.dev/valid-attachments"] = valid.clone();
    config
}

fn garbage(node: &Node, options: &GcOptions) -> GcReport {
    node.host.run(|| collect_garbage(&node.data_dir(), "test", options).unwrap())
}

fn ids(entries: &[keelson_cni::GcEntry]) -> Vec<&str> {
    let mut ids: Vec<&str> = entries.iter().map(|entry| entry.container_id.as_str()).collect();
    ids.sort_unstable();
    ids
}

/// Changes a record's file.
fn rewrite(node: &Node, id: &str, change: impl FnOnce(&mut Value)) {
    let path = node.boot_dir().join(format!("attachments/{id}@eth0"));
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(&path, record.to_string()).unwrap();
}

fn host_interface(result: &Value) -> String {
    result["interfaces"][1]["name"].as_str().unwrap().to_owned()
}

#[test]
fn what_lives_is_not_collected_unless_forced() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pods: Vec<Netns> = (0..4).map(|_| Netns::new().unwrap()).collect();
    for (id, pod) in ["alive", "old", "empty", "valid"].iter().zip(&pods) {
        node.add(id, pod, &config);
    }
    // As the first format had it: the namespace is found by its path.
    rewrite(&node, "old", |record| {
        record["version"] = json!(1);
        record.as_object_mut().unwrap().remove("netnsIdentity").unwrap();
    });
    let inhabitants = (Inhabitant::of(&pods[0]), Inhabitant::of(&pods[1]));
    let none = gc_config(&config, &json!([{"containerID": "valid", "ifname": "eth0"}]));

    let valid = Some(vec![("valid".to_owned(), "eth0".to_owned())]);
    let dry = GcOptions { valid: valid.clone(), dry_run: true, ..GcOptions::default() };
    for _ in 0..2 {
        let report = garbage(&node, &dry);
        assert_eq!((ids(&report.freed), ids(&report.skipped)), (vec!["empty"], vec!["alive", "old"]), "{report:?}");
    }
    let forced = garbage(&node, &GcOptions { force: true, ..dry.clone() });
    assert_eq!((ids(&forced.freed), ids(&forced.skipped)), (vec!["alive", "empty", "old"], vec![]));
    assert_eq!(node.records().len(), 4, "a dry run freed something");

    let answer = node.call("GC", "", None, &none);
    answer.silent();
    assert!(
        answer.stderr.contains("GC left ns/pod-alive alone: it is not among the valid attachments, but processes run")
    );
    assert_eq!(node.records(), ["alive@eth0", "old@eth0", "valid@eth0"]);
    for (pod, attached) in pods.iter().zip([true, true, false, true]) {
        assert_eq!(ip(pod, &["link"]).contains("eth0"), attached);
    }
    let log = last_calls(&node.data_dir(), "test", "", "", 1);
    assert_eq!((log[0].verb.as_str(), log[0].code, log[0].notes.len()), ("GC", 0, 2), "{log:?}");

    drop(inhabitants.0);
    node.call("GC", "", None, &none).silent();
    assert_eq!(node.records(), ["old@eth0", "valid@eth0"]);
    let report = garbage(&node, &GcOptions { valid, force: true, ..GcOptions::default() });
    assert_eq!((ids(&report.freed), report.skipped.len(), report.failed.len()), (vec!["old"], 0, 0));
    assert_eq!(node.records(), ["valid@eth0"]);
    drop(inhabitants.1);
}

#[test]
fn a_link_without_a_record_is_removed_only_when_its_container_has_no_processes() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let mut config = node.config();
    config["runtimeConfig"] = json!({"bandwidth": {"egressRate": 8_000_000, "egressBurst": 800_000}});
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    // The pair's end, and the link that shapes.
    let links = ["alive", "empty"].map(|id| {
        let result = node.add(id, &pods[usize::from(id == "empty")], &config);
        [1, 3].map(|index: usize| format!("link {}", result["interfaces"][index]["name"].as_str().unwrap()))
    });
    let inhabitant = Inhabitant::of(&pods[0]);
    // As if the network's dataDir had been changed while its Pods run.
    for id in ["alive", "empty"] {
        fs::remove_file(node.boot_dir().join(format!("attachments/{id}@eth0"))).unwrap();
    }
    let mut places = Places::of_node(&HostRoot::system(), None);
    places.add(node.data_dir());
    places.choose("test".to_owned());
    let collect = |request: &GcRequest| node.host.run(|| gc(&places, request).unwrap().remove(0));
    for dry_run in [true, false] {
        let collected = collect(&GcRequest { dry_run, ..GcRequest::default() });
        assert_eq!(collected.removed, links[1]);
        let skipped: Vec<&str> = collected.skipped.iter().map(|entry| entry.owner.as_str()).collect();
        assert_eq!(skipped, links[0]);
    }
    assert!(ip(&pods[0], &["link"]).contains("eth0"));
    assert!(!ip(&pods[1], &["link"]).contains("eth0"));
    drop(inhabitant);
    assert_eq!(collect(&GcRequest::default()).removed, links[0]);
}

#[test]
fn a_malformed_list_frees_nothing() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &config);
    for list in [
        json!("none"),
        json!({}),
        json!([null]),
        json!(["c"]),
        json!([{"containerID": "x", "ifname": "eth0"}, {"containerID": "y"}]),
        json!([{"containerID": 7, "ifname": "eth0"}]),
        json!([{"containerID": "x", "ifname": ""}]),
    ] {
        assert_eq!(node.call("GC", "", None, &gc_config(&config, &list)).code(), 7, "{list}");
    }
    // Neither does none at all; a list of none does.
    node.call("GC", "", None, &config).silent();
    node.call("GC", "", None, &gc_config(&config, &Value::Null)).silent();
    assert_eq!(node.records(), ["c@eth0"]);
    node.call("GC", "", None, &gc_config(&config, &json!([]))).silent();
    assert_eq!(node.records(), Vec::<String>::new());
}

#[test]
fn processes_that_cannot_be_seen_are_taken_for_alive() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &node.config());
    let options = |proc: &Path| GcOptions { valid: Some(vec![]), proc: Some(proc.to_owned()), ..GcOptions::default() };
    let report = garbage(&node, &options(Path::new("/nonexistent")));
    assert_eq!((ids(&report.skipped), report.freed.len()), (vec!["c"], 0), "{report:?}");
    assert!(report.skipped[0].reason.contains("can't be seen"), "{report:?}");
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(ids(&garbage(&node, &options(empty.path())).freed), ["c"]);
}

/// A network with two addresses for Pods.
fn tiny(node: &Node) -> Value {
    let mut config = node.config();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/29", "rangeEnd": "10.77.0.3"}]]);
    config
}

#[test]
fn an_attachment_without_a_link_gives_its_address_back_when_it_is_needed() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = tiny(&node);
    let pods: Vec<Netns> = (0..3).map(|_| Netns::new().unwrap()).collect();
    let (a, b) = (node.add("a", &pods[0], &config), node.add("b", &pods[1], &config));
    let full = node.call("ADD", "c", Some(pods[2].path()), &config);
    assert_eq!(full.code(), 11);
    assert!(full.json()["msg"].as_str().unwrap().ends_with("(2 addresses: all in use, none cooling, 0 stale)"));
    // As when the Pod's namespace goes.
    ip(&node.host, &["link", "delete", &host_interface(&a)]);
    // It may just be being made.
    let full = node.call("ADD", "c", Some(pods[2].path()), &config);
    assert_eq!(full.code(), 11);
    assert!(full.json()["msg"].as_str().unwrap().ends_with("1 stale)"), "{full:?}");
    let report = garbage(&node, &GcOptions::default());
    assert_eq!((ids(&report.skipped), report.freed.len()), (vec!["a"], 0), "{report:?}");

    for state in ["active", "pending"] {
        rewrite(&node, "a", |record| {
            record["createdAtSeconds"] = json!(record["createdAtSeconds"].as_u64().unwrap() - 60);
            record["state"] = json!(state);
        });
        let c = node.add("c", &pods[2], &config);
        assert_eq!(addresses(&c), addresses(&a), "{state}");
        assert_eq!(node.records(), ["b@eth0", "c@eth0"]);
        node.call("DEL", "c", None, &config).silent();
        assert_eq!(addresses(&node.add("a", &pods[0], &config)), addresses(&a));
        ip(&node.host, &["link", "delete", &host_interface(&a)]);
    }
    // Asked for by name, while others are free.
    node.call("DEL", "b", None, &config).silent();
    let mut wanted = config.clone();
    wanted["runtimeConfig"] = json!({"ips": [addresses(&a)[0].to_string()]});
    let taken = node.call("ADD", "d", Some(pods[1].path()), &wanted);
    assert_eq!(taken.code(), 11);
    assert!(taken.json()["msg"].as_str().unwrap().ends_with("it is in use by ns/pod-a"), "{taken:?}");
    rewrite(&node, "a", |record| record["createdAtSeconds"] = json!(1));
    assert_eq!(addresses(&node.add("d", &pods[1], &wanted)), addresses(&a));
    // And what nobody asks for, as the daemon does.
    let e = node.add("e", &pods[2], &config);
    assert_eq!(addresses(&e), addresses(&b));
    ip(&node.host, &["link", "delete", &host_interface(&e)]);
    rewrite(&node, "e", |record| record["createdAtSeconds"] = json!(1));
    let report = garbage(&node, &GcOptions::default());
    assert_eq!((ids(&report.freed), node.records()), (vec!["e"], vec!["d@eth0".to_owned()]), "{report:?}");
}

#[test]
fn a_record_of_addresses_only_waits_for_its_del() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = tiny(&node);
    let pod = Netns::new().unwrap();
    let a = node.add("a", &pod, &config);
    ip(&node.host, &["link", "delete", &host_interface(&a)]);
    rewrite(&node, "a", |record| {
        record["createdAtSeconds"] = json!(1);
        record["kind"] = json!("ipam");
        record["hostInterface"] = json!("");
    });
    assert_eq!(garbage(&node, &GcOptions::default()), GcReport::default());
    let inhabitant = Inhabitant::of(&pod);
    let all = GcOptions { valid: Some(vec![]), ..GcOptions::default() };
    assert_eq!(ids(&garbage(&node, &all).skipped), ["a"]);
    drop(inhabitant);
    assert_eq!(ids(&garbage(&node, &all).freed), ["a"]);
}

#[test]
fn an_attachment_that_a_call_works_on_is_left_to_it() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &config);
    // Every attachment's byte.
    let lock = fs::File::options().write(true).open(node.data_dir().join("test/attachments.lock")).unwrap();
    let range = nix::libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(&lock, nix::fcntl::FcntlArg::F_OFD_SETLK(&range)).unwrap();
    let answer = node.call("GC", "", None, &gc_config(&config, &json!([])));
    answer.silent();
    assert!(answer.stderr.contains("GC left ns/pod-c alone: another call is working on it"), "{answer:?}");
    assert_eq!(node.records(), ["c@eth0"]);
    drop(lock);
    node.call("GC", "", None, &gc_config(&config, &json!([]))).silent();
    assert_eq!(node.records(), Vec::<String>::new());
}

#[test]
fn each_call_is_logged_with_its_phases_and_its_error() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = node.config();
    let pod = Netns::new().unwrap();
    let mut command = node.command("ADD", "c", Some(pod.path()));
    command.env("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(feed(command, config.to_string().as_bytes()).status, 0);
    node.call("STATUS", "", None, &config).silent();
    ip(&node.host, &["link", "set", "kt0", "down"]);
    let mut check = config.clone();
    check["prevResult"] = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []});
    assert_eq!(node.call("CHECK", "c", Some(pod.path()), &check).code(), 105);
    let log = last_calls(&node.data_dir(), "test", "c", "eth0", 10);
    assert_eq!(
        log.iter().map(|call| (call.verb.as_str(), call.code)).collect::<Vec<_>>(),
        [("ADD", 0), ("CHECK", 105)]
    );
    let add = &log[0];
    assert_eq!((add.pod.as_str(), add.trace_id.as_deref()), ("ns/pod-c", Some("0af7651916cd43dd8448eb211c80319c")));
    for name in ["read stdin", "parse", "lock", "store", "enter the namespace", "look up the link kt0"] {
        assert!(add.phases.iter().any(|phase| phase.name == name), "{name}: {:?}", add.phases);
    }
    assert!(add.phases.iter().map(|phase| phase.duration_us).sum::<u64>() <= add.duration_us, "{add:?}");
    assert!(log[1].message.contains("kt0 is down"), "{:?}", log[1]);
    assert_eq!(last_calls(&node.data_dir(), "test", "", "", 10), []);
    // A log that can't be written is nobody's failure.
    fs::remove_file(node.data_dir().join("test/calls.log")).unwrap();
    fs::create_dir(node.data_dir().join("test/calls.log")).unwrap();
    node.call("DEL", "c", Some(pod.path()), &config).silent();
}

#[test]
fn a_full_range_fails_status_on_demand_only() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let config = tiny(&node);
    let mut strict = config.clone();
    strict["statusWhenFull"] = json!("error");
    let pods: Vec<Netns> = (0..2).map(|_| Netns::new().unwrap()).collect();
    node.call("STATUS", "", None, &strict).silent();
    for (id, pod) in ["a", "b"].iter().zip(&pods) {
        node.call("STATUS", "", None, &strict).silent();
        node.add(id, pod, &config);
    }
    node.call("STATUS", "", None, &config).silent();
    let full = node.call("STATUS", "", None, &strict);
    assert_eq!(full.code(), 50);
    assert!(full.json()["msg"].as_str().unwrap().ends_with("is full: 2 of 2 addresses are in use"), "{full:?}");
    node.call("DEL", "a", None, &config).silent();
    node.call("STATUS", "", None, &strict).silent();
    strict["statusWhenFull"] = json!("maybe");
    assert_eq!(node.call("ADD", "c", Some(pods[0].path()), &strict).code(), 7);
}
