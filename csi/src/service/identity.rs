//! The Identity service.

use keelson_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, identity_server::Identity, plugin_capability,
};
use plugin_capability::{service::Type, volume_expansion};
use tonic::{Request, Response, Status};

use super::Service;
use crate::{config::PoolKind, error::MissingProgram, kernel::program_exists, store::Pool};

/// What formats images.
const MKFS: &str = "mkfs.ext4";

#[tonic::async_trait]
impl Identity for Service {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.state().settings.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..GetPluginInfoResponse::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let state = self.state();
        let kinds = [
            (Type::ControllerService, true),
            (Type::VolumeAccessibilityConstraints, true),
            (Type::GroupControllerService, state.copies()),
            (Type::SnapshotMetadataService, state.keeps_images()),
            // Of CSI 1.13, as what the setting is named for; csi-sanity up to 5.5 fails on what it doesn't know.
            (Type::SnapshotAccessibilityConstraints, state.copies() && state.settings.volume_health),
        ];
        let service = |kind: Type| plugin_capability::Type::Service(plugin_capability::Service { r#type: kind.into() });
        let services = kinds.into_iter().filter(|(_, advertised)| *advertised).map(|(kind, _)| service(kind));
        let online = plugin_capability::VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let capabilities = services
            .chain([plugin_capability::Type::VolumeExpansion(online)])
            .map(|capability| PluginCapability { r#type: Some(capability) })
            .collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Ready as soon as it answers. A pool whose disk is missing is no reason to be restarted, which is what a
    /// failing probe leads to; it shows in the metrics and in every call that needs it.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let formats = |pool: &Pool| match pool.settings.kind {
            PoolKind::Image => true,
            PoolKind::Directory | PoolKind::Subvolume => false,
        };
        if self.state().pools.iter().any(formats) && !program_exists(MKFS) {
            return Err(MissingProgram(MKFS).into());
        }
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
