//! GetCapacity.

use keelson_proto::csi::v1::{GetCapacityRequest, GetCapacityResponse};

use super::{
    State,
    create::{capabilities, pool_for},
};
use crate::{
    error::QueryError,
    policy::{Parameters, Rejected, SizeRange, content_for, includes, largest_volume},
    store::Pace,
};

/// What could be promised now, to a volume of these parameters and capabilities: 0 where none can be made.
pub(super) fn capacity(state: &State, request: &GetCapacityRequest) -> Result<GetCapacityResponse, QueryError> {
    let parameters = Parameters::parse(&request.parameters)?;
    let node = &state.settings.node_name;
    if request.accessible_topology.as_ref().is_some_and(|topology| !includes(topology, node)) {
        return Ok(answer(0, 0, 0));
    }
    let wanted = match request.volume_capabilities.as_slice() {
        [] => Vec::new(),
        some => match capabilities(some, &parameters) {
            Ok(wanted) => wanted,
            Err(Rejected::Invalid(problem)) => return Err(problem.into()),
            Err(Rejected::Unsupported(_)) => return Ok(answer(0, 0, 0)),
        },
    };
    // A pool that this node lacks is one without room: other nodes may have it.
    let Some(pool) = pool_for(state, &parameters, &wanted) else { return Ok(answer(0, 0, 0)) };
    let Ok(content) = content_for(pool.settings.kind, &wanted) else {
        return Ok(answer(0, 0, 0));
    };
    // As with the list.
    let _guard =
        state.in_flight.begin_in_turn(format!("the capacity of pool {}", pool.settings.name), "GetCapacity")?;
    let _turn = pool.enter()?;
    pool.check_writable()?;
    pool.settle_deletions()?;
    let available = state.pools.room(pool)?.available_to(Pace::of(parameters.provisioning));
    let enforced = pool.abilities().enforces_sizes;
    let largest = if enforced { largest_volume(available) } else { available };
    Ok(answer(available, largest, SizeRange::smallest(content, enforced)))
}

fn answer(available: u64, largest: u64, smallest: u64) -> GetCapacityResponse {
    let signed = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
    // Below the smallest volume there is room for none.
    let (available, largest) = if largest < smallest { (0, 0) } else { (available, largest) };
    GetCapacityResponse {
        available_capacity: signed(available),
        maximum_volume_size: Some(signed(largest)),
        minimum_volume_size: Some(signed(smallest)),
    }
}
