//! NodeExpandVolume.
//!
//! Every step leaves what the one before it made, and finds it done when the call is repeated: the image is longer, the
//! record says so, the loop devices see it, the filesystem has it. A volume whose image is longer than its record is one
//! whose growth was interrupted; until a retry it has its old size.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
};

use keelson_host::Problem;
use keelson_proto::csi::v1::{NodeExpandVolumeRequest, NodeExpandVolumeResponse};

use super::{
    State, VolumeError,
    request::{capability, required},
    volume::Volume,
};
use crate::{
    kernel::{KernelError, Presence, Request, content, filesystem, loop_device, may_grow},
    policy::{Content, ContentKind, OutOfRange, Provisioning, Rejected, SizeRange, TargetPath, check_map, is_smaller},
    store::{Attachment, Lacking, Pace, Reservation, StoreError, VolumeRecord, image, promise_of},
};

/// Why a volume did not grow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExpandError {
    #[error("{0}")]
    Invalid(Problem),
    #[error(transparent)]
    Size(#[from] OutOfRange),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("volume {id} is neither staged nor published at volume_path {path:?}")]
    NotThere { id: String, path: String },
    #[error("volume {id} can't be used so: {reason}")]
    Unfit { id: String, reason: String },
    #[error("volume {id} is mounted read-only at {path}, and its filesystem can't grow so; stage it for writing")]
    ReadOnly { id: String, path: TargetPath },
    #[error(
        "volume {id} has ext4, which grows only for a process with CAP_SYS_RESOURCE, and the driver has not; give that to \
         its container, as a privileged one has it"
    )]
    Unprivileged { id: String },
    #[error(transparent)]
    Lacking(Lacking),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Problem> for ExpandError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

impl From<Rejected> for ExpandError {
    fn from(rejected: Rejected) -> Self {
        let (Rejected::Invalid(problem) | Rejected::Unsupported(problem)) = rejected;
        Self::Invalid(problem)
    }
}

pub(super) fn expand(
    state: &State,
    request: &NodeExpandVolumeRequest,
) -> Result<NodeExpandVolumeResponse, ExpandError> {
    let id = required("volume_id", &request.volume_id)?;
    if request.volume_path.is_empty() {
        return Err(Problem::new("volume_path", "", "is missing", "it is required").into());
    }
    check_map("secrets", &request.secrets)?;
    let range = SizeRange::parse(request.capacity_range.as_ref())?;
    let wanted = request.volume_capability.as_ref().map(|wanted| capability(Some(wanted))).transpose()?;
    let volume = Volume::take(state, id, "NodeExpandVolume")?;
    volume.pool.check_writable().map_err(VolumeError::from)?;
    let kind = volume.record.content.kind();
    if let Some(Err(reason)) = wanted.map(|wanted| wanted.fits(kind)) {
        return Err(ExpandError::Unfit { id: id.to_owned(), reason });
    }
    let presence = volume.presence()?;
    let attachment = volume.attachment(&presence)?;
    let not_there = || ExpandError::NotThere { id: id.to_owned(), path: request.volume_path.clone() };
    // No volume is at what can't be a target path.
    let path = TargetPath::try_from(request.volume_path.clone()).map_err(|_| not_there())?;
    if !is_used_at(&volume, &presence, &attachment, &path)? {
        return Err(not_there());
    }
    let bytes = match volume.record.content {
        Content::Block => expand_image(&volume, &presence, range, None)?,
        Content::Filesystem { filesystem, uuid } => {
            let target = writable_mount(&volume, &presence, &attachment, path)?;
            let filled = volume.check_filesystem(filesystem, uuid)?;
            let bytes = expand_image(&volume, &presence, range, Some(filled))?;
            // Else it has its size already.
            if may_grow(filesystem) {
                volume.run(&Request::Grow { filesystem, target, bytes })?;
            }
            bytes
        }
        Content::Directory | Content::Subvolume => expand_directory(&volume, range)?,
    };
    tracing::info!(volume = id, before = volume.record.bytes, bytes, "volume expanded");
    let told = volume.pool.enforces(&volume.record) || volume.pool.settings.unenforced_sizes;
    // Sizes were checked to fit.
    let capacity_bytes = if told { i64::try_from(bytes).unwrap_or(i64::MAX) } else { 0 };
    Ok(NodeExpandVolumeResponse { capacity_bytes })
}

