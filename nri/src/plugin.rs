//! The plugin's life: connect to the runtime, serve, reconnect.

use std::{collections::BTreeMap, convert::Infallible, fmt, path::Path, sync::Arc, time::Duration};

use keelson_host::{InspectError, Topology, error_chain};
use prometheus_client::registry::Registry;
use tokio::{net::UnixStream, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    DeviceLocality, Error, PinningSettings,
    connection::{Registration, serve},
    metrics::Metrics,
    policy::Machine,
    service::Events,
    store::{Record, Recorder, Store},
};

/// The name under which the plugin registers.
const NAME: &str = "keelson";

/// The version of NRI whose messages and calls the plugin knows.
const NRI_VERSION: &str = "v0.12.2";

/// NRI's own default is 5 s, which a runtime that is just starting was seen to miss.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(20);

/// Containers that start while the plugin isn't connected are not placed, so it doesn't wait long: connecting to a Unix
/// socket once a second costs nothing.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The NRI plugin.
pub struct Plugin {
    settings: PinningSettings,
    locality: Arc<dyn DeviceLocality>,
    metrics: Metrics,
    recorder: Recorder,
    records: BTreeMap<String, Record>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Plugin").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Prepares the plugin: makes its state directory, reads the records of placements, and registers the metrics
    /// `keelson_pinning_*`.
    ///
    /// # Errors
    ///
    /// [`Error`] if the machine's topology can't be read or the state directory can't be used.
    pub fn new(
        settings: PinningSettings,
        locality: Arc<dyn DeviceLocality>,
        registry: &mut Registry,
    ) -> Result<Self, Error> {
        inspect(&settings).map_err(Error::Topology)?;
        let (store, records) = Store::open(&settings.state_dir)?;
        let metrics = Metrics::register(registry);
        let recorder = Recorder::start(store, metrics.record_failures.clone()).map_err(|source| Error::Store {
            action: "start the thread that writes",
            path: settings.state_dir.clone(),
            source,
        })?;
        Ok(Self { settings, locality, metrics, recorder, records })
    }

    /// Serves the runtime, and the next one when that ends, until `shutdown` fires. Containers stay where they are.
    ///
    /// `ready` carries `Ok` while a runtime has synchronized with the plugin, else the reason why none has.
    ///
    /// # Errors
    ///
    /// None: a runtime that is away, or a machine that can't be read for a while, is a reason not to be ready. It is a
    /// `Result` because every plugin's is.
    pub async fn run(self, ready: watch::Sender<Result<(), String>>, shutdown: CancellationToken) -> Result<(), Error> {
        let serving = self.serve_for_ever(ready);
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            never = serving => match never {},
        }
    }

    async fn serve_for_ever(self, ready: watch::Sender<Result<(), String>>) -> Infallible {
        let Self { settings, locality, metrics, recorder, records } = self;
        let mut events = Events::new(settings.mode, locality, metrics.clone(), ready.clone(), recorder, records);
        let registration = Registration {
            name: NAME.to_owned(),
            index: settings.plugin_index.clone(),
            nri_version: NRI_VERSION.to_owned(),
            timeout: REGISTRATION_TIMEOUT,
        };
        let mut pause = SHORTEST_PAUSE;
        let mut last_reason = String::new();
        loop {
            let reason = match connect(&settings).await {
                Ok((socket, machine)) => {
                    metrics.connections.inc();
                    events.begin(machine);
                    let end = serve(socket, &registration, &mut events).await;
                    error_chain(&end)
                }
                Err(reason) => reason,
            };
            metrics.synchronized.set(0);
            // A runtime that was served is expected back at once; one that isn't there is asked more and more rarely.
            if ready.send_replace(Err(reason.clone())).is_ok() {
                pause = SHORTEST_PAUSE;
                last_reason.clear();
            }
            if reason != last_reason {
                tracing::warn!(reason, "not connected to a container runtime; trying again");
                last_reason = reason;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Connects, and inspects the machine: CPUs may have come and gone since the last connection.
async fn connect(settings: &PinningSettings) -> Result<(UnixStream, Machine), String> {
    let path: &Path = &settings.socket;
    let socket = UnixStream::connect(path).await.map_err(|error| {
        let path = path.display();
        format!("failed to connect to {path}: {error}; is a container runtime with NRI enabled running?")
    })?;
    let for_reading = settings.clone();
    let machine = tokio::task::spawn_blocking(move || inspect(&for_reading))
        .await
        .map_err(|error| format!("failed to read this machine's CPU topology: {error}"))?
        .map_err(|error| format!("failed to read this machine's CPU topology: {}", error_chain(&error)))?;
    Ok((socket, machine))
}

fn inspect(settings: &PinningSettings) -> Result<Machine, InspectError> {
    Ok(Machine::new(&Topology::read(&settings.root)?, &settings.reserved))
}
