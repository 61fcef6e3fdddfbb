//! DeleteVolume.

use std::path::PathBuf;

use keelson_host::Problem;
use keelson_proto::csi::v1::{DeleteVolumeRequest, DeleteVolumeResponse};

use super::{Pending, State, request::required};
use crate::{
    kernel::{KernelError, Presence, loop_device},
    policy::check_map,
    store::{Attachment, LookupError, RecordError, StoreError, VolumeRecord, content_path},
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
    let (pool, record) = match state.pools.locate::<VolumeRecord>(id) {
        Ok(found) => found,
        // Gone is what was asked for. A missing disk is another error, and so is never taken for this one.
        Err(LookupError::Unknown { .. }) => return Ok(DeleteVolumeResponse {}),
        Err(error) => return Err(error.into()),
    };
    let _turn = pool.enter().map_err(LookupError::from)?;
    let kind = record.content.kind();
    let (root, content) = (&state.settings.root, content_path(&pool.folder(&*record), kind));
    let mut presence = Presence::read_anew(root, &content, kind)?;
    if presence.is_letting_go() {
        loop_device::detach(root, &content).map_err(KernelError::from)?;
        presence = Presence::read_anew(root, &content, kind)?;
    }
    if let Some(by) = presence.use_of() {
        return Err(DeleteError::InUse { id: id.to_owned(), by });
    }
    // Its image may have been moved away or replaced meanwhile; then only the record tells where it is in use.
    let attachment = state.attachments.read(&record.id)?;
    let staged = attachment.staged.iter().map(|staged| &staged.path);
    let asked = staged.chain(attachment.published.iter().map(|publication| &publication.target));
    if let Some(by) = asked.into_iter().find(|path| presence.is_covered(path)) {
        return Err(DeleteError::InUse { id: id.to_owned(), by: by.as_path().to_owned() });
    }
    // First: once the volume is gone, no retry comes here.
    state.attachments.write(&record.id, &Attachment::default())?;
    pool.remove(&*record)?;
    tracing::info!(volume = id, name = record.name, pool = pool.settings.name, "volume deleted");
    Ok(DeleteVolumeResponse {})
}
