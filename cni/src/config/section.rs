//! The `network` section of the node's config.

use std::path::{Path, PathBuf};

use keelson_host::{Node, Problem, Problems};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    names::{identifier_fault, interface_name_fault},
    range::{Range, RangeSet, RangeText, check_sets},
};

/// The `network` section as the user writes it.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkSection {
    /// The CNI network's name.
    pub name: String,
    /// Whether Pods are ports of a bridge, or reached by host routes.
    pub mode: NetworkMode,
    /// The bridge that Pods are attached to; made when missing.
    pub bridge: String,
    /// Subnets such as `10.88.0.0/16`; a Pod gets one address from each, the first address is the node's.
    pub ranges: Vec<String>,
    /// Whether traffic from Pods to the world outside carries the node's address.
    pub masquerade: bool,
    /// Where the container runtime looks for network configs.
    pub conf_dir: PathBuf,
    /// Where the container runtime looks for CNI executables.
    pub bin_dir: PathBuf,
}

/// How Pods are attached to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// As ports of one bridge.
    #[default]
    Bridge,
    /// By a route of the node to each.
    Routed,
}

impl Default for NetworkSection {
    fn default() -> Self {
        Self {
            name: "keelson".to_owned(),
            mode: NetworkMode::Bridge,
            bridge: "kl0".to_owned(),
            ranges: vec!["10.88.0.0/16".to_owned()],
            masquerade: true,
            conf_dir: PathBuf::from("/etc/cni/net.d"),
            bin_dir: PathBuf::from("/opt/cni/bin"),
        }
    }
}

/// A checked [`NetworkSection`]: what [`install`](crate::install) puts on the node.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    pub(crate) name: String,
    pub(crate) mode: NetworkMode,
    pub(crate) bridge: String,
    pub(crate) ranges: Vec<Range>,
    pub(crate) masquerade: bool,
    /// As the runtime and the executable see it, on the host.
    pub(crate) host_data_dir: PathBuf,
    /// As this process sees them, below the host root.
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dir: PathBuf,
    pub(crate) data_dir: PathBuf,
}

impl NetworkSection {
    /// Checks the section against `node`, reading the host and changing nothing.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, each with a path that starts with `network`.
    pub fn validate(&self, node: &Node) -> Result<NetworkSettings, Problems> {
        let mut problems = Problems::default();
        if let Some(wrong) = identifier_fault(&self.name) {
            let remedy = "use letters, digits, '_', '.' and '-', starting with a letter or digit";
            problems.push(Problem::new("network.name", &self.name, wrong, remedy));
        }
        if let Some(wrong) = interface_name_fault(&self.bridge) {
            let remedy = "use 1 to 15 characters without '/', ':' and spaces";
            problems.push(Problem::new("network.bridge", &self.bridge, wrong, remedy));
        } else if node.root.join("sys/class/net").join(&self.bridge).exists()
            && !node.root.join("sys/class/net").join(&self.bridge).join("bridge").exists()
        {
            let remedy = "name a bridge, or a link that doesn't exist yet";
            problems.push(Problem::new("network.bridge", &self.bridge, "is a link that is not a bridge", remedy));
        }
        for (path, directory) in [("network.confDir", &self.conf_dir), ("network.binDir", &self.bin_dir)] {
            if !directory.is_absolute() {
                let remedy = "give the path from the root";
                problems.push(Problem::new(path, directory.display(), "is not an absolute path", remedy));
            }
        }
        let mut ranges = Vec::new();
        for (index, subnet) in self.ranges.iter().enumerate() {
            let text = RangeText { subnet: subnet.clone(), ..RangeText::default() };
            let path = format!("network.ranges[{index}]");
            match Range::new(&path, &path, &text) {
                Ok(range) => ranges.push(range),
                Err(problem) => problems.push(problem),
            }
        }
        if ranges.len() == self.ranges.len() {
            let sets: Vec<RangeSet> = ranges.iter().map(|range| RangeSet(vec![range.clone()])).collect();
            let found = check_sets(&sets, "network.ranges", |set, _| format!("network.ranges[{set}]"));
            problems.0.extend(found.0);
        }
        let data_dir = node.state_dir.join("network");
        problems.into_result(NetworkSettings {
            name: self.name.clone(),
            mode: self.mode,
            bridge: self.bridge.clone(),
            ranges,
            masquerade: self.masquerade,
            conf_dir: node.root.join(&self.conf_dir),
            bin_dir: node.root.join(&self.bin_dir),
            data_dir: node.root.join(&data_dir),
            host_data_dir: data_dir,
        })
    }
}

impl NetworkSettings {
    /// The network's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bridge's name.
    #[must_use]
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// The network config that [`install`](crate::install) writes, as this process sees it: worth watching.
    #[must_use]
    pub fn conflist_path(&self) -> PathBuf {
        self.conf_dir.join(format!("10-{}.conflist", self.name))
    }

    /// The executable that [`install`](crate::install) copies, as this process sees it: worth watching.
    #[must_use]
    pub fn executable_path(&self) -> PathBuf {
        self.bin_dir.join("keelson-cni")
    }

    /// The directory of the network's records, as this process sees it.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

#[cfg(test)]
mod tests {
    use keelson_host::HostRoot;

    use super::*;

    fn node(root: &Path) -> Node {
        Node { name: "a".to_owned(), state_dir: PathBuf::from("/var/lib/keelson"), root: HostRoot::at(root) }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut NetworkSection), expected: &str) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sys/class/net/eth7")).unwrap();
        let mut section = NetworkSection::default();
        change(&mut section);
        assert_eq!(section.validate(&node(root.path())).unwrap_err().to_string(), expected);
    }

    #[test]
    fn the_defaults_are_valid() {
        let root = tempfile::tempdir().unwrap();
        let settings = NetworkSection::default().validate(&node(root.path())).unwrap();
        assert_eq!(settings.conflist_path(), root.path().join("etc/cni/net.d/10-keelson.conflist"));
        assert_eq!(settings.host_data_dir, Path::new("/var/lib/keelson/network"));
    }

    #[test]
    fn each_fault_names_path_value_and_remedy() {
        refused(
            |section| section.ranges = vec!["10.88.0.0/16".to_owned(), "10.88.4.0/24".to_owned()],
            "network.ranges[1]: \"10.88.4.0/24\" overlaps 10.88.0.0/16 (network.ranges[0]); make the ranges disjoint",
        );
        refused(
            |section| section.ranges = vec!["10.88.0.0/31".to_owned()],
            "network.ranges[0]: \"10.88.0.0/31\" is too small for a gateway and a Pod; take a prefix of at most /30 (IPv4) or /126 (IPv6)",
        );
        refused(
            |section| section.ranges.clear(),
            "network.ranges: names no range; give at least one, such as 10.88.0.0/16",
        );
        refused(
            |section| section.bridge = "eth7".to_owned(),
            "network.bridge: \"eth7\" is a link that is not a bridge; name a bridge, or a link that doesn't exist yet",
        );
        refused(
            |section| section.name = "../x".to_owned(),
            "network.name: \"../x\" does not start with a letter or digit; use letters, digits, '_', '.' and '-', starting with a letter or digit",
        );
        refused(
            |section| section.bin_dir = PathBuf::from("bin"),
            "network.binDir: \"bin\" is not an absolute path; give the path from the root",
        );
    }
}
