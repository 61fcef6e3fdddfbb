//! CreateVolume.

use std::sync::Arc;

use keelson_host::Problem;
use keelson_proto::csi::v1::{CreateVolumeRequest, CreateVolumeResponse, Volume};
use rustix::fs::Mode;
use uuid::Uuid;

use super::{Guard, Pending, State, request::required};
use crate::{
    kernel::{
        HelperError, Hold,
        format::format,
        superblock::{self, Signature},
    },
    policy::{
        Access, Capability, Content, ContentKind, FilesystemType, OutOfRange, Parameters, Provisioning, Rejected,
        SizeRange, TOPOLOGY_KEY, VolumeId, admits, check_map, content_for, names, segments,
    },
    store::{Lacking, Pool, StoreError, Unavailable, VolumeRecord, create_image, data, fill_holes, image},
};

/// Why no volume was created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("{0}")]
    Invalid(Problem),
    #[error(transparent)]
    Size(#[from] OutOfRange),
    #[error(transparent)]
    Pending(#[from] Pending),
    #[error("volumes can only be made on this node, {TOPOLOGY_KEY}={node}, which accessibility_requirements rule out")]
    Topology { node: String },
    #[error("volume {name:?} exists, but {difference}")]
    Exists { name: String, difference: String },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Lacking(#[from] Lacking),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("failed to make a filesystem")]
    Format(#[from] HelperError),
    #[error("formatting left no {filesystem} filesystem with UUID {uuid} in {image}")]
    NotFormatted { filesystem: FilesystemType, uuid: Uuid, image: String },
}

impl From<Problem> for CreateError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

/// What the request comes down to.
struct Wish {
    name: String,
    capabilities: Vec<Capability>,
    parameters: Parameters,
    range: SizeRange,
    /// Whether accessibility_requirements leave room for this node.
    on_this_node: bool,
}

pub(super) fn create(state: &State, request: &CreateVolumeRequest) -> Result<CreateVolumeResponse, CreateError> {
    let node = &state.settings.node_name;
    let wish = Wish::parse(request, node)?;
    let guard: Hold = Arc::new(state.in_flight.begin(format!("{:?}", wish.name), "CreateVolume")?);
    // What exists under that name decides, also where nothing could be made as it is asked for now.
    if let Some((_guard, pool, existing)) = find(state, choose_pool(state, &wish).ok(), &wish.name)? {
        let difference = if wish.on_this_node {
            wish.difference(pool, &existing)
        } else {
            Some(format!("on node {node}, which accessibility_requirements rule out"))
        };
        return match difference {
            Some(difference) => Err(CreateError::Exists { name: wish.name, difference }),
            None => Ok(CreateVolumeResponse { volume: Some(describe(&existing, node)) }),
        };
    }
    if !wish.on_this_node {
        return Err(CreateError::Topology { node: node.clone() });
    }
    let pool = choose_pool(state, &wish)?;
    let content = content_for(pool.settings.kind, &wish.capabilities).map_err(|wrong| {
        let remedy = format!("pool {} is of kind {}", pool.settings.name, pool.settings.kind.as_str());
        Problem::new("volume_capabilities", "", format!("can't be served ({wrong})"), remedy)
    })?;
    let can_be_thick = match content {
        ContentKind::Block | ContentKind::Filesystem(_) => true,
        ContentKind::Directory => false,
    };
    if wish.parameters.provisioning == Provisioning::Thick && !can_be_thick {
        let remedy = "a directory takes no space of its own; leave it out or use a pool of kind image";
        return Err(Problem::new("parameters[provisioning]", "thick", "is not offered by this pool", remedy).into());
    }
    let bytes = wish.range.choose(content)?;
    pool.check_writable()?;
    let record = build(state, pool, wish, content, bytes, &guard)?;
    Ok(CreateVolumeResponse { volume: Some(describe(&record, node)) })
}

/// The volume of the wanted name, taken: nobody deletes it while the guard is held. The caller holds the name.
fn find<'a>(
    state: &'a State,
    wanted: Option<&'a Pool>,
    name: &str,
) -> Result<Option<(Guard, &'a Pool, VolumeRecord)>, CreateError> {
    // A pool that nobody asks for needn't be available; the wanted one, if there is such, must be.
    if let Some(pool) = wanted {
        pool.check()?;
    }
    match state.pools.find_by_name(wanted, name)? {
        Some((its_pool, found)) => take(state, its_pool, &found),
        None => Ok(None),
    }
}

/// Takes a volume that was found just now, and looks again: a DeleteVolume may have ended in between.
fn take<'a>(
    state: &'a State,
    pool: &'a Pool,
    found: &VolumeRecord,
) -> Result<Option<(Guard, &'a Pool, VolumeRecord)>, CreateError> {
    let guard = state.in_flight.begin(found.id.as_str(), "CreateVolume")?;
    pool.check()?;
    Ok(pool.find_by_name(&found.name)?.map(|record| (guard, pool, record)))
}

/// A volume as the CSI messages describe it. A directory's size is unknown, as nothing enforces one.
pub(super) fn describe(record: &VolumeRecord, node: &str) -> Volume {
    let bytes = match record.content {
        Content::Block | Content::Filesystem { .. } => record.bytes,
        Content::Directory => 0,
    };
    Volume {
        volume_id: record.id.as_str().to_owned(),
        // Sizes were checked to fit when the volume was made.
        capacity_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        accessible_topology: vec![segments(node)],
        ..Volume::default()
    }
}

impl Wish {
    fn parse(request: &CreateVolumeRequest, node: &str) -> Result<Self, CreateError> {
        let name = required("name", &request.name)?.to_owned();
        names::check_volume_name(&name).map_err(|wrong| Problem::new("name", "", wrong, "use printable characters"))?;
        if request.volume_content_source.is_some() {
            let wrong = "is not offered: this driver makes no snapshots or clones yet";
            return Err(Problem::new("volume_content_source", "", wrong, "leave it out").into());
        }
        if !request.mutable_parameters.is_empty() {
            let wrong = "are not offered: the driver doesn't advertise MODIFY_VOLUME";
            return Err(Problem::new("mutable_parameters", "", wrong, "leave them out").into());
        }
        check_map("secrets", &request.secrets)?;
        let parameters = Parameters::parse(&request.parameters)?;
        let capabilities = capabilities(&request.volume_capabilities, &parameters)
            .map_err(|(Rejected::Invalid(problem) | Rejected::Unsupported(problem))| problem)?;
        let range = SizeRange::parse(request.capacity_range.as_ref())?;
        let on_this_node = admits(request.accessibility_requirements.as_ref(), node);
        Ok(Self { name, capabilities, parameters, range, on_this_node })
    }

    /// In what an existing volume of that name isn't what is asked for.
    fn difference(&self, pool: &Pool, existing: &VolumeRecord) -> Option<String> {
        if let Some(wanted) = self.parameters.pool.as_ref().filter(|wanted| **wanted != pool.settings.name) {
            return Some(format!("in pool {}, not {wanted}", pool.settings.name));
        }
        if self.parameters.provisioning != existing.provisioning {
            return Some("it is provisioned otherwise".to_owned());
        }
        if !self.range.admits(existing.bytes) {
            return Some(format!("with {} bytes, outside of capacity_range", existing.bytes));
        }
        self.capabilities.iter().find_map(|capability| capability.fits(existing.content.kind()).err())
    }
}

/// The capabilities of a request, which must have some. Where one names no filesystem, the StorageClass may.
pub(super) fn capabilities(
    capabilities: &[keelson_proto::csi::v1::VolumeCapability],
    parameters: &Parameters,
) -> Result<Vec<Capability>, Rejected> {
    if capabilities.is_empty() {
        return Err(Rejected::Invalid(Problem::new("volume_capabilities", "", "is missing", "it is required")));
    }
    let parse = |(index, capability)| {
        let mut parsed = Capability::parse(&format!("volume_capabilities[{index}]"), Some(capability))?;
        if let (Access::Mount { filesystem, .. }, Some(default)) = (&mut parsed.access, &parameters.filesystem)
            && filesystem.is_empty()
        {
            filesystem.clone_from(default);
        }
        Ok(parsed)
    };
    capabilities.iter().enumerate().map(parse).collect()
}

/// The pool that the StorageClass names, else the first that can serve the request.
pub(super) fn pool_for<'a>(state: &'a State, parameters: &Parameters, capabilities: &[Capability]) -> Option<&'a Pool> {
    match &parameters.pool {
        Some(name) => state.pools.named(name),
        None => state.pools.iter().find(|pool| content_for(pool.settings.kind, capabilities).is_ok()),
    }
}

