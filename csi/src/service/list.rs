//! ListVolumes, and what every list has in common.

use std::sync::Arc;

use keelson_host::Problem;
use keelson_proto::csi::v1::{ListVolumesRequest, ListVolumesResponse, list_volumes_response::Entry};

use super::{State, create::describe};
use crate::{
    error::QueryError,
    policy::{Page, page},
    store::{Kept, Pool, VolumeRecord},
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

/// A page of the records of all pools, as the `starting_token` and `max_entries` of a request ask for it.
pub(super) fn records<'a, T: Kept>(
    state: &'a State,
    starting_token: &str,
    max_entries: i32,
) -> Result<Page<(&'a Pool, Arc<T>)>, QueryError> {
    let Ok(max_entries) = usize::try_from(max_entries) else {
        return Err(Problem::new("max_entries", max_entries, "is negative", "use 0 for no limit").into());
    };
    let after = |start: Option<&T::Id>, count| Ok(state.pools.after::<T>(start, count)?);
    page(starting_token, max_entries, after, |(_, record)| record.id().to_string())
}
