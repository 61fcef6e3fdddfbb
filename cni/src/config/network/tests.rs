//! Network configs: what is read from them, and what is refused.

use proptest::prelude::*;

use super::*;

fn ours() -> Executable {
    Executable::called(None)
}

fn config(mut value: Value) -> Result<Attachment, ConfigError> {
    value["cniVersion"] = json!("1.1.0");
    value["name"] = json!("net");
    NetworkConfig::parse(value.to_string().as_bytes(), &ours())?.attachment(&CniArgs::default())
}

#[track_caller]
fn invalid(value: Value, expected: &str) {
    match config(value) {
        Err(ConfigError::Invalid(problems)) => assert_eq!(problems.to_string(), expected),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn unsupported(value: Value, expected: &str) {
    match config(value) {
        Err(ConfigError::Unsupported(problem)) => assert_eq!(problem.to_string(), expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn versions_are_matched_exactly() {
    let parse = |text: &str| NetworkConfig::parse(text.as_bytes(), &ours());
    for version in SpecVersion::ALL {
        assert!(parse(&json!({"cniVersion": version.as_str(), "name": "n"}).to_string()).is_ok());
    }
    for (text, version) in
        [(r#"{"cniVersion": "9.9.9", "name": "n"}"#, "9.9.9"), (r#"{"cniVersion": "1.1", "name": "n"}"#, "1.1")]
    {
        assert_eq!(parse(text).unwrap_err(), ConfigError::Version(version.to_owned()));
    }
    for text in ["", "{", "[]", "7", r#"{"cniVersion": 1}"#, "{} {}"] {
        assert!(matches!(parse(text), Err(ConfigError::Decode(_))), "{text}");
    }
}

#[test]
fn an_absent_or_empty_ipam_is_a_layer_2_attachment() {
    for value in [json!({}), json!({"ipam": {}}), json!({"ipam": null})] {
        assert!(config(value).unwrap().sets.is_empty());
    }
    invalid(
        json!({"ipam": {"dataDir": "/x"}}),
        "ipam: has neither type nor ranges; give it ranges, or remove it for a layer-2 attachment; its own type is keelson-cni",
    );
    invalid(json!({"ipam": {"type": "../x"}}), "ipam.type: \"../x\" is a path; give the file name of a plugin");
}

#[test]
fn the_types_tell_who_does_what() {
    let parse = |name: &str, value: Value| {
        let mut value = value;
        value["name"] = json!("n");
        NetworkConfig::parse(value.to_string().as_bytes(), &Executable::called(Some(name.as_ref()))).unwrap()
    };
    for (name, value, plugin, is_ipam) in [
        ("keelson-cni", json!({"type": "keelson-cni", "ipam": {"type": "keelson-cni"}}), None, false),
        ("keelson-cni", json!({"type": "keelson-cni", "ipam": {"type": "host-local"}}), Some("host-local"), false),
        ("keelson-cni", json!({"type": "bridge", "ipam": {"type": "keelson-cni"}}), None, true),
        ("bridge", json!({"type": "bridge", "ipam": {"type": "keelson-cni"}}), None, false),
        ("bridge", json!({"type": "bridge", "ipam": {"type": "host-local"}}), Some("host-local"), false),
        ("keelson-cni", json!({"ipam": {"ranges": []}}), None, false),
    ] {
        let config = parse(name, value.clone());
        assert_eq!((config.ipam_plugin.as_deref(), config.is_ipam), (plugin, is_ipam), "{name} {value}");
    }
}

#[test]
fn the_mode_is_the_personas_unless_the_config_tells() {
    let bridge = |name: &str, mode: Value| {
        let text = json!({"name": "n", "cniVersion": "1.1.0", "mode": mode}).to_string();
        let executable = Executable::called(Some(name.as_ref()));
        NetworkConfig::parse(text.as_bytes(), &executable).unwrap().attachment(&CniArgs::default()).unwrap().bridge
    };
    assert_eq!(bridge("keelson-cni", Value::Null).as_deref(), Some("cni0"));
    assert_eq!(bridge("keelson-cni", json!("routed")), None);
    assert_eq!(bridge("ptp", Value::Null), None);
    assert_eq!(bridge("ptp", json!("bridge")).as_deref(), Some("cni0"));
    invalid(json!({"mode": "macvlan"}), "mode: \"macvlan\" is no mode of attachment; take \"bridge\" or \"routed\"");
    invalid(
        json!({"mode": "routed", "hairpinMode": true}),
        "hairpinMode: \"true\" is about a bridge, and mode \"routed\" has none; remove the key, or take mode \"bridge\"",
    );
}

#[test]
fn ranges_come_in_host_locals_ways_and_order() {
    let found = config(json!({
        "isDefaultGateway": true,
        "IPAM": {
            "Type": "keelson-cni",
            "subnet": "10.1.0.0/24",
            "ranges": [[{"SUBNET": "10.2.0.0/24", "rangeStart": "10.2.0.9"}, {"subnet": "10.3.0.0/24"}], [{"subnet": "fd00::/64"}]],
            "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.7"}],
        },
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.4.0.0/24"}]]},
    }))
    .unwrap();
    let subnets: Vec<Vec<String>> =
        found.sets.iter().map(|set| set.0.iter().map(|range| range.subnet.to_string()).collect()).collect();
    assert_eq!(
        subnets,
        [vec!["10.4.0.0/24"], vec!["10.1.0.0/24"], vec!["10.2.0.0/24", "10.3.0.0/24"], vec!["fd00::/64"]]
    );
    let routes: Vec<String> = found.routes.iter().map(|route| route.dst.to_string()).collect();
    assert_eq!(routes, ["10.9.0.0/16", "0.0.0.0/0", "::/0"]);
    assert!(found.is_gateway);
}

#[test]
fn what_would_be_ignored_is_refused() {
    unsupported(json!({"ipMasqBackend": "pf"}), "ipMasqBackend: \"pf\" is not supported; remove the key");
    invalid(
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 80}]}}),
        "runtimeConfig.portMappings[0].containerPort: is missing though there is a host port; take 1 to 65535",
    );
    assert!(
        config(json!({"vlan": 0, "vlanTrunk": [], "macspoofchk": false, "runtimeConfig": {"portMappings": []}}))
            .is_ok()
    );
}

