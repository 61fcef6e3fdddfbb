//! NodeGetVolumeStats.

use keelson_host::Problem;
use keelson_proto::csi::v1::{NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, VolumeUsage, volume_usage::Unit};

use super::{State, VolumeError, request::required};
use crate::{
    kernel::{KernelError, Presence, filesystem, path, subvolume},
    policy::{ContentKind, TargetPath},
    store::{VolumeRecord, content_path},
};

/// Why no figures can be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatsError {
    #[error("{0}")]
    Invalid(Problem),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("volume {id} is neither staged nor published at volume_path {path:?}")]
    NotThere { id: String, path: String },
}

impl From<Problem> for StatsError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

/// Bytes and inodes of the volume's filesystem. A directory has none of its own: its figures are those of its quota, or
/// else of the pool's filesystem, as `df` shows them inside the Pod; a subvolume's are those of its qgroup, which `df`
/// doesn't show. A raw block volume has a size and nothing else.
pub(super) fn stats(
    state: &State,
    request: &NodeGetVolumeStatsRequest,
) -> Result<NodeGetVolumeStatsResponse, StatsError> {
    let id = required("volume_id", &request.volume_id)?;
    if request.volume_path.is_empty() {
        return Err(Problem::new("volume_path", "", "is missing", "it is required").into());
    }
    // Looking disturbs no other operation; but on a disk that doesn't answer, one that waits is enough.
    let _guard =
        state.in_flight.begin_in_turn(format!("stats of {id}"), "NodeGetVolumeStats").map_err(VolumeError::from)?;
    let (pool, record) = state.pools.locate::<VolumeRecord>(id).map_err(VolumeError::from)?;
    let not_there = || StatsError::NotThere { id: id.to_owned(), path: request.volume_path.clone() };
    // No volume is at what can't be a target path.
    let path = TargetPath::try_from(request.volume_path.clone()).map_err(|_| not_there())?;
    let kind = record.content.kind();
    let content = content_path(&pool.folder(&*record), kind);
    let presence = Presence::read(&state.settings.root, &content, kind).map_err(VolumeError::from)?;
    if !presence.is_at(&path).map_err(VolumeError::from)? {
        return Err(not_there());
    }
    let usage = match kind {
        ContentKind::Block => vec![usage(Unit::Bytes, record.bytes, 0, 0)],
        ContentKind::Filesystem(_) | ContentKind::Directory | ContentKind::Subvolume => {
            let failed = KernelError::path(path.as_path());
            let found = if kind == ContentKind::Subvolume {
                // A handle that the kernel takes questions on: that of a target path is none.
                std::fs::File::open(&content).and_then(|top| subvolume::usage(top).map_err(|error| error.source))
            } else {
                path::open(&path).and_then(filesystem::usage)
            };
            let found = found.map_err(failed).map_err(VolumeError::from)?;
            let used_inodes = found.total_inodes.saturating_sub(found.available_inodes);
            vec![
                usage(Unit::Bytes, found.total_bytes, found.available_bytes, found.used_bytes),
                usage(Unit::Inodes, found.total_inodes, found.available_inodes, used_inodes),
            ]
        }
    };
    Ok(NodeGetVolumeStatsResponse { usage })
}

fn usage(unit: Unit, total: u64, available: u64, used: u64) -> VolumeUsage {
    let signed = |value| i64::try_from(value).unwrap_or(i64::MAX);
    VolumeUsage { unit: unit.into(), total: signed(total), available: signed(available), used: signed(used) }
}
