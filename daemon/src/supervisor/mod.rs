//! `keelson run`: keeps one process per enabled plugin, each on its own.

mod backoff;
mod board;
mod link;
mod process;
mod signals;

use std::{io, sync::Arc, time::Instant};

use keelson_host::error_chain;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::NodeConfig,
    error::{EXIT_CONFIG, Failure},
    observability::{self, Shown},
    plugins::PluginKind,
};
use backoff::Backoff;
use board::{Board, State};
use process::{Event, Process, describe, wait_or};

pub use link::{Report, SupervisorLink};
pub use process::Launch;
pub use signals::cancel_on_signal;

/// Runs a process for each plugin that `config` has a section for, until SIGTERM or SIGINT.
///
/// # Errors
///
/// When health and metrics can't be served, then nothing was started; or when a process did not stop cleanly at the end.
/// A plugin's own failure is not an error here: it is logged, counted, told by `/readyz`, and the process started again.
pub async fn run(config: &NodeConfig, launch: Launch) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    cancel_on_signal(&shutdown).map_err(|source| Failure::System { action: "wait for signals", source })?;
    let listener = observability::bind("supervisor", config.address()).await?;
    let plugins = config.enabled();
    if plugins.is_empty() {
        tracing::warn!(config = %config.path().display(), "the config has no plugin's section, so nothing runs");
    }
    let mut registry = observability::registry();
    let board = Board::new(&plugins, &mut registry);
    let readiness = board.clone();
    let (_shown, shown) = watch::channel(Arc::new(Shown::from(registry)));
    listener.serve(shown, move || readiness.readiness());
    let mut keepers = JoinSet::new();
    for plugin in plugins {
        let keeper = Keeper { plugin, launch: launch.clone(), board: board.clone(), shutdown: shutdown.clone() };
        keepers.spawn(async move { (plugin, keeper.keep().await) });
    }
    shutdown.cancelled().await;
    tracing::info!("stopping");
    let stopped = keepers.join_all().await;
    let unclean: Vec<PluginKind> = stopped.into_iter().filter(|(_, clean)| !clean).map(|(plugin, _)| plugin).collect();
    if unclean.is_empty() { Ok(()) } else { Err(Failure::UncleanStop { plugins: unclean }) }
}

/// Keeps one plugin's process.
struct Keeper {
    plugin: PluginKind,
    launch: Launch,
    board: Board,
    shutdown: CancellationToken,
}

/// How a process came to its end.
enum End {
    /// It was told to; `clean` unless it failed or had to be killed.
    Stopped { clean: bool },
    /// It can't use its config.
    Misconfigured(String),
    /// Anything else, in words.
    Unexpected(String),
}

impl Keeper {
    /// Starts the process, again and again, until the shutdown; false if that was not clean.
    async fn keep(self) -> bool {
        let plugin = self.plugin;
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let end = match Process::start(&self.launch, plugin) {
                Ok(process) => self.attend(process).await,
                Err(error) => End::Unexpected(error_chain(&error)),
            };
            self.board.set_up(plugin, false);
            match end {
                End::Stopped { clean } => {
                    self.board.set(plugin, State::Stopped);
                    return clean;
                }
                End::Misconfigured(problems) => {
                    tracing::error!(%plugin, problems, "not started again: its config can't be used");
                    self.board.set(plugin, State::Misconfigured(problems));
                    self.shutdown.cancelled().await;
                    return true;
                }
                End::Unexpected(how) => {
                    let delay = backoff.after(started.elapsed());
                    tracing::error!(%plugin, how, ?delay, "plugin's process ended, starting it again after a delay");
                    self.board.set(plugin, State::Waiting(how));
                    if wait_or(delay, self.shutdown.cancelled()).await {
                        return true;
                    }
                    self.board.count_restart(plugin);
                    self.board.set(plugin, State::Starting);
                }
            }
        }
    }

    /// Follows one process from its start to its end.
    async fn attend(&self, mut process: Process) -> End {
        let plugin = self.plugin;
        tracing::info!(%plugin, pid = process.id(), "plugin's process started");
        self.board.set_up(plugin, true);
        let mut problems = None;
        loop {
            let event = tokio::select! {
                event = process.next() => event,
                () = self.shutdown.cancelled() => return End::Stopped { clean: process.stop(plugin).await },
            };
            match event {
                Ok(Event::Reported(Report::Ready)) => self.board.set(plugin, State::Ready),
                Ok(Event::Reported(Report::NotReady { reason })) => self.board.set(plugin, State::NotReady(reason)),
                Ok(Event::Reported(Report::Misconfigured { problems: told })) => problems = Some(told),
                Ok(Event::Ended(status)) if status.code() == Some(i32::from(EXIT_CONFIG)) => {
                    return End::Misconfigured(problems.unwrap_or_else(|| "see its log".to_owned()));
                }
                Ok(Event::Ended(status)) => return End::Unexpected(describe(status)),
                Err(error) => return End::Unexpected(lost(&error)),
            }
        }
    }
}

fn lost(error: &io::Error) -> String {
    format!("could not be waited for: {error}")
}
