//! A tree that lies, or tries to lead the reader astray, gives a clear error and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    error::Error,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use keelson_host::{
    CgroupLayout, CpuSet, DeviceKind, HostRoot, InspectError, Inspection, Topology, device_node, device_nodes,
    device_numa_node, fixture::Spec, links, mounts, pci_functions,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use proptest::prelude::*;
use tempfile::TempDir;

const SPEC: &str = "cores=2 pci=0000:3b:00.0,10ee:5000,driver=fpga,node=0,group=12,char=/dev/fpga0:240:0";

/// A machine that was healthy until a test spoiled it.
struct Spoiled {
    directory: TempDir,
    root: HostRoot,
}

impl Spoiled {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = SPEC.parse::<Spec>().unwrap().build(directory.path()).unwrap();
        Self { directory, root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// After `content` was written to `path`, `read` fails with an error that names both and says `expected`.
#[track_caller]
fn check<T>(path: &str, content: &str, expected: &str, read: impl FnOnce(&HostRoot) -> Result<T, InspectError>) {
    let host = Spoiled::new();
    host.write(path, content);
    let error = read(&host.root).err().expect("garbage was taken for good");
    let path = host.path(path);
    assert_eq!(error.to_string(), format!("unexpected content in {}: {content:?} is not {expected}", path.display()));
}

#[test]
fn garbage_in_the_topology_is_named() {
    let list = "a CPU list such as 0-3,8";
    let cpu = "sys/devices/system/cpu";
    check(&format!("{cpu}/online"), "0-4294967295", list, Topology::read);
    check(&format!("{cpu}/cpu0/topology/core_cpus_list"), "zero", list, Topology::read);
    check(&format!("{cpu}/cpu0/cache/index0/shared_cpu_list"), "3-1", list, Topology::read);
    check(&format!("{cpu}/cpu0/cache/index0/level"), "L2", "a cache level such as 3", Topology::read);
    for name in ["physical_package_id", "die_id", "core_id"] {
        check(&format!("{cpu}/cpu0/topology/{name}"), "-2", "a number, or -1 for unknown", Topology::read);
    }
    let node = "sys/devices/system/node/node0";
    check(&format!("{node}/cpulist"), "0-70000", list, Topology::read);
    check(&format!("{node}/distance"), "10 20", "one distance per online node", Topology::read);
    let meminfo = "lines with one \"Node N MemTotal: N kB\" among them";
    check(&format!("{node}/meminfo"), "Node 0 MemFree: 1 kB", meminfo, Topology::read);
    check(&format!("{node}/meminfo"), "Node 0 MemTotal: 1 MB", meminfo, Topology::read);
    check(&format!("{node}/meminfo"), "Node 0 MemTotal: 18446744073709551615 kB", meminfo, Topology::read);
}

#[test]
fn garbage_in_devices_is_named() {
    let function = "sys/bus/pci/devices/0000:3b:00.0";
    check(&format!("{function}/vendor"), "10ee", "a hexadecimal id such as 0x10ee", pci_functions);
    check(&format!("{function}/device"), "0x1ffff", "a hexadecimal id such as 0x10ee", pci_functions);
    check(&format!("{function}/class"), "0x-1", "a hexadecimal class such as 0x120000", pci_functions);
    check(&format!("{function}/numa_node"), "-7", "a NUMA node's number or -1", pci_functions);
    check("sys/dev/char/240:0/dev", "240", "a device number such as 254:0", device_nodes);
}

#[test]
fn garbage_in_links_is_named() {
    let with_link = |name: &'static str, content: &'static str, expected| {
        let host = Spoiled::new();
        host.write("sys/class/net/eth0/ifindex", "2\n");
        host.write(&format!("sys/class/net/eth0/{name}"), content);
        let error = links(&host.root).unwrap_err().to_string();
        assert!(error.ends_with(&format!("/eth0/{name}: {content:?} is not {expected}")), "{error}");
    };
    with_link("ifindex", "-1", "a link's number");
    with_link("mtu", "4294967296", "a size in bytes");
    with_link("address", "02:fc:0", "bytes such as 02:fc:00:00:00:01");
    with_link("operstate", "fine", "one of RFC 2863's states, such as up");
}

#[test]
fn a_file_among_the_links_is_none() {
    let host = Spoiled::new();
    host.write("sys/class/net/bonding_masters", "\n");
    assert_eq!(links(&host.root).unwrap(), []);
}

#[test]
fn garbage_in_the_mount_table_is_named() {
    let expected = "a line as proc_pid_mountinfo(5) describes it";
    check("proc/self/mountinfo", "1 2 3:4 / /mnt rw shared:1", expected, mounts);
    check("proc/self/mountinfo", "1 2 3:4 / /mnt rw shared:1", expected, CgroupLayout::read);
}

#[test]
fn a_hosts_mounts_are_those_of_its_process_1() {
    let host = Spoiled::new();
    host.write("proc/1/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n");
    host.write("proc/self/mountinfo", "1 0 0:9 / /host rw - overlay overlay rw\n");
    assert_eq!(mounts(&host.root).unwrap()[0].point, Path::new("/"));
}

#[test]
fn a_name_that_is_no_pci_address_is_named() {
    let host = Spoiled::new();
    host.write("sys/bus/pci/devices/evil/vendor", "0x0000\n");
    let error = pci_functions(&host.root).unwrap_err().to_string();
    assert!(error.ends_with("\"evil\" is not a PCI address such as 0000:3b:00.0"), "{error}");
}

#[test]
fn a_device_name_does_not_leave_dev() {
    for name in ["../etc/shadow", "/etc/shadow", "a/../../etc/shadow", "", "."] {
        let host = Spoiled::new();
        host.write("sys/bus/pci/devices/0000:3b:00.0/fixture/fpga0/uevent", format!("DEVNAME={name}\n"));
        let error = device_nodes(&host.root).unwrap_err().to_string();
        assert!(error.ends_with(&format!("{name:?} is not a path below /dev")), "{error}");
    }
}

/// Whatever a symbolic link says, what is read lies below the root.
#[test]
fn symbolic_links_do_not_leave_the_root() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("online"), "0-9\n").unwrap();
    let host = Spoiled::new();
    let online = host.path("sys/devices/system/cpu/online");
    let climb = PathBuf::from("../".repeat(40)).join(outside.path().strip_prefix("/").unwrap());
    for target in [outside.path().join("online"), climb.join("online")] {
        fs::remove_file(&online).unwrap();
        symlink(&target, &online).unwrap();
        assert_eq!(fs::read_to_string(&online).unwrap(), "0-9\n", "the link leads out for who follows it");
        let error = Topology::read(&host.root).unwrap_err();
        assert!(matches!(error, InspectError::Read { .. }), "{error}");
        assert!(error.source().unwrap().to_string().contains("No such file"), "{error:?}");
    }
    // The same absolute link is good when the root has such a file: links mean what they mean on that host.
    let inside = host.path(outside.path().join("online").strip_prefix("/").unwrap().to_str().unwrap());
    fs::create_dir_all(inside.parent().unwrap()).unwrap();
    fs::write(&inside, "0\n").unwrap();
    assert_eq!(Topology::read(&host.root).unwrap().online(), CpuSet::from([0]));
}