fn choose_pool<'a>(state: &'a State, wish: &Wish) -> Result<&'a Pool, Problem> {
    pool_for(state, &wish.parameters, &wish.capabilities).ok_or_else(|| {
        let known = state.pools.iter().map(|pool| pool.settings.name.as_str()).collect::<Vec<_>>().join(", ");
        match &wish.parameters.pool {
            Some(name) => {
                let remedy = format!("this node's pools are: {known}");
                Problem::new("parameters[pool]", name, "is not a pool of this node", remedy)
            }
            None => {
                // The first pool's reason stands for all.
                let reason = state
                    .pools
                    .iter()
                    .find_map(|pool| content_for(pool.settings.kind, &wish.capabilities).err())
                    .unwrap_or_default();
                let wrong = format!("can't be served by any pool of this node ({reason})");
                Problem::new("volume_capabilities", "", wrong, format!("this node's pools are: {known}"))
            }
        }
    })
}

/// Builds the volume beside the others and renames it into place.
fn build(
    state: &State,
    pool: &Pool,
    wish: Wish,
    content: ContentKind,
    bytes: u64,
    hold: &Hold,
) -> Result<VolumeRecord, CreateError> {
    // Counts until the volume counts itself.
    let _reservation = match content {
        ContentKind::Block | ContentKind::Filesystem(_) => Some(state.pools.reserve(pool, bytes)?),
        ContentKind::Directory => {
            let available = state.pools.available(pool)?;
            if bytes > available {
                let pool = pool.settings.name.clone();
                return Err(Lacking::Space { pool, bytes, largest: available }.into());
            }
            None
        }
    };
    let id = VolumeId::generate();
    let draft = pool.build(&id)?;
    let provisioning = wish.parameters.provisioning;
    let content = match content {
        ContentKind::Directory => {
            let path = data(draft.folder());
            rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
                .map_err(|error| StoreError::io("create", &path)(error.into()))?;
            Content::Directory
        }
        ContentKind::Block | ContentKind::Filesystem(_) => {
            let path = image(draft.folder());
            let file = create_image(&path, bytes)?;
            let content = if let ContentKind::Filesystem(filesystem) = content {
                let uuid = Uuid::new_v4();
                // Before it is a volume, and so once in a volume's life.
                format(&state.settings.helper, filesystem, &path, uuid, Arc::clone(hold))?;
                match superblock::read(&file).map_err(StoreError::io("read", &path))? {
                    Signature::Filesystem(found) if (found.filesystem, found.uuid) == (filesystem, uuid) => {
                        Content::Filesystem { filesystem, uuid }
                    }
                    _ => return Err(CreateError::NotFormatted { filesystem, uuid, image: path.display().to_string() }),
                }
            } else {
                Content::Block
            };
            // Only now: mkfs makes holes where it wants zeros.
            if provisioning == Provisioning::Thick {
                fill_holes(&file, &path, bytes)?;
            }
            file.sync_all().map_err(StoreError::io("sync", &path))?;
            content
        }
    };
    let record = VolumeRecord::new(id, wish.name, bytes, provisioning, content);
    draft.commit(record.clone())?;
    tracing::info!(volume = %record.id, name = record.name, pool = pool.settings.name, bytes, "volume created");
    Ok(record)
}

