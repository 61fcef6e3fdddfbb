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
