//! RemoveContainer and RemovePodSandbox, in both eras of NRI: what a missed StopContainer left behind is forgotten.
//!
//! Their answers can't carry updates, so what others gain by it rides on the next answer that can.

use keelson_proto::nri::v1alpha1::{
    Empty, Event, RemoveContainerRequest, RemoveContainerResponse, RemovePodSandboxRequest, RemovePodSandboxResponse,
    StateChangeEvent,
};

use super::Events;
use crate::error::Failure;

impl Events {
    pub(super) fn remove_container(
        &mut self,
        request: RemoveContainerRequest,
    ) -> Result<RemoveContainerResponse, Failure> {
        self.container_is_gone(&request.container.unwrap_or_default().id);
        Ok(RemoveContainerResponse {})
    }

    pub(super) fn remove_pod_sandbox(
        &mut self,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse, Failure> {
        self.pod_is_gone(&request.pod.unwrap_or_default().id);
        Ok(RemovePodSandboxResponse {})
    }

    /// How runtimes with NRI before 0.12 tell what has no call of its own there.
    pub(super) fn state_change(&mut self, event: StateChangeEvent) -> Result<Empty, Failure> {
        match event.event() {
            Event::RemoveContainer => self.container_is_gone(&event.container.unwrap_or_default().id),
            Event::RemovePodSandbox => self.pod_is_gone(&event.pod.unwrap_or_default().id),
            other => tracing::debug!(event = other.as_str_name(), "nothing to do"),
        }
        Ok(Empty {})
    }

    fn container_is_gone(&mut self, id: &str) {
        self.pinning.forget(id);
        self.drop_record(id);
    }

    fn pod_is_gone(&mut self, sandbox: &str) {
        for id in self.pinning.forget_pod(sandbox) {
            self.drop_record(&id);
        }
    }
}
