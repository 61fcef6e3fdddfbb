//! CPUs, the caches they share, and NUMA nodes.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    CpuSet, HostRoot, InspectError,
    tree::{Tree, decimal, numbered},
};

const CPU_DIRECTORY: &str = "/sys/devices/system/cpu";
const NODE_DIRECTORY: &str = "/sys/devices/system/node";
const CPU_LIST: &str = "a CPU list such as 0-3,8";

/// The machine's CPUs and NUMA nodes at one moment.
///
/// CPUs and nodes come and go (hotplug), so what must be current is read again, not remembered. A CPU that goes on- or
/// offline during the reading may have no place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// The CPUs that are present, by ascending id; ids may have holes.
    pub cpus: Vec<Cpu>,
    /// The online NUMA nodes, by ascending id; ids may have holes. Empty on a kernel without NUMA.
    pub nodes: Vec<NumaNode>,
}

/// One logical CPU: a hardware thread.
///
/// Of an offline CPU the kernel tells nothing but that it exists: `package` and `core` are then 0, `die` and `node`
/// `None`, and the sets empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// The kernel's number, as in `cpuset.cpus`.
    pub id: u32,
    /// Whether it runs tasks now.
    pub online: bool,
    /// The physical package (socket); 0 also where the kernel doesn't know.
    pub package: u32,
    /// The die within the package, where the kernel knows of dies.
    pub die: Option<u32>,
    /// The core's id, unique within package and die only, and not contiguous; 0 also where the kernel doesn't know.
    pub core: u32,
    /// The NUMA node it belongs to; `None` on a kernel without NUMA.
    pub node: Option<u32>,
    /// The hardware threads of the same core, this one included.
    pub siblings: CpuSet,
    /// The online CPUs that share its L2 cache, this one included; empty where the kernel knows of none.
    pub l2: CpuSet,
    /// The online CPUs that share its L3 cache, this one included; empty where the kernel knows of none.
    pub l3: CpuSet,
}

/// One NUMA node: CPUs, memory, or one of both.
///
/// A node without CPUs is CXL, HBM or GPU memory, one without memory has its DIMM slots empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NumaNode {
    /// The kernel's number, as in `cpuset.mems`.
    pub id: u32,
    /// Its online CPUs.
    pub cpus: CpuSet,
    /// Its usable memory, in bytes (the kernel's own image and reservations are not in it). In a guest with a balloon
    /// this changes all the time, and is not the guest's `MemTotal` in `/proc/meminfo`.
    pub memory_bytes: u64,
    /// The distance to each online node as (node, distance), by ascending node: 10 is local, 20 twice as far (ACPI
    /// SLIT).
    pub distances: Vec<(u32, u32)>,
}

