//! CreateSnapshot, DeleteSnapshot, GetSnapshot.

use std::{
    fs::File,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use keelson_host::Problem;
use keelson_proto::csi::v1::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, GetSnapshotRequest,
    GetSnapshotResponse, Snapshot,
};
use prost_types::Timestamp;

use super::{
    Guard, Pending, Service, State,
    origin::{self, Origin, OriginError},
    request::required,
};
use crate::{
    error::QueryError,
    kernel::content,
    policy::{SnapshotId, TOPOLOGY_KEY, admits, charge, check_map, check_snapshot_parameters, names, segments},
    store::{
        Kept, Lacking, LookupError, Pace, Reservation, SnapshotRecord, StoreError, Unavailable, VolumeRecord,
        content_path,
    },
};

/// Why no snapshot was made or deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("{0}")]
    Invalid(Problem),
    #[error(transparent)]
    Pending(#[from] Pending),
    #[error(
        "snapshots can only be made on this node, {TOPOLOGY_KEY}={node}, which accessibility_requirements rule out"
    )]
    Topology { node: String },
    #[error("{what} {name:?} exists, but {difference}")]
    Exists { what: &'static str, name: String, difference: String },
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Lacking(#[from] Lacking),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("snapshot {id} belongs to group snapshot {group}; delete that")]
    Member { id: String, group: String },
}

impl From<Problem> for SnapshotError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

pub(super) fn create(state: &State, request: &CreateSnapshotRequest) -> Result<CreateSnapshotResponse, SnapshotError> {
    const OPERATION: &str = "CreateSnapshot";
    let node = &state.settings.node_name;
    let name = name(&request.name)?;
    let volume = required("source_volume_id", &request.source_volume_id)?;
    check_map("secrets", &request.secrets)?;
    check_snapshot_parameters(&request.parameters)?;
    let on_this_node = admits(request.accessibility_requirements.as_ref(), node);
    let _name = state.in_flight.begin(format!("snapshot {name:?}"), OPERATION)?;
    // Also of a volume that is gone by now.
    if let Some((_guard, existing)) = find::<SnapshotRecord>(state, volume, name, OPERATION)? {
        let difference = if existing.volume.as_str() != volume {
            format!("it is of volume {}", existing.volume)
        } else if !on_this_node {
            format!("on node {node}, which accessibility_requirements rule out")
        } else {
            return Ok(CreateSnapshotResponse { snapshot: Some(describe(&existing, node)) });
        };
        return Err(SnapshotError::Exists { what: SnapshotRecord::WHAT, name: name.to_owned(), difference });
    }
    if !on_this_node {
        return Err(SnapshotError::Topology { node: node.clone() });
    }
    let origin = Origin::volume(state, volume, OPERATION)?;
    let pool = origin.pool;
    let _turn = pool.enter()?;
    pool.check_writable()?;
    let mut space = Space::reserve(state, &origin)?;
    let id = SnapshotId::generate();
    let draft = pool.build(id.as_str())?;
    let cut = Cut::make(&origin, draft.folder())?;
    space.keep(state, &origin, cut.held)?;
    let image = cut.image;
    let record = SnapshotRecord {
        id,
        name: name.to_owned(),
        volume: origin.volume.clone(),
        bytes: origin.bytes,
        held: cut.held,
        created: cut.created,
        content: origin.content.clone(),
        family: origin.family.clone(),
        template_bytes: origin.template_bytes,
        group: None,
    };
    let record = draft.commit(record, image.as_ref())?;
    let (pool, held) = (&pool.settings.name, record.held);
    tracing::info!(snapshot = %record.id, name, volume, pool, held, "snapshot created");
    Ok(CreateSnapshotResponse { snapshot: Some(describe(&record, node)) })
}

pub(super) fn delete(state: &State, request: &DeleteSnapshotRequest) -> Result<DeleteSnapshotResponse, SnapshotError> {
    let id = required("snapshot_id", &request.snapshot_id)?;
    check_map("secrets", &request.secrets)?;
    // Whoever makes a volume of it shares it meanwhile.
    let _guard = state.in_flight.begin(id, "DeleteSnapshot")?;
    let (pool, record) = match state.pools.locate::<SnapshotRecord>(id) {
        Ok(found) => found,
        // Gone is what was asked for. A missing disk is another error, and so is never taken for this one.
        Err(LookupError::Unknown { .. }) => return Ok(DeleteSnapshotResponse {}),
        Err(error) => return Err(error.into()),
    };
    if let Some(group) = &record.group {
        return Err(SnapshotError::Member { id: id.to_owned(), group: group.to_string() });
    }
    let _turn = pool.enter()?;
    pool.remove(&*record)?;
    tracing::info!(snapshot = id, name = record.name, pool = pool.settings.name, "snapshot deleted");
    Ok(DeleteSnapshotResponse {})
}

pub(super) fn get(state: &State, request: &GetSnapshotRequest) -> Result<GetSnapshotResponse, QueryError> {
    let id = required("snapshot_id", &request.snapshot_id)?;
    check_map("secrets", &request.secrets)?;
    let _guard = state.in_flight.begin_in_turn(format!("a look at {id}"), "GetSnapshot")?;
    let (_, record) = state.pools.locate::<SnapshotRecord>(id)?;
    Ok(GetSnapshotResponse { snapshot: Some(describe(&record, &state.settings.node_name)) })
}

/// The name of a snapshot or group to be made. What holds for a volume's holds for it.
pub(super) fn name(name: &str) -> Result<&str, Problem> {
    let name = required("name", name)?;
    names::check_volume_name(name).map_err(|wrong| Problem::new("name", "", wrong, "use printable characters"))?;
    Ok(name)
}

/// What was made before under the wanted name, taken: nobody deletes it while the guard is held. The caller holds the
/// name. The pool of the `volume`, if there is one, must be available.
pub(super) fn find<T: Kept>(
    state: &State,
    volume: &str,
    name: &str,
    operation: &'static str,
) -> Result<Option<(Guard, Arc<T>)>, SnapshotError> {
    let pool = match state.pools.locate::<VolumeRecord>(volume) {
        Ok((pool, _)) => Some(pool),
        Err(LookupError::Unknown { .. } | LookupError::Damaged { .. }) => None,
        Err(error @ LookupError::Unavailable(_)) => return Err(error.into()),
    };
    let Some((pool, found)) = state.pools.find_by_name::<T>(pool, name)? else { return Ok(None) };
    let guard = state.in_flight.begin_shared(found.id().to_string(), operation)?;
    let _turn = pool.enter()?;
    pool.check()?;
    // It may have been deleted before it was taken.
    Ok(pool.find_by_name(name)?.map(|record| (guard, record)))
}

/// A snapshot as the CSI messages describe it.
pub(super) fn describe(record: &SnapshotRecord, node: &str) -> Snapshot {
    Snapshot {
        // Sizes were checked to fit when the volume was made.
        size_bytes: i64::try_from(record.bytes).unwrap_or(i64::MAX),
        snapshot_id: record.id.to_string(),
        source_volume_id: record.volume.to_string(),
        creation_time: Some(timestamp(record.created)),
        ready_to_use: true,
        group_snapshot_id: record.group.as_ref().map(ToString::to_string).unwrap_or_default(),
        accessible_topology: vec![segments(node)],
    }
}

/// From nanoseconds since 1970.
pub(super) fn timestamp(nanoseconds: u64) -> Timestamp {
    let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    Timestamp { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: i32::try_from(rest).unwrap_or_default() }
}

/// The time now, in nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Room for a snapshot, until it counts itself: what its volume takes at the cut. That stays when the volume is
/// overwritten, which takes as much again.
pub(super) struct Space {
    taken: u64,
    reservations: Vec<Reservation>,
}

impl Space {
    /// Keeps what it comes to as far as can be told before the cut.
    pub(super) fn reserve(state: &State, origin: &Origin<'_>) -> Result<Self, SnapshotError> {
        let taken = held(&origin.path, origin)?;
        let reservation = state.pools.reserve(origin.pool, taken, charge(taken), pace(origin))?;
        Ok(Self { taken, reservations: vec![reservation] })
    }

    /// Keeps what is wanting, if it came to more: the volume was written to meanwhile.
    pub(super) fn keep(&mut self, state: &State, origin: &Origin<'_>, held: u64) -> Result<(), SnapshotError> {
        let missing = charge(held).saturating_sub(charge(self.taken));
        if missing > 0 {
            self.reservations.push(state.pools.reserve(origin.pool, held, missing, pace(origin))?);
        }
        Ok(())
    }
}

/// A snapshot that shares its blocks takes none until its volume is overwritten.
fn pace(origin: &Origin<'_>) -> Pace {
    if origin.pool.abilities().shares_blocks { Pace::AsWritten } else { Pace::AtOnce }
}

/// The content of a volume as of one instant, in a folder that is no snapshot yet.
pub(super) struct Cut {
    /// Nanoseconds since 1970.
    pub(super) created: u64,
    /// What it takes, in bytes.
    pub(super) held: u64,
    /// The image, which isn't synced; none of a subvolume.
    pub(super) image: Option<File>,
}

impl Cut {
    pub(super) fn make(origin: &Origin<'_>, folder: &Path) -> Result<Self, SnapshotError> {
        let kind = origin.content.kind();
        let path = content_path(folder, kind);
        let progress = origin::progress("copying", origin.source.as_str().into(), origin.bytes);
        let created = now();
        let image = content::copy(&origin.path, &path, kind, origin.pool.abilities().shares_blocks, true, progress)
            .map_err(StoreError::io("copy to", &path))?;
        Ok(Self { created, held: held(&path, origin)?, image })
    }
}

/// What the content at `path` takes, in bytes; where nobody counts that, what it can take at most.
fn held(path: &Path, origin: &Origin<'_>) -> Result<u64, StoreError> {
    if !origin.pool.counts() {
        return Ok(origin.bytes);
    }
    let taken = content::taken(path, origin.content.kind()).map_err(StoreError::io("look at", path))?;
    Ok(taken.unwrap_or(origin.bytes))
}

impl Service {
    /// What isn't advertised isn't there.
    pub(super) fn expect_copies(&self, capability: &str) -> Result<(), tonic::Status> {
        if self.state().copies() {
            return Ok(());
        }
        Err(tonic::Status::unimplemented(format!(
            "{capability} is not advertised: this node's pools keep directories, which can't be copied as of one instant"
        )))
    }
}
