//! The scenarios of the reference bridge's own tests, in every version of the spec and by two names. The table is
//! `reference.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, net::IpAddr};

use common::{
    Node, call_environment, feed, ip,
    reference::{DUAL_STACK, IPV4, IPV6, Play, SEVERAL, Subnet, plays},
    traffic::{talk, world},
};
use keelson_testkit::{Netns, is_root, scenario, skip_unless};
use serde_json::{Value, json};

#[test]
fn the_bridge_is_made_once_and_keeps_its_ethernet_address() {
    skip_unless!(is_root(), "needs root");
    for play in plays() {
        let config = play.config(&IPV4);
        play.add(&config);
        let made = play.bridge();
        assert_eq!((&made["linkinfo"]["info_kind"], &made["operstate"]), (&json!("bridge"), &json!("UP")));
        // The kernel would give a bridge without one of its own the lowest of its ports'.
        ip(
            &play.node.host,
            &["link", "add", "low", "address", "00:00:00:00:00:01", "type", "veth", "peer", "name", "l1"],
        );
        ip(&play.node.host, &["link", "set", "low", "master", "kt0"]);
        assert_eq!(play.ports().len(), 2);
        ip(&play.node.host, &["link", "del", "low"]);
        let second = Netns::new().unwrap();
        let mut command = play.command("ADD");
        command.env("CNI_CONTAINERID", "d").env("CNI_NETNS", second.path());
        assert_eq!(feed(command, config.to_string().as_bytes()).status, 0);
        assert_eq!(play.ports().len(), 2);
        let later = play.bridge();
        assert_eq!((&later["ifindex"], &later["address"]), (&made["ifindex"], &made["address"]));
        scenario(15, play.version);
        scenario(18, play.version);
    }
}

#[test]
fn a_bridge_that_is_there_is_used() {
    skip_unless!(is_root(), "needs root");
    for play in plays() {
        ip(&play.node.host, &["link", "add", "name", "kt0", "type", "bridge"]);
        let before = play.bridge();
        let config = play.config(&IPV4);
        play.add(&config);
        assert_eq!(play.ports().len(), 1);
        assert_eq!(play.bridge()["ifindex"], before["ifindex"]);
        play.del(&config);
        assert_eq!(play.bridge()["ifindex"], before["ifindex"]);
        scenario(16, play.version);
    }
}

/// What a bridge that has `first` has after an ADD whose gateway address is `second`.
fn meet(play: &Play, first: &str, second: Subnet, force: bool) -> Result<String, String> {
    ip(&play.node.host, &["link", "add", "name", "kt0", "type", "bridge"]);
    ip(&play.node.host, &["addr", "add", first, "dev", "kt0"]);
    let mut config = play.config(&[second]);
    config["forceAddress"] = json!(force);
    let answer = play.call("ADD", &config);
    let addresses = ip(&play.node.host, &["addr", "show", "kt0"]);
    if answer.status == 0 {
        return Ok(addresses);
    }
    assert_eq!(answer.code(), 102, "{answer:?}");
    assert!(addresses.contains(first), "{addresses}");
    play.left();
    Err(answer.json()["msg"].as_str().unwrap().to_owned())
}

#[test]
fn another_address_of_the_bridge_is_kept_refused_or_replaced() {
    skip_unless!(is_root(), "needs root");
    let four = Subnet { subnet: "10.1.0.0/16", gateway: "10.1.0.1", first: "10.1.0.2/16" };
    let six = Subnet { subnet: "2001:db8:1:2::/64", gateway: "2001:db8:1:2::1", first: "2001:db8:1:2::2/64" };
    let apart = Subnet { subnet: "fd00:1234::/64", gateway: "fd00:1234::1", first: "fd00:1234::2/64" };
    for (number, first, second, expected) in
        [(19, "10.0.0.1/8", four, "10.1.0.1/16"), (20, "2001:db8:1::1/48", six, "2001:db8:1:2::1/64")]
    {
        for play in plays() {
            let words = meet(&play, first, second, false).unwrap_err();
            assert!(words.contains(&format!("already has an IP address different from {expected}")), "{words}");
            scenario(number, play.version);
        }
        for play in plays() {
            let addresses = meet(&play, first, second, true).unwrap();
            assert!(addresses.contains(expected) && !addresses.contains(first), "{addresses}");
            scenario(22, play.version);
        }
    }
    for play in plays() {
        let addresses = meet(&play, "2001:db8:1:2::1/64", apart, false).unwrap();
        assert!(["2001:db8:1:2::1/64", "fd00:1234::1/64"].iter().all(|own| addresses.contains(own)), "{addresses}");
        scenario(21, play.version);
    }
}

