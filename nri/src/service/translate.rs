//! From NRI's messages to what the policy knows, and back.

use std::collections::BTreeSet;

use keelson_host::{CpuSet, DeviceKind};
use keelson_proto::nri::v1alpha1::{
    Container, ContainerUpdate, LinuxContainerUpdate, LinuxCpu, LinuxResources, PodSandbox,
};

use super::Events;
use crate::{
    DeviceLocality, Mode,
    error::Failure,
    policy::{self, Assignment, Kind, Moves, Placement, Pod, Qos, Wishes, whole_cpus},
    store::is_container_id,
};

/// The most device nodes that a container is taken to have been *given*. A privileged one has all of the host's, which
/// says nothing about where it should run.
const MOST_DEVICES: usize = 64;

/// What the policy wants to know of a container, without its devices.
///
/// # Errors
///
/// [`Failure::Invalid`] for an id that can't be one, or a cpuset that isn't a list.
pub(super) fn container(pod: &PodSandbox, container: &Container) -> Result<policy::Container, Failure> {
    if !is_container_id(&container.id) {
        return Err(Failure::Invalid {
            field: "container.id",
            value: container.id.chars().take(200).collect(),
            wrong: "is not a container's id: 1 to 128 letters, digits, '_', '.' and '-'".to_owned(),
        });
    }
    let linux = container.linux.as_ref();
    let cgroup = pod.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).filter(|path| !path.is_empty());
    let cgroup = cgroup.or(linux.map(|linux| linux.cgroups_path.as_str())).unwrap_or_default();
    let resources = linux.and_then(|linux| linux.resources.as_ref());
    let cpu = resources.and_then(|resources| resources.cpu.as_ref());
    let pod_resources = pod.linux.as_ref().and_then(|linux| linux.pod_resources.as_ref());
    let annotations = pod.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    Ok(policy::Container {
        id: container.id.clone(),
        pod: Pod {
            sandbox: if pod.id.is_empty() { container.pod_sandbox_id.clone() } else { pod.id.clone() },
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        },
        name: container.name.clone(),
        qos: Qos::derive(cgroup),
        whole_cpus: whole_cpus(
            cpu.and_then(|cpu| cpu.quota.as_ref()).map(|quota| quota.value),
            cpu.and_then(|cpu| cpu.period.as_ref()).map(|period| period.value),
            cpu.and_then(|cpu| cpu.shares.as_ref()).map(|shares| shares.value),
        ),
        memory_limit_bytes: memory_limit(resources).or(memory_limit(pod_resources)),
        device_nodes: BTreeSet::new(),
        wishes: Wishes::parse(annotations, &container.name),
        cpus: list("container.linux.resources.cpu.cpus", cpu.map(|cpu| cpu.cpus.as_str()))?,
        mems: list("container.linux.resources.cpu.mems", cpu.map(|cpu| cpu.mems.as_str()))?,
    })
}

/// The memory limit in bytes; 0 and -1 are none.
fn memory_limit(resources: Option<&LinuxResources>) -> Option<u64> {
    let limit = resources?.memory.as_ref()?.limit.as_ref()?;
    u64::try_from(limit.value).ok().filter(|limit| *limit > 0)
}

fn list(field: &'static str, text: Option<&str>) -> Result<CpuSet, Failure> {
    let text = text.unwrap_or_default();
    text.parse().map_err(|error| Failure::Invalid {
        field,
        value: text.chars().take(200).collect(),
        wrong: format!("is not a list such as 0-3,8: {error}"),
    })
}

/// The NUMA nodes of the devices that a container was given.
pub(super) fn device_nodes(container: &Container, locality: &dyn DeviceLocality) -> BTreeSet<u32> {
    let devices = container.linux.as_ref().map(|linux| linux.devices.as_slice()).unwrap_or_default();
    if devices.len() > MOST_DEVICES {
        tracing::debug!(container = container.id, devices = devices.len(), "took a container for a privileged one");
        return BTreeSet::new();
    }
    let nodes = devices.iter().filter_map(|device| {
        // OCI's types: "u" is an unbuffered character device, "p" a FIFO.
        let kind = match device.r#type.as_str() {
            "c" | "u" => DeviceKind::Char,
            "b" => DeviceKind::Block,
            _ => return None,
        };
        locality.numa_node(kind, u32::try_from(device.major).ok()?, u32::try_from(device.minor).ok()?)
    });
    nodes.collect()
}

