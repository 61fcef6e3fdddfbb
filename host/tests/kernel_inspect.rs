//! What is read of this real machine agrees with what others say about it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::Duration,
};

use keelson_host::{
    CgroupLayout, DeviceKind, HostRoot, Inspection, Link, Mount, OperationalState, Topology, block_devices,
    device_node, device_nodes, device_numa_node, links, mounts, pci_functions,
};
use keelson_testkit::{Netns, is_root, missing, skip_unless, wait_until};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, CpuSet as Affinity, sched_getaffinity, unshare},
    unistd::Pid,
};
use rustix::fs::{major, minor};
use serde_json::Value;

/// A program's standard output; that it fails is the test's failure.
#[track_caller]
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The values of one key in `/proc/cpuinfo`, which the kernel writes without sysfs.
fn cpuinfo(key: &str) -> Vec<u32> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap();
    let values = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() == key);
    values.map(|(_, value)| value.trim().parse().unwrap()).collect()
}

#[test]
fn cpus_are_those_that_the_scheduler_and_cpuinfo_have() {
    let topology = Topology::read(&HostRoot::system()).unwrap();
    let online = topology.online();
    assert_eq!(online.iter().collect::<Vec<_>>(), cpuinfo("processor"));
    assert_eq!(online.len().to_string(), output("getconf", &["_NPROCESSORS_ONLN"]).trim());
    let affinity = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let may_run_on = (0..Affinity::count()).filter(|cpu| affinity.is_set(*cpu).unwrap());
    assert!(may_run_on.map(|cpu| u32::try_from(cpu).unwrap()).all(|cpu| online.contains(cpu)));
}

#[test]
fn packages_and_cores_are_cpuinfos() {
    let (packages, cores) = (cpuinfo("physical id"), cpuinfo("core id"));
    skip_unless!(!packages.is_empty(), "this architecture's /proc/cpuinfo has no \"physical id\"");
    let topology = Topology::read(&HostRoot::system()).unwrap();
    let online: Vec<_> = topology.cpus.iter().filter(|cpu| cpu.online).collect();
    assert_eq!(online.iter().map(|cpu| cpu.package).collect::<Vec<_>>(), packages);
    assert_eq!(online.iter().map(|cpu| cpu.core).collect::<Vec<_>>(), cores);
    for cpu in online {
        assert!(cpu.siblings.contains(cpu.id));
        assert!(cpu.l2.is_empty() || cpu.siblings.is_subset(&cpu.l2), "siblings share the L2: {cpu:?}");
        assert!(cpu.l3.is_empty() || cpu.l2.is_subset(&cpu.l3), "who shares an L2 shares the L3: {cpu:?}");
    }
}

/// A balloon driver changes a node's memory at any time, so it is held against the kernel's table of zones, which it
/// changes as well, until the machine holds still for a moment.
#[test]
fn node_memory_is_what_the_zones_manage() {
    skip_unless!(Path::new("/sys/devices/system/node").exists(), "this kernel has no NUMA");
    let page_bytes = u64::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap()).unwrap();
    let by_zones = || {
        let mut bytes: BTreeMap<u32, u64> = BTreeMap::new();
        let mut node = 0;
        // Samples: "Node 0, zone   Normal" and, somewhere below it, "        managed  1245184".
        for line in fs::read_to_string("/proc/zoneinfo").unwrap().lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["Node", id, "zone", _] => node = id.trim_end_matches(',').parse().unwrap(),
                ["managed", pages] => *bytes.entry(node).or_default() += pages.parse::<u64>().unwrap() * page_bytes,
                _ => {}
            }
        }
        bytes
    };
    for _ in 0..1000 {
        let before = by_zones();
        let topology = Topology::read(&HostRoot::system()).unwrap();
        if by_zones() == before {
            let read: BTreeMap<u32, u64> = topology.nodes.iter().map(|node| (node.id, node.memory_bytes)).collect();
            assert_eq!(read, before);
            return;
        }
    }
    panic!("the kernel's zones changed during each of 1000 readings");
}

#[test]
fn nodes_have_the_cpus_that_the_kernel_links_them_to() {
    let topology = Topology::read(&HostRoot::system()).unwrap();
    for node in &topology.nodes {
        for cpu in &node.cpus {
            let link = format!("/sys/devices/system/cpu/cpu{cpu}/node{}", node.id);
            assert!(Path::new(&link).exists(), "{link}");
            assert_eq!(topology.cpu(cpu).unwrap().node, Some(node.id));
        }
        assert_eq!(node.distance_to(node.id), Some(10), "ACPI: the distance to itself is 10");
    }
}

