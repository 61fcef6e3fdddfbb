//! What a run left behind in the kernel: links, namespaces, mounts, loop devices, tables, cgroups, sockets, processes.

use std::{collections::BTreeSet, fs, io, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// The kernel objects that exist at one moment, each as `kind name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// What is there after a run and was not before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers(pub Vec<String>);

impl Snapshot {
    /// Takes stock of this machine.
    ///
    /// Processes are only those that have the name of one of Keelson's programs or of one that its tests start; the
    /// machine's other processes come and go as they like.
    ///
    /// # Errors
    ///
    /// When something can't be listed, for then nothing could be said of it: `ip` and `nft` must be there, and `nft`
    /// wants root.
    pub fn take() -> Result<Self> {
        let mut found = BTreeSet::new();
        links(&mut found)?;
        mounts_and_namespaces(&mut found)?;
        loop_devices(&mut found)?;
        nft_tables(&mut found)?;
        cgroups(&mut found)?;
        sockets(&mut found)?;
        processes(&mut found)?;
        Ok(Self(found))
    }

    /// What exists now and did not at `self`.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::take`].
    pub fn since(&self) -> Result<Leftovers> {
        Ok(Leftovers(Self::take()?.0.difference(&self.0).cloned().collect()))
    }
}

fn links(found: &mut BTreeSet<String>) -> Result<()> {
    // Sample: "1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 ..."
    for line in output("ip", &["-o", "link"])?.lines() {
        if let Some(name) = line.split(": ").nth(1) {
            found.insert(format!("link {}", name.split('@').next().unwrap_or(name)));
        }
    }
    Ok(())
}

fn mounts_and_namespaces(found: &mut BTreeSet<String>) -> Result<()> {
    // proc_pid_mountinfo(5): the fifth field is the mount point; namespaces are mounts of type nsfs.
    for line in read("/proc/self/mountinfo")?.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = fields.iter().position(|field| *field == "-").and_then(|dash| fields.get(dash + 1));
        if let (Some(point), Some(kind)) = (fields.get(4), kind) {
            let label = if *kind == "nsfs" { "namespace" } else { "mount" };
            found.insert(format!("{label} {point} ({kind})"));
        }
    }
    Ok(())
}

fn loop_devices(found: &mut BTreeSet<String>) -> Result<()> {
    for name in names("/sys/block")? {
        if let Ok(file) = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
            found.insert(format!("loop device {name} of {}", file.trim_end()));
        }
    }
    Ok(())
}

fn nft_tables(found: &mut BTreeSet<String>) -> Result<()> {
    for line in output("nft", &["list", "tables"])?.lines() {
        found.insert(format!("nftables {line}"));
    }
    Ok(())
}

fn cgroups(found: &mut BTreeSet<String>) -> Result<()> {
    fn walk(directory: &Path, depth: u8, found: &mut BTreeSet<String>) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            // Others' cgroups come and go while this looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.insert(format!("cgroup {}", entry.path().display()));
                if depth > 0 {
                    walk(&entry.path(), depth - 1, found)?;
                }
            }
        }
        Ok(())
    }
    walk(Path::new("/sys/fs/cgroup"), 3, found).context("failed to list the cgroups")
}

fn sockets(found: &mut BTreeSet<String>) -> Result<()> {
    // Unix sockets belong to the network namespace, and /proc/net is that of the process, not of this thread.
    // Sample: "ffff...: 00000002 00000000 00010000 0001 01 12345 /run/keelson/x.sock"
    for line in read("/proc/thread-self/net/unix")?.lines().skip(1) {
        if let Some(path) = line.split_whitespace().nth(7).filter(|path| path.starts_with('/')) {
            found.insert(format!("socket {path}"));
        }
    }
    Ok(())
}

fn processes(found: &mut BTreeSet<String>) -> Result<()> {
    const OURS: [&str; 8] =
        ["keelson", "nodelab", "containerd", "csi-sanity", "cnitool", "runc", "busybox", "qemu-system"];
    let me = std::process::id().to_string();
    for pid in names("/proc")?.into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != me)
    {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            // It ended while this looked.
            continue;
        };
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
    Ok(())
}

fn names(directory: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("failed to list {directory}"))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read {path}"))
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("failed to run {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {} failed: {}", arguments.join(" "), complaint.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
