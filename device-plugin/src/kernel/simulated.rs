//! Simulated devices: real character device nodes that do nothing.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use keelson_host::{DeviceKind, HostRoot, InspectError, read_text};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::{NodeAt, look_at};
use crate::{
    config::ResourceName,
    policy::{Device, Node, Origin, simulated_id},
};

/// The major number of misc devices (Documentation/admin-guide/devices.txt).
const MISC_MAJOR: u32 = 10;

/// The misc devices that a simulated one may be, the most harmless first.
///
/// Each can be opened without effect, and changes nothing for a process without CAP_SYS_ADMIN. None is on the list of
/// devices that container runtimes allow to every container (runc `specconv.AllowedDevices`: null, zero, full, random,
/// urandom, tty, console, ptmx, pts and, in all but a few releases, tun). Left out on purpose, though
/// they are misc devices too: `watchdog` (opening starts it), `snapshot` (opening stops processes from being frozen),
/// `kvm`, `userfaultfd`, `uinput` and `uhid` (an open file can do something), `hw_random` (reading uses it up).
const HARMLESS: [&str; 5] = [
    // Its only command tells the address of the virtual machine (net/vmw_vsock/af_vsock.c).
    "vsock",
    // Without CAP_SYS_ADMIN it tells its version and what is a mount point (fs/autofs/dev-ioctl.c).
    "autofs",
    // Each command wants CAP_SYS_ADMIN (fs/btrfs/super.c, btrfs_control_ioctl).
    "btrfs-control",
    // Each command wants CAP_SYS_ADMIN (drivers/md/dm-ioctl.c, ctl_ioctl).
    "device-mapper",
    // An open file is a filesystem's server only once it was given to mount(2), which wants CAP_SYS_ADMIN; until then
    // reading and writing it fail with EPERM (fs/fuse/dev.c).
    "fuse",
];

/// Readable and writable by all, since the user of a container is any; the directories are root's alone.
const NODE_MODE: u32 = 0o666;

/// The directory in a container that has the simulated devices: `/dev/simulated/example.com/fpga/simulated-0`.
const CONTAINER_DIRECTORY: &str = "/dev/simulated";

