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

mod boot;
mod lock;
mod record;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use keelson_host::{Durability, write_atomic};
use serde::{Deserialize, Serialize};

use record::OLDEST_VERSION;
pub(crate) use record::{AttachmentState, Kind, Lease, Record, SourceTables, VERSION};

use crate::{
    config::{invocation::AttachmentKey, range::RangeSet},
    policy::{
        allocate::{Cursor, Ledger, pick},
        naming::attachment_number,
    },
};
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
    #[error(
        "failed to allocate for range {set}: no IP addresses available in range set: {ranges} ({size} addresses, all in use)"
    )]
    Exhausted { set: usize, ranges: String, size: u128 },
    #[error("requested IP address {address} is not available: it is in use by {owner}")]
    Taken { address: IpAddr, owner: String },
}

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

/// A set's allocation state as its file holds it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AllocatorFile {
    version: u32,
    /// The ranges that the cursor walks; other ones in the config start it over.
    ranges: String,
    #[serde(flatten)]
    cursor: Cursor,
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
        if !self.network_dir.is_dir() {
            return Ok(None);
        }
        let path = self.network_dir.join(ATTACHMENTS_LOCK);
        AttachmentLock::acquire(&path, attachment_number(key), lock::LIMIT).map(Some).map_err(unlocked(&path))
    }

    /// Waits until no other process chooses or returns addresses.
    pub(crate) fn lock_network(&self) -> Result<NetworkLock, StoreError> {
        let path = self.network_dir.join(NETWORK_LOCK);
        NetworkLock::acquire(&path, lock::LIMIT).map_err(unlocked(&path))
    }

    /// The attachment's record, if there is one.
    pub(crate) fn read(&self, key: &AttachmentKey) -> Result<Option<Record>, StoreError> {
        read_json::<Record>(&self.record_path(key))
    }

    /// The attachments that there are records of, readable or not.
    pub(crate) fn keys(&self) -> Result<Vec<AttachmentKey>, StoreError> {
        let paths = list(&self.boot_dir().join("attachments"))?;
        Ok(paths.iter().filter(|path| !is_temporary(path)).filter_map(|path| key_of(path)).collect())
    }

    /// Chooses an address from each of `sets`, those of `requested` where given, and writes the record with them.
    ///
    /// The caller holds the attachment's lock, and there is no record of the attachment yet.
    pub(crate) fn reserve(
        &self,
        record: &mut Record,
        sets: &[RangeSet],
        requested: &[IpAddr],
    ) -> Result<(), StoreError> {
        let _lock = self.lock_network()?;
        let mut moved = Vec::new();
        for (index, set) in sets.iter().enumerate() {
            let mut allocator = self.read_allocator(index, set)?;
            let before = allocator.cursor.clone();
            let wanted = requested.iter().copied().find(|address| set.range_of(*address).is_some());
            let address = match wanted {
                Some(address) => {
                    self.require_free(address)?;
                    address
                }
                None => pick(set, &mut allocator.cursor, &mut SetLedger { store: self, set: index })?
                    .ok_or_else(|| exhausted(index, set))?,
            };
            let Some(range) = set.range_of(address) else { return Err(exhausted(index, set)) };
            // The prefix is the range's subnet's, so it fits the address.
            let Ok(lease) = ipnet::IpNet::new(address, range.subnet.prefix_len()) else {
                return Err(exhausted(index, set));
            };
            record.addresses.push(Lease { address: lease, gateway: Some(range.gateway), set: Some(index) });
            if allocator.cursor != before {
                moved.push((index, before, allocator));
            }
        }
        for lease in &record.addresses {
            self.enter_address(lease.address.addr(), &record.key)?;
        }
        self.write(record)?;
        // From here on the addresses are taken; a cursor that stays behind is caught up by skipping them.
        for (index, before, allocator) in &moved {
            let advanced = (before.head..allocator.cursor.head)
                .try_for_each(|number| self.drop_released(*index, number))
                .and_then(|()| self.write_allocator(*index, allocator));
            if let Err(error) = advanced {
                // Without the record the addresses are free again. If it can't be removed either, DEL finds it.
                let _ = fs::remove_file(self.record_path(&record.key));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes the record in place of what was there.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StoreError> {
        write_json(&self.record_path(&record.key), record)
    }

    /// Returns the record's addresses and removes it; what is gone already is no error.
    pub(crate) fn release(&self, record: &Record) -> Result<(), StoreError> {
        let _lock = self.lock_network()?;
        let mut walked_anew = Ok(());
        for lease in &record.addresses {
            let Some(set) = lease.set else { continue };
            if self.queue_released(set, lease.address.addr()).is_err() {
                // On a full disk nothing can be queued, but the walk be made to come by the address once more.
                walked_anew = walked_anew.and(self.walk_anew(set));
            }
        }
        let path = self.record_path(&record.key);
        ignore_absence(fs::remove_file(&path)).map_err(failed("remove", &path))?;
        for lease in &record.addresses {
            let path = self.address_path(lease.address.addr());
            // Only while it is this attachment's: a crash may have left the address to somebody else.
            if fs::read_link(&path).is_ok_and(|owner| owner == owner_link(&record.key)) {
                ignore_absence(fs::remove_file(&path)).map_err(failed("remove", &path))?;
            }
        }
        walked_anew
    }

    /// Removes the record of `key` unread, for one that can't be read; its addresses become free.
    ///
    /// Nobody knows any more which queue they belong to, so every set is walked through anew.
    pub(crate) fn discard(&self, key: &AttachmentKey) -> Result<(), StoreError> {
        let _lock = self.lock_network()?;
        // First, for as long as the record is there somebody asks for this again.
        for set in self.allocators()? {
            self.walk_anew(set)?;
        }
        let path = self.record_path(key);
        ignore_absence(fs::remove_file(&path)).map_err(failed("remove", &path))
    }

    /// Removes temporary files that killed processes left; one whose process is alive may still be being written.
    pub(crate) fn sweep(&self) -> Result<(), StoreError> {
        let _lock = self.lock_network()?;
        for directory in [self.boot_dir().join("attachments"), self.boot_dir()] {
            for path in list(&directory)?.into_iter().filter(|path| is_temporary(path) && !is_being_written(path)) {
                ignore_absence(fs::remove_file(&path)).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes the temporary files of one attachment's record; the caller holds its lock, so nobody writes one.
    pub(crate) fn sweep_attachment(&self, key: &AttachmentKey) -> Result<(), StoreError> {
        let record = record_name(key);
        for path in list(&self.boot_dir().join("attachments"))?.iter().filter(|path| is_temporary_of(path, &record)) {
            ignore_absence(fs::remove_file(path)).map_err(failed("remove", path))?;
        }
        Ok(())
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
        for name in [ATTACHMENTS_LOCK, NETWORK_LOCK] {
            let path = self.network_dir.join(name);
            ignore_absence(fs::remove_file(&path)).map_err(failed("remove", &path))?;
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

    fn released_path(&self, set: usize, number: u64) -> PathBuf {
        self.boot_dir().join(format!("released-{set}")).join(number.to_string())
    }

    /// The record that has the address, if one has it.
    fn owner(&self, address: IpAddr) -> Result<Option<Record>, StoreError> {
        let path = self.address_path(address);
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let Some(name) = target.file_name() else { return Ok(None) };
        let record = read_json::<Record>(&self.boot_dir().join("attachments").join(name))?;
        Ok(record.filter(|record| record.holds(address)))
    }

    fn require_free(&self, address: IpAddr) -> Result<(), StoreError> {
        match self.owner(address)? {
            None => Ok(()),
            Some(record) => Err(StoreError::Taken { address, owner: describe(&record) }),
        }
    }

    /// Enters who takes the address, over an entry that was found to be void.
    fn enter_address(&self, address: IpAddr, key: &AttachmentKey) -> Result<(), StoreError> {
        let path = self.address_path(address);
        match symlink(owner_link(key), &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                symlink(owner_link(key), &path).map_err(failed("create", &path))
            }
            other => other.map_err(failed("create", &path)),
        }
    }

    fn queue_released(&self, set: usize, address: IpAddr) -> Result<(), StoreError> {
        let path = self.allocator_path(set);
        let Some(mut allocator) = read_json::<AllocatorFile>(&path)? else { return Ok(()) };
        let entry = self.released_path(set, allocator.cursor.tail);
        if let Some(directory) = entry.parent() {
            fs::create_dir_all(directory).map_err(failed("create", directory))?;
        }
        // A process that was killed before it counted its entry left one at this number.
        ignore_absence(fs::remove_file(&entry)).map_err(failed("remove", &entry))?;
        symlink(address.to_string(), &entry).map_err(failed("create", &entry))?;
        allocator.cursor.tail += 1;
        self.write_allocator(set, &allocator)
    }

    /// Makes the walk through a set start over, past what is in use. Unlike any other way to say so this takes no space.
    fn walk_anew(&self, set: usize) -> Result<(), StoreError> {
        let path = self.allocator_path(set);
        ignore_absence(fs::remove_file(&path)).map_err(failed("remove", &path))
    }

    /// The sets that a walk has begun through.
    fn allocators(&self) -> Result<Vec<usize>, StoreError> {
        let paths = list(&self.boot_dir())?;
        let number = |path: &PathBuf| path.file_stem()?.to_str()?.strip_prefix("allocator-")?.parse().ok();
        Ok(paths.iter().filter_map(number).collect())
    }

    fn drop_released(&self, set: usize, number: u64) -> Result<(), StoreError> {
        let path = self.released_path(set, number);
        ignore_absence(fs::remove_file(&path)).map_err(failed("remove", &path))
    }

    fn allocator_path(&self, set: usize) -> PathBuf {
        self.boot_dir().join(format!("allocator-{set}.json"))
    }

    fn read_allocator(&self, index: usize, set: &RangeSet) -> Result<AllocatorFile, StoreError> {
        let ranges = describe_ranges(set);
        let mut allocator = read_json::<AllocatorFile>(&self.allocator_path(index))?.unwrap_or_else(|| AllocatorFile {
            version: VERSION,
            ranges: ranges.clone(),
            cursor: Cursor::default(),
        });
        if allocator.ranges != ranges {
            allocator.ranges = ranges;
            allocator.cursor.last = None;
        }
        Ok(allocator)
    }

    fn write_allocator(&self, index: usize, allocator: &AllocatorFile) -> Result<(), StoreError> {
        write_json(&self.allocator_path(index), allocator)
    }
}

/// One range set's addresses, asked about in the files.
struct SetLedger<'a> {
    store: &'a Store,
    set: usize,
}

impl Ledger for SetLedger<'_> {
    type Error = StoreError;

    fn is_free(&mut self, address: IpAddr) -> Result<bool, StoreError> {
        match self.store.owner(address) {
            Ok(owner) => Ok(owner.is_none()),
            // Somebody has it, whoever that is.
            Err(StoreError::Corrupt { .. } | StoreError::OtherVersion { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn released(&mut self, number: u64) -> Result<Option<IpAddr>, StoreError> {
        let path = self.store.released_path(self.set, number);
        match fs::read_link(&path) {
            Ok(target) => Ok(target.to_str().and_then(|text| text.parse().ok())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
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

fn owner_link(key: &AttachmentKey) -> PathBuf {
    Path::new("../attachments").join(record_name(key))
}

fn exhausted(index: usize, set: &RangeSet) -> StoreError {
    let size = set.0.iter().fold(0_u128, |sum, range| sum.saturating_add(range.size()));
    StoreError::Exhausted { set: index, ranges: describe_ranges(set), size }
}

fn describe_ranges(set: &RangeSet) -> String {
    let ranges: Vec<String> = set.0.iter().map(|range| format!("{}-{}", range.first, range.last)).collect();
    ranges.join(",")
}

/// Reads a versioned JSON file; `None` if it isn't there.
fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, StoreError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let corrupt = |error: serde_json::Error| StoreError::Corrupt { path: path.to_owned(), detail: error.to_string() };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(corrupt)?;
    if !(OLDEST_VERSION..=VERSION).contains(&version) {
        return Err(StoreError::OtherVersion { path: path.to_owned(), found: version });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(corrupt)
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|error| StoreError::Corrupt { path: path.to_owned(), detail: error.to_string() })?;
    bytes.push(b'\n');
    // A record of another boot is void: surviving this process is enough.
    write_atomic(path, &bytes, 0o600, Durability::Process).map_err(failed("write", path))
}

/// The paths in a directory; none if it isn't there.
fn list(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", directory)(error)),
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed("list", directory))).collect()
}

/// Whether this is a file that `write_atomic` had not yet renamed: `.NAME.PID.N.tmp`.
fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| {
        let name = name.as_encoded_bytes();
        name.starts_with(b".") && name.ends_with(b".tmp")
    })
}

/// Whether this is such a file of the one called `name`.
fn is_temporary_of(path: &Path, name: &str) -> bool {
    let rest = path.file_name().and_then(|found| found.to_str()?.strip_prefix('.')?.strip_prefix(name));
    rest.and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".tmp")?.split_once('.'))
        .is_some_and(|(process, number)| process.parse::<u32>().is_ok() && number.parse::<u64>().is_ok())
}

/// Whether the process that is named in a temporary file's name is alive.
fn is_being_written(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit('.').nth(2).is_some_and(|pid| Path::new("/proc").join(pid).exists())
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}

fn unlocked(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::TimedOut => StoreError::Busy { path: path.to_owned() },
        _ => failed("lock", path)(error),
    }
}

fn ignore_absence(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
