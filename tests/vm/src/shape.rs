//! The guests that there are: one table.

use anyhow::Result;

/// A machine, and what happens in it.
#[derive(Debug)]
pub struct Shape {
    /// What the command line calls it.
    pub name: &'static str,
    /// Its NUMA nodes, which have all of its processors and memory.
    pub nodes: &'static [NumaNode],
    /// Disks that survive reboots and power cuts, beside the root's, which is as new after each.
    pub disks: &'static [Disk],
    /// Kernel modules to load at the start; what the kernel asks modprobe for by itself needs no mention.
    pub modules: &'static [&'static str],
    /// Arguments for the kernel beside the usual ones.
    pub kernel_arguments: &'static [&'static str],
    /// What happens, in order. The first boot is no step.
    pub steps: &'static [Step],
}

/// Processors and memory that are near each other.
#[derive(Debug)]
pub struct NumaNode {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u32,
}

/// A filesystem on a virtio disk.
#[derive(Debug)]
pub struct Disk {
    /// Its type.
    pub filesystem: &'static str,
    /// Where it is mounted. The first disk's is told to the tests in `KEELSON_VM_DISK`.
    pub mount: &'static str,
    /// Its size; what isn't written takes no space on the host.
    pub size_mib: u32,
}

/// One thing that happens in a guest.
#[derive(Debug)]
pub enum Step {
    /// Tests run to their end.
    Run(Tests),
    /// The guest shuts down in order, and boots again.
    Reboot,
    /// A test that works until it is killed, printing a line that starts with [`keelson_testkit::VM_CALL`] for each
    /// thing done, loses the power after a random number of lines; the guest boots again. The tests after it find those
    /// lines in the file that [`keelson_testkit::VM_HEARD`] names.
    CutPowerDuring(Tests),
}

/// Some tests of a package.
#[derive(Debug)]
pub struct Tests {
    /// The package.
    pub package: &'static str,
    /// The test file without `.rs`, or its start and `*`.
    pub target: &'static str,
    /// The one test to run; all, if none is named.
    pub only: Option<&'static str>,
    /// Tests that are left out: a part of their names, or of their file's, and the reason.
    pub without: &'static [(&'static str, &'static str)],
}

/// Why the longest scenarios of the reference are left out: they depend on the kernel no more than the others do.
const PLAYED: &str = "emulated, a play in every version takes minutes; the kernel tier has it";

/// Every shape.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "cni",
        nodes: &[NumaNode { cpus: 1, memory_mib: 1024 }, NumaNode { cpus: 1, memory_mib: 1024 }],
        disks: &[Disk { filesystem: "ext4", mount: "/mnt/state", size_mib: 256 }],
        // What the tests look for before they run; on a node the first VLAN, SCTP mapping or dummy link loads it.
        modules: &["8021q", "sctp", "dummy"],
        kernel_arguments: &[],
        steps: &[
            Step::Run(Tests {
                package: "keelson-cni",
                target: "kernel_*",
                only: None,
                without: &[
                    ("kernel_kill", "thousands of traced processes take an hour under emulation"),
                    ("killed_", "hundreds of traced processes take an hour under emulation"),
                    ("a_container_with_addresses_comes", PLAYED),
                    ("another_address_of_the_bridge", PLAYED),
                    ("the_world_sees_the_node_with_every_backend", PLAYED),
                    (
                        "after_a_storm",
                        "emulated, the last of 200 calls at once gives up waiting for the network's lock",
                    ),
                ],
            }),
            Step::Run(cni_phase("vm_reboot", "pods_run_before_the_reboot")),
            Step::Reboot,
            Step::Run(cni_phase("vm_reboot", "after_the_reboot_nothing_is_left")),
            Step::CutPowerDuring(cni_phase("vm_power_cut", "calls_until_the_power_is_cut")),
            Step::Run(cni_phase("vm_power_cut", "after_the_power_cut_all_works")),
            Step::CutPowerDuring(cni_phase("vm_power_cut", "calls_until_the_power_is_cut")),
            Step::Run(cni_phase("vm_power_cut", "after_the_power_cut_all_works")),
        ],
    },
    Shape {
        name: "storage",
        nodes: &[NumaNode { cpus: 2, memory_mib: 2048 }],
        disks: &[
            Disk { filesystem: "ext4", mount: "/mnt/pools", size_mib: 2048 },
            // Images of whole filesystems don't fit in memory.
            Disk { filesystem: "ext4", mount: "/tmp", size_mib: 8192 },
            Disk { filesystem: "ext4", mount: "/var/tmp", size_mib: 8192 },
        ],
        // What the tests look for before they run; a node's first mount loads the filesystems.
        modules: &["loop", "xfs", "btrfs", "quota_v2"],
        kernel_arguments: &[],
        steps: &[
            Step::Run(storage("kernel_quota")),
            Step::Run(storage("kernel_directories")),
            Step::Run(storage("kernel_subvolume_primitives")),
            Step::Run(storage("kernel_subvolumes")),
            Step::Run(storage("kernel_expand")),
            Step::Run(storage("kernel_filesystems")),
            Step::Run(storage("kernel_snapshots")),
        ],
    },
    Shape {
        name: "storage-power",
        nodes: &[NumaNode { cpus: 2, memory_mib: 1024 }],
        disks: &[
            Disk { filesystem: "ext4", mount: "/mnt/state", size_mib: 256 },
            Disk { filesystem: "ext4", mount: "/mnt/ext4", size_mib: 2048 },
            Disk { filesystem: "xfs", mount: "/mnt/xfs", size_mib: 2048 },
            Disk { filesystem: "btrfs", mount: "/mnt/btrfs", size_mib: 2048 },
        ],
        modules: &["loop", "xfs", "btrfs"],
        kernel_arguments: &[],
        steps: &[
            Step::CutPowerDuring(storage_phase("calls_until_the_power_is_cut")),
            Step::Run(storage_phase("what_was_answered_is_there_after_the_power_cut")),
            Step::CutPowerDuring(storage_phase("calls_until_the_power_is_cut")),
            Step::Run(storage_phase("what_was_answered_is_there_after_the_power_cut")),
            Step::CutPowerDuring(storage_phase("calls_until_the_power_is_cut")),
            Step::Run(storage_phase("what_was_answered_is_there_after_the_power_cut")),
        ],
    },
];

