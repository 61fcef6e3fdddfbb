//! UpdateContainer: the kubelet changes a running container's resources.

use keelson_proto::nri::v1alpha1::{UpdateContainerRequest, UpdateContainerResponse};

use super::{Events, translate};
use crate::{error::Failure, store::Record};

impl Events {
    pub(super) fn update_container(
        &mut self,
        request: UpdateContainerRequest,
    ) -> Result<UpdateContainerResponse, Failure> {
        let pod = request.pod.unwrap_or_default();
        let mut described = request.container.unwrap_or_default();
        translate::apply(&mut described, request.linux_resources.unwrap_or_default());
        let mut container = translate::container(&pod, &described)?;
        container.device_nodes = translate::device_nodes(&described, self.locality.as_ref());
        let id = container.id.clone();
        let Some(outcome) = self.pinning.change(container.clone()) else {
            return Ok(UpdateContainerResponse::default());
        };
        self.keep_record(Record::new(&container, &outcome.placement, self.mode));
        translate::log(self.mode, &container, &outcome.placement, &outcome.assignment);
        let own = self.update(id, translate::resources(&outcome.assignment));
        let update = self.updates(outcome.moves).into_iter().chain(own).collect();
        Ok(UpdateContainerResponse { update, evict: Vec::new() })
    }
}
