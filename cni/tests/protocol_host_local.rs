//! The executable called as `host-local`, held against the reference plugin of that name: on one directory with it, and
//! on one like it, for every version of the spec.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use common::{Answer, feed};
use keelson_testkit::{Tool, go_version, scenario, skip_unless, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plugin {
    Ours,
    Reference,
}

use Plugin::{Ours, Reference};

impl Plugin {
    fn other(self) -> Self {
        if self == Ours { Reference } else { Ours }
    }

    fn command(self) -> Command {
        match self {
            Ours => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-cni"));
                command.arg0("/opt/cni/bin/host-local");
                command
            }
            Reference => Command::new(Tool::CniPlugins.ensure().unwrap().join("host-local")),
        }
    }
}

/// A `dataDir`.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("net").join(name)
    }

    /// Writes files as somebody may have left them.
    fn with(files: &[(&str, &str)]) -> Self {
        let place = Self::new();
        fs::create_dir(place.path("")).unwrap();
        for (name, content) in files {
            fs::write(place.path(name), content).unwrap();
        }
        place
    }

    fn config(&self, version: &str, ipam: &Value) -> Value {
        let mut ipam = ipam.clone();
        ipam["type"] = json!("host-local");
        ipam["dataDir"] = json!(self.directory.path());
        json!({"cniVersion": version, "name": "net", "type": "ipvlan", "master": "foo0", "ipam": ipam})
    }

    /// The files with their contents, without the lock and what remembers the last address.
    fn reservations(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path("")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name != "lock" && !name.starts_with("last_reserved_ip.") {
                found.push((name.clone(), fs::read_to_string(self.path(&name)).unwrap()));
            }
        }
        found.sort();
        found
    }
}

fn command(plugin: Plugin, verb: &str, (id, ifname): (&str, &str), args: &str) -> Command {
    let mut command = plugin.command();
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_IFNAME", ifname)
        .env("CNI_PATH", "/nonexistent")
        .env("CNI_NETNS", "/run/netns/none")
        .env("CNI_ARGS", args);
    command
}

fn call(plugin: Plugin, verb: &str, id: &str, config: &Value) -> Answer {
    feed(command(plugin, verb, (id, "eth0"), "IgnoreUnknown=1"), config.to_string().as_bytes())
}

/// The first address of a result of any version.
#[track_caller]
fn first(answer: &Answer) -> String {
    assert_eq!(answer.status, 0, "{answer:?}");
    let result = answer.json();
    let address = result["ips"][0]["address"].as_str().or(result["ip4"]["ip"].as_str());
    address.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

fn dual_stack() -> Value {
    json!({"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.2.2.0/24"}], [{"subnet": "2001:db8:1::0/64"}]],
           "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1"},
                      {"dst": "2001:db8:2::0/64", "gw": "2001:db8:3::1"}]})
}

/// Asks both, each in a directory of its own, and compares what they answer and leave behind.
#[track_caller]
fn same(version: &str, files: &[(&str, &str)], ipam: &Value, rest: &Value, args: &str) -> Answer {
    let [ours, reference] = [Ours, Reference].map(|plugin| {
        let place = Place::with(files);
        let mut config = place.config(version, ipam);
        config.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let answer = feed(command(plugin, "ADD", ("dummy", "eth0"), args), config.to_string().as_bytes());
        (answer, place.reservations())
    });
    assert_eq!(ours.0.status, reference.0.status, "{version} {ipam} {rest}: {:?} {:?}", ours.0, reference.0);
    assert_eq!(ours.1, reference.1, "{version} {ipam} {rest}");
    if ours.0.status == 0 {
        assert_eq!(ours.0.json(), reference.0.json(), "{version} {ipam} {rest}");
    }
    ours.0
}

/// [`same`], which must be an error that says `words`.
#[track_caller]
fn both_refuse(version: &str, ipam: &Value, rest: &Value, words: &str) {
    let answer = same(version, &[], ipam, rest, "");
    let message = answer.json()["msg"].as_str().unwrap_or_default().to_owned();
    assert!(answer.status == 1 && message.contains(words), "{answer:?}");
}

