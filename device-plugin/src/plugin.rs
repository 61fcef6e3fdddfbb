//! The plugin's life: find, write, offer, watch.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use prometheus_client::registry::Registry;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    DevicesSettings, Error, UninstallError,
    conditions::Conditions,
    config::Source,
    error::{ErrorKind, UninstallStepError, chain},
    kernel::{Watcher, ensure_simulated, simulated_directory, sweep_simulated},
    kubelet::{offer_until, sweep_dead_sockets},
    metrics::Metrics,
    service::Offer,
    stock::Stock,
    store::{CdiStore, KnownStore, StoreError},
};

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
    /// None today.
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
        let Self { settings, metrics } = self;
        let settings = Arc::new(settings);
        let subjects = settings.resources.iter().map(|resource| resource.name.to_string());
        let conditions = Conditions::new(ready, subjects, "not registered yet");
        prepare(&settings, &conditions)?;
        let known = KnownStore::new(&settings.state_dir).map_err(ErrorKind::from)?;
        let (stock, listings) = Stock::new(Arc::clone(&settings), known, metrics.clone()).map_err(ErrorKind::from)?;

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
            offer_until(offer, &settings.kubelet_dir, changes.clone(), &conditions, &shutdown)
        });
        let offers = futures::future::join_all(offers);
        tokio::select! {
            never = keep_looking(stock, &settings, &conditions, &ticks, &rescan) => match never {},
            // Every offer ends when `shutdown` fires; with none configured there is nothing to wait for but that.
            _ = async { tokio::join!(offers, shutdown.cancelled()) } => Ok(()),
        }
    }
}

/// Makes what has to be there before the first scan, and clears away what a killed process left.
fn prepare(settings: &DevicesSettings, conditions: &Conditions) -> Result<(), ErrorKind> {
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
    for resource in &settings.resources {
        let Source::Simulated { count } = resource.source else { continue };
        wanted.push(simulated_directory(state_dir, &resource.name));
        if let Err(error) = ensure_simulated(state_dir, &resource.name, count) {
            conditions.set(format!("simulated devices of {}", resource.name), chain(&error));
        }
    }
    if let Err(error) = sweep_simulated(state_dir, |directory| wanted.iter().any(|wanted| wanted == directory)) {
        tracing::warn!(error = chain(&error), "failed to remove simulated devices of an earlier config");
    }
    Ok(())
}

/// Scans when something changed, when an allocation found something changed, and from time to time.
async fn keep_looking(
    mut stock: Stock,
    settings: &DevicesSettings,
    conditions: &Conditions,
    ticks: &watch::Sender<u64>,
    rescan: &Notify,
) -> Infallible {
    let mut watcher = Watcher::new();
    loop {
        let (returned, outcome) = refreshed(stock).await;
        stock = returned;
        outcome.report(conditions);
        let mut directories = outcome.directories;
        directories.extend([settings.kubelet_dir.clone(), settings.cdi_dir.clone()]);
        let unseen = watcher.set(&directories);
        ticks.send_modify(|tick| *tick = tick.wrapping_add(1));
        if unseen {
            continue;
        }
        tokio::select! {
            () = watcher.changed() => {}
            () = rescan.notified() => {}
        }
    }
}

/// Scans on a thread of its own: looking at files blocks.
async fn refreshed(mut stock: Stock) -> (Stock, crate::stock::Outcome) {
    let scan = tokio::task::spawn_blocking(move || {
        let outcome = stock.refresh();
        (stock, outcome)
    });
    match scan.await {
        Ok(done) => done,
        // The task isn't aborted, so it panicked: so do we, rather than go on without a stock.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
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
