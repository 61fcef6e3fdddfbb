//! What is around every RPC: who may call, how many, for how long; and what is told of it.

mod deadline;
mod gate;
mod metrics;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{
    Code, Status,
    codegen::http::{HeaderValue, Request, Response},
    transport::server::UdsConnectInfo,
};
use tower::{Layer, Service};
use tracing::Instrument;

pub(crate) use metrics::Metrics;

use self::{
    deadline::{patience, until},
    gate::Gate,
};
use super::call::{Call, Caller};
use crate::policy::bounds;

/// Adds [`Calls`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct CallLayer {
    metrics: Metrics,
    gate: Gate,
}

impl CallLayer {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics, gate: Gate::new() }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner, metrics: self.metrics.clone(), gate: self.gate.clone() }
    }
}

/// A service whose calls are let in, numbered, counted, timed and answered in time.
///
/// A stream is in time when it begins. Its work has to hold its [`Call`] to its end.
#[derive(Clone, Debug)]
pub(crate) struct Calls<S> {
    inner: S,
    metrics: Metrics,
    gate: Gate,
}

impl<S, Body, Answer> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Answer>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    Answer: Default + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = metrics::method(request.uri().path()).unwrap_or("unknown");
        let bounds = bounds(method);
        let peer = request.extensions().get::<UdsConnectInfo>();
        let caller = Caller::next(peer.and_then(|peer| peer.peer_cred?.pid()));
        let patience = patience(request.headers(), bounds);
        let admitted = self.gate.check(peer).and_then(|()| self.gate.slot(bounds));
        let work = admitted.map(|slot| Call::new(caller.clone(), slot).scope(self.inner.call(request)));
        let span = tracing::info_span!("call", method, request = caller.request);
        let running = self.metrics.start(method);
        let deadline = Instant::now() + patience;
        let leaving = Leaving(caller);
        let answered = async move {
            let _leaving = leaving;
            let mut answer = match work {
                Ok(work) => until(deadline, work).await.unwrap_or_else(|| Ok(late(method, patience))),
                Err(refusal) => Ok(refusal.into_http()),
            };
            let code = code_of(&mut answer);
            let elapsed = running.answered(code);
            tracing::debug!(?code, ?elapsed, "call answered");
            answer
        };
        Box::pin(answered.instrument(span))
    }
}

/// Tells who works for a call that nobody waits for it any more, also when the call is dropped.
struct Leaving(Caller);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The answer to a call whose time is over.
fn late<Answer: Default>(method: &str, patience: Duration) -> Response<Answer> {
    let seconds = patience.as_secs_f64();
    tracing::warn!(seconds, "no answer in time; the work goes on");
    let message =
        format!("{method} has not ended within {seconds} s and goes on; the same call again tells how it ended");
    Status::deadline_exceeded(message).into_http()
}

/// The answer's code. A failed unary call has it in the headers; only a successful one has it in the trailers.
fn code_of<Answer, Error>(answer: &mut Result<Response<Answer>, Error>) -> Code {
    let Ok(answer) = answer else { return Code::Unknown };
    let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
    if code == Code::Unimplemented {
        // tonic gives a service that it doesn't have no message, which every error of CSI must have.
        let message = HeaderValue::from_static("this driver has no such service or method");
        answer.headers_mut().entry(Status::GRPC_MESSAGE).or_insert(message);
    }
    code
}
