//! What the `devices` section takes, and how it refuses the rest.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;

use keelson_device_plugin::DevicesSection;
use keelson_host::{HostRoot, Node, parse_section};
use serde_json::{Value, json};

fn section(value: &Value) -> DevicesSection {
    parse_section("devices", value).unwrap()
}

/// A node without any device.
fn node() -> (tempfile::TempDir, Node) {
    let directory = tempfile::tempdir().unwrap();
    let node = Node {
        name: "node-a".to_owned(),
        state_dir: directory.path().join("state"),
        root: HostRoot::at(directory.path().join("root")),
    };
    (directory, node)
}

/// The section's only problem, with its path, value and what is wrong.
#[track_caller]
fn check(value: &Value, path: &str, found: &str, wrong: &str) {
    let (_directory, node) = node();
    let problems = section(value).validate(&node).unwrap_err();
    assert_eq!(problems.0.len(), 1, "{problems}");
    let problem = &problems.0[0];
    assert_eq!((problem.path.as_str(), problem.value.as_str()), (path, found));
    assert!(problem.wrong.contains(wrong), "{problem}");
    assert!(!problem.remedy.is_empty(), "{problem}");
}

fn resource(value: &Value) -> Value {
    json!({"resources": [value]})
}

#[test]
fn the_documented_section_is_taken() {
    let (_directory, node) = node();
    let value = json!({
        "kubeletDir": "/var/lib/kubelet/device-plugins",
        "cdiDir": "/var/run/cdi",
        "resources": [
            {"name": "example.com/fpga", "simulated": {"count": 4}},
            {"name": "example.com/serial", "select": [{"deviceNodes": ["/dev/ttyS*"]}]},
            {"name": "example.com/accel", "select": [{"pci": {"vendor": "10ee", "device": "5000"}}]},
        ],
    });
    section(&value).validate(&node).unwrap();
    assert!(!node.state_dir.exists(), "validating changes nothing");
}

#[test]
fn every_key_has_a_default() {
    let defaults = section(&json!({}));
    assert_eq!(defaults, DevicesSection::default());
    assert_eq!(defaults.kubelet_dir.to_str(), Some("/var/lib/kubelet/device-plugins"));
    assert_eq!(defaults.cdi_dir.to_str(), Some("/var/run/cdi"));
    assert!(defaults.resources.is_empty());
    let (_directory, node) = node();
    defaults.validate(&node).unwrap();
    section(&resource(&json!({"name": "a.b/c", "simulated": {}}))).validate(&node).unwrap();
}

