//! The figures about the registration.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Whether the kubelet knows the driver, and what it said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(super) registered: Gauge,
    answers: Family<ResultLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "keelson_storage_registered",
            "1 while the kubelet has registered the driver by the driver's own socket",
            metrics.registered.clone(),
        );
        registry.register(
            "keelson_storage_registrations",
            "Registrations that the kubelet told the end of",
            metrics.answers.clone(),
        );
        metrics
    }

    pub(super) fn count(&self, accepted: bool) {
        let result = if accepted { "ok" } else { "error" };
        self.answers.get_or_create(&ResultLabel { result }).inc();
    }
}
