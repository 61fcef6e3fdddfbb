//! Giving addresses to attachments and taking them back.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    Lease, Record, Store, StoreError, VERSION, describe,
    file::{failed, list, read_json, read_link, remove, write_json},
    record_name,
};
use crate::{
    calls,
    config::{invocation::AttachmentKey, network::Attachment, range::RangeSet},
    policy::allocate::{Cursor, Ledger, Standing, pick},
};

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

/// What addresses an attachment is to get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// One address from each.
    pub(crate) sets: &'a [RangeSet],
    /// Addresses asked for; each is in one of `sets`, no two in the same.
    pub(crate) wanted: &'a [IpAddr],
    /// How long a released address is kept back while there are others.
    pub(crate) cooldown: Duration,
}

impl<'a> From<&'a Attachment> for Request<'a> {
    fn from(attachment: &'a Attachment) -> Self {
        Self { sets: &attachment.sets, wanted: &attachment.requested, cooldown: attachment.cooldown }
    }
}

impl Store {
    /// Chooses the addresses and writes the record with them.
    ///
    /// The caller holds the attachment's lock, and there is no record of the attachment yet. After an error the record
    /// is as it was, and nothing is taken.
    pub(crate) fn reserve(&self, record: &mut Record, request: &Request<'_>) -> Result<(), StoreError> {
        let _phase = calls::phase("store");
        let _lock = self.lock_network()?;
        let (mut leases, mut moved) = (Vec::new(), Vec::new());
        for (index, set) in request.sets.iter().enumerate() {
            let mut allocator = self.allocator(index)?;
            let ranges = describe_ranges(set);
            if allocator.ranges != ranges {
                allocator.ranges = ranges;
                allocator.cursor.last = None;
            }
            let before = allocator.cursor.clone();
            let wanted = request.wanted.iter().copied().find(|address| set.range_of(*address).is_some());
            let address = match wanted {
                Some(address) => {
                    self.require_free(address)?;
                    address
                }
                None => pick(set, &mut allocator.cursor, &mut SetLedger::new(self, index, request.cooldown))?
                    .ok_or_else(|| exhausted(index, set))?,
            };
            let Some(range) = set.range_of(address) else { return Err(exhausted(index, set)) };
            // The prefix is the range's subnet's, so it fits the address.
            let Ok(lease) = ipnet::IpNet::new(address, range.subnet.prefix_len()) else {
                return Err(exhausted(index, set));
            };
            leases.push(Lease { address: lease, gateway: Some(range.gateway), set: Some(index) });
            if allocator.cursor != before {
                moved.push((index, before, allocator));
            }
        }
        for lease in &leases {
            self.enter(lease.address.addr(), &owner_link(&record.key))?;
        }
        let reserved = Record { addresses: leases, ..record.clone() };
        self.write(&reserved)?;
        // From here on the addresses are taken; a cursor that stays behind is caught up by skipping them.
        for (index, before, allocator) in &moved {
            let advanced = (before.head..allocator.cursor.head)
                .try_for_each(|number| remove(&self.released_path(*index, number)))
                .and_then(|()| write_json(&self.allocator_path(*index), allocator));
            if let Err(error) = advanced {
                // Without the record the addresses are free again. If it can't be removed either, DEL finds it.
                let _ = remove(&self.record_path(&record.key));
                return Err(error);
            }
        }
        *record = reserved;
        Ok(())
    }