#[test]
fn the_runtimes_name_servers_win() {
    let found = config(json!({
        "dns": {"nameservers": ["192.0.2.1"], "domain": "a"},
        "runtimeConfig": {"dns": {"servers": ["192.0.2.53"], "searches": ["b.example"], "options": ["ndots:5"]}},
    }))
    .unwrap();
    let expected = Dns {
        nameservers: vec!["192.0.2.53".to_owned()],
        domain: None,
        search: vec!["b.example".to_owned()],
        options: vec!["ndots:5".to_owned()],
    };
    assert_eq!(found.dns, expected);
    let own = config(json!({"dns": {"nameservers": ["192.0.2.1"]}, "runtimeConfig": {"dns": {}}})).unwrap();
    assert_eq!(own.dns.nameservers, ["192.0.2.1"]);
}

#[test]
fn a_whole_list_and_a_name_of_another_plugin_are_refused() {
    invalid(
        json!({"plugins": [{"type": "keelson-cni"}]}),
        "plugins: makes this a list of plugins, as a runtime reads it; pass one entry of the list, with the list's name and cniVersion in it",
    );
    let text = json!({"name": "n", "type": "bandwidth"}).to_string();
    let error = NetworkConfig::parse(text.as_bytes(), &Executable::called(Some("/x/bandwidth".as_ref()))).unwrap_err();
    assert!(error.to_string().contains("argv[0]: \"bandwidth\" is the name of a plugin"), "{error}");
}

