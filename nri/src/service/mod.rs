//! The edge to the runtime: NRI's `Plugin` service, one file per call that does something.
//!
//! Both eras of NRI are served: since 0.12 each event is a call of its own, before that most arrive as `StateChange`.

mod configure;
mod create_container;
mod ended;
mod stop_container;
mod synchronize;
mod translate;
mod update_container;

use std::{
    collections::BTreeMap,
    mem,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use keelson_proto::nri::v1alpha1 as nri;
use prost::Message;
use tokio::sync::watch;
use tower::Service;

use crate::{
    DeviceLocality, Mode,
    connection::Call,
    error::Failure,
    metrics::Metrics,
    policy::{Machine, Pinning},
    store::{Change, Record, Recorder},
};

const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";

/// The longest wait for a record to be written, where the caller names no deadline: half of NRI's default of 2 s.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(1);

/// Answers the runtime's events. Outlives connections: what it knows is what the next one starts from.
pub(crate) struct Events {
    mode: Mode,
    locality: Arc<dyn DeviceLocality>,
    metrics: Metrics,
    /// `Ok` once a runtime has synchronized.
    ready: watch::Sender<Result<(), String>>,
    recorder: Recorder,
    records: BTreeMap<String, Record>,
    pinning: Pinning,
    /// The machine as it was when the connection began; taken up by its synchronization.
    machine: Machine,
    synchronization: synchronize::Collected,
    /// What the call being handled changes in the store.
    changes: Vec<Change>,
}

impl Events {
    pub(crate) fn new(
        mode: Mode,
        locality: Arc<dyn DeviceLocality>,
        metrics: Metrics,
        ready: watch::Sender<Result<(), String>>,
        recorder: Recorder,
        records: BTreeMap<String, Record>,
    ) -> Self {
        Self {
            mode,
            locality,
            metrics,
            ready,
            recorder,
            records,
            pinning: Pinning::default(),
            machine: Machine::default(),
            synchronization: synchronize::Collected::default(),
            changes: Vec::new(),
        }
    }

    /// Prepares for a new connection on a machine that was just inspected.
    pub(crate) fn begin(&mut self, machine: Machine) {
        self.machine = machine;
        self.synchronization = synchronize::Collected::default();
    }

    /// Decodes the call's argument, has it handled, and encodes the result; the method's name goes to the metrics.
    fn dispatch(&mut self, call: &Call) -> (&'static str, Result<Vec<u8>, Failure>) {
        let unimplemented =
            || Err(Failure::Unimplemented { service: call.service.clone(), method: call.method.clone() });
        if call.service != PLUGIN_SERVICE {
            return ("unknown", unimplemented());
        }
        match call.method.as_str() {
            "Configure" => {
                ("Configure", self.unary(call, "ConfigureRequest", |events, request| events.configure(&request)))
            }
            "Synchronize" => ("Synchronize", self.unary(call, "SynchronizeRequest", Self::synchronize)),
            "CreateContainer" => {
                ("CreateContainer", self.unary(call, "CreateContainerRequest", Self::create_container))
            }
            "UpdateContainer" => {
                ("UpdateContainer", self.unary(call, "UpdateContainerRequest", Self::update_container))
            }
            "StopContainer" => ("StopContainer", self.unary(call, "StopContainerRequest", Self::stop_container)),
            "RemoveContainer" => {
                ("RemoveContainer", self.unary(call, "RemoveContainerRequest", Self::remove_container))
            }
            "RemovePodSandbox" => {
                ("RemovePodSandbox", self.unary(call, "RemovePodSandboxRequest", Self::remove_pod_sandbox))
            }
            "StateChange" => ("StateChange", self.unary(call, "StateChangeEvent", Self::state_change)),
            // The runtime says that it goes away; the connection's end is what counts.
            "Shutdown" => ("Shutdown", Ok(nri::Empty {}.encode_to_vec())),
            // Not subscribed to, and nothing to be done. Each of them answers with an empty message.
            "RunPodSandbox"
            | "UpdatePodSandbox"
            | "PostUpdatePodSandbox"
            | "StopPodSandbox"
            | "PostCreateContainer"
            | "StartContainer"
            | "PostStartContainer"
            | "PostUpdateContainer" => ("other", Ok(nri::Empty {}.encode_to_vec())),
            _ => ("unknown", unimplemented()),
        }
    }

    fn unary<Q: Message + Default, R: Message>(
        &mut self,
        call: &Call,
        what: &'static str,
        handler: fn(&mut Self, Q) -> Result<R, Failure>,
    ) -> Result<Vec<u8>, Failure> {
        let request = Q::decode(call.payload.as_slice()).map_err(|source| Failure::Decode { what, source })?;
        handler(self, request).map(|response| response.encode_to_vec())
    }

    /// Enters a placement into the records.
    fn keep_record(&mut self, record: Record) {
        if self.records.get(&record.container) != Some(&record) {
            self.records.insert(record.container.clone(), record.clone());
            self.changes.push(Change::Put(Box::new(record)));
        }
    }

    /// Takes `id` out of the records.
    fn drop_record(&mut self, id: &str) {
        if self.records.remove(id).is_some() {
            self.changes.push(Change::Remove(id.to_owned()));
        }
    }
}

impl Service<Call> for Events {
    type Response = Vec<u8>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Vec<u8>, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    /// Decides in memory, at once; the future only waits for the records, and for them at most half the time that the
    /// runtime gives.
    fn call(&mut self, call: Call) -> Self::Future {
        let started = Instant::now();
        let (method, outcome) = self.dispatch(&call);
        self.metrics.show(&self.pinning);
        let changes = mem::take(&mut self.changes);
        let written = (!changes.is_empty()).then(|| self.recorder.record(changes));
        let patience = call.timeout.map_or(DEFAULT_PATIENCE, |timeout| timeout / 2);
        let metrics = self.metrics.clone();
        Box::pin(async move {
            if let Some(written) = written
                && tokio::time::timeout(patience, written).await.is_err()
            {
                metrics.record_failures.inc();
                tracing::warn!(method, ?patience, "answered before the records of the placements were written");
            }
            metrics.answered(method, outcome.as_ref().map_or_else(Failure::code, |_| 0), started.elapsed());
            outcome
        })
    }
}

#[cfg(test)]
mod tests {
    use keelson_host::{CpuSet, DeviceKind, fixture::Spec};
    use prometheus_client::registry::Registry;

    use super::*;

    struct NoDevices;

    impl DeviceLocality for NoDevices {
        fn numa_node(&self, _: DeviceKind, _: u32, _: u32) -> Option<u32> {
            None
        }
    }

    fn events(recorder: Recorder) -> Events {
        let metrics = Metrics::register(&mut Registry::default());
        let (ready, _) = watch::channel(Err(String::new()));
        let mut events = Events::new(Mode::Enforce, Arc::new(NoDevices), metrics, ready, recorder, BTreeMap::new());
        let topology = "cores=4".parse::<Spec>().unwrap().topology();
        events.begin(Machine::new(&topology, &CpuSet::new()));
        events
    }

    fn call(method: &str, request: &impl Message, timeout: Duration) -> Call {
        let service = PLUGIN_SERVICE.to_owned();
        Call { service, method: method.to_owned(), payload: request.encode_to_vec(), timeout: Some(timeout) }
    }

    #[test]
    fn a_disk_that_hangs_takes_half_the_time_and_not_the_answer() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut events = events(Recorder::hanging());
            let synchronize = nri::SynchronizeRequest::default();
            events.call(call("Synchronize", &synchronize, Duration::from_secs(3600))).await.unwrap();
            let container = nri::Container { id: "c1".to_owned(), ..nri::Container::default() };
            let create = nri::CreateContainerRequest { pod: None, container: Some(container) };
            let answer = events.call(call("CreateContainer", &create, Duration::from_millis(2))).await.unwrap();
            let answer = nri::CreateContainerResponse::decode(answer.as_slice()).unwrap();
            let resources = answer.adjust.unwrap().linux.unwrap().resources.unwrap();
            assert_eq!(resources.cpu.unwrap().cpus, "0-3");
            assert_eq!(events.metrics.record_failures.get(), 1);
        });
    }
}
