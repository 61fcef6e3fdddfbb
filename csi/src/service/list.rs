//! ListVolumes and ListSnapshots, and what every list has in common.

use std::sync::Arc;

use keelson_host::Problem;
use keelson_proto::csi::v1::{
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, list_snapshots_response,
    list_volumes_response::Entry,
};

use super::{State, create::describe, snapshot};
use crate::{
    error::QueryError,
    policy::{Page, SnapshotId, check_map, names, page},
    store::{Kept, LookupError, Pool, SnapshotRecord, VolumeRecord},
};

pub(super) fn volumes(state: &State, request: &ListVolumesRequest) -> Result<ListVolumesResponse, QueryError> {
    // A disk that doesn't answer keeps whoever asks; one that waits is enough.
    let _guard = state.in_flight.begin_in_turn("the list of volumes", "ListVolumes")?;
    let Page { entries, next_token } = records::<VolumeRecord>(state, &request.starting_token, request.max_entries)?;
    let node = &state.settings.node_name;
    let entry = |(pool, record): &(&Pool, Arc<VolumeRecord>)| Entry {
        volume: Some(describe(pool, record, node)),
        status: None,
    };
    Ok(ListVolumesResponse { entries: entries.iter().map(entry).collect(), next_token })
}

pub(super) fn snapshots(state: &State, request: &ListSnapshotsRequest) -> Result<ListSnapshotsResponse, QueryError> {
    check_map("secrets", &request.secrets)?;
    for (at, filter) in [("snapshot_id", &request.snapshot_id), ("source_volume_id", &request.source_volume_id)] {
        names::check_string(filter)
            .map_err(|wrong| Problem::new(at, "", wrong, "keep to the limits of the CSI spec"))?;
    }
    // An id that is none of ours is in no record.
    let (id, volume) = (request.snapshot_id.as_str(), request.source_volume_id.as_str());
    let what = if id.is_empty() { "the list of snapshots".to_owned() } else { format!("a look at {id}") };
    let _guard = state.in_flight.begin_in_turn(what, "ListSnapshots")?;
    let max_entries = most(request.max_entries)?;
    let wanted = |record: &SnapshotRecord| {
        (id.is_empty() || record.id.as_str() == id) && (volume.is_empty() || record.volume.as_str() == volume)
    };
    let after = |start: Option<&SnapshotId>, count| -> Result<Vec<Arc<SnapshotRecord>>, QueryError> {
        if !id.is_empty() {
            // Where it lies is known: no other pool's disk matters.
            let found = match state.pools.locate::<SnapshotRecord>(id) {
                Ok((_, record)) => Some(record),
                Err(LookupError::Unknown { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let is_next = |record: &Arc<_>| wanted(record) && start.is_none_or(|start| record.id > *start);
            return Ok(found.filter(is_next).into_iter().take(count).collect());
        }
        if volume.is_empty() {
            return Ok(state.pools.after(start, count)?.into_iter().map(|(_, record)| record).collect());
        }
        let mut all = Vec::new();
        for pool in state.pools.iter() {
            let _turn = pool.enter()?;
            pool.check()?;
            all.extend(pool.filtered(|record| wanted(record) && start.is_none_or(|start| record.id > *start))?);
        }
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all.truncate(count);
        Ok(all)
    };
    let Page { entries, next_token } =
        page(&request.starting_token, max_entries, after, |record| record.id.as_str().to_owned())?;
    let node = &state.settings.node_name;
    let entry = |record: &Arc<SnapshotRecord>| list_snapshots_response::Entry {
        snapshot: Some(snapshot::describe(record, node)),
    };
    Ok(ListSnapshotsResponse { entries: entries.iter().map(entry).collect(), next_token })
}

/// The limit on a list's length.
fn most(max_entries: i32) -> Result<usize, Problem> {
    usize::try_from(max_entries)
        .map_err(|_| Problem::new("max_entries", max_entries, "is negative", "use 0 for no limit"))
}

/// A page of the records of all pools, as the `starting_token` and `max_entries` of a request ask for it.
pub(super) fn records<'a, T: Kept>(
    state: &'a State,
    starting_token: &str,
    max_entries: i32,
) -> Result<Page<(&'a Pool, Arc<T>)>, QueryError> {
    let max_entries = most(max_entries)?;
    let after = |start: Option<&T::Id>, count| Ok(state.pools.after::<T>(start, count)?);
    page(starting_token, max_entries, after, |(_, record)| record.id().to_string())
}
