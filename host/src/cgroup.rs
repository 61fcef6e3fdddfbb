//! Where the cgroup controllers are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{HostRoot, InspectError, Mount, mounts, serialize, tree::Tree};

/// The version 1 controllers (Documentation/admin-guide/cgroup-v1/; the list is closed, new controllers are for version
/// 2 only). A version 1 mount's other options are flags such as `clone_children`.
const V1_CONTROLLERS: [&str; 14] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// How this host's cgroup hierarchies are mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "layout", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum CgroupLayout {
    /// Version 1 only: a hierarchy for each controller or few.
    V1 {
        /// The mount point of each controller, and of each named hierarchy as `name=systemd`.
        #[serde(serialize_with = "serialize::paths_by_name")]
        controllers: BTreeMap<String, PathBuf>,
    },
    /// Version 1 hierarchies, and a version 2 hierarchy beside them that holds what is left.
    Hybrid {
        /// The mount point of each version 1 controller or named hierarchy.
        #[serde(serialize_with = "serialize::paths_by_name")]
        controllers: BTreeMap<String, PathBuf>,
        /// The mount point of the version 2 hierarchy.
        #[serde(serialize_with = "serialize::path")]
        unified: PathBuf,
        /// The controllers of the version 2 hierarchy, often none.
        unified_controllers: Vec<String>,
    },
    /// Version 2 only.
    Unified {
        /// The mount point, usually `/sys/fs/cgroup`.
        #[serde(serialize_with = "serialize::path")]
        unified: PathBuf,
        /// The controllers that are available at the mount point.
        unified_controllers: Vec<String>,
    },
}

impl CgroupLayout {
    /// Reads it from the [mount table](mounts) of the host below `root`; `None` if no hierarchy is mounted.
    ///
    /// Of several mounts of one hierarchy the first is taken: the later ones are containers'.
    ///
    /// # Errors
    ///
    /// As [`mounts`], and [`InspectError::Read`] for `cgroup.controllers`.
    pub fn read(root: &HostRoot) -> Result<Option<Self>, InspectError> {
        let mounts = mounts(root)?;
        let mut controllers = BTreeMap::new();
        for mount in mounts.iter().filter(|mount| mount.kind == "cgroup") {
            // Samples of a version 1 hierarchy's super options: "rw,cpu,cpuacct", "rw,xattr,name=systemd".
            for option in mount.super_options.iter().filter(|option| is_hierarchy(option)) {
                controllers.entry(option.clone()).or_insert_with(|| mount.point.clone());
            }
        }
        let Some(unified) = mounts.into_iter().find(|mount| mount.kind == "cgroup2") else {
            return Ok(if controllers.is_empty() { None } else { Some(Self::V1 { controllers }) });
        };
        let unified_controllers = unified_controllers(root, &unified)?;
        let unified = unified.point;
        Ok(Some(if controllers.is_empty() {
            Self::Unified { unified, unified_controllers }
        } else {
            Self::Hybrid { controllers, unified, unified_controllers }
        }))
    }

    /// The mount point of the hierarchy that has `controller`, whichever version that is.
    #[must_use]
    pub fn controller(&self, controller: &str) -> Option<&Path> {
        let (controllers, unified) = match self {
            Self::V1 { controllers } => (Some(controllers), None),
            Self::Hybrid { controllers, unified, unified_controllers } => {
                (Some(controllers), Some((unified, unified_controllers)))
            }
            Self::Unified { unified, unified_controllers } => (None, Some((unified, unified_controllers))),
        };
        let version_1 = controllers.and_then(|controllers| controllers.get(controller));
        let version_2 = unified.filter(|(_, names)| names.iter().any(|name| name == controller));
        version_1.or(version_2.map(|(point, _)| point)).map(PathBuf::as_path)
    }
}

fn is_hierarchy(option: &str) -> bool {
    V1_CONTROLLERS.contains(&option) || option.starts_with("name=")
}

/// Sample: `cpuset cpu io memory hugetlb pids rdma misc` (Documentation/admin-guide/cgroup-v2.rst,
/// "cgroup.controllers"); the line is empty if version 1 has them all.
fn unified_controllers(root: &HostRoot, unified: &Mount) -> Result<Vec<String>, InspectError> {
    let text = Tree::open(root)?.text_if_present(unified.point.join("cgroup.controllers"))?;
    Ok(text.unwrap_or_default().split_whitespace().map(str::to_owned).collect())
}
