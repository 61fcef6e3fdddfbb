//! What the user may say about storage: the `storage` section of the NodeConfig.

mod registration;

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
};

use keelson_host::{HostRoot, Node, Problem, Problems, error_chain};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kernel::{Helper, filesystem, subvolume},
    policy::{Reserve, names, overlap},
    store::{self, Fitness, RecordError, Remembered},
};

pub use registration::RegistrationSection;

/// Filesystems that innocent Pods depend on: when the kubelet's or the images' fills up, Pods are evicted.
const FILESYSTEMS_OF_OTHERS: [&str; 4] = ["/", "/var/lib/kubelet", "/var/lib/containerd", "/var/lib/containers"];

/// The `storage` section as the user writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StorageSection {
    /// The CSI driver's name, which StorageClasses name as their provisioner.
    pub driver_name: String,
    /// Where the driver listens: `unix://` and an absolute path. Nothing else may lie in that folder.
    pub endpoint: String,
    /// Whether and where the driver registers itself with the kubelet.
    pub registration: RegistrationSection,
    /// Where volumes are kept.
    pub pools: Vec<PoolSection>,
    /// Whether the capabilities of CSI 1.13's health calls are advertised. The calls are served in any case; csi-sanity
    /// up to 5.5 fails on capabilities that it doesn't know.
    pub volume_health: bool,
}

/// One pool as the user writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PoolSection {
    /// The name that a StorageClass gives as its parameter `pool`.
    pub name: String,
    /// The pool's directory.
    pub path: PathBuf,
    /// How volumes are kept in it.
    pub kind: PoolKind,
    /// Whether the pool may lie on a filesystem that the system, the kubelet or the container images use.
    pub allow_shared_filesystem: bool,
    /// Whether a directory whose size nothing enforces is reported as having the size that was asked for, and not as
    /// one of unknown size.
    pub unenforced_sizes: bool,
    /// The space of the pool's filesystem that no volume is promised, such as `5%` or `10Gi`.
    pub reserve: Reserve,
    /// How much of the space is promised: 100 is all there is and no more, 200 is twice that.
    pub overcommit_percent: u32,
}

/// How a pool keeps its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// A raw file behind a loop device: sizes are enforced, raw block works.
    Image,
    /// A directory, bind-mounted: its size is enforced where the filesystem has project quotas.
    Directory,
    /// A subvolume of a btrfs filesystem, bind-mounted: its size is enforced by a qgroup.
    Subvolume,
}

impl PoolKind {
    /// The kind's name as the config spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Directory => "directory",
            Self::Subvolume => "subvolume",
        }
    }
}

impl Default for StorageSection {
    fn default() -> Self {
        Self {
            driver_name: "csi.keelson.dev".to_owned(),
            endpoint: "unix:///var/lib/kubelet/plugins/csi.keelson.dev/csi.sock".to_owned(),
            registration: RegistrationSection::default(),
            pools: vec![PoolSection { allow_shared_filesystem: true, ..PoolSection::default() }],
            volume_health: false,
        }
    }
}

impl Default for PoolSection {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            path: PathBuf::from("/var/lib/keelson/pools/default"),
            kind: PoolKind::Image,
            allow_shared_filesystem: false,
            unenforced_sizes: false,
            reserve: Reserve::Percent(1),
            overcommit_percent: 100,
        }
    }
}

/// A storage section that was found right for this node.
#[derive(Clone, Debug)]
pub struct StorageSettings {
    /// The CSI driver's name.
    pub driver_name: String,
    /// The socket's path.
    pub socket: PathBuf,
    /// The kubelet's directory that the driver registers itself in; `None`: it doesn't.
    pub registration: Option<PathBuf>,
    /// The pools, in the order of the config; never empty.
    pub pools: Vec<PoolSettings>,
    /// Whether the capabilities of the health calls are advertised.
    pub volume_health: bool,
    /// The node's name: the node id, and the value of the topology key.
    pub node_name: String,
    /// Where state that survives a reboot lives.
    pub state_dir: PathBuf,
    /// Where `/proc`, `/sys` and `/dev` are found. Pools and the kubelet's paths are taken as they are.
    pub root: HostRoot,
    /// The program that does what could hang.
    pub helper: Helper,
}

