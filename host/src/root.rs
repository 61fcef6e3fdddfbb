//! Where the host's file trees are mounted for this process.

use std::path::{Path, PathBuf};

/// The directory below which `/sys`, `/proc`, `/dev` and the host's other trees are found.
///
/// Production uses [`HostRoot::system`], a container that sees the host under `/host` names that directory, and
/// tests point it at a generated tree. Invariant: what this crate tells of the machine is read below a root that the
/// caller gave, and by no absolute path. What belongs to the process or to the running kernel and not to a picture of
/// the host, such as the boot's id, its own mounts or a sysctl of its network namespace, has no root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoot {
    root: PathBuf,
}

impl HostRoot {
    /// The machine this process runs on: `/`.
    #[must_use]
    pub fn system() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// The tree below `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// `path` below this root; a leading `/` is taken as the root's.
    ///
    /// ```
    /// use keelson_host::HostRoot;
    /// let root = HostRoot::at("/host");
    /// assert_eq!(root.join("/sys/devices"), std::path::Path::new("/host/sys/devices"));
    /// assert_eq!(root.join("proc"), std::path::Path::new("/host/proc"));
    /// ```
    #[must_use]
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}
