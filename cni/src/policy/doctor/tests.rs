//! Pictures of nodes, each with one thing wrong.

use super::*;
use crate::{
    config::{
        invocation::{AttachmentKey, Pod},
        route::Route,
    },
    kernel::{bridge, ports::Owner},
    policy::{naming, needs},
    store::{AttachmentState, Kind, Lease},
};

const BOOT: &str = "786e34df-2b17-43ec-a752-2a9c03c61333";

pub(super) fn record(id: &str, address: &str) -> Record {
    let key = AttachmentKey { container_id: id.to_owned(), ifname: "eth0".to_owned() };
    let host_interface = naming::host_interface("net", &key);
    let address: IpNet = address.parse().unwrap();
    let gateway = address.hosts().next();
    Record {
        state: AttachmentState::Active,
        netns: format!("/run/netns/{id}"),
        pod: Pod { namespace: "ns".to_owned(), name: format!("pod-{id}"), uid: String::new() },
        bridge: "br".to_owned(),
        host_mac: naming::host_mac(&host_interface).to_string(),
        container_mac: naming::container_mac(Some(address.addr()), &host_interface).to_string(),
        host_interface,
        mtu: Some(1500),
        addresses: vec![Lease { address, gateway, set: Some(0) }],
        routes: vec![Route {
            dst: "0.0.0.0/0".parse().unwrap(),
            gw: gateway,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }],
        masquerade: true,
        created_at_seconds: 1000,
        ..Record::blank(BOOT, "net", key)
    }
}

pub(super) fn link(index: u32, name: &str, mac: &str) -> Link {
    let mac = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    Link { index, name: name.to_owned(), mac, mtu: 1500, up: true, running: true, ..Link::default() }
}

pub(super) fn route(dst: &str, gateway: Option<&str>, link: u32) -> FoundRoute {
    let gateway = gateway.map(|text| text.parse().unwrap());
    FoundRoute { dst: dst.parse().unwrap(), gateway, link: Some(link), table: 254 }
}

/// The record's container as it should be.
fn inside(record: &Record) -> Interfaces {
    Interfaces {
        links: vec![link(2, "eth0", &record.container_mac)],
        addresses: record.addresses.iter().map(|lease| (2, lease.address)).collect(),
        routes: needs::container_routes(record)
            .map(|wanted| FoundRoute { dst: wanted.dst, gateway: wanted.gw, link: Some(2), table: wanted.table() })
            .collect(),
    }
}

pub(super) fn attachment(record: Record) -> AttachmentFacts {
    let namespace = NamespaceFacts::Entered(inside(&record));
    AttachmentFacts { record, namespace, shaping_differences: Vec::new(), missing_source_rules: Vec::new() }
}

/// A node with two Pods on which nothing is wrong.
pub(super) fn healthy() -> Snapshot {
    let records = [record("a", "10.0.0.2/24"), record("b", "10.0.0.3/24")];
    let mut host = Interfaces::default();
    let mut up = link(1, "up0", "02:00:00:00:00:01");
    up.mtu = 9000;
    let mut bridge = link(2, "br", &naming::bridge_mac(BOOT, "br").to_string());
    bridge.kind = "bridge".to_owned();
    bridge.alias = bridge::alias("net");
    host.links.extend([up, bridge]);
    for (number, record) in (10..).zip(&records) {
        let mut port = link(number, &record.host_interface, &record.host_mac);
        port.master = Some(2);
        port.kind = "veth".to_owned();
        port.alias = format!("keelson:net:ns/pod-{}", record.key.container_id);
        host.links.push(port);
    }
    host.addresses = vec![(1, "192.0.2.5/24".parse().unwrap()), (2, "10.0.0.1/24".parse().unwrap())];
    host.routes =
        vec![route("0.0.0.0/0", Some("192.0.2.1"), 1), route("192.0.2.0/24", None, 1), route("10.0.0.0/24", None, 2)];
    let switches = [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("bridge/bridge-nf-call-iptables", "1"),
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv6/conf/up0/accept_ra", "2"),
    ];
    Snapshot {
        networks: vec![NetworkFacts {
            name: "net".to_owned(),
            directory: "/run/keelson/network/net".into(),
            attachments: records.into_iter().map(attachment).collect(),
            usage: vec![SetUsage {
                ranges: "10.0.0.1-10.0.0.254".to_owned(),
                used: 2,
                capacity: 253,
                ..SetUsage::default()
            }],
            ..NetworkFacts::default()
        }],
        host,
        switches: switches.into_iter().map(|(path, value)| (path.to_owned(), value.to_owned())).collect(),
        configured: Some(Configured {
            bridge: "br".to_owned(),
            gateways: vec!["10.0.0.1/24".parse().unwrap()],
            ..Configured::default()
        }),
        now_seconds: 2000,
        ..Snapshot::default()
    }
}

