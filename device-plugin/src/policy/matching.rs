//! From what was found to devices: what shares a node is one device, and no node belongs to two resources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use keelson_host::DeviceKind;

use super::{Device, Origin};
use crate::config::ResourceName;

/// What [`merge`] makes of what one resource's selectors found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Merged {
    /// Devices with ids of their own, no two of which share a node.
    pub(crate) devices: Vec<Device>,
    /// Devices left out because another one has their id.
    pub(crate) same_id: Vec<Device>,
}

/// Makes one device of those that share a node: a node found by two selectors, two paths that open the same device, PCI
/// functions of one VFIO group. The first one's id stays.
///
/// Simulated devices are apart from each other though all open the same number.
pub(crate) fn merge(found: Vec<Device>) -> Merged {
    let mut devices: Vec<Device> = Vec::new();
    for device in found {
        let numbers: BTreeSet<_> = device.nodes.iter().map(super::Node::number).collect();
        let shares = |other: &Device| {
            device.origin != Origin::Simulated && other.nodes.iter().any(|node| numbers.contains(&node.number()))
        };
        // What is merged takes the place of the first, so that the order stays that in which devices were found.
        let place = devices.iter().position(shares).unwrap_or(devices.len());
        let (sharing, apart): (Vec<Device>, Vec<Device>) = devices.into_iter().partition(shares);
        devices = apart;
        devices.insert(
            place,
            match sharing.into_iter().reduce(union) {
                Some(known) => union(known, device),
                None => device,
            },
        );
    }
    let mut merged = Merged::default();
    let mut ids = BTreeSet::new();
    for device in devices {
        if ids.insert(device.id.clone()) {
            merged.devices.push(device);
        } else {
            merged.same_id.push(device);
        }
    }
    merged
}

fn union(mut first: Device, second: Device) -> Device {
    for node in second.nodes {
        if !first.nodes.iter().any(|known| known.number() == node.number()) {
            first.nodes.push(node);
        }
    }
    first.nodes.sort();
    first.shared.extend(second.shared);
    first.shared.sort();
    first.shared.dedup();
    // Two answers are none.
    first.numa_node = first.numa_node.filter(|_| first.numa_node == second.numa_node);
    first
}

/// A node that two resources match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Conflict {
    pub(crate) node: PathBuf,
    /// What the node opens.
    pub(crate) number: (DeviceKind, u32, u32),
    /// The resources' places in the config, the earlier first.
    pub(crate) indices: (usize, usize),
    /// Their names.
    pub(crate) names: (ResourceName, ResourceName),
}

impl fmt::Display for Conflict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = &self.names;
        write!(formatter, "{} is matched by both {first} and {second}", self.node.display())
    }
}

