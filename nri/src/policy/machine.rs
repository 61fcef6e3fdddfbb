//! What the machine has to give, and which of its CPUs belong together.

use std::collections::{BTreeMap, BTreeSet};

use keelson_host::{CpuSet, Topology};

/// The machine's online CPUs as a tree: zones (NUMA nodes) hold caches (L3), which hold cores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    online: CpuSet,
    reserved: CpuSet,
    zones: Vec<Zone>,
    /// Usable memory of each node that has any, in bytes; nodes without CPUs are in it too.
    memory_bytes: BTreeMap<u32, u64>,
}

/// CPUs with one distance to all memory: a NUMA node's, or all of a machine without NUMA.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Zone {
    /// The NUMA node; `None` on a kernel without NUMA.
    node: Option<u32>,
    caches: Vec<Cache>,
    /// Distance to each node, 10 for itself.
    distances: BTreeMap<u32, u32>,
}

/// Cores that share an L3 cache and a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cache {
    /// The online hardware threads of each core.
    cores: Vec<CpuSet>,
}

/// CPUs that were chosen for one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) cpus: CpuSet,
    /// The NUMA nodes that they belong to; empty on a kernel without NUMA.
    pub(crate) nodes: CpuSet,
}

impl Machine {
    /// Arranges a topology. `reserved` CPUs that are not online any more are dropped.
    pub(crate) fn new(topology: &Topology, reserved: &CpuSet) -> Self {
        // Each online CPU is put in place by its own attributes, so that a contradiction between two CPUs' sibling
        // lists (firmware has been seen to err) can't put one CPU in two places.
        type Cores = BTreeMap<u32, CpuSet>;
        type Caches = BTreeMap<Option<u32>, Cores>;
        let mut tree: BTreeMap<Option<u32>, Caches> = BTreeMap::new();
        for cpu in topology.cpus.iter().filter(|cpu| cpu.online) {
            let caches = tree.entry(cpu.node).or_default();
            let cores = caches.entry(cpu.l3.first()).or_default();
            cores.entry(cpu.siblings.first().unwrap_or(cpu.id)).or_default().insert(cpu.id);
        }
        let zones = tree
            .into_iter()
            .map(|(node, caches)| Zone {
                node,
                caches: caches.into_values().map(|cores| Cache { cores: cores.into_values().collect() }).collect(),
                distances: node
                    .and_then(|id| topology.node(id))
                    .map(|node| node.distances.iter().copied().collect())
                    .unwrap_or_default(),
            })
            .collect();
        let online = topology.online();
        let memory = topology.nodes.iter().filter(|node| node.memory_bytes > 0);
        Self {
            reserved: reserved.intersection(&online),
            online,
            zones,
            memory_bytes: memory.map(|node| (node.id, node.memory_bytes)).collect(),
        }
    }

    /// The CPUs that run tasks.
    pub(crate) fn online(&self) -> &CpuSet {
        &self.online
    }

    /// The online CPUs that are never given to one container alone.
    pub(crate) fn reserved(&self) -> &CpuSet {
        &self.reserved
    }

    /// The usable memory of `node` in bytes; 0 for a node without memory.
    pub(crate) fn memory_bytes(&self, node: u32) -> u64 {
        self.memory_bytes.get(&node).copied().unwrap_or(0)
    }

    /// The nodes that have memory.
    pub(crate) fn memory_nodes(&self) -> CpuSet {
        self.memory_bytes.keys().copied().collect()
    }

    /// Chooses `count` of the `free` CPUs that belong together; `None` if there are fewer.
    ///
    /// One zone if one has enough, else the nearest ones. Among zones with enough: nearest to `device_nodes`, then one
    /// whose memory suffices (`memory_fits`), then fewest caches, then fewest cores shared with others, then fewest
    /// free CPUs left over, then the lowest id.
    pub(crate) fn choose(
        &self,
        free: &CpuSet,
        count: usize,
        device_nodes: &BTreeSet<u32>,
        memory_fits: impl Fn(u32) -> bool,
    ) -> Option<Choice> {
        if count == 0 || free.intersection(&self.online).len() < count {
            return None;
        }
        let zones: Vec<(&Zone, usize)> = self.zones.iter().map(|zone| (zone, zone.free(free).len())).collect();
        let one_zone = zones
            .iter()
            .filter(|(_, available)| *available >= count)
            .map(|(zone, available)| {
                let (cpus, caches) = zone.take(free, count);
                let rank = (
                    zone.distance_to(device_nodes),
                    !zone.node.is_none_or(&memory_fits),
                    caches,
                    zone.broken_cores(&cpus),
                    available - count,
                    zone.node,
                );
                (rank, Choice { cpus, nodes: zone.node.into_iter().collect() })
            })
            .min_by_key(|(rank, _)| *rank);
        if let Some((_, choice)) = one_zone {
            return Some(choice);
        }
        // No zone has enough: begin with the one that has the most, nearest to the devices, and go on outwards.
        let (first, _) = zones
            .iter()
            .filter(|(_, available)| *available > 0)
            .min_by_key(|(zone, available)| (zone.distance_to(device_nodes), usize::MAX - available, zone.node))?;
        let mut outwards = zones.clone();
        outwards.retain(|(_, available)| *available > 0);
        outwards.sort_by_key(|(zone, available)| (first.distance(zone), usize::MAX - available, zone.node));
        let mut choice = Choice { cpus: CpuSet::new(), nodes: CpuSet::new() };
        for (zone, available) in outwards {
            let missing = count - choice.cpus.len();
            if missing == 0 {
                break;
            }
            choice.cpus.extend(&zone.take(free, missing.min(available)).0);
            choice.nodes.extend(zone.node);
        }
        Some(choice)
    }
}

