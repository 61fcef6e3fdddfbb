//! The GroupController service: snapshots of several volumes at one instant.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use group_controller_service_capability::rpc::Type;
use keelson_host::{Problem, error_chain};
use keelson_proto::csi::v1::{
    CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse, DeleteVolumeGroupSnapshotRequest,
    DeleteVolumeGroupSnapshotResponse, GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse,
    GroupControllerGetCapabilitiesRequest, GroupControllerGetCapabilitiesResponse, GroupControllerServiceCapability,
    VolumeGroupSnapshot, group_controller_server::GroupController, group_controller_service_capability,
};
use tonic::{Request, Response, Status};

use super::{
    Service, SnapshotError, State,
    origin::{Origin, OriginError},
    request::required,
    snapshot::{self, Cut, Space},
};
use crate::{
    kernel::{
        Hold, KernelError, Presence,
        freeze::{FreezeError, Frozen, freeze, thaw_leftover},
    },
    policy::{ContentKind, GroupId, GroupParameters, SnapshotId, TargetPath, check_map},
    store::{GroupRecord, Kept, LookupError, Pool, SnapshotRecord, Staged, StoreError, Unavailable},
};

/// Why no group of snapshots was made, found or deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(
        "volume {one} is in pool {pool} and volume {other} in pool {others}: what lies in several pools can't be cut at \
         one instant"
    )]
    Apart { one: String, pool: String, other: String, others: String },
    #[error(
        "volumes {} are in use and would not be cut at one instant; {remedy}", volumes.join(", ")
    )]
    Loose { volumes: Vec<String>, remedy: &'static str },
    #[error(transparent)]
    Freeze(#[from] FreezeError),
}

impl From<Problem> for GroupError {
    fn from(problem: Problem) -> Self {
        SnapshotError::from(problem).into()
    }
}

impl From<LookupError> for GroupError {
    fn from(error: LookupError) -> Self {
        SnapshotError::from(error).into()
    }
}

impl From<StoreError> for GroupError {
    fn from(error: StoreError) -> Self {
        SnapshotError::from(error).into()
    }
}

impl From<OriginError> for GroupError {
    fn from(error: OriginError) -> Self {
        SnapshotError::from(error).into()
    }
}

impl From<Unavailable> for GroupError {
    fn from(error: Unavailable) -> Self {
        SnapshotError::from(error).into()
    }
}

impl From<super::Pending> for GroupError {
    fn from(error: super::Pending) -> Self {
        SnapshotError::from(error).into()
    }
}

#[tonic::async_trait]
impl GroupController for Service {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        let rpc = group_controller_service_capability::Rpc { r#type: Type::CreateDeleteGetVolumeGroupSnapshot.into() };
        let r#type = Some(group_controller_service_capability::Type::Rpc(rpc));
        let capabilities = vec![GroupControllerServiceCapability { r#type }];
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        self.answer("CreateVolumeGroupSnapshot", &name, move |state| create(state, &request)).await
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let group = request.group_snapshot_id.clone();
        self.answer("DeleteVolumeGroupSnapshot", &group, move |state| delete(state, &request)).await
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let group = request.group_snapshot_id.clone();
        self.answer("GetVolumeGroupSnapshot", &group, move |state| get(state, &request)).await
    }
}

const CREATE: &str = "CreateVolumeGroupSnapshot";

fn create(
    state: &State,
    request: &CreateVolumeGroupSnapshotRequest,
) -> Result<CreateVolumeGroupSnapshotResponse, GroupError> {
    let name = snapshot::name(&request.name)?;
    let volumes = &request.source_volume_ids;
    let first = check_volumes(volumes)?;
    check_map("secrets", &request.secrets)?;
    let parameters = GroupParameters::parse(&request.parameters)?;
    let _name = state.in_flight.begin(format!("group snapshot {name:?}"), CREATE)?;
    if let Some((_guard, group)) = snapshot::find::<GroupRecord>(state, first, name, CREATE)? {
        let members = members(state, &group)?;
        let of: BTreeSet<&str> = members.iter().map(|member| member.volume.as_str()).collect();
        if of == volumes.iter().map(String::as_str).collect() {
            return Ok(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(describe(state, &group, &members)) });
        }
        let difference = "it is of other volumes".to_owned();
        return Err(SnapshotError::Exists { what: GroupRecord::WHAT, name: name.to_owned(), difference }.into());
    }
    let origins: Vec<_> =
        volumes.iter().map(|volume| Origin::volume(state, volume, CREATE)).collect::<Result<_, _>>()?;
    let origins = Arc::new(origins);
    let pool = common_pool(&origins)?;
    let _turn = pool.enter()?;
    pool.check_writable()?;
    let to_freeze = to_freeze(state, &origins, parameters)?;
    let mut spaces: Vec<_> =
        origins.iter().map(|origin| Space::reserve(state, origin)).collect::<Result<_, SnapshotError>>()?;
    let id = GroupId::generate();
    let draft = pool.build(id.as_str())?;
    let mut folders: Vec<(SnapshotId, PathBuf)> = Vec::with_capacity(origins.len());
    for _ in origins.iter() {
        let member = SnapshotId::generate();
        let folder = draft.make_folder(member.as_str())?;
        folders.push((member, folder));
    }
    let frozen = freeze_all(state, &to_freeze, parameters)?;
    let cuts: Result<Vec<Cut>, SnapshotError> =
        origins.iter().zip(&folders).map(|(origin, (_, folder))| Cut::make(origin, folder)).collect();
    // Before anything else, whatever came of the cuts.
    let pause = frozen.map(Frozen::thaw).transpose()?;
    let cuts = cuts?;
    let pause_microseconds = u64::try_from(pause.unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
    let mut snapshots = Vec::with_capacity(cuts.len());
    let created = cuts.first().map_or_else(snapshot::now, |cut| cut.created);
    for (((origin, cut), (member, folder)), space) in origins.iter().zip(cuts).zip(folders).zip(&mut spaces) {
        space.keep(state, origin, cut.held)?;
        let record = SnapshotRecord {
            id: member,
            // It was asked for under the group's.
            name: String::new(),
            volume: origin.volume.clone(),
            bytes: origin.bytes,
            held: cut.held,
            created,
            content: origin.content.clone(),
            family: origin.family.clone(),
            template_bytes: origin.template_bytes,
            group: Some(id.clone()),
        };
        draft.seal(&folder, &record, cut.image.as_ref())?;
        snapshots.push(record);
    }
    let ids = snapshots.iter().map(|member| member.id.clone()).collect();
    let group = GroupRecord { id, name: name.to_owned(), created, snapshots: ids, pause_microseconds };
    draft.commit_group(&group, snapshots.clone())?;
    if let Some(pause) = pause {
        state.metrics.observe_freeze(pause);
    }
    let (id, volumes, pool) = (&group.id, origins.len(), &pool.settings.name);
    tracing::info!(group = %id, name, volumes, pool, pause_microseconds, "group of snapshots created");
    let snapshots: Vec<_> = snapshots.into_iter().map(Arc::new).collect();
    Ok(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(describe(state, &group, &snapshots)) })
}

/// Checks the volumes of a request, which must be different ones; gives the first.
fn check_volumes(volumes: &[String]) -> Result<&str, Problem> {
    let at = "source_volume_ids";
    let mut seen = BTreeSet::new();
    for volume in volumes {
        required(at, volume)?;
        if !seen.insert(volume) {
            return Err(Problem::new(at, volume, "is there twice", "name each volume once"));
        }
    }
    volumes.first().map(String::as_str).ok_or_else(|| Problem::new(at, "", "is missing", "name at least one volume"))
}

fn common_pool<'a>(origins: &[Origin<'a>]) -> Result<&'a Pool, GroupError> {
    let [first, rest @ ..] = origins else {
        return Err(Problem::new("source_volume_ids", "", "is missing", "name at least one volume").into());
    };
    match rest.iter().find(|origin| !std::ptr::eq(origin.pool, first.pool)) {
        None => Ok(first.pool),
        Some(other) => Err(GroupError::Apart {
            one: first.volume.to_string(),
            pool: first.pool.settings.name.clone(),
            other: other.volume.to_string(),
            others: other.pool.settings.name.clone(),
        }),
    }
}

