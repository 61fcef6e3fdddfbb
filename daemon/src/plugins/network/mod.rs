//! `network`: keeps the CNI executable and its network config where the container runtime looks for them, and in the
//! kernel what running Pods need.
//!
//! The plugin itself runs once per Pod and needs no daemon. A stop leaves both files in place: without them the runtime
//! could neither start a Pod nor take one down.

mod guard;

use std::{
    env, io,
    path::{Path, PathBuf},
    time::Duration,
};

use keelson_cni::{InstallError, Installed, NetworkSection, NetworkSettings, Uninstalled, install};
use keelson_host::{Node, Problems, error_chain};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{net::unix::pipe, time};
use tokio_util::sync::CancellationToken;

use guard::Guard;

use super::{Plugin, PluginError, PluginKind, Ready};

/// The executable's name, beside our own and in the runtime's directory.
const EXECUTABLE: &str = "keelson-cni";
/// Where the executable lies when it isn't beside ours.
const EXECUTABLE_DIRECTORY: &str = "/opt/keelson/bin";
/// The files are looked at this often even when nothing says that they changed: inotify doesn't see changes that
/// another node makes to a network filesystem, nor a directory that was missing.
const RESCAN: Duration = Duration::from_secs(60);
/// A package manager or an operator changes several files in a row; they are looked at when it is quiet.
const SETTLE: Duration = Duration::from_millis(100);

pub(super) struct Network {
    settings: NetworkSettings,
    executable: PathBuf,
    installs: Counter,
    guard: Guard,
}

impl Plugin for Network {
    const KIND: PluginKind = PluginKind::Network;
    type Section = NetworkSection;
    type Settings = NetworkSettings;

    fn validate(section: &NetworkSection, node: &Node) -> Result<NetworkSettings, Problems> {
        section.validate(node)
    }

    fn new(settings: NetworkSettings, node: &Node, registry: &mut Registry) -> Result<Self, PluginError> {
        let installs = Counter::default();
        registry.register(
            "keelson_network_installs",
            "Times that the executable or the network config was missing or different and was put in place",
            installs.clone(),
        );
        let guard = Guard::new(settings.clone(), &node.root, registry);
        Ok(Self { settings, executable: find_executable()?, installs, guard })
    }

    async fn run(self, ready: Ready, shutdown: CancellationToken) -> Result<(), PluginError> {
        tokio::join!(self.keep_installed(ready, &shutdown), self.guard.clone().run(shutdown.clone()));
        Ok(())
    }

    fn uninstall(settings: &NetworkSettings) -> Result<Vec<String>, PluginError> {
        let Uninstalled { attachments_left, bridge_removed } = keelson_cni::uninstall(settings)?;
        if attachments_left > 0 {
            let message = format!("{attachments_left} Pods are still attached; delete them and run this again");
            return Err(message.into());
        }
        let mut told = vec!["the network config, the records and the nftables rules are gone".to_owned()];
        told.push(match bridge_removed {
            true => format!("the bridge {} is gone", settings.bridge()),
            false => format!("left the bridge {} alone: it has ports, or is not Keelson's", settings.bridge()),
        });
        Ok(told)
    }
}

/// Tells a change of readiness; a plugin that stays as it was says nothing.
fn publish(ready: &Ready, state: Result<(), String>) {
    ready.send_if_modified(|current| {
        let modified = *current != state;
        *current = state;
        modified
    });
}

impl Network {
    /// Keeps both files in place until `shutdown`.
    async fn keep_installed(&self, ready: Ready, shutdown: &CancellationToken) {
        loop {
            // The watch comes before the look, so that no change falls between them.
            let watch = watch(&self.settings);
            match self.install().await {
                // The directories were missing and are there now: watch them before waiting for long.
                Ok(changed) if changed && watch.is_none() => {
                    time::sleep(SETTLE).await;
                    continue;
                }
                Ok(_) => publish(&ready, Ok(())),
                Err(error) => {
                    let reason = error_chain(&*error);
                    tracing::error!(error = reason, "failed to install the CNI plugin");
                    publish(&ready, Err(reason));
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = changed(watch) => time::sleep(SETTLE).await,
                () = time::sleep(RESCAN) => {}
            }
        }
    }

    /// Puts both files in place; true if one was missing or different.
    async fn install(&self) -> Result<bool, PluginError> {
        let (settings, executable) = (self.settings.clone(), self.executable.clone());
        let installed: Result<Installed, InstallError> =
            tokio::task::spawn_blocking(move || install(&settings, &executable)).await?;
        let installed = installed?;
        let changed = installed.conflist_changed || installed.executable_changed;
        if changed {
            self.installs.inc();
            tracing::info!(
                conflist = %installed.conflist.display(),
                conflist_changed = installed.conflist_changed,
                executable = %installed.executable.display(),
                executable_changed = installed.executable_changed,
                "installed the CNI plugin"
            );
        }
        Ok(changed)
    }
}

/// The CNI executable to install: it lies beside ours, as in the image and in a build's directory, or in
/// `/opt/keelson/bin`.
pub(crate) fn find_executable() -> io::Result<PathBuf> {
    let own = env::current_exe()?;
    let candidates = [own.parent().unwrap_or(Path::new("/")), Path::new(EXECUTABLE_DIRECTORY)]
        .map(|directory| directory.join(EXECUTABLE));
    candidates.iter().find(|candidate| candidate.is_file()).cloned().ok_or_else(|| {
        let message = format!(
            "{EXECUTABLE} is neither at {} nor at {}; put it beside keelson",
            candidates[0].display(),
            candidates[1].display()
        );
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

/// Watches the directories of both files. Where that can't be done, for one because a directory is still missing, the
/// rescan does its work more slowly.
fn watch(settings: &NetworkSettings) -> Option<pipe::Receiver> {
    let events = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ATTRIB
        | WatchFlags::ONLYDIR;
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).and_then(|watch| {
        for file in [settings.conflist_path(), settings.executable_path()] {
            inotify::add_watch(&watch, file.parent().unwrap_or(Path::new("/")), events)?;
        }
        Ok(watch)
    });
    // An inotify descriptor is non-blocking and read like a pipe, and this is the event loop's safe way to wait for one.
    match watch.map_err(io::Error::from).and_then(|watch| pipe::Receiver::from_file_unchecked(watch.into())) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::debug!(error = error_chain(&error), "no watch on the CNI directories, looking every minute");
            None
        }
    }
}

/// Returns when something in a watched directory changed; never without a watch.
async fn changed(watch: Option<pipe::Receiver>) {
    match watch {
        Some(watch) => {
            if let Err(error) = watch.readable().await {
                tracing::debug!(error = error_chain(&error), "the watch on the CNI directories ended");
            }
        }
        None => std::future::pending().await,
    }
}