fn port(snapshot: &mut Snapshot) -> &mut Link {
    &mut snapshot.host.links[2]
}

fn first(snapshot: &mut Snapshot) -> &mut AttachmentFacts {
    &mut snapshot.networks[0].attachments[0]
}

fn container(snapshot: &mut Snapshot) -> &mut Interfaces {
    match &mut first(snapshot).namespace {
        NamespaceFacts::Entered(inside) => inside,
        other => panic!("{other:?}"),
    }
}

/// Breaks the healthy node in one way; the findings must be exactly these, each by severity, check and a part of its
/// remedy.
#[track_caller]
fn broken(change: impl FnOnce(&mut Snapshot), expected: &[(Severity, &str, &str)]) {
    let mut snapshot = healthy();
    change(&mut snapshot);
    let findings = examine(&snapshot);
    assert_eq!(findings.len(), expected.len(), "{findings:#?}");
    for (finding, (severity, check, remedy)) in findings.iter().zip(expected) {
        assert_eq!((finding.severity, finding.check), (*severity, *check), "{finding:?}");
        assert!(finding.remedy.contains(remedy), "{finding:?}");
    }
}

#[test]
fn nothing_is_wrong_with_a_healthy_node() {
    assert_eq!(examine(&healthy()), []);
    assert_eq!(examine(&Snapshot::default()), []);
}

#[test]
fn links_of_the_host() {
    use Severity::{Error, Warning};
    let name = record("a", "10.0.0.2/24").host_interface;
    let cases = [format!("ip link set {name} up"), format!("ip link set {name} master br")];
    broken(|node| port(node).up = false, &[(Error, "link-down", &cases[0])]);
    broken(|node| port(node).master = None, &[(Error, "not-in-bridge", &cases[1])]);
    broken(|node| port(node).mac[5] ^= 1, &[(Warning, "mac-changed", "ip link set")]);
    broken(
        |node| {
            port(node).mac[5] ^= 1;
            node.mac_policies.push("/usr/lib/systemd/network/99-default.link".into());
        },
        &[(Warning, "mac-changed", "MACAddressPolicy=none")],
    );
    broken(|node| port(node).mtu = 1400, &[(Error, "mtu", "mtu 1500")]);
    broken(
        |node| drop(node.host.links.remove(2)),
        &[(Error, "link-missing", "kubectl delete pod --namespace ns pod-a")],
    );
    broken(
        |node| {
            node.host.links.remove(2);
            first(node).namespace = NamespaceFacts::Gone;
        },
        &[(Warning, "stale", "keelson network gc --network net")],
    );
}

#[test]
fn the_containers_side() {
    use Severity::{Error, Warning};
    let enter = "nsenter --net=/run/netns/a ip";
    broken(|node| container(node).links.clear(), &[(Error, "interface-missing", "kubectl delete pod")]);
    broken(
        |node| container(node).links[0].up = false,
        &[(Error, "interface-down", &format!("{enter} link set eth0 up"))],
    );
    broken(
        |node| container(node).addresses.clear(),
        &[(Error, "address-missing", &format!("{enter} address add 10.0.0.2/24 dev eth0"))],
    );
    broken(
        |node| container(node).routes.clear(),
        &[(Error, "route-missing", &format!("{enter} route add 0.0.0.0/0 via 10.0.0.1 dev eth0"))],
    );
    broken(|node| container(node).links[0].mac[5] ^= 1, &[(Warning, "mac-changed", enter)]);
    broken(
        |node| first(node).namespace = NamespaceFacts::Closed("EPERM".to_owned()),
        &[(Warning, "namespace-closed", "hostNetwork")],
    );
    broken(|node| first(node).namespace = NamespaceFacts::Gone, &[(Warning, "namespace-gone", "gc")]);
}

