//! The metrics `keelson_devices_*`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::config::ResourceName;

/// What the plugin counts, by resource.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) devices: Family<HealthLabels, Gauge>,
    pub(crate) conflicts: Gauge,
    pub(crate) registrations: Family<ResultLabels, Counter>,
    pub(crate) lists: Family<ResourceLabels, Counter>,
    pub(crate) allocations: Family<ResultLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResourceLabels {
    pub(crate) resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HealthLabels {
    pub(crate) resource: String,
    /// `Healthy` or `Unhealthy`, as the kubelet is told.
    pub(crate) health: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResultLabels {
    pub(crate) resource: String,
    /// `ok` or `error`.
    pub(crate) result: &'static str,
}

impl ResultLabels {
    pub(crate) fn of<T, E>(resource: &ResourceName, result: &Result<T, E>) -> Self {
        Self { resource: resource.to_string(), result: if result.is_ok() { "ok" } else { "error" } }
    }
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "keelson_devices_known",
            "Devices in the resource's list, by the health that the kubelet is told",
            metrics.devices.clone(),
        );
        registry.register(
            "keelson_devices_conflicts",
            "Device nodes that two resources match, so that neither offers them",
            metrics.conflicts.clone(),
        );
        registry.register(
            "keelson_devices_registrations",
            "Attempts to register the resource with the kubelet",
            metrics.registrations.clone(),
        );
        registry.register(
            "keelson_devices_lists_sent",
            "Lists of the resource's devices sent to the kubelet",
            metrics.lists.clone(),
        );
        registry.register(
            "keelson_devices_allocations",
            "Allocate calls for the resource",
            metrics.allocations.clone(),
        );
        metrics
    }
}
