//! `/healthz`, `/readyz`, `/metrics` and `/operations` over HTTP.

use std::{
    fmt::{self, Write},
    io,
    net::SocketAddr,
    sync::Arc,
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::{net::TcpListener, sync::watch};

use super::connection::BoundedListener;
use crate::plugins::PluginKind;

/// Whether each plugin is ready, and if not, why.
pub type Readiness = std::collections::BTreeMap<PluginKind, Result<(), String>>;

/// What a plugin is at, as JSON.
pub type Operations = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What a process shows beside its health.
pub struct Shown {
    /// Its metrics.
    pub registry: Registry,
    /// What it is at, where it tells that.
    pub operations: Option<Operations>,
}

impl From<Registry> for Shown {
    fn from(registry: Registry) -> Self {
        Self { registry, operations: None }
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shown").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// Why health and metrics can't be served.
#[derive(Debug, thiserror::Error)]
#[error("failed to serve health and metrics on {address}; set observability.address to a free one")]
pub struct ObservabilityError {
    address: SocketAddr,
    source: io::Error,
}

/// A bound address that isn't served yet.
#[derive(Debug)]
pub struct Listener(TcpListener);

/// Binds `address` for `process` and logs the one that was really taken, which differs for port 0.
///
/// # Errors
///
/// When the address is in use or not this machine's.
pub async fn bind(process: &str, address: SocketAddr) -> Result<Listener, ObservabilityError> {
    let failed = |source| ObservabilityError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(process, %address, "serving /healthz, /readyz and /metrics");
    Ok(Listener(listener))
}

impl Listener {
    /// Serves from a task of its own until the event loop ends.
    ///
    /// `/healthz` is 200 whenever the event loop still turns; a plugin that can't work is `/readyz`'s business, as a
    /// restart doesn't mend a sick disk. `/readyz` is 200 if every plugin is ready, else 503 with the reasons.
    /// `/metrics` and `/operations` show the newest of `shown`: what is a plugin's own comes once the plugin is there.
    pub fn serve(self, shown: watch::Receiver<Arc<Shown>>, readiness: impl Fn() -> Readiness + Send + Sync + 'static) {
        let readiness = Arc::new(readiness);
        let also_shown = shown.clone();
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(async move || readyz(&readiness())))
            .route("/metrics", get(async move || metrics(&shown.borrow().registry)))
            .route("/operations", get(async move || operations(&also_shown.borrow())));
        tokio::spawn(async move {
            // axum's serve() keeps on through failed accepts and so has no error to give.
            axum::serve(BoundedListener::new(self.0), router).await
        });
    }
}

async fn healthz() -> Response {
    // The answer comes from a task that had to be scheduled anew, not only from the connection's own.
    match tokio::spawn(async {}).await {
        Ok(()) => "ok\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

fn readyz(readiness: &Readiness) -> Response {
    let mut body = String::new();
    let mut status = StatusCode::OK;
    for (plugin, ready) in readiness {
        let written = match ready {
            Ok(()) => writeln!(body, "{plugin}: ready"),
            Err(reason) => {
                status = StatusCode::SERVICE_UNAVAILABLE;
                writeln!(body, "{plugin}: not ready: {}", reason.replace('\n', "; "))
            }
        };
        debug_assert!(written.is_ok(), "writing to a String can't fail");
    }
    (status, body).into_response()
}

fn metrics(registry: &Registry) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn operations(shown: &Shown) -> Response {
    match &shown.operations {
        Some(operations) => ([(header::CONTENT_TYPE, "application/json")], operations().to_string()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