#[test]
fn what_is_printed_reads_back() {
    let value = json!({
        "kubeletDir": "/k", "cdiDir": "/c",
        "resources": [
            {"name": "a.b/c", "simulated": {"count": 2}},
            {"name": "a.b/d", "select": [{"deviceNodes": ["/dev/x"]}, {"pci": {"vendor": "0001", "device": "0x00Ff"}}]},
        ],
    });
    assert_eq!(serde_json::to_value(section(&value)).unwrap(), value);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_right_one() {
    let problem = |value| parse_section::<DevicesSection>("devices", &value).unwrap_err().to_string();
    assert_eq!(
        problem(json!({"cdidir": "/x"})),
        "devices.cdidir: \"/x\" is the value of an unknown key; did you mean \"cdiDir\"?"
    );
    let nested = problem(json!({"resources": [{"select": [{"pci": {"vendr": "10ee"}}]}]}));
    assert_eq!(
        nested,
        "devices.resources[0].select[0].pci.vendr: \"10ee\" is the value of an unknown key; did you mean \"vendor\"?"
    );
}

#[test]
fn names_outside_the_rules_are_refused_by_path() {
    for (name, wrong) in [
        ("", "missing"),
        ("fpga", "no domain"),
        ("kubernetes.io/fpga", "reserved"),
        ("node.kubernetes.io/fpga", "reserved"),
        ("requests.example.com/fpga", "requests."),
        ("Example.com/fpga", "no DNS name"),
        ("example.com/fpga!", "no valid name"),
        ("example.com/../x", "no valid name"),
    ] {
        check(&resource(&json!({"name": name, "simulated": {"count": 1}})), "devices.resources[0].name", name, wrong);
    }
}

#[test]
fn a_name_is_one_resources_alone() {
    let twice = json!({"resources": [
        {"name": "a.b/fpga", "simulated": {}}, {"name": "a.b/gpu", "simulated": {}}, {"name": "a.b/fpga", "simulated": {}},
    ]});
    check(&twice, "devices.resources[2].name", "a.b/fpga", "taken by devices.resources[0]");
    let same_kind = json!({"resources": [{"name": "a.b/3d", "simulated": {}}, {"name": "a.b/x3d", "simulated": {}}]});
    check(&same_kind, "devices.resources[1].name", "a.b/x3d", "same CDI kind");
}

#[test]
fn a_resource_has_one_source() {
    check(&resource(&json!({"name": "a.b/c"})), "devices.resources[0]", "", "no devices");
    check(&resource(&json!({"name": "a.b/c", "select": []})), "devices.resources[0]", "", "no devices");
    let both = json!({"name": "a.b/c", "simulated": {"count": 1}, "select": [{"deviceNodes": ["/dev/x"]}]});
    check(&resource(&both), "devices.resources[0]", "", "both simulated and select");
    for count in [0, 1025, u32::MAX] {
        let many = json!({"name": "a.b/c", "simulated": {"count": count}});
        check(&resource(&many), "devices.resources[0].simulated.count", &count.to_string(), "no number");
    }
}

#[test]
fn a_selector_has_one_key_and_sound_values() {
    let select = |selector: Value| resource(&json!({"name": "a.b/c", "select": [selector]}));
    let path = "devices.resources[0].select[0]";
    check(&select(json!({})), path, "", "selects nothing");
    check(&select(json!({"deviceNodes": []})), path, "", "selects nothing");
    let both = json!({"deviceNodes": ["/dev/x"], "pci": {"vendor": "10ee", "device": "5000"}});
    check(&select(both), path, "", "both deviceNodes and pci");
    for (pattern, wrong) in [
        ("ttyS*", "not below /dev"),
        ("/etc/shadow", "not below /dev"),
        ("/dev/../etc/shadow", "component \"..\""),
        ("/dev/", "component \"\""),
        ("/dev/**/tty", "**"),
        ("/dev/tty[", "not a pattern"),
    ] {
        let value = select(json!({"deviceNodes": ["/dev/fine", pattern]}));
        check(&value, &format!("{path}.deviceNodes[1]"), pattern, wrong);
    }
    for (vendor, wrong) in
        [("", "missing"), ("10e", "no"), ("10eeg", "no"), ("+0ee", "no"), ("0x10", "no"), ("Xilinx", "no")]
    {
        let value = select(json!({"pci": {"vendor": vendor, "device": "5000"}}));
        let (_directory, node) = node();
        let problems = section(&value).validate(&node).unwrap_err();
        assert_eq!(problems.0[0].path, format!("{path}.pci.vendor"), "{problems}");
        assert!(problems.0[0].wrong.contains(wrong), "{problems}");
    }
    for vendor in ["10ee", "10EE", "0x10ee"] {
        let (_directory, node) = node();
        section(&select(json!({"pci": {"vendor": vendor, "device": "5000"}}))).validate(&node).unwrap();
    }
}

#[test]
fn directories_are_absolute_and_directories() {
    check(&json!({"kubeletDir": "device-plugins"}), "devices.kubeletDir", "device-plugins", "not an absolute path");
    check(&json!({"cdiDir": ""}), "devices.cdiDir", "", "not an absolute path");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    check(&json!({"cdiDir": file}), "devices.cdiDir", file, "not a directory");
    let long = format!("/{}", "k".repeat(80));
    check(&json!({"kubeletDir": long}), "devices.kubeletDir", &long, "too long");
    let longest = format!("/{}", "k".repeat(107 - "/keelson-0123456789abcdef.sock".len() - 1));
    let (_directory, node) = node();
    section(&json!({"kubeletDir": longest})).validate(&node).unwrap();
}

#[test]
fn all_problems_are_told_at_once() {
    let value = json!({"kubeletDir": "x", "resources": [
        {"name": "fpga", "select": [{"deviceNodes": ["a", "/dev/b"]}, {"pci": {"vendor": "1", "device": "2"}}]},
        {"name": "a.b/c"},
    ]});
    let (_directory, node) = node();
    let problems = section(&value).validate(&node).unwrap_err();
    let paths: Vec<&str> = problems.0.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "devices.kubeletDir",
            "devices.resources[0].name",
            "devices.resources[0].select[0].deviceNodes[0]",
            "devices.resources[0].select[1].pci.vendor",
            "devices.resources[0].select[1].pci.device",
            "devices.resources[1]",
        ]
    );
}
