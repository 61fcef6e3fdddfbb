use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::plugins;

const HEAD: &str = "apiVersion: keelson.dev/v1alpha1\nkind: NodeConfig\nnodeName: node-a\n";

/// The config that the design prints: its keys are fixed.
const DESIGN: &str = r#"
apiVersion: keelson.dev/v1alpha1
kind: NodeConfig
nodeName: node-a                  # default: $NODE_NAME, else the host name
stateDir: /var/lib/keelson
observability: {address: 127.0.0.1:9807}      # the supervisor's; an --only process: port +1 network, +2 storage, +3 devices, +4 pinning
network:
  {name: keelson, bridge: kl0, ranges: ["10.88.0.0/16"], masquerade: true, confDir: /etc/cni/net.d, binDir: /opt/cni/bin}
                                  # each entry of ranges is one range set: a Pod gets one address from each
storage:
  driverName: csi.keelson.dev
  endpoint: unix:///var/lib/kubelet/plugins/csi.keelson.dev/csi.sock      # $CSI_ENDPOINT wins; nothing else in that folder
  pools: [{name: default, path: /var/lib/keelson/pools/default, kind: image, allowSharedFilesystem: true}]
                                  # kind: image | directory | subvolume. Without allowSharedFilesystem a pool on the kubelet's or the
                                  # images' filesystem is refused: a full pool would evict innocent Pods
devices:
  kubeletDir: /var/lib/kubelet/device-plugins
  cdiDir: /var/run/cdi
  resources:
    - {name: example.com/fpga, simulated: {count: 4}}
    - {name: example.com/serial, select: [{deviceNodes: ["/dev/ttyS*"]}]}
    - {name: example.com/accel, select: [{pci: {vendor: "10ee", device: "5000"}}]}   # its nodes: character/block children in sysfs, /dev/vfio/<group>
pinning: {socket: /var/run/nri/nri.sock, pluginIndex: "10", mode: enforce, reservedCpus: ""}      # mode: observe | enforce
"#;

fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
    parse_in(text, Environment::default())
}

fn parse_in(text: &str, environment: Environment) -> Result<NodeConfig, ConfigError> {
    NodeConfig::parse(Path::new("config.yaml"), text, HostRoot::system(), environment)
}

/// The message that stops everything.
#[track_caller]
fn refused(text: &str, expected: &str) {
    assert_eq!(
        parse(text).unwrap_err().to_string(),
        format!("config.yaml: {}", expected.replace('\n', "\nconfig.yaml: "))
    );
}

/// The message that stops one plugin.
#[track_caller]
fn section_refused(kind: PluginKind, section: &str, expected: &str) {
    let config = parse(&format!("{HEAD}{section}")).unwrap();
    let problems = plugins::check(kind, &config).unwrap_err().to_string();
    assert!(problems.contains(expected), "{problems:?} has no {expected:?}");
}

#[test]
fn the_designs_own_config_is_read_key_by_key() {
    let config = parse(DESIGN).unwrap();
    assert_eq!(config.enabled(), PluginKind::ALL);
    let effective = config.effective().unwrap();
    assert_eq!(effective["storage.pools[0].kind"].value, "image");
    assert_eq!(effective["devices.resources[0].simulated.count"].value, 4);
    assert_eq!(effective["devices.resources[1].select[0].deviceNodes[0]"].value, "/dev/ttyS*");
    assert_eq!(effective["devices.resources[2].select[0].pci.vendor"].value, "10ee");
    assert_eq!(effective["pinning.pluginIndex"].value, "10");
    assert_eq!(effective["network.ranges[0]"].value, "10.88.0.0/16");
    assert_eq!(config.address().to_string(), "127.0.0.1:9807");
    let ports = PluginKind::ALL.map(|kind| config.plugin_address(kind).port());
    assert_eq!(ports, [9808, 9809, 9810, 9811]);
}

#[test]
fn the_default_config_has_every_key_at_its_default() {
    let written = parse(DEFAULT).unwrap().effective().unwrap();
    let sections: String = PluginKind::ALL.map(|kind| format!("{kind}: {{}}\n")).concat();
    let filled_in = parse(&format!("{HEAD}{sections}")).unwrap().effective().unwrap();
    for (path, found) in &filled_in {
        let here = written.get(path).unwrap_or_else(|| panic!("config default lacks {path}"));
        if path != "nodeName" {
            assert_eq!(here.value, found.value, "{path}");
            assert_eq!(here.origin, Origin::File, "{path} is not written in config default");
        }
    }
    assert_eq!(written.len(), filled_in.len());
}

