//! The edge to the kubelet: the `DevicePlugin` service of one resource, a file per call.

mod allocate;
mod list_and_watch;
mod options;

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use keelson_host::HostRoot;
use keelson_proto::deviceplugin::v1beta1::{self as api, device_plugin_server::DevicePlugin};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{config::ResourceName, metrics::Metrics, policy::Listing};

pub(crate) use list_and_watch::Streams;
pub(crate) use options::plugin_options;

/// What the plugin offers under one resource's name; the same over all registrations.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) name: ResourceName,
    /// Where the nodes are looked at again when they are given away.
    pub(crate) root: HostRoot,
    /// The devices; nothing before the first scan and its CDI file.
    pub(crate) listing: watch::Receiver<Option<Arc<Listing>>>,
    /// Asks for a scan.
    pub(crate) rescan: Arc<Notify>,
    pub(crate) metrics: Metrics,
}

/// The service of one registration.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) offer: Offer,
    /// The registration's open streams.
    pub(crate) streams: watch::Sender<Streams>,
    /// Ends the streams.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(
        &self,
        _request: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(plugin_options()))
    }

    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _request: Request<api::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        Ok(Response::new(Box::pin(list_and_watch::lists(self))))
    }

    async fn get_preferred_allocation(
        &self,
        _request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("this plugin prefers no device over another, as GetDevicePluginOptions says"))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        Ok(Response::new(allocate::answer(&self.offer, request.get_ref()).await?))
    }

    async fn pre_start_container(
        &self,
        _request: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        Err(Status::unimplemented("nothing is to be done before a container starts, as GetDevicePluginOptions says"))
    }
}