#[cfg(test)]
mod tests {
    use keelson_host::{HostRoot, Node};
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::{PoolKind, PoolSection, StorageSection, service::Metrics, store::Attachments};

    #[test]
    fn a_volume_that_was_found_but_is_deleted_by_now_is_no_answer() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("state");
        let node = Node { name: "node-a".to_owned(), state_dir, root: HostRoot::system() };
        let path = directory.path().join("pool");
        std::fs::create_dir(&path).unwrap();
        let pool =
            PoolSection { path, kind: PoolKind::Directory, allow_shared_filesystem: true, ..PoolSection::default() };
        let section = StorageSection { pools: vec![pool], ..StorageSection::default() };
        let attachments = Attachments::open(&node.state_dir).unwrap();
        let metrics = Metrics::register(&mut Registry::default());
        let state = State::new(section.validate(&node).unwrap(), attachments, metrics);
        let pool = state.pools.named("default").unwrap();
        pool.check().unwrap();
        let id = VolumeId::generate();
        let found = VolumeRecord::new(id.clone(), "pvc-1".to_owned(), 0, Provisioning::Thin, Content::Directory);
        pool.build(&id).unwrap().commit(found.clone()).unwrap();

        let deleting = state.in_flight.begin(id.as_str(), "DeleteVolume").unwrap();
        assert!(matches!(find(&state, Some(pool), "pvc-1"), Err(CreateError::Pending(_))));
        pool.remove(&id).unwrap();
        drop(deleting);
        assert!(take(&state, pool, &found).unwrap().is_none());
    }
}
