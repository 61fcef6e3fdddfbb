//! A plugin's own process: `keelson run --only X`.

use std::{io, time::Duration};

use tokio::{runtime, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{Plugin, PluginKind, devices, network, pinning, settings, storage};
use crate::{
    config::NodeConfig,
    error::Failure,
    observability::{self, Readiness},
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
    let settings =
        settings::<P>(config).map_err(|problems| Failure::Section { path: config.path().to_owned(), problems })?;
    let system = |action| move |source: io::Error| Failure::System { action, source };
    // A supervisor starts /proc/self/exe, which would be called "exe" in every process list.
    rustix::thread::set_name(P::KIND.process_name()).map_err(|errno| system("set the process's name")(errno.into()))?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("start the event loop"))?;
    let outcome = runtime.block_on(serve::<P>(settings, config, link));
    // A blocking call that doesn't come back must not keep a process that is told to stop.
    runtime.shutdown_background();
    outcome
}

async fn serve<P: Plugin>(
    settings: P::Settings,
    config: &NodeConfig,
    link: Option<&SupervisorLink>,
) -> Result<(), Failure> {
    let system = |action| move |source: io::Error| Failure::System { action, source };
    let failed = |source| Failure::Plugin { plugin: P::KIND, source };
    let shutdown = CancellationToken::new();
    cancel_on_signal(&shutdown).map_err(system("wait for signals"))?;
    if let Some(link) = link {
        link.watch(shutdown.clone(), STOP_GRACE).map_err(system("watch the supervisor"))?;
    }
    let listener = observability::bind(P::KIND.name(), config.plugin_address(P::KIND)).await?;
    let node = config.node().clone();
    // Opening a pool can block for ever, and a stop must be heard all the same.
    let start = tokio::task::spawn_blocking(move || {
        let mut registry = observability::registry();
        P::new(settings, &node, &mut registry).map(|plugin| (plugin, registry))
    });
    let (plugin, registry) = tokio::select! {
        started = start => started.map_err(|error| failed(error.into()))?.map_err(failed)?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (ready, readiness) = watch::channel(Err("starting".to_owned()));
    if let Some(link) = link {
        link.forward(readiness.clone()).map_err(system("report to the supervisor"))?;
    }
    listener.serve(registry, move || Readiness::from([(P::KIND, readiness.borrow().clone())]));
    tokio::select! {
        outcome = plugin.run(ready, shutdown.clone()) => outcome.map_err(failed),
        () = overdue(&shutdown) => Err(Failure::Grace { plugin: P::KIND, grace: STOP_GRACE }),
    }
}

/// Returns when a stop has been asked for and the grace is over.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_GRACE).await;
}
