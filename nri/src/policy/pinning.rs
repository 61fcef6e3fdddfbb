//! Who runs where, and what that means for everybody else.

use std::{collections::BTreeMap, sync::Arc};

use keelson_host::CpuSet;

use super::{Container, Machine, Qos, machine::Choice};

/// Every container's placement on one machine.
///
/// Each method that changes it returns the moves of other containers that become necessary. They are meant to ride on
/// the reply to the runtime, and are taken as done: what the runtime then fails to do, the next [`Pinning::synchronize`]
/// sees.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pinning {
    machine: Machine,
    /// By container id: whatever depends on the order of containers is the same on every start.
    containers: BTreeMap<String, Placed>,
    /// The shared set as it was told last, one copy for the hundreds of containers that run on it.
    told: Arc<CpuSet>,
}

#[derive(Clone, Debug)]
struct Placed {
    container: Container,
    placement: Placement,
    /// Where it may run now, as far as is known.
    runs_on: Arc<CpuSet>,
}

/// What was decided for a container, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) kind: Kind,
    /// What speaks for it, most important first; one sentence each.
    pub(crate) reasons: Vec<String>,
}

/// The ways to place a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// CPUs that no other container of ours runs on, and the nodes that its memory is bound to; empty: not bound.
    Exclusive { cpus: CpuSet, mems: CpuSet },
    /// The CPUs that nobody has for himself.
    Shared {
        /// Whether it has a cpuset, which is then ours: what was never narrowed is not widened either.
        managed: bool,
    },
    /// Placed by somebody else, and left alone.
    Untouched,
}

/// What to write into a container's cgroup; an empty set leaves that file as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) cpus: CpuSet,
    pub(crate) mems: CpuSet,
}

/// Containers that are to run on the shared set from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    pub(crate) containers: Vec<String>,
    /// The shared set, not empty.
    pub(crate) cpus: Arc<CpuSet>,
}

/// What became of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) placement: Placement,
    pub(crate) assignment: Assignment,
    /// The other containers that must move because of it.
    pub(crate) moves: Moves,
    /// Containers that this one replaces: the runtime never said that they ended.
    pub(crate) replaced: Vec<String>,
}

/// What an earlier run of the plugin recorded of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) placement: Placement,
    /// Whether the runtime was told; false if the record comes from mode `observe`.
    pub(crate) enforced: bool,
}

impl Pinning {
    /// The placement of `id`, if it is known.
    pub(crate) fn placement(&self, id: &str) -> Option<&Placement> {
        self.containers.get(id).map(|placed| &placed.placement)
    }

    /// Every container with its placement, by ascending id.
    pub(crate) fn placements(&self) -> impl Iterator<Item = (&Container, &Placement)> {
        self.containers.values().map(|placed| (&placed.container, &placed.placement))
    }

    /// The machine it decides for.
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The CPUs of all exclusive placements.
    pub(crate) fn exclusive(&self) -> CpuSet {
        let mut exclusive = CpuSet::new();
        for placed in self.containers.values() {
            if let Kind::Exclusive { cpus, .. } = &placed.placement.kind {
                exclusive.extend(cpus);
            }
        }
        exclusive
    }

    /// The CPUs that shared containers run on: neither exclusive nor reserved; the reserved ones if that leaves none.
    pub(crate) fn shared(&self) -> CpuSet {
        let exclusive = self.exclusive();
        let left = self.machine.online().difference(&exclusive);
        let unreserved = left.difference(self.machine.reserved());
        if !unreserved.is_empty() {
            unreserved
        } else if !left.is_empty() {
            left
        } else {
            // Adopted placements may take all there is; an empty cpuset would stop every other container.
            self.machine.online().clone()
        }
    }

    /// Places a container that is being created.
    ///
    /// One that is known already is placed anew, and a predecessor of the same name in the same Pod is forgotten: the
    /// kubelet only replaces a container that has ended.
    pub(crate) fn create(&mut self, container: Container) -> Outcome {
        let replaced: Vec<String> = self
            .containers
            .values()
            .map(|placed| &placed.container)
            .filter(|other| other.pod.sandbox == container.pod.sandbox && other.name == container.name)
            // CRI-O has been seen to leave the name out, which then says nothing.
            .filter(|other| other.id != container.id && !other.name.is_empty())
            .map(|other| other.id.clone())
            .collect();
        for id in &replaced {
            self.containers.remove(id);
        }
        self.containers.remove(&container.id);
        let mut placement = self.decide(&container);
        placement.reasons.extend(container.wishes.ignored.iter().cloned());
        let (assignment, moves) = self.settle(container, placement.clone());
        Outcome { placement, assignment, moves, replaced }
    }