#[test]
fn shaping_and_routing_by_source() {
    use Severity::{Error, Warning};
    let differs = |node: &mut Snapshot| first(node).shaping_differences.push("x is not limited".to_owned());
    broken(differs, &[(Warning, "shaping", "kubectl delete pod --namespace ns pod-a")]);
    broken(
        |node| {
            differs(node);
            first(node).record.shaping_interface = Some("ks0000000000000".to_owned());
        },
        &[(Error, "shaping", "kubectl delete pod --namespace ns pod-a")],
    );
    broken(
        |node| first(node).missing_source_rules.push(("10.0.0.2".parse().unwrap(), 100)),
        &[(Error, "source-rule", "nsenter --net=/run/netns/a ip rule add from 10.0.0.2 lookup 100")],
    );
}

#[test]
fn calls_that_were_killed() {
    broken(
        |node| first(node).record.state = AttachmentState::Pending,
        &[(Severity::Warning, "pending", "keelson network gc --network net")],
    );
    // One that is at work is none.
    broken(
        |node| {
            first(node).record.state = AttachmentState::Pending;
            first(node).record.created_at_seconds = 1990;
        },
        &[],
    );
}

#[test]
fn bridges() {
    use Severity::{Error, Warning};
    let bridge = |node: &mut Snapshot| node.host.links[1].clone();
    broken(|node| node.host.links[1].up = false, &[(Error, "bridge-down", "ip link set br up")]);
    broken(
        |node| {
            node.host.links[1].mtu = 1400;
        },
        &[(Error, "mtu", "ip link set br mtu 1500")],
    );
    broken(|node| node.host.links[1].mac[5] ^= 1, &[(Warning, "mac-changed", "ip link set br address 6e:")]);
    broken(
        |node| {
            node.host.links[1].alias.clear();
            node.host.links[1].mac = node.host.links[3].mac.clone();
        },
        &[(Warning, "mac-not-pinned", "ip link set br address")],
    );
    broken(
        |node| node.host.addresses.retain(|(index, _)| *index != 2),
        &[(Error, "gateway-missing", "ip address add 10.0.0.1/24 dev br")],
    );
    broken(
        |node| {
            node.host.addresses.retain(|(index, _)| *index != 2);
            node.configured = None;
        },
        &[(Warning, "gateway-missing", "ip address add 10.0.0.1/24 dev br")],
    );
    // A record that tells which link has it is as good as the config.
    broken(
        |node| {
            node.host.addresses.retain(|(index, _)| *index != 2);
            node.configured = None;
            first(node).record.gateway_interface = Some("br".to_owned());
        },
        &[(Error, "gateway-missing", "ip address add 10.0.0.1/24 dev br")],
    );
    broken(|node| node.host.links[1].kind = "veth".to_owned(), &[(Error, "not-a-bridge", "ip link set br name")]);
    broken(
        |node| {
            let index = bridge(node).index;
            node.host.links.retain(|link| link.index != index);
            node.host.addresses.retain(|(link, _)| *link != index);
        },
        &[(Error, "bridge-missing", "type bridge && ip link set br alias keelson:net up mtu 1500")],
    );
}

#[test]
fn rules() {
    use Severity::{Error, Warning};
    let chain =
        |drops, rules| BaseChain { family: "ip", table: "filter".to_owned(), name: "FORWARD".to_owned(), drops, rules };
    let accept = "nft insert rule ip filter FORWARD ip saddr 10.0.0.0/24 accept";
    broken(|node| node.forward_chains.push(chain(true, 0)), &[(Error, "forward-drop", accept)]);
    broken(|node| node.forward_chains.push(chain(true, 3)), &[(Warning, "forward-drop", accept)]);
    broken(|node| node.forward_chains.push(chain(false, 0)), &[]);
    // No Pod has an address of that family.
    broken(|node| node.forward_chains.push(BaseChain { family: "ip6", ..chain(true, 0) }), &[]);
    broken(|node| node.rules_missing.push("x".to_owned()), &[(Error, "rules-missing", "keelson network restore")]);
    broken(|node| node.legacy_tables.push("filter".to_owned()), &[(Warning, "legacy-iptables", "iptables-legacy -S")]);
    broken(
        |node| drop(node.switches.remove("bridge/bridge-nf-call-iptables")),
        &[(Warning, "br-netfilter", "modprobe br_netfilter")],
    );
}