/// One pool that was found right for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// The pool's name: usable as a file name.
    pub name: String,
    /// The pool's directory: absolute, without `..`.
    pub path: PathBuf,
    /// The same with the links above it followed, as it was at the start.
    pub resolved: PathBuf,
    /// How volumes are kept in it.
    pub kind: PoolKind,
    /// Whether directories of unenforced size are reported with the size that was asked for.
    pub unenforced_sizes: bool,
    /// What is kept free.
    pub reserve: Reserve,
    /// How much is promised of what there is, in hundredths; from 100 on.
    pub overcommit_percent: u32,
    /// Whether the directory may be created: only for a pool that never was.
    pub may_create: bool,
}

impl StorageSection {
    /// Checks the section against the node. Reads the host, changes nothing.
    ///
    /// A pool that is remembered under the state directory but isn't there now is *not* a problem: its disk may
    /// come back, and until then its calls answer UNAVAILABLE.
    ///
    /// # Errors
    ///
    /// Everything wrong with it; each problem's path starts with `storage` (or is `nodeName`).
    pub fn validate(&self, node: &Node) -> Result<StorageSettings, Problems> {
        let mut problems = Problems::default();
        if let Err(wrong) = names::check_driver_name(&self.driver_name) {
            let remedy = "use at most 63 letters, digits, '-' and '.', with a letter or digit at both ends";
            problems.push(Problem::new("storage.driverName", &self.driver_name, wrong, remedy));
        }
        if let Err(wrong) = names::check_topology_value(&node.name) {
            let remedy = "volumes carry it as a topology label: use at most 63 letters, digits, '-', '_' and '.', \
                          with a letter or digit at both ends";
            problems.push(Problem::new("nodeName", &node.name, wrong, remedy));
        }
        let socket = match socket_path(&self.endpoint) {
            Ok(path) => path,
            Err(wrong) => {
                let remedy = "write unix:// and an absolute path of at most 103 bytes, such as \
                              unix:///var/lib/kubelet/plugins/csi.keelson.dev/csi.sock";
                problems.push(Problem::new("storage.endpoint", &self.endpoint, wrong, remedy));
                PathBuf::new()
            }
        };
        if let Err((wrong, remedy)) = check_socket(&socket) {
            problems.push(Problem::new("storage.endpoint", &self.endpoint, wrong, remedy));
        }
        if self.pools.is_empty() {
            problems.push(Problem::new("storage.pools", "", "is empty", "name at least one pool"));
        }
        let mut names = BTreeSet::new();
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut pools = Vec::new();
        for (index, pool) in self.pools.iter().enumerate() {
            let at = format!("storage.pools[{index}]");
            if !names.insert(&pool.name) {
                problems.push(Problem::new(
                    format!("{at}.name"),
                    &pool.name,
                    "is the name of an earlier pool",
                    "give each pool a name of its own",
                ));
            }
            match pool.validate(&at, node) {
                Err(found) => problems.0.extend(found.0),
                Ok(settings) => {
                    if let Some(other) = paths.iter().find(|other| overlap(other, &settings.resolved)) {
                        problems.push(Problem::new(
                            format!("{at}.path"),
                            settings.path.display(),
                            format!("overlaps with the pool at {}", other.display()),
                            "give each pool a directory of its own",
                        ));
                    }
                    paths.push(settings.resolved.clone());
                    pools.push(settings);
                }
            }
        }
        if let Some(pool) = paths.iter().find(|pool| resolve(&socket).starts_with(pool)) {
            let wrong = format!("lies in the pool at {}", pool.display());
            let remedy = "pools hold nothing but volumes; use a folder of its own";
            problems.push(Problem::new("storage.endpoint", &self.endpoint, wrong, remedy));
        }
        if let Err(problem) = self.registration.validate(&self.driver_name, &paths) {
            problems.push(problem);
        }
        problems.into_result(StorageSettings {
            driver_name: self.driver_name.clone(),
            socket,
            registration: self.registration.enabled.then(|| self.registration.directory.clone()),
            pools,
            volume_health: self.volume_health,
            node_name: node.name.clone(),
            state_dir: node.state_dir.clone(),
            root: node.root.clone(),
            helper: Helper::own_executable(),
        })
    }
}

