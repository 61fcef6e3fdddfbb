//! Synchronize: the runtime tells what runs, in one message or in several.

use std::collections::BTreeMap;

use keelson_host::error_chain;
use keelson_proto::nri::v1alpha1::{Container, ContainerState, PodSandbox, SynchronizeRequest, SynchronizeResponse};
use prost::Message;

use super::{Events, translate};
use crate::{Mode, error::Failure, policy::Assignment, store::Record};

/// The most that a synchronization may bring, in bytes of all its messages: what runs on a node with 500 Pods is a tenth.
const MOST_BYTES: usize = 256 << 20;

/// What came so far of a synchronization in several messages. A container may come before its Pod.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pods: Vec<PodSandbox>,
    containers: Vec<Container>,
    bytes: usize,
}

impl Events {
    pub(super) fn synchronize(&mut self, request: SynchronizeRequest) -> Result<SynchronizeResponse, Failure> {
        let collected = &mut self.synchronization;
        collected.bytes = collected.bytes.saturating_add(request.encoded_len());
        if collected.bytes > MOST_BYTES {
            return Err(Failure::TooLong { length: collected.bytes, most: MOST_BYTES });
        }
        collected.pods.extend(request.pods);
        collected.containers.extend(request.containers);
        if request.more {
            // Anything but exactly this makes the runtime drop the plugin.
            return Ok(SynchronizeResponse { update: Vec::new(), more: true });
        }
        let Collected { pods, containers, .. } = std::mem::take(&mut self.synchronization);
        let pods: BTreeMap<&str, &PodSandbox> = pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
        let mut running = Vec::new();
        for container in containers.iter().filter(|container| container.state() != ContainerState::ContainerStopped) {
            let unknown = PodSandbox { id: container.pod_sandbox_id.clone(), ..PodSandbox::default() };
            let pod = pods.get(container.pod_sandbox_id.as_str()).copied().unwrap_or(&unknown);
            match translate::container(pod, container) {
                Ok(container) => running.push(container),
                // One container that makes no sense must not cost the others their placement.
                Err(failure) => tracing::warn!(error = %error_chain(&failure), "left a running container out"),
            }
        }
        let recorded = self.records.iter().map(|(id, record)| (id.clone(), record.recorded())).collect();
        let moves = self.pinning.synchronize(self.machine.clone(), running, &recorded, self.mode == Mode::Observe);
        self.settle_records();
        for (container, placement) in self.pinning.placements() {
            translate::log(self.mode, container, placement, &Assignment::default());
        }
        let response = SynchronizeResponse { update: self.updates(moves), more: false };
        tracing::info!(
            containers = containers.len(),
            updates = response.update.len(),
            exclusive = %self.pinning.exclusive(),
            shared = %self.pinning.shared(),
            "synchronized with the runtime"
        );
        self.metrics.synchronized.set(1);
        let _ = self.ready.send_replace(Ok(()));
        Ok(response)
    }

    /// Makes the records those of what runs.
    fn settle_records(&mut self) {
        let gone: Vec<String> =
            self.records.keys().filter(|id| self.pinning.placement(id).is_none()).cloned().collect();
        for id in gone {
            self.drop_record(&id);
        }
        let mut adopted = Vec::new();
        for (container, placement) in self.pinning.placements() {
            // What was adopted by its record keeps it, with the mode in which the decision was made.
            let mode = self.records.get(&container.id).map_or(self.mode, Record::mode);
            let record = Record::new(container, placement, mode);
            if self.records.get(&container.id) != Some(&record) {
                adopted.push(Record::new(container, placement, self.mode));
            }
        }
        for record in adopted {
            self.keep_record(record);
        }
    }
}
