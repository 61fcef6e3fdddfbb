//! The section as the user writes it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `devices` section of a NodeConfig; every key has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DevicesSection {
    /// The kubelet's device plugin directory, in which it listens on `kubelet.sock` and expects the plugins' sockets.
    pub kubelet_dir: PathBuf,
    /// The directory in which the container runtime looks for CDI specifications made while the node runs.
    pub cdi_dir: PathBuf,
    /// What is offered to Pods.
    pub resources: Vec<ResourceSection>,
}

impl Default for DevicesSection {
    fn default() -> Self {
        Self {
            kubelet_dir: PathBuf::from("/var/lib/kubelet/device-plugins"),
            cdi_dir: PathBuf::from("/var/run/cdi"),
            resources: Vec::new(),
        }
    }
}

/// A resource and its devices: either `simulated` ones or those that `select` finds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResourceSection {
    /// The extended resource's name, which Pods ask for: `example.com/fpga`.
    pub name: String,
    /// Devices to try things out with, made by the plugin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulated: Option<SimulatedSection>,
    /// Which of the machine's devices belong to the resource: those that any of these selectors finds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub select: Vec<SelectorSection>,
}

/// Simulated devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SimulatedSection {
    /// How many.
    pub count: u32,
}

impl Default for SimulatedSection {
    fn default() -> Self {
        Self { count: 1 }
    }
}

/// One way of finding devices: exactly one of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SelectorSection {
    /// Patterns of device nodes' paths such as `/dev/ttyS*`; each node found is one device.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<String>,
    /// A kind of PCI function; each function found is one device, with all its device nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci: Option<PciSection>,
}

/// A kind of PCI function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PciSection {
    /// The vendor's id as lspci prints it: four hexadecimal digits, in quotes.
    pub vendor: String,
    /// The device's id in the same form.
    pub device: String,
}
