//! The Node service.

use keelson_proto::csi::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetStorageHealthRequest, NodeGetStorageHealthResponse,
    NodeGetVolumeHealthRequest, NodeGetVolumeHealthResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, node_server::Node, node_service_capability,
};
use node_service_capability::rpc::Type;
use tonic::{Request, Response, Status};

use super::{Service, expand, publish, stage, stats};
use crate::{
    error::QueryError,
    policy::{check_map, segments},
};

#[tonic::async_trait]
impl Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("NodeStageVolume", &volume, move |state| stage::stage(state, &request)).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("NodeUnstageVolume", &volume, move |state| stage::unstage(state, &request)).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("NodePublishVolume", &volume, move |state| publish::publish(state, &request)).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("NodeUnpublishVolume", &volume, move |state| publish::unpublish(state, &request)).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("NodeGetVolumeStats", &volume, move |state| stats::stats(state, &request)).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let always = [Type::StageUnstageVolume, Type::GetVolumeStats, Type::ExpandVolume, Type::SingleNodeMultiWriter];
        let if_wanted = [Type::GetVolumeHealth, Type::GetStorageHealth];
        let wanted = if_wanted.into_iter().filter(|_| self.state().settings.volume_health);
        let capability = |kind: Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(node_service_capability::Rpc { r#type: kind.into() })),
        };
        let capabilities = always.into_iter().chain(wanted).map(capability).collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    /// No `max_volumes_per_node`: loop devices are made as needed, so nothing but space limits their number.
    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let node = &self.state().settings.node_name;
        Ok(Response::new(NodeGetInfoResponse {
            node_id: node.clone(),
            accessible_topology: Some(segments(node)),
            ..NodeGetInfoResponse::default()
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        self.answer("NodeExpandVolume", &volume, move |state| expand::expand(state, &request)).await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let volume_health = Some(self.volume_health(&request.into_inner().volume_id).await?);
        Ok(Response::new(NodeGetVolumeHealthResponse { volume_health }))
    }

    async fn node_get_storage_health(
        &self,
        request: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        check_map("secrets", &request.into_inner().secrets).map_err(QueryError::from)?;
        Ok(Response::new(NodeGetStorageHealthResponse { backend_health: self.storage_health().await }))
    }
}
