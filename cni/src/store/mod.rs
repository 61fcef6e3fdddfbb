//! What a network has given to whom. docs/formats-network.md describes the files.
//!
//! Invariants:
//! - An attachment's record is the truth. It appears, changes and vanishes by one rename or unlink.
//! - An address is in use if and only if `addresses/<address>` names a record that exists and lists the address. The
//!   entry is made before the record and removed after it, so a process killed in between leaves an entry that names
//!   no such record: the address is free, and the next to take it replaces the entry.
//! - An address that isn't in use is one the cursor has yet to come by, or in the queue of released ones.
//! - All of it lies in a directory named by the boot id: what another boot left is never read, so nothing needs to be
//!   synced to the disk, and a reboot leaks nothing.

mod addresses;
mod boot;
mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod host_local;
mod lock;
mod record;
mod survey;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod torn;

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

pub(crate) use addresses::Request;
use file::{failed, list, read_json, remove, temporary_name, temporary_of, write_json};
use record::OLDEST_VERSION;
pub(crate) use record::{AttachmentState, Kind, Lease, Record, SourceTables, VERSION};

use crate::{calls, config::invocation::AttachmentKey, policy::naming::attachment_number};
pub(crate) use lock::{AttachmentLock, NamespaceLock, NetworkLock};

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("failed to {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("gave up waiting for the lock {}: another call holds it for more than {} seconds", path.display(), lock::LIMIT.as_secs())]
    Busy { path: PathBuf },
    #[error("unexpected content in {}: {detail}", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error(
        "{} is of format version {found}, and this program reads {OLDEST_VERSION} to {VERSION}: it was written by another release",
        path.display()
    )]
    OtherVersion { path: PathBuf, found: u32 },
    /// The wording is the reference's: runbooks and alerts look for it.
    /// Not even one that cools is left. `stale` are the attachments whose link is gone, but not for long enough.
    #[error(
        "failed to allocate for range {set}: no IP addresses available in range set: {ranges} ({size} addresses: all in use, none cooling, {stale} stale)"
    )]
    Exhausted { set: usize, ranges: String, size: u128, stale: usize },
    #[error("requested IP address {address} is not available: it is in use by {owner}")]
    Taken { address: IpAddr, owner: String, key: AttachmentKey },
    /// As host-local: likewise the reference's words.
    #[error(
        "failed to allocate for range {set}: requested IP address {address} is not available in range set {ranges}: it is in use by {owner}"
    )]
    Reserved { set: usize, ranges: String, address: IpAddr, owner: String },
    #[error(
        "failed to allocate for range {set}: {address} has been allocated to {container_id}, duplicate allocation is not allowed"
    )]
    Duplicate { set: usize, address: IpAddr, container_id: String },
}

/// What reading a record gave.
pub(crate) type ReadRecord = Result<Record, StoreError>;

/// The file whose lock is held while addresses are chosen or returned.
const NETWORK_LOCK: &str = "lock";

/// The file in which each attachment has a byte to lock.
const ATTACHMENTS_LOCK: &str = "attachments.lock";

/// One network's records of this boot.
#[derive(Debug)]
pub(crate) struct Store {
    network_dir: PathBuf,
    boot_id: String,
}

/// Waits until no other process changes the routing of the network namespace that `file` is, opened by `path`.
pub(crate) fn lock_namespace(file: &fs::File, path: &Path) -> Result<NamespaceLock, StoreError> {
    NamespaceLock::acquire(file, lock::LIMIT).map_err(unlocked(path))
}

impl Store {
    /// The store of `network` below `data_dir` in this boot; touches nothing.
    pub(crate) fn new(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(path).map_err(failed("read", path))?;
        Ok(Self::of_boot(data_dir, network, boot_id.trim_end()))
    }

