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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{
        conflicts,
        device::tests::{device, name},
    };

    fn inventory(found: &[Device]) -> Inventory {
        let mut inventory = Inventory::remembering(name("a.b/c"), Vec::new());
        inventory.update(found.to_vec(), &[]);
        inventory
    }

    fn health(inventory: &Inventory, id: &str) -> String {
        inventory.entries().get(id).map(|entry| entry.health.explain()).unwrap_or_default()
    }

    #[test]
    fn what_goes_stays_unhealthy_until_it_is_back() {
        let (one, two) = (device("a", &[("/dev/a", 1)]), device("b", &[("/dev/b", 2)]));
        let mut known = inventory(&[one.clone(), two.clone()]);
        known.update(vec![two.clone()], &[]);
        assert_eq!(health(&known, "a"), "Unhealthy: /dev/a is gone");
        assert_eq!(health(&known, "b"), "Healthy");
        known.update(vec![one, two], &[]);
        assert_eq!(health(&known, "a"), "Healthy");
    }

    #[test]
    fn a_device_needs_all_its_nodes() {
        let whole = device("a", &[("/dev/a0", 1), ("/dev/a1", 2)]);
        let mut known = inventory(std::slice::from_ref(&whole));
        known.update(vec![device("a", &[("/dev/a0", 1)])], &[]);
        assert_eq!(health(&known, "a"), "Unhealthy: /dev/a1 is gone");
        known.update(vec![whole], &[]);
        assert_eq!(health(&known, "a"), "Healthy");
        // Bound to another driver, it has other nodes.
        let vfio = device("a", &[("/dev/vfio/7", 7)]);
        known.update(vec![vfio.clone()], &[]);
        assert_eq!(health(&known, "a"), "Healthy");
        assert_eq!(known.entries()["a"].device, vfio);
    }

    #[test]
    fn a_number_that_changed_is_taken_over() {
        let mut known = inventory(&[device("a", &[("/dev/a", 1)])]);
        known.update(vec![device("a", &[("/dev/a", 2)])], &[]);
        assert_eq!(health(&known, "a"), "Healthy");
        assert_eq!(known.entries()["a"].device.nodes[0].minor, 2);
    }

    #[test]
    fn a_contested_device_is_not_offered() {
        let mine = device("a", &[("/dev/a", 1)]);
        let theirs = [device("z", &[("/dev/z", 1)])];
        let (own, other) = (name("a.b/c"), name("a.b/other"));
        let found = conflicts([(&own, std::slice::from_ref(&mine)), (&other, &theirs[..])]);
        let mut fresh = inventory(&[]);
        fresh.update(vec![mine.clone()], &found);
        assert!(fresh.entries().is_empty());
        let mut known = inventory(std::slice::from_ref(&mine));
        known.update(vec![mine.clone()], &found);
        assert_eq!(health(&known, "a"), "Unhealthy: /dev/a is matched by a.b/other as well");
        known.update(vec![mine], &[]);
        assert_eq!(health(&known, "a"), "Healthy");
    }

    proptest! {
        /// Over any history: the list holds all that was ever there, and what is there now is what is healthy.
        #[test]
        fn healthy_is_what_is_there(history in prop::collection::vec(prop::collection::btree_set(0..6_u32, 0..6), 1..8)) {
            let mut known = inventory(&[]);
            let mut ever = std::collections::BTreeSet::new();
            for present in &history {
                let found = present.iter().map(|minor| device(&format!("d{minor}"), &[("/dev/d", *minor)]));
                known.update(found.collect(), &[]);
                ever.extend(present.iter().map(|minor| format!("d{minor}")));
                let listed: std::collections::BTreeSet<String> = known.entries().keys().cloned().collect();
                prop_assert_eq!(&listed, &ever);
                for (id, entry) in known.entries() {
                    let is_there = present.iter().any(|minor| *id == format!("d{minor}"));
                    prop_assert_eq!(entry.health == Health::Healthy, is_there);
                }
            }
        }
    }
}
