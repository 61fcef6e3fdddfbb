//! What is known of each resource's devices, over time.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Conflict, Device, Fault, Health};
use crate::config::ResourceName;

/// A known device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) device: Device,
    pub(crate) health: Health,
}

/// One resource's known devices by id.
///
/// A device that goes away stays, as unhealthy: the kubelet tells a Pod of its device's health only while the device
/// is in the list.
#[derive(Clone, Debug)]
pub(crate) struct Inventory {
    name: ResourceName,
    entries: BTreeMap<String, Entry>,
}

impl Inventory {
    /// Starts from the devices that an earlier process knew; they are missing until they are found.
    pub(crate) fn remembering(name: ResourceName, known: Vec<Device>) -> Self {
        let entries = known.into_iter().map(|device| {
            let health = Health::Unhealthy(missing(&device));
            (device.id.clone(), Entry { device, health })
        });
        Self { name, entries: entries.collect() }
    }

    pub(crate) fn name(&self) -> &ResourceName {
        &self.name
    }

    pub(crate) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Takes in what was found now.
    ///
    /// A device that another resource matches as well is offered by neither: a new one isn't added, a known one is
    /// unhealthy.
    pub(crate) fn update(&mut self, found: Vec<Device>, conflicts: &[Conflict]) {
        let mut before = std::mem::take(&mut self.entries);
        for device in found {
            let known = before.remove(&device.id);
            let entry = match (self.contested(&device, conflicts), known) {
                (Some(_), None) => continue,
                (Some(fault), Some(_)) => Entry { device, health: Health::Unhealthy(fault) },
                (None, Some(known)) => match lost_node(&known.device, &device) {
                    Some(lost) => Entry { device: known.device, health: Health::Unhealthy(Fault::Missing(lost)) },
                    None => Entry { device, health: Health::Healthy },
                },
                (None, None) => Entry { device, health: Health::Healthy },
            };
            self.entries.insert(entry.device.id.clone(), entry);
        }
        for (id, entry) in before {
            let health = Health::Unhealthy(missing(&entry.device));
            self.entries.insert(id, Entry { device: entry.device, health });
        }
    }

    fn contested(&self, device: &Device, conflicts: &[Conflict]) -> Option<Fault> {
        conflicts.iter().find_map(|conflict| {
            let (first, second) = &conflict.names;
            let other = match &self.name {
                name if name == first => second,
                name if name == second => first,
                _ => return None,
            };
            // A conflict names one path of the device; the other resource may have found it under another.
            let node = device.nodes.iter().find(|node| node.number() == conflict.number)?;
            Some(Fault::Contested { node: node.path.clone(), other: other.clone() })
        })
    }
}

/// A device has at least one node.
fn missing(device: &Device) -> Fault {
    Fault::Missing(device.nodes.first().map(|node| node.path.clone()).unwrap_or_default())
}

/// A node that the device had and lacks now, if it has got no others instead: a driver that is bound anew may give it
/// other nodes, which is no loss.
fn lost_node(known: &Device, found: &Device) -> Option<PathBuf> {
    let has = |device: &Device, path: &PathBuf| device.nodes.iter().any(|node| node.path == *path);
    let lost = known.nodes.iter().find(|node| !has(found, &node.path))?;
    found.nodes.iter().all(|node| has(known, &node.path)).then(|| lost.path.clone())
}
