//! DeleteVolume.

use std::path::PathBuf;

use keelson_host::Problem;
use keelson_proto::csi::v1::{DeleteVolumeRequest, DeleteVolumeResponse};

use super::{Pending, State, request::required};
use crate::{
    kernel::{KernelError, Presence},
    policy::check_map,
    store::{Attachment, LookupError, RecordError, StoreError},
};

/// Why a volume was not deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    #[error("{0}")]
    Invalid(Problem),
    #[error(transparent)]
    Pending(#[from] Pending),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("volume {id} is in use at {}; unpublish and unstage it first", by.display())]
    InUse { id: String, by: PathBuf },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<Problem> for DeleteError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

pub(super) fn delete(state: &State, request: &DeleteVolumeRequest) -> Result<DeleteVolumeResponse, DeleteError> {
    let id = required("volume_id", &request.volume_id)?;
    check_map("secrets", &request.secrets)?;
    let _guard = state.in_flight.begin(id, "DeleteVolume")?;
    let (pool, record) = match state.pools.locate(id) {
        Ok(found) => found,
        // Gone is what was asked for. A missing disk is another error, and so is never taken for this one.
        Err(LookupError::Unknown(_)) => return Ok(DeleteVolumeResponse {}),
        Err(error) => return Err(error.into()),
    };
    let presence = Presence::read(&state.settings.root, &pool.folder(&record.id), record.content.kind())?;
    if let Some(by) = presence.use_of() {
        return Err(DeleteError::InUse { id: id.to_owned(), by });
    }
    pool.remove(&record.id)?;
    state.attachments.write(&record.id, &Attachment::default())?;
    tracing::info!(volume = id, name = record.name, pool = pool.settings.name, "volume deleted");
    Ok(DeleteVolumeResponse {})
}