    fn of_boot(data_dir: &Path, network: &str, boot_id: &str) -> Self {
        Self { network_dir: data_dir.join(network), boot_id: boot_id.to_owned() }
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// The network's name.
    pub(crate) fn network(&self) -> &str {
        // The directory was joined from the name.
        self.network_dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.network_dir
    }

    /// Makes the directories; the first of a boot removes what earlier boots left.
    pub(crate) fn create(&self) -> Result<(), StoreError> {
        let _phase = calls::phase("store");
        let attachments = self.boot_dir().join("attachments");
        if attachments.is_dir() {
            return Ok(());
        }
        let addresses = self.boot_dir().join("addresses");
        fs::create_dir_all(&addresses).map_err(failed("create", &addresses))?;
        // Made last: its presence says that all is there.
        fs::create_dir_all(&attachments).map_err(failed("create", &attachments))?;
        boot::remove_others(&self.network_dir, &self.boot_id)
    }

    /// Waits until no other process works on the attachment; `None` if the network has never been used on this node.
    pub(crate) fn lock_attachment(&self, key: &AttachmentKey) -> Result<Option<AttachmentLock>, StoreError> {
        let _phase = calls::phase("lock");
        if !self.network_dir.is_dir() {
            return Ok(None);
        }
        let path = self.network_dir.join(ATTACHMENTS_LOCK);
        AttachmentLock::acquire(&path, attachment_number(key), lock::LIMIT).map(Some).map_err(unlocked(&path))
    }

    /// The attachment's lock, or `None` if another process works on the attachment right now.
    ///
    /// The network must have been used on this node.
    pub(crate) fn lock_attachment_if_idle(&self, key: &AttachmentKey) -> Result<Option<AttachmentLock>, StoreError> {
        let path = self.network_dir.join(ATTACHMENTS_LOCK);
        AttachmentLock::try_acquire(&path, attachment_number(key)).map_err(unlocked(&path))
    }

    /// Waits until no other process chooses or returns addresses.
    pub(crate) fn lock_network(&self) -> Result<NetworkLock, StoreError> {
        let _phase = calls::phase("lock");
        let path = self.network_dir.join(NETWORK_LOCK);
        NetworkLock::acquire(&path, lock::LIMIT).map_err(unlocked(&path))
    }

    /// The attachment's record, if there is one.
    pub(crate) fn read(&self, key: &AttachmentKey) -> Result<Option<Record>, StoreError> {
        let _phase = calls::phase("store");
        let path = self.record_path(key);
        let record = read_json::<Record>(&path)?;
        // What is undone by a record that was altered might be another attachment's.
        match record {
            Some(record) if record.key != *key || record.boot_id != self.boot_id => {
                Err(StoreError::Corrupt { path, detail: "it is about another attachment".to_owned() })
            }
            other => Ok(other),
        }
    }

    /// The attachments that there are records of, readable or not, in no order.
    pub(crate) fn keys(&self) -> Result<Vec<AttachmentKey>, StoreError> {
        let paths = list(&self.boot_dir().join("attachments"))?;
        Ok(paths.iter().filter(|path| temporary_name(path).is_none()).filter_map(|path| key_of(path)).collect())
    }

    /// All records, each readable or with the reason why not, in the order of their keys.
    pub(crate) fn records(&self) -> Result<Vec<(AttachmentKey, ReadRecord)>, StoreError> {
        let mut keys = self.keys()?;
        keys.sort_unstable_by(|a, b| (&a.container_id, &a.ifname).cmp(&(&b.container_id, &b.ifname)));
        // One that vanishes meanwhile was not there.
        let read = |key: AttachmentKey| self.read(&key).transpose().map(|record| (key, record));
        Ok(keys.into_iter().filter_map(read).collect())
    }

    /// Some of the records that can be read: all of them, or enough to judge by. Takes no longer the more there are.
    pub(crate) fn sample(&self) -> Result<Vec<Record>, StoreError> {
        const ENOUGH: usize = 16;
        let directory = self.boot_dir().join("attachments");
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("list", &directory))?,
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let keys = paths.filter(|path| temporary_name(path).is_none()).filter_map(|path| key_of(&path));
        Ok(keys.take(ENOUGH).filter_map(|key| self.read(&key).ok().flatten()).collect())
    }

    /// Writes the record in place of what was there.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StoreError> {
        let _phase = calls::phase("store");
        write_json(&self.record_path(&record.key), record)
    }

    /// Says that a complete attachment no longer is, before anything of it is undone: whoever finds the record after a
    /// kill undoes the rest.
    pub(crate) fn mark_pending(&self, record: &Record) {
        if record.state == AttachmentState::Active {
            // It only matters after a kill; a full disk must not keep the attachment alive.
            let _ = self.write(&Record { state: AttachmentState::Pending, ..record.clone() });
        }
    }

    /// Removes what a killed process left of the attachment's record; the caller holds its lock, so nobody writes it.
    pub(crate) fn sweep_attachment(&self, key: &AttachmentKey) -> Result<(), StoreError> {
        let _phase = calls::phase("store");
        remove(&temporary_of(&self.record_path(key)))
    }

    /// Removes what killed processes left of any file, but for a record that somebody may just be writing.
    pub(crate) fn sweep(&self) -> Result<(), StoreError> {
        for path in list(&self.boot_dir().join("attachments"))? {
            let Some(name) = temporary_name(&path) else { continue };
            let lock = key_of(Path::new(name)).map(|key| self.lock_attachment_if_idle(&key)).transpose()?;
            if !matches!(lock, Some(None)) {
                remove(&path)?;
            }
        }
        let _lock = self.lock_network()?;
        let left = list(&self.boot_dir())?;
        left.iter().filter(|path| temporary_name(path).is_some()).try_for_each(|path| remove(path))
    }

    /// Removes the whole store unless it holds a record; tells whether it did. What isn't the store's stays.
    pub(crate) fn remove_if_empty(&self) -> Result<bool, StoreError> {
        if !self.network_dir.is_dir() {
            return Ok(true);
        }
        let _lock = self.lock_network()?;
        if !self.keys()?.is_empty() {
            return Ok(false);
        }
        boot::remove_others(&self.network_dir, "")?;
        for name in [calls::LOG, calls::EARLIER_LOG, ATTACHMENTS_LOCK, NETWORK_LOCK] {
            remove(&self.network_dir.join(name))?;
        }
        boot::remove_empty(&self.network_dir)?;
        Ok(true)
    }

    fn boot_dir(&self) -> PathBuf {
        self.network_dir.join(&self.boot_id)
    }

    fn record_path(&self, key: &AttachmentKey) -> PathBuf {
        self.boot_dir().join("attachments").join(record_name(key))
    }

    fn address_path(&self, address: IpAddr) -> PathBuf {
        self.boot_dir().join("addresses").join(address.to_string())
    }
}

/// `namespace/name` of the record's Pod, or the container's id where no Pod is known.
pub(crate) fn describe(record: &Record) -> String {
    if record.pod.name.is_empty() {
        format!("{} of container {}", record.key.ifname, record.key.container_id)
    } else {
        format!("{}/{}", record.pod.namespace, record.pod.name)
    }
}

/// The container's id can't hold an `@`, so the two parts can be told apart.
fn record_name(key: &AttachmentKey) -> String {
    format!("{}@{}", key.container_id, key.ifname)
}

/// What [`record_name`] was made of; `None` for a file that is no record.
fn key_of(path: &Path) -> Option<AttachmentKey> {
    let (container_id, ifname) = path.file_name()?.to_str()?.split_once('@')?;
    Some(AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

fn unlocked(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::TimedOut => StoreError::Busy { path: path.to_owned() },
        _ => failed("lock", path)(error),
    }
}
