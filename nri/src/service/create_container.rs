//! CreateContainer: the one moment at which a container can be placed without being moved.

use keelson_proto::nri::v1alpha1::{
    ContainerAdjustment, CreateContainerRequest, CreateContainerResponse, LinuxContainerAdjustment,
};

use super::{Events, translate};
use crate::{Mode, error::Failure, store::Record};

impl Events {
    pub(super) fn create_container(
        &mut self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Failure> {
        let pod = request.pod.unwrap_or_default();
        let described = request.container.unwrap_or_default();
        let mut container = translate::container(&pod, &described)?;
        container.device_nodes = translate::device_nodes(&described, self.locality.as_ref());
        let id = container.id.clone();
        let outcome = self.pinning.create(container.clone());
        for replaced in &outcome.replaced {
            tracing::warn!(container = replaced, by = id, "forgot a container whose end the runtime didn't report");
            self.drop_record(replaced);
        }
        self.keep_record(Record::new(&container, &outcome.placement, self.mode));
        translate::log(self.mode, &container, &outcome.placement, &outcome.assignment);
        let resources = translate::resources(&outcome.assignment).filter(|_| self.mode == Mode::Enforce);
        Ok(CreateContainerResponse {
            adjust: resources.map(|resources| ContainerAdjustment {
                linux: Some(LinuxContainerAdjustment {
                    resources: Some(resources),
                    ..LinuxContainerAdjustment::default()
                }),
                ..ContainerAdjustment::default()
            }),
            update: self.updates(outcome.moves),
            evict: Vec::new(),
        })
    }
}