#[test]
fn elements_of_nobody() {
    use Severity::Warning;
    let owner = |token: &str, text: &str| Owner { token: token.to_owned(), text: text.to_owned() };
    let known = |node: &mut Snapshot| {
        let pods: Vec<Record> = node.attachments().map(|attachment| attachment.record.clone()).collect();
        for record in &pods {
            node.known_owners.add("net", &record.key, Some(record));
        }
    };
    let gone = "kl0000000000000";
    let host_port = "inet keelson ports4 { tcp . 8080 }";
    let has = |node: &mut Snapshot, owner| {
        known(node);
        node.elements.push(OwnedElement::of(owner));
    };
    broken(|node| has(node, owner(gone, "x@eth0 ns/gone")), &[(Warning, "orphan-element", "keelson network gc")]);
    broken(|node| has(node, owner(gone, "")), &[(Warning, "orphan-element", "keelson network gc")]);
    // Of a chained call, whose store may be another than was found.
    broken(
        |node| has(node, owner("@net", "x@eth0 ns/gone")),
        &[(Warning, "orphan-element", &format!("nft 'delete element {host_port}'"))],
    );
    // Known, of a network without records here, perhaps cut off, and other people's.
    let link = record("a", "10.0.0.2/24").host_interface;
    for (token, text) in [
        (link.as_str(), "a@eth0 ns/pod-a"),
        ("br", ""),
        ("@net", "a@eth0 ns/pod-a"),
        ("@other", "x@eth0 ns/x"),
        ("@net", "x@eth"),
        ("", "for the printer"),
        ("for", "the printer"),
    ] {
        broken(|node| has(node, owner(token, text)), &[]);
    }
    // A record that can't be read has its link all the same, and one without a link lacks it for other reasons.
    broken(
        |node| {
            let key = AttachmentKey { container_id: "torn".to_owned(), ifname: "eth0".to_owned() };
            node.known_owners.add("net", &key, None);
            has(node, owner(&naming::host_interface("net", &key), "torn@eth0 ns/torn"));
        },
        &[],
    );
}

#[test]
fn the_node_around() {
    use Severity::{Error, Warning};
    let set =
        |node: &mut Snapshot, path: &str, value: &str| drop(node.switches.insert(path.to_owned(), value.to_owned()));
    broken(|node| set(node, "ipv4/ip_forward", "0"), &[(Error, "forwarding", "sysctl -w net.ipv4.ip_forward=1")]);
    // Nobody has an IPv6 address.
    broken(|node| set(node, "ipv6/conf/all/forwarding", "0"), &[]);
    broken(
        |node| set(node, "ipv6/conf/up0/accept_ra", "1"),
        &[(Warning, "accept-ra", "sysctl -w net.ipv6.conf.up0.accept_ra=2")],
    );
    broken(|node| node.host.links[0].mtu = 1400, &[(Warning, "mtu", "\"mtu\": 1400")]);
    broken(
        |node| node.host.routes.push(route("10.0.0.0/8", None, 1)),
        &[(Error, "overlap", "give the network another subnet in its config")],
    );
    broken(
        |node| {
            // A second network of Pod a, on a bridge that filters strictly.
            let mut second = record("a", "10.9.0.2/24");
            second.key.ifname = "eth1".to_owned();
            second.bridge = "br2".to_owned();
            second.host_interface = String::new();
            let mut third = second.clone();
            third.host_interface = "kl0000000000000".to_owned();
            third.state = AttachmentState::Pending;
            third.created_at_seconds = 2000;
            node.networks[0].attachments.extend([second, third].map(attachment));
            let mut bridge = link(4, "br2", &naming::bridge_mac(BOOT, "br2").to_string());
            bridge.kind = "bridge".to_owned();
            bridge.alias = bridge::alias("net");
            node.host.links.push(bridge);
            node.host.addresses.push((4, "10.9.0.1/24".parse().unwrap()));
        },
        &[(Warning, "rp-filter", "br.rp_filter=2"), (Warning, "rp-filter", "br2.rp_filter=2")],
    );
}

