//! The reservations of the reference plugin host-local, read and written as it reads and writes them, so that both can
//! work on one directory at the same time. docs/formats-network.md describes the files.
//!
//! Invariants:
//! - Nothing is looked at or changed without the lock that host-local holds: flock(2) on the file `lock`.
//! - A reservation appears with its content: it's written and synced under another name, then linked (link(2) fails if
//!   the name is taken). host-local makes an empty file and then writes; killed in between it leaves one that is
//!   nobody's. Under the lock no file is being written, so an empty one is such a remainder.
//! - Whatever else lies there (a link, a FIFO, a long file, another content) is somebody's that we don't know: it's
//!   never changed, and its address is in use.

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
};

use super::{
    NetworkLock, StoreError,
    addresses::{describe_ranges, exhausted},
    file::{failed, ignore_absence},
    unlocked,
};
use crate::config::{
    invocation::AttachmentKey,
    names::{identifier_fault, interface_name_fault},
    range::RangeSet,
};

/// What host-local writes between a container's id and the interface.
const SEPARATOR: &str = "\r\n";

const LOCK: &str = "lock";

/// The file that holds the address given last from the range set with the number that follows.
const LAST_PREFIX: &str = "last_reserved_ip.";

/// No id and interface are longer; what is longer isn't a reservation.
const LONGEST_CONTENT: u64 = 1024;

/// Who holds an address, by the content of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Attachment(AttachmentKey),
    /// Written before host-local 0.8.0, which then didn't know the interface.
    Container(String),
    /// The file is empty.
    Nobody,
    /// Why nobody can be named.
    Unknown(String),
}

impl Holder {
    /// Reads the content of a reservation, white space around it ignored.
    pub(crate) fn parse(content: &[u8]) -> Self {
        let Ok(text) = std::str::from_utf8(content) else { return Self::Unknown("is not UTF-8".to_owned()) };
        let text = text.trim();
        if text.is_empty() {
            return Self::Nobody;
        }
        let (container_id, ifname) = text.split_once(SEPARATOR).unwrap_or((text, ""));
        if let Some(wrong) = identifier_fault(container_id) {
            return Self::Unknown(format!("the container's id {wrong}"));
        }
        if ifname.is_empty() {
            return Self::Container(container_id.to_owned());
        }
        match interface_name_fault(ifname) {
            Some(wrong) => Self::Unknown(format!("the interface's name {wrong}")),
            None => {
                Self::Attachment(AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
            }
        }
    }

    /// Whether a DEL of `key` removes the reservation, one of the older format included.
    fn is(&self, key: &AttachmentKey) -> bool {
        match self {
            Self::Attachment(holder) => holder == key,
            Self::Container(container_id) => *container_id == key.container_id,
            Self::Nobody | Self::Unknown(_) => false,
        }
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Attachment(key) => format!("{} of container {}", key.ifname, key.container_id),
            Self::Container(container_id) => format!("container {container_id}"),
            Self::Nobody => "nobody: its file is empty".to_owned(),
            Self::Unknown(why) => format!("somebody unknown: {why}"),
        }
    }
}

/// A file of the directory that may be a reservation.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    path: PathBuf,
    /// The name of the file; `None` for one that has no address yet, which a killed call left.
    pub(crate) address: Option<IpAddr>,
    pub(crate) holder: Holder,
}

/// A network's directory, locked, with what was in it.
#[derive(Debug)]
pub(crate) struct Reservations {
    directory: PathBuf,
    found: Vec<Reservation>,
    _lock: NetworkLock,
}

/// The content of reservations to come: written, but of no address yet. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Draft {
    key: AttachmentKey,
    path: PathBuf,
}

impl Draft {
    /// Writes what the reservations of `key` in `directory` will hold; makes the directory if it's missing.
    ///
    /// Without the lock: for what takes time, syncing it, nobody has to wait.
    pub(crate) fn write(directory: &Path, key: &AttachmentKey) -> Result<Self, StoreError> {
        create(directory)?;
        let path = directory.join(format!(".{}@{}.{}.tmp", key.container_id, key.ifname, process::id()));
        ignore_absence(fs::remove_file(&path)).map_err(failed("remove", &path))?;
        let draft = Self { key: key.clone(), path };
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&draft.path)?;
            file.write_all(format!("{}{SEPARATOR}{}", key.container_id, key.ifname).as_bytes())?;
            file.sync_data()
        };
        write().map_err(failed("write", &draft.path))?;
        Ok(draft)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // One that stays is removed by the DEL of its attachment, ours or host-local's: they go by content.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the directory if it's missing.