    /// Follows a change of a running container's resources: `changed` is the container as it will be, its cpuset the one
    /// that the change asks for, if it does.
    ///
    /// A changed number of whole CPUs is a wish to be placed anew; a cpuset that isn't ours is somebody else's decision,
    /// which is not fought. Else nothing changes. `None` for a container that isn't known.
    pub(crate) fn change(&mut self, changed: Container) -> Option<Outcome> {
        let placed = self.containers.get_mut(&changed.id)?;
        let ours = changed.cpus.is_empty() || changed.cpus == *placed.runs_on;
        let resized = match &placed.placement.kind {
            Kind::Exclusive { .. } | Kind::Shared { .. } => changed.whole_cpus != placed.container.whole_cpus,
            Kind::Untouched => false,
        };
        if ours && !resized {
            placed.container.memory_limit_bytes = changed.memory_limit_bytes;
            let unchanged = placed.placement.clone();
            let (assignment, moves) = (Assignment::default(), self.moves());
            return Some(Outcome { placement: unchanged, assignment, moves, replaced: Vec::new() });
        }
        let mut changed = changed;
        if ours {
            changed.cpus = CpuSet::new();
            changed.mems = CpuSet::new();
        }
        let bound = matches!(&placed.placement.kind, Kind::Exclusive { mems, .. } if !mems.is_empty());
        self.containers.remove(&changed.id);
        let mut placement = self.decide(&changed);
        placement.reasons.push("its resources were changed while it ran".to_owned());
        let (mut assignment, moves) = self.settle(changed, placement.clone());
        if bound && ours && assignment.mems.is_empty() {
            // Unset means "as it is" to the runtime, so memory is only unbound by naming all nodes.
            assignment.mems = self.machine.memory_nodes();
        }
        Some(Outcome { placement, assignment, moves, replaced: Vec::new() })
    }

    /// Forgets a container that ended, and gives back what it had.
    pub(crate) fn stop(&mut self, id: &str) -> Moves {
        self.containers.remove(id);
        self.moves()
    }

    /// Forgets a container of which nothing can be told to the runtime now: the moves ride on a later reply.
    pub(crate) fn forget(&mut self, id: &str) {
        self.containers.remove(id);
    }

    /// Forgets what is left of a Pod, as [`Pinning::forget`] does; gives the containers' ids.
    pub(crate) fn forget_pod(&mut self, sandbox: &str) -> Vec<String> {
        let (gone, kept) = std::mem::take(&mut self.containers)
            .into_iter()
            .partition(|(_, placed)| placed.container.pod.sandbox == sandbox);
        self.containers = kept;
        BTreeMap::into_keys(gone).collect()
    }

    /// Starts over from what runs: adopts it, moves none of it.
    ///
    /// A container whose cpuset is the one recorded for it keeps its placement. Without a record, a Guaranteed container
    /// whose cpuset has exactly the CPUs that it may use is taken for an exclusive one, any other cpuset for somebody
    /// else's, and a container without cpuset shares. Only a shared container that runs on another's exclusive CPUs, or
    /// whose cpuset is an older shared set of ours, moves.
    ///
    /// `observing`: records of mode `observe` stand for what would be, so they are adopted too; when enforcing, such a
    /// record says nothing, as the runtime was never told.
    pub(crate) fn synchronize(
        &mut self,
        machine: Machine,
        containers: Vec<Container>,
        records: &BTreeMap<String, Recorded>,
        observing: bool,
    ) -> Moves {
        self.machine = machine;
        self.containers.clear();
        let containers: BTreeMap<String, Container> =
            containers.into_iter().map(|container| (container.id.clone(), container)).collect();
        // What was recorded is adopted before what is guessed, in whatever order it is reported.
        let (recorded, unrecorded): (Vec<_>, Vec<_>) = containers
            .into_values()
            .partition(|container| records.get(&container.id).is_some_and(|recorded| recorded.enforced || observing));
        for container in recorded {
            let placement = match records.get(&container.id) {
                Some(recorded) => self.adopt(&container, recorded),
                None => self.guess(&container),
            };
            self.insert(container, placement);
        }
        for container in unrecorded {
            let placement = self.guess(&container);
            self.insert(container, placement);
        }
        self.moves()
    }

    fn adopt(&self, container: &Container, recorded: &Recorded) -> Placement {
        let adopted = recorded.placement.clone();
        let cpus = match &adopted.kind {
            Kind::Exclusive { cpus, .. } => cpus,
            Kind::Shared { .. } => {
                let managed = !container.cpus.is_empty();
                return Placement { kind: Kind::Shared { managed }, ..adopted };
            }
            // A cpuset that somebody took back leaves nothing to respect.
            Kind::Untouched if container.cpus.is_empty() => return self.guess(container),
            Kind::Untouched => return adopted,
        };
        if recorded.enforced && container.cpus != *cpus {
            return if container.cpus.is_empty() {
                shared(true, format!("its exclusive CPUs {cpus} were decided, but the runtime started it without them"))
            } else {
                untouched(format!("its exclusive CPUs {cpus} were changed to {} by somebody else", container.cpus))
            };
        }
        match self.obstacle(cpus) {
            None => adopted,
            Some(obstacle) => untouched(format!("its exclusive CPUs {cpus} can't be kept exclusive: {obstacle}")),
        }
    }