#[test]
fn add_and_del_do_what_the_reference_does() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    for version in VERSIONS {
        let answers = [Ours, Reference].map(|plugin| {
            let place = Place::new();
            let resolv = place.directory.path().join("resolv.conf");
            fs::write(&resolv, "# comment\nnameserver 192.0.2.3\nsearch a b\noptions ndots:5\ndomain c\n").unwrap();
            let mut ipam = dual_stack();
            ipam["resolvConf"] = json!(resolv);
            let config = place.config(version, &ipam);
            let added = call(plugin, "ADD", "dummy", &config);
            assert_eq!(added.stderr, "", "{added:?}");
            let held = place.reservations();
            let last = [0, 1].map(|set| fs::read_to_string(place.path(&format!("last_reserved_ip.{set}"))).unwrap());
            call(plugin, "DEL", "dummy", &config).silent();
            assert!(place.reservations().is_empty());
            (added.json(), held, last)
        });
        assert_eq!(answers[0], answers[1], "{version}");
        assert_eq!(answers[0].1[0], ("10.1.2.2".to_owned(), "dummy\r\neth0".to_owned()));
        assert_eq!(answers[0].1[1], ("2001:db8:1::2".to_owned(), "dummy\r\neth0".to_owned()));
        assert_eq!(answers[0].2, ["10.1.2.2", "2001:db8:1::2"]);
        scenario(55, version);
    }
}

#[test]
fn each_releases_what_the_other_gave() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    for version in VERSIONS {
        let place = Place::new();
        let config = place.config(version, &dual_stack());
        for giver in [Ours, Reference] {
            assert_eq!(call(giver, "ADD", "a", &config).status, 0);
            if version >= "0.4.0" {
                let mut config = config.clone();
                config["prevResult"] = json!({"cniVersion": version, "ips": []});
                call(giver.other(), "CHECK", "a", &config).silent();
                assert_eq!(call(giver.other(), "CHECK", "b", &config).status, 1);
            }
            assert_eq!(place.reservations().len(), 2);
            call(giver.other(), "DEL", "a", &config).silent();
            assert!(place.reservations().is_empty());
        }
    }
}

#[test]
fn a_round_robin_is_shared() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let place = Place::new();
    let config = place.config("1.1.0", &json!({"ranges": [[{"subnet": "10.0.0.0/29"}, {"subnet": "10.0.1.0/30"}]]}));
    let mut given = Vec::new();
    for (number, plugin) in [Ours, Reference, Reference, Ours, Ours, Reference, Ours, Reference].into_iter().enumerate()
    {
        let id = format!("c{number}");
        given.push(first(&call(plugin, "ADD", &id, &config)));
        call(plugin.other(), "DEL", &id, &config).silent();
    }
    assert_eq!(
        given,
        [
            "10.0.0.2/29",
            "10.0.0.3/29",
            "10.0.0.4/29",
            "10.0.0.5/29",
            "10.0.0.6/29",
            "10.0.1.2/30",
            "10.0.0.2/29",
            "10.0.0.3/29"
        ]
    );
}

#[test]
fn both_at_once_give_no_address_twice() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let place = Place::new();
    let config = place.config("1.1.0", &json!({"ranges": [[{"subnet": "10.0.0.0/25"}], [{"subnet": "fd00::/64"}]]}));
    let plugins: Vec<Plugin> = (0..60).map(|number| if number % 2 == 0 { Ours } else { Reference }).collect();
    let mut given: Vec<String> = Vec::new();
    thread::scope(|scope| {
        let config = &config;
        let add = |(number, plugin): (usize, &Plugin)| {
            let plugin = *plugin;
            scope.spawn(move || call(plugin, "ADD", &format!("c{number}"), config))
        };
        let calls: Vec<_> = plugins.iter().enumerate().map(add).collect();
        for call in calls {
            let answer = call.join().unwrap();
            assert_eq!(answer.status, 0, "{answer:?}");
            let result = answer.json();
            given.extend([0, 1].map(|index| result["ips"][index]["address"].as_str().unwrap().to_owned()));
        }
    });
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 120);
    assert_eq!(place.reservations().len(), 120);
    thread::scope(|scope| {
        let config = &config;
        for (number, plugin) in plugins.iter().enumerate() {
            let plugin = plugin.other();
            scope.spawn(move || call(plugin, "DEL", &format!("c{number}"), config).silent());
        }
    });
    assert!(place.reservations().is_empty());
}

