//! CreateVolume.

use std::sync::Arc;

use keelson_host::Problem;
use keelson_proto::csi::v1::{
    CreateVolumeRequest, CreateVolumeResponse, Volume, VolumeContentSource,
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use uuid::Uuid;

use super::{
    Guard, Pending, State,
    build::{Made, Plan},
    origin::{Origin, OriginError, Wanted},
    request::required,
};
use crate::{
    kernel::{HelperError, Hold, reflink::CloneError, superblock::SetUuidError},
    policy::{
        Abilities, Access, Capability, Changes, ContentKind, FilesystemType, OutOfRange, Parameters, Provisioning,
        Rejected, Settings, SizeRange, TOPOLOGY_KEY, VolumeId, admits, check_map, content_for, names, segments,
    },
    store::{Lacking, Pace, Pool, Reservation, Source, StoreError, Unavailable, VolumeRecord, promise_of},
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
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Clone(CloneError),
    #[error("failed to give the new filesystem an identity of its own")]
    Identity(#[source] SetUuidError),
}

impl From<Problem> for CreateError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

/// What the request comes down to.
pub(super) struct Wish {
    pub(super) name: String,
    pub(super) capabilities: Vec<Capability>,
    parameters: Parameters,
    /// What mutable_parameters ask for; they win over `parameters`.
    pub(super) changes: Changes,
    pub(super) range: SizeRange,
    source: Option<Wanted>,
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
            None => Ok(CreateVolumeResponse { volume: Some(describe(pool, &existing, node)) }),
        };
    }
    if !wish.on_this_node {
        return Err(CreateError::Topology { node: node.clone() });
    }
    let origin = wish.source.as_ref().map(|source| Origin::take(state, source, "CreateVolume")).transpose()?;
    let plan = plan(state, &wish, origin.as_ref())?;
    let _turn = plan.pool.enter()?;
    plan.pool.check_writable()?;
    // Counts until the volume counts itself.
    let _reservation = reserve(state, &plan)?;
    let id = VolumeId::generate();
    let draft = plan.pool.build(id.as_str())?;
    let Made { content, image, template_bytes } = plan.carry_out(state, draft.folder(), &guard)?;
    let mut record = VolumeRecord {
        source: origin.as_ref().map(|origin| origin.source.clone()),
        family: origin.as_ref().map(|origin| origin.family.clone()),
        template_bytes,
        settings: Settings::default().with(&wish.changes),
        ..VolumeRecord::new(id, wish.name, plan.bytes, plan.provisioning, content)
    };
    state.pools.limit(plan.pool, draft.folder(), &mut record)?;
    let record = draft.commit(record, image.as_ref())?;
    let (pool, bytes) = (&plan.pool.settings.name, plan.bytes);
    tracing::info!(volume = %record.id, name = record.name, pool, bytes, "volume created");
    Ok(CreateVolumeResponse { volume: Some(describe(plan.pool, &record, node)) })
}

/// Keeps room for it, and gives up for that what the pool can do without.
fn reserve(state: &State, plan: &Plan<'_>) -> Result<Reservation, CreateError> {
    let needed = promise_of(plan.kind, plan.bytes, plan.pool);
    let reserve = || state.pools.reserve(plan.pool, plan.bytes, needed, Pace::of(plan.provisioning));
    match reserve() {
        Err(Lacking::Space { .. }) if plan.pool.make_room()? => Ok(reserve()?),
        other => Ok(other?),
    }
}

