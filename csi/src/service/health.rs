//! The health calls of CSI 1.13.
//!
//! Each call looks anew, so an entry is there exactly as long as its condition. A disk that doesn't answer keeps one
//! thread for each volume and each pool that is asked about; the caller is answered after [`PATIENCE`].

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use keelson_host::{HostRoot, Problem, error_chain};
use keelson_proto::csi::v1::{
    ControllerListVolumeHealthRequest, ControllerListVolumeHealthResponse, VolumeHealth,
    node_get_storage_health_response::StorageBackendHealth, volume_health::VolumeHealthEntry,
};
use tokio::time::Instant;

use super::{Service, State, call::Call, request::required};
use crate::{
    error::QueryError,
    kernel::{
        Presence, filesystem, subvolume,
        superblock::{self, Signature},
    },
    policy::{
        Access, Capability, Content, ContentKind, FilesystemType, Page, PoolFault, TargetPath, VolumeFault, VolumeId,
        is_full, page,
    },
    store::{LookupError, Pool, Room, StoreError, Unavailable, VolumeRecord, content_path},
};

/// How long a disk is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A fault, and what people are told about it.
type Found<T> = (T, String);

/// What is wrong with which volume.
type Abnormal = (VolumeId, Vec<Found<VolumeFault>>);

impl Service {
    /// What is wrong with one volume, also one that could not be staged.
    pub(super) async fn volume_health(&self, id: &str) -> Result<VolumeHealth, QueryError> {
        let id = required("volume_id", id)?.to_owned();
        let asked = id.clone();
        let faults = match self.look(format!("health of {id}"), move |state| faults_of(state, &asked)).await {
            Some(found) => found?,
            None => vec![(VolumeFault::Pool(PoolFault::NotResponding), not_responding("volume", &id))],
        };
        Ok(health(id, faults))
    }

    /// The volumes that something is wrong with.
    pub(super) async fn list_volume_health(
        &self,
        request: ControllerListVolumeHealthRequest,
    ) -> Result<ControllerListVolumeHealthResponse, QueryError> {
        let Ok(max_entries) = usize::try_from(request.max_entries) else {
            return Err(Problem::new("max_entries", request.max_entries, "is negative", "use 0 for no limit").into());
        };
        let mut all = Vec::new();
        for index in 0..self.state().pools.iter().count() {
            let key = format!("the health of all volumes of pool {index}");
            let found = self.look(key, move |state| state.pools.iter().nth(index).map(|pool| abnormal(state, pool)));
            match found.await {
                Some(Some(found)) => all.extend(found?),
                Some(None) => {}
                None => return Err(QueryError::NotResponding { pool: self.pool_name(index) }),
            }
        }
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        let after = |start: Option<&VolumeId>, count: usize| {
            let comes_after = |(id, _): &Abnormal| start.is_none_or(|start| id > start);
            Ok::<_, QueryError>(all.into_iter().filter(comes_after).take(count).collect::<Vec<_>>())
        };
        let Page { entries, next_token } = page(&request.starting_token, max_entries, after, |(id, _)| id.to_string())?;
        let entries = entries.into_iter().map(|(id, faults)| health(id.to_string(), faults)).collect();
        Ok(ControllerListVolumeHealthResponse { entries, next_token })
    }

    /// What is wrong with the pools.
    pub(super) async fn storage_health(&self) -> Vec<StorageBackendHealth> {
        let count = self.state().pools.iter().count();
        // All at once, so that one disk that hangs doesn't add its wait to the next one's.
        let looks: Vec<_> = (0..count)
            .map(|index| {
                let key = format!("the health of pool {index}");
                self.look(key, move |state| state.pools.iter().nth(index).and_then(|pool| fault_of_pool(state, pool)))
            })
            .collect();
        let mut entries: Vec<StorageBackendHealth> = Vec::new();
        for (index, look) in looks.into_iter().enumerate() {
            let hangs = || Some((PoolFault::NotResponding, not_responding("pool", &self.pool_name(index))));
            let Some((fault, detail)) = look.await.unwrap_or_else(hangs) else { continue };
            // Entries differ in status or reason: two pools with the same fault are one entry.
            let entry = fault.entry(detail);
            match entries.iter_mut().find(|other| other.reason == entry.reason) {
                Some(other) => other.message = format!("{}; {}", other.message, entry.message),
                None => entries.push(entry),
            }
        }
        entries
    }

    fn pool_name(&self, index: usize) -> String {
        self.state().pools.iter().nth(index).map(|pool| pool.settings.name.clone()).unwrap_or_default()
    }

