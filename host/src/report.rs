//! An inspection as a tree for people.

use std::{collections::BTreeMap, fmt};

use crate::{
    BlockDevice, CgroupLayout, CpuSet, DeviceKind, DeviceNode, Inspection, Link, Mount, NumaNode, PciFunction,
    Topology, tree::decimal,
};

/// A line and the lines below it.
pub(crate) struct Branch {
    text: String,
    below: Vec<Branch>,
}

impl Branch {
    fn new(text: impl Into<String>, below: Vec<Branch>) -> Self {
        Self { text: text.into(), below }
    }

    fn leaf(text: impl Into<String>) -> Self {
        Self::new(text, Vec::new())
    }

    fn write_below(&self, formatter: &mut fmt::Formatter<'_>, indent: &str) -> fmt::Result {
        for (index, branch) in self.below.iter().enumerate() {
            let is_last = index + 1 == self.below.len();
            let (corner, line) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            // A hostile name must not draw lines or colours of its own.
            write!(formatter, "\n{indent}{corner}{}", printable(&branch.text))?;
            branch.write_below(formatter, &format!("{indent}{line}"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", printable(&self.text))?;
        self.write_below(formatter, "")
    }
}

fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// The whole inspection.
pub(crate) fn tree(inspection: &Inspection) -> Branch {
    let mut below = Vec::new();
    if let Some(topology) = &inspection.topology {
        below.push(cpus(topology));
        below.push(numa_nodes(&topology.nodes));
    }
    let list = |name: &str, branches: Vec<Branch>| Branch::new(format!("{name}: {}", branches.len()), branches);
    if let Some(functions) = &inspection.pci_functions {
        below.push(list("PCI functions", functions.iter().map(pci_function).collect()));
    }
    if let Some(devices) = &inspection.block_devices {
        below.push(list("block devices", devices.iter().map(block_device).collect()));
    }
    if let Some(nodes) = &inspection.device_nodes {
        below.push(Branch::new(format!("device nodes: {}", nodes.len()), device_nodes(nodes)));
    }
    if let Some(links) = &inspection.links {
        below.push(list("links", links.iter().map(link).collect()));
    }
    if let Some(mounts) = &inspection.mounts {
        below.push(list("mounts", mounts.iter().map(mount).collect()));
    }
    if let Some(layout) = &inspection.cgroups {
        below.push(cgroups(layout));
    }
    if !inspection.unread.is_empty() {
        let unread = inspection.unread.iter().map(|unread| Branch::leaf(format!("{}: {}", unread.part, unread.error)));
        below.push(list("could not be read", unread.collect()));
    }
    Branch::new(format!("host at {}", inspection.root.display()), below)
}

/// Packages, then the CPU groups that share an L3 cache (or all of a package where no L3 is known).
fn cpus(topology: &Topology) -> Branch {
    let online = topology.online();
    let offline: CpuSet = topology.cpus.iter().filter(|cpu| !cpu.online).map(|cpu| cpu.id).collect();
    let mut packages: BTreeMap<u32, (CpuSet, BTreeMap<CpuSet, CpuSet>)> = BTreeMap::new();
    for cpu in topology.cpus.iter().filter(|cpu| cpu.online) {
        let (all, by_l3) = packages.entry(cpu.package).or_default();
        all.insert(cpu.id);
        by_l3.entry(cpu.l3.clone()).or_default().insert(cpu.id);
    }
    let below = packages.into_iter().map(|(package, (all, by_l3))| {
        let caches = by_l3.into_iter().filter(|(l3, _)| !l3.is_empty());
        let caches =
            caches.map(|(_, cpus)| Branch::leaf(format!("L3 cache of CPUs {cpus}, {}", cores(topology, &cpus))));
        Branch::new(format!("package {package}: CPUs {all}, {}", cores(topology, &all)), caches.collect())
    });
    let offline = if offline.is_empty() { String::new() } else { format!(", {} offline ({offline})", offline.len()) };
    Branch::new(format!("CPUs: {} online ({online}){offline}", online.len()), below.collect())
}

fn cores(topology: &Topology, cpus: &CpuSet) -> String {
    let firsts: CpuSet = cpus.iter().filter_map(|id| topology.cpu(id)).filter_map(|cpu| cpu.siblings.first()).collect();
    counted(firsts.len(), "core")
}

fn numa_nodes(nodes: &[NumaNode]) -> Branch {
    if nodes.is_empty() {
        return Branch::leaf("NUMA nodes: none, the kernel doesn't know NUMA");
    }
    let below = nodes.iter().map(|node| {
        let cpus = if node.cpus.is_empty() { "no CPUs".to_owned() } else { format!("CPUs {}", node.cpus) };
        let memory = if node.memory_bytes == 0 { "no memory".to_owned() } else { bytes(node.memory_bytes) };
        let distances: Vec<String> =
            node.distances.iter().map(|(other, distance)| format!("{other}:{distance}")).collect();
        let distances =
            if distances.is_empty() { String::new() } else { format!(", distances {}", distances.join(" ")) };
        Branch::leaf(format!("node {}: {cpus}, {memory}{distances}", node.id))
    });
    Branch::new(format!("NUMA nodes: {}", nodes.len()), below.collect())
}

fn pci_function(function: &PciFunction) -> Branch {
    let mut text =
        format!("{} {:04x}:{:04x} class {:06x}", function.address, function.vendor, function.device, function.class);
    if let Some(driver) = &function.driver {
        text += &format!(", driver {driver}");
    }
    if let Some(node) = function.numa_node {
        text += &format!(", NUMA node {node}");
    }
    if let Some(group) = function.iommu_group {
        text += &format!(", IOMMU group {group}");
    }
    Branch::new(text, function.device_nodes.iter().map(|path| Branch::leaf(path.display().to_string())).collect())
}

fn block_device(device: &BlockDevice) -> Branch {
    let mut text = format!("{} {}:{}, {}", device.path.display(), device.major, device.minor, bytes(device.size_bytes));
    if device.read_only {
        text += ", read-only";
    }
    if let Some(disk) = &device.partition_of {
        text += &format!(", partition of {disk}");
    }
    if let Some(file) = &device.backing_file {
        text += &format!(", of file {}", file.display());
    }
    Branch::leaf(text)
}

/// Numbered nodes of one driver on one line: `/dev/loop0-7, block 7`. A virtual console has dozens.
fn device_nodes(nodes: &[DeviceNode]) -> Vec<Branch> {
    // By path without its number, kind, major number, and whether there is a number.
    let mut groups: BTreeMap<(String, DeviceKind, u32, bool), CpuSet> = BTreeMap::new();
    for node in nodes {
        let path = node.path.display().to_string();
        let stem = path.trim_end_matches(|character: char| character.is_ascii_digit()).to_owned();
        // A number with leading zeros, such as ptyp00's, would not be printed as it is spelled.
        let number = decimal::<u32>(&path[stem.len()..]).filter(|number| path == format!("{stem}{number}"));
        let stem = if number.is_some() { stem } else { path };
        groups.entry((stem, node.kind, node.major, number.is_some())).or_default().extend(number);
    }
    let line = |((stem, kind, major, _), numbers)| Branch::leaf(format!("{stem}{numbers}, {kind} {major}"));
    groups.into_iter().map(line).collect()
}

fn link(link: &Link) -> Branch {
    let mut text = format!("{} #{}, {}, mtu {}", link.name, link.index, link.state, link.mtu);
    if let Some(mac) = &link.mac {
        text += &format!(", {mac}");
    }
    if let Some(kind) = &link.kind {
        text += &format!(", {kind}");
    }
    if let Some(driver) = &link.driver {
        text += &format!(", driver {driver}");
    }
    if let Some(master) = &link.master {
        text += &format!(", port of {master}");
    }
    Branch::leaf(text)
}

fn mount(mount: &Mount) -> Branch {
    let access = if mount.is_read_only() { "read-only" } else { "read-write" };
    Branch::leaf(format!("{} {} from {}, {access}", mount.point.display(), mount.kind, mount.source))
}

fn cgroups(layout: &CgroupLayout) -> Branch {
    let version_1 = |controllers: &BTreeMap<String, std::path::PathBuf>| -> Vec<Branch> {
        controllers.iter().map(|(name, point)| Branch::leaf(format!("{name} at {}", point.display()))).collect()
    };
    let version_2 = |point: &std::path::Path, controllers: &[String]| {
        let controllers = if controllers.is_empty() { "no controllers".to_owned() } else { controllers.join(" ") };
        Branch::leaf(format!("version 2 at {}: {controllers}", point.display()))
    };
    match layout {
        CgroupLayout::V1 { controllers } => Branch::new("cgroups: version 1", version_1(controllers)),
        CgroupLayout::Hybrid { controllers, unified, unified_controllers } => {
            let mut below = version_1(controllers);
            below.push(version_2(unified, unified_controllers));
            Branch::new("cgroups: hybrid, version 1 controllers with version 2 beside them", below)
        }
        CgroupLayout::Unified { unified, unified_controllers } => {
            Branch::new("cgroups: version 2", vec![version_2(unified, unified_controllers)])
        }
    }
}

fn counted(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Bytes in the largest binary unit of which there is at least one, to a tenth, rounded down.
fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size),
        None => format!("{bytes} B"),
    }
}
