//! Finds each resource's devices.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use keelson_host::{HostRoot, InspectError, PciFunction, device_numa_node, pci_functions};

use super::{NodeAt, look_at, pattern::Search, simulated::find_simulated, simulated_directory};
use crate::{
    config::{DevicesSettings, NodePattern, Resource, Selector, Source},
    policy::{Device, Node, Origin, merge, node_id},
};

/// Something that a selector found and that is no device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Skipped {
    pub(crate) path: PathBuf,
    /// Why, as a predicate.
    pub(crate) reason: String,
}

/// What all resources' selectors found at one moment.
#[derive(Debug)]
pub(crate) struct Discovery {
    /// For each resource, in the config's order, its devices, no two of which share an id or a node.
    pub(crate) found: Vec<Result<Vec<Device>, DiscoveryError>>,
    pub(crate) skipped: BTreeSet<Skipped>,
    /// The directories in which a change can change the result.
    pub(crate) directories: BTreeSet<PathBuf>,
}

/// Why a resource's devices could not be found. What was known of them still holds.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DiscoveryError {
    #[error("failed to look at {}", path.display())]
    Look { path: PathBuf, source: Arc<io::Error> },
    #[error("failed to find its PCI functions")]
    Pci(#[source] Arc<InspectError>),
    #[error("failed to find the NUMA node of {}", path.display())]
    NumaNode { path: PathBuf, source: Arc<InspectError> },
}

impl DiscoveryError {
    fn look((path, source): (PathBuf, io::Error)) -> Self {
        Self::Look { path, source: Arc::new(source) }
    }
}

/// Looks for the devices of all resources. Reads only.
pub(crate) fn discover(settings: &DevicesSettings) -> Discovery {
    let mut scan = Scan { settings, functions: None, skipped: BTreeSet::new(), directories: BTreeSet::new() };
    let found = settings.resources.iter().map(|resource| scan.resource(resource)).collect();
    Discovery { found, skipped: scan.skipped, directories: scan.directories }
}

struct Scan<'a> {
    settings: &'a DevicesSettings,
    /// Read when the first selector asks for them.
    functions: Option<Result<Vec<PciFunction>, Arc<InspectError>>>,
    skipped: BTreeSet<Skipped>,
    directories: BTreeSet<PathBuf>,
}

