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
    /// Its Pod's class; `None` if it is no Pod's of the kubelet.
    pub(crate) qos: Option<Qos>,
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
    /// Derives the class, which NRI doesn't tell, from the Pod's cgroup; `None` for one that isn't below the kubelet's:
    /// a container of somebody else's, such as one of `ctr run`.
    ///
    /// The kubelet's cgroups, with `P` for `pod<uid>`, possibly below a root of the operator's: `/kubepods/P`,
    /// `/kubepods/burstable/P`, `/kubepods/besteffort/P`, or with systemd, whose last slice spells out the whole way,
    /// `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-P.slice`.
    ///
    /// OOM scores tell nothing more: a runtime that may not lower them changes them, and a container that is no Pod's
    /// has the score of a Guaranteed one.
    pub(crate) fn derive(cgroup: &str) -> Option<Self> {
        let slice = cgroup.split(['/', ':']).filter_map(|component| component.strip_suffix(".slice")).next_back();
        slice
            .and_then(|slice| Self::from_way(&slice.split('-').collect::<Vec<_>>()))
            .or_else(|| Self::from_way(&cgroup.split('/').collect::<Vec<_>>()))
    }

    fn from_way(names: &[&str]) -> Option<Self> {
        // The last one: a cluster may run in another's Pod.
        let kubepods = names.iter().rposition(|name| *name == "kubepods")?;
        match names.get(kubepods + 1..)? {
            ["burstable", pod, ..] if pod.starts_with("pod") => Some(Self::Burstable),
            ["besteffort", pod, ..] if pod.starts_with("pod") => Some(Self::BestEffort),
            [pod, ..] if pod.starts_with("pod") => Some(Self::Guaranteed),
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
            ("/kubepods/besteffort/pod6c6c-11/0123", Qos::BestEffort),
            ("/kubepods/pod6c6c-besteffort", Qos::Guaranteed),
            ("/own/root/kubepods/besteffort/pod6c6c", Qos::BestEffort),
            ("/podman/kubepods/besteffort/pod6c6c", Qos::BestEffort),
            ("/own.slice/kubepods/burstable/pod6c6c", Qos::Burstable),
            ("/kubepods/burstable/podouter/kubepods/pod6c6c", Qos::Guaranteed),
            ("kubepods-pod6c6c_11.slice", Qos::Guaranteed),
            ("kubepods-burstable-pod6c6c.slice", Qos::Burstable),
            ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod6c6c.slice", Qos::BestEffort),
            (
                "/pods.slice/pods-kubepods.slice/pods-kubepods-burstable.slice/pods-kubepods-burstable-podx.slice",
                Qos::Burstable,
            ),
            ("kubepods-besteffort-pod6c6c.slice:cri-containerd:0123", Qos::BestEffort),
        ] {
            assert_eq!(Qos::derive(cgroup), Some(expected), "{cgroup}");
        }
    }

    #[test]
    fn outside_the_kubelets_cgroups_there_is_no_class() {
        for cgroup in [
            "",
            "/",
            "/default/ctr-run",
            "/besteffort/elsewhere",
            "/user.slice/pod6c6c",
            "/kubepods",
            "/kubepods/mine",
            "/kubepods/burstable/mine",
            "/notkubepods/pod6c6c",
            "/system.slice/kubepods-mine.slice",
            "system.slice:cri-containerd:kubepods",
        ] {
            assert_eq!(Qos::derive(cgroup), None, "{cgroup:?}");
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
