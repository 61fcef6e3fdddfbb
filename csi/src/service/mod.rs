//! The protocol's edge: validation of what was asked, and calls. One file per CSI service, and one per operation that
//! has more to it.

mod build;
mod call;
mod capacity;
mod controller;
mod create;
mod delete;
mod expand;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod group;
mod health;
mod identity;
mod in_flight;
mod layer;
mod list;
mod metadata;
mod modify;
mod node;
mod origin;
mod publish;
mod request;
mod snapshot;
mod space;
mod stage;
mod stats;
mod volume;

use std::sync::Arc;

use keelson_host::error_chain;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Response, Status};
use tracing::Span;

use self::call::Call;
pub(crate) use create::CreateError;
pub(crate) use delete::DeleteError;
pub(crate) use expand::ExpandError;
pub(crate) use group::{GroupError, thaw_leftovers};
pub(crate) use in_flight::{Guard, InFlight, Pending};
pub use in_flight::{Operation, Operations};
pub(crate) use layer::{CallLayer, Metrics};
pub(crate) use metadata::MetadataError;
pub(crate) use modify::ModifyError;
pub(crate) use origin::OriginError;
pub(crate) use publish::PublishError;
pub(crate) use snapshot::SnapshotError;
pub(crate) use space::PoolSpace;
pub(crate) use stage::StageError;
pub(crate) use stats::StatsError;
pub(crate) use volume::VolumeError;

use crate::{
    PoolKind, StorageSettings,
    store::{Attachments, Pools},
};

/// What all three CSI services work on.
#[derive(Clone, Debug)]
pub(crate) struct Service(Arc<State>);

/// The driver's state: the pools and what is going on. All else is in the kernel and on disk.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) settings: StorageSettings,
    pub(crate) pools: Pools,
    pub(crate) attachments: Attachments,
    pub(crate) in_flight: InFlight,
    pub(crate) tasks: TaskTracker,
    /// Fires when no call is waited for any longer: the process ends.
    pub(crate) ending: CancellationToken,
    pub(crate) metrics: Metrics,
}

impl State {
    pub(crate) fn new(settings: StorageSettings, attachments: Attachments, metrics: Metrics) -> Self {
        let pools = Pools::new(settings.pools.clone(), &settings.state_dir);
        metrics.observe_pools(&pools);
        let (in_flight, tasks, ending) = (InFlight::default(), TaskTracker::new(), CancellationToken::new());
        Self { settings, pools, attachments, in_flight, tasks, ending, metrics }
    }
}

impl State {
    /// Whether any pool makes snapshots and clones. The config alone decides, whatever disk is there just now.
    pub(crate) fn copies(&self) -> bool {
        self.pools.iter().any(|pool| pool.abilities().copies())
    }

    /// Whether any pool has raw block volumes.
    pub(crate) fn keeps_images(&self) -> bool {
        self.pools.iter().any(|pool| pool.settings.kind == PoolKind::Image)
    }
}

impl Service {
    pub(crate) fn new(state: State) -> Self {
        Self(Arc::new(state))
    }

    pub(crate) fn state(&self) -> &State {
        &self.0
    }

    /// Does `work` for the RPC `method` and answers.
    ///
    /// The work runs in a task of its own to its end, also when the client cancels or its deadline passes and tonic
    /// drops the handler: half a mount is worth less than one that the retry finds done. A failure is logged here, once;
    /// requests never are, as they hold secrets.
    async fn answer<T, E>(
        &self,
        method: &'static str,
        volume: &str,
        work: impl FnOnce(&State) -> Result<T, E> + Send + 'static,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        E: std::error::Error + Into<Status> + Send + 'static,
    {
        let state = Arc::clone(&self.0);
        // The work keeps the call's slot, also when the client has gone.
        let (call, span) = (Call::current(), Span::current());
        let volume = volume.to_owned();
        let task = self.0.tasks.spawn_blocking(move || {
            let _span = span.enter();
            let answer = Call::within(call, || work(&state));
            state.metrics.observe_pools(&state.pools);
            answer.map_err(|error| {
                let message = error_chain(&error);
                let status = error.into();
                tracing::warn!(method, volume, code = ?status.code(), error = message, "call failed");
                status
            })
        });
        let ended = tokio::select! {
            ended = task => ended,
            // A thread that waits for a disk for ever keeps the connection open, too, so its end would tell nobody.
            () = self.0.ending.cancelled() => {
                return Err(Status::unavailable(format!("{method} goes on while the driver ends; call again")));
            }
        };
        match ended {
            Ok(answer) => answer.map(Response::new),
            // The panic itself went to stderr.
            Err(error) => Err(Status::internal(format!("{method} did not end: {error}"))),
        }
    }
}