/// Why there are no simulated devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimulatedError {
    #[error(transparent)]
    Misc(#[from] InspectError),
    #[error("this kernel has none of the misc devices that a simulated device may be ({}); load one, such as \
             with modprobe fuse, and restart the plugin", HARMLESS.join(", "))]
    NoneHarmless,
    #[error("failed to create the directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("{} is {found}, where a simulated device belongs; remove it", path.display())]
    Taken { path: PathBuf, found: &'static str },
    #[error("failed to make the device node {} (making one needs CAP_MKNOD)", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("failed to remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// Where the nodes of a resource's simulated devices are: `simulated/example.com/fpga` below the plugin's state.
pub(crate) fn simulated_directory(state_dir: &Path, name: &ResourceName) -> PathBuf {
    let (domain, last) = name.parts();
    state_dir.join("simulated").join(domain).join(last)
}

/// Makes the nodes that are missing or have a number of another boot, and removes those beyond `count`.
///
/// Each node appears whole, under its name, or not at all. A node that somebody removes while the plugin runs is not
/// made again before the next start: that is how to try out what happens when a device goes away.
pub(crate) fn ensure_simulated(state_dir: &Path, name: &ResourceName, count: u32) -> Result<(), SimulatedError> {
    let misc = read_text(&HostRoot::system(), "/proc/misc")?;
    let minor = harmless_minor(&misc).ok_or(SimulatedError::NoneHarmless)?;
    let directory = simulated_directory(state_dir, name);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|source| SimulatedError::Directory { path: directory.clone(), source })?;
    let wanted: BTreeSet<String> = (0..count).map(simulated_id).collect();
    for id in &wanted {
        let path = directory.join(id);
        let failed = |source| SimulatedError::Make { path: path.clone(), source };
        match node_in(&directory, id).map_err(failed)? {
            NodeAt::Device(node)
                if node.number() == (DeviceKind::Char, MISC_MAJOR, minor) && node.mode == NODE_MODE => {}
            NodeAt::Device(_) | NodeAt::Nothing => make_node(&directory, id, minor).map_err(failed)?,
            NodeAt::Other(found) => return Err(SimulatedError::Taken { path, found }),
        }
    }
    remove_nodes(&directory, |id| !wanted.contains(id))
}

/// The simulated devices that are there.
///
/// # Errors
///
/// The node that could not be looked at.
pub(crate) fn find_simulated(
    state_dir: &Path,
    name: &ResourceName,
    count: u32,
) -> Result<Vec<Device>, (PathBuf, io::Error)> {
    let directory = simulated_directory(state_dir, name);
    let container_directory = Path::new(CONTAINER_DIRECTORY).join(name.as_str());
    let mut devices = Vec::new();
    for id in (0..count).map(simulated_id) {
        let path = directory.join(&id);
        match node_in(&directory, &id) {
            Ok(NodeAt::Device(node)) => devices.push(Device {
                nodes: vec![Node { container_path: container_directory.join(&id), path, ..node }],
                shared: Vec::new(),
                id,
                numa_node: None,
                origin: Origin::Simulated,
            }),
            Ok(NodeAt::Other(_) | NodeAt::Nothing) => {}
            Err(error) => return Err((path, error)),
        }
    }
    Ok(devices)
}

/// Removes the nodes of resources for which `keep` is false, and what a killed process left half made.
///
/// # Errors
///
/// The first that could not be removed. Only what the plugin made is removed: a directory that holds anything else
/// stays.
pub(crate) fn sweep_simulated(state_dir: &Path, keep: impl Fn(&Path) -> bool) -> Result<(), SimulatedError> {
    let top = state_dir.join("simulated");
    for domain in subdirectories(&top)? {
        for directory in subdirectories(&domain)? {
            if !keep(&directory) {
                remove_nodes(&directory, |_| true)?;
                remove_directory(&directory)?;
            }
        }
        if subdirectories(&domain)?.is_empty() {
            remove_directory(&domain)?;
        }
    }
    if top.exists() && subdirectories(&top)?.is_empty() {
        remove_directory(&top)?;
    }
    Ok(())
}

/// The minor number of the first of [`HARMLESS`] that the kernel has. Sample of `/proc/misc`: `229 fuse`.
fn harmless_minor(misc: &str) -> Option<u32> {
    let entries: Vec<(&str, &str)> = misc.lines().filter_map(|line| line.trim().split_once(' ')).collect();
    HARMLESS.iter().find_map(|wanted| {
        let (minor, _) = entries.iter().find(|(_, name)| name.trim() == *wanted)?;
        minor.parse().ok()
    })
}

/// What is at `directory/name`; links on the way to the directory are followed, since it is our own.
fn node_in(directory: &Path, name: &str) -> io::Result<NodeAt> {
    match look_at(&HostRoot::at(directory), Path::new(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(NodeAt::Nothing),
        other => other,
    }
}

fn make_node(directory: &Path, id: &str, minor: u32) -> io::Result<()> {
    let temporary = directory.join(format!(".{id}.tmp"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    mknodat(CWD, &temporary, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(MISC_MAJOR, minor))?;
    // Not at once by mknod(2), which subtracts the umask.
    fs::set_permissions(&temporary, Permissions::from_mode(NODE_MODE))?;
    fs::rename(&temporary, directory.join(id))
}

/// Removes the simulated nodes for whose id `unwanted` holds, and half-made ones.
fn remove_nodes(directory: &Path, unwanted: impl Fn(&str) -> bool) -> Result<(), SimulatedError> {
    let failed = |path: &Path, source| SimulatedError::Remove { path: path.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(|error| failed(directory, error))? {
        let entry = entry.map_err(|error| failed(directory, error))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let half_made = name.starts_with(".simulated-") && name.ends_with(".tmp");
        if half_made || (name.starts_with("simulated-") && unwanted(&name)) {
            fs::remove_file(entry.path()).map_err(|error| failed(&entry.path(), error))?;
        }
    }
    Ok(())
}

fn subdirectories(directory: &Path) -> Result<Vec<PathBuf>, SimulatedError> {
    let failed = |source| SimulatedError::Directory { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn remove_directory(directory: &Path) -> Result<(), SimulatedError> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
            Err(SimulatedError::Remove { path: directory.to_owned(), source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_harmless_device_of_the_kernel_is_chosen() {
        assert_eq!(harmless_minor("235 autofs\n229 fuse\n 58 vsock\n"), Some(58));
        assert_eq!(harmless_minor("200 tun\n229 fuse\n130 watchdog\n"), Some(229));
        assert_eq!(harmless_minor("200 tun\n130 watchdog\n231 snapshot\n229 fuse2\n"), None);
        assert_eq!(harmless_minor(""), None);
    }
}
