//! With the real reference plugins: ours executes theirs, theirs execute ours, and ours in a chain with theirs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use common::{
    Answer, Node, call_environment, feed, ip,
    kill::{Victim, can_trace},
};
use keelson_testkit::{Netns, Tool, go_version, is_root, missing, skip_unless};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A directory with the reference plugins and ours.
fn plugins(node: &Node) -> PathBuf {
    let directory = node.directory.path().join("bin");
    if !directory.exists() {
        fs::create_dir(&directory).unwrap();
        for entry in fs::read_dir(Tool::CniPlugins.ensure().unwrap()).unwrap() {
            let entry = entry.unwrap();
            symlink(entry.path(), directory.join(entry.file_name())).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_keelson-cni"), directory.join("keelson-cni")).unwrap();
    }
    directory
}

/// A directory with ours and one other plugin: a shell script that is not a plugin of anybody's.
fn with_plugin(node: &Node, name: &str, script: &str) -> PathBuf {
    let directory = node.directory.path().join("bin");
    fs::create_dir(&directory).unwrap();
    symlink(env!("CARGO_BIN_EXE_keelson-cni"), directory.join("keelson-cni")).unwrap();
    fs::write(directory.join(name), script).unwrap();
    fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Calls the plugin that the config's type names.
fn call(node: &Node, verb: &str, id: &str, netns: &Path, config: &Value) -> Answer {
    let directory = plugins(node);
    let mut command: Command = node.host.command(directory.join(config["type"].as_str().unwrap()));
    call_environment(&mut command, verb, id, Some(netns));
    command.env("CNI_PATH", &directory).env("PATH", std::env::var_os("PATH").unwrap());
    feed(command, config.to_string().as_bytes())
}

#[track_caller]
fn added(node: &Node, id: &str, pod: &Netns, config: &Value) -> Value {
    let answer = call(node, "ADD", id, pod.path(), config);
    assert_eq!(answer.status, 0, "{answer:?}");
    answer.json()
}

/// Ours, with the reference's host-local.
fn ours(node: &Node, version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "test",
        "type": "keelson-cni",
        "bridge": "kt0",
        "isDefaultGateway": true,
        "ipMasq": true,
        // Where our records are; the IPAM's key of this name is the other plugin's.
        "dataDir": node.data_dir(),
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.77.0.0/29"}], [{"subnet": "fd77::/64"}]],
            "routes": [{"dst": "10.9.0.0/16"}],
            "dataDir": node.directory.path().join("host-local"),
        },
    })
}

/// The addresses that host-local has given.
fn reserved(node: &Node) -> Vec<String> {
    let Ok(entries) = fs::read_dir(node.directory.path().join("host-local/test")) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "lock" && !name.starts_with("last_reserved_ip"));
    names.sort();
    names
}

#[test]
fn host_local_gives_and_gets_back_the_addresses_in_every_version() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    for version in VERSIONS {
        let node = Node::new();
        let pod = Netns::new().unwrap();
        let mut config = ours(&node, version);
        let result = added(&node, "c", &pod, &config);
        let address = if version < "0.3.0" { &result["ip4"]["ip"] } else { &result["ips"][0]["address"] };
        assert_eq!(address, "10.77.0.2/29", "{result}");
        assert_eq!(reserved(&node), ["10.77.0.2", "fd77::2"]);
        for family in ["-4", "-6"] {
            assert!(ip(&pod, &[family, "route", "show", "default"]).contains("via"), "{version}");
        }
        assert!(ip(&pod, &["route"]).contains("10.9.0.0/16 via 10.77.0.1"));
        assert!(ip(&node.host, &["addr", "show", "kt0"]).contains("10.77.0.1/29"));
        config["prevResult"] = result.clone();
        if version >= "0.4.0" {
            call(&node, "CHECK", "c", pod.path(), &config).silent();
        }
        config.as_object_mut().unwrap().remove("prevResult");
        assert_eq!(added(&node, "c", &pod, &config), result, "an ADD that is repeated");
        call(&node, "DEL", "c", pod.path(), &config).silent();
        call(&node, "DEL", "c", pod.path(), &config).silent();
        assert_eq!(reserved(&node), Vec::<String>::new());
        assert!(!ip(&pod, &["link"]).contains("eth0"));
    }
}