#[test]
fn the_references_lock_is_waited_for() {
    let place = Place::with(&[]);
    let config = place.config("1.1.0", &dual_stack());
    // A folder without the file gets one.
    call(Ours, "DEL", "a", &config).silent();
    let lock = fs::File::open(place.path("lock")).unwrap();
    lock.lock().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| call(Ours, "ADD", "a", &config));
        let inode = format!(":{} ", std::os::unix::fs::MetadataExt::ino(&lock.metadata().unwrap()));
        // "1: -> FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF": somebody waits for the lock above it.
        wait_until("the call to wait for the lock", Duration::from_secs(60), || {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode)).then_some(())
        });
        let names: Vec<String> = place.reservations().into_iter().map(|(name, _)| name).collect();
        assert!(names.iter().all(|name| name.starts_with(".a@eth0.")), "{names:?}");
        lock.unlock().unwrap();
        assert_eq!(first(&waiting.join().unwrap()), "10.1.2.2/24");
    });
    scenario(98, "-");
}

#[test]
fn each_interface_of_a_container_holds_its_own() {
    for version in VERSIONS {
        let place = Place::new();
        let config = place.config(version, &json!({"subnet": "10.1.2.0/24"}));
        for (ifname, address) in [("eth0", "10.1.2.2/24"), ("eth1", "10.1.2.3/24")] {
            let added = feed(command(Ours, "ADD", ("dummy", ifname), ""), config.to_string().as_bytes());
            assert_eq!(first(&added), address);
        }
        call(Ours, "DEL", "dummy", &config).silent();
        assert_eq!(place.reservations(), [("10.1.2.3".to_owned(), "dummy\r\neth1".to_owned())]);
        scenario(56, version);
    }
}

#[test]
fn a_repeated_add_is_rejected() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    for version in VERSIONS {
        let place = Place::new();
        let config = place.config(version, &json!({"ranges": [[{"subnet": "10.1.2.0/24"}]]}));
        assert_eq!(first(&call(Reference, "ADD", "dummy", &config)), "10.1.2.2/24");
        let repeated = call(Ours, "ADD", "dummy", &config);
        assert_eq!(repeated.code(), 104);
        assert_eq!(
            repeated.json()["msg"],
            "failed to allocate for range 0: 10.1.2.2 has been allocated to dummy, duplicate allocation is not allowed"
        );
        assert_eq!(first(&call(Ours, "ADD", "dummy1", &config)), "10.1.2.3/24");
        assert_eq!(call(Reference, "ADD", "dummy1", &config).status, 1);
        assert_eq!(place.reservations().len(), 2);
        scenario(57, version);
    }
}

#[test]
fn files_of_the_older_format_are_released() {
    for version in VERSIONS {
        let place = Place::with(&[("10.1.2.2", "dummy"), ("10.1.2.3", "other")]);
        let config = place.config(version, &json!({"subnet": "10.1.2.0/24"}));
        call(Ours, "DEL", "dummy", &config).silent();
        assert_eq!(place.reservations(), [("10.1.2.3".to_owned(), "other".to_owned())]);
        scenario(58, version);
    }
}

#[test]
fn a_del_of_an_unknown_container_succeeds_and_makes_nothing() {
    for version in VERSIONS {
        let place = Place::new();
        let config = place.config(version, &json!({"subnet": "10.1.2.0/24"}));
        call(Ours, "DEL", "dummy", &config).silent();
        assert!(!place.path("").exists());
        scenario(59, version);
    }
}

#[test]
fn white_space_in_files_is_ignored() {
    for version in VERSIONS {
        let place = Place::with(&[("10.1.2.2", "  dummy\r\neth0\n \n")]);
        let config = place.config(version, &json!({"subnet": "10.1.2.0/24"}));
        assert_eq!(call(Ours, "ADD", "dummy", &config).code(), 104);
        call(Ours, "DEL", "dummy", &config).silent();
        assert!(place.reservations().is_empty());
        scenario(60, version);
    }
}

#[test]
fn the_first_add_says_nothing_on_stderr() {
    for version in VERSIONS {
        let place = Place::new();
        let added = call(Ours, "ADD", "testing", &place.config(version, &json!({"subnet": "10.1.2.0/24"})));
        assert_eq!((first(&added).as_str(), added.stderr.as_str()), ("10.1.2.2/24", ""));
        scenario(61, version);
    }
}

