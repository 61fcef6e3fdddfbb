//! The Controller service.

use controller_service_capability::rpc::Type;
use keelson_proto::csi::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse,
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerListVolumeHealthRequest,
    ControllerListVolumeHealthResponse, ControllerModifyVolumeRequest, ControllerModifyVolumeResponse,
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerServiceCapability,
    ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse,
    CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse,
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
    controller_get_volume_response::VolumeStatus, controller_server::Controller, controller_service_capability,
    validate_volume_capabilities_response::Confirmed,
};
use tonic::{Request, Response, Status};

use super::{
    Service, State, capacity,
    create::{self, capabilities},
    delete, list, modify,
    request::required,
    snapshot,
};
use crate::{
    error::QueryError,
    policy::{Changes, Parameters, Rejected, check_map},
    store::VolumeRecord,
};

#[tonic::async_trait]
impl Controller for Service {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        self.answer("CreateVolume", &name, move |state| create::create(state, &request)).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("DeleteVolume", &volume, move |state| delete::delete(state, &request)).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("ValidateVolumeCapabilities", &volume, move |state| validate(state, request)).await
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let request = request.into_inner();
        self.answer("ListVolumes", "", move |state| list::volumes(state, &request)).await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let request = request.into_inner();
        self.answer("GetCapacity", "", move |state| capacity::capacity(state, &request)).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let always = [
            Type::CreateDeleteVolume,
            Type::ListVolumes,
            Type::GetVolume,
            Type::GetCapacity,
            Type::ModifyVolume,
            Type::SingleNodeMultiWriter,
        ];
        let of_copies = [Type::CreateDeleteSnapshot, Type::ListSnapshots, Type::GetSnapshot, Type::CloneVolume];
        let of_copies = of_copies.into_iter().filter(|_| self.state().copies());
        let if_wanted = [Type::GetVolumeHealth, Type::ListVolumeHealth];
        let wanted = if_wanted.into_iter().filter(|_| self.state().settings.volume_health);
        let capability = |kind: Type| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(controller_service_capability::Rpc {
                r#type: kind.into(),
            })),
        };
        let capabilities = always.into_iter().chain(of_copies).chain(wanted).map(capability).collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        Err(Status::unimplemented("PUBLISH_UNPUBLISH_VOLUME is not advertised: a node's own disk needs no attaching"))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        Err(Status::unimplemented("PUBLISH_UNPUBLISH_VOLUME is not advertised: a node's own disk needs no attaching"))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let volume = request.into_inner().volume_id;
        let asked = volume.clone();
        self.answer("ControllerGetVolume", &volume, move |state| get(state, &asked)).await
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<ControllerListVolumeHealthRequest>,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        Ok(Response::new(self.list_volume_health(request.into_inner()).await?))
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        check_map("secrets", &request.secrets).map_err(QueryError::from)?;
        let volume_health = Some(self.volume_health(&request.volume_id).await?);
        Ok(Response::new(ControllerGetVolumeHealthResponse { volume_health }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        self.expect_copies("CREATE_DELETE_SNAPSHOT")?;
        let request = request.into_inner();
        let volume = request.source_volume_id.clone();
        self.answer("CreateSnapshot", &volume, move |state| snapshot::create(state, &request)).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        self.expect_copies("CREATE_DELETE_SNAPSHOT")?;
        let request = request.into_inner();
        let snapshot = request.snapshot_id.clone();
        self.answer("DeleteSnapshot", &snapshot, move |state| snapshot::delete(state, &request)).await
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        self.expect_copies("LIST_SNAPSHOTS")?;
        let request = request.into_inner();
        self.answer("ListSnapshots", "", move |state| list::snapshots(state, &request)).await
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        self.expect_copies("GET_SNAPSHOT")?;
        let request = request.into_inner();
        let snapshot = request.snapshot_id.clone();
        self.answer("GetSnapshot", &snapshot, move |state| snapshot::get(state, &request)).await
    }

    async fn controller_expand_volume(
        &self,
        _: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        // With this capability every node would need a resizer of its own. Without it, one for all of them marks the
        // claims, and NodeExpandVolume does the work.
        Err(Status::unimplemented("EXPAND_VOLUME is not advertised: volumes grow on their node, by NodeExpandVolume"))
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("ControllerModifyVolume", &volume, move |state| modify::modify(state, &request)).await
    }
}

fn get(state: &State, id: &str) -> Result<ControllerGetVolumeResponse, QueryError> {
    let (pool, record) = state.pools.locate::<VolumeRecord>(required("volume_id", id)?)?;
    let volume = create::describe(pool, &record, &state.settings.node_name);
    // Nobody attaches a node's own disk, so there are no published nodes to tell of.
    Ok(ControllerGetVolumeResponse { volume: Some(volume), status: Some(VolumeStatus::default()) })
}

/// What a volume can't be is no error: the answer then confirms nothing and says why. The volume context isn't
/// compared: the driver gives none, and sidecars add keys of their own.
fn validate(
    state: &State,
    request: ValidateVolumeCapabilitiesRequest,
) -> Result<ValidateVolumeCapabilitiesResponse, QueryError> {
    let id = required("volume_id", &request.volume_id)?;
    check_map("secrets", &request.secrets)?;
    let refuse = |message| Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message });
    let parameters = Parameters::parse(&request.parameters);
    let changes = Changes::parse(&request.mutable_parameters);
    let parsed = capabilities(&request.volume_capabilities, &Parameters::default());
    if let Err(Rejected::Invalid(problem)) = parsed {
        return Err(problem.into());
    }
    let (pool, record) = state.pools.locate::<VolumeRecord>(id)?;
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(Rejected::Invalid(problem) | Rejected::Unsupported(problem)) => return refuse(problem.to_string()),
    };
    for capability in &parsed {
        if let Err(reason) = capability.fits(record.content.kind()) {
            return refuse(reason);
        }
    }
    match parameters {
        Err(problem) => return refuse(problem.to_string()),
        Ok(Parameters { pool: Some(name), .. }) if name != pool.settings.name => {
            return refuse(format!("the volume is in pool {}, not {name}", pool.settings.name));
        }
        Ok(parameters) if !request.parameters.is_empty() && parameters.provisioning != record.provisioning => {
            let (has, wanted) = (record.provisioning.as_str(), parameters.provisioning.as_str());
            return refuse(format!("the volume is {has}, not {wanted}"));
        }
        Ok(_) => {}
    }
    if let Err(problem) = changes.and_then(|changes| create::fit(&changes, record.content.kind(), pool.abilities())) {
        return refuse(problem.to_string());
    }
    let confirmed = Confirmed {
        volume_context: request.volume_context,
        volume_capabilities: request.volume_capabilities,
        parameters: request.parameters,
        mutable_parameters: request.mutable_parameters,
    };
    Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
}