/// Makes `container` what an update will make of it. A number that the update leaves out, or has as 0, keeps its value;
/// the cpuset is the one that the update asks for.
pub(super) fn apply(container: &mut Container, update: LinuxResources) {
    let resources = container.linux.get_or_insert_default().resources.get_or_insert_default();
    if let Some(change) = update.cpu {
        let cpu = resources.cpu.get_or_insert_default();
        cpu.shares = change.shares.filter(|shares| shares.value != 0).or(cpu.shares);
        cpu.quota = change.quota.filter(|quota| quota.value != 0).or(cpu.quota);
        cpu.period = change.period.filter(|period| period.value != 0).or(cpu.period);
        cpu.cpus = change.cpus;
        cpu.mems = change.mems;
    } else if let Some(cpu) = &mut resources.cpu {
        cpu.cpus.clear();
        cpu.mems.clear();
    }
    if let Some(change) = update.memory {
        let memory = resources.memory.get_or_insert_default();
        memory.limit = change.limit.filter(|limit| limit.value != 0).or(memory.limit);
    }
}

/// The resources that carry an assignment; `None` if it assigns nothing.
pub(super) fn resources(assignment: &Assignment) -> Option<LinuxResources> {
    if assignment.cpus.is_empty() && assignment.mems.is_empty() {
        return None;
    }
    let cpu = LinuxCpu { cpus: assignment.cpus.to_string(), mems: assignment.mems.to_string(), ..LinuxCpu::default() };
    Some(LinuxResources { cpu: Some(cpu), ..LinuxResources::default() })
}

impl Events {
    /// Moves as they go on the wire; none when only observing.
    pub(super) fn updates(&self, moves: Moves) -> Vec<ContainerUpdate> {
        let Moves { containers, cpus } = moves;
        if containers.is_empty() {
            return Vec::new();
        }
        tracing::info!(mode = %self.mode, %cpus, containers = containers.len(), "containers move to the shared CPUs");
        let resources = resources(&Assignment { cpus: (*cpus).clone(), mems: CpuSet::new() });
        containers.into_iter().filter_map(|container| self.update(container, resources.clone())).collect()
    }

    /// An update of one container; `None` when only observing, or without resources to change.
    pub(super) fn update(&self, container: String, resources: Option<LinuxResources>) -> Option<ContainerUpdate> {
        let resources = resources.filter(|_| self.mode == Mode::Enforce)?;
        self.metrics.updates.inc();
        Some(ContainerUpdate {
            container_id: container,
            linux: Some(LinuxContainerUpdate { resources: Some(resources) }),
            // The container may have ended meanwhile, which must not fail the one that is being created.
            ignore_failure: true,
        })
    }
}

/// Says where a container was placed and why; what isn't assigned stays as the container came.
pub(super) fn log(mode: Mode, container: &policy::Container, placement: &Placement, assignment: &Assignment) {
    let kind = match &placement.kind {
        Kind::Exclusive { .. } => "exclusive",
        Kind::Shared { .. } => "shared",
        Kind::Untouched => "untouched",
    };
    let pod = format!("{}/{}", container.pod.namespace, container.pod.name);
    let cpus = if assignment.cpus.is_empty() { &container.cpus } else { &assignment.cpus };
    let mems = if assignment.mems.is_empty() { &container.mems } else { &assignment.mems };
    let reason = placement.reasons.join("; ");
    let (name, id) = (&container.name, &container.id);
    tracing::info!(%mode, pod, container = name, id, placement = kind, %cpus, %mems, reason, "placed a container");
}

#[cfg(test)]
mod tests {
    use keelson_proto::nri::v1alpha1::{
        LinuxContainer, LinuxDevice, LinuxMemory, LinuxPodSandbox, OptionalInt64, OptionalUInt64,
    };

    use super::*;

    struct NodeIsMinor;

    impl DeviceLocality for NodeIsMinor {
        fn numa_node(&self, kind: DeviceKind, major: u32, minor: u32) -> Option<u32> {
            match (kind, major) {
                (DeviceKind::Char, 240) => Some(minor),
                (DeviceKind::Block, 259) => Some(10 + minor),
                _ => None,
            }
        }
    }

    fn described(cpu: LinuxCpu) -> Container {
        let resources = LinuxResources { cpu: Some(cpu), ..LinuxResources::default() };
        let linux = LinuxContainer { resources: Some(resources), ..LinuxContainer::default() };
        Container { id: "c1".to_owned(), linux: Some(linux), ..Container::default() }
    }

    fn memory(limit: i64) -> LinuxMemory {
        LinuxMemory { limit: Some(OptionalInt64 { value: limit }), ..LinuxMemory::default() }
    }