#[test]
fn addresses_asked_for_are_given() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let none = json!({});
    let one = json!({"ranges": [[{"subnet": "10.1.2.0/24"}]]});
    let two = json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]});
    let both =
        json!({"ranges": [[{"subnet": "172.16.1.0/24"}, {"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/48"}]]});
    let asked = |ips: &[&str]| json!({"args": {"cni": {"ips": ips}}});
    for version in VERSIONS {
        for ips in [["10.1.2.88"], ["10.1.2.88/24"]] {
            assert_eq!(first(&same(version, &[], &one, &asked(&ips), "")), "10.1.2.88/24");
            let capability = json!({"runtimeConfig": {"ips": ips}});
            assert_eq!(first(&same(version, &[], &one, &capability, "")), "10.1.2.88/24");
        }
        assert_eq!(first(&same(version, &[], &one, &none, "IP=10.1.2.10")), "10.1.2.10/24");
        assert_eq!(first(&same(version, &[], &one, &none, "IP=10.1.2.10/24")), "10.1.2.10/24");
        let multiple = same(version, &[], &two, &asked(&["10.1.2.88", "10.1.3.77"]), "");
        if version >= "0.3.0" {
            assert_eq!(multiple.json()["ips"][1]["address"], "10.1.3.77/24");
        } else {
            let message = multiple.json()["msg"].to_string();
            assert!(message.contains("does not support more than 1 address per family"), "{message}");
        }
        assert_eq!(first(&same(version, &[], &both, &asked(&["10.1.2.88", "2001:db8:1::999"]), "")), "10.1.2.88/24");
        let unused = asked(&["10.1.2.88", "10.1.2.77"]);
        both_refuse(version, &one, &unused, "failed to allocate all requested IPs: 10.1.2.");
        let words =
            if version >= "0.3.0" { "failed to allocate all requested IPs: 10.1.2." } else { "address per family" };
        both_refuse(version, &two, &unused, words);
        (62..=65).for_each(|number| scenario(number, version));
    }
    for number in [71, 81, 82, 83, 84, 85] {
        scenario(number, "-");
    }
}

#[test]
fn addresses_that_cannot_be_given_are_refused() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let ipam =
        json!({"ranges": [[{"subnet": "192.168.1.0/29", "rangeStart": "192.168.1.3", "rangeEnd": "192.168.1.4"}]]});
    let asked = |ip: &str| json!({"runtimeConfig": {"ips": [ip]}});
    let taken = same("1.1.0", &[("192.168.1.3", "x\r\neth0")], &ipam, &asked("192.168.1.3"), "");
    assert_eq!(taken.code(), 11);
    assert!(taken.json()["msg"].as_str().unwrap().starts_with(
        "failed to allocate for range 0: requested IP address 192.168.1.3 is not available in range set 192.168.1.3-192.168.1.4"
    ));
    // After the range's end, before its start, and (of a range that has it) the gateway.
    for ip in ["192.168.1.5", "192.168.1.2"] {
        both_refuse("1.1.0", &ipam, &asked(ip), "failed to allocate all requested IPs: 192.168.1.");
    }
    let whole = json!({"subnet": "192.168.1.0/29"});
    both_refuse("1.1.0", &whole, &asked("192.168.1.1"), "requested ip 192.168.1.1 is subnet's gateway");
    for number in [72, 73, 74] {
        scenario(number, "-");
    }
}