impl Zone {
    fn free(&self, free: &CpuSet) -> CpuSet {
        self.caches.iter().flat_map(|cache| &cache.cores).flatten().filter(|cpu| free.contains(*cpu)).collect()
    }

    /// The sum of the distances to `nodes`: 0 for none. What firmware doesn't tell counts as far away.
    fn distance_to(&self, nodes: &BTreeSet<u32>) -> u64 {
        nodes.iter().map(|node| u64::from(self.distances.get(node).copied().unwrap_or(u32::MAX))).sum()
    }

    fn distance(&self, other: &Self) -> u32 {
        if self.node == other.node {
            return 0;
        }
        other.node.and_then(|node| self.distances.get(&node).copied()).unwrap_or(u32::MAX)
    }

    /// Takes `count` of the zone's free CPUs, which has as many; gives them and the number of caches they are under.
    fn take(&self, free: &CpuSet, count: usize) -> (CpuSet, usize) {
        let mut taken = CpuSet::new();
        let mut caches = 0;
        let mut left: Vec<(&Cache, usize)> = self.caches.iter().map(|cache| (cache, cache.free(free))).collect();
        while taken.len() < count {
            let missing = count - taken.len();
            left.retain(|(_, available)| *available > 0);
            // The tightest cache that fits what is missing, whole cores before a tight fit; else the roomiest.
            let fitting = left.iter().enumerate().filter(|(_, (_, available))| *available >= missing);
            let best = fitting
                .min_by_key(|(index, (cache, available))| {
                    (broken_cores(&cache.cores, &cache.take(free, missing)), *available, *index)
                })
                .or_else(|| {
                    left.iter().enumerate().max_by_key(|(index, (_, available))| (*available, usize::MAX - index))
                })
                .map(|(index, _)| index);
            let Some(best) = best else { break };
            let (cache, available) = left.remove(best);
            taken.extend(&cache.take(free, missing.min(available)));
            caches += 1;
        }
        (taken, caches)
    }

    fn broken_cores(&self, taken: &CpuSet) -> usize {
        self.caches.iter().map(|cache| broken_cores(&cache.cores, taken)).sum()
    }
}

impl Cache {
    fn free(&self, free: &CpuSet) -> usize {
        self.cores.iter().flatten().filter(|cpu| free.contains(*cpu)).count()
    }

    /// Takes `count` of the cache's free CPUs: whole cores while one fits, then threads of cores that are broken
    /// already, the most broken first, and only then threads of a whole core.
    fn take(&self, free: &CpuSet, count: usize) -> CpuSet {
        let mut taken = CpuSet::new();
        let mut left: Vec<(&CpuSet, CpuSet)> = self
            .cores
            .iter()
            .map(|core| (core, core.intersection(free)))
            .filter(|(_, part)| !part.is_empty())
            .collect();
        while taken.len() < count {
            let missing = count - taken.len();
            let best = left.iter().enumerate().min_by_key(|(index, (core, part))| {
                let whole = part.len() == core.len();
                let order = match (whole, part.len() <= missing) {
                    (true, true) => 0,
                    (false, _) => 1,
                    (true, false) => 2,
                };
                (order, if whole { 0 } else { part.len() }, *index)
            });
            let Some(best) = best.map(|(index, _)| index) else { break };
            let (_, part) = left.remove(best);
            taken.extend(part.iter().take(missing));
        }
        taken
    }
}

/// How many of `cores` are taken in part only.
fn broken_cores(cores: &[CpuSet], taken: &CpuSet) -> usize {
    cores.iter().filter(|core| !core.is_disjoint(taken) && !core.is_subset(taken)).count()
}