pub(crate) fn create(directory: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(directory).map_err(failed("create", directory))
}

/// Waits for the lock and reads all reservations; `None` if the network has never been used on this node.
pub(crate) fn open(directory: &Path) -> Result<Option<Reservations>, StoreError> {
    if directory.is_dir() { lock(directory).map(Some) } else { Ok(None) }
}

/// Waits for the lock and reads all reservations in a directory that is there.
pub(crate) fn lock(directory: &Path) -> Result<Reservations, StoreError> {
    let path = directory.join(LOCK);
    let lock = NetworkLock::acquire(&path, super::lock::LIMIT).map_err(unlocked(&path))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        let name = entry.file_name();
        if name == LOCK || name.as_encoded_bytes().starts_with(LAST_PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(failed("inspect", &path))?;
        let address = name.to_str().and_then(|name| name.parse().ok());
        let holder = if let Some(key) = name.to_str().and_then(key_of_draft) {
            // By its name, for a call may have been killed before it wrote.
            Holder::Attachment(key)
        } else if kind.is_file() {
            match read_short(&path) {
                Ok(content) if content.len() as u64 > LONGEST_CONTENT => Holder::Unknown("is too long".to_owned()),
                Ok(content) => Holder::parse(&content),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Holder::Unknown(format!("can't be read ({error})")),
            }
        } else {
            Holder::Unknown("is no regular file".to_owned())
        };
        found.push(Reservation { path, address, holder });
    }
    Ok(Reservations { directory: directory.to_owned(), found, _lock: lock })
}

