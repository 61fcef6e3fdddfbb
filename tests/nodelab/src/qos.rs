//! What the kubelet makes of a Pod's requests and limits. Pure.

use keelson_proto::cri::v1::LinuxContainerResources;

/// The kubelet's default for the period of the CPU quota, 100 ms in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// One container's requests and limits of CPU, in thousandths, and memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compute {
    pub(crate) cpu_request: Option<u64>,
    pub(crate) cpu_limit: Option<u64>,
    pub(crate) memory_request: Option<u64>,
    pub(crate) memory_limit: Option<u64>,
}

impl Compute {
    /// The API server's defaulting: a missing request is the limit.
    pub(crate) fn defaulted(mut self) -> Self {
        self.cpu_request = self.cpu_request.or(self.cpu_limit);
        self.memory_request = self.memory_request.or(self.memory_limit);
        self
    }
}

/// A Pod's class: which cgroup it is put into, and how soon it dies for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    /// The class of a Pod with these containers, defaulted.
    ///
    /// Guaranteed: every container has limits of CPU and memory, and requests equal to them. Best effort: no container
    /// has any. A zero counts as absent.
    pub(crate) fn of(containers: &[Compute]) -> Self {
        let set = |value: Option<u64>| value.filter(|value| *value > 0);
        let equal = |request: Option<u64>, limit: Option<u64>| set(limit).is_some() && request == limit;
        let none = |container: &Compute| {
            [container.cpu_request, container.cpu_limit, container.memory_request, container.memory_limit]
                .into_iter()
                .all(|value| set(value).is_none())
        };
        if containers.iter().all(none) {
            Self::BestEffort
        } else if containers.iter().all(|container| {
            equal(container.cpu_request, container.cpu_limit) && equal(container.memory_request, container.memory_limit)
        }) {
            Self::Guaranteed
        } else {
            Self::Burstable
        }
    }

    /// The Pod's cgroup below the lab's own: the kubelet's layout with the cgroupfs driver.
    pub(crate) fn cgroup(self, root: &str, pod_uid: &str) -> String {
        match self {
            Self::Guaranteed => format!("{root}/kubepods/pod{pod_uid}"),
            Self::Burstable => format!("{root}/kubepods/burstable/pod{pod_uid}"),
            Self::BestEffort => format!("{root}/kubepods/besteffort/pod{pod_uid}"),
        }
    }

    /// As Kubernetes spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The kubelet's rule; `memory_capacity` is the machine's, in bytes.
    fn oom_score_adj(self, memory_request: u64, memory_capacity: u64) -> i64 {
        match self {
            Self::Guaranteed => -997,
            Self::BestEffort => 1000,
            Self::Burstable => {
                let share = u128::from(memory_request) * 1000 / u128::from(memory_capacity.max(1));
                // Never as safe as a guaranteed container, never as doomed as one with no request.
                i64::try_from(1000 - share.min(1000)).unwrap_or(0).clamp(3, 999)
            }
        }
    }
}

/// What the runtime is told for one container.
pub(crate) fn container_resources(class: Class, compute: Compute, memory_capacity: u64) -> LinuxContainerResources {
    LinuxContainerResources {
        oom_score_adj: class.oom_score_adj(compute.memory_request.unwrap_or(0), memory_capacity),
        ..resources(compute.cpu_request.unwrap_or(0), compute.cpu_limit, compute.memory_limit)
    }
}

/// What the Pod's cgroup gets: the sums, and a limit only if every container has one.
pub(crate) fn pod_resources(containers: &[Compute]) -> LinuxContainerResources {
    let sum = |limit: fn(&Compute) -> Option<u64>| {
        containers.iter().map(limit).try_fold(0_u64, |sum, value| Some(sum + value?))
    };
    let request = containers.iter().filter_map(|container| container.cpu_request).sum();
    resources(request, sum(|container| container.cpu_limit), sum(|container| container.memory_limit))
}

fn resources(cpu_request: u64, cpu_limit: Option<u64>, memory_limit: Option<u64>) -> LinuxContainerResources {
    // 1024 shares a CPU; the kernel's bounds are 2 and 262144.
    let shares = (cpu_request.saturating_mul(1024) / 1000).clamp(2, 262_144);
    // The kernel takes no quota below 1 ms. Zero means none.
    let quota =
        cpu_limit.filter(|limit| *limit > 0).map_or(0, |limit| (limit.saturating_mul(CPU_PERIOD) / 1000).max(1000));
    LinuxContainerResources {
        cpu_shares: signed(shares),
        cpu_quota: signed(quota),
        cpu_period: signed(CPU_PERIOD),
        memory_limit_in_bytes: signed(memory_limit.unwrap_or(0)),
        ..LinuxContainerResources::default()
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn compute(cpu_request: u64, cpu_limit: u64, memory_request: u64, memory_limit: u64) -> Compute {
        let some = |value: u64| (value > 0).then_some(value);
        Compute {
            cpu_request: some(cpu_request),
            cpu_limit: some(cpu_limit),
            memory_request: some(memory_request),
            memory_limit: some(memory_limit),
        }
        .defaulted()
    }

    #[test]
    fn classes_are_kubernetes_own() {
        let full = compute(0, 1000, 0, GIB);
        let none = compute(0, 0, 0, 0);
        assert_eq!(Class::of(&[full]), Class::Guaranteed);
        assert_eq!(Class::of(&[none]), Class::BestEffort);
        assert_eq!(Class::of(&[full, none]), Class::Burstable);
        assert_eq!(Class::of(&[compute(500, 1000, 0, GIB)]), Class::Burstable);
        assert_eq!(Class::of(&[compute(0, 1000, 0, 0)]), Class::Burstable);
    }

    #[test]
    fn numbers_are_the_kubelets() {
        let guaranteed = container_resources(Class::Guaranteed, compute(0, 1500, 0, GIB), 4 * GIB);
        assert_eq!((guaranteed.cpu_shares, guaranteed.cpu_quota, guaranteed.cpu_period), (1536, 150_000, 100_000));
        assert_eq!((guaranteed.memory_limit_in_bytes, guaranteed.oom_score_adj), (1 << 30, -997));
        let best_effort = container_resources(Class::BestEffort, Compute::default(), 4 * GIB);
        assert_eq!((best_effort.cpu_shares, best_effort.cpu_quota, best_effort.oom_score_adj), (2, 0, 1000));
        let score = |request| container_resources(Class::Burstable, compute(0, 0, request, 0), 4 * GIB).oom_score_adj;
        assert_eq!((score(GIB), score(0), score(4 * GIB), score(1)), (750, 999, 3, 999));
    }

    #[test]
    fn a_pod_is_limited_only_if_all_its_containers_are() {
        let limited = compute(0, 1000, 0, GIB);
        let both = pod_resources(&[limited, limited]);
        assert_eq!((both.cpu_shares, both.cpu_quota, both.memory_limit_in_bytes), (2048, 200_000, 2 << 30));
        let one = pod_resources(&[limited, compute(500, 0, 0, 0)]);
        assert_eq!((one.cpu_shares, one.cpu_quota, one.memory_limit_in_bytes), (1536, 0, 0));
    }
}