    /// Returns the record's addresses and removes it; what is gone already is no error.
    pub(crate) fn release(&self, record: &Record) -> Result<(), StoreError> {
        let _phase = calls::phase("store");
        let _lock = self.lock_network()?;
        let mut queued = Vec::new();
        let mut walked_anew = Ok(());
        for lease in &record.addresses {
            let (Some(set), address) = (lease.set, lease.address.addr()) else { continue };
            // Only what is this attachment's: a damaged record may list somebody else's.
            if read_link(&self.address_path(address)).ok().flatten() != Some(owner_link(&record.key)) {
                continue;
            }
            let entry = self.queue_released(set, address);
            if entry.is_err() {
                // On a full disk nothing can be queued, but the walk be made to come by the address once more.
                walked_anew = walked_anew.and(self.walk_anew(set));
            }
            queued.push((address, entry.ok()));
        }
        remove(&self.record_path(&record.key))?;
        for (address, entry) in queued {
            match entry {
                // From now on the address cools. If that can't be noted, it is merely free.
                Some(entry) if self.enter(address, &entry).is_ok() => {}
                _ => remove(&self.address_path(address))?,
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
        for path in list(&self.boot_dir())? {
            if path.file_stem().and_then(|stem| stem.to_str()?.strip_prefix("allocator-")).is_some() {
                remove(&path)?;
            }
        }
        remove(&self.record_path(key))
    }

    /// Whether the set at `index` has nothing to give, as far as that can be told without a look at any address.
    pub(crate) fn is_exhausted(&self, index: usize, set: &RangeSet) -> bool {
        matches!(
            read_json::<AllocatorFile>(&self.allocator_path(index)),
            Ok(Some(allocator)) if allocator.ranges == describe_ranges(set) && allocator.cursor.is_exhausted(set)
        )
    }

    /// Writes the record of an attachment that has its addresses already, from somebody else; with `dry_run` it only
    /// finds out whether it could.
    ///
    /// The caller holds the attachment's lock, and there is no record of the attachment yet.
    pub(crate) fn adopt(&self, record: &Record, dry_run: bool) -> Result<(), StoreError> {
        let _lock = if dry_run { None } else { Some(self.lock_network()?) };
        for lease in &record.addresses {
            self.require_free(lease.address.addr())?;
        }
        if dry_run {
            return Ok(());
        }
        for lease in &record.addresses {
            self.enter(lease.address.addr(), &owner_link(&record.key))?;
        }
        self.write(record)
    }

    /// Who has the address: the attachment that its entry names, if that has a record which lists it.
    fn owner(&self, address: IpAddr) -> Result<Owner, StoreError> {
        let Some(target) = read_link(&self.address_path(address))? else { return Ok(Owner::Nobody) };
        let Some(name) = target.file_name() else { return Ok(Owner::Nobody) };
        if !target.starts_with(ATTACHMENTS) {
            return Ok(Owner::Queue(target));
        }
        let path = self.boot_dir().join("attachments").join(name);
        let record = match read_json::<Record>(&path) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(Owner::Nobody),
            // Somebody has it, whoever that is.
            Err(error @ (StoreError::Corrupt { .. } | StoreError::OtherVersion { .. })) => {
                return Ok(Owner::Unknown(error));
            }
            Err(error) => return Err(error),
        };
        if record.holds(address) {
            return Ok(Owner::Attachment(Box::new(record)));
        }
        // A call was killed between entry and record, and the next one took other addresses: the record has those. One
        // that doesn't have what it lists was altered, and may well have this one.
        let is_whole = |lease: &Lease| {
            read_link(&self.address_path(lease.address.addr())).ok().flatten().as_ref() == Some(&target)
        };
        if record.addresses.iter().all(is_whole) {
            return Ok(Owner::Nobody);
        }
        let detail = "it lists addresses that were not given to it".to_owned();
        Ok(Owner::Unknown(StoreError::Corrupt { path, detail }))
    }

    fn require_free(&self, address: IpAddr) -> Result<(), StoreError> {
        match self.owner(address)? {
            Owner::Nobody | Owner::Queue(_) => Ok(()),
            Owner::Attachment(record) => Err(StoreError::Taken { address, owner: describe(&record), key: record.key }),
            Owner::Unknown(error) => Err(error),
        }
    }

    /// Enters who has the address, or where in the queue it is, over an entry that means nothing any more.
    fn enter(&self, address: IpAddr, target: &Path) -> Result<(), StoreError> {
        let path = self.address_path(address);
        if let Err(error) = symlink(target, &path) {
            if error.kind() != std::io::ErrorKind::AlreadyExists {
                return Err(failed("create", &path)(error));
            }
            remove(&path)?;
            symlink(target, &path).map_err(failed("create", &path))?;
        }
        Ok(())
    }

    /// Puts an address at the queue's end; gives what its entry in `addresses` is to say.
    fn queue_released(&self, set: usize, address: IpAddr) -> Result<PathBuf, StoreError> {
        let mut allocator = self.allocator(set)?;
        let entry = self.released_path(set, allocator.cursor.tail);
        if let Some(directory) = entry.parent() {
            fs::create_dir_all(directory).map_err(failed("create", directory))?;
        }
        // A process that was killed before it counted its entry left one at this number.
        remove(&entry)?;
        symlink(address.to_string(), &entry).map_err(failed("create", &entry))?;
        let number = allocator.cursor.tail;
        allocator.cursor.tail += 1;
        write_json(&self.allocator_path(set), &allocator)?;
        Ok(released_link(set, number))
    }

    /// Makes the walk through a set start over, past what is in use. Unlike any other way to say so this takes no space.
    fn walk_anew(&self, set: usize) -> Result<(), StoreError> {
        remove(&self.allocator_path(set))
    }

    /// Where the allocation from a set stands. If that can't be read the walk starts over, and the queue's ends are
    /// found by its entries.
    fn allocator(&self, set: usize) -> Result<AllocatorFile, StoreError> {
        match read_json::<AllocatorFile>(&self.allocator_path(set)) {
            Ok(Some(allocator)) if allocator.cursor.is_plausible() => Ok(allocator),
            Ok(_) | Err(StoreError::Corrupt { .. } | StoreError::OtherVersion { .. }) => {
                let entries = list(&self.boot_dir().join(released_name(set)))?;
                let numbers = entries.iter().filter_map(|path| path.file_name()?.to_str()?.parse::<u64>().ok());
                let (head, last) =
                    numbers.fold((u64::MAX, 0), |(head, last), number| (head.min(number), last.max(number)));
                let cursor = Cursor { last: None, head, tail: last.saturating_add(1) };
                let cursor = if cursor.is_plausible() { cursor } else { Cursor::default() };
                // No config's ranges.
                Ok(AllocatorFile { version: VERSION, ranges: String::new(), cursor })
            }
            Err(error) => Err(error),
        }
    }

    fn allocator_path(&self, set: usize) -> PathBuf {
        self.boot_dir().join(format!("allocator-{set}.json"))
    }

    fn released_path(&self, set: usize, number: u64) -> PathBuf {
        self.boot_dir().join(released_name(set)).join(number.to_string())
    }
}

/// What an address's entry leads to.
enum Owner {
    Nobody,
    Attachment(Box<Record>),
    /// A record that can't be relied upon, and why.
    Unknown(StoreError),
    /// Nobody since it was released; the entry of a queue.
    Queue(PathBuf),
}

/// One range set's addresses, asked about in the files.
struct SetLedger<'a> {
    store: &'a Store,
    set: usize,
    now: Duration,
    cooldown: Duration,
}

