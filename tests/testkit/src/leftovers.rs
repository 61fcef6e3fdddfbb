//! What a run left behind in the kernel: links, namespaces, mounts, loop devices, tables, cgroups, sockets, processes.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

/// The kernel objects that exist at one moment, each as `kind name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// What is there after a run and was not before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers(pub Vec<String>);

impl Snapshot {
    /// Takes stock of this machine.
    ///
    /// Processes are only those whose executable or command line names Keelson or one of the programs that its
    /// tests start; the machine's other processes come and go as they like.
    #[must_use]
    pub fn take() -> Self {
        let mut found = BTreeSet::new();
        links(&mut found);
        mounts_and_namespaces(&mut found);
        loop_devices(&mut found);
        nft_tables(&mut found);
        cgroups(&mut found);
        sockets(&mut found);
        processes(&mut found);
        Self(found)
    }

    /// What exists now and did not at `self`.
    #[must_use]
    pub fn since(&self) -> Leftovers {
        Leftovers(Self::take().0.difference(&self.0).cloned().collect())
    }
}

fn links(found: &mut BTreeSet<String>) {
    // Sample: "1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 ..."
    for line in output("ip", &["-o", "link"]).lines() {
        if let Some(name) = line.split(": ").nth(1) {
            found.insert(format!("link {}", name.split('@').next().unwrap_or(name)));
        }
    }
}

fn mounts_and_namespaces(found: &mut BTreeSet<String>) {
    // proc_pid_mountinfo(5): the fifth field is the mount point; namespaces are mounts of type nsfs.
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = fields.iter().position(|field| *field == "-").and_then(|dash| fields.get(dash + 1));
        if let (Some(point), Some(kind)) = (fields.get(4), kind) {
            let label = if *kind == "nsfs" { "namespace" } else { "mount" };
            found.insert(format!("{label} {point} ({kind})"));
        }
    }
}

fn loop_devices(found: &mut BTreeSet<String>) {
    for name in names("/sys/block") {
        if let Ok(file) = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
            found.insert(format!("loop device {name} of {}", file.trim_end()));
        }
    }
}

fn nft_tables(found: &mut BTreeSet<String>) {
    for line in output("nft", &["list", "tables"]).lines() {
        found.insert(format!("nftables {line}"));
    }
}

fn cgroups(found: &mut BTreeSet<String>) {
    fn walk(directory: &Path, depth: u8, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.insert(format!("cgroup {}", entry.path().display()));
                if depth > 0 {
                    walk(&entry.path(), depth - 1, found);
                }
            }
        }
    }
    walk(Path::new("/sys/fs/cgroup"), 3, found);
}

fn sockets(found: &mut BTreeSet<String>) {
    // Unix sockets belong to the network namespace, and /proc/net is that of the process, not of this thread.
    // Sample: "ffff...: 00000002 00000000 00010000 0001 01 12345 /run/keelson/x.sock"
    for line in fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default().lines().skip(1) {
        if let Some(path) = line.split_whitespace().nth(7).filter(|path| path.starts_with('/')) {
            found.insert(format!("socket {path}"));
        }
    }
}

fn processes(found: &mut BTreeSet<String>) {
    const OURS: [&str; 7] = ["keelson", "nodelab", "containerd", "csi-sanity", "cnitool", "runc", "busybox"];
    let me = std::process::id().to_string();
    for pid in names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != me) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.contains("\nState:\tZ") {
            // It has ended and holds nothing; its new parent, process 1, takes note of that when it likes.
            continue;
        }
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // A lab's containers run what they like, in its cgroups.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if cgroups.contains("/keelson-lab-") || OURS.iter().any(|name| comm.trim_end().starts_with(name)) {
            found.insert(format!("process {pid} {}", comm.trim_end()));
        }
    }
}

fn names(directory: &str) -> Vec<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// A missing program gives nothing to compare before and after: `nft` is only absent where no test can make a table.
fn output(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}
