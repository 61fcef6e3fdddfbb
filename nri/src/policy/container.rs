//! What is known of a container when it must be placed.

use std::collections::BTreeSet;

use keelson_host::CpuSet;

use super::Wishes;

/// The kernel's default CPU bandwidth period, in microseconds (Documentation/scheduler/sched-bwc.rst).
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What the kubelet writes into `cpu.shares` for one CPU.
const SHARES_PER_CPU: u64 = 1024;

/// The Pod that a container belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    /// The runtime's id of the Pod sandbox.
    pub(crate) sandbox: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// One container, as the runtime describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// The runtime's id.
    pub(crate) id: String,
    pub(crate) pod: Pod,
    /// The name within the Pod.
    pub(crate) name: String,
    pub(crate) qos: Qos,
    /// The CPU limit where that is a whole number of CPUs, see [`whole_cpus`].
    pub(crate) whole_cpus: Option<u32>,
    /// Its memory limit, else its Pod's.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// The NUMA nodes of the devices that it was given.
    pub(crate) device_nodes: BTreeSet<u32>,
    pub(crate) wishes: Wishes,
    /// `cpuset.cpus` as the runtime has it; empty: none was set.
    pub(crate) cpus: CpuSet,
    /// `cpuset.mems` as the runtime has it; empty: none was set.
    pub(crate) mems: CpuSet,
}

/// A Pod's quality of service class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    /// Derives the class, which NRI doesn't tell, from the Pod's cgroup and else from the container's OOM score.
    ///
    /// The kubelet's cgroups, with `P` for the Pod: `/kubepods/P`, `/kubepods/burstable/P`, `/kubepods/besteffort/P`
    /// or, with systemd, `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-P.slice`, possibly below a root
    /// of the operator's. Scores: -997 Guaranteed, 2 to 999 Burstable, 1000 BestEffort; they come second because a
    /// runtime that may not lower scores changes them.
    pub(crate) fn derive(cgroup: &str, oom_score_adj: Option<i64>) -> Self {
        let mut words = cgroup
            .split('/')
            .flat_map(|component| component.strip_suffix(".slice").unwrap_or(component).split('-'))
            .skip_while(|word| *word != "kubepods")
            .take_while(|word| !word.starts_with("pod"))
            .peekable();
        if words.peek().is_some() {
            return words.find_map(Self::from_cgroup_word).unwrap_or(Self::Guaranteed);
        }
        match oom_score_adj {
            Some(1000..) => Self::BestEffort,
            Some(1..) => Self::Burstable,
            _ => Self::Guaranteed,
        }
    }

    fn from_cgroup_word(word: &str) -> Option<Self> {
        match word {
            "burstable" => Some(Self::Burstable),
            "besteffort" => Some(Self::BestEffort),
            _ => None,
        }
    }

    /// The class as Kubernetes writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The number of CPUs that the limits amount to if that is a whole number, else `None`.
///
/// It is quota divided by period, both in microseconds; without a quota (the kubelet's `cpuCFSQuota: false`) the
/// shares, 1024 for a CPU. A quota of 0 or -1 is none.
pub(crate) fn whole_cpus(quota_us: Option<i64>, period_us: Option<u64>, shares: Option<u64>) -> Option<u32> {
    let (amount, one_cpu) = match quota_us.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0) {
        Some(quota) => (quota, period_us.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD_US)),
        None => (shares?, SHARES_PER_CPU),
    };
    if amount == 0 || amount % one_cpu != 0 {
        return None;
    }
    u32::try_from(amount / one_cpu).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_comes_from_the_cgroup() {
        for (cgroup, expected) in [
            ("/kubepods/pod6c6c-11", Qos::Guaranteed),
            ("/kubepods/burstable/pod6c6c-11", Qos::Burstable),
            ("/kubepods/besteffort/pod6c6c-11", Qos::BestEffort),
            ("/kubepods/pod6c6c-besteffort", Qos::Guaranteed),
            ("/own/root/kubepods/besteffort/pod6c6c", Qos::BestEffort),
            ("kubepods-pod6c6c_11.slice", Qos::Guaranteed),
            ("kubepods-burstable-pod6c6c.slice", Qos::Burstable),
            ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod6c6c.slice", Qos::BestEffort),
            ("/own.slice/own-kubepods.slice/own-kubepods-burstable.slice/own-kubepods-burstable-podx", Qos::Burstable),
            ("kubepods-besteffort-pod6c6c.slice:cri-containerd:0123", Qos::BestEffort),
        ] {
            // A runtime that may not lower scores reports 0 for every class; the path decides.
            assert_eq!(Qos::derive(cgroup, Some(0)), expected, "{cgroup}");
            assert_eq!(Qos::derive(cgroup, Some(1000)), expected, "{cgroup}");
        }
    }

    #[test]
    fn outside_the_kubelets_cgroups_the_score_decides() {
        for (score, expected) in [
            (None, Qos::Guaranteed),
            (Some(-997), Qos::Guaranteed),
            (Some(0), Qos::Guaranteed),
            (Some(2), Qos::Burstable),
            (Some(999), Qos::Burstable),
            (Some(1000), Qos::BestEffort),
        ] {
            assert_eq!(Qos::derive("/besteffort/elsewhere", score), expected, "{score:?}");
            assert_eq!(Qos::derive("", score), expected, "{score:?}");
        }
    }

    #[test]
    fn only_a_whole_number_of_cpus_counts() {
        for (quota, period, shares, expected) in [
            (Some(200_000), Some(100_000), Some(2048), Some(2)),
            (Some(100_000), None, None, Some(1)),
            (Some(50_000), Some(50_000), Some(512), Some(1)),
            (Some(150_000), Some(100_000), Some(2048), None),
            (Some(-1), Some(100_000), Some(3072), Some(3)),
            (Some(0), None, Some(1024), Some(1)),
            (None, None, Some(2), None),
            (None, None, Some(0), None),
            (None, None, None, None),
            (Some(100_000), Some(0), None, Some(1)),
            (Some(i64::MAX), Some(1), None, None),
            (Some(i64::MIN), Some(u64::MAX), Some(u64::MAX), None),
        ] {
            assert_eq!(whole_cpus(quota, period, shares), expected, "{quota:?} {period:?} {shares:?}");
        }
    }
}
