//! What a kernel leaves out is unknown, not an error.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;

use keelson_host::{CgroupLayout, Cpu, CpuSet, HostRoot, Inspection, Topology, fixture::Spec, mounts};
use tempfile::TempDir;

fn build(spec: &str) -> (TempDir, HostRoot) {
    let directory = tempfile::tempdir().unwrap();
    let root = spec.parse::<Spec>().unwrap().build(directory.path()).unwrap();
    (directory, root)
}

#[test]
fn linux_before_5_3_has_siblings_under_their_old_name() {
    let (directory, root) = build("cores=2 threads=2");
    for cpu in 0..4 {
        let topology = directory.path().join(format!("sys/devices/system/cpu/cpu{cpu}/topology"));
        fs::rename(topology.join("core_cpus_list"), topology.join("thread_siblings_list")).unwrap();
    }
    assert_eq!(Topology::read(&root).unwrap().cpus[3].siblings, CpuSet::from([1, 3]));
}

#[test]
fn a_cpu_of_unknown_place_is_a_core_of_its_own() {
    let (directory, root) = build("cores=2 nodes=0");
    fs::remove_dir_all(directory.path().join("sys/devices/system/cpu/cpu1/topology")).unwrap();
    fs::remove_dir_all(directory.path().join("sys/devices/system/cpu/cpu1/cache")).unwrap();
    let expected = Cpu { id: 1, online: true, siblings: CpuSet::from([1]), ..Cpu::default() };
    assert_eq!(Topology::read(&root).unwrap().cpus[1], expected);
}

#[test]
fn an_architecture_may_say_minus_1() {
    let (directory, root) = build("cores=1");
    let topology = directory.path().join("sys/devices/system/cpu/cpu0/topology");
    for name in ["physical_package_id", "die_id", "core_id"] {
        fs::write(topology.join(name), "-1\n").unwrap();
    }
    let cpu = &Topology::read(&root).unwrap().cpus[0];
    assert_eq!((cpu.package, cpu.die, cpu.core), (0, None, 0));
}

#[test]
fn an_instruction_cache_is_not_the_l2() {
    let (directory, root) = build("cores=1 l2=1");
    fs::write(directory.path().join("sys/devices/system/cpu/cpu0/cache/index0/type"), "Instruction\n").unwrap();
    assert_eq!(Topology::read(&root).unwrap().cpus[0].l2, CpuSet::new());
}

#[test]
fn a_directory_that_is_no_cpu_is_none() {
    let (directory, root) = build("cores=1");
    for name in ["cpufreq", "cpuidle", "cpu", "cpu0x", "cpu+1"] {
        fs::create_dir(directory.path().join("sys/devices/system/cpu").join(name)).unwrap();
    }
    assert_eq!(Topology::read(&root).unwrap().cpus.len(), 1);
}

#[test]
fn a_machine_without_pci_links_or_cgroups_has_none() {
    let (directory, root) = build("cores=1 cgroups=none");
    assert_eq!(CgroupLayout::read(&root).unwrap(), None);
    assert!(!directory.path().join("sys/bus").exists() && !directory.path().join("sys/class").exists());
    let inspection = Inspection::read(&root);
    assert_eq!(inspection.unread, []);
    assert_eq!(inspection.links, Some(Vec::new()));
    assert_eq!(inspection.pci_functions, Some(Vec::new()));
}

/// A container may have the host's `/sys` mounted and not its `/proc`.
#[test]
fn a_root_without_proc_has_no_mounts_to_tell() {
    let (directory, root) = build("cores=1");
    fs::remove_dir_all(directory.path().join("proc")).unwrap();
    let inspection = Inspection::read(&root);
    assert_eq!(inspection.unread, []);
    assert_eq!((inspection.mounts, inspection.cgroups), (None, None));
    assert!(mounts(&root).is_err(), "who decides by the mounts must not take this for none");
}