#[test]
fn a_symbolic_link_to_itself_is_an_error() {
    let host = Spoiled::new();
    let online = host.path("sys/devices/system/cpu/online");
    fs::remove_file(&online).unwrap();
    symlink("online", &online).unwrap();
    assert!(Topology::read(&host.root).is_err());
}

#[test]
fn a_device_link_that_climbs_ends_at_the_root() {
    let host = Spoiled::new();
    let link = host.path("sys/dev/char/240:7");
    symlink("../".repeat(40) + "etc", link).unwrap();
    host.write("etc/numa_node", "3\n");
    assert_eq!(device_numa_node(&host.root, DeviceKind::Char, 240, 7).unwrap(), None);
}

#[test]
fn a_fifo_does_not_block_the_reader() {
    let host = Spoiled::new();
    let online = host.path("sys/devices/system/cpu/online");
    fs::remove_file(&online).unwrap();
    mkfifo(&online, Mode::S_IRWXU).unwrap();
    let error = Topology::read(&host.root).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "is not a regular file");
}

#[test]
fn an_endless_file_is_not_read_to_its_end() {
    let host = Spoiled::new();
    let online = fs::File::create(host.path("sys/devices/system/cpu/online")).unwrap();
    online.set_len(1 << 40).unwrap();
    let error = Topology::read(&host.root).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "is longer than 16777216 bytes");
}

