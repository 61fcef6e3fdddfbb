//! NodeStageVolume and NodeUnstageVolume.

use keelson_host::Problem;
use keelson_proto::csi::v1::{
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse,
};
use rustix::fs::FileType;

use super::{
    State, VolumeError,
    request::{capability, path, required},
    volume::Volume,
};
use crate::{
    kernel,
    policy::{Rejected, TargetPath, check_map},
    store::Staged,
};

/// Why a volume was not staged or unstaged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    #[error("{0}")]
    Invalid(Problem),
    #[error("{0}")]
    Unsupported(Problem),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("volume {id} can't be used so: {reason}")]
    Unfit { id: String, reason: String },
    #[error("volume {id} is staged at {path} with another capability: {difference}")]
    Different { id: String, path: TargetPath, difference: String },
    #[error("volume {id} is staged at {path}; unstage it there first")]
    Elsewhere { id: String, path: TargetPath },
    #[error("staging_target_path {path} is not a directory; the caller must make it")]
    NoDirectory { path: TargetPath },
    #[error("volume {id} is still published at {path}; unpublish it first")]
    Published { id: String, path: TargetPath },
}

impl From<Problem> for StageError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

impl From<Rejected> for StageError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Invalid(problem) => Self::Invalid(problem),
            Rejected::Unsupported(problem) => Self::Unsupported(problem),
        }
    }
}

pub(super) fn stage(state: &State, request: &NodeStageVolumeRequest) -> Result<NodeStageVolumeResponse, StageError> {
    let id = required("volume_id", &request.volume_id)?;
    let staging = path(state, "staging_target_path", &request.staging_target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    check_map("secrets", &request.secrets)?;
    let volume = Volume::take(state, id, "NodeStageVolume")?;
    // Two volumes must not both find the same path free.
    let _path = state.in_flight.begin(staging.to_string(), "NodeStageVolume").map_err(VolumeError::from)?;
    capability.fits(volume.record.content.kind()).map_err(|reason| StageError::Unfit { id: id.to_owned(), reason })?;
    let presence = volume.presence()?;
    let mut attachment = volume.attachment(&presence)?;
    if let Some(Staged { path, capability: before }) = &attachment.staged
        && volume.is_staged_at(&presence, path)?
    {
        return match (*path == staging, *before == capability) {
            (true, true) => {
                // A stage that was killed right after its mount.
                volume.grow_if_smaller(&staging)?;
                Ok(NodeStageVolumeResponse {})
            }
            (true, false) => {
                let difference = before.difference(&capability);
                Err(StageError::Different { id: id.to_owned(), path: staging, difference })
            }
            (false, _) => Err(StageError::Elsewhere { id: id.to_owned(), path: path.clone() }),
        };
    }
    let found = kernel::path::look(&staging).map_err(VolumeError::path("staging_target_path", &staging))?;
    if !found.is_some_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory) {
        return Err(StageError::NoDirectory { path: staging });
    }
    volume.expect_uncovered(&staging, &presence)?;
    attachment.staged = Some(Staged { path: staging.clone(), capability: capability.clone() });
    let staged = volume.write_stage(&attachment).and_then(|()| volume.stage(&staging, &capability));
    if let Err(error) = staged {
        // Or the next publish would take it for a stage that a reboot undid.
        attachment.staged = None;
        if let Err(error) = volume.write(&attachment) {
            tracing::warn!(volume = id, %error, "failed to undo the record of a failed stage");
        }
        return Err(error.into());
    }
    tracing::info!(volume = id, path = %staging, "volume staged");
    Ok(NodeStageVolumeResponse {})
}

pub(super) fn unstage(
    state: &State,
    request: &NodeUnstageVolumeRequest,
) -> Result<NodeUnstageVolumeResponse, StageError> {
    let id = required("volume_id", &request.volume_id)?;
    let staging = path(state, "staging_target_path", &request.staging_target_path)?;
    let volume = Volume::take(state, id, "NodeUnstageVolume")?;
    let presence = volume.presence()?;
    let mut attachment = volume.attachment(&presence)?;
    if let Some(publication) = attachment.published.first() {
        return Err(StageError::Published { id: id.to_owned(), path: publication.target.clone() });
    }
    let presence = volume.unmount(&staging, presence)?;
    if let Some(staged) = &attachment.staged
        && staged.path != staging
        && volume.is_staged_at(&presence, &staged.path)?
    {
        // It is staged, but not here: nothing more to undo.
        return Ok(NodeUnstageVolumeResponse {});
    }
    volume.detach()?;
    attachment.staged = None;
    volume.write(&attachment)?;
    volume.settle();
    tracing::info!(volume = id, path = %staging, "volume unstaged");
    Ok(NodeUnstageVolumeResponse {})
}
