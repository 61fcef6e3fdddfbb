//! Where a lab keeps everything: one directory, so that no lab meets another one, a containerd or a kubelet of the host.

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    net::Ipv4Addr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Every lab's directory is `/var/lib/keelson-lab-<id>`.
///
/// Not below /run: there a machine may forbid executables and device nodes, and a volume's bytes would lie in memory.
/// The name is short because a Unix socket's path has room for 107 bytes.
const PARENT: &str = "/var/lib";
const PREFIX: &str = "keelson-lab-";

/// The logs of the two programs, for [`Layout::log`].
pub(crate) const KEELSON_LOG: &str = "keelson.log";
pub(crate) const CONTAINERD_LOG: &str = "containerd.log";

/// The directory of one lab, and every name that is derived from it.
///
/// Invariant: whatever a lab makes in the kernel lies below its directory or bears its id, so that
/// [`crate::sweep`] finds all of it with no record but the directory's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    id: String,
    root: PathBuf,
}

impl Layout {
    /// A new lab's names, with an id that no other lab has.
    pub(crate) fn new() -> Self {
        let mut id = uuid::Uuid::new_v4().simple().to_string();
        id.truncate(6);
        Self::of(&id)
    }

    fn of(id: &str) -> Self {
        Self { id: id.to_owned(), root: Path::new(PARENT).join(format!("{PREFIX}{id}")) }
    }

    /// The lab called `mark`, if a lab can be called so.
    pub(crate) fn named(mark: &str) -> Option<Self> {
        let id = mark.strip_prefix(PREFIX)?;
        (id.len() == 6 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| Self::of(id))
    }

    /// The labs whose directories exist, running, kept or crashed.
    ///
    /// # Errors
    ///
    /// When /var/lib can't be listed.
    pub(crate) fn existing() -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(PARENT).with_context(|| format!("failed to list {PARENT}"))? {
            let name = entry?.file_name();
            // Only names of our own making: what is found here will be removed.
            found.extend(name.to_str().and_then(Self::named));
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// Six hexadecimal digits.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// `/var/lib/keelson-lab-<id>`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `path` below the lab's directory.
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// What the mount table, process lists and cgroups show of this lab: `keelson-lab-<id>`.
    pub(crate) fn mark(&self) -> String {
        format!("{PREFIX}{}", self.id)
    }

    /// The bridge's name.
    pub(crate) fn bridge(&self) -> String {
        format!("kl-{}", self.id)
    }

    /// The cgroup below which the Pods' cgroups are made, as the kubelet makes `/kubepods`.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}", self.mark())
    }

    /// containerd's socket: CRI and its own API.
    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.join("containerd.sock")
    }

    /// The socket on which containerd serves NRI.
    pub(crate) fn nri_socket(&self) -> PathBuf {
        self.join("nri.sock")
    }

    /// Where CSI's staging and publish directories, the device plugins' sockets and the like are.
    pub(crate) fn kubelet(&self) -> PathBuf {
        self.join("kubelet")
    }

    /// A log of the lab's.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.join("log").join(name)
    }

    /// What `keelson run --config` is given.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.join("config.yaml")
    }

    /// A program of the suite: the lab has its own, for a build may replace the others meanwhile.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.join("programs").join(name)
    }

    /// Makes the directory and takes its lock.
    ///
    /// # Errors
    ///
    /// When it exists or can't be made.
    pub(crate) fn create(&self) -> Result<Lock> {
        let lock = {
            // Nobody sees the lab without its lock: an unlocked one is one to clean up.
            let _parent = lock_parent()?;
            fs::create_dir(&self.root).with_context(|| format!("failed to create {}", self.root.display()))?;
            self.lock_file()?.with_context(|| format!("{} is locked before it is used", self.root.display()))?
        };
        for directory in
            ["log", "kubelet/pods", "kubelet/device-plugins", "cni/bin", "cni/conf", "cdi", "pool", "programs"]
        {
            let path = self.join(directory);
            fs::create_dir_all(&path).with_context(|| format!("failed to create {}", path.display()))?;
        }
        Ok(lock)
    }

    /// Puts the suite's programs into the lab's directory from the directory `programs`.
    ///
    /// # Errors
    ///
    /// When one is missing.
    pub(crate) fn put_programs(&self, programs: &Path) -> Result<()> {
        ["keelson", "keelson-cni"].iter().try_for_each(|name| put_program(&programs.join(name), &self.program(name)))
    }

    /// Takes the lab's lock, or `None` while the process that runs it lives.
    ///
    /// # Errors
    ///
    /// When the lock file can't be made.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>> {
        let _parent = lock_parent()?;
        self.lock_file()
    }

    /// The labs that no process runs: kept ones, and those whose process was killed.
    ///
    /// # Errors
    ///
    /// When they can't be listed or locked.
    pub(crate) fn abandoned() -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for layout in Self::existing()? {
            let _parent = lock_parent()?;
            // Cleaned up since it was listed, if it is gone.
            if layout.root.exists() && layout.lock_file()?.is_some() {
                found.push(layout);
            }
        }
        Ok(found)
    }

    fn lock_file(&self) -> Result<Option<Lock>> {
        let path = self.join("lock");
        let file = File::create(&path).with_context(|| format!("failed to open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("failed to lock {}", path.display())),
        }
    }

    /// A range of 254 addresses that no route of this machine covers and no other lab has taken.
    ///
    /// # Errors
    ///
    /// When the routes can't be read, or cover all of them.
    pub(crate) fn free_range(&self) -> Result<Range> {
        let path = "/proc/net/route";
        let routes = routes(&fs::read_to_string(path).with_context(|| format!("failed to read {path}"))?)?;
        let start = u32::from_str_radix(&self.id, 16).context("the id is hexadecimal")?;
        // 10.64.0.0 to 10.255.255.0: clusters like the lower quarter of 10/8, and 10.244/16.
        for offset in 0..0xc000 {
            let number = 0x4000 + (start + offset) % 0xc000;
            let address = 0x0a00_0000 | number << 8;
            if number >> 8 == 244 || routes.iter().any(|route| route.overlaps(address)) {
                continue;
            }
            if let Some(range) = Range::take(format!("{}/24", Ipv4Addr::from(address)))? {
                return Ok(range);
            }
        }
        bail!("every range from 10.64.0.0 on is routed on this machine; remove a route below 10.0.0.0/8")
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::new()
    }
}