impl PoolSection {
    fn validate(&self, at: &str, node: &Node) -> Result<PoolSettings, Problems> {
        let mut problems = Problems::default();
        if let Err(wrong) = names::check_pool_name(&self.name) {
            let remedy = "use at most 63 lower-case letters, digits and '-', with a letter or digit at both ends";
            problems.push(Problem::new(format!("{at}.name"), &self.name, wrong, remedy));
        }
        if !(100..=10_000).contains(&self.overcommit_percent) {
            problems.push(Problem::new(
                format!("{at}.overcommitPercent"),
                self.overcommit_percent,
                "is out of range",
                "use 100 to promise what there is, and at most 10000",
            ));
        }
        if self.unenforced_sizes && self.kind == PoolKind::Image {
            problems.push(Problem::new(
                format!("{at}.unenforcedSizes"),
                true,
                "is not for images, whose sizes are always enforced",
                "leave it out, or use kind directory",
            ));
        }
        let path_problem = |wrong: String, remedy: &str| {
            Problem::new(format!("{at}.path"), self.path.display(), wrong, remedy.to_owned())
        };
        let plain = self.path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !self.path.is_absolute() || !plain || self.path == Path::new("/") {
            problems.push(path_problem(
                "is not an absolute path below / without \"..\"".to_owned(),
                "write the directory's full path, such as /var/lib/keelson/pools/default",
            ));
            return Err(problems);
        }
        // Without repeated or trailing slashes, as the kernel prints it.
        let path: PathBuf = self.path.components().collect();
        // A name that can't be a file name was reported above; nothing can be remembered under it.
        let remembered = if problems.0.is_empty() {
            match Remembered::read(&node.state_dir, &self.name) {
                Ok(remembered) => remembered,
                Err(error) => {
                    problems.push(Problem::new(
                        format!("{at}.name"),
                        &self.name,
                        format!("has a record that can't be used ({})", error_chain(&error)),
                        remedy_of(&error),
                    ));
                    None
                }
            }
        } else {
            None
        };
        let below_state_dir = path.starts_with(&node.state_dir);
        let exists = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                problems.push(path_problem("is a symbolic link".to_owned(), "name the directory itself"));
                false
            }
            Ok(found) if !found.is_dir() => {
                problems.push(path_problem("is not a directory".to_owned(), "name a directory"));
                false
            }
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if remembered.is_none() && !below_state_dir && !path.parent().is_some_and(Path::is_dir) {
                    problems.push(path_problem(
                        "does not exist, and neither does the directory above it".to_owned(),
                        "create it, or mount the disk that holds it",
                    ));
                }
                false
            }
            Err(error) => {
                problems.push(path_problem(format!("can't be looked at ({error})"), "name a directory"));
                false
            }
        };
        let own_records = node.state_dir.join("storage");
        if node.state_dir.starts_with(&path) || path.starts_with(&own_records) {
            let wrong = format!("is, or holds, the driver's own state below {}", node.state_dir.display());
            let remedy = "use a directory of its own, such as pools/default below stateDir";
            problems.push(path_problem(wrong, remedy));
        }
        // Of a remembered pool whose disk isn't mounted, the filesystem below would be judged in its place.
        let absent = remembered.is_some() && !(exists && store::is_some_pool(&path));
        if problems.0.is_empty() && !self.allow_shared_filesystem && !absent {
            match shared_with(&path) {
                Ok(None) => {}
                Ok(Some(other)) => problems.push(path_problem(
                    format!("lies on the same filesystem as {other}, where a full pool would evict innocent Pods"),
                    "use a filesystem of its own, or set allowSharedFilesystem: true to accept that",
                )),
                Err(error) => {
                    problems.push(path_problem(format!("can't be looked at ({error})"), "name a directory"));
                }
            }
        }
        if problems.0.is_empty() && self.kind == PoolKind::Subvolume && !absent {
            let on_btrfs = existing_ancestor(&path).and_then(fs::File::open).and_then(subvolume::is_btrfs);
            if !on_btrfs.unwrap_or(true) {
                problems.push(Problem::new(
                    format!("{at}.kind"),
                    self.kind.as_str(),
                    format!("needs btrfs, but {} lies on another filesystem", path.display()),
                    "mount the btrfs there first, or use kind image or directory",
                ));
            }
        }
        // What else is wrong with the path is the better reason.
        if problems.0.is_empty() && exists {
            match store::fitness(&path, remembered.as_ref()) {
                Ok(Fitness::NotEmpty) => problems.push(path_problem(
                    "holds files and is no pool".to_owned(),
                    "name an empty directory, or one that doesn't exist",
                )),
                Ok(Fitness::Pool(kind)) if kind != self.kind => problems.push(Problem::new(
                    format!("{at}.kind"),
                    self.kind.as_str(),
                    format!("is not the kind of the pool at {}", path.display()),
                    format!("a pool's kind can't be changed: write {}, or use another directory", kind.as_str()),
                )),
                // What can't be told now, such as whether this is the pool that is remembered, is told by every call.
                Ok(Fitness::Pool(_) | Fitness::Empty | Fitness::Unknown) | Err(_) => {}
            }
        }
        problems.into_result(PoolSettings {
            name: self.name.clone(),
            resolved: resolve(&path),
            path,
            kind: self.kind,
            unenforced_sizes: self.unenforced_sizes,
            reserve: self.reserve,
            overcommit_percent: self.overcommit_percent,
            may_create: remembered.is_none() && !exists,
        })
    }
}