    /// Starts `look`; gives what it sees, or none if it does not come to an end, or one before it under the same `key`
    /// didn't.
    fn look<T: Send + 'static, Look: FnOnce(&State) -> T + Send + 'static>(
        &self,
        key: String,
        look: Look,
    ) -> impl Future<Output = Option<T>> + use<T, Look> {
        let (state, call, deadline) = (Arc::clone(&self.0), Call::current(), Instant::now() + PATIENCE);
        let task = self.0.tasks.spawn_blocking(move || {
            Call::within(call, || {
                let _guard = state.in_flight.begin_in_turn(key, "a look at the health").ok()?;
                Some(look(&state))
            })
        });
        async move { tokio::time::timeout_at(deadline, task).await.ok()?.ok()? }
    }
}

fn not_responding(what: &str, name: &str) -> String {
    format!("a look at {what} {name} did not end within {} s: does its disk still answer?", PATIENCE.as_secs())
}

/// One entry for each reason.
fn health(volume_id: String, faults: Vec<Found<VolumeFault>>) -> VolumeHealth {
    let mut health_statuses: Vec<VolumeHealthEntry> = Vec::new();
    for (fault, detail) in faults {
        if health_statuses.iter().all(|other| other.reason != fault.reason()) {
            health_statuses.push(fault.entry(detail));
        }
    }
    VolumeHealth { volume_id, health_statuses }
}

fn faults_of(state: &State, id: &str) -> Result<Vec<Found<VolumeFault>>, QueryError> {
    match state.pools.locate::<VolumeRecord>(id) {
        Ok((pool, record)) => {
            let _turn = pool.enter()?;
            Ok(faults_of_volume(state, pool, &record))
        }
        Err(LookupError::Unavailable(error)) => Ok(vec![unavailable(&error)]),
        Err(LookupError::Damaged { reason, .. }) => Ok(vec![(VolumeFault::RecordDamaged, reason)]),
        Err(error @ LookupError::Unknown { .. }) => Err(error.into()),
    }
}

fn unavailable(error: &Unavailable) -> Found<VolumeFault> {
    (VolumeFault::Pool(error.fault()), error_chain(error))
}

/// The pool's volumes that something is wrong with.
///
/// # Errors
///
/// When the pool is unavailable: a list without its volumes would read as if they were well.
fn abnormal(state: &State, pool: &Pool) -> Result<Vec<Abnormal>, Unavailable> {
    let _turn = pool.enter()?;
    pool.check()?;
    let mut abnormal = Vec::new();
    for record in pool.after::<VolumeRecord>(None, usize::MAX)? {
        let faults = faults_of_volume(state, pool, &record);
        if !faults.is_empty() {
            abnormal.push((record.id.clone(), faults));
        }
    }
    let damaged = pool.damaged()?.into_iter();
    abnormal.extend(
        damaged.filter_map(|(name, reason)| Some((name.parse().ok()?, vec![(VolumeFault::RecordDamaged, reason)]))),
    );
    Ok(abnormal)
}

fn faults_of_volume(state: &State, pool: &Pool, record: &VolumeRecord) -> Vec<Found<VolumeFault>> {
    let kind = record.content.kind();
    let path = content_path(&pool.folder(record), kind);
    let mut faults: Vec<_> = content_fault(record, &path).into_iter().chain(limit_fault(kind, &path)).collect();
    // Without an image nothing can be bound to it; the mounts of before are found by what is recorded of them.
    if let Err(error) = use_faults(state, record, &path, kind, &mut faults) {
        faults.push((VolumeFault::ImageUnreadable, error));
    }
    faults
}

/// What is wrong with its image or directory.
fn content_fault(record: &VolumeRecord, path: &Path) -> Option<Found<VolumeFault>> {
    let unreadable = |error: io::Error| (VolumeFault::ImageUnreadable, format!("{}: {error}", path.display()));
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some((VolumeFault::ImageMissing, format!("{} is gone; restore it", path.display())));
        }
        Err(error) => return Some(unreadable(error)),
    };
    let is_image = record.content.kind().is_image();
    if is_image && found.len() < record.bytes {
        let (bytes, length) = (record.bytes, found.len());
        return Some((VolumeFault::ImageTruncated, format!("the volume has {bytes} bytes, its image {length}")));
    }
    let Content::Filesystem { filesystem, uuid } = record.content else { return None };
    match fs::File::open(path).and_then(|file| superblock::read(&file)) {
        Ok(Signature::Filesystem(found)) if (found.filesystem, found.uuid) == (filesystem, uuid) => None,
        Ok(_) => {
            let detail = format!("the image doesn't show the {filesystem} filesystem {uuid} any more; restore it");
            Some((VolumeFault::FilesystemLost, detail))
        }
        Err(error) => Some(unreadable(error)),
    }
}

/// Whether a subvolume's limit is no longer one.
fn limit_fault(kind: ContentKind, path: &Path) -> Option<Found<VolumeFault>> {
    if kind != ContentKind::Subvolume {
        return None;
    }
    let nested = fs::File::open(path).and_then(|top| subvolume::count_nested(top).map_err(|error| error.source));
    // What can't be opened is told of already.
    let count = nested.ok().filter(|count| *count > 0)?;
    let detail = format!("{count} subvolumes were made in it, which its size doesn't limit; delete them");
    Some((VolumeFault::LimitEscaped, detail))
}