impl Scan<'_> {
    fn root(&self) -> &HostRoot {
        &self.settings.root
    }

    fn resource(&mut self, resource: &Resource) -> Result<Vec<Device>, DiscoveryError> {
        let selectors = match &resource.source {
            Source::Simulated { count } => {
                let state_dir = &self.settings.state_dir;
                self.directories.insert(simulated_directory(state_dir, &resource.name));
                return find_simulated(state_dir, &resource.name, *count).map_err(DiscoveryError::look);
            }
            Source::Select(selectors) => selectors,
        };
        let mut found = Vec::new();
        for selector in selectors {
            match selector {
                Selector::DeviceNodes(patterns) => {
                    for pattern in patterns {
                        found.extend(self.matching_nodes(pattern)?);
                    }
                }
                &Selector::Pci { vendor, device } => found.extend(self.matching_functions(vendor, device)?),
            }
        }
        let merged = merge(found);
        self.skipped.extend(merged.same_id.into_iter().map(|device| Skipped {
            path: device.nodes.into_iter().next().map(|node| node.path).unwrap_or_default(),
            reason: format!("would have the id {:?} of another device of {}", device.id, resource.name),
        }));
        Ok(merged.devices)
    }

    /// Each node that a pattern matches is a device.
    fn matching_nodes(&mut self, pattern: &NodePattern) -> Result<Vec<Device>, DiscoveryError> {
        let mut search = Search::default();
        search.run(self.root(), pattern).map_err(DiscoveryError::look)?;
        let root = self.root().clone();
        self.directories.extend(search.directories.iter().map(|directory| root.join(directory)));
        self.skipped.extend(search.skipped);
        search.nodes.sort();
        search.nodes.into_iter().map(|node| self.node_device(node)).collect()
    }

    fn node_device(&self, node: Node) -> Result<Device, DiscoveryError> {
        let numa_node = device_numa_node(self.root(), node.kind, node.major, node.minor)
            .map_err(|source| DiscoveryError::NumaNode { path: node.path.clone(), source: Arc::new(source) })?;
        let (id, shared) = (node_id(&node.path), self.shared_nodes([&node])?);
        Ok(Device { id, nodes: vec![node], shared, numa_node, origin: Origin::DeviceNode })
    }

    /// Each PCI function of the kind, with all its nodes, is a device.
    fn matching_functions(&mut self, vendor: u16, device: u16) -> Result<Vec<Device>, DiscoveryError> {
        // A function's nodes come and go with its driver: mostly in /dev itself, for VFIO below it.
        self.directories.extend(["/dev", "/dev/vfio"].map(|directory| self.settings.root.join(directory)));
        let root = self.root().clone();
        let functions = self
            .functions
            .get_or_insert_with(|| pci_functions(&root).map_err(Arc::new))
            .clone()
            .map_err(DiscoveryError::Pci)?;
        let mut devices = Vec::new();
        for function in functions.into_iter().filter(|found| (found.vendor, found.device) == (vendor, device)) {
            let mut nodes = Vec::new();
            for path in &function.device_nodes {
                self.directories.extend(path.parent().map(|directory| root.join(directory)));
                match self.look(path)? {
                    NodeAt::Device(node) => nodes.push(node),
                    NodeAt::Other(what) => {
                        self.skipped.insert(Skipped { path: path.clone(), reason: format!("is {what}") });
                    }
                    NodeAt::Nothing => {}
                }
            }
            if nodes.is_empty() {
                let reason = match function.driver {
                    Some(driver) => format!("is a PCI function for which its driver {driver} made no device node"),
                    None => "is a PCI function without a driver, so it has no device node".to_owned(),
                };
                self.skipped.insert(Skipped { path: function.address.into(), reason });
                continue;
            }
            nodes.sort();
            let shared = self.shared_nodes(&nodes)?;
            let (id, numa_node) = (function.address, function.numa_node);
            devices.push(Device { id, nodes, shared, numa_node, origin: Origin::Pci { vendor, device } });
        }
        Ok(devices)
    }

    /// What a container needs besides these nodes: with a VFIO group (`/dev/vfio/12`) the container device
    /// `/dev/vfio/vfio` (Documentation/driver-api/vfio.rst), which does nothing without a group.
    fn shared_nodes<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>) -> Result<Vec<Node>, DiscoveryError> {
        let is_group = |node: &Node| {
            let name = node.path.strip_prefix("/dev/vfio").ok().and_then(Path::to_str);
            name.is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()))
        };
        if !nodes.into_iter().any(is_group) {
            return Ok(Vec::new());
        }
        Ok(match self.look(Path::new("/dev/vfio/vfio"))? {
            NodeAt::Device(node) => vec![node],
            NodeAt::Other(_) | NodeAt::Nothing => Vec::new(),
        })
    }

    fn look(&self, path: &Path) -> Result<NodeAt, DiscoveryError> {
        look_at(self.root(), path).map_err(|source| DiscoveryError::look((path.to_owned(), source)))
    }
}

