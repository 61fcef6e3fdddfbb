//! What the plugin counts: `keelson_pinning_*`.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::policy::{Kind, Pinning};

/// The plugin's metrics. No label names a Pod or a CPU: every node has the same few series.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// 1 while a runtime has synchronized with the plugin.
    pub(crate) synchronized: Gauge,
    /// Connections to a runtime, failed registrations included.
    pub(crate) connections: Counter,
    /// Updates of other containers that rode on replies.
    pub(crate) updates: Counter,
    /// Records that could not be written, or not in time.
    pub(crate) record_failures: Counter,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    containers: Family<[(&'static str, &'static str); 1], Gauge>,
    cpus: Family<[(&'static str, &'static str); 1], Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: i32,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            synchronized: Gauge::default(),
            connections: Counter::default(),
            updates: Counter::default(),
            record_failures: Counter::default(),
            requests: Family::default(),
            // 16 microseconds to half a second; the runtime gives up after two.
            request_seconds: Histogram::new(exponential_buckets(16e-6, 2.0, 16)),
            containers: Family::default(),
            cpus: Family::default(),
        };
        let Self { synchronized, connections, updates, record_failures, requests, request_seconds, containers, cpus } =
            metrics.clone();
        registry.register("keelson_pinning_synchronized", "1 while a container runtime is served", synchronized);
        registry.register("keelson_pinning_connections", "Connections made to a container runtime", connections);
        registry.register("keelson_pinning_updates", "Updates of running containers sent to the runtime", updates);
        registry.register(
            "keelson_pinning_record_failures",
            "Placement records that were not written",
            record_failures,
        );
        registry.register("keelson_pinning_requests", "Calls of the runtime by method and status code", requests);
        registry.register("keelson_pinning_request_seconds", "Time from a call to its answer", request_seconds);
        registry.register("keelson_pinning_containers", "Containers by placement", containers);
        registry.register("keelson_pinning_cpus", "CPUs by use", cpus);
        metrics
    }

    /// Counts an answered call; `code` is 0 for success.
    pub(crate) fn answered(&self, method: &'static str, code: i32, took: Duration) {
        self.requests.get_or_create(&RequestLabels { method, code }).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Shows the placements as they are now.
    pub(crate) fn show(&self, pinning: &Pinning) {
        let (mut exclusive, mut shared, mut untouched) = (0, 0, 0);
        for (_, placement) in pinning.placements() {
            match placement.kind {
                Kind::Exclusive { .. } => exclusive += 1,
                Kind::Shared { .. } => shared += 1,
                Kind::Untouched => untouched += 1,
            }
        }
        for (placement, count) in [("exclusive", exclusive), ("shared", shared), ("untouched", untouched)] {
            self.containers.get_or_create(&[("placement", placement)]).set(count);
        }
        let uses = [
            ("exclusive", pinning.exclusive().len()),
            ("shared", pinning.shared().len()),
            ("reserved", pinning.machine().reserved().len()),
        ];
        for (name, count) in uses {
            self.cpus.get_or_create(&[("use", name)]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