/// Whose draft is called so: `.<id>@<interface>.<pid>.tmp`.
fn key_of_draft(name: &str) -> Option<AttachmentKey> {
    let (rest, process) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (container_id, ifname) = rest.split_once('@').filter(|_| process.parse::<u32>().is_ok())?;
    Some(AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

/// The content of a file, but not more than tells that it's too long. What a name leads to may change after it was
/// listed: no link is followed, and no FIFO's writer waited for.
fn read_short(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let mut content = Vec::new();
    file.take(LONGEST_CONTENT + 1).read_to_end(&mut content)?;
    Ok(content)
}

impl Reservations {
    /// The files that have the name of an address.
    pub(crate) fn of_addresses(&self) -> impl Iterator<Item = (IpAddr, &Reservation)> {
        self.found.iter().filter_map(|reservation| Some((reservation.address?, reservation)))
    }

    /// Who holds the address, if there is a file of it.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<&Holder> {
        self.of_addresses().find(|(found, _)| *found == address).map(|(_, reservation)| &reservation.holder)
    }

    /// Whether a DEL of `key` releases the address.
    pub(crate) fn is_held_by(&self, address: IpAddr, key: &AttachmentKey) -> bool {
        self.holder(address).is_some_and(|holder| holder.is(key))
    }

    /// Whether a DEL of `key` releases an address.
    pub(crate) fn holds(&self, key: &AttachmentKey) -> bool {
        self.of_addresses().any(|(_, reservation)| reservation.holder.is(key))
    }

    /// Reserves an address of each set, those of `requested` where given; all or none.
    pub(crate) fn reserve(
        &self,
        draft: &Draft,
        sets: &[RangeSet],
        requested: &[IpAddr],
    ) -> Result<Vec<IpAddr>, StoreError> {
        for (index, set) in sets.iter().enumerate() {
            let own = self
                .of_addresses()
                .find(|(address, reservation)| set.range_of(*address).is_some() && reservation.holder.is(&draft.key));
            if let Some((address, _)) = own {
                return Err(StoreError::Duplicate {
                    set: index,
                    address,
                    container_id: draft.key.container_id.clone(),
                });
            }
        }
        let mut given = Vec::new();
        let all = sets.iter().enumerate().try_for_each(|(index, set)| {
            let wanted = requested.iter().copied().find(|address| set.range_of(*address).is_some());
            let address = match wanted {
                Some(address) => self.reserve_wanted(draft, address, index, set)?,
                None => self.reserve_next(draft, index, set)?,
            };
            given.push(address);
            self.write_last(index, address)
        });
        match all {
            Ok(()) => Ok(given),
            Err(error) => {
                for address in given {
                    // What stays goes with the DEL that the runtime owes after a failed ADD.
                    let _ = fs::remove_file(self.path(address));
                }
                Err(error)
            }
        }
    }

    fn reserve_wanted(
        &self,
        draft: &Draft,
        address: IpAddr,
        index: usize,
        set: &RangeSet,
    ) -> Result<IpAddr, StoreError> {
        if self.take(draft, address)? {
            return Ok(address);
        }
        let owner = self.holder(address).map_or_else(|| "somebody".to_owned(), Holder::describe);
        Err(StoreError::Reserved { set: index, ranges: describe_ranges(set), address, owner })
    }

    /// Round robin, as host-local does it: the address after the one given last, and so on once around.
    fn reserve_next(&self, draft: &Draft, index: usize, set: &RangeSet) -> Result<IpAddr, StoreError> {
        let taken: HashSet<IpAddr> = self.of_addresses().map(|(address, _)| address).collect();
        let mut start = None;
        let mut last = self.read_last(index);
        while let Some(candidate) = set.after(last) {
            if start == Some(candidate) {
                break;
            }
            start = start.or(Some(candidate));
            last = Some(candidate);
            if !taken.contains(&candidate) && self.take(draft, candidate)? {
                return Ok(candidate);
            }
        }
        // Only now what a killed host-local left: as long as there are others, it can wait for GC.
        for (address, reservation) in self.of_addresses() {
            if reservation.holder == Holder::Nobody && set.range_of(address).is_some() && self.take(draft, address)? {
                return Ok(address);
            }
        }
        Err(exhausted(index, set))
    }

    /// Reserves the address, over an empty file; false if it's in use.
    pub(crate) fn take(&self, draft: &Draft, address: IpAddr) -> Result<bool, StoreError> {
        match self.of_addresses().find(|(found, _)| *found == address) {
            None => {}
            Some((_, Reservation { path, holder: Holder::Nobody, .. })) => {
                ignore_absence(fs::remove_file(path)).map_err(failed("remove", path))?;
            }
            Some(_) => return Ok(false),
        }
        self.link(draft, address)
    }

    /// Reserves the address, whoever held it.
    pub(crate) fn replace(&self, draft: &Draft, address: IpAddr) -> Result<(), StoreError> {
        self.remove(address)?;
        self.link(draft, address).map(drop)
    }

    fn link(&self, draft: &Draft, address: IpAddr) -> Result<bool, StoreError> {
        let path = self.path(address);
        match fs::hard_link(&draft.path, &path) {
            // By somebody who doesn't know the lock.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|()| true).map_err(failed("create", &path)),
        }
    }

    /// Removes what the attachment holds, drafts included; nothing to remove is no error.
    pub(crate) fn release(&self, key: &AttachmentKey) -> Result<(), StoreError> {
        let exact = |holder: &Holder| matches!(holder, Holder::Attachment(found) if found == key);
        if self.of_addresses().any(|(_, reservation)| exact(&reservation.holder)) {
            // host-local's rule: the older format counts only where there is none of the newer.
            self.remove_where(|reservation| exact(&reservation.holder))
        } else {
            self.remove_where(|reservation| reservation.holder.is(key))
        }
    }

    /// Removes what no attachment of `valid` holds, and empty files; what we don't understand stays.
    pub(crate) fn retain(&self, valid: &[AttachmentKey]) -> Result<(), StoreError> {
        self.remove_where(|reservation| match &reservation.holder {
            Holder::Nobody => reservation.address.is_some(),
            Holder::Unknown(_) => false,
            holder => !valid.iter().any(|key| holder.is(key)),
        })
    }

    /// Removes the reservation of one address, whoever holds it.
    pub(crate) fn remove(&self, address: IpAddr) -> Result<(), StoreError> {
        self.remove_where(|reservation| reservation.address == Some(address))
    }

    fn remove_where(&self, doomed: impl Fn(&Reservation) -> bool) -> Result<(), StoreError> {
        let mut result = Ok(());
        for Reservation { path, .. } in self.found.iter().filter(|reservation| doomed(reservation)) {
            result = result.and(ignore_absence(fs::remove_file(path)).map_err(failed("remove", path)));
        }
        result
    }

    /// The address given last from a set; what isn't one starts the round anew.
    pub(crate) fn read_last(&self, set: usize) -> Option<IpAddr> {
        let content = read_short(&self.last_path(set)).ok()?;
        std::str::from_utf8(&content).ok()?.trim().parse().ok()
    }

    /// Notes the address given last from a set, in place as host-local does: torn, it only starts the round anew.
    pub(crate) fn write_last(&self, set: usize, address: IpAddr) -> Result<(), StoreError> {
        let path = self.last_path(set);
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let write = || options.open(&path)?.write_all(address.to_string().as_bytes());
        write().map_err(failed("write", &path))
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.directory.join(format!("{LAST_PREFIX}{set}"))
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.directory.join(address.to_string())
    }
}