#[test]
fn bad_values_are_named() {
    invalid(
        json!({"bridge": "a/b"}),
        "bridge: \"a/b\" has a '/', ':', '%', white space or control character; use 1 to 15 characters without '/', ':' and spaces",
    );
    invalid(json!({"mtu": 40}), "mtu: \"40\" is out of range; take 68 to 65535, 0 for the bridge's, or \"auto\"");
    invalid(
        json!({"mtu": 1000, "ipam": {"subnet": "fd00::/64"}}),
        "mtu: \"1000\" is out of range; take 1280 to 65535, 0 for the bridge's, or \"auto\"",
    );
    invalid(
        json!({"mtu": "1400"}),
        "mtu: \"1400\" is not a whole number from 0 to 4294967295; write its digits without quotes",
    );
    invalid(
        json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "10.9.0.0/16", "gw": "there"}]}}),
        "ipam.routes[0].gw: \"there\" is not an IP address; write it as 10.88.0.1 or fd00:88::1",
    );
    invalid(json!({"isGateway": "yes"}), "isGateway: \"yes\" is not true or false");
    invalid(
        json!({"ipam": {"subnet": "10.0.0.0/24", "dataDir": "x"}}),
        "ipam.dataDir: \"x\" is not an absolute path; give the path from the root, such as /run/keelson/network",
    );
    invalid(
        json!({"ipam": {"ranges": [{"subnet": "10.0.0.0/24"}]}}),
        "ipam.ranges[0]: \"{\\\"subnet\\\":\\\"10.0.0.0/24\\\"}\" is not a list; each range set is a list of ranges, also one of one: [[{\"subnet\": \"10.88.0.0/16\"}]]",
    );
    invalid(
        json!({"ipam": {"type": "keelson-cni"}}),
        "ipam.ranges: names no range; give at least one, such as 10.88.0.0/16",
    );
    invalid(
        json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}}),
        "ipam.ranges[1][0].subnet: \"10.0.0.0/25\" overlaps 10.0.0.0/24 (ipam.ranges[0][0].subnet); make the ranges disjoint",
    );
    invalid(
        json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0"}]}}),
        "ipam.routes[0].dst: \"::/0\" is of a family that no range gives addresses of; remove the route or add a range",
    );
    let routes = |routes: Value| json!({"isDefaultGateway": true, "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]], "routes": routes}});
    invalid(
        routes(json!([{"dst": "10.9.0.0/16"}, {"dst": "10.9.1.2/16"}])),
        "ipam.routes[1].dst: \"10.9.0.0/16\" is the route of an earlier entry; remove one of the two",
    );
    invalid(
        routes(json!([{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "0.0.0.0/0"}])),
        "ipam.routes[1].dst: \"0.0.0.0/0\" is the route of an earlier entry; remove one of the two",
    );
    invalid(
        routes(json!([{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}])),
        "ipam.routes[0].gw: \"10.8.0.1\" is in no subnet that the container is on; take an address of a subnet of the ranges, or put a route with scope 253 (link) to it in front",
    );
    for good in [
        json!([{"dst": "10.9.0.0/16", "priority": 1}, {"dst": "10.9.0.0/16", "table": 7}, {"dst": "10.9.0.0/16"}]),
        json!([{"dst": "10.9.0.0/16", "gw": "10.0.0.7"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.8"}]),
        json!([{"dst": "10.8.0.1/32", "scope": 253}, {"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]),
        json!([{"dst": "fd01::/64", "gw": "fe80::1"}]),
    ] {
        config(routes(good.clone())).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    invalid(
        json!({"ipam": {"subnet": "10.0.0.0/24"}, "runtimeConfig": {"ips": ["10.9.0.1"]}}),
        "runtimeConfig.ips: \"10.9.0.1\" is in no range: failed to allocate all requested IPs: 10.9.0.1; ask for an address that a range offers",
    );
    invalid(
        json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}),
        "runtimeConfig.mac: \"01:00:00:00:00:00\" is not the Ethernet address of an interface; write it as 02:00:5e:10:00:01",
    );
}

#[test]
fn no_word_on_valid_attachments_is_not_an_empty_list() {
    let parse = |value: Value| {
        let mut value = value;
        value["cniVersion"] = json!("1.1.0");
        value["name"] = json!("net");
        NetworkConfig::parse(value.to_string().as_bytes(), &ours()).unwrap().valid_attachments()
    };
    assert_eq!(parse(json!({})).unwrap(), None);
    assert_eq!(parse(json!({"cni.dev/valid-attachments": []})).unwrap(), Some(vec![]));
    let one = json!([{"containerID": "c", "ifname": "eth0"}]);
    let key = AttachmentKey { container_id: "c".to_owned(), ifname: "eth0".to_owned() };
    assert_eq!(parse(json!({"cni.dev/attachments": one})).unwrap(), Some(vec![key]));
    assert!(parse(json!({"cni.dev/valid-attachments": [{"containerID": "c"}]})).is_err());
}

proptest! {
    #[test]
    fn no_document_panics(text in "\\PC{0,200}") {
        let _ = NetworkConfig::parse(text.as_bytes(), &ours());
    }

    #[test]
    fn no_ipam_panics(key in "(type|ranges|subnet|routes|dataDir|gateway)", text in "\\PC{0,40}", number in any::<i64>()) {
        for value in [json!(text), json!(number), json!([text]), json!([[{"subnet": text, "rangeStart": text}]]), json!([{"dst": text}]), json!({"a": text})] {
            let _ = config(json!({"ipam": {key.as_str(): value, "subnet": "10.0.0.0/24"}}));
        }
    }
}