/// The nodes that more than one resource matches; simulated ones are each resource's own.
pub(crate) fn conflicts<'a>(found: impl IntoIterator<Item = (&'a ResourceName, &'a [Device])>) -> Vec<Conflict> {
    let mut owners = BTreeMap::new();
    let mut conflicts = Vec::new();
    for (index, (name, devices)) in found.into_iter().enumerate() {
        for device in devices.iter().filter(|device| device.origin != Origin::Simulated) {
            for node in &device.nodes {
                match owners.get(&node.number()) {
                    Some(&(first, first_name)) if first != index => conflicts.push(Conflict {
                        node: node.path.clone(),
                        number: node.number(),
                        indices: (first, index),
                        names: (ResourceName::clone(first_name), name.clone()),
                    }),
                    Some(_) => {}
                    None => {
                        owners.insert(node.number(), (index, name));
                    }
                }
            }
        }
    }
    conflicts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::device::tests::{device, name};

    #[test]
    fn what_shares_a_node_is_one_device() {
        let merged = merge(vec![
            device("a", &[("/dev/a", 1)]),
            device("b", &[("/dev/b", 2)]),
            // The alias of one, then the link between both.
            device("c", &[("/dev/c", 1)]),
            device("d", &[("/dev/d", 3), ("/dev/b2", 2), ("/dev/a2", 1)]),
        ]);
        let numbers: Vec<u32> = merged.devices[0].nodes.iter().map(|node| node.minor).collect();
        assert_eq!((merged.devices.len(), merged.devices[0].id.as_str()), (1, "a"));
        assert_eq!(numbers, [1, 2, 3]);
        assert!(merged.same_id.is_empty());
    }

    #[test]
    fn two_places_are_none() {
        let at = |id, node| Device { numa_node: node, ..device(id, &[("/dev/vfio/7", 7)]) };
        assert_eq!(merge(vec![at("a", Some(1)), at("b", Some(1))]).devices[0].numa_node, Some(1));
        assert_eq!(merge(vec![at("a", Some(0)), at("b", Some(1))]).devices[0].numa_node, None);
    }

    #[test]
    fn simulated_devices_stay_apart() {
        let simulated = |id| Device { origin: Origin::Simulated, ..device(id, &[("/x", 229)]) };
        assert_eq!(merge(vec![simulated("a"), simulated("b")]).devices.len(), 2);
        let (one, two) = (name("a.b/one"), name("a.b/two"));
        assert_eq!(conflicts([(&one, &[simulated("a")][..]), (&two, &[simulated("a")][..])]), []);
    }

    #[test]
    fn an_id_is_given_once() {
        let merged = merge(vec![device("a", &[("/dev/a", 1)]), device("a", &[("/dev/b", 2)])]);
        assert_eq!(merged.devices, [device("a", &[("/dev/a", 1)])]);
        assert_eq!(merged.same_id, [device("a", &[("/dev/b", 2)])]);
    }

    #[test]
    fn a_conflict_names_both_resources_and_the_node() {
        let (one, two) = (name("a.b/one"), name("a.b/two"));
        let first = [device("x", &[("/dev/x", 1)]), device("y", &[("/dev/y", 2)])];
        let second = [device("z", &[("/dev/z", 2)])];
        let found = conflicts([(&one, &first[..]), (&two, &second[..])]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].indices, (0, 1));
        assert_eq!(found[0].to_string(), "/dev/z is matched by both a.b/one and a.b/two");
    }

    fn any_devices() -> impl Strategy<Value = Vec<Device>> {
        prop::collection::vec(prop::collection::vec(0..12_u32, 1..4), 0..8).prop_map(|devices| {
            let one = |(index, minors): (usize, Vec<u32>)| {
                let nodes: Vec<(String, u32)> =
                    minors.into_iter().map(|minor| (format!("/dev/n{index}-{minor}"), minor)).collect();
                let nodes: Vec<(&str, u32)> = nodes.iter().map(|(path, minor)| (path.as_str(), *minor)).collect();
                device(&format!("d{index}"), &nodes)
            };
            devices.into_iter().enumerate().map(one).collect()
        })
    }

    proptest! {
        #[test]
        fn merging_loses_no_node_and_shares_none(found in any_devices()) {
            let numbers = |devices: &[Device]| -> Vec<u32> {
                devices.iter().flat_map(|device| device.nodes.iter().map(|node| node.minor)).collect()
            };
            let mut all = numbers(&found);
            all.sort_unstable();
            all.dedup();
            let merged = merge(found).devices;
            let mut kept = numbers(&merged);
            kept.sort_unstable();
            // Each exactly once but for a device's own double, which no kernel gives.
            let distinct: BTreeSet<u32> = kept.iter().copied().collect();
            prop_assert_eq!(distinct.into_iter().collect::<Vec<_>>(), all);
            for (index, one) in merged.iter().enumerate() {
                for other in &merged[index + 1..] {
                    prop_assert!(one.nodes.iter().all(|node| other.nodes.iter().all(|its| its.minor != node.minor)));
                }
            }
        }

        #[test]
        fn a_conflict_is_a_number_that_both_have(one in any_devices(), two in any_devices()) {
            let (first, second) = (name("a.b/one"), name("a.b/two"));
            let found = conflicts([(&first, one.as_slice()), (&second, two.as_slice())]);
            let has = |devices: &[Device], number| {
                devices.iter().any(|device| device.nodes.iter().any(|node| node.number() == number))
            };
            for minor in 0..12 {
                let number = (DeviceKind::Char, 10, minor);
                let told = found.iter().any(|conflict| conflict.number == number);
                prop_assert_eq!(told, has(&one, number) && has(&two, number));
            }
        }
    }
}