/// ADD, CHECK and DEL with what the kernel has meanwhile.
fn comes_and_goes(play: &Play, subnets: &[Subnet]) {
    let config = play.config(subnets);
    let result = play.add(&config);
    play.gave(&result, subnets);
    let ports = play.ports();
    assert_eq!(ports.len(), 1);
    if !play.has_old_results() {
        let names = [0, 1, 2].map(|index| result["interfaces"][index]["name"].clone());
        assert_eq!(names, [json!("kt0"), ports[0]["ifname"].clone(), json!("eth0")]);
        assert_eq!(result["interfaces"][2]["sandbox"], play.pod.path().to_str().unwrap());
    }
    let (host, container) = (ip(&play.node.host, &["addr"]), ip(&play.pod, &["addr", "show", "eth0"]));
    for subnet in subnets {
        let length = subnet.subnet.split_once('/').unwrap().1;
        assert!(host.contains(&format!(" {}/{length} ", subnet.gateway)), "{host}");
        assert!(container.contains(&format!(" {} ", subnet.first)), "{container}");
        talk(&play.pod, &play.node.host, subnet.gateway.parse().unwrap());
    }
    for (family, is_ipv4) in [("-4", true), ("-6", false)] {
        let gateway = subnets.iter().find(|subnet| subnet.gateway.contains('.') == is_ipv4);
        let default = ip(&play.pod, &[family, "route", "show", "default"]);
        let expected = gateway.map(|subnet| format!("default via {} dev eth0", subnet.gateway)).unwrap_or_default();
        assert!(default.starts_with(&expected) && default.is_empty() == expected.is_empty(), "{expected}: {default}");
    }
    play.check(&config, &result);
    if play.has_check() {
        ip(&play.pod, &["addr", "flush", "dev", "eth0", "scope", "global"]);
        let mut check = config.clone();
        check["prevResult"] = result;
        assert_eq!(play.call("CHECK", &check).code(), 105);
    }
    play.del(&config);
}

#[test]
fn a_container_with_addresses_comes_and_goes() {
    skip_unless!(is_root(), "needs root");
    for (added, checked, subnets) in [(23, 28, &IPV4[..]), (24, 29, &IPV6), (25, 30, &DUAL_STACK)] {
        for play in plays() {
            comes_and_goes(&play, subnets);
            scenario(added, play.version);
            if play.has_check() {
                scenario(checked, play.version);
            }
        }
    }
    for play in plays() {
        if play.has_old_results() {
            play.refused(&play.config(&SEVERAL), "does not support more than 1 address per family");
            play.del(&play.config(&SEVERAL));
        } else {
            comes_and_goes(&play, &SEVERAL);
        }
        scenario(26, play.version);
    }
}

#[test]
fn name_servers_are_those_of_the_file() {
    skip_unless!(is_root(), "needs root");
    for play in plays() {
        let file = play.node.directory.path().join("resolv.conf");
        fs::write(&file, "nameserver 192.0.2.3\nsearch a.example b.example\noptions ndots:5\ndomain c.example\n")
            .unwrap();
        let mut config = play.config(&IPV4);
        config["ipam"]["resolvConf"] = json!(file);
        let result = play.add(&config);
        play.gave(&result, &IPV4);
        let expected = json!({"nameservers": ["192.0.2.3"], "domain": "c.example",
            "search": ["a.example", "b.example"], "options": ["ndots:5"]});
        assert_eq!(result["dns"], expected);
        play.del(&config);
        scenario(27, play.version);
    }
}

#[test]
fn a_container_without_addresses_comes_and_goes() {
    skip_unless!(is_root(), "needs root");
    for play in plays() {
        let config = play.config(&[]);
        if play.has_old_results() {
            play.refused(&config, "no valid IP addresses");
        } else {
            let result = play.add(&config);
            assert_eq!((result.get("ips"), result["interfaces"].as_array().map(Vec::len)), (None, Some(3)));
            assert_eq!(play.ports().len(), 1);
            assert!(ip(&play.pod, &["link", "show", "eth0"]).contains("state UP"));
            assert!(!ip(&play.pod, &["-4", "addr"]).contains("eth0"));
            play.check(&config, &result);
        }
        play.del(&config);
        scenario(37, play.version);
    }
}

#[test]
fn an_interface_is_left_down_only_without_ipam() {
    skip_unless!(is_root(), "needs root");
    for play in plays() {
        let mut config = play.config(&IPV4);
        config["disableContainerInterface"] = json!(true);
        play.refused(&config, "disableContainerInterface");
        scenario(42, play.version);
        config["ipam"] = json!({});
        config["isDefaultGateway"] = json!(false);
        if play.has_old_results() {
            play.refused(&config, "no valid IP addresses");
        } else {
            let result = play.add(&config);
            assert!(ip(&play.pod, &["link", "show", "eth0"]).contains("state DOWN"));
            play.check(&config, &result);
        }
        play.del(&config);
        scenario(43, play.version);
    }
}

