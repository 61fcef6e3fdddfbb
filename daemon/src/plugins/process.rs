//! A plugin's own process: `keelson run --only X`.

use std::{io, sync::Arc, time::Duration};

use tokio::{runtime, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{Plugin, PluginError, PluginKind, devices, network, pinning, settings, storage};
use crate::{
    config::NodeConfig,
    error::Failure,
    observability::{self, Readiness, Shown},
    supervisor::{SupervisorLink, cancel_on_signal},
};

/// How long a plugin may take to stop; shorter than the supervisor's own patience, so that a plugin which doesn't stop
/// can still say so.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// Runs one plugin in this process until a signal, the supervisor's end or the plugin's own failure.
///
/// # Errors
///
/// [`Failure::Section`] at once if the section is wrong, before anything is changed; what else ended it otherwise. A
/// stop that was asked for is no error.
pub fn run(kind: PluginKind, config: &NodeConfig, link: Option<&SupervisorLink>) -> Result<(), Failure> {
    match kind {
        PluginKind::Network => run_plugin::<network::Network>(config, link),
        PluginKind::Storage => run_plugin::<storage::Storage>(config, link),
        PluginKind::Devices => run_plugin::<devices::Devices>(config, link),
        PluginKind::Pinning => run_plugin::<pinning::Pinning>(config, link),
    }
}

fn run_plugin<P: Plugin>(config: &NodeConfig, link: Option<&SupervisorLink>) -> Result<(), Failure> {
    // A supervisor starts /proc/self/exe, which would be called "exe" in every process list.
    rustix::thread::set_name(P::KIND.process_name()).map_err(|errno| system("set the process's name")(errno.into()))?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("start the event loop"))?;
    let outcome = runtime.block_on(serve::<P>(config, link));
    // A blocking call that doesn't come back must not keep a process that is told to stop.
    runtime.shutdown_background();
    outcome
}

/// Hears and answers first, then looks at the node: a look at a disk that hangs doesn't come back, and liveness, a stop
/// and the supervisor's end must be heard all the same.
async fn serve<P: Plugin>(config: &NodeConfig, link: Option<&SupervisorLink>) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    cancel_on_signal(&shutdown).map_err(system("wait for signals"))?;
    let (ready, readiness) = watch::channel(Err("starting: looking at the node".to_owned()));
    if let Some(link) = link {
        link.watch(shutdown.clone(), STOP_GRACE).map_err(system("watch the supervisor"))?;
        link.forward(readiness.clone()).map_err(system("report to the supervisor"))?;
    }
    let (shown, served) = watch::channel(Arc::new(Shown::from(observability::registry())));
    let bound = observability::bind(P::KIND.name(), config.plugin_address(P::KIND)).await;
    let listening = bound.map(|listener| {
        listener.serve(served, move || Readiness::from([(P::KIND, readiness.borrow().clone())]));
    });
    let judged = config.clone();
    let Some(settings) = unless_stopped::<P, _>(&shutdown, move || settings::<P>(&judged)).await? else {
        return Ok(());
    };
    let settings = settings.map_err(|problems| Failure::Section { path: config.path().to_owned(), problems })?;
    // Only now, as a wrong section is worth telling also where the address is in use.
    listening?;
    let node = config.node().clone();
    let start = move || {
        let mut registry = observability::registry();
        P::new(settings, &node, &mut registry).map(|plugin| (plugin, registry))
    };
    let Some(started) = unless_stopped::<P, _>(&shutdown, start).await? else { return Ok(()) };
    let (plugin, registry) = started.map_err(failed::<P>)?;
    shown.send_replace(Arc::new(Shown { registry, operations: plugin.operations() }));
    tokio::select! {
        outcome = plugin.run(ready, shutdown.clone()) => outcome.map_err(failed::<P>),
        () = overdue(&shutdown) => Err(Failure::Grace { plugin: P::KIND, grace: STOP_GRACE }),
    }
}

/// Does what may block for ever on a thread of its own; `None` if a stop was asked for before that was done.
async fn unless_stopped<P: Plugin, T: Send + 'static>(
    shutdown: &CancellationToken,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, Failure> {
    tokio::select! {
        done = tokio::task::spawn_blocking(work) => done.map(Some).map_err(|error| failed::<P>(error.into())),
        () = shutdown.cancelled() => Ok(None),
    }
}

fn system(action: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::System { action, source }
}

fn failed<P: Plugin>(source: PluginError) -> Failure {
    Failure::Plugin { plugin: P::KIND, source }
}

/// Returns when a stop has been asked for and the grace is over.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_GRACE).await;
}