#[test]
fn an_unknown_version_stops_everything() {
    refused("[]", "is not a mapping; begin with `apiVersion: keelson.dev/v1alpha1`");
    refused("kind: NodeConfig", "apiVersion: is missing; write \"keelson.dev/v1alpha1\"");
    refused(
        "{apiVersion: keelson.dev/v2, kind: Pod, other: 1}",
        "apiVersion: \"keelson.dev/v2\" is not known to this release; write \"keelson.dev/v1alpha1\"\n\
         kind: \"Pod\" is not known to this release; write \"NodeConfig\"",
    );
}

#[test]
fn a_wrong_shared_key_stops_everything() {
    refused(
        &format!("{HEAD}netwrok: {{}}"),
        "netwrok: \"{}\" is the value of an unknown key; did you mean \"network\"?",
    );
    refused(
        &format!("{HEAD}stateDir: var/lib"),
        "stateDir: \"var/lib\" is not absolute; write a path like /var/lib/keelson",
    );
    refused(&format!("{HEAD}stateDir: /"), "stateDir: \"/\" is the root directory; write a path like /var/lib/keelson");
    refused(
        &format!("{HEAD}stateDir: /var/../etc"),
        "stateDir: \"/var/../etc\" has a `..` in it; write a path like /var/lib/keelson",
    );
    refused(
        &HEAD.replace("node-a", "Node_A"),
        "nodeName: \"Node_A\" is not a node name; write lower-case letters, digits, '-' and '.', at most 253, \
         as in `kubectl get nodes`",
    );
    refused(
        &format!("{HEAD}observability: {{address: localhost:80}}"),
        "observability.address: \"localhost:80\" is not an IP address with a port; \
         write it like 127.0.0.1:9807 or [::1]:9807",
    );
    refused(
        &format!("{HEAD}observability: {{address: \"[::1]:65532\"}}"),
        "observability.address: \"[::1]:65532\" leaves no room for the plugins' ports above it; \
         choose a port up to 65531",
    );
    refused(
        &format!("{HEAD}observability: {{adress: x}}\nstatedir: 1"),
        "observability.adress: \"x\" is the value of an unknown key; did you mean \"address\"?\n\
         statedir: \"1\" is the value of an unknown key; did you mean \"stateDir\"?",
    );
}

#[test]
fn a_wrong_section_stops_its_plugin_only() {
    let config = parse(&format!("{HEAD}network: {{rangs: []}}\npinning: {{}}")).unwrap();
    let problems = plugins::check(PluginKind::Network, &config).unwrap_err();
    assert_eq!(problems.to_string(), "network.rangs: \"[]\" is the value of an unknown key; did you mean \"ranges\"?");
    assert_eq!(plugins::check(PluginKind::Pinning, &config), Ok(()));
    let problems = plugins::check(PluginKind::Storage, &config).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "storage: is missing, so this plugin doesn't run; write `storage: {}` to run it with its defaults"
    );
}

#[test]
fn every_bad_input_names_its_key_and_value() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/", &link).unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let pool = |path: &Path| {
        format!("storage: {{pools: [{{name: a, path: {}, allowSharedFilesystem: true}}]}}", path.display())
    };
    section_refused(PluginKind::Network, "network:", "network: is empty; write `network: {}`");
    section_refused(PluginKind::Network, "network: {bridge: 7}", "network.bridge: \"7\" is not valid here");
    section_refused(
        PluginKind::Network,
        "network: {ranges: [10.1.0.0/16, 10.1.2.0/24]}",
        "network.ranges[1]: \"10.1.2.0/24\" overlaps 10.1.0.0/16",
    );
    section_refused(
        PluginKind::Network,
        "network: {ranges: [10.1.0.0/31]}",
        "network.ranges[0]: \"10.1.0.0/31\" is too small",
    );
    section_refused(PluginKind::Storage, &pool(&link), &format!("storage.pools[0].path: {link:?} is a symbolic link"));
    section_refused(PluginKind::Storage, &pool(&file), &format!("storage.pools[0].path: {file:?} is not a directory"));
    section_refused(
        PluginKind::Devices,
        "devices: {resources: [{name: fpga, simulated: {count: 1}}]}",
        "devices.resources[0].name: \"fpga\"",
    );
    section_refused(
        PluginKind::Devices,
        "devices: {resources: [{name: kubernetes.io/fpga, simulated: {count: 1}}]}",
        "devices.resources[0].name: \"kubernetes.io/fpga\"",
    );
    section_refused(PluginKind::Pinning, "pinning: {pluginIndex: \"1\"}", "pinning.pluginIndex: \"1\"");
}