#[test]
fn ports_are_isolated_when_asked_for() {
    skip_unless!(is_root(), "needs root");
    for (number, isolated) in [(44, false), (45, true)] {
        for play in plays() {
            let mut config = play.config(&IPV4);
            config["portIsolation"] = json!(isolated);
            let result = play.add(&config);
            assert_eq!(play.ports()[0]["linkinfo"]["info_slave_data"]["isolated"], isolated);
            play.check(&config, &result);
            scenario(number, play.version);
        }
    }
}

#[test]
fn del_makes_nothing_where_nothing_was() {
    skip_unless!(is_root(), "needs root");
    for play in plays() {
        play.call("DEL", &play.config(&IPV4)).silent();
        assert_eq!(play.node.traces(), Vec::<String>::new());
        scenario(46, play.version);
    }
}

#[test]
fn the_containers_ethernet_address_is_the_one_asked_for() {
    skip_unless!(is_root(), "needs root");
    let add = |play: &Play, config: &Value, args: &str, expected: &str| {
        let mut command = play.command("ADD");
        command.env("CNI_ARGS", format!("IgnoreUnknown=true;{args}"));
        let answer = feed(command, config.to_string().as_bytes());
        assert_eq!(answer.status, 0, "{answer:?}");
        let link: Value = serde_json::from_str(&ip(&play.pod, &["-j", "link", "show", "eth0"])).unwrap();
        assert_eq!(link[0]["address"], expected);
        if !play.has_old_results() {
            assert_eq!(answer.json()["interfaces"][2]["mac"], expected);
        }
        play.del(config);
    };
    for play in plays() {
        let mut config = play.config(&IPV4);
        add(&play, &config, "MAC=c2:11:22:33:44:55", "c2:11:22:33:44:55");
        scenario(47, play.version);
        // Each wins over those before.
        config["args"] = json!({"cni": {"mac": "c2:11:22:33:44:66"}});
        add(&play, &config, "MAC=c2:11:22:33:44:55", "c2:11:22:33:44:66");
        scenario(48, play.version);
        config["runtimeConfig"] = json!({"mac": "c2:11:22:33:44:77"});
        add(&play, &config, "MAC=c2:11:22:33:44:55", "c2:11:22:33:44:77");
        scenario(49, play.version);
    }
}

#[test]
fn an_error_after_the_ipam_gives_the_address_back() {
    skip_unless!(is_root(), "needs root");
    for play in plays() {
        // Only when the IPAM has told the gateway can it be seen not to fit.
        ip(&play.node.host, &["link", "add", "name", "kt0", "type", "bridge"]);
        ip(&play.node.host, &["addr", "add", "10.9.9.1/24", "dev", "kt0"]);
        let config = play.config(&IPV4);
        assert_eq!(play.call("ADD", &config).code(), 102);
        play.left();
        ip(&play.node.host, &["addr", "flush", "dev", "kt0"]);
        play.add(&config);
        play.del(&config);
        scenario(50, play.version);
    }
}

#[test]
fn the_world_sees_the_node_with_every_backend_that_may_be_asked_for() {
    skip_unless!(is_root(), "needs root");
    let there: IpAddr = "192.0.2.2".parse().unwrap();
    for (number, backend) in [(51, None), (52, Some("iptables")), (53, Some("nftables"))] {
        for play in plays() {
            let outside = world(&play.node);
            let mut config = play.config(&IPV4);
            config["ipMasq"] = json!(true);
            if let Some(backend) = backend {
                config["ipMasqBackend"] = json!(backend);
            }
            let result = play.add(&config);
            assert_eq!(talk(&play.pod, &outside, there), "192.0.2.1".parse::<IpAddr>().unwrap());
            play.check(&config, &result);
            play.del(&config);
            scenario(number, play.version);
        }
    }
}

#[test]
fn a_read_only_proc_will_do_once_the_network_is_made() {
    skip_unless!(is_root(), "needs root");
    let node = Node::new();
    let pods = [Netns::new().unwrap(), Netns::new().unwrap()];
    let add_read_only = || {
        let mut command = node.host.command("/usr/bin/unshare");
        let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \"$0\"";
        command.args(["--mount", "/bin/sh", "-c", read_only, env!("CARGO_BIN_EXE_keelson-cni")]);
        call_environment(&mut command, "ADD", "c", Some(pods[0].path()));
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        feed(command, node.config().to_string().as_bytes())
    };
    let refused = add_read_only();
    assert_eq!(refused.code(), 100);
    assert!(refused.stdout.contains("failed to write /proc/sys/net/"), "{refused:?}");
    assert_eq!((node.records(), node.taken()), (vec![], vec![]));
    assert!(!ip(&pods[0], &["link"]).contains("eth0"));
    node.add("first", &pods[1], &node.config());
    let added = add_read_only();
    assert_eq!(added.status, 0, "{added:?}");
    talk(&pods[0], &node.host, "10.77.0.1".parse().unwrap());
}