/// What to do about the memory of a pool that can't be used. Only where its content is wrong may it be removed.
fn remedy_of(error: &RecordError) -> &'static str {
    match error {
        RecordError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "run as root",
        RecordError::Io { .. } => "mend what keeps the file from being read",
        RecordError::Content { .. } | RecordError::Version { .. } => {
            "restore the file, or remove it to have the pool recognised by its marker"
        }
    }
}

/// The socket's path in `unix:///path`.
fn socket_path(endpoint: &str) -> Result<PathBuf, String> {
    let Some(path) = endpoint.strip_prefix("unix://") else { return Err("does not start with unix://".to_owned()) };
    // sun_path holds 107 bytes and a NUL, and binding needs ".tmp" for a moment.
    if path.len() > 103 {
        return Err(format!("has a path of {} bytes", path.len()));
    }
    let path = Path::new(path);
    if !path.is_absolute() || path.file_name().is_none() || path.components().any(|part| part == Component::ParentDir) {
        return Err("names no absolute path of a socket".to_owned());
    }
    Ok(path.to_owned())
}

/// Whether a socket can be made at `path`, as far as that can be seen; else what is wrong and what would be right.
fn check_socket(path: &Path) -> Result<(), (String, &'static str)> {
    let unreadable = |error: io::Error| (format!("can't be looked at ({error})"), "use another path");
    for directory in path.ancestors().skip(1) {
        match fs::metadata(directory) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => {
                let wrong = format!("lies below {}, which is not a directory", directory.display());
                return Err((wrong, "name a socket in a directory, which is made if it is missing"));
            }
            // One further up says why: missing, or below something that is no directory.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(("names something that is not a socket".to_owned(), "remove that, or use another path"))
        }
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(unreadable(error))
        }
        _ => Ok(()),
    }
}

/// Which directory of others lies on the filesystem that holds, or would hold, `path`.
fn shared_with(path: &Path) -> io::Result<Option<&'static str>> {
    let own = existing_ancestor(path)?;
    for other in FILESYSTEMS_OF_OTHERS {
        let theirs = existing_ancestor(Path::new(other))?;
        if same_filesystem(&own, &theirs)? {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// `path` with links followed, as far as it exists.
fn resolve(path: &Path) -> PathBuf {
    let resolved = path.ancestors().find_map(|ancestor| {
        let rest = path.strip_prefix(ancestor).ok()?;
        Some(fs::canonicalize(ancestor).ok()?.join(rest).components().collect())
    });
    resolved.unwrap_or_else(|| path.to_owned())
}

fn existing_ancestor(path: &Path) -> io::Result<PathBuf> {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .map(Path::to_owned)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no directory above {}", path.display())))
}

/// By device number, or by UUID: two subvolumes of one btrfs have different device numbers.
fn same_filesystem(one: &Path, other: &Path) -> io::Result<bool> {
    if fs::metadata(one)?.dev() == fs::metadata(other)?.dev() {
        return Ok(true);
    }
    let uuid = filesystem::uuid(one)?;
    Ok(uuid.is_some() && uuid == filesystem::uuid(other)?)
}