#[test]
fn the_next_address_is_the_references() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let id = "id\r\neth0";
    // Subnets, used addresses, the last one given, what comes: the reference's own table of round robin.
    let rows: [(&[&str], &[&str], &str, &str); 12] = [
        (&["10.0.0.0/29"], &[], "", "10.0.0.2"),
        (&["2001:db8:1::0/64"], &[], "", "2001:db8:1::2"),
        (&["10.0.0.0/30"], &[], "", "10.0.0.2"),
        (&["10.0.0.0/29"], &["10.0.0.2"], "", "10.0.0.3"),
        (&["10.0.0.0/29"], &[], "10.0.0.5", "10.0.0.6"),
        (&["10.0.0.0/29"], &["10.0.0.4", "10.0.0.5"], "10.0.0.3", "10.0.0.6"),
        (&["10.0.0.0/29"], &["10.0.0.6"], "10.0.0.5", "10.0.0.2"),
        (&["10.0.0.0/29"], &["10.0.0.2"], "10.0.0.128", "10.0.0.3"),
        (&["10.0.0.0/29"], &["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"], "10.0.0.3", "10.0.0.3"),
        (&["10.0.0.0/30", "10.0.1.0/30"], &[], "", "10.0.0.2"),
        (&["10.0.0.0/30", "10.0.1.0/30"], &[], "10.0.0.2", "10.0.1.2"),
        (&["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"], &[], "10.0.2.2", "10.0.0.2"),
    ];
    for (subnets, used, last, expected) in rows {
        let set: Vec<Value> = subnets.iter().map(|subnet| json!({"subnet": subnet})).collect();
        let mut files: Vec<(&str, &str)> = used.iter().map(|address| (*address, id)).collect();
        if !last.is_empty() {
            files.push(("last_reserved_ip.0", last));
        }
        let answer = same("1.1.0", &files, &json!({"ranges": [set]}), &json!({}), "");
        assert_eq!(answer.json()["ips"][0]["address"].as_str().unwrap().split('/').next(), Some(expected));
    }
    for number in [69, 76, 77] {
        scenario(number, "-");
    }
}

#[test]
fn a_full_range_is_told_in_the_references_words() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let id = "id\r\neth0";
    for (subnets, used, words) in [
        (vec!["10.0.0.0/30"], vec!["10.0.0.2"], "10.0.0.1-10.0.0.2"),
        (vec!["10.0.0.0/30", "10.0.1.0/30"], vec!["10.0.0.2", "10.0.1.2"], "10.0.0.1-10.0.0.2,10.0.1.1-10.0.1.2"),
    ] {
        let set: Vec<Value> = subnets.iter().map(|subnet| json!({"subnet": subnet})).collect();
        let mut files: Vec<(&str, &str)> = used.iter().map(|address| (*address, id)).collect();
        for last in [None, Some(used[0])] {
            files.extend(last.map(|last| ("last_reserved_ip.0", last)));
            let answer = same("1.1.0", &files, &json!({"ranges": [set]}), &json!({}), "");
            assert_eq!(answer.code(), 11);
            let message = answer.json()["msg"].as_str().unwrap().to_owned();
            let expected = format!("failed to allocate for range 0: no IP addresses available in range set: {words}");
            assert!(message.starts_with(&expected), "{message}");
        }
    }
    scenario(75, "-");
}

