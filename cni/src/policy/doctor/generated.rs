//! Pictures of nodes of any size: nothing is wrong with a healthy one, and whatever one thing is broken is found.

use proptest::{prelude::*, sample::Index};

use super::{
    tests::{attachment, healthy, link, record, route},
    *,
};
use crate::{kernel::ports::Owner, policy::naming, store::Kind};

/// What breaks one Pod, or what it stands on; each tells whom the finding has to be about.
#[derive(Clone, Copy, Debug)]
enum Fault {
    NoHostLink,
    HostLinkDown,
    NoPort,
    HostMac,
    NoInterface,
    InterfaceDown,
    ContainerMac,
    Mtu,
    NoAddress,
    NoRoute,
    NoHostRoute,
    NamespaceGone,
    NoLimit,
    NoSourceRule,
    NoBridge,
    BridgeDown,
    NoGateway,
    DuplicateAddress,
    OrphanLink,
    OrphanElement,
    NoRules,
}

fn faults() -> impl Strategy<Value = Fault> {
    use Fault::*;
    prop::sample::select(vec![
        NoHostLink,
        HostLinkDown,
        NoPort,
        HostMac,
        NoInterface,
        InterfaceDown,
        ContainerMac,
        Mtu,
        NoAddress,
        NoRoute,
        NoHostRoute,
        NamespaceGone,
        NoLimit,
        NoSourceRule,
        NoBridge,
        BridgeDown,
        NoGateway,
        DuplicateAddress,
        OrphanLink,
        OrphanElement,
        NoRules,
    ])
}

/// A healthy node; of each Pod is told whether it is routed instead of a port of the bridge.
fn node(pods: &[bool]) -> Snapshot {
    let mut node = healthy();
    for (number, is_routed) in (20u32..).zip(pods) {
        let mut record = record(&format!("g{number}"), &format!("10.0.0.{number}/24"));
        let mut end = link(number, &record.host_interface, &record.host_mac);
        end.alias = "keelson:net:ns/x".to_owned();
        if *is_routed {
            record.kind = Kind::Routed;
            record.bridge.clear();
            node.host.routes.push(route(&format!("10.0.0.{number}/32"), None, number));
        } else {
            record.gateway_interface = Some("br".to_owned());
            end.master = Some(2);
        }
        node.host.links.push(end);
        node.known_owners.add("net", &record.key, Some(&record));
        node.networks[0].attachments.push(attachment(record));
    }
    node
}

/// Breaks the Pod at `position`. Returns what the finding has to name; `None` for what such a Pod doesn't have.
fn break_one(node: &mut Snapshot, position: usize, fault: Fault) -> Option<String> {
    let record = node.networks[0].attachments[position].record.clone();
    let pod = format!("ns/pod-{}", record.key.container_id);
    let address = record.addresses[0].address;
    let is_bridged = record.kind == Kind::Bridge;
    let facts = &mut node.networks[0].attachments[position];
    let host = &mut node.host;
    let end = host.links.iter().position(|link| link.name == record.host_interface)?;
    let NamespaceFacts::Entered(inside) = &mut facts.namespace else { return None };
    match fault {
        Fault::NoHostLink => drop(host.links.remove(end)),
        Fault::HostLinkDown => host.links[end].up = false,
        Fault::NoPort if is_bridged => host.links[end].master = None,
        Fault::HostMac => host.links[end].mac[5] ^= 1,
        Fault::NoInterface => inside.links.clear(),
        Fault::InterfaceDown => inside.links[0].up = false,
        Fault::ContainerMac => inside.links[0].mac[5] ^= 1,
        Fault::Mtu => inside.links[0].mtu = 1400,
        Fault::NoAddress => inside.addresses.clear(),
        Fault::NoRoute => drop(inside.routes.remove(0)),
        Fault::NoHostRoute if !is_bridged => host.routes.retain(|route| route.dst.addr() != address.addr()),
        Fault::NamespaceGone => facts.namespace = NamespaceFacts::Gone,
        Fault::NoLimit => facts.shaping_differences.push("no limit".to_owned()),
        Fault::NoSourceRule => facts.missing_source_rules.push((address.addr(), 100)),
        Fault::NoBridge | Fault::BridgeDown | Fault::NoGateway if is_bridged => {
            let bridge = host.links.iter().position(|link| link.name == record.bridge)?;
            match fault {
                Fault::NoBridge => drop(host.links.remove(bridge)),
                Fault::BridgeDown => host.links[bridge].up = false,
                _ => {
                    let index = host.links[bridge].index;
                    host.addresses.retain(|(link, _)| *link != index);
                }
            }
            return Some(record.bridge);
        }
        Fault::DuplicateAddress => {
            host.addresses.push((1, address.addr().into()));
            return Some(address.addr().to_string());
        }
        Fault::OrphanLink => {
            let name = naming::host_interface("net", &super::tests::record("lost", "10.0.0.250/24").key);
            let mut orphan = link(999, &name, "02:00:00:00:00:09");
            orphan.alias = "keelson:net:ns/lost".to_owned();
            host.links.push(orphan);
            return Some(name);
        }
        Fault::OrphanElement => {
            let owner = Owner { token: "kl0000000000000".to_owned(), text: "x@eth0 ns/lost".to_owned() };
            node.elements.push(OwnedElement::of(owner));
            return Some("inet keelson ports4 { tcp . 8080 }".to_owned());
        }
        Fault::NoRules => {
            node.rules_missing.push("x".to_owned());
            return Some("inet keelson".to_owned());
        }
        _ => return None,
    }
    Some(pod)
}

proptest! {
    #[test]
    fn every_single_fault_is_found(pods in prop::collection::vec(any::<bool>(), 1..12), which in any::<Index>(), fault in faults()) {
        let mut node = node(&pods);
        prop_assert_eq!(examine(&node), []);
        let position = which.index(node.networks[0].attachments.len());
        if let Some(subject) = break_one(&mut node, position, fault) {
            let findings = examine(&node);
            prop_assert!(findings.iter().any(|finding| finding.subject.contains(&subject)), "{}: {:?}", subject, findings);
            prop_assert!(findings.iter().all(|finding| !finding.remedy.is_empty()), "{:?}", findings);
        }
    }
}
