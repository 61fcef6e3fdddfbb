//! The layer around every RPC: counts and times.

use std::{
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::Instant,
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
use tonic::{
    Code, Status,
    codegen::http::{HeaderValue, Request, Response},
};
use tower::{Layer, Service};

use crate::store::Pools;

/// The figures about RPCs and pools.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    calls: Family<CallLabels, Counter>,
    seconds: Family<MethodLabel, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    available: Family<PoolLabel, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: String,
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
        let (in_flight, available) = (Gauge::default(), Family::default());
        let metrics = Self { calls: Family::default(), seconds, in_flight, available };
        registry.register("keelson_storage_rpc", "CSI calls by method and gRPC code", metrics.calls.clone());
        registry.register("keelson_storage_rpc_duration_seconds", "Time that CSI calls took", metrics.seconds.clone());
        registry.register("keelson_storage_rpc_in_flight", "CSI calls running now", metrics.in_flight.clone());
        registry.register(
            "keelson_storage_pool_available",
            "Whether the pool was recognised and could be written to when it was last used",
            metrics.available.clone(),
        );
        metrics
    }

    /// Tells of each pool whether it is available.
    pub(crate) fn observe_pools(&self, pools: &Pools) {
        for pool in pools.iter() {
            let label = PoolLabel { pool: pool.settings.name.clone() };
            self.available.get_or_create(&label).set(i64::from(pool.is_available()));
        }
    }
}

/// Adds [`Observe`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct ObserveLayer {
    metrics: Metrics,
}

impl ObserveLayer {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, metrics: self.metrics.clone() }
    }
}

/// A service whose calls are counted and timed.
#[derive(Clone, Debug)]
pub(crate) struct Observe<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, Body, Answer> Service<Request<Body>> for Observe<S>
where
    S: Service<Request<Body>, Response = Response<Answer>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Sample: /csi.v1.Node/NodeStageVolume. A method that doesn't exist must not become a label: there is no end
        // to what a client could send.
        let known = request.uri().path().rsplit('/').next().filter(|method| is_known(method));
        let method = known.unwrap_or("unknown").to_owned();
        let metrics = self.metrics.clone();
        let work = self.inner.call(request);
        Box::pin(async move {
            let running = Running::start(metrics.in_flight.clone());
            let mut answer = work.await;
            // A failed unary call has its code in the headers; only a successful one has it in the trailers.
            let code = match &answer {
                Ok(answer) => Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code()),
                Err(_) => Code::Unknown,
            };
            if let Ok(answer) = &mut answer
                && code == Code::Unimplemented
            {
                // tonic gives a service that it doesn't have no message, which every error of CSI must have.
                let message = HeaderValue::from_static("this driver has no such service or method");
                answer.headers_mut().entry(Status::GRPC_MESSAGE).or_insert(message);
            }
            metrics.count(&method, code);
            let elapsed = running.start.elapsed();
            metrics.seconds.get_or_create(&MethodLabel { method: method.clone() }).observe(elapsed.as_secs_f64());
            tracing::debug!(method, ?code, ?elapsed, "call answered");
            answer
        })
    }
}

impl Metrics {
    fn count(&self, method: &str, code: Code) {
        let labels = CallLabels { method: method.to_owned(), code: format!("{code:?}") };
        self.calls.get_or_create(&labels).inc();
    }
}

/// Counts a call as running, also when its client goes away and the call is dropped.
struct Running {
    gauge: Gauge,
    start: Instant,
}

impl Running {
    fn start(gauge: Gauge) -> Self {
        gauge.inc();
        Self { gauge, start: Instant::now() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Whether the CSI services have such a method.
fn is_known(method: &str) -> bool {
    static METHODS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let descriptors = FileDescriptorSet::decode(keelson_proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
        let services = descriptors.file.into_iter().filter(|file| file.package() == "csi.v1");
        let methods = services.flat_map(|file| file.service).flat_map(|service| service.method);
        methods.map(|method| method.name().to_owned()).collect()
    });
    METHODS.contains(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_methods_of_csi_become_labels() {
        assert!(is_known("Probe"));
        assert!(is_known("NodeStageVolume"));
        assert!(!is_known("Allocate"));
        assert!(!is_known(""));
    }
}
