//! CDI specifications: <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>.

use serde::Serialize;

use super::{Device, Node};
use crate::config::ResourceName;

/// A CDI specification: one resource's devices, each with its nodes.
///
/// A node's type and number are left out, so that the runtime takes them from the node itself when it makes the
/// container, as it does for the device nodes that the kubelet asks for: a number written here could be another
/// device's by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CdiSpec {
    cdi_version: &'static str,
    kind: String,
    devices: Vec<CdiDevice>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct CdiDevice {
    name: String,
    container_edits: ContainerEdits,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerEdits {
    device_nodes: Vec<DeviceNode>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceNode {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_path: Option<String>,
    /// Permission bits, as a number. Without them the runtime would make the node 0666.
    file_mode: u32,
    /// What the device cgroup allows. Left out it would mean `rwm`.
    permissions: &'static str,
}

/// What containers may do with a device: read and write, not make nodes of it.
pub(crate) const PERMISSIONS: &str = "rw";

/// The specification for these devices; none for no devices, since a specification without devices isn't valid.
pub(crate) fn cdi_spec<'a>(name: &ResourceName, devices: impl IntoIterator<Item = &'a Device>) -> Option<CdiSpec> {
    let devices: Vec<CdiDevice> = devices.into_iter().map(cdi_device).collect();
    let (vendor, class) = name.cdi_kind();
    let cdi_version = minimum_version(&class, &devices);
    (!devices.is_empty()).then(|| CdiSpec { cdi_version, kind: format!("{vendor}/{class}"), devices })
}

/// The name under which the runtime finds the device: `example.com/fpga=simulated-0`.
pub(crate) fn qualified_name(name: &ResourceName, device: &Device) -> String {
    let (vendor, class) = name.cdi_kind();
    format!("{vendor}/{class}={}", device.id)
}

fn cdi_device(device: &Device) -> CdiDevice {
    let device_nodes = device.nodes.iter().chain(&device.shared).map(device_node).collect();
    CdiDevice { name: device.id.clone(), container_edits: ContainerEdits { device_nodes } }
}

fn device_node(node: &Node) -> DeviceNode {
    let host_path = (node.path != node.container_path).then(|| node.path.display().to_string());
    DeviceNode {
        path: node.container_path.display().to_string(),
        host_path,
        file_mode: node.mode,
        permissions: PERMISSIONS,
    }
}

/// The lowest version that has what is used: a runtime that doesn't know the version refuses the whole file, and one
/// that finds a version too low for its content does as well.
fn minimum_version(class: &str, devices: &[CdiDevice]) -> &'static str {
    let starts_with_digit = |device: &CdiDevice| device.name.starts_with(|first: char| first.is_ascii_digit());
    let has_host_path =
        |device: &CdiDevice| device.container_edits.device_nodes.iter().any(|node| node.host_path.is_some());
    if class.contains('.') {
        "0.6.0"
    } else if devices.iter().any(|device| starts_with_digit(device) || has_host_path(device)) {
        "0.5.0"
    } else {
        "0.3.0"
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;
    use crate::policy::device::tests::{device, name, node};

    fn spec(resource: &str, devices: &[Device]) -> Value {
        serde_json::to_value(cdi_spec(&name(resource), devices).unwrap()).unwrap()
    }

    #[test]
    fn each_device_has_its_nodes_and_those_that_come_with_it() {
        let shared = vec![Node { mode: 0o666, ..node("/dev/vfio/vfio", 196) }];
        let group = Device { shared, ..device("0000:3b:00.0", &[("/dev/vfio/7", 7)]) };
        assert_eq!(
            spec("example.com/accel", &[group]),
            json!({
                "cdiVersion": "0.5.0",
                "kind": "example.com/accel",
                "devices": [{"name": "0000:3b:00.0", "containerEdits": {"deviceNodes": [
                    {"path": "/dev/vfio/7", "fileMode": 0o660, "permissions": "rw"},
                    {"path": "/dev/vfio/vfio", "fileMode": 0o666, "permissions": "rw"},
                ]}}],
            })
        );
    }

    #[test]
    fn a_node_elsewhere_in_the_container_has_a_host_path() {
        let mut simulated = device("simulated-0", &[("/state/simulated-0", 229)]);
        simulated.nodes[0].container_path = PathBuf::from("/dev/simulated/example.com/fpga/simulated-0");
        let spec = spec("example.com/fpga", &[simulated]);
        let node = &spec["devices"][0]["containerEdits"]["deviceNodes"][0];
        assert_eq!(node["hostPath"], "/state/simulated-0");
        assert_eq!(node["path"], "/dev/simulated/example.com/fpga/simulated-0");
        assert_eq!(spec["cdiVersion"], "0.5.0");
    }

    #[test]
    fn the_version_is_the_lowest_that_will_do() {
        let serial = [device("ttyS0", &[("/dev/ttyS0", 64)])];
        assert_eq!(spec("example.com/serial", &serial)["cdiVersion"], "0.3.0");
        assert_eq!(spec("example.com/serial.v2", &serial)["cdiVersion"], "0.6.0");
    }

    #[test]
    fn no_devices_are_no_specification() {
        assert_eq!(cdi_spec(&name("example.com/fpga"), []), None);
    }
}