impl Topology {
    /// Reads the topology of the host below `root`.
    ///
    /// What the kernel leaves out (an offline CPU's topology, caches in a guest, NUMA) is not an error.
    ///
    /// # Errors
    ///
    /// [`InspectError::Read`] if `/sys/devices/system/cpu` or an attribute that is there can't be read,
    /// [`InspectError::Parse`] if one holds something else than the kernel documents.
    pub fn read(root: &HostRoot) -> Result<Self, InspectError> {
        let tree = Tree::open(root)?;
        let nodes = numa_nodes(&tree)?;
        // Sample: "0-3,8". Documentation/admin-guide/cputopology.rst, "online".
        let online_path = format!("{CPU_DIRECTORY}/online");
        let online = tree.text(&online_path)?;
        let online: CpuSet = online.parse().map_err(|_| tree.unexpected(&online_path, &online, CPU_LIST))?;
        // The directories are the present CPUs; ids, not names, give the order: "cpu10" sorts before "cpu2".
        let present: BTreeSet<u32> =
            tree.names(CPU_DIRECTORY)?.iter().filter_map(|name| numbered(name, "cpu")).chain(&online).collect();
        let cpus = present
            .into_iter()
            .map(|id| match online.contains(id) {
                true => online_cpu(&tree, id, &nodes),
                false => Ok(Cpu { id, ..Cpu::default() }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { cpus, nodes })
    }

    /// The CPUs that run tasks now.
    #[must_use]
    pub fn online(&self) -> CpuSet {
        self.cpus.iter().filter(|cpu| cpu.online).map(|cpu| cpu.id).collect()
    }

    /// The CPU with this id.
    #[must_use]
    pub fn cpu(&self, id: u32) -> Option<&Cpu> {
        self.cpus.binary_search_by_key(&id, |cpu| cpu.id).ok().map(|index| &self.cpus[index])
    }

    /// The NUMA node with this id.
    #[must_use]
    pub fn node(&self, id: u32) -> Option<&NumaNode> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok().map(|index| &self.nodes[index])
    }
}

impl NumaNode {
    /// The distance to `node`, if that is online.
    #[must_use]
    pub fn distance_to(&self, node: u32) -> Option<u32> {
        self.distances.iter().find(|(id, _)| *id == node).map(|(_, distance)| *distance)
    }
}

/// Reads `cpuN/topology` and `cpuN/cache` of an online CPU.
fn online_cpu(tree: &Tree, id: u32, nodes: &[NumaNode]) -> Result<Cpu, InspectError> {
    let topology = format!("{CPU_DIRECTORY}/cpu{id}/topology");
    // Documentation/ABI/stable/sysfs-devices-system-cpu. Samples: physical_package_id "0", die_id "0", core_id "12",
    // core_cpus_list "0,64". An architecture that doesn't know a number says -1 (include/linux/topology.h).
    let number = |name: &str| -> Result<Option<u32>, InspectError> {
        let path = format!("{topology}/{name}");
        Ok(tree.value(path, "a number, or -1 for unknown", number_or_unknown)?.flatten())
    };
    // Linux 5.3 gave thread_siblings_list its better name.
    let siblings = match cpu_list(tree, &format!("{topology}/core_cpus_list"))? {
        Some(siblings) => Some(siblings),
        None => cpu_list(tree, &format!("{topology}/thread_siblings_list"))?,
    };
    let mut cpu = Cpu {
        id,
        online: true,
        package: number("physical_package_id")?.unwrap_or(0),
        die: number("die_id")?,
        core: number("core_id")?.unwrap_or(0),
        node: nodes.iter().find(|node| node.cpus.contains(id)).map(|node| node.id),
        siblings: siblings.unwrap_or_else(|| CpuSet::from([id])),
        ..Cpu::default()
    };
    // Documentation/ABI/testing/sysfs-devices-system-cpu, "cache/index*". Samples: level "3", type "Unified",
    // shared_cpu_list "0-7,64-71".
    let caches = format!("{CPU_DIRECTORY}/cpu{id}/cache");
    for index in tree.names_if_present(&caches)?.iter().filter(|name| numbered(name, "index").is_some()) {
        let level = tree.value(format!("{caches}/{index}/level"), "a cache level such as 3", decimal::<u32>)?;
        let kind = tree.text_if_present(format!("{caches}/{index}/type"))?;
        let shared = match level {
            Some(2) => &mut cpu.l2,
            Some(3) => &mut cpu.l3,
            _ => continue,
        };
        if kind.as_deref() != Some("Instruction") {
            *shared = cpu_list(tree, &format!("{caches}/{index}/shared_cpu_list"))?.unwrap_or_default();
        }
    }
    Ok(cpu)
}

/// Reads `/sys/devices/system/node` (Documentation/ABI/stable/sysfs-devices-node), which isn't there on a kernel
/// without NUMA.
fn numa_nodes(tree: &Tree) -> Result<Vec<NumaNode>, InspectError> {
    let ids: BTreeSet<u32> =
        tree.names_if_present(NODE_DIRECTORY)?.iter().filter_map(|name| numbered(name, "node")).collect();
    ids.iter()
        .map(|id| {
            let directory = format!("{NODE_DIRECTORY}/node{id}");
            Ok(NumaNode {
                id: *id,
                cpus: cpu_list(tree, &format!("{directory}/cpulist"))?.unwrap_or_default(),
                memory_bytes: memory_bytes(tree, &format!("{directory}/meminfo"))?,
                distances: distances(tree, &format!("{directory}/distance"), &ids)?,
            })
        })
        .collect()
}

/// Sample line: `Node 0 MemTotal:        6777044 kB`, where kB means 1024 bytes.
fn memory_bytes(tree: &Tree, path: &str) -> Result<u64, InspectError> {
    let Some(text) = tree.text_if_present(path)? else { return Ok(0) };
    let total = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "MemTotal:").skip(1);
        let kibibytes: u64 = decimal(words.next()?)?;
        if words.next() == Some("kB") { kibibytes.checked_mul(1024) } else { None }
    });
    total.ok_or_else(|| tree.unexpected(path, &text, "lines with one \"Node N MemTotal: N kB\" among them"))
}

/// Sample: `10 21 31`, one number per online node in the order of their ids (drivers/base/node.c, `node_read_distance`).
fn distances(tree: &Tree, path: &str, ids: &BTreeSet<u32>) -> Result<Vec<(u32, u32)>, InspectError> {
    let parse = |text: &str| -> Option<Vec<(u32, u32)>> {
        let distances: Vec<u32> = text.split_whitespace().map(decimal).collect::<Option<_>>()?;
        (distances.len() == ids.len()).then(|| ids.iter().copied().zip(distances).collect())
    };
    Ok(tree.value(path, "one distance per online node", parse)?.unwrap_or_default())
}

fn cpu_list(tree: &Tree, path: &str) -> Result<Option<CpuSet>, InspectError> {
    tree.value(path, CPU_LIST, |text| text.parse().ok())
}

fn number_or_unknown(text: &str) -> Option<Option<u32>> {
    if text == "-1" { Some(None) } else { decimal(text).map(Some) }
}