const fn storage(target: &'static str) -> Tests {
    Tests { package: "keelson-csi", target, only: None, without: &[] }
}

const fn storage_phase(test: &'static str) -> Tests {
    Tests { package: "keelson-csi", target: "vm_pool_power_cut", only: Some(test), without: &[] }
}

const fn cni_phase(target: &'static str, test: &'static str) -> Tests {
    Tests { package: "keelson-cni", target, only: Some(test), without: &[] }
}

impl Shape {
    /// What it has, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{} vCPUs on {} NUMA nodes, {} MiB, {} disks",
            self.cpus(),
            self.nodes.len(),
            self.memory_mib(),
            self.disks.len()
        )
    }

    pub(crate) fn cpus(&self) -> u32 {
        self.nodes.iter().map(|node| node.cpus).sum()
    }

    pub(crate) fn memory_mib(&self) -> u32 {
        self.nodes.iter().map(|node| node.memory_mib).sum()
    }

    /// The test programs that it runs, of those with one of the parts in their names; of all, if there are no parts.
    /// Needs no build.
    ///
    /// # Errors
    ///
    /// When cargo doesn't tell the workspace's test programs.
    pub fn programs(&self, only: &[String]) -> Result<Vec<String>> {
        let mut targets = crate::programs::targets()?;
        targets.retain(|(package, target)| {
            let wanted = only.is_empty() || only.iter().any(|part| target.contains(part));
            wanted && self.tests().any(|tests| tests.names(package, target))
        });
        Ok(targets.into_iter().map(|(_, target)| target).collect())
    }

    /// The tests of all steps.
    pub(crate) fn tests(&self) -> impl Iterator<Item = &Tests> {
        self.steps.iter().filter_map(|step| match step {
            Step::Run(tests) | Step::CutPowerDuring(tests) => Some(tests),
            Step::Reboot => None,
        })
    }
}

impl Tests {
    /// Whether the test program `target` of `package` is meant.
    pub(crate) fn names(&self, package: &str, target: &str) -> bool {
        package == self.package
            && !self.without.iter().any(|(part, _)| target.contains(part))
            && match self.target.strip_suffix('*') {
                Some(start) => target.starts_with(start),
                None => target == self.target,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_can_be_told_apart_and_does_something() {
        for (index, shape) in SHAPES.iter().enumerate() {
            assert!(SHAPES[..index].iter().all(|other| other.name != shape.name), "{} is there twice", shape.name);
            assert!(shape.tests().count() > 0 && shape.cpus() > 0 && shape.memory_mib() > 0, "{}", shape.name);
        }
    }

    #[test]
    fn tests_are_named_by_file_or_by_its_start() {
        let tests = |target| Tests { package: "p", target, only: None, without: &[] };
        assert!(tests("kernel_*").names("p", "kernel_vlan"));
        assert!(!tests("kernel_*").names("p", "protocol_vlan"));
        assert!(!tests("kernel_*").names("q", "kernel_vlan"));
        assert!(tests("vm_reboot").names("p", "vm_reboot"));
        assert!(!tests("vm_reboot").names("p", "vm_reboots"));
    }

    #[test]
    fn a_file_is_left_out_by_a_part_of_its_name() {
        let tests =
            Tests { package: "p", target: "kernel_*", only: None, without: &[("kill", "slow"), ("a_test", "slow")] };
        assert!(!tests.names("p", "kernel_kill"));
        assert!(tests.names("p", "kernel_vlan"));
    }
}
