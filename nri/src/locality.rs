//! What this crate needs to know of devices, which are another plugin's business.

use keelson_host::DeviceKind;

/// Tells which NUMA node a device is attached to; the daemon connects it to the picture of the host.
///
/// NOTE: it is asked while the runtime waits for a container's creation, so an implementation answers from memory or
/// from a few reads of sysfs, never from the network or a disk.
pub trait DeviceLocality: Send + Sync {
    /// The NUMA node of the device with these numbers; `None` if it has none or that isn't known.
    fn numa_node(&self, kind: DeviceKind, major: u32, minor: u32) -> Option<u32>;
}