#[test]
fn text_that_is_not_utf_8_is_an_error() {
    let host = Spoiled::new();
    host.write("sys/devices/system/cpu/online", b"0-\xff");
    let error = Topology::read(&host.root).unwrap_err().to_string();
    assert!(error.ends_with("\"0-\u{fffd}\" is not UTF-8 text"), "{error}");
}

#[test]
fn an_error_shows_the_start_of_a_long_content() {
    let host = Spoiled::new();
    host.write("sys/devices/system/cpu/online", "x".repeat(100_000));
    assert!(Topology::read(&host.root).unwrap_err().to_string().len() < 500);
}

#[test]
fn what_is_no_device_node_is_named() {
    let host = Spoiled::new();
    let error = device_node(&host.root, Path::new("/dev/fpga0")).unwrap_err().to_string();
    assert!(error.ends_with("\"RegularFile\" is not a character or block device node"), "{error}");
    assert!(matches!(device_node(&host.root, Path::new("/dev/none")), Err(InspectError::Read { .. })));
}

#[test]
fn what_cannot_be_read_does_not_hide_the_rest() {
    let host = Spoiled::new();
    host.write("sys/devices/system/cpu/online", "\u{1b}[31m");
    let inspection = Inspection::read(&host.root);
    assert!(inspection.topology.is_none());
    assert_eq!(inspection.pci_functions.as_ref().unwrap().len(), 1);
    let [unread] = &inspection.unread[..] else { panic!("{:?}", inspection.unread) };
    assert_eq!(unread.part, "topology");
    assert!(unread.error.contains("is not a CPU list such as 0-3,8"), "{}", unread.error);
    let text = inspection.to_string();
    assert!(text.contains("could not be read: 1"), "{text}");
    assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
}

#[test]
fn a_root_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("missing");
    let inspection = Inspection::read(&HostRoot::at(&root));
    assert_eq!(inspection.unread.len(), 5);
    let message = format!("failed to read {}: No such file", root.display());
    assert!(inspection.unread.iter().all(|unread| unread.error.starts_with(&message)));
}

#[test]
fn paths_that_are_not_utf_8_do_not_hide_the_rest() {
    let host = Spoiled::new();
    host.write(
        "proc/self/mountinfo",
        b"1 0 0:1 / /cgroup-\xff rw - cgroup2 none rw\n2 1 0:2 / /v1-\xff rw - cgroup none rw,cpu\n",
    );
    host.write("sys/class/block/loop0/dev", "7:0\n");
    host.write("sys/class/block/loop0/uevent", "DEVNAME=loop0\n");
    host.write("sys/class/block/loop0/loop/backing_file", b"/image-\xff\n");
    let inspection = serde_json::to_value(Inspection::read(&host.root)).unwrap();
    assert_eq!(inspection["unread"], serde_json::json!([]));
    assert_eq!(inspection["cgroups"]["unified"], "/cgroup-\u{fffd}");
    assert_eq!(inspection["cgroups"]["controllers"]["cpu"], "/v1-\u{fffd}");
    assert_eq!(inspection["mounts"][1]["point"], "/v1-\u{fffd}");
    assert_eq!(inspection["blockDevices"][0]["backingFile"], "/image-\u{fffd}");
}

/// Any file may hold anything: each reader gives a value or an error.
#[test]
fn any_content_of_any_file_is_survived() {
    let host = Spoiled::new();
    let files = files_below(host.directory.path());
    let content = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        "[0-9a-fx:,. \n-]{0,30}".prop_map(String::into_bytes),
    ];
    proptest!(|(which in any::<prop::sample::Index>(), content in content)| {
        let file = which.get(&files);
        let healthy = fs::read(file).unwrap();
        fs::write(file, content).unwrap();
        let inspection = Inspection::read(&host.root);
        let _ = device_numa_node(&host.root, DeviceKind::Char, 240, 0);
        fs::write(file, healthy).unwrap();
        serde_json::to_string(&inspection).unwrap();
        prop_assert!(inspection.to_string().starts_with("host at "));
    });
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(files_below(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}
