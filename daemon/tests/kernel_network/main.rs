//! `keelson network` on a node in miniature: a network namespace that plays the host, Pods attached by the real plugin,
//! things broken in the kernel, and the remedies carried out as an operator would.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod elements;
mod networks;
mod node;

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use keelson_testkit::{is_root, skip_unless, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use node::Node;

/// A net for a hung test, generous on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(60);

/// `keelson run --only network`, stopped when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed.
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn the_list_and_everything_about_one_pod() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let node = Node::new();
    let output = node.keelson(&["network", "ls"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("no network has records on this node; looked in"), "{told}");
    assert!(told.contains(&node.path("state/network").display().to_string()), "{told}");

    let _pods = [node.pod("aaaaaaaaaaaaaaaa", true), node.pod("bbbbbbbbbbbbbbbb", false)];
    let (listed, status) = node.ask(&["network", "ls"]);
    assert_eq!((listed.as_array().unwrap().len(), status), (2, 0));
    let first = &listed[0];
    assert_eq!(first["pod"]["name"], "pod-aaaaaaaaaaaaaaaa");
    assert_eq!((&first["state"], &first["kind"]), (&json!("active"), &json!("bridge")));
    assert_eq!(first["addresses"][0]["address"], "10.77.0.2/24");
    assert_eq!(first["addresses"][1]["address"], "fd77::2/64");
    assert_eq!(first["ports"], json!(["tcp/8080->80"]));

    let table = String::from_utf8(node.keelson(&["network", "ls"]).stdout).unwrap();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let header = "POD CONTAINER IFNAME NETWORK KIND ADDRESSES HOST-IF PORTS STATE AGE";
    assert_eq!(lines[0].join(" "), header);
    assert_eq!(
        lines[1][..6],
        ["ns/pod-aaaaaaaaaaaaaaaa", "aaaaaaaaaaaa", "eth0", "test", "bridge", "10.77.0.2,fd77::2"]
    );
    assert_eq!((lines[2][7], lines[2][8]), ("-", "active"));
    let wide = String::from_utf8(node.keelson(&["network", "ls", "--wide"]).stdout).unwrap();
    assert!(wide.contains("DATA-DIR") && wide.contains("bbbbbbbbbbbbbbbb"), "{wide}");

    let link = first["hostInterface"].as_str().unwrap();
    for selector in ["pod-aaaaaaaaaaaaaaaa", "ns/pod-aaaaaaaaaaaaaaaa", "aaaa", "10.77.0.2", "fd77::2", link] {
        let (shown, status) = node.ask(&["network", "show", selector]);
        assert_eq!((shown.as_array().unwrap().len(), status), (1, 0), "{selector}: {shown}");
        assert_eq!(shown[0]["attachment"]["containerId"], "aaaaaaaaaaaaaaaa", "{selector}");
        assert_eq!(shown[0]["hostInterface"]["bridge"], "kt0");
        assert_eq!(shown[0]["containerInterface"]["name"], "eth0");
        assert_eq!(shown[0]["findings"], json!([]));
    }
    let text = String::from_utf8(node.keelson(&["network", "show", "aaaa"]).stdout).unwrap();
    assert!(text.contains("port of kt0") && text.contains("0.0.0.0/0 via 10.77.0.1"), "{text}");
    assert_eq!(node.keelson(&["network", "show", "nobody"]).status.code(), Some(1));
    let elsewhere = node.keelson(&["network", "ls", "--network", "other"]);
    assert_eq!(elsewhere.status.code(), Some(1));
}

#[test]
fn error_codes_are_explained() {
    let keelson = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_keelson")).args(arguments).output().unwrap();
    let one = String::from_utf8(keelson(&["network", "explain", "101"]).stdout).unwrap();
    assert!(one.contains("host port is taken") && one.contains("Remedy"), "{one}");
    let all = keelson(&["network", "explain", "-o", "json"]);
    let all: Value = serde_json::from_slice(&all.stdout).unwrap();
    assert!(all.as_array().unwrap().iter().any(|known| known["code"] == 11));
    let unknown = keelson(&["network", "explain", "12345"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("no error code"));
}

/// Breaks a healthy node in one way; the doctor must find it, and once its remedies are carried out find nothing.
#[track_caller]
fn breaks_and_mends(node: &Node, how: &str, expected: &[&str]) {
    node.shell(how);
    let checks = node.checks();
    for check in expected {
        assert!(checks.iter().any(|found| found == check), "{how}: {check} is not in {checks:?}");
    }
    // A remedy can bring to light what was hidden behind the first fault.
    for _ in 0..4 {
        let findings = node.findings();
        if findings.is_empty() {
            return;
        }
        for finding in findings {
            node.shell(finding["remedy"].as_str().unwrap());
        }
    }
    panic!("{how}: left are {:?}", node.findings());
}

#[test]
fn each_fault_is_found_and_its_remedy_mends_it() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let node = Node::new();
    let pod = node.pod("aaaa", true);
    let _other = node.pod("bbbb", false);
    assert_eq!(node.findings(), Vec::<Value>::new());
    let link = node.link_of("aaaa");
    let inside = format!("nsenter --net={} ip", pod.path().display());
    let breaks = |how: &str, expected: &[&str]| breaks_and_mends(&node, how, expected);
    breaks(&format!("ip link set {link} down"), &["link-down"]);
    breaks(&format!("ip link set {link} nomaster"), &["not-in-bridge"]);
    breaks(&format!("ip link set {link} mtu 1400"), &["mtu"]);
    breaks(&format!("ip link set {link} address 02:00:00:00:00:99"), &["mac-changed"]);
    breaks("ip link set kt0 address 02:00:00:00:00:98", &["mac-changed"]);
    breaks("ip address del 10.77.0.1/24 dev kt0", &["gateway-missing"]);
    breaks("ip link set kt0 mtu 1300", &["mtu"]);
    breaks("ip link del kt0", &["bridge-missing"]);
    breaks("echo 0 > /proc/sys/net/ipv4/ip_forward", &["forwarding"]);
    breaks("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding", &["forwarding"]);
    breaks("nft flush ruleset", &["rules-missing"]);
    breaks("ip address add 10.77.0.2/32 dev lo", &["duplicate-address"]);
    breaks(&format!("{inside} address del 10.77.0.2/24 dev eth0"), &["address-missing"]);
    breaks(&format!("{inside} route del default"), &["route-missing"]);
    breaks(&format!("{inside} link set eth0 down"), &["interface-down", "route-missing"]);
    breaks(
        "ip link add up0 type veth peer name up1 && ip link set up0 up && ip route add default dev up0 \
         && echo 1 > /proc/sys/net/ipv6/conf/up0/accept_ra",
        &["accept-ra"],
    );
    // What is to be done about a subnet that others have, only who chose it knows.
    node.shell("ip route add 10.77.0.0/16 dev up0");
    let findings = node.findings();
    assert_eq!(
        (findings.len(), &findings[0]["check"], &findings[0]["severity"]),
        (1, &json!("overlap"), &json!("error"))
    );
    node.shell("ip route del 10.77.0.0/16 dev up0");
    assert_eq!(node.findings(), Vec::<Value>::new());
}

#[test]
fn a_chain_that_drops_what_is_forwarded_is_an_error_until_it_accepts_pods() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let node = Node::new();
    let _pod = node.pod("aaaa", false);
    node.shell(
        "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
    );
    let findings = node.findings();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!((&findings[0]["check"], &findings[0]["severity"]), (&json!("forward-drop"), &json!("error")));
    assert_eq!(findings[0]["subject"], "ip filter FORWARD");
    node.shell(findings[0]["remedy"].as_str().unwrap());
    // Whether the rules accept enough is for people to judge.
    let findings = node.findings();
    assert_eq!((findings.len(), &findings[0]["severity"]), (1, &json!("warning")), "{findings:?}");
    node.shell("nft delete table ip filter");
    assert_eq!(node.checks(), Vec::<String>::new());
}