#[test]
fn what_two_have_that_only_one_may() {
    use Severity::{Error, Warning};
    broken(
        |node| {
            let mut other = record("c", "10.0.0.2/24");
            other.network = "other".to_owned();
            other.created_at_seconds = 3000;
            // Only its addresses are known.
            other.kind = Kind::Ipam;
            other.host_interface.clear();
            let attachments = vec![attachment(other)];
            node.networks.push(NetworkFacts { name: "other".to_owned(), attachments, ..NetworkFacts::default() });
        },
        &[(Error, "duplicate-address", "kubectl delete pod --namespace ns pod-c")],
    );
    broken(
        |node| node.host.addresses.push((1, "10.0.0.3/32".parse().unwrap())),
        &[(Error, "duplicate-address", "ip address del 10.0.0.3/32 dev up0")],
    );
    broken(
        |node| {
            let mut orphan = link(20, "kl00000000000ff", "02:00:00:00:00:09");
            orphan.alias = "keelson:net:ns/gone".to_owned();
            node.host.links.push(orphan.clone());
            orphan.name = "kl00000000000fe".to_owned();
            orphan.alias = "keelson:elsewhere:ns/x".to_owned();
            node.host.links.push(orphan.clone());
            // Somebody else's, and a bridge of ours.
            orphan.alias = String::new();
            orphan.name = "kl00000000000fd".to_owned();
            node.host.links.push(orphan.clone());
            orphan.alias = "keelson:net".to_owned();
            orphan.name = "kl0".to_owned();
            node.host.links.push(orphan);
        },
        &[(Warning, "orphan-link", "keelson network gc --network net"), (Warning, "unknown-network", "--data-dir")],
    );
}

#[test]
fn stores_and_installation() {
    use Severity::{Error, Warning};
    let network = |node: &mut Snapshot, change: fn(&mut NetworkFacts)| change(&mut node.networks[0]);
    let collect = "keelson network gc --network net";
    broken(|node| network(node, |net| net.filesystem.read_only = true), &[(Error, "store", "remount,rw")]);
    broken(|node| network(node, |net| net.filesystem.full = true), &[(Error, "store", "df -i")]);
    broken(
        |node| network(node, |net| net.unreadable.push((record("x", "10.0.0.9/24").key, "torn".to_owned()))),
        &[(Error, "unreadable", "keelson network gc --network net --force x")],
    );
    broken(|node| network(node, |net| net.leftovers.push("/x".into())), &[(Warning, "leftovers", collect)]);
    broken(|node| network(node, |net| net.usage[0].used = 253), &[(Error, "range-full", collect)]);
    broken(|node| network(node, |net| net.usage[0].used = 230), &[(Warning, "range-full", collect)]);
    broken(|node| network(node, |net| net.usage[0].used = 227), &[]);
    let configured = |node: &mut Snapshot| node.configured.take().unwrap();
    broken(
        |node| node.configured = Some(Configured { missing: vec!["/opt/x".into()], ..configured(node) }),
        &[(Error, "not-installed", "keelson run --only network")],
    );
    broken(
        |node| node.configured = Some(Configured { different: vec!["/opt/x".into()], ..configured(node) }),
        &[(Warning, "not-installed", "keelson run --only network")],
    );
}

#[test]
fn no_name_runs_as_a_command() {
    let name = "x'; reboot; '";
    broken(
        |node| {
            node.host.links.remove(2);
            first(node).record.pod.name = name.to_owned();
        },
        &[(Severity::Error, "link-missing", r"kubectl delete pod --namespace ns 'x'\''; reboot; '\'''")],
    );
}
