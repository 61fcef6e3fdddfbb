//! NodePublishVolume and NodeUnpublishVolume.

use keelson_host::Problem;
use keelson_proto::csi::v1::{
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
};

use super::{
    State, VolumeError,
    request::{capability, path, required},
    volume::Volume,
};
use crate::{
    policy::{Publication, Rejected, TargetPath, Verdict, check_map, may_publish, overlap, second_publish},
    store::Staged,
};

/// Why a volume was not published or unpublished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("{0}")]
    Invalid(Problem),
    #[error("{0}")]
    Unsupported(Problem),
    #[error("staging_target_path is missing; this driver stages volumes")]
    NoStagingPath,
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("volume {id} can't be used so: {reason}")]
    Unfit { id: String, reason: String },
    #[error("volume {id} is not staged at {path}; stage it first")]
    NotStaged { id: String, path: TargetPath },
    #[error("volume {id} is published at {target} in another way: {difference}")]
    Different { id: String, target: TargetPath, difference: String },
    #[error("volume {id} is published at {target}, and only SINGLE_NODE_MULTI_WRITER allows a second place")]
    Elsewhere { id: String, target: TargetPath },
}

impl From<Problem> for PublishError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

impl From<Rejected> for PublishError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Invalid(problem) => Self::Invalid(problem),
            Rejected::Unsupported(problem) => Self::Unsupported(problem),
        }
    }
}

pub(super) fn publish(
    state: &State,
    request: &NodePublishVolumeRequest,
) -> Result<NodePublishVolumeResponse, PublishError> {
    let id = required("volume_id", &request.volume_id)?;
    let target = path(state, "target_path", &request.target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    check_map("secrets", &request.secrets)?;
    if request.staging_target_path.is_empty() {
        return Err(PublishError::NoStagingPath);
    }
    let staging = path(state, "staging_target_path", &request.staging_target_path)?;
    if overlap(staging.as_path(), target.as_path()) {
        let wrong = "is, holds or lies in the staging path";
        return Err(Problem::new("target_path", target, wrong, "use a path of its own").into());
    }
    let volume = Volume::take(state, id, "NodePublishVolume")?;
    // Two volumes must not both find the same path free.
    let _path = state.in_flight.begin(target.to_string(), "NodePublishVolume").map_err(VolumeError::from)?;
    let unfit = |reason| PublishError::Unfit { id: id.to_owned(), reason };
    capability.fits(volume.record.content.kind()).map_err(unfit)?;
    let presence = volume.presence()?;
    let mut attachment = volume.attachment(&presence)?;
    let wanted = Publication { target: target.clone(), capability: capability.clone(), read_only: request.readonly };
    match second_publish(&attachment.published, &wanted) {
        Verdict::Proceed => {}
        Verdict::Done => return Ok(NodePublishVolumeResponse {}),
        Verdict::Different(existing) => {
            let difference = existing.difference(&wanted);
            return Err(PublishError::Different { id: id.to_owned(), target, difference });
        }
        Verdict::Elsewhere(other) => {
            return Err(PublishError::Elsewhere { id: id.to_owned(), target: other.clone() });
        }
    }
    if attachment.staged.is_none() && volume.is_staged_at(&presence, &staging)? {
        // Mounted but not recorded is the volume itself after the state directory was lost.
        attachment.staged = Some(Staged { path: staging.clone(), capability: capability.clone() });
        volume.adopt();
    }
    let staged = match &attachment.staged {
        Some(staged) if staged.path == staging => staged,
        _ => return Err(PublishError::NotStaged { id: id.to_owned(), path: staging }),
    };
    let (staged_mode, mode) = (staged.capability.mode, capability.mode);
    if !may_publish(staged_mode, mode) {
        return Err(unfit(format!("it was staged as {}, not {}", staged_mode.as_str(), mode.as_str())));
    }
    if !volume.is_staged_at(&presence, &staging)? {
        volume.expect_uncovered(&staging, &presence)?;
        restage(&volume, staged)?;
    }
    volume.expect_uncovered(&target, &presence)?;
    let there = presence.is_at(&target).map_err(VolumeError::from)?;
    attachment.published.push(wanted);
    volume.write(&attachment)?;
    if !there {
        volume.publish(&staging, &target, &capability, request.readonly || capability.is_read_only())?;
    }
    tracing::info!(volume = id, path = %target, read_only = request.readonly, "volume published");
    Ok(NodePublishVolumeResponse {})
}

/// Staged as far as the caller knows, but a reboot took the mounts: some kubelets publish without staging anew.
fn restage(volume: &Volume<'_>, staged: &Staged) -> Result<(), VolumeError> {
    tracing::info!(volume = %volume.record.id, path = %staged.path, "volume is recorded as staged, but isn't; staging it anew");
    volume.stage(&staged.path, &staged.capability)
}

pub(super) fn unpublish(
    state: &State,
    request: &NodeUnpublishVolumeRequest,
) -> Result<NodeUnpublishVolumeResponse, PublishError> {
    let id = required("volume_id", &request.volume_id)?;
    let target = path(state, "target_path", &request.target_path)?;
    let volume = Volume::take(state, id, "NodeUnpublishVolume")?;
    let presence = volume.presence()?;
    let mut attachment = volume.attachment(&presence)?;
    if attachment.staged.as_ref().is_some_and(|staged| staged.path == target) {
        return Err(Problem::new("target_path", target, "is the staging path", "unstage it instead").into());
    }
    volume.unpublish(&target, presence)?;
    attachment.published.retain(|publication| publication.target != target);
    volume.write(&attachment)?;
    tracing::info!(volume = id, path = %target, "volume unpublished");
    Ok(NodeUnpublishVolumeResponse {})
}
