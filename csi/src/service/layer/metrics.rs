//! The figures about RPCs and pools.

use std::{
    collections::BTreeSet,
    sync::LazyLock,
    time::{Duration, Instant},
};

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
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;

use crate::store::Pools;

/// The figures about RPCs and pools.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    calls: Family<CallLabels, Counter>,
    seconds: Family<MethodLabel, Histogram, fn() -> Histogram>,
    waiting: Gauge,
    available: Family<PoolLabel, Gauge>,
    freezes: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        /// From 1 ms to about 65 s.
        fn histogram() -> Histogram {
            Histogram::new(exponential_buckets(0.001, 2.0, 17))
        }
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let (waiting, available) = (Gauge::default(), Family::default());
        let freezes = histogram();
        let metrics = Self { calls: Family::default(), seconds, waiting, available, freezes };
        registry.register("keelson_storage_rpc", "CSI calls by method and gRPC code", metrics.calls.clone());
        registry.register("keelson_storage_rpc_duration_seconds", "Time that CSI calls took", metrics.seconds.clone());
        registry.register("keelson_storage_rpc_in_flight", "CSI calls running now", metrics.waiting.clone());
        registry.register(
            "keelson_storage_pool_available",
            "Whether the pool was recognised and could be written to when it was last used",
            metrics.available.clone(),
        );
        registry.register(
            "keelson_storage_group_freeze_seconds",
            "For how long filesystems were frozen for a group of snapshots",
            metrics.freezes.clone(),
        );
        metrics
    }

    /// Counts a freeze.
    pub(crate) fn observe_freeze(&self, pause: Duration) {
        self.freezes.observe(pause.as_secs_f64());
    }

    /// Tells of each pool whether it is available.
    pub(crate) fn observe_pools(&self, pools: &Pools) {
        for pool in pools.iter() {
            let label = PoolLabel { pool: pool.settings.name.clone() };
            self.available.get_or_create(&label).set(i64::from(pool.is_available()));
        }
    }

    /// Counts a call of `method` as running until it is answered, or dropped as its client goes away.
    pub(super) fn start(&self, method: &'static str) -> Running {
        self.waiting.inc();
        Running { metrics: self.clone(), method, code: Code::Cancelled, start: Instant::now() }
    }
}

/// A call that a client waits for.
#[derive(Debug)]
pub(super) struct Running {
    metrics: Metrics,
    method: &'static str,
    code: Code,
    start: Instant,
}

impl Running {
    /// Counts it as answered, and tells how long it took.
    pub(super) fn answered(mut self, code: Code) -> Duration {
        self.code = code;
        self.start.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Self { metrics, method, code, start } = self;
        metrics.waiting.dec();
        metrics.calls.get_or_create(&CallLabels { method, code: format!("{code:?}") }).inc();
        metrics.seconds.get_or_create(&MethodLabel { method }).observe(start.elapsed().as_secs_f64());
    }
}

/// The method at a request's path, if CSI has it; sample: `/csi.v1.Node/NodeStageVolume`.
///
/// One that doesn't exist must not become a label: there is no end to what a client could send.
pub(super) fn method(path: &str) -> Option<&'static str> {
    static METHODS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let descriptors = FileDescriptorSet::decode(keelson_proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
        let services = descriptors.file.into_iter().filter(|file| file.package() == "csi.v1");
        let methods = services.flat_map(|file| file.service).flat_map(|service| service.method);
        methods.map(|method| method.name().to_owned()).collect()
    });
    METHODS.get(path.rsplit('/').next()?).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::bounds;

    #[test]
    fn only_methods_of_csi_become_labels() {
        assert_eq!(method("/csi.v1.Identity/Probe"), Some("Probe"));
        assert_eq!(method("/csi.v1.Node/NodeStageVolume"), Some("NodeStageVolume"));
        assert_eq!(method("/v1beta1.DevicePlugin/Allocate"), None);
        assert_eq!(method(""), None);
    }

    /// What asks for capabilities, and what the kubelet registers the driver by, is answered whatever the disks do.
    #[test]
    fn methods_have_the_bounds_of_their_kind() {
        for (name, works) in [
            ("GroupControllerGetCapabilities", false),
            ("NodeGetInfo", false),
            ("GetCapacity", true),
            ("NodeExpandVolume", true),
            ("CreateVolumeGroupSnapshot", true),
        ] {
            let path = format!("/csi.v1.Any/{name}");
            assert_eq!(method(&path).map(bounds).map(|bounds| bounds.works), Some(works), "{name}");
        }
    }
}
