//! Network namespaces.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::statfs::{FsType, fstatfs, statfs},
};

use super::{KernelError, RouteSocket, link};
use crate::calls;

/// nsfs (linux/magic.h, `NSFS_MAGIC`).
const NSFS: FsType = FsType(0x6e73_6673);

/// The namespace that this thread is in. Not /proc/1/ns/net: that needs CAP_SYS_PTRACE over process 1.
const OWN: &str = "/proc/thread-self/ns/net";

/// A container's network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
}

/// What tells a namespace from all others: its inode and that one's device.
fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// The identity of the namespace at `path`, if it is one.
pub(crate) fn identity_at(path: &Path) -> Option<(u64, u64)> {
    let kind = statfs(path).ok()?;
    (kind.filesystem_type() == NSFS).then(|| fs::metadata(path).ok().map(|found| identity(&found)))?
}

/// The network namespaces that processes are in.
#[derive(Debug, Default)]
pub(crate) struct Inhabited {
    /// Each with a way to it.
    found: HashMap<(u64, u64), PathBuf>,
    /// Whether some process didn't let itself be looked at.
    is_incomplete: bool,
}

impl Inhabited {
    /// Whether the namespace has processes; `None` if that can't be told.
    pub(crate) fn has(&self, identity: (u64, u64)) -> Option<bool> {
        if self.found.contains_key(&identity) { Some(true) } else { (!self.is_incomplete).then_some(false) }
    }

    /// The veth ends in them.
    fn veth_ends(&self) -> Result<Vec<(u32, u32)>, NamespaceError> {
        let mut ends = Vec::new();
        for path in self.found.values() {
            let namespace = match Namespace::open(path) {
                Ok(namespace) => namespace,
                Err(NamespaceError::Own { .. }) => continue,
                Err(error) => return Err(error),
            };
            let links = link::all(&mut namespace.route_socket()?)?;
            ends.extend(links.iter().filter_map(|link| Some((link.index, link.peer?))));
        }
        Ok(ends)
    }
}

/// How often processes are looked at anew because one has ended meanwhile.
const LOOKS: usize = 20;

/// The veth ends in the namespaces of all processes that `proc` shows, each with its own index and its peer's; `None` if
/// not all can be seen.
pub(crate) fn inhabited_veth_ends(proc: &Path) -> Option<Vec<(u32, u32)>> {
    for _ in 0..LOOKS {
        let inhabited = inhabited(proc);
        if inhabited.is_incomplete {
            return None;
        }
        match inhabited.veth_ends() {
            Ok(ends) => return Some(ends),
            // Others may live where the one that was found has ended.
            Err(NamespaceError::Open { source, .. }) if has_ended(&source) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Whether a file below /proc can't be read because its process has ended.
fn has_ended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Looks at every process that `proc` shows.
pub(crate) fn inhabited(proc: &Path) -> Inhabited {
    let mut inhabited = Inhabited::default();
    let Ok(entries) = fs::read_dir(proc) else {
        return Inhabited { is_incomplete: true, ..inhabited };
    };
    for entry in entries {
        let Ok(entry) = entry else {
            inhabited.is_incomplete = true;
            continue;
        };
        let name = entry.file_name();
        // Process 1 is in no container, and may have rights that forbid us to look at it.
        if name == "1" || !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let path = entry.path().join("ns/net");
        match fs::metadata(&path) {
            Ok(found) => drop(inhabited.found.insert(identity(&found), path)),
            // A process that has ended is in none.
            Err(error) if has_ended(&error) => {}
            Err(_) => inhabited.is_incomplete = true,
        }
    }
    inhabited
}

/// Why a path can't be used as a container's namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    #[error("failed to open the network namespace {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is not a network namespace", path.display())]
    NotANamespace { path: PathBuf },
    #[error("{} is the host's own network namespace", path.display())]
    Own { path: PathBuf },
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Namespace {
    /// Opens the namespace at `path` and makes sure that it's not the one we are in.
    pub(crate) fn open(path: &Path) -> Result<Self, NamespaceError> {
        let owned = || path.to_owned();
        // O_NONBLOCK: a FIFO put there must not make us wait for its writer.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| NamespaceError::Open { path: owned(), source })?;
        let kind = fstatfs(&file).map_err(|errno| KernelError::new(format!("inspect {}", path.display()), errno))?;
        if kind.filesystem_type() != NSFS {
            return Err(NamespaceError::NotANamespace { path: owned() });
        }
        let inspect = |path: &Path, result: io::Result<Metadata>| {
            result.map(|found| identity(&found)).map_err(|e| KernelError::new(format!("inspect {}", path.display()), e))
        };
        let identity = inspect(path, file.metadata())?;
        if inspect(Path::new(OWN), fs::metadata(OWN))? == identity {
            return Err(NamespaceError::Own { path: owned() });
        }
        Ok(Self { file, path: owned(), identity })
    }

    /// Whether `path` leads to this namespace, by whatever way: /run and /var/run are one directory.
    pub(crate) fn is_at(&self, path: &str) -> bool {
        fs::metadata(path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Runs `work` with this thread inside the namespace, and comes back.
    ///
    /// What must be done inside (a netlink socket stays in the namespace it was opened in, a switch of /proc/sys/net is
    /// that of the thread's) is done here; nothing else belongs into `work`.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> Result<T, NamespaceError> {
        let _phase = calls::phase("enter the namespace");
        let own = File::open(OWN).map_err(|error| KernelError::new(format!("open {OWN}"), error))?;
        match setns(&self.file, CloneFlags::CLONE_NEWNET) {
            Ok(()) => {}
            Err(Errno::EINVAL) => return Err(NamespaceError::NotANamespace { path: self.path.clone() }),
            Err(errno) => {
                return Err(KernelError::new(format!("enter {}", self.path.display()), errno).into());
            }
        }
        let result = work();
        setns(&own, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| KernelError::new("return to the host's network namespace", errno))?;
        Ok(result)
    }

    /// A socket for the links, addresses and routes inside.
    pub(crate) fn route_socket(&self) -> Result<RouteSocket, NamespaceError> {
        Ok(self.within(RouteSocket::open)??)
    }

    /// Its device and inode numbers, which tell it from every other namespace that exists at the same time.
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The path that it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}
