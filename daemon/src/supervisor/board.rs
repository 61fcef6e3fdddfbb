//! What the supervisor knows of each plugin's process: the one place that readiness and metrics are read from.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{observability::Readiness, plugins::PluginKind};

/// Where a plugin's process is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It was started and has not reported yet, or is about to be started.
    Starting,
    /// It reported that it is ready.
    Ready,
    /// It reported that it isn't, with its reason.
    NotReady(String),
    /// It ended, as told here, and waits to be started again.
    Waiting(String),
    /// It refused its config, with its problems, and is not started again.
    Misconfigured(String),
    /// It ended as it was told to.
    Stopped,
}

/// The state of every enabled plugin, shared by the keepers that write it and the HTTP server that reads it.
#[derive(Clone, Debug)]
pub(super) struct Board {
    states: Arc<Mutex<BTreeMap<PluginKind, State>>>,
    metrics: Metrics,
}

#[derive(Clone, Debug, Default)]
struct Metrics {
    up: Family<Label, Gauge>,
    ready: Family<Label, Gauge>,
    misconfigured: Family<Label, Gauge>,
    restarts: Family<Label, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    plugin: &'static str,
}

impl Board {
    pub(super) fn new(plugins: &[PluginKind], registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        registry.register("keelson_supervisor_plugin_up", "1 while the plugin's process runs", metrics.up.clone());
        registry.register(
            "keelson_supervisor_plugin_ready",
            "1 while the plugin's process reports that it is ready",
            metrics.ready.clone(),
        );
        registry.register(
            "keelson_supervisor_plugin_misconfigured",
            "1 if the plugin's process refused its config and is not started again",
            metrics.misconfigured.clone(),
        );
        registry.register(
            "keelson_supervisor_plugin_restarts",
            "Times that the plugin's process was started again after it ended by itself",
            metrics.restarts.clone(),
        );
        let board = Self { states: Arc::default(), metrics };
        for plugin in plugins {
            // A counter that is there from the start shows its first increase.
            board.metrics.restarts.get_or_create_owned(&Label { plugin: plugin.name() });
            board.set(*plugin, State::Starting);
            board.set_up(*plugin, false);
        }
        board
    }

    pub(super) fn set(&self, plugin: PluginKind, state: State) {
        let label = Label { plugin: plugin.name() };
        self.metrics.ready.get_or_create(&label).set(i64::from(state == State::Ready));
        self.metrics.misconfigured.get_or_create(&label).set(i64::from(matches!(state, State::Misconfigured(_))));
        self.states().insert(plugin, state);
    }

    pub(super) fn set_up(&self, plugin: PluginKind, up: bool) {
        self.metrics.up.get_or_create(&Label { plugin: plugin.name() }).set(i64::from(up));
    }

    pub(super) fn count_restart(&self, plugin: PluginKind) {
        self.metrics.restarts.get_or_create(&Label { plugin: plugin.name() }).inc();
    }

    pub(super) fn readiness(&self) -> Readiness {
        self.states()
            .iter()
            .map(|(plugin, state)| {
                let ready = match state {
                    State::Ready => Ok(()),
                    State::Starting => Err("starting".to_owned()),
                    State::NotReady(reason) => Err(reason.clone()),
                    State::Waiting(end) => Err(format!("{end}, will be started again")),
                    State::Misconfigured(problems) => Err(format!("not started again: {problems}")),
                    State::Stopped => Err("stopped".to_owned()),
                };
                (*plugin, ready)
            })
            .collect()
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<PluginKind, State>> {
        // A map of whole values is right whatever a panicking holder was about to do.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
