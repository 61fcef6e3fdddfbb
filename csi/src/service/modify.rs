//! ControllerModifyVolume: what a VolumeAttributesClass sets, changed while the volume lives and may be in use.
//!
//! All of it is checked before anything is changed. Space is taken first, as it may be lacking; then the record says how
//! the volume is from now on, and its loop devices are made so. A call that was interrupted is finished by its retry, or
//! by the next stage, which makes the devices what the record says.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
};

use keelson_host::Problem;
use keelson_proto::csi::v1::{ControllerModifyVolumeRequest, ControllerModifyVolumeResponse};

use super::{State, VolumeError, create::fit, request::required, volume::Volume};
use crate::{
    kernel::{Discard, KernelError, LoopOptions, Presence, content, loop_device},
    policy::{Changes, Provisioning, check_map},
    store::{Lacking, Pace, Reservation, StoreError, VolumeRecord, image},
};

/// Why a volume was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModifyError {
    #[error("{0}")]
    Invalid(Problem),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Lacking(Lacking),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Problem> for ModifyError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

pub(super) fn modify(
    state: &State,
    request: &ControllerModifyVolumeRequest,
) -> Result<ControllerModifyVolumeResponse, ModifyError> {
    let id = required("volume_id", &request.volume_id)?;
    check_map("secrets", &request.secrets)?;
    let changes = Changes::parse(&request.mutable_parameters)?;
    let mut volume = Volume::take(state, id, "ControllerModifyVolume")?;
    let before = &*volume.record;
    fit(&changes, before.content.kind(), volume.pool.abilities())?;
    volume.pool.check_writable().map_err(VolumeError::from)?;
    let presence = volume.presence()?;
    let after = VolumeRecord {
        provisioning: changes.provisioning.unwrap_or(before.provisioning),
        settings: before.settings.with(&changes),
        ..before.clone()
    };
    if changes.provisioning == Some(Provisioning::Thick) {
        // Kept until the space is taken.
        let (image, _kept) = image_to_fill(&volume)?;
        // From here on the space that it has, it keeps.
        apply(&volume, &presence, &LoopOptions { discard: Discard::Refused, ..volume.loop_options() })?;
        let filled = content::fill_holes(&image, before.bytes).and_then(|()| image.sync_all());
        filled.map_err(StoreError::io("fill the image in", &volume.folder))?;
    }
    if after != *before {
        volume.pool.update(after.clone())?;
        volume.record = after.into();
        tracing::info!(volume = id, "volume modified");
    }
    volume.pool.enforce(&volume.record)?;
    apply(&volume, &presence, &volume.loop_options())?;
    Ok(ControllerModifyVolumeResponse {})
}

/// Makes its loop devices, if it has any now, what `options` say.
fn apply(volume: &Volume<'_>, presence: &Presence, options: &LoopOptions) -> Result<(), VolumeError> {
    for device in presence.devices() {
        let root = &volume.state.settings.root;
        loop_device::apply(root, &mut device.clone(), options).map_err(KernelError::from)?;
    }
    Ok(())
}

/// The image, and the space of its holes, if that is there. It was promised already, but maybe more than there is.
fn image_to_fill(volume: &Volume<'_>) -> Result<(File, Reservation), ModifyError> {
    let (bytes, path) = (volume.record.bytes, image(&volume.folder));
    let failed = StoreError::io("open", &path);
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path).map_err(&failed)?;
    let taken = file.metadata().map_err(failed)?.blocks().saturating_mul(512);
    let kept = volume.state.pools.reserve(volume.pool, bytes, bytes.saturating_sub(taken), Pace::Promised);
    Ok((file, kept.map_err(ModifyError::Lacking)?))
}
