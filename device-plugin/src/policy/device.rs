//! What a device is.

use std::{fmt, path::PathBuf};

use keelson_host::DeviceKind;

use crate::config::{Resource, ResourceName, Selector, Source};

/// A device node, where a container gets it, and what it opens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node {
    /// Its path on the node.
    pub(crate) path: PathBuf,
    /// Its path in a container: the same, but for simulated devices.
    pub(crate) container_path: PathBuf,
    pub(crate) kind: DeviceKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Permission bits.
    pub(crate) mode: u32,
}

impl Node {
    /// What the node opens, whatever its path is.
    pub(crate) fn number(&self) -> (DeviceKind, u32, u32) {
        (self.kind, self.major, self.minor)
    }
}

/// One device: what the kubelet counts as one, and a container gets as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// At most 63 characters, the same after a restart and a reboot; also its name in CDI.
    pub(crate) id: String,
    /// At least one, by path.
    pub(crate) nodes: Vec<Node>,
    /// Nodes that a container gets along with these, and that other devices come with as well.
    pub(crate) shared: Vec<Node>,
    /// The NUMA node that it is attached to, if it is known.
    pub(crate) numa_node: Option<u32>,
    pub(crate) origin: Origin,
}

/// How a device was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Its node's path matched a pattern.
    DeviceNode,
    /// It is a PCI function of this kind.
    Pci {
        /// The vendor's id.
        vendor: u16,
        /// The device's id.
        device: u16,
    },
    /// The plugin made its node.
    Simulated,
}

impl Device {
    /// Whether the resource would still select this device if it were there.
    pub(crate) fn is_selected_by(&self, resource: &Resource) -> bool {
        match (&resource.source, self.origin) {
            (Source::Simulated { count }, Origin::Simulated) => {
                (0..*count).any(|index| super::simulated_id(index) == self.id)
            }
            (Source::Select(selectors), origin) => selectors.iter().any(|selector| match (selector, origin) {
                (Selector::DeviceNodes(patterns), Origin::DeviceNode) => self
                    .nodes
                    .iter()
                    .filter_map(|node| node.path.to_str())
                    .any(|path| patterns.iter().any(|pattern| pattern.matches(path))),
                (&Selector::Pci { vendor, device }, origin) => origin == Origin::Pci { vendor, device },
                (Selector::DeviceNodes(_), Origin::Simulated | Origin::Pci { .. }) => false,
            }),
            (Source::Simulated { .. }, Origin::DeviceNode | Origin::Pci { .. }) => false,
        }
    }
}

/// Whether a device may be given to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Healthy,
    Unhealthy(Fault),
}

/// Why a device may not be given to a container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// A node of it isn't there any more.
    #[error("{} is gone", .0.display())]
    Missing(PathBuf),
    /// Another resource matches it too.
    #[error("{} is matched by {other} as well", node.display())]
    Contested {
        /// The node.
        node: PathBuf,
        /// The other resource.
        other: ResourceName,
    },
}

impl Health {
    /// The health, with the reason if it isn't good.
    pub(crate) fn explain(&self) -> String {
        match self {
            Self::Healthy => self.to_string(),
            Self::Unhealthy(fault) => format!("{self}: {fault}"),
        }
    }
}

/// As the kubelet is told.
impl fmt::Display for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // deviceplugin/v1beta1/constants.go: Healthy, Unhealthy.
        formatter.write_str(match self {
            Self::Healthy => "Healthy",
            Self::Unhealthy(_) => "Unhealthy",
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn node(path: &str, minor: u32) -> Node {
        let path = PathBuf::from(path);
        Node { container_path: path.clone(), path, kind: DeviceKind::Char, major: 10, minor, mode: 0o660 }
    }

    /// A device of these nodes, each a path and a minor number.
    pub(crate) fn device(id: &str, nodes: &[(&str, u32)]) -> Device {
        Device {
            id: id.to_owned(),
            nodes: nodes.iter().map(|(path, minor)| node(path, *minor)).collect(),
            shared: Vec::new(),
            numa_node: None,
            origin: Origin::DeviceNode,
        }
    }

    pub(crate) fn name(text: &str) -> ResourceName {
        ResourceName::parse(text).unwrap()
    }
}