    fn guess(&self, container: &Container) -> Placement {
        if container.cpus.is_empty() {
            return shared(false, "it ran without a cpuset when the plugin connected, and is not moved".to_owned());
        }
        let count = u32::try_from(container.cpus.len()).ok();
        if container.qos == Some(Qos::Guaranteed)
            && container.whole_cpus == count
            && container.wishes.exclusive
            && self.obstacle(&container.cpus).is_none()
        {
            return Placement {
                kind: Kind::Exclusive { cpus: container.cpus.clone(), mems: container.mems.clone() },
                reasons: vec![format!(
                    "there is no record of it; its cpuset {} has as many CPUs as its limit, so they count as its own",
                    container.cpus
                )],
            };
        }
        untouched(format!(
            "it ran with cpuset {} when the plugin connected, of which there is no record",
            container.cpus
        ))
    }

    /// Why `cpus` can't be one container's own.
    fn obstacle(&self, cpus: &CpuSet) -> Option<String> {
        let offline = cpus.difference(self.machine.online());
        if !offline.is_empty() {
            return Some(format!("CPUs {offline} are offline"));
        }
        let reserved = cpus.intersection(self.machine.reserved());
        if !reserved.is_empty() {
            return Some(format!("CPUs {reserved} are reserved"));
        }
        let taken = cpus.intersection(&self.exclusive());
        if !taken.is_empty() {
            return Some(format!("CPUs {taken} belong to another container"));
        }
        None
    }

    fn decide(&self, container: &Container) -> Placement {
        if !container.cpus.is_empty() {
            return untouched(format!("it came with cpuset {}, set by the kubelet or another plugin", container.cpus));
        }
        match container.qos {
            Some(Qos::Guaranteed) => {}
            Some(other) => return shared(true, format!("its Pod is {}", other.as_str())),
            None => return shared(true, "it is not in a Pod's cgroup below kubepods".to_owned()),
        }
        if !container.wishes.exclusive {
            return shared(true, "its Pod's annotation asks for no exclusive CPUs".to_owned());
        }
        let Some(count) = container.whole_cpus else {
            return shared(true, "its CPU limit is not a whole number of CPUs".to_owned());
        };
        match self.exclusive_for(container, count) {
            Ok(placement) => placement,
            Err(refusal) => shared(true, refusal),
        }
    }

    fn exclusive_for(&self, container: &Container, count: u32) -> Result<Placement, String> {
        let exclusive = self.exclusive();
        let left = self.machine.online().difference(&exclusive);
        let unreserved = left.difference(self.machine.reserved());
        let mut free = unreserved.clone();
        for placed in self.containers.values().filter(|placed| placed.placement.kind == Kind::Untouched) {
            free = free.difference(&placed.runs_on);
        }
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        if self.machine.reserved().is_empty() && wanted >= left.len() {
            return Err(format!(
                "{count} exclusive CPUs would leave none for containers that share: {} of {} CPUs are left, none is reserved",
                left.len(),
                self.machine.online().len()
            ));
        }
        let memory_fits = |node| self.bind_memory(container.memory_limit_bytes, &CpuSet::from([node])).is_ok();
        let choice = self.machine.choose(&free, wanted, &container.device_nodes, memory_fits).ok_or_else(|| {
            format!(
                "it wants {count} exclusive CPUs and {} are free: of {} online ones {} are exclusive, {} are reserved, \
                 and {} are in cpusets of somebody else's",
                free.len(),
                self.machine.online().len(),
                exclusive.intersection(self.machine.online()).len(),
                left.len() - unreserved.len(),
                unreserved.len() - free.len(),
            )
        })?;
        let (mems, about_memory) = self.memory_for(container, &choice);
        let mut reasons =
            vec![format!("its Pod is Guaranteed and its limit is {count} whole CPUs: {} are its own", choice.cpus)];
        reasons.extend(about_nodes(container, &choice));
        reasons.extend(about_memory);
        Ok(Placement { kind: Kind::Exclusive { cpus: choice.cpus, mems }, reasons })
    }