/// Held while a lab's process lives; the kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

/// Taken for the moment in which a lab's directory and its lock are made, or the lock is looked at.
fn lock_parent() -> Result<File> {
    let parent = File::open(PARENT).with_context(|| format!("failed to open {PARENT}"))?;
    parent.lock().with_context(|| format!("failed to lock {PARENT}"))?;
    Ok(parent)
}

/// A range such as `10.90.17.0/24`, for this lab alone.
///
/// Until the lab's bridge has its route, which may be a while, nothing but the socket here tells others that it is
/// taken. It is bound to a name of the network namespace, which the ranges belong to as well, and goes with the process.
#[derive(Debug)]
pub(crate) struct Range {
    text: String,
    _taken: UnixDatagram,
}

impl Range {
    /// Takes `text`, or returns `None` if another lab has it.
    fn take(text: String) -> Result<Option<Self>> {
        let bound = SocketAddr::from_abstract_name(format!("keelson-lab/{text}"))
            .and_then(|name| UnixDatagram::bind_addr(&name));
        match bound {
            Ok(taken) => Ok(Some(Self { text, _taken: taken })),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to take the range {text}")),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Links the program, or copies it where that can't be done.
fn put_program(from: &Path, to: &Path) -> Result<()> {
    ensure!(from.is_file(), "{} is missing; run: cargo build --bins", from.display());
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    // Another filesystem. Not by this process: one that it starts meanwhile would hold the copy open for writing, and
    // the kernel executes no such file.
    let output = Command::new("cp").arg(from).arg(to).output().context("failed to run cp")?;
    ensure!(output.status.success(), "failed to copy: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Route {
    destination: u32,
    mask: u32,
}

impl Route {
    /// Whether the /24 at `address` and this route share an address. The default route covers nothing.
    fn overlaps(&self, address: u32) -> bool {
        let mask = self.mask & 0xffff_ff00;
        self.mask != 0 && self.destination & mask == address & mask
    }
}

/// Parses /proc/net/route: `eth0 0000FEA9 00000000 0001 0 0 0 0000FFFF ...`, addresses in the byte order of the machine's
/// memory.
fn routes(text: &str) -> Result<Vec<Route>> {
    text.lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            ensure!(fields.len() >= 8, "unexpected line in /proc/net/route: {line:?}");
            let address = |field: &str| {
                u32::from_str_radix(field, 16)
                    .map(u32::from_be)
                    .with_context(|| format!("unexpected address in /proc/net/route: {field:?}"))
            };
            Ok(Route { destination: address(fields[1])?, mask: address(fields[7])? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_their_limits() {
        let layout = Layout::new();
        assert!(layout.bridge().len() <= 15);
        // A device plugin's socket name with a resource name and a random part.
        let socket = layout.join("kubelet/device-plugins").join("k".repeat(50));
        assert!(socket.as_os_str().len() <= 107, "{}", socket.display());
    }

    #[test]
    fn two_labs_never_share_a_range() {
        let layout = Layout::new();
        let (first, second) = (layout.free_range().unwrap(), layout.free_range().unwrap());
        assert_ne!(first.as_str(), second.as_str());
    }

    #[test]
    fn a_range_that_is_routed_is_not_taken() {
        // 169.254.0.0/16 and the default route.
        let routes = routes(concat!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n",
            "eth0\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n",
            "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n",
        ))
        .unwrap();
        assert_eq!(routes[0], Route { destination: 0xa9fe_0000, mask: 0xffff_0000 });
        assert!(routes[0].overlaps(0xa9fe_1200));
        assert!(!routes[0].overlaps(0x0a40_0000));
        assert!(!routes[1].overlaps(0x0a40_0000));
        // A route to a part of the /24.
        assert!(Route { destination: 0x0a40_0080, mask: 0xffff_ff80 }.overlaps(0x0a40_0000));
    }
}
