//! The Pods' cgroups, which the kubelet makes before it calls the runtime.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use keelson_host::{CgroupLayout, HostRoot};
use keelson_proto::cri::v1::LinuxContainerResources;

/// The machine's cgroup hierarchies.
#[derive(Debug)]
pub(crate) struct Cgroups {
    layout: CgroupLayout,
}

impl Cgroups {
    /// Finds the hierarchies.
    ///
    /// # Errors
    ///
    /// When none is mounted.
    pub(crate) fn find() -> Result<Self> {
        let layout = CgroupLayout::read(&HostRoot::system())?;
        Ok(Self { layout: layout.context("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")? })
    }

    /// Makes `cgroup` and what is above it, and sets the Pod's resources.
    pub(crate) fn create(&self, cgroup: &str, resources: &LinuxContainerResources) -> Result<()> {
        match &self.layout {
            CgroupLayout::V1 { controllers } | CgroupLayout::Hybrid { controllers, .. } => {
                create_v1(controllers, cgroup, resources)
            }
            CgroupLayout::Unified { unified, .. } => create_v2(unified, cgroup, resources),
        }
    }

    /// Removes `cgroup` and all below it from every hierarchy; one that isn't there is fine.
    ///
    /// # Errors
    ///
    /// When a process is still in it.
    pub(crate) fn remove(&self, cgroup: &str) -> Result<()> {
        for directory in self.directories(cgroup) {
            remove_tree(&directory)?;
        }
        Ok(())
    }

    /// The directories in which `cgroup` exists.
    pub(crate) fn directories(&self, cgroup: &str) -> Vec<PathBuf> {
        let hierarchies: BTreeSet<&PathBuf> = match &self.layout {
            CgroupLayout::V1 { controllers } => controllers.values().collect(),
            CgroupLayout::Hybrid { controllers, unified, .. } => controllers.values().chain([unified]).collect(),
            CgroupLayout::Unified { unified, .. } => BTreeSet::from([unified]),
        };
        hierarchies
            .into_iter()
            .map(|hierarchy| hierarchy.join(cgroup.trim_start_matches('/')))
            .filter(|directory| directory.is_dir())
            .collect()
    }
}

fn create_v1(controllers: &BTreeMap<String, PathBuf>, cgroup: &str, resources: &LinuxContainerResources) -> Result<()> {
    for (controller, hierarchy) in controllers {
        let directory = make_levels(hierarchy, cgroup, |level, parent| {
            // A new cpuset of version 1 is empty, and no process may enter an empty one.
            for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|_| controller == "cpuset") {
                let path = parent.join(file);
                let value = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
                write(&level.join(file), value.trim())?;
            }
            Ok(())
        })?;
        match controller.as_str() {
            "cpu" => {
                write(&directory.join("cpu.shares"), &resources.cpu_shares.to_string())?;
                if resources.cpu_quota > 0 {
                    write(&directory.join("cpu.cfs_period_us"), &resources.cpu_period.to_string())?;
                    write(&directory.join("cpu.cfs_quota_us"), &resources.cpu_quota.to_string())?;
                }
            }
            "memory" if resources.memory_limit_in_bytes > 0 => {
                write(&directory.join("memory.limit_in_bytes"), &resources.memory_limit_in_bytes.to_string())?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn create_v2(hierarchy: &Path, cgroup: &str, resources: &LinuxContainerResources) -> Result<()> {
    let directory = make_levels(hierarchy, cgroup, |_, parent| {
        write(&parent.join("cgroup.subtree_control"), "+cpu +cpuset +memory +pids")
    })?;
    // The documented span of shares, 2..262144, onto that of weights, 1..10000.
    let weight = 1 + (resources.cpu_shares - 2) * 9999 / 262_142;
    write(&directory.join("cpu.weight"), &weight.to_string())?;
    if resources.cpu_quota > 0 {
        write(&directory.join("cpu.max"), &format!("{} {}", resources.cpu_quota, resources.cpu_period))?;
    }
    if resources.memory_limit_in_bytes > 0 {
        write(&directory.join("memory.max"), &resources.memory_limit_in_bytes.to_string())?;
    }
    Ok(())
}

/// Makes each level of `cgroup` that is missing, calling `made` with it and its parent.
fn make_levels(hierarchy: &Path, cgroup: &str, made: impl Fn(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
    let mut level = hierarchy.to_owned();
    for name in cgroup.split('/').filter(|name| !name.is_empty()) {
        let parent = level.clone();
        level.push(name);
        match fs::create_dir(&level) {
            Ok(()) => made(&level, &parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("failed to create {}", level.display())),
        }
    }
    Ok(level)
}

fn remove_tree(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("failed to list {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory).with_context(|| format!("failed to remove the cgroup {}", directory.display()))
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("failed to write {value:?} to {}", path.display()))
}