impl<'a> SetLedger<'a> {
    fn new(store: &'a Store, set: usize, cooldown: Duration) -> Self {
        // A clock before 1970 is told as 1970.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { store, set, now, cooldown }
    }

    /// When an address was released: its entry is as old as that.
    fn released_at(&self, address: IpAddr) -> Duration {
        let entry = fs::symlink_metadata(self.store.address_path(address));
        entry.map_or(Duration::ZERO, |entry| {
            // Both are positive from 1970 on.
            Duration::new(entry.mtime().try_into().unwrap_or(0), entry.mtime_nsec().try_into().unwrap_or(0))
        })
    }
}

impl Ledger for SetLedger<'_> {
    type Error = StoreError;

    fn standing(&mut self, address: IpAddr) -> Result<Standing, StoreError> {
        Ok(match self.store.owner(address)? {
            Owner::Nobody => Standing::Free,
            Owner::Attachment(_) | Owner::Unknown(_) => Standing::Used,
            Owner::Queue(target) => {
                let number = target.file_name().and_then(|number| number.to_str()?.parse().ok());
                // In the queue of a set that the address was in once it isn't found any more.
                let entry = number.filter(|number| target == released_link(self.set, *number)).unwrap_or(u64::MAX);
                let since = self.released_at(address);
                Standing::Released { entry, since, cooling: self.now.saturating_sub(since) < self.cooldown }
            }
        })
    }

    fn released(&mut self, number: u64) -> Result<Option<IpAddr>, StoreError> {
        let target = read_link(&self.store.released_path(self.set, number))?;
        Ok(target.and_then(|target| target.to_str()?.parse().ok()))
    }
}

/// What the entry of an address in use begins with.
const ATTACHMENTS: &str = "../attachments";

fn owner_link(key: &AttachmentKey) -> PathBuf {
    Path::new(ATTACHMENTS).join(record_name(key))
}

fn released_name(set: usize) -> String {
    format!("released-{set}")
}

fn released_link(set: usize, number: u64) -> PathBuf {
    Path::new("..").join(released_name(set)).join(number.to_string())
}

pub(super) fn exhausted(index: usize, set: &RangeSet) -> StoreError {
    StoreError::Exhausted { set: index, ranges: describe_ranges(set), size: set.size(), stale: 0 }
}

pub(super) fn describe_ranges(set: &RangeSet) -> String {
    let ranges: Vec<String> = set.0.iter().map(|range| format!("{}-{}", range.first, range.last)).collect();
    ranges.join(",")
}