#[test]
fn the_environment_fills_in_and_wins() {
    let environment = Environment {
        node_name: Some("from-environment".to_owned()),
        csi_endpoint: Some("unix:///run/other.sock".to_owned()),
    };
    let text = format!("{}storage: {{}}\n", HEAD.replace("nodeName: node-a\n", ""));
    let config = parse_in(&text, environment.clone()).unwrap();
    assert_eq!(config.node().name, "from-environment");
    let effective = config.effective().unwrap();
    let found = |path: &str| (effective[path].value.clone(), effective[path].origin);
    assert_eq!(found("nodeName"), (json!("from-environment"), Origin::Environment));
    assert_eq!(found("storage.endpoint"), (json!("unix:///run/other.sock"), Origin::Environment));
    assert_eq!(found("storage.driverName"), (json!("csi.keelson.dev"), Origin::Default));
    assert_eq!(found("kind"), (json!("NodeConfig"), Origin::File));
    assert_eq!(parse_in(HEAD, environment).unwrap().node().name, "node-a");
}

#[test]
fn the_schema_knows_every_key() {
    let schema = serde_json::to_string(&schema()).unwrap();
    for path in parse(DESIGN).unwrap().effective().unwrap().keys() {
        for key in path.split(['.', '[', ']']).filter(|key| key.parse::<usize>().is_err() && !key.is_empty()) {
            assert!(schema.contains(&format!("\"{key}\"")), "the schema lacks {key}");
        }
    }
}

#[test]
fn what_is_no_file_of_a_sane_size_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let load = |path: &Path| keelson_host::error_chain(&NodeConfig::load(path, HostRoot::system()).unwrap_err());
    let missing = directory.path().join("missing");
    let hint = "; write one with `keelson config default > FILE`, or name one with --config FILE";
    let expected = format!("failed to read {}: No such file or directory (os error 2){hint}", missing.display());
    assert_eq!(load(&missing), expected);
    assert!(load(directory.path()).ends_with("not a regular file"));
    let long = directory.path().join("long");
    std::fs::write(&long, vec![b'#'; 2 << 20]).unwrap();
    assert!(load(&long).ends_with("longer than 1048576 bytes, which no config is"));
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        Just(json!("10.0.0.0/8")),
        Just(json!("/dev/*")),
    ];
    let key = prop_oneof![
        Just("name"),
        Just("ranges"),
        Just("pools"),
        Just("path"),
        Just("resources"),
        Just("select"),
        Just("pci"),
        Just("simulated"),
        Just("count"),
        Just("reservedCpus"),
        Just("endpoint"),
        Just("bridge"),
        Just("address"),
        Just("a.b[0]"),
        Just("")
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..4).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_value_in_any_section_makes_it_panic(values in prop::array::uniform5(any_value())) {
        let [network, storage, devices, pinning, observability] = values;
        let text = json!({
            "apiVersion": API_VERSION, "kind": KIND, "nodeName": "a", "stateDir": "/nonexistent/keelson",
            "network": network, "storage": storage, "devices": devices, "pinning": pinning,
        });
        // JSON is YAML.
        if let Ok(config) = parse(&text.to_string()) {
            for kind in config.enabled() {
                if let Err(problems) = plugins::check(kind, &config) {
                    prop_assert!(!problems.0.is_empty());
                    for problem in problems.0 {
                        prop_assert!(problem.path.starts_with(kind.name()), "{problem}");
                    }
                }
            }
        }
        let text = json!({"apiVersion": API_VERSION, "kind": KIND, "observability": observability});
        // Either answer is right; returning at all is the property.
        let _ = parse(&text.to_string());
    }
}