#[test]
fn pci_functions_are_those_of_proc() {
    let path = Path::new("/proc/bus/pci/devices");
    skip_unless!(path.exists(), "this kernel has no /proc/bus/pci/devices");
    // Sample: "0010	1af41042	0 ... virtio-pci", that is bus and devfn in hexadecimal, vendor and device, resources,
    // driver.
    let text = fs::read_to_string(path).unwrap();
    let by_proc: BTreeMap<String, (u16, u16)> = text
        .lines()
        .map(|line| {
            let mut fields = line.split('\t');
            let location = u32::from_str_radix(fields.next().unwrap(), 16).unwrap();
            let ids = fields.next().unwrap();
            let id = |digits: &str| u16::from_str_radix(digits, 16).unwrap();
            let (bus, device, function) = (location >> 8, location >> 3 & 0x1f, location & 7);
            (format!("{bus:02x}:{device:02x}.{function}"), (id(&ids[..4]), id(&ids[4..])))
        })
        .collect();
    let functions = pci_functions(&HostRoot::system()).unwrap();
    let read: BTreeMap<String, (u16, u16)> = functions
        .iter()
        .map(|function| (function.address.split_once(':').unwrap().1.to_owned(), (function.vendor, function.device)))
        .collect();
    assert_eq!(read, by_proc);
    // A container's /dev has few of them.
    for path in functions.iter().flat_map(|function| &function.device_nodes).filter(|path| path.exists()) {
        let node = device_node(&HostRoot::system(), path).unwrap();
        device_numa_node(&HostRoot::system(), node.kind, node.major, node.minor).unwrap();
    }
}

#[test]
fn device_nodes_are_what_stat_says() {
    let root = HostRoot::system();
    let nodes = device_nodes(&root).unwrap();
    let null = nodes.iter().find(|node| node.path == Path::new("/dev/null")).unwrap();
    assert_eq!((null.kind, null.major, null.minor), (DeviceKind::Char, 1, 3), "Documentation/admin-guide/devices.txt");
    let mut compared = 0;
    for node in &nodes {
        // A container's /dev has few of them.
        let Ok(metadata) = fs::metadata(&node.path) else { continue };
        let is_kind = match node.kind {
            DeviceKind::Char => metadata.file_type().is_char_device(),
            DeviceKind::Block => metadata.file_type().is_block_device(),
        };
        assert!(is_kind, "{node:?}");
        assert_eq!((node.major, node.minor), (major(metadata.rdev()), minor(metadata.rdev())), "{node:?}");
        assert_eq!(device_node(&root, &node.path).unwrap(), *node);
        compared += 1;
    }
    assert!(compared > 0);
}

