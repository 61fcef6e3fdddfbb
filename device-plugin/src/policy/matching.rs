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
        let (sharing, apart): (Vec<Device>, Vec<Device>) = devices.into_iter().partition(shares);
        devices = apart;
        // partition() keeps the order, so the earliest found one is first.
        let merged = sharing.into_iter().chain([device]).reduce(union);
        devices.extend(merged);
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
    // Two different answers are none.
    first.numa_node = first.numa_node.filter(|node| second.numa_node.is_none_or(|other| other == *node));
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
