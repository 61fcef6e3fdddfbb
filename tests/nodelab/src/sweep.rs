//! Removing all that a lab has in the kernel, also when its process is long gone.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use keelson_host::{HostRoot, Mount};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
};
use serde_json::json;

use crate::{
    cgroup::Cgroups,
    keelson::sockets_below,
    layout::Layout,
    process::{as_pid, processes_of},
};

/// Removes everything of the lab: processes, network, mounts, loop devices, cgroups and its directory.
///
/// Idempotent. It trusts no record but the lab's name, so that it works after any crash. Every step is tried; the lab's
/// directory goes last and only if all else went, so that a second call finds what is left.
///
/// # Errors
///
/// All that could not be removed.
pub(crate) fn sweep(layout: &Layout) -> Result<()> {
    let mut failures = Vec::new();
    let mut attempt = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    attempt("processes", kill_processes(layout));
    attempt("network", release_attachments(layout).and_then(|()| remove_network(layout)));
    // Before the mounts: once those are detached, no path tells whose a loop device is.
    match loops_below(layout.root()) {
        Ok(loops) => {
            attempt("loop devices", detach_loops(&loops));
            attempt("mounts", unmount(layout.root()));
            attempt("loop devices", wait_until_free(&loops));
        }
        Err(error) => attempt("loop devices", Err(error)),
    }
    attempt("cgroups", Cgroups::find().and_then(|cgroups| cgroups.remove(&layout.cgroup())));
    if !failures.is_empty() {
        bail!("failed to remove all of {}: {}", layout.mark(), failures.join("; "));
    }
    // First of the files: without it, another call knows that only files are left.
    remove(&layout.config_file(), |path| fs::remove_file(path))?;
    remove(layout.root(), |path| fs::remove_dir_all(path))
}