/// Whether the volume is published, or staged, at `path`.
fn is_used_at(
    volume: &Volume<'_>,
    presence: &Presence,
    attachment: &Attachment,
    path: &TargetPath,
) -> Result<bool, VolumeError> {
    let staged_here = attachment.staged.as_ref().is_some_and(|staged| staged.path == *path);
    Ok(presence.is_at(path).map_err(VolumeError::from)? || (staged_here && volume.is_staged_at(presence, path)?))
}

/// Where the filesystem is mounted so that it can grow: where it is staged, as publications may be read-only.
fn writable_mount(
    volume: &Volume<'_>,
    presence: &Presence,
    attachment: &Attachment,
    path: TargetPath,
) -> Result<TargetPath, ExpandError> {
    let at = match &attachment.staged {
        Some(staged) if presence.is_at(&staged.path).map_err(VolumeError::from)? => staged.path.clone(),
        _ => path,
    };
    let read_only = filesystem::is_read_only(at.as_path());
    if read_only.map_err(KernelError::path(at.as_path())).map_err(VolumeError::from)? {
        return Err(ExpandError::ReadOnly { id: volume.id(), path: at });
    }
    Ok(at)
}

/// Makes the image, the record and the loop devices as large as `range` asks for, and says how large that is. Its
/// filesystem, if it has one, has `filled` bytes.
fn expand_image(
    volume: &Volume<'_>,
    presence: &Presence,
    range: SizeRange,
    filled: Option<u64>,
) -> Result<u64, ExpandError> {
    let (record, path) = (&*volume.record, image(&volume.folder));
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path);
    let file = file.map_err(StoreError::io("open", &path))?;
    let length = file.metadata().map_err(StoreError::io("look at", &path))?.len();
    if length < record.bytes {
        return Err(VolumeError::WrongSize { id: volume.id(), wanted: record.bytes, found: length }.into());
    }
    let filled = filled.map_or(length, |filled| if is_smaller(filled, length) { filled } else { length });
    let bytes = range.grow(record.content.kind(), true, length, filled)?;
    if let ContentKind::Filesystem(filesystem) = record.content.kind()
        && (bytes > record.bytes || is_smaller(filled, bytes))
        && !may_grow(filesystem)
    {
        return Err(ExpandError::Unprivileged { id: volume.id() });
    }
    if bytes > record.bytes {
        let _reservation = reserve(volume, bytes)?;
        if let Err(error) = lengthen(&file, bytes, record.provisioning) {
            // Nobody has seen the new part.
            if let Err(error) = file.set_len(length) {
                tracing::warn!(volume = volume.id(), %error, "failed to cut a volume that did not grow back to its size");
            }
            return Err(StoreError::io("lengthen", &path)(error).into());
        }
        volume.pool.update(VolumeRecord { bytes, ..record.clone() })?;
    }
    for device in presence.devices() {
        if device.bytes().map_err(KernelError::from).map_err(VolumeError::from)? < bytes {
            loop_device::set_capacity(device).map_err(KernelError::from).map_err(VolumeError::from)?;
        }
    }
    Ok(bytes)
}

/// The new part is a hole, or takes its space at once; it is durable.
fn lengthen(file: &File, bytes: u64, provisioning: Provisioning) -> io::Result<()> {
    match provisioning {
        Provisioning::Thin => file.set_len(bytes)?,
        Provisioning::Thick => content::fill_holes(file, bytes)?,
    }
    file.sync_all()
}

/// Keeps what the volume will be promised beyond what it is.
fn reserve(volume: &Volume<'_>, bytes: u64) -> Result<Reservation, ExpandError> {
    let (kind, pool) = (volume.record.content.kind(), volume.pool);
    let more = promise_of(kind, bytes, pool).saturating_sub(promise_of(kind, volume.record.bytes, pool));
    volume.state.pools.reserve(pool, bytes, more, Pace::of(volume.record.provisioning)).map_err(ExpandError::Lacking)
}

/// Makes the record and the limit as large as `range` asks for. A killed driver leaves a record that is larger than the
/// limit; the next scan of the pool, or a retry, raises that.
fn expand_directory(volume: &Volume<'_>, range: SizeRange) -> Result<u64, ExpandError> {
    let record = &*volume.record;
    let enforced = volume.pool.abilities().enforces_sizes;
    let bytes = range.grow(record.content.kind(), enforced, record.bytes, record.bytes)?;
    let larger = VolumeRecord { bytes, ..record.clone() };
    let _reservation = reserve(volume, bytes)?;
    if bytes > record.bytes {
        volume.pool.update(larger.clone())?;
    }
    volume.pool.enforce(&larger)?;
    Ok(bytes)
}