#[test]
fn configs_are_read_as_the_reference_reads_them() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    let none = json!({});
    let old =
        json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30"});
    let new = json!({"ranges": [[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30"}],
                                [{"subnet": "11.1.2.0/24", "rangeStart": "11.1.2.9"}]]});
    let mut mixed = old.clone();
    mixed["ranges"] = json!([[{"subnet": "fd00::/64"}], [{"subnet": "11.1.2.0/24"}]]);
    let runtime = json!({"RuntimeConfig": {"ipRanges": [[{"subnet": "12.1.3.0/24"}, {"subnet": "12.1.4.0/24"}]]}});
    for version in VERSIONS {
        assert_eq!(first(&same(version, &[], &old, &none, "")), "10.1.2.9/24");
        if version >= "0.3.0" {
            assert_eq!(first(&same(version, &[], &new, &none, "")), "10.1.2.9/24");
            assert_eq!(first(&same(version, &[], &mixed, &runtime, "")), "12.1.3.2/24");
        } else {
            both_refuse(version, &new, &none, "does not support more than 1 address per family");
            scenario(89, version);
        }
        let dual = json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "2001:db8:1::/48"}]]});
        assert_eq!(first(&same(version, &[], &dual, &none, "")), "10.1.2.2/24");
        scenario(90, version);
    }
    let ranges = |ranges: Value| json!({"ranges": ranges});
    for (ipam, words) in [
        (ranges(json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.2.0/24"}]])), "overlap"),
        (ranges(json!([[{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.2.0/24"}]])), "overlap"),
        (ranges(json!([[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]])), "family"),
        (ranges(json!([[]])), "empty"),
        (json!({}), "no range"),
        (json!({"subnet": "192.0.2.0/31"}), "too small"),
        (json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.3.1"}), "192.0.2.0/24"),
        (json!({"subnet": "192.0.2.0/24", "rangeEnd": "192.0.3.1"}), "192.0.2.0/24"),
        (json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.50", "rangeEnd": "192.0.2.40"}), "192.0.2.40"),
    ] {
        both_refuse("1.1.0", &ipam, &none, words);
    }
    for number in [78, 79, 80, 86, 87, 88] {
        scenario(number, "-");
    }
}

#[test]
fn overlaps_are_found_as_the_reference_finds_them() {
    skip_unless!(go_version().is_ok(), "needs Go to build the reference plugins");
    for (one, other) in [
        (json!({"subnet": "2001:db8::/64"}), json!({"subnet": "10.1.2.0/24"})),
        (json!({"subnet": "2001:db8::/64"}), json!({"subnet": "2001:db8::/64"})),
        (json!({"subnet": "10.1.2.0/24"}), json!({"subnet": "10.1.3.0/24"})),
        (json!({"subnet": "10.1.0.0/20"}), json!({"subnet": "10.1.2.0/24"})),
        (
            json!({"subnet": "10.1.0.0/20", "rangeStart": "10.1.1.10", "rangeEnd": "10.1.2.10"}),
            json!({"subnet": "10.1.2.0/24"}),
        ),
        (
            json!({"subnet": "10.1.0.0/20", "rangeStart": "10.1.1.10", "rangeEnd": "10.1.2.10"}),
            json!({"subnet": "10.1.0.0/20", "rangeStart": "10.1.2.11", "rangeEnd": "10.1.3.1"}),
        ),
    ] {
        same("1.1.0", &[], &json!({"ranges": [[one], [other]]}), &json!({}), "");
    }
    scenario(97, "-");
}

#[test]
fn gc_keeps_what_is_valid_and_status_asks_for_no_more_than_add_needs() {
    let place = Place::new();
    let config = place.config("1.1.0", &dual_stack());
    for id in ["a", "b"] {
        assert_eq!(call(Ours, "ADD", id, &config).status, 0);
    }
    fs::write(place.path("10.1.2.9"), "").unwrap();
    call(Ours, "GC", "", &config).silent();
    assert_eq!(place.reservations().len(), 5);
    let mut valid = config.clone();
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    call(Ours, "GC", "", &valid).silent();
    let names: Vec<String> = place.reservations().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["10.1.2.3", "2001:db8:1::3"]);
    call(Ours, "STATUS", "", &config).silent();
    let mut broken = config.clone();
    broken["ipam"]["ranges"] = json!([]);
    assert_eq!(call(Ours, "STATUS", "", &broken).code(), 50);
    // A config that somebody broke keeps no address.
    call(Ours, "DEL", "b", &broken).silent();
    assert!(place.reservations().is_empty());
    for verb in ["GC", "STATUS"] {
        assert_eq!(call(Ours, verb, "", &place.config("1.0.0", &dual_stack())).code(), 1);
    }
}

#[test]
fn check_tells_an_address_that_is_somebody_elses() {
    let place = Place::new();
    let mut config = place.config("1.1.0", &dual_stack());
    assert_eq!(call(Ours, "ADD", "a", &config).status, 0);
    config["prevResult"] =
        json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.2/24"}, {"address": "192.0.2.7/24"}]});
    call(Ours, "CHECK", "a", &config).silent();
    fs::remove_file(place.path("10.1.2.2")).unwrap();
    fs::write(place.path("10.1.2.2"), "b\r\neth0").unwrap();
    let answer = call(Ours, "CHECK", "a", &config);
    assert_eq!(answer.code(), 105);
    assert_eq!(answer.json()["details"], "the address 10.1.2.2 of prevResult is not reserved for it");
    let gone = call(Ours, "CHECK", "c", &config);
    assert_eq!(gone.json()["details"], "host-local: Failed to find address added by container c");
}

/// The directory is where the reference has it unless the config says otherwise.
#[test]
fn the_default_place_is_the_references() {
    let mut config = Place::new().config("1.1.0", &json!({"subnet": "10.1.2.0/24", "resolvConf": "/nonexistent/x"}));
    config["ipam"].as_object_mut().unwrap().remove("dataDir");
    assert!(!Path::new("/var/lib/cni/networks/keelson-test-none").exists());
    config["name"] = json!("keelson-test-none");
    // Refused before anything is made.
    assert_eq!(call(Ours, "ADD", "a", &config).code(), 7);
    assert!(!Path::new("/var/lib/cni/networks/keelson-test-none").exists());
}