    fn device(kind: &str, major: i64, minor: i64) -> LinuxDevice {
        LinuxDevice { r#type: kind.to_owned(), major, minor, ..LinuxDevice::default() }
    }

    #[test]
    fn a_bare_container_has_no_claims() {
        let bare = Container { id: "c1".to_owned(), pod_sandbox_id: "p1".to_owned(), ..Container::default() };
        let container = container(&PodSandbox::default(), &bare).unwrap();
        assert_eq!(container.pod.sandbox, "p1");
        assert_eq!((container.whole_cpus, container.memory_limit_bytes), (None, None));
        assert!(container.cpus.is_empty() && container.mems.is_empty());
    }

    #[test]
    fn the_class_comes_from_the_pods_cgroup_else_from_the_containers() {
        let pod = |parent: &str| PodSandbox {
            linux: Some(LinuxPodSandbox { cgroup_parent: parent.to_owned(), ..LinuxPodSandbox::default() }),
            ..PodSandbox::default()
        };
        let mut described = described(LinuxCpu::default());
        let linux = described.linux.as_mut().unwrap();
        linux.cgroups_path = "/kubepods/besteffort/pod1/c1".to_owned();
        assert_eq!(container(&pod("/kubepods/burstable/pod1"), &described).unwrap().qos, Some(Qos::Burstable));
        assert_eq!(container(&pod(""), &described).unwrap().qos, Some(Qos::BestEffort));
        assert_eq!(container(&pod("/elsewhere"), &described).unwrap().qos, None);
    }

    #[test]
    fn limits_that_are_none_are_none() {
        let mut described = described(LinuxCpu { quota: Some(OptionalInt64 { value: -1 }), ..LinuxCpu::default() });
        let resources = described.linux.as_mut().unwrap().resources.as_mut().unwrap();
        resources.memory = Some(memory(-1));
        let bare = container(&PodSandbox::default(), &described).unwrap();
        assert_eq!((bare.whole_cpus, bare.memory_limit_bytes), (None, None));
        // A Pod may have a limit for all its containers together.
        let pod_resources = Some(LinuxResources { memory: Some(memory(4096)), ..LinuxResources::default() });
        let linux = Some(LinuxPodSandbox { pod_resources, ..LinuxPodSandbox::default() });
        let pod = PodSandbox { linux, ..PodSandbox::default() };
        assert_eq!(container(&pod, &described).unwrap().memory_limit_bytes, Some(4096));
    }

    #[test]
    fn devices_are_looked_up_by_kind_and_number() {
        let mut described = described(LinuxCpu::default());
        let devices = &mut described.linux.as_mut().unwrap().devices;
        devices.extend([device("c", 240, 1), device("u", 240, 2), device("b", 259, 3), device("p", 240, 4)]);
        devices.extend([device("c", 1, 5), device("c", -1, 6), device("c", 240, i64::MAX)]);
        assert_eq!(device_nodes(&described, &NodeIsMinor), BTreeSet::from([1, 2, 13]));
        // A privileged container has every device of the host, which tells nothing.
        described.linux.as_mut().unwrap().devices.resize(65, device("c", 240, 1));
        assert_eq!(device_nodes(&described, &NodeIsMinor), BTreeSet::new());
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let mut described = described(LinuxCpu {
            shares: Some(OptionalUInt64 { value: 1024 }),
            quota: Some(OptionalInt64 { value: 100_000 }),
            cpus: "0".to_owned(),
            ..LinuxCpu::default()
        });
        let cpu = LinuxCpu {
            shares: Some(OptionalUInt64 { value: 0 }),
            quota: Some(OptionalInt64 { value: 200_000 }),
            ..LinuxCpu::default()
        };
        apply(&mut described, LinuxResources { cpu: Some(cpu), ..LinuxResources::default() });
        let cpu = described.linux.unwrap().resources.unwrap().cpu.unwrap();
        assert_eq!((cpu.shares.unwrap().value, cpu.quota.unwrap().value, cpu.cpus.as_str()), (1024, 200_000, ""));
    }

    #[test]
    fn what_assigns_nothing_is_nothing() {
        assert_eq!(resources(&Assignment::default()), None);
        let assigned = resources(&Assignment { cpus: CpuSet::from([2, 3]), mems: CpuSet::new() }).unwrap();
        let cpu = assigned.cpu.unwrap();
        assert_eq!((cpu.cpus.as_str(), cpu.mems.as_str()), ("2-3", ""));
    }
}
