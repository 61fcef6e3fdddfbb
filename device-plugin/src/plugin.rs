//! The plugin's life: find, write, offer, watch.

use std::{path::PathBuf, sync::Arc, time::Duration};

use keelson_host::error_chain;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    DevicesSettings, Error, UninstallError,
    conditions::Conditions,
    config::Source,
    error::{ErrorKind, UninstallStepError},
    kernel::{Watcher, ensure_simulated, simulated_directory, sweep_simulated},
    kubelet::{offer_until, sweep_dead_sockets},
    metrics::Metrics,
    patience::patiently,
    service::Offer,
    stock::Stock,
    store::{CdiStore, KnownStore, StoreError},
};

/// How long the plugin may take to stop; what it waits for by itself is shorter.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// The device plugin.
#[derive(Debug)]
pub struct Plugin {
    settings: DevicesSettings,
    metrics: Metrics,
}

impl Plugin {
    /// Prepares the plugin and registers the metrics `keelson_devices_*`. Nothing on the node is changed yet.
    ///
    /// # Errors
    ///
    /// None: what can fail is done, and tried again, by [`Plugin::run`]. It is a `Result` because every plugin's is.
    pub fn new(settings: DevicesSettings, registry: &mut Registry) -> Result<Self, Error> {
        Ok(Self { settings, metrics: Metrics::register(registry) })
    }

    /// Offers the devices until `shutdown` fires.
    ///
    /// `ready` carries `Ok` while every resource is registered, the kubelet watches its list, and all that is configured
    /// could be looked for; else what is missing. A kubelet that is away is waited for.
    ///
    /// The sockets are removed at the end. The CDI files and the simulated devices stay, since containers that run use
    /// them when they restart: see [`uninstall`].
    ///
    /// # Errors
    ///
    /// [`Error`] if the plugin's own directories can't be used.
    pub async fn run(self, ready: watch::Sender<Result<(), String>>, shutdown: CancellationToken) -> Result<(), Error> {
        tokio::select! {
            outcome = self.work(ready, &shutdown) => Ok(outcome?),
            () = overdue(&shutdown) => Ok(()),
        }
    }

    /// Works until `shutdown`, and ends what it is at.
    async fn work(
        self,
        ready: watch::Sender<Result<(), String>>,
        shutdown: &CancellationToken,
    ) -> Result<(), ErrorKind> {
        let Self { settings, metrics } = self;
        let settings = Arc::new(settings);
        let subjects = settings.resources.iter().map(|resource| resource.name.to_string());
        let conditions = Conditions::new(ready, subjects, "not registered yet");
        let (for_start, for_stock) = (Arc::clone(&settings), metrics.clone());
        let start = move || {
            let problems = prepare(&for_start)?;
            let known = KnownStore::new(&for_start.state_dir)?;
            Ok::<_, ErrorKind>((problems, Stock::new(for_start, known, for_stock)?))
        };
        let (problems, (stock, listings)) = patiently(&conditions, "preparing the directories", start).await?;
        for (subject, problem) in problems {
            conditions.set(subject, problem);
        }

        let rescan = Arc::new(Notify::new());
        let (ticks, changes) = watch::channel(0);
        let offers = settings.resources.iter().zip(listings).map(|(resource, listing)| {
            let offer = Offer {
                name: resource.name.clone(),
                root: settings.root.clone(),
                listing,
                rescan: Arc::clone(&rescan),
                metrics: metrics.clone(),
            };
            offer_until(offer, &settings.kubelet_dir, changes.clone(), &conditions, shutdown)
        });
        let offers = futures::future::join_all(offers);
        tokio::join!(offers, look_until(stock, &settings, &conditions, &ticks, &rescan, shutdown));
        Ok(())
    }
}

/// Returns when a stop was asked for and has taken longer than it should: a look at a disk that hangs is not waited for.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_PATIENCE).await;
}

/// Makes what has to be there before the first scan, and clears away what a killed process left. Gives what keeps a
/// resource from being offered: what it is about, and why. Blocks.
fn prepare(settings: &DevicesSettings) -> Result<Vec<(String, String)>, ErrorKind> {
    let state_dir = &settings.state_dir;
    std::fs::create_dir_all(state_dir).map_err(|source| StoreError::Directory { path: state_dir.clone(), source })?;
    KnownStore::sweep(state_dir, true)?;
    let cdi = CdiStore::new(settings.cdi_dir.clone());
    cdi.create_directory()?;
    cdi.sweep(settings.resources.iter().map(|resource| &resource.name))?;
    if let Err(error) = sweep_dead_sockets(&settings.kubelet_dir) {
        // What is left of a predecessor does no harm, and the kubelet's next start removes it.
        tracing::warn!(directory = %settings.kubelet_dir.display(), %error, "failed to remove dead sockets");
    }
    let mut wanted: Vec<PathBuf> = Vec::new();
    let mut problems = Vec::new();
    for resource in &settings.resources {
        let Source::Simulated { count } = resource.source else { continue };
        wanted.push(simulated_directory(state_dir, &resource.name));
        if let Err(error) = ensure_simulated(state_dir, &resource.name, count) {
            problems.push((format!("simulated devices of {}", resource.name), error_chain(&error)));
        }
    }
    if let Err(error) = sweep_simulated(state_dir, |directory| wanted.iter().any(|wanted| wanted == directory)) {
        tracing::warn!(error = error_chain(&error), "failed to remove simulated devices of an earlier config");
    }
    Ok(problems)
}

/// Scans when something changed, when an allocation found something changed, and from time to time.
async fn look_until(
    mut stock: Stock,
    settings: &Arc<DevicesSettings>,
    conditions: &Conditions,
    ticks: &watch::Sender<u64>,
    rescan: &Notify,
    shutdown: &CancellationToken,
) {
    let mut watcher = Watcher::new();
    while !shutdown.is_cancelled() {
        let settings = Arc::clone(settings);
        let look = move || {
            let mut outcome = stock.refresh();
            outcome.directories.extend([settings.kubelet_dir.clone(), settings.cdi_dir.clone()]);
            let unseen = watcher.set(&outcome.directories);
            (stock, watcher, outcome, unseen)
        };
        let (outcome, unseen);
        (stock, watcher, outcome, unseen) = patiently(conditions, "looking at the devices", look).await;
        outcome.report(conditions);
        ticks.send_modify(|tick| *tick = tick.wrapping_add(1));
        if unseen {
            continue;
        }
        tokio::select! {
            () = watcher.changed() => {}
            () = rescan.notified() => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Removes what the plugin leaves on the node when it stops: its CDI files and its state, with the simulated devices'
/// nodes. For a node that the plugin is taken from: containers that got devices can't be restarted after it.
///
/// # Errors
///
/// Everything that could not be removed; the rest is gone. What isn't there is no error.
pub fn uninstall(settings: &DevicesSettings) -> Result<(), UninstallError> {
    let state_dir = &settings.state_dir;
    let remove_state = || match std::fs::remove_dir(state_dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::Remove { path: state_dir.clone(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    };
    UninstallError::collect([
        CdiStore::new(settings.cdi_dir.clone()).sweep([]).map_err(UninstallStepError::from),
        sweep_simulated(state_dir, |_| false).map_err(UninstallStepError::from),
        KnownStore::sweep(state_dir, false).map_err(UninstallStepError::from),
        remove_state().map_err(UninstallStepError::from),
    ])
}
