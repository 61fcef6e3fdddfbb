//! Keeps what running Pods need in the kernel: brings back rules, addresses and forwarding that somebody removed, frees
//! what nobody uses, and counts.

use std::{fs::File, io, sync::Arc, time::Duration};

use keelson_cni::{
    NetworkSettings,
    operator::{self, GcRequest, NetworkUsage, OperatorError, Places, Repair},
};
use keelson_host::{HostRoot, error_chain};
use nix::errno::Errno;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{net::unix::pipe, time};
use tokio_util::sync::CancellationToken;

/// Somebody who changes rules changes several; they are looked at when it is quiet.
const SETTLE: Duration = Duration::from_millis(100);
/// Everything is looked at this often even when nothing tells of a change, and what nobody uses is freed.
const RESCAN: Duration = Duration::from_secs(60);

/// Knows the networks of this node and its own.
#[derive(Clone)]
pub(super) struct Guard {
    places: Arc<Places>,
    settings: Arc<NetworkSettings>,
    metrics: Metrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    what: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    network: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Set {
    network: String,
    set: u64,
    state: &'static str,
}

#[derive(Clone, Default)]
struct Metrics {
    repairs: Family<What, Counter>,
    attachments: Family<State, Gauge>,
    addresses: Family<Set, Gauge>,
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "keelson_network_repairs",
            "Things that somebody removed or switched off under running Pods and that were brought back, or freed as \
             nobody used them, by kind",
            self.repairs.clone(),
        );
        registry.register(
            "keelson_network_attachments",
            "Attachments by network and state: active, pending, stale, unreadable",
            self.attachments.clone(),
        );
        registry.register(
            "keelson_network_addresses",
            "Addresses by network, range set and state: used, released (and waiting to be given again), capacity",
            self.addresses.clone(),
        );
    }

    fn tell(&self, usage: &[NetworkUsage]) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for network in usage {
            for (state, value) in [
                ("active", network.active),
                ("pending", network.pending),
                ("stale", network.stale),
                ("unreadable", network.unreadable),
            ] {
                let labels = State { network: network.network.clone(), state };
                self.attachments.get_or_create(&labels).set(number(value));
            }
            for set in &network.sets {
                for (state, value) in [("used", set.used), ("released", set.released), ("capacity", set.capacity)] {
                    let labels = Set { network: network.network.clone(), set: set.set as u64, state };
                    self.addresses.get_or_create(&labels).set(number(value));
                }
            }
        }
    }

    fn count(&self, what: &str) {
        self.repairs.get_or_create(&What { what: what.to_owned() }).inc();
    }
}

impl Guard {
    pub(super) fn new(settings: NetworkSettings, root: &HostRoot, registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        metrics.register(registry);
        let places = Places::of_node(root, Some(&settings));
        Self { places: Arc::new(places), settings: Arc::new(settings), metrics }
    }

    /// Looks after the networks until `shutdown`. What can't be done is told and tried again.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut rescan = time::interval(RESCAN);
        rescan.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        // The subscription comes before the first look, so that no change falls between them.
        let changes = subscribe();
        loop {
            let is_rescan = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = rescan.tick() => true,
                () = changed(changes.as_ref()) => {
                    time::sleep(SETTLE).await;
                    false
                }
            };
            let guard = self.clone();
            // A look at a namespace that hangs must not keep the event loop.
            if let Err(error) = tokio::task::spawn_blocking(move || guard.look(is_rescan)).await {
                tracing::error!(error = error_chain(&error), "the look at the networks ended");
            }
        }
    }

    fn look(&self, is_rescan: bool) {
        match operator::restore(&self.places, Some(&self.settings)) {
            Ok(repairs) => {
                for Repair { what, missing } in repairs {
                    self.metrics.count(what);
                    tracing::warn!(what, missing, "brought back what was missing under running Pods");
                }
            }
            Err(error) => {
                tracing::error!(error = error_chain(&error), "failed to bring back what running Pods need");
            }
        }
        if is_rescan {
            self.free();
        }
        match operator::usage(&self.places) {
            Ok(usage) => self.metrics.tell(&usage),
            Err(error) => tracing::error!(error = error_chain(&error), "failed to count the attachments"),
        }
    }

    /// Frees the attachments whose link is gone for good.
    fn free(&self) {
        match operator::gc(&self.places, &GcRequest::default()) {
            Ok(collected) => {
                for network in &collected {
                    for entry in &network.freed {
                        self.metrics.count("stale");
                        let (owner, reason) = (&entry.owner, &entry.reason);
                        tracing::info!(network = network.network, owner, reason, "freed an attachment without a link");
                    }
                    for removed in &network.removed {
                        self.metrics.count("leftover");
                        tracing::info!(network = network.network, removed, "removed what belonged to no attachment");
                    }
                    for entry in &network.failed {
                        let reason = &entry.reason;
                        tracing::error!(network = network.network, pod = entry.owner, reason, "failed to free");
                    }
                }
            }
            // Nothing was attached yet.
            Err(OperatorError::NoNetwork(_)) => {}
            Err(error) => tracing::error!(error = error_chain(&error), "failed to free what nobody uses"),
        }
    }
}

/// What tells of changes. Without it, for one because the right to hear of rules is missing, the rescan finds what
/// changed, more slowly.
fn subscribe() -> Option<[pipe::Receiver; 2]> {
    // The sockets don't block and are read like pipes, and this is the event loop's safe way to wait for them.
    let register =
        |socket| pipe::Receiver::from_file_unchecked(File::from(socket)).map_err(|error| error_chain(&error));
    let opened = operator::changes().map_err(|error| error_chain(&error));
    match opened.and_then(|[links, rules]| Ok([register(links)?, register(rules)?])) {
        Ok(changes) => Some(changes),
        Err(error) => {
            tracing::warn!(error, "nothing tells of changes, looking every minute");
            None
        }
    }
}

/// Returns when something changed; never without a subscription.
async fn changed(changes: Option<&[pipe::Receiver; 2]>) {
    let Some([links, rules]) = changes else { return std::future::pending().await };
    let (ready, socket) = tokio::select! {
        ready = links.readable() => (ready, links),
        ready = rules.readable() => (ready, rules),
    };
    if let Err(error) = ready {
        tracing::warn!(error = error_chain(&error), "a subscription to changes failed");
    }
    // All that was told is taken, so that only the next change wakes us up again.
    let mut told = [0; 4096];
    loop {
        match socket.try_read(&mut told) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // More than the kernel had room for.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "a subscription to changes failed");
                return;
            }
            Ok(_) => {}
        }
    }
}