/// Where the filesystems are mounted that are to be frozen.
///
/// A volume that nobody uses doesn't change, and nobody begins to use it: each is taken. So all are cut at one instant if
/// at most one of them goes on changing while the others are cut.
fn to_freeze(
    state: &State,
    origins: &[Origin<'_>],
    parameters: GroupParameters,
) -> Result<Vec<TargetPath>, GroupError> {
    let (mut targets, mut changing) = (Vec::new(), Vec::new());
    for origin in origins {
        let kind = origin.content.kind();
        let presence = Presence::read(&state.settings.root, &origin.path, kind)?;
        let Some(by) = presence.use_of() else { continue };
        let target = by.into_os_string().into_string().ok().and_then(|path| TargetPath::try_from(path).ok());
        match target {
            Some(target)
                if parameters.freeze
                    && matches!(kind, ContentKind::Filesystem(_))
                    && presence.is_at(&target).map_err(GroupError::from)? =>
            {
                targets.push(target);
            }
            _ => changing.push(origin.volume.to_string()),
        }
    }
    if changing.len() < 2 {
        return Ok(targets);
    }
    let remedy = if parameters.freeze {
        "only mounted filesystems can be frozen, so of raw block volumes and subvolumes unstage all but one"
    } else {
        "set freeze: \"true\" in the VolumeGroupSnapshotClass, or unstage all but one of them"
    };
    Err(GroupError::Loose { volumes: changing, remedy })
}

fn freeze_all(
    state: &State,
    targets: &[TargetPath],
    parameters: GroupParameters,
) -> Result<Option<Frozen>, GroupError> {
    if targets.is_empty() {
        return Ok(None);
    }
    let mut held = Vec::with_capacity(targets.len());
    for target in targets {
        // A helper that can't be killed may yet thaw; until then nobody else freezes there.
        held.push(state.in_flight.begin(format!("the freeze of {target}"), CREATE)?);
    }
    let hold: Hold = Arc::new(held);
    Ok(Some(freeze(&state.settings.helper, targets, parameters.freeze_timeout, hold)?))
}

fn delete(
    state: &State,
    request: &DeleteVolumeGroupSnapshotRequest,
) -> Result<DeleteVolumeGroupSnapshotResponse, GroupError> {
    const OPERATION: &str = "DeleteVolumeGroupSnapshot";
    let id = required("group_snapshot_id", &request.group_snapshot_id)?;
    check_map("secrets", &request.secrets)?;
    let _guard = state.in_flight.begin(id, OPERATION)?;
    let (pool, group) = match state.pools.locate::<GroupRecord>(id) {
        Ok(found) => found,
        Err(LookupError::Unknown { .. }) => return Ok(DeleteVolumeGroupSnapshotResponse {}),
        Err(error) => return Err(error.into()),
    };
    let _turn = pool.enter()?;
    check_members(&group, &request.snapshot_ids)?;
    // Whoever makes a volume of one shares it meanwhile.
    let _members: Vec<_> = group
        .snapshots
        .iter()
        .map(|member| state.in_flight.begin(member.as_str(), OPERATION))
        .collect::<Result<_, _>>()?;
    pool.remove_group(&group)?;
    tracing::info!(group = id, name = group.name, pool = pool.settings.name, "group of snapshots deleted");
    Ok(DeleteVolumeGroupSnapshotResponse {})
}

fn get(state: &State, request: &GetVolumeGroupSnapshotRequest) -> Result<GetVolumeGroupSnapshotResponse, GroupError> {
    let id = required("group_snapshot_id", &request.group_snapshot_id)?;
    check_map("secrets", &request.secrets)?;
    let _guard = state.in_flight.begin_in_turn(format!("a look at {id}"), "GetVolumeGroupSnapshot")?;
    let (_, group) = state.pools.locate::<GroupRecord>(id)?;
    check_members(&group, &request.snapshot_ids)?;
    let members = members(state, &group)?;
    Ok(GetVolumeGroupSnapshotResponse { group_snapshot: Some(describe(state, &group, &members)) })
}

/// "If the list doesn't match [...] INVALID_ARGUMENT" (CSI spec).
fn check_members(group: &GroupRecord, snapshots: &[String]) -> Result<(), Problem> {
    let expected: BTreeSet<&str> = group.snapshots.iter().map(SnapshotId::as_str).collect();
    if expected == snapshots.iter().map(String::as_str).collect() {
        return Ok(());
    }
    let remedy = format!("it has {}", expected.into_iter().collect::<Vec<_>>().join(", "));
    Err(Problem::new("snapshot_ids", "", "are not the snapshots of the group", remedy))
}

fn members(state: &State, group: &GroupRecord) -> Result<Vec<Arc<SnapshotRecord>>, LookupError> {
    let member = |id: &SnapshotId| state.pools.locate::<SnapshotRecord>(id.as_str()).map(|(_, record)| record);
    group.snapshots.iter().map(member).collect()
}

fn describe(state: &State, group: &GroupRecord, members: &[Arc<SnapshotRecord>]) -> VolumeGroupSnapshot {
    let node = &state.settings.node_name;
    VolumeGroupSnapshot {
        group_snapshot_id: group.id.to_string(),
        snapshots: members.iter().map(|member| snapshot::describe(member, node)).collect(),
        creation_time: Some(snapshot::timestamp(group.created)),
        ready_to_use: true,
    }
}

/// Thaws what a driver that was killed together with its helper left frozen. Where everybody waits for that, nothing
/// else would get on. Who froze it can't be told then, so what an admin froze of a staged volume is thawed as well.
pub(crate) fn thaw_leftovers(state: &State) {
    /// A filesystem that can't even be opened must not keep the driver from starting.
    const PATIENCE: Duration = Duration::from_secs(5);
    let mounts = match keelson_host::mounts(&state.settings.root) {
        Ok(mounts) => mounts,
        Err(error) => return tracing::error!(%error, "can't tell whether a filesystem was left frozen: no mount table"),
    };
    let points: BTreeSet<_> = mounts.into_iter().map(|mount| mount.point).collect();
    let helper = state.settings.helper.clone().with_deadline(PATIENCE);
    let ids = state.attachments.ids().unwrap_or_else(|error| {
        tracing::error!(error = error_chain(&error), "can't tell which filesystems may have been left frozen");
        Vec::new()
    });
    for id in ids {
        let staged = match state.attachments.read(&id) {
            Ok(attachment) => attachment.staged,
            Err(error) => {
                tracing::error!(volume = %id, error = error_chain(&error), "can't tell whether it was left frozen");
                None
            }
        };
        let Some(Staged { path, .. }) = staged.filter(|staged| points.contains(staged.path.as_path())) else {
            continue;
        };
        if let Err(error) = thaw_leftover(&helper, &path, Arc::new(())) {
            tracing::warn!(volume = %id, %path, %error, "failed to look whether a filesystem was left frozen");
        }
    }
}