/// What is wrong with it where it is staged and published.
fn use_faults(
    state: &State,
    record: &VolumeRecord,
    path: &Path,
    kind: ContentKind,
    faults: &mut Vec<Found<VolumeFault>>,
) -> Result<(), String> {
    let root = &state.settings.root;
    let recorded = state.attachments.read(&record.id).map_err(|error| error_chain(&error))?;
    let presence = Presence::read(root, path, kind).map_err(|error| error_chain(&error))?;
    let staged = recorded.staged.as_ref().filter(|staged| matches!(staged.capability.access, Access::Mount { .. }));
    let places = staged.map(|staged| &staged.path).into_iter();
    for place in places.chain(recorded.published.iter().map(|publication| &publication.target)) {
        // After a reboot nothing is mounted any more, and nothing is wrong.
        if presence.is_covered(place) && !presence.is_at(place).map_err(|error| error_chain(&error))? {
            let detail = format!("what is mounted at {place} is no longer the volume's image; unmount it there");
            faults.push((VolumeFault::LoopDeviceLost, detail));
        }
    }
    if let Some(staged) = staged
        && presence.is_at(&staged.path).map_err(|error| error_chain(&error))?
    {
        faults.extend(mount_fault(&staged.path, &staged.capability));
    }
    if let ContentKind::Filesystem(FilesystemType::Ext4) = kind {
        for device in presence.devices() {
            faults.extend(ext4_errors(root, device.number));
        }
    }
    Ok(())
}

/// What is wrong with the filesystem that is mounted at `path`.
fn mount_fault(path: &TargetPath, capability: &Capability) -> Option<Found<VolumeFault>> {
    let shut_down = |error: io::Error| (VolumeFault::FilesystemShutDown, format!("{path}: {error}"));
    let wanted_read_only = capability.is_read_only()
        || matches!(&capability.access, Access::Mount { options, .. } if options.is_read_only());
    // What xfs and btrfs still know by heart they tell; a list of what is there they don't.
    match fs::read_dir(path.as_path()).and_then(|mut entries| entries.next().transpose()) {
        Ok(_) => {}
        Err(error) => return Some(shut_down(error)),
    }
    match filesystem::is_read_only(path.as_path()) {
        Ok(read_only) if read_only && !wanted_read_only => {
            let detail =
                format!("{path} was staged for writing and is read-only now; look at the kernel's log for why");
            Some((VolumeFault::FilesystemReadOnly, detail))
        }
        Ok(_) => None,
        Err(error) => Some(shut_down(error)),
    }
}

/// The errors that ext4 has recorded in its superblock, until a repair takes them back.
fn ext4_errors(root: &HostRoot, number: u32) -> Option<Found<VolumeFault>> {
    // Not mounted: there is no such file.
    let count = fs::read_to_string(root.join(format!("sys/fs/ext4/loop{number}/errors_count"))).ok()?;
    let count: u64 = count.trim().parse().ok().filter(|count| *count > 0)?;
    Some((VolumeFault::FilesystemErrors, format!("ext4 has recorded {count} errors; unmount the volume and repair it")))
}

fn fault_of_pool(state: &State, pool: &Pool) -> Option<Found<PoolFault>> {
    try_pool(state, pool).err()
}

/// Uses the pool as a volume would.
fn try_pool(state: &State, pool: &Pool) -> Result<(), Found<PoolFault>> {
    let name = &pool.settings.name;
    let failed = |error: Unavailable| (error.fault(), error_chain(&error));
    let _turn = pool.enter().map_err(failed)?;
    pool.check_writable().map_err(failed)?;
    pool.touch().map_err(|error| (of_error(&error), format!("pool {name} can't be written to: {error}")))?;
    let room = state.pools.room(pool).map_err(|error| (of_store_error(&error), error_chain(&error)))?;
    let Room { free, reserve, .. } = room;
    if !is_full(free, reserve) {
        return Ok(());
    }
    let detail = format!("pool {name} has {free} bytes free; {reserve} are to be kept free: who else writes there?");
    Err((PoolFault::Full, detail))
}

fn of_error(error: &io::Error) -> PoolFault {
    match error.raw_os_error() {
        Some(libc::EROFS) => PoolFault::ReadOnly,
        Some(libc::ENOSPC | libc::EDQUOT) => PoolFault::Full,
        _ => PoolFault::IoErrors,
    }
}

fn of_store_error(error: &StoreError) -> PoolFault {
    match error {
        StoreError::Io { source, .. } => of_error(source),
        StoreError::Record(_) => PoolFault::IoErrors,
        StoreError::Unavailable(error) => error.fault(),
    }
}
