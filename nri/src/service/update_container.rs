//! UpdateContainer: the kubelet changes a running container's resources.

use keelson_proto::nri::v1alpha1::{UpdateContainerRequest, UpdateContainerResponse};

use super::{Events, translate};
use crate::{error::Failure, policy::Update, store::Record};

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
        let Some(mut outcome) = self.pinning.change(container.clone()) else {
            return Ok(UpdateContainerResponse::default());
        };
        self.keep_record(Record::new(&container, &outcome.placement, self.mode));
        translate::log(self.mode, "a container's resources changed", &container, &outcome.placement);
        if !outcome.assignment.cpus.is_empty() {
            outcome.updates.push(Update { container: id, assignment: outcome.assignment });
        }
        Ok(UpdateContainerResponse { update: self.updates(outcome.updates), evict: Vec::new() })
    }
}
