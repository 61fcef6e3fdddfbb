//! StopContainer: what a container had for itself goes back to the others.

use keelson_proto::nri::v1alpha1::{StopContainerRequest, StopContainerResponse};

use super::Events;
use crate::error::Failure;

impl Events {
    /// The runtime also calls it when a container ends by itself, and possibly more than once.
    pub(super) fn stop_container(&mut self, request: StopContainerRequest) -> Result<StopContainerResponse, Failure> {
        let id = request.container.unwrap_or_default().id;
        let moves = self.pinning.stop(&id);
        self.drop_record(&id);
        tracing::info!(id, "a container ended");
        Ok(StopContainerResponse { update: self.updates(moves) })
    }
}