/// Looks at the device's nodes once more; the error says what is there instead of what was found before.
pub(crate) fn verify(root: &HostRoot, device: &Device) -> Result<(), String> {
    for node in device.nodes.iter().chain(&device.shared) {
        // Simulated nodes are in our own directory, to which links may lead; others are below the host's root.
        let looked = match (device.origin, node.path.parent(), node.path.file_name()) {
            (Origin::Simulated, Some(directory), Some(name)) => look_at(&HostRoot::at(directory), Path::new(name)),
            _ => look_at(root, &node.path),
        };
        let path = node.path.display();
        match looked {
            Ok(NodeAt::Device(found)) if found.number() == node.number() => {}
            Ok(NodeAt::Device(found)) => {
                let number = |node: &Node| format!("{} {}:{}", node.kind, node.major, node.minor);
                return Err(format!("{path} was {} and is {}", number(node), number(&found)));
            }
            Ok(NodeAt::Other(what)) => return Err(format!("{path} is {what}")),
            Ok(NodeAt::Nothing) => return Err(format!("{path} is gone")),
            Err(error) => return Err(format!("failed to look at {path}: {error}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use keelson_testkit::{is_root, skip_unless};
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

    use super::*;
    use crate::policy::device::tests::device;

    fn make_node(path: &Path, minor: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(10, minor)).unwrap();
    }

    fn search(root: &Path, pattern: &str) -> (Vec<String>, Vec<String>) {
        let mut search = Search::default();
        search.run(&HostRoot::at(root), &NodePattern::parse(pattern).unwrap()).unwrap();
        let mut nodes: Vec<String> = search.nodes.iter().map(|node| node.path.display().to_string()).collect();
        nodes.sort();
        let mut skipped: Vec<String> =
            search.skipped.iter().map(|skipped| format!("{} {}", skipped.path.display(), skipped.reason)).collect();
        skipped.sort();
        (nodes, skipped)
    }

    #[test]
    fn only_device_nodes_count_and_no_link_is_followed() {
        skip_unless!(is_root(), "making device nodes needs root");
        let root = tempfile::tempdir().unwrap();
        let dev = root.path().join("dev");
        make_node(&dev.join("fpga0"), 240);
        make_node(&dev.join("fpga/1"), 241);
        make_node(&root.path().join("outside/2"), 242);
        fs::write(dev.join("fpga-notes"), "").unwrap();
        fs::create_dir(dev.join("fpga-directory")).unwrap();
        symlink("fpga0", dev.join("fpga-link")).unwrap();
        symlink("/dev/mem", dev.join("fpga-memory")).unwrap();
        symlink("../outside", dev.join("linked")).unwrap();
        let (nodes, skipped) = search(root.path(), "/dev/fpga*");
        assert_eq!(nodes, ["/dev/fpga0"]);
        assert_eq!(
            skipped,
            [
                "/dev/fpga is a directory",
                "/dev/fpga-directory is a directory",
                "/dev/fpga-link is a symbolic link",
                "/dev/fpga-memory is a symbolic link",
                "/dev/fpga-notes is a regular file",
            ]
        );
        let (nodes, skipped) = search(root.path(), "/dev/*/[0-9]");
        assert_eq!(nodes, ["/dev/fpga/1"]);
        assert!(skipped.contains(&"/dev/linked is a symbolic link, not a directory".to_owned()), "{skipped:?}");
        assert_eq!(search(root.path(), "/dev/none/*"), (Vec::new(), Vec::new()));
        // Nor by a path that says so.
        let looked = look_at(&HostRoot::at(root.path()), Path::new("/dev/linked/2")).unwrap();
        assert_eq!(looked, NodeAt::Other("reached over a symbolic link"));
    }

    #[test]
    fn a_device_that_is_not_what_was_listed_is_noticed() {
        skip_unless!(is_root(), "making device nodes needs root");
        let directory = tempfile::tempdir().unwrap();
        let root = HostRoot::at(directory.path());
        let listed = device("fpga0", &[("/dev/fpga0", 240)]);
        let path = directory.path().join("dev/fpga0");
        make_node(&path, 240);
        verify(&root, &listed).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(verify(&root, &listed).unwrap_err(), "/dev/fpga0 is gone");
        make_node(&path, 241);
        assert_eq!(verify(&root, &listed).unwrap_err(), "/dev/fpga0 was char 10:240 and is char 10:241");
        fs::remove_file(&path).unwrap();
        symlink("/dev/null", &path).unwrap();
        assert_eq!(verify(&root, &listed).unwrap_err(), "/dev/fpga0 is a symbolic link");
    }
}
