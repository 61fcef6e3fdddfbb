//! The list that the kubelet gets.

use std::collections::BTreeMap;

use keelson_proto::deviceplugin::v1beta1 as api;
use prost::Message;

use super::{Device, Entry, Health, Inventory};
use crate::config::ResourceName;

/// The most that the kubelet receives: grpc-go's default, which it doesn't raise (device manager, client.go). A larger
/// message ends the stream, and the resource is lost.
const LARGEST_BYTES: usize = 4 << 20;

/// One resource's devices at one moment, and the message that tells the kubelet of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Listing {
    entries: BTreeMap<String, Entry>,
    message: api::ListAndWatchResponse,
}

/// The list is larger than the kubelet receives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} has {devices} devices, whose list of {bytes} bytes is more than the {LARGEST_BYTES} bytes that the \
         kubelet receives; let it select fewer"
)]
pub(crate) struct TooLarge {
    pub(crate) name: ResourceName,
    pub(crate) devices: usize,
    pub(crate) bytes: usize,
}

impl Listing {
    pub(crate) fn of(inventory: &Inventory) -> Result<Self, TooLarge> {
        let entries = inventory.entries().clone();
        let message = api::ListAndWatchResponse { devices: entries.values().map(list_entry).collect() };
        let bytes = message.encoded_len();
        if bytes > LARGEST_BYTES {
            return Err(TooLarge { name: inventory.name().clone(), devices: entries.len(), bytes });
        }
        Ok(Self { entries, message })
    }

    pub(crate) fn entry(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// All devices, healthy or not.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.entries.values().map(|entry| &entry.device)
    }

    /// How many devices are healthy, and how many aren't.
    pub(crate) fn count(&self) -> (usize, usize) {
        let healthy = self.entries.values().filter(|entry| entry.health == Health::Healthy).count();
        (healthy, self.entries.len() - healthy)
    }

    /// The complete list, in the order of the ids.
    pub(crate) fn message(&self) -> &api::ListAndWatchResponse {
        &self.message
    }
}

fn list_entry(entry: &Entry) -> api::Device {
    // No node is told as no topology: an empty one, or node -1, would be taken for a place.
    let topology =
        entry.device.numa_node.map(|node| api::TopologyInfo { nodes: vec![api::NumaNode { id: i64::from(node) }] });
    api::Device { id: entry.device.id.clone(), health: entry.health.to_string(), topology }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::device::tests::{device, name};

    fn inventory(devices: Vec<Device>) -> Inventory {
        let mut inventory = Inventory::remembering(name("a.b/c"), Vec::new());
        inventory.update(devices, &[]);
        inventory
    }

    #[test]
    fn node_zero_is_a_place_and_no_node_is_none() {
        let at = |id: &str, node| Device { numa_node: node, ..device(id, &[("/dev/x", 1)]) };
        let listing = Listing::of(&inventory(vec![at("a", Some(0)), at("b", None), at("c", Some(3))])).unwrap();
        let nodes: Vec<Option<Vec<i64>>> = listing
            .message()
            .devices
            .iter()
            .map(|device| device.topology.as_ref().map(|at| at.nodes.iter().map(|node| node.id).collect()))
            .collect();
        assert_eq!(nodes, [Some(vec![0]), None, Some(vec![3])]);
    }

    #[test]
    fn a_list_that_the_kubelet_cannot_receive_is_refused() {
        // 63 characters of id and 19 bytes around it: 51,150 of them fit.
        let many = |count: usize| {
            inventory(
                (0..count)
                    .map(|index| Device { numa_node: Some(1), ..device(&format!("{index:063}"), &[("/dev/x", 1)]) })
                    .collect(),
            )
        };
        let largest = Listing::of(&many(51_150)).unwrap();
        assert!(largest.message().encoded_len() <= LARGEST_BYTES);
        let error = Listing::of(&many(51_151)).unwrap_err();
        assert_eq!((error.devices, error.bytes > LARGEST_BYTES), (51_151, true));
        assert!(error.to_string().contains("a.b/c has 51151 devices"), "{error}");
    }

    #[test]
    fn the_order_found_makes_no_difference() {
        let (one, two) = (device("a", &[("/dev/a", 1)]), device("b", &[("/dev/b", 2)]));
        assert_eq!(
            Listing::of(&inventory(vec![one.clone(), two.clone()])).unwrap(),
            Listing::of(&inventory(vec![two, one])).unwrap()
        );
    }
}