/// Removes with `how` what may be gone already.
fn remove(path: &Path, how: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    match how(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn kill_processes(layout: &Layout) -> Result<()> {
    let limit = Duration::from_secs(30);
    let start = Instant::now();
    loop {
        // Again and again: a supervisor may have started a child meanwhile.
        let processes = processes_of(layout)?;
        if processes.is_empty() {
            return Ok(());
        }
        if start.elapsed() > limit {
            bail!("these survive SIGKILL: {processes:?}");
        }
        for (pid, _) in processes {
            // It may have ended since.
            let _ = kill(as_pid(pid)?, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Unmounts everything at and below `directory`, the newest mount first.
fn unmount(directory: &Path) -> Result<()> {
    // A mount point may carry several mounts, and unmounting one may reveal another.
    loop {
        let Some(mount) = mounts_below(directory)?.pop() else { return Ok(()) };
        umount2(&mount.point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .with_context(|| format!("failed to unmount {}", mount.point.display()))?;
    }
}

/// The loop devices whose files lie below `directory`, with the files' paths below it.
pub(crate) fn loops_below(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").context("failed to list /sys/block")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(file) = backing_file(&name)
            && let Ok(below) = file.strip_prefix(directory)
        {
            found.push((name, below.to_owned()));
        }
    }
    Ok(found)
}

/// The file that a loop device is bound to, as seen from the root of the file's mount; `None` if it is free.
fn backing_file(name: &str) -> Option<PathBuf> {
    // Sample: "/var/lib/pool/volume.img (deleted)".
    let text = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    let text = text.trim_end();
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

/// Lets go of the devices; the kernel does so for those in use at their last close.
fn detach_loops(loops: &[(String, PathBuf)]) -> Result<()> {
    for (name, _) in loops {
        let output = Command::new("losetup").args(["--detach", &format!("/dev/{name}")]).output();
        let output = output.context("failed to run losetup; install Debian's package mount")?;
        if !output.status.success() {
            bail!("failed to detach /dev/{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}

/// Waits for the last close of each: filesystems that were detached go a moment later.
fn wait_until_free(loops: &[(String, PathBuf)]) -> Result<()> {
    let limit = Duration::from_secs(30);
    let start = Instant::now();
    for (name, below) in loops {
        while backing_file(name).is_some_and(|file| file.ends_with(below)) {
            ensure!(start.elapsed() < limit, "/dev/{name} is still bound to {}", below.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Has the network plugin drop the attachments of Pods that nobody deleted: what CNI's GC is for.
fn release_attachments(layout: &Layout) -> Result<()> {
    let records = layout.join("keelson/network");
    if !layout.config_file().exists() || !records.exists() {
        // Died before the first Pod was attached, or while the directory was removed.
        return Ok(());
    }
    // Not read from the conflist: the lab may have died before it was installed.
    let config = json!({
        "cniVersion": "1.1.0",
        "name": layout.mark(),
        "type": "keelson-cni",
        "bridge": layout.bridge(),
        "ipam": {"type": "keelson-cni", "dataDir": records},
        "cni.dev/valid-attachments": [],
    });
    let directory = layout.join("cni/bin");
    let mut child = Command::new(directory.join("keelson-cni"))
        .env("CNI_COMMAND", "GC")
        .env("CNI_PATH", &directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to run keelson-cni")?;
    child.stdin.take().context("keelson-cni has no standard input")?.write_all(config.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    // CNI's errors are on standard output.
    ensure!(output.status.success(), "GC failed: {}", String::from_utf8_lossy(&output.stdout).trim());
    Ok(())
}

/// Removes the bridge and what the network plugin keeps in nftables, which outlive the suite on purpose. The Pods' links
/// go with their namespaces.
pub(crate) fn remove_network(layout: &Layout) -> Result<()> {
    let config = layout.config_file();
    if !config.exists() {
        // Died before the suite was started, or while the directory was removed.
        return Ok(());
    }
    let output = Command::new(layout.program("keelson"))
        .arg("uninstall")
        .arg("--config")
        .arg(&config)
        .output()
        .with_context(|| format!("failed to run {}", layout.program("keelson").display()))?;
    if !output.status.success() {
        bail!("keelson uninstall failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The mounts at and below `directory`, in the order in which they were made.
pub(crate) fn mounts_below(directory: &Path) -> Result<Vec<Mount>> {
    let mut mounts = keelson_host::mounts(&HostRoot::system())?;
    mounts.retain(|mount| mount.point.starts_with(directory));
    Ok(mounts)
}

/// Undoes [`crate::containerd::share_mounts`].
///
/// # Errors
///
/// When something is still mounted or open below it.
pub(crate) fn unshare_mounts(layout: &Layout) -> Result<()> {
    umount2(layout.root(), MntFlags::UMOUNT_NOFOLLOW)
        .with_context(|| format!("failed to unmount {}; something in it is still in use", layout.root().display()))
}

/// What the kernel still has of a lab that should be gone.
///
/// # Errors
///
/// When the kernel can't be asked: not to know is not the same as nothing.
pub(crate) fn leftovers(layout: &Layout, range: Option<&str>) -> Result<Vec<String>> {
    let root = layout.root();
    let mut found: Vec<String> = Vec::new();
    found.extend(processes_of(layout)?.into_iter().map(|(pid, name)| format!("process {pid} ({name})")));
    found.extend(
        mounts_below(root)?.into_iter().map(|mount| format!("mount {} ({})", mount.point.display(), mount.kind)),
    );
    found.extend(loops_below(root)?.into_iter().map(|(name, _)| format!("loop device {name}")));
    found.extend(sockets_below(root)?.into_iter().map(|path| format!("socket {}", path.display())));
    let cgroups = Cgroups::find()?.directories(&layout.cgroup());
    found.extend(cgroups.into_iter().map(|path| format!("cgroup {}", path.display())));
    found.extend(links_of(layout)?.into_iter().map(|name| format!("link {name}")));
    found.extend(rules_of(layout, range)?);
    Ok(found)
}

/// The lines of the ruleset that name the lab's network or range, and the suite's table if no network is left in it.
fn rules_of(layout: &Layout, range: Option<&str>) -> Result<Vec<String>> {
    let list = |arguments: &[&str]| {
        Command::new("nft").arg("list").args(arguments).output().context("failed to run nft; install nftables")
    };
    let ruleset = list(&["ruleset"])?;
    ensure!(ruleset.status.success(), "nft list ruleset failed: {}", String::from_utf8_lossy(&ruleset.stderr));
    let names = [Some(layout.bridge()), Some(layout.mark()), range.map(str::to_owned)];
    let mut found: Vec<String> = String::from_utf8_lossy(&ruleset.stdout)
        .lines()
        .filter(|line| names.iter().flatten().any(|name| line.contains(name)))
        .map(|line| format!("nftables: {}", line.trim()))
        .collect();
    // Another network of this host may share the table.
    let table = list(&["table", "inet", "keelson"])?;
    if table.status.success() && !String::from_utf8_lossy(&table.stdout).contains("elements = ") {
        found.push("nftables: table inet keelson, with no network in it".to_owned());
    }
    Ok(found)
}

/// The lab's bridge and the links attached to it.
pub(crate) fn links_of(layout: &Layout) -> Result<Vec<String>> {
    let bridge = layout.bridge();
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/net").context("failed to list /sys/class/net")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let master = fs::read_link(entry.path().join("master")).unwrap_or_default();
        if name == bridge || master.file_name().is_some_and(|master| master == bridge.as_str()) {
            found.push(name);
        }
    }
    Ok(found)
}
