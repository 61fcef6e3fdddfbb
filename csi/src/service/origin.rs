//! What the content of a new volume, or of a snapshot, is copied from.

use std::{path::PathBuf, sync::Arc};

use keelson_host::Problem;
use keelson_proto::csi::v1::{VolumeContentSource, volume_content_source::Type};

use super::{Guard, Pending, State, request::required};
use crate::{
    kernel::{KernelError, Presence},
    policy::{Content, VolumeId},
    store::{LookupError, Pool, SnapshotRecord, Source, VolumeRecord, content_path},
};

/// A volume or snapshot that is copied: nobody deletes it while this is held. Whoever copies it enters the pool, once
/// for all that is copied.
#[derive(Debug)]
pub(super) struct Origin<'a> {
    pub(super) pool: &'a Pool,
    pub(super) source: Source,
    /// The image, directory or subvolume.
    pub(super) path: PathBuf,
    pub(super) content: Content,
    /// The size that it has, or its volume had.
    pub(super) bytes: u64,
    pub(super) family: VolumeId,
    /// At most so many of its bytes are a template's.
    pub(super) template_bytes: u64,
    /// The volume that it is, or that its snapshot was cut from.
    pub(super) volume: VolumeId,
    guard: Guard,
}

/// What a request names as the source, before it was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Volume(String),
    Snapshot(String),
}

/// Why nothing can be copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OriginError {
    #[error(transparent)]
    Pending(#[from] Pending),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(
        "volume {id} is in use at {}, and the filesystem of pool {pool} can't share blocks: a copy would not be of one \
         instant; unpublish and unstage the volume first, or keep it on xfs or btrfs", by.display()
    )]
    InUse { id: String, pool: String, by: PathBuf },
    #[error("volume {id} is in pool {pool}, which keeps directories: a copy of one would not be of one instant")]
    NoCopies { id: String, pool: String },
}

impl Wanted {
    pub(super) fn parse(source: Option<&VolumeContentSource>) -> Result<Option<Self>, Problem> {
        let Some(source) = source else { return Ok(None) };
        let at = "volume_content_source";
        match &source.r#type {
            Some(Type::Volume(volume)) => Ok(Some(Self::Volume(
                required("volume_content_source.volume.volume_id", &volume.volume_id)?.to_owned(),
            ))),
            Some(Type::Snapshot(snapshot)) => {
                let id = required("volume_content_source.snapshot.snapshot_id", &snapshot.snapshot_id)?;
                Ok(Some(Self::Snapshot(id.to_owned())))
            }
            None => Err(Problem::new(at, "", "has no type", "name a snapshot or a volume, or leave it out")),
        }
    }

    pub(super) fn id(&self) -> &str {
        match self {
            Self::Volume(id) | Self::Snapshot(id) => id,
        }
    }

    /// Whether it is what a volume was made from.
    pub(super) fn is(&self, source: &Source) -> bool {
        match (self, source) {
            (Self::Volume(wanted), Source::Volume(id)) => wanted == id.as_str(),
            (Self::Snapshot(wanted), Source::Snapshot(id)) => wanted == id.as_str(),
            _ => false,
        }
    }
}

impl<'a> Origin<'a> {
    /// Finds what is to be copied for `operation` and takes it.
    pub(super) fn take(state: &'a State, wanted: &Wanted, operation: &'static str) -> Result<Self, OriginError> {
        match wanted {
            Wanted::Volume(id) => Self::volume(state, id, operation),
            Wanted::Snapshot(id) => {
                let guard = state.in_flight.begin_shared(id.as_str(), operation)?;
                let (pool, record) = state.pools.locate::<SnapshotRecord>(id)?;
                let path = content_path(&pool.folder(&*record), record.content.kind());
                let (content, bytes, family) = (record.content.clone(), record.bytes, record.family.clone());
                let template_bytes = record.template_bytes;
                let (source, volume) = (Source::Snapshot(record.id.clone()), record.volume.clone());
                Ok(Self { pool, source, path, content, bytes, family, template_bytes, volume, guard })
            }
        }
    }

    /// Finds a volume and takes it.
    pub(super) fn volume(state: &'a State, id: &str, operation: &'static str) -> Result<Self, OriginError> {
        let guard = state.in_flight.begin_shared(id, operation)?;
        let (pool, record) = state.pools.locate::<VolumeRecord>(id)?;
        let _turn = pool.enter().map_err(LookupError::from)?;
        let abilities = pool.abilities();
        if !abilities.copies() {
            return Err(OriginError::NoCopies { id: id.to_owned(), pool: pool.settings.name.clone() });
        }
        let kind = record.content.kind();
        let path = content_path(&pool.folder(&*record), kind);
        if !abilities.shares_blocks
            && let Some(by) = Presence::read(&state.settings.root, &path, kind)?.use_of()
        {
            return Err(OriginError::InUse { id: id.to_owned(), pool: pool.settings.name.clone(), by });
        }
        let (content, bytes, family) = (record.content.clone(), record.bytes, record.family().clone());
        let template_bytes = record.template_bytes;
        let (source, volume) = (Source::Volume(record.id.clone()), record.id.clone());
        Ok(Self { pool, source, path, content, bytes, family, template_bytes, volume, guard })
    }
}

impl Origin<'_> {
    /// Goes on to hold it without saying what it is, but in which pool.
    pub(super) fn into_guard(self) -> (Guard, String) {
        (self.guard, self.pool.settings.name.clone())
    }
}

/// Says now and then how far a copy is.
pub(super) fn progress(what: &'static str, id: Arc<str>, bytes: u64) -> impl FnMut(u64) {
    /// Every so many bytes.
    const EVERY: u64 = 1 << 30;
    let mut next = EVERY;
    move |copied| {
        if copied >= next {
            next = copied.saturating_add(EVERY);
            tracing::info!(id = &*id, copied, of = bytes, "{what}");
        }
    }
}