/// What is to be made, and where.
fn plan<'a>(state: &'a State, wish: &Wish, origin: Option<&'a Origin<'a>>) -> Result<Plan<'a>, CreateError> {
    let pool = match origin {
        None => choose_pool(state, wish)?,
        Some(origin) => match &wish.parameters.pool {
            Some(wanted) if *wanted != origin.pool.settings.name => {
                let wrong = format!("is not where {} is", origin.source.as_str());
                let remedy = format!("blocks are shared within one pool only: name {}", origin.pool.settings.name);
                return Err(Problem::new("parameters[pool]", wanted, wrong, remedy).into());
            }
            _ => origin.pool,
        },
    };
    let unserved = |wrong: String| {
        let remedy = format!("pool {} is of kind {}", pool.settings.name, pool.settings.kind.as_str());
        Problem::new("volume_capabilities", "", format!("can't be served ({wrong})"), remedy)
    };
    let kind = match origin {
        None => content_for(pool.settings.kind, &wish.capabilities).map_err(unserved)?,
        Some(origin) => {
            let kind = origin.content.kind();
            wish.capabilities.iter().try_for_each(|capability| capability.fits(kind)).map_err(unserved)?;
            kind
        }
    };
    let provisioning = wish.provisioning();
    if provisioning == Provisioning::Thick && !kind.is_image() {
        let remedy = "a directory takes no space of its own; leave it out or use a pool of kind image";
        let at = if wish.changes.provisioning.is_some() { "mutable_parameters" } else { "parameters" };
        let at = format!("{at}[provisioning]");
        return Err(Problem::new(at, "thick", "is not offered by this pool", remedy).into());
    }
    fit(&wish.changes, kind, pool.abilities())?;
    let enforced = pool.abilities().enforces_sizes;
    let bytes = wish.range.choose(kind, enforced, origin.map_or(0, |origin| origin.bytes))?;
    Ok(Plan { pool, kind, bytes, provisioning, origin })
}

/// Checks that a volume of that kind can be set so.
pub(super) fn fit(changes: &Changes, kind: ContentKind, abilities: Abilities) -> Result<(), Problem> {
    let wrong = "is not offered by this volume's pool";
    let Settings { read_ahead_kib, direct_io, inodes } = changes.settings;
    let device = "it is a property of a block device; use a pool of kind image";
    if let Some(value) = read_ahead_kib.filter(|_| !kind.is_image()) {
        return Err(Problem::new("mutable_parameters[readAheadKiB]", value, wrong, device));
    }
    if let Some(value) = direct_io.filter(|_| !kind.is_image()) {
        return Err(Problem::new("mutable_parameters[directIo]", value, wrong, device));
    }
    if let Some(value) = inodes.filter(|_| kind != ContentKind::Directory || !abilities.enforces_sizes) {
        let remedy = "it is a project quota's; use a pool of kind directory on a filesystem mounted with prjquota";
        return Err(Problem::new("mutable_parameters[inodes]", value, wrong, remedy));
    }
    if changes.provisioning.is_some() && !kind.is_image() {
        let remedy = "a directory takes no space of its own; leave it out";
        return Err(Problem::new("mutable_parameters[provisioning]", "", wrong, remedy));
    }
    Ok(())
}

/// A volume that was found, taken, and the pool that holds it.
type Taken<'a> = (Guard, &'a Pool, Arc<VolumeRecord>);

/// The volume of the wanted name, taken: nobody deletes it while the guard is held. The caller holds the name.
fn find<'a>(state: &'a State, wanted: Option<&'a Pool>, name: &str) -> Result<Option<Taken<'a>>, CreateError> {
    // A pool that nobody asks for needn't be available; the wanted one, if there is such, must be.
    if let Some(pool) = wanted {
        let _turn = pool.enter()?;
        pool.check()?;
    }
    match state.pools.find_by_name(wanted, name)? {
        Some((its_pool, found)) => take(state, its_pool, &found),
        None => Ok(None),
    }
}

/// Takes a volume that was found just now, and looks again: a DeleteVolume may have ended in between.
fn take<'a>(state: &'a State, pool: &'a Pool, found: &VolumeRecord) -> Result<Option<Taken<'a>>, CreateError> {
    let guard = state.in_flight.begin(found.id.as_str(), "CreateVolume")?;
    let _turn = pool.enter()?;
    pool.check()?;
    Ok(pool.find_by_name(&found.name)?.map(|record| (guard, pool, record)))
}