#[test]
fn what_host_local_says_is_passed_on_and_nothing_is_left() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let node = Node::new();
    let config = ours(&node, "1.1.0");
    let pods: Vec<Netns> = (0..6).map(|_| Netns::new().unwrap()).collect();
    for (index, pod) in pods[..5].iter().enumerate() {
        added(&node, &format!("c{index}"), pod, &config);
    }
    let before = node.traces();
    let answer = call(&node, "ADD", "late", pods[5].path(), &config);
    assert_eq!(answer.code(), 999);
    let message = answer.json()["msg"].as_str().unwrap().to_owned();
    assert!(message.contains("no IP addresses available in range set: 10.77.0.1-10.77.0.6"), "{message}");
    assert!(answer.json()["details"].as_str().unwrap().contains("host-local"), "{answer:?}");
    assert_eq!(node.traces(), before);
    for (index, pod) in pods[..5].iter().enumerate() {
        call(&node, "DEL", &format!("c{index}"), pod.path(), &config).silent();
    }
    assert_eq!(reserved(&node), Vec::<String>::new());
}

/// Whether a thread of the process waits for a lock.
fn waits_for_a_lock(process: &Child) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", process.id())) else { return false };
    threads.flatten().any(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "lock\n"))
}

#[test]
fn a_del_that_meets_its_add_returns_the_addresses_after_they_were_given() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let directory = node.directory.path();
    let bin = directory.join("slow");
    fs::create_dir(&bin).unwrap();
    for name in ["begun", "go"] {
        nix::unistd::mkfifo(&directory.join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    // Gives its one address when it is told to.
    let script = format!(
        "#!/bin/sh\ncd {}\ncase $CNI_COMMAND in\nADD) echo > begun; read x < go; echo > given\n\
         echo '{{\"cniVersion\": \"1.1.0\", \"ips\": [{{\"address\": \"10.77.0.2/29\"}}]}}';;\nDEL) rm -f given;;\nesac\n",
        directory.display()
    );
    fs::write(bin.join("slow"), script).unwrap();
    fs::set_permissions(bin.join("slow"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = ours(&node, "1.1.0");
    config["ipam"] = json!({"type": "slow"});
    let start = |verb: &str| {
        let mut command = node.command(verb, "c", Some(pod.path()));
        command.env("CNI_PATH", &bin).env("PATH", std::env::var_os("PATH").unwrap());
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        child
    };
    let mut add = start("ADD");
    // Opened as soon as the script writes to it.
    fs::read(directory.join("begun")).unwrap();
    let mut del = start("DEL");
    while !waits_for_a_lock(&del) {
        assert!(del.try_wait().unwrap().is_none(), "it didn't wait for the ADD");
        thread::yield_now();
    }
    fs::write(directory.join("go"), "\n").unwrap();
    assert!(add.wait().unwrap().success());
    assert!(del.wait().unwrap().success());
    assert!(!directory.join("given").exists(), "the address was not returned");
    assert_eq!(node.records(), Vec::<String>::new());
}

#[test]
fn an_add_that_fails_after_the_ipam_gives_the_address_back() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let config = ours(&node, "1.1.0");
    ip(&node.host, &["link", "add", "kt0", "type", "bridge"]);
    ip(&node.host, &["addr", "add", "192.0.2.1/24", "dev", "kt0"]);
    let answer = call(&node, "ADD", "c", pod.path(), &config);
    assert_eq!(answer.code(), 102);
    assert_eq!(reserved(&node), Vec::<String>::new());
    assert!(!ip(&pod, &["link"]).contains("eth0"));
}

#[test]
fn the_reference_bridge_gets_its_addresses_from_ours_in_every_version() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    for version in VERSIONS {
        let node = Node::new();
        let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
        let mut config = node.config();
        config["cniVersion"] = json!(version);
        config["type"] = json!("bridge");
        config["ipMasq"] = json!(false);
        let result = added(&node, "c", &pods[0], &config);
        let address = if version < "0.3.0" { &result["ip4"]["ip"] } else { &result["ips"][0]["address"] };
        assert_eq!(address, "10.77.0.2/24", "{result}");
        added(&node, "d", &pods[1], &config);
        assert_eq!(node.records(), ["c@eth0", "d@eth0"]);
        config["prevResult"] = result;
        if version >= "0.4.0" {
            call(&node, "CHECK", "c", pods[0].path(), &config).silent();
        }
        if version >= "1.1.0" {
            config.as_object_mut().unwrap().remove("prevResult");
            call(&node, "STATUS", "", Path::new(""), &config).silent();
        }
        call(&node, "DEL", "c", pods[0].path(), &config).silent();
        assert_eq!(node.records(), ["d@eth0"]);
        call(&node, "DEL", "d", pods[1].path(), &config).silent();
        assert_eq!((node.records(), node.taken()), (vec![], vec![]));
    }
}

#[test]
fn gc_gives_the_addresses_back_to_the_delegated_plugin() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let node = Node::new();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    let mut config = ours(&node, "1.1.0");
    added(&node, "stays", &pods[0], &config);
    added(&node, "goes", &pods[1], &config);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "stays", "ifname": "eth0"}]);
    call(&node, "GC", "", Path::new(""), &config).silent();
    assert_eq!(node.records(), ["stays@eth0"]);
    // The reference's host-local knows no GC: it was asked for a DEL.
    assert_eq!(reserved(&node), ["10.77.0.2", "fd77::2"]);
    assert!(!ip(&pods[1], &["link"]).contains("eth0"));
    call(&node, "DEL", "stays", Path::new(""), &config).silent();
}