    /// The nodes that the memory of an exclusive container is bound to, and what there is to say about that.
    ///
    /// Memory is bound only where it fits: on a node that is too small, the kernel would kill the container while other
    /// nodes have memory to spare.
    fn memory_for(&self, container: &Container, choice: &Choice) -> (CpuSet, Option<String>) {
        if choice.nodes.is_empty() {
            return (CpuSet::new(), None);
        }
        let nodes = &choice.nodes;
        if !container.mems.is_empty() {
            return (CpuSet::new(), Some(format!("it came with memory nodes {}, which are kept", container.mems)));
        }
        match self.bind_memory(container.memory_limit_bytes, nodes) {
            Ok(()) => (nodes.clone(), Some(format!("its memory is bound to node {nodes}, where its CPUs are"))),
            Err(obstacle) => (CpuSet::new(), Some(format!("its memory is not bound: {obstacle}"))),
        }
    }

    /// Whether `limit` bytes fit beside what exclusive containers are promised on `nodes`.
    ///
    /// Kubernetes gives every Guaranteed container or its Pod a limit; where there is none, nothing is promised.
    fn bind_memory(&self, limit: Option<u64>, nodes: &CpuSet) -> Result<(), String> {
        // The kernel accepts only nodes with memory in cpuset.mems, so each of them must have some.
        if let Some(node) = nodes.iter().find(|node| self.machine.memory_bytes(*node) == 0) {
            return Err(format!("node {node} has no memory"));
        }
        let capacity: u64 = nodes.iter().map(|node| self.machine.memory_bytes(node)).fold(0, u64::saturating_add);
        // One that is bound to several nodes counts in full on each: it may turn out to use only this one.
        let promised = self
            .containers
            .values()
            .filter(|placed| matches!(&placed.placement.kind, Kind::Exclusive { mems, .. } if !mems.is_disjoint(nodes)))
            .filter_map(|placed| placed.container.memory_limit_bytes)
            .fold(0, u64::saturating_add);
        let limit = limit.unwrap_or(0);
        if promised.saturating_add(limit) > capacity {
            return Err(format!("{limit} bytes don't fit on node {nodes}: {promised} of {capacity} are promised"));
        }
        Ok(())
    }

    /// Enters a placement for a container that comes into being or changes.
    fn settle(&mut self, container: Container, placement: Placement) -> (Assignment, Moves) {
        let id = container.id.clone();
        let kind = placement.kind.clone();
        self.insert(container, placement);
        self.renew_told();
        let assignment = match kind {
            Kind::Exclusive { cpus, mems } => Assignment { cpus, mems },
            Kind::Shared { .. } => {
                if let Some(placed) = self.containers.get_mut(&id) {
                    placed.runs_on = Arc::clone(&self.told);
                }
                Assignment { cpus: (*self.told).clone(), mems: CpuSet::new() }
            }
            Kind::Untouched => Assignment::default(),
        };
        (assignment, self.moves())
    }

    fn insert(&mut self, container: Container, placement: Placement) {
        let runs_on = match &placement.kind {
            Kind::Exclusive { cpus, .. } => cpus,
            Kind::Shared { .. } | Kind::Untouched if container.cpus.is_empty() => self.machine.online(),
            Kind::Shared { .. } | Kind::Untouched => &container.cpus,
        };
        let runs_on = Arc::new(runs_on.clone());
        self.containers.insert(container.id.clone(), Placed { container, placement, runs_on });
    }

    /// Keeps the copy that containers share as long as the set is the same: comparing two of one copy costs nothing.
    fn renew_told(&mut self) {
        let shared = self.shared();
        if *self.told != shared {
            self.told = Arc::new(shared);
        }
    }

    /// The containers that must be told so that all that share run on the shared set.
    fn moves(&mut self) -> Moves {
        self.renew_told();
        let exclusive = self.exclusive();
        let mut containers = Vec::new();
        for (id, placed) in &mut self.containers {
            let Kind::Shared { managed } = &mut placed.placement.kind else { continue };
            if placed.runs_on != self.told && (*managed || !placed.runs_on.is_disjoint(&exclusive)) {
                *managed = true;
                placed.runs_on = Arc::clone(&self.told);
                containers.push(id.clone());
            }
        }
        Moves { containers, cpus: Arc::clone(&self.told) }
    }
}

fn shared(managed: bool, reason: String) -> Placement {
    Placement { kind: Kind::Shared { managed }, reasons: vec![reason] }
}

fn untouched(reason: String) -> Placement {
    Placement { kind: Kind::Untouched, reasons: vec![reason] }
}

fn about_nodes(container: &Container, choice: &Choice) -> Vec<String> {
    let mut reasons = Vec::new();
    if choice.nodes.len() > 1 {
        reasons.push(format!("no single NUMA node has so many free CPUs: they are on nodes {}", choice.nodes));
    }
    if !container.device_nodes.is_empty() {
        let wanted: CpuSet = container.device_nodes.iter().copied().collect();
        reasons.push(if choice.nodes.is_disjoint(&wanted) {
            format!("its devices are on node {wanted}, which has not enough free CPUs")
        } else {
            format!("its devices are on node {wanted}")
        });
    }
    reasons
}
