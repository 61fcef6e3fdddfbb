//! Installing a network and taking it away.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path};

use common::Node;
use keelson_cni::{NetworkMode, NetworkSection, NetworkSettings, install, uninstall};
use keelson_host::HostRoot;
use keelson_testkit::{Netns, is_root, skip_unless};
use serde_json::{Value, json};

/// A network whose state, config and executable lie in the node's directory.
fn network(node: &Node, name: &str, bridge: &str, range: &str) -> NetworkSettings {
    validate(node, &section(node, name, bridge, range))
}

fn section(node: &Node, name: &str, bridge: &str, range: &str) -> NetworkSection {
    let directory = node.directory.path();
    NetworkSection {
        name: name.to_owned(),
        bridge: bridge.to_owned(),
        ranges: vec![range.to_owned()],
        masquerade: true,
        mode: NetworkMode::Bridge,
        conf_dir: directory.join("conf"),
        bin_dir: directory.join("bin"),
    }
}

fn validate(node: &Node, section: &NetworkSection) -> NetworkSettings {
    let state_dir = node.directory.path().join("state");
    section.validate(&keelson_host::Node { name: "n".to_owned(), state_dir, root: HostRoot::system() }).unwrap()
}

/// Installs the network, and gives the plugin's config.
fn plugin_config_of(settings: &NetworkSettings) -> Value {
    install(settings, Path::new(env!("CARGO_BIN_EXE_keelson-cni"))).unwrap();
    plugin_config(settings)
}

/// The plugin's config as a runtime passes it on.
fn plugin_config(settings: &NetworkSettings) -> Value {
    let list: Value = serde_json::from_slice(&fs::read(settings.conflist_path()).unwrap()).unwrap();
    let mut config = list["plugins"][0].clone();
    config["name"] = list["name"].clone();
    config["cniVersion"] = json!("1.1.0");
    config
}

#[test]
fn an_installed_network_is_routed_where_its_mode_says_so() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let mut settings = network(&node, "one", "kt1", "10.71.0.0/24");
    let bridged = plugin_config_of(&settings);
    assert_eq!(bridged["capabilities"]["portMappings"], true);
    let section = NetworkSection { mode: NetworkMode::Routed, ..section(&node, "one", "kt1", "10.71.0.0/24") };
    settings = validate(&node, &section);
    let config = plugin_config_of(&settings);
    let pod = Netns::new().unwrap();
    assert_eq!(node.add("c", &pod, &config)["interfaces"].as_array().unwrap().len(), 2);
    node.call("DEL", "c", None, &config).silent();
    assert!(!node.traces().contains(&"link \"kt1\"".to_owned()));
}

#[test]
fn the_installed_network_works_and_can_be_taken_away() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let settings = network(&node, "one", "kt1", "10.71.0.0/24");
    let other = network(&node, "two", "kt2", "10.72.0.0/24");
    for settings in [&settings, &other] {
        install(settings, Path::new(env!("CARGO_BIN_EXE_keelson-cni"))).unwrap();
    }
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    node.add("c", &pods[0], &plugin_config(&settings));
    node.add("d", &pods[1], &plugin_config(&other));

    // A Pod is attached: the network stays as it is, with the config that the runtime needs to detach it.
    let config = plugin_config(&settings);
    let outcome = node.host.run(|| uninstall(&settings)).unwrap();
    assert_eq!((outcome.attachments_left, outcome.bridge_removed), (1, false));
    assert!(settings.conflist_path().exists());
    assert_eq!(node.rules(), ["keelson"]);

    node.call("DEL", "c", None, &config).silent();
    let outcome = node.host.run(|| uninstall(&settings)).unwrap();
    assert_eq!((outcome.attachments_left, outcome.bridge_removed), (0, true));
    assert!(!settings.conflist_path().exists());
    // The other network's rules and bridge are untouched.
    assert_eq!(node.traces().iter().filter(|trace| trace.contains("kt")).collect::<Vec<_>>(), ["link \"kt2\""]);
    assert_eq!(node.rules(), ["keelson"]);

    node.call("DEL", "d", None, &plugin_config(&other)).silent();
    node.host.run(|| uninstall(&other)).unwrap();
    node.host.run(|| uninstall(&other)).unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
    assert_eq!(fs::read_dir(settings.data_dir()).unwrap().count(), 0);
}

#[test]
fn a_bridge_of_somebody_elses_stays() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let settings = network(&node, "one", "kt1", "10.71.0.0/24");
    common::ip(&node.host, &["link", "add", "kt1", "type", "bridge"]);
    install(&settings, Path::new(env!("CARGO_BIN_EXE_keelson-cni"))).unwrap();
    let pod = Netns::new().unwrap();
    node.add("c", &pod, &plugin_config(&settings));
    node.call("DEL", "c", None, &plugin_config(&settings)).silent();
    let outcome = node.host.run(|| uninstall(&settings)).unwrap();
    assert_eq!((outcome.attachments_left, outcome.bridge_removed), (0, false));
    assert_eq!(node.traces(), ["link \"kt1\""]);
}