#[test]
fn what_nobody_uses_is_freed_and_a_dry_run_changes_nothing() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let node = Node::new();
    let pods = ["stale", "alive", "torn", "lost"].map(|id| node.pod(id, false));
    let links = ["stale", "alive", "torn", "lost"].map(|id| node.link_of(id));
    // One is gone with its namespace, and long ago.
    node.shell(&format!("ip link del {}", links[0]));
    let record = node.records().join("stale@eth0");
    let mut old: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    old["createdAtSeconds"] = json!(1_000_000);
    fs::write(&record, old.to_string()).unwrap();
    // One's record is gone, and its link is left.
    fs::remove_file(node.records().join("lost@eth0")).unwrap();
    // Another boot's.
    let earlier = node.path("state/network/test/0c5e7d3c-6d1f-4b0e-9a53-1f0e5b9f2c11/attachments");
    fs::create_dir_all(&earlier).unwrap();
    fs::write(earlier.join("x@eth0"), "{}").unwrap();
    let checks = node.checks();
    for check in ["link-missing", "orphan-link", "leftovers"] {
        assert!(checks.iter().any(|found| found == check), "{check} is not in {checks:?}");
    }

    let (would, status) = node.ask(&["network", "gc", "--dry-run"]);
    assert_eq!(status, 0, "{would}");
    assert!(record.exists() && earlier.exists());
    node.shell(&format!("ip link show {}", links[3]));
    let (collected, status) = node.ask(&["network", "gc"]);
    assert_eq!(status, 0, "{collected}");
    assert_eq!(would[0]["freed"], collected[0]["freed"]);
    assert_eq!(would[0]["removed"], collected[0]["removed"]);
    assert_eq!(collected[0]["freed"][0]["containerId"], "stale", "{collected}");
    assert!(!record.exists() && !earlier.exists());
    let (listed, _) = node.ask(&["network", "ls"]);
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(node.checks(), Vec::<String>::new());

    // What can't be read is freed by name.
    fs::write(node.records().join("torn@eth0"), "{").unwrap();
    let unreadable = node.findings();
    assert_eq!((unreadable.len(), &unreadable[0]["check"]), (1, &json!("unreadable")), "{unreadable:?}");
    let (listed, _) = node.ask(&["network", "ls"]);
    // It comes first: its Pod isn't known.
    assert_eq!((&listed[0]["containerId"], &listed[0]["state"]), (&json!("torn"), &json!("unreadable")), "{listed}");
    node.shell(unreadable[0]["remedy"].as_str().unwrap());
    assert_eq!(node.checks(), Vec::<String>::new());

    // A Pod that runs is only freed by force, and by name.
    let mut process = pods[1].command("sleep").arg("1000").spawn().unwrap();
    let (skipped, _) = node.ask(&["network", "gc", "alive"]);
    assert_eq!(skipped[0]["skipped"][0]["containerId"], "alive", "{skipped}");
    node.shell(&format!("ip link show {}", links[1]));
    let (forced, _) = node.ask(&["network", "gc", "alive", "--force"]);
    assert_eq!(forced[0]["freed"][0]["containerId"], "alive", "{forced}");
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(node.ask(&["network", "ls"]).0, json!([]));
    assert_eq!(node.keelson(&["network", "gc", "--force"]).status.code(), Some(2));
}