/// A new network namespace, and a root whose `sys` shows that namespace: sysfs shows the one it was mounted in.
///
/// Both mounts are in a mount namespace of this thread's, so they end with it.
fn in_new_namespace(work: impl FnOnce(&HostRoot) + Send) {
    let netns = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    netns.run(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        fs::create_dir(directory.path().join("sys")).unwrap();
        mount(Some("sysfs"), &directory.path().join("sys"), Some("sysfs"), MsFlags::empty(), None::<&str>).unwrap();
        work(&HostRoot::at(directory.path()));
        umount2(&directory.path().join("sys"), MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn links_are_those_that_netlink_tells() {
    skip_unless!(is_root(), "making a network namespace takes root");
    skip_unless!(missing(&["ip"]).is_empty(), "ip (Debian's iproute2) is not installed");
    in_new_namespace(|root| {
        output("ip", &["link", "add", "br0", "mtu", "1400", "type", "bridge"]);
        output("ip", &["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]);
        output("ip", &["link", "set", "veth0", "master", "br0", "up"]);
        output("ip", &["link", "set", "veth1", "up"]);
        // A link's state follows a moment after the other end came up.
        wait_until("both ends of the pair run", Duration::from_secs(10), || {
            (output("ip", &["link"]).matches("state UP").count() == 2).then_some(())
        });
        let by_netlink: Vec<Value> = serde_json::from_str(&output("ip", &["-j", "link"])).unwrap();
        let read = links(root).unwrap();
        assert_eq!(read.len(), by_netlink.len());
        for link in &read {
            let other = by_netlink.iter().find(|other| other["ifname"] == link.name).unwrap();
            assert_eq!(other["ifindex"], link.index, "{link:?}");
            assert_eq!(other["mtu"], link.mtu, "{link:?}");
            assert_eq!(other["address"].as_str(), link.mac.as_deref(), "{link:?}");
            assert_eq!(other["master"].as_str(), link.master.as_deref(), "{link:?}");
            assert_eq!(other["operstate"], link.state.to_string().to_uppercase(), "{link:?}");
        }
        let named = |name: &str| read.iter().find(|link| link.name == name).unwrap();
        assert_eq!(named("br0").kind.as_deref(), Some("bridge"));
        assert_eq!(named("veth0").master.as_deref(), Some("br0"));
        assert_eq!(named("veth1").state, OperationalState::Up);

        // The trap that links() documents: this process is in the new namespace, /sys still shows the old one.
        let seen_by_old_sysfs = links(&HostRoot::system()).unwrap();
        assert!(!seen_by_old_sysfs.iter().any(|link: &Link| link.name == "veth1" && link.mac == named("veth1").mac));
    });
}

/// A mount that is gone when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // A second panic would abort, and leave what the other guards hold.
        let unmounted = umount2(&self.0, MntFlags::MNT_DETACH);
        assert!(unmounted.is_ok() || thread::panicking(), "{unmounted:?}");
    }
}

#[test]
fn a_mount_with_an_awkward_name_is_read_as_it_is() {
    skip_unless!(is_root(), "mounting takes root");
    let directory = tempfile::tempdir().unwrap();
    let point = directory.path().join("a b\tc\\d\ne#f");
    fs::create_dir(&point).unwrap();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_RDONLY;
    mount(Some("keelson source"), &point, Some("tmpfs"), flags, Some("size=64k")).unwrap();
    let mounted = Mounted(point.clone());
    let find = || mounts(&HostRoot::system()).unwrap().into_iter().find(|mount| mount.point == point);
    let found = find().unwrap();
    assert_eq!((found.kind.as_str(), found.source.as_str()), ("tmpfs", "keelson source"));
    assert_eq!(found.root, Path::new("/"));
    assert!(found.is_read_only() && found.options.contains(&"nosuid".to_owned()), "{found:?}");
    assert!(found.super_options.contains(&"size=64k".to_owned()), "{found:?}");
    let device = fs::metadata(&point).unwrap().dev();
    assert_eq!(found.device, (major(device), minor(device)));
    let parent = mounts(&HostRoot::system()).unwrap().into_iter().find(|mount| mount.id == found.parent).unwrap();
    assert!(point.starts_with(&parent.point), "{parent:?}");
    drop(mounted);
    assert_eq!(find(), None);
}

#[test]
fn the_lasting_mounts_are_those_of_findmnt() {
    skip_unless!(missing(&["findmnt"]).is_empty(), "findmnt (Debian's util-linux) is not installed");
    let mounts = mounts(&HostRoot::system()).unwrap();
    for point in ["/", "/proc", "/sys"] {
        let text = output("findmnt", &["-J", "-o", "ID,FSTYPE,MAJ:MIN,VFS-OPTIONS,TARGET", "-M", point]);
        let json: Value = serde_json::from_str(&text).unwrap();
        let expected = &json["filesystems"][0];
        let id = expected["id"].as_u64().unwrap();
        let mount: &Mount = mounts.iter().find(|mount| u64::from(mount.id) == id).unwrap();
        assert_eq!(mount.point, Path::new(point));
        assert_eq!(expected["fstype"], mount.kind);
        assert_eq!(expected["maj:min"], format!("{}:{}", mount.device.0, mount.device.1));
        assert_eq!(expected["vfs-options"], mount.options.join(","));
    }
}

/// A loop device that is gone when dropped.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.as_ref().is_ok_and(ExitStatus::success) || thread::panicking(), "{detached:?}");
    }
}

#[test]
fn a_loop_device_is_what_losetup_made_it() {
    skip_unless!(is_root(), "making a loop device takes root");
    skip_unless!(missing(&["losetup"]).is_empty(), "losetup (Debian's util-linux) is not installed");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("an image");
    fs::File::create(&file).unwrap().set_len(3 << 20).unwrap();
    let path = output("losetup", &["--find", "--show", "--read-only", file.to_str().unwrap()]).trim().to_owned();
    let device = Loop(path);
    let devices = block_devices(&HostRoot::system()).unwrap();
    let found = devices.iter().find(|found| found.path == Path::new(&device.0)).unwrap();
    assert_eq!((found.size_bytes, found.read_only), (3 << 20, true));
    assert_eq!(found.backing_file.as_deref(), Some(file.as_path()));
    let rdev = fs::metadata(&device.0).unwrap().rdev();
    assert_eq!((found.major, found.minor), (major(rdev), minor(rdev)));
}

#[test]
fn disks_are_those_of_lsblk() {
    skip_unless!(missing(&["lsblk"]).is_empty(), "lsblk (Debian's util-linux) is not installed");
    // Loop and RAM devices come and go with other tests: 7 and 1 are their major numbers.
    let listed =
        output("lsblk", &["--json", "--bytes", "--list", "--exclude", "1,7", "-o", "NAME,MAJ:MIN,SIZE,RO,PKNAME"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let devices = block_devices(&HostRoot::system()).unwrap();
    for expected in listed["blockdevices"].as_array().unwrap() {
        let found = devices.iter().find(|found| expected["name"] == found.name).unwrap();
        assert_eq!(expected["maj:min"].as_str().unwrap().trim(), format!("{}:{}", found.major, found.minor));
        assert_eq!(expected["size"], found.size_bytes);
        assert_eq!(expected["ro"], found.read_only);
        assert_eq!(expected["pkname"].as_str(), found.partition_of.as_deref());
    }
}

#[test]
fn the_cgroup_controllers_are_where_the_layout_says() {
    let layout = CgroupLayout::read(&HostRoot::system()).unwrap().expect("cgroups are mounted on every node");
    // Sample: "cpuset	3	1	1", that is controller, number of its version 1 hierarchy or 0, cgroups, enabled.
    let table = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let in_version_1: BTreeSet<&str> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1] != "0")
        .map(|fields| fields[0])
        .collect();
    for controller in &in_version_1 {
        let point = layout.controller(controller).unwrap_or_else(|| panic!("{controller} is not in {layout:?}"));
        assert!(point.join("cgroup.clone_children").exists(), "{} is of version 1", point.display());
    }
    match &layout {
        CgroupLayout::Unified { unified, .. } => {
            assert_eq!(in_version_1, BTreeSet::new());
            assert!(unified.join("cgroup.controllers").exists());
        }
        CgroupLayout::Hybrid { controllers, unified, .. } => {
            assert!(controllers.len() >= in_version_1.len());
            assert!(unified.join("cgroup.controllers").exists());
        }
        CgroupLayout::V1 { controllers } => assert!(controllers.len() >= in_version_1.len()),
    }
}

#[test]
fn everything_of_this_machine_can_be_read() {
    let inspection = Inspection::read(&HostRoot::system());
    assert_eq!(inspection.unread, []);
    assert!(inspection.to_string().starts_with("host at /\n├─ CPUs: "));
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["topology"]["cpus"].as_array().unwrap().len(), inspection.topology.unwrap().cpus.len());
}

#[test]
fn links_that_vanish_while_being_read_are_no_error() {
    skip_unless!(is_root(), "making a network namespace takes root");
    skip_unless!(missing(&["ip"]).is_empty(), "ip (Debian's iproute2) is not installed");
    in_new_namespace(|root| {
        thread::scope(|scope| {
            let churn = scope.spawn(|| {
                for _ in 0..100 {
                    output("ip", &["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]);
                    output("ip", &["link", "delete", "veth0"]);
                }
            });
            while !churn.is_finished() {
                links(root).unwrap();
            }
        });
    });
}

#[test]
fn loop_devices_that_change_while_being_read_are_no_error() {
    skip_unless!(is_root(), "making a loop device takes root");
    skip_unless!(missing(&["losetup"]).is_empty(), "losetup (Debian's util-linux) is not installed");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("image");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for _ in 0..30 {
                drop(Loop(output("losetup", &["--find", "--show", file.to_str().unwrap()]).trim().to_owned()));
            }
        });
        while !churn.is_finished() {
            block_devices(&HostRoot::system()).unwrap();
            device_nodes(&HostRoot::system()).unwrap();
        }
    });
}