/// Not a plugin of anybody's: it writes down what it is asked, which the real ones don't tell.
const RECORDER: &str = r#"#!/bin/sh
cat > "$(dirname "$0")/asked-$CNI_COMMAND"
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}]}'
"#;

#[test]
fn gc_asks_the_delegated_plugin_to_keep_what_ours_keeps() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let directory = with_plugin(&node, "recorder", RECORDER);
    let mut config = ours(&node, "1.1.0");
    config["ipam"] = json!({"type": "recorder"});
    let result = added(&node, "c", &pod, &config);
    assert_eq!(result["ips"][0]["address"], "10.77.0.9/24");
    let mut inhabitant = pod.command("sleep").arg("1000").spawn().unwrap();
    config["cni.dev/valid-attachments"] = json!([]);
    let answer = call(&node, "GC", "", Path::new(""), &config);
    inhabitant.kill().unwrap();
    inhabitant.wait().unwrap();
    answer.silent();
    assert_eq!(node.records(), ["c@eth0"]);
    let asked: Value = serde_json::from_slice(&fs::read(directory.join("asked-GC")).unwrap()).unwrap();
    assert_eq!(asked["cni.dev/valid-attachments"], json!([{"containerID": "c", "ifname": "eth0"}]));
    // Nobody lives there any more.
    call(&node, "GC", "", Path::new(""), &config).silent();
    assert_eq!(node.records(), Vec::<String>::new());
    let asked: Value = serde_json::from_slice(&fs::read(directory.join("asked-GC")).unwrap()).unwrap();
    assert_eq!(asked["cni.dev/valid-attachments"], json!([]));
    assert!(directory.join("asked-DEL").exists());
}

/// Not a plugin of anybody's: it gives an address, and takes it back only when a file says so.
const KEEPER: &str = r#"#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}]}' ;;
DEL) [ -e "$(dirname "$0")/open" ] || { echo '{"code": 11, "msg": "come back later"}'; exit 1; } ;;
esac
"#;

#[test]
fn a_del_that_the_delegated_plugin_refuses_takes_the_network_and_can_be_repeated() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let directory = with_plugin(&node, "keeper", KEEPER);
    let mut config = ours(&node, "1.1.0");
    config["ipam"] = json!({"type": "keeper"});
    added(&node, "c", &pod, &config);
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    for (verb, config) in [("DEL", &config), ("GC", &gc)] {
        let answer = call(&node, verb, "c", Path::new(""), config);
        assert_eq!(answer.code(), 11, "{answer:?}");
        assert!(!ip(&pod, &["link"]).contains("eth0"));
        assert_eq!(node.records(), ["c@eth0"]);
    }
    fs::write(directory.join("open"), "").unwrap();
    call(&node, "DEL", "c", Path::new(""), &config).silent();
    assert_eq!(node.records(), Vec::<String>::new());
}

#[test]
fn status_asks_the_delegated_plugin_and_misses_one_that_is_gone() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let node = Node::new();
    let mut config = ours(&node, "1.1.0");
    call(&node, "STATUS", "", Path::new(""), &config).silent();
    config["ipam"]["type"] = json!("no-such-plugin");
    assert_eq!(call(&node, "STATUS", "", Path::new(""), &config).code(), 50);
}

#[test]
fn a_call_that_is_killed_anywhere_leaves_nothing_with_either_plugin() {
    skip_unless!(is_root(), "needs root");
    skip_unless!(can_trace(), "needs the right to trace processes");
    skip_unless!(missing(&["nft"]).is_empty(), "needs nft");
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let node = Node::new();
    let pod = Netns::new().unwrap();
    let config = ours(&node, "1.1.0");
    let program = plugins(&node).join("keelson-cni");
    Victim::called(&program, &node, &pod, &config).die_everywhere();
    assert_eq!(reserved(&node), Vec::<String>::new());
    // Each address can still be given.
    let pods: Vec<Netns> = (0..5).map(|_| Netns::new().unwrap()).collect();
    for (index, pod) in pods.iter().enumerate() {
        added(&node, &format!("c{index}"), pod, &config);
    }
    assert_eq!(reserved(&node).len(), 10);
}