#[test]
fn the_network_process_brings_back_what_somebody_removed() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let node = Node::new();
    let _pods = [node.pod("aaaa", true), node.pod("bbbb", false)];
    let whole = node.rules();
    assert!(whole.contains("10.77.0.0/24") && whole.contains("8080"), "{whole}");
    let log = node.path("log");
    let child = node
        .command(&["run", "--only", "network"])
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    wait_until("the conflist", LIMIT, || node.path("conf/10-test.conflist").exists().then_some(()));
    let mut restores = |how: &str, what: &str, is_back: &dyn Fn() -> bool| {
        assert!(is_back(), "{how}");
        let told = || fs::read_to_string(&log).unwrap().lines().filter(|line| line.contains(what)).count();
        let before = told();
        node.shell(how);
        wait_until(how, LIMIT, || (is_back() && told() > before).then_some(()));
        assert!(running.0.try_wait().unwrap().is_none());
    };
    restores("nft flush ruleset", r#""what":"rules""#, &|| node.rules() == whole);
    restores("nft delete table inet keelson", r#""what":"rules""#, &|| node.rules() == whole);
    let has_gateway = || {
        let output = node.host.command("ip").args(["address", "show", "kt0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("10.77.0.1/24")
    };
    restores("ip address del 10.77.0.1/24 dev kt0", r#""what":"address""#, &has_gateway);
    let forwards = || {
        let output = node.host.command("cat").arg("/proc/sys/net/ipv4/ip_forward").output().unwrap();
        output.stdout == b"1\n"
    };
    restores("echo 0 > /proc/sys/net/ipv4/ip_forward", r#""what":"forwarding""#, &forwards);
    assert_eq!(node.checks(), Vec::<String>::new());
}

#[test]
fn pods_are_given_to_host_local_and_taken_back() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let node = Node::new();
    let _pod = node.pod("aaaa", false);
    let conflist = node.path("test.conflist");
    fs::write(&conflist, node.plugin_config().to_string()).unwrap();
    let (conflist, place) = (conflist.to_str().unwrap(), node.path("host-local"));
    let migrate = |arguments: &[&str]| {
        let output = node.keelson(&[&["network"], arguments, &["-o", "json", "--conflist", conflist]].concat());
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        report["entries"][0]["outcome"].as_str().unwrap().to_owned()
    };
    let to = place.to_str().unwrap();
    assert_eq!(migrate(&["export", "--to", to, "--dry-run"]), "migrated");
    assert!(!place.join("test/10.77.0.2").exists());
    assert_eq!(migrate(&["export", "--to", to]), "migrated");
    assert!(place.join("test/10.77.0.2").exists());
    assert_eq!(migrate(&["import", "--from", to, "--results", to]), "alreadyThere");
}