/// A volume as the CSI messages describe it. Where nothing enforces its size, that is unknown (0), unless the pool says
/// that it is to be told as it was asked for.
pub(super) fn describe(pool: &Pool, record: &VolumeRecord, node: &str) -> Volume {
    let told = pool.enforces(record) || pool.settings.unenforced_sizes;
    let bytes = if told { record.bytes } else { 0 };
    let source = record.source.as_ref().map(|source| match source {
        Source::Volume(id) => Type::Volume(VolumeSource { volume_id: id.as_str().to_owned() }),
        Source::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.as_str().to_owned() }),
    });
    Volume {
        volume_id: record.id.as_str().to_owned(),
        // Sizes were checked to fit when the volume was made.
        capacity_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
        accessible_topology: vec![segments(node)],
        ..Volume::default()
    }
}

impl Wish {
    pub(super) fn parse(request: &CreateVolumeRequest, node: &str) -> Result<Self, CreateError> {
        let name = required("name", &request.name)?.to_owned();
        names::check_volume_name(&name).map_err(|wrong| Problem::new("name", "", wrong, "use printable characters"))?;
        check_map("secrets", &request.secrets)?;
        let parameters = Parameters::parse(&request.parameters)?;
        let changes = Changes::parse(&request.mutable_parameters)?;
        let source = Wanted::parse(request.volume_content_source.as_ref())?;
        let capabilities = capabilities(&request.volume_capabilities, &parameters)
            .map_err(|(Rejected::Invalid(problem) | Rejected::Unsupported(problem))| problem)?;
        let range = SizeRange::parse(request.capacity_range.as_ref())?;
        let on_this_node = admits(request.accessibility_requirements.as_ref(), node);
        Ok(Self { name, capabilities, parameters, changes, range, source, on_this_node })
    }

    fn provisioning(&self) -> Provisioning {
        self.changes.provisioning.unwrap_or(self.parameters.provisioning)
    }

    /// In what an existing volume of that name isn't what is asked for.
    fn difference(&self, pool: &Pool, existing: &VolumeRecord) -> Option<String> {
        if let Some(wanted) = self.parameters.pool.as_ref().filter(|wanted| **wanted != pool.settings.name) {
            return Some(format!("in pool {}, not {wanted}", pool.settings.name));
        }
        if self.provisioning() != existing.provisioning {
            let (has, wanted) = (existing.provisioning.as_str(), self.provisioning().as_str());
            return Some(format!("it is {has}, not {wanted}"));
        }
        match (&self.source, &existing.source) {
            (None, None) => {}
            (Some(wanted), Some(source)) if wanted.is(source) => {}
            (wanted, source) => {
                let source = source.as_ref().map_or("nothing", Source::as_str);
                return Some(format!(
                    "it was made from {source}, not {}",
                    wanted.as_ref().map_or("nothing", Wanted::id)
                ));
            }
        }
        if !self.range.admits(existing.bytes) {
            let SizeRange { required, limit } = self.range;
            let limit = limit.map_or_else(String::new, |limit| format!(" and at most {limit}"));
            return Some(format!("with {} bytes, not at least {required}{limit}", existing.bytes));
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

#[cfg(test)]
mod tests {
    use keelson_host::{HostRoot, Node};
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::{PoolKind, PoolSection, StorageSection, policy::Content, service::Metrics, store::Attachments};

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
        pool.build(id.as_str()).unwrap().commit(found.clone(), None).unwrap();

        let deleting = state.in_flight.begin(id.as_str(), "DeleteVolume").unwrap();
        assert!(matches!(find(&state, Some(pool), "pvc-1"), Err(CreateError::Pending(_))));
        pool.remove(&found).unwrap();
        drop(deleting);
        assert!(take(&state, pool, &found).unwrap().is_none());
    }
}
