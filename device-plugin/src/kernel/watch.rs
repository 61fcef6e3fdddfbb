//! Tells when something changes in a set of directories.

use std::{
    collections::{BTreeMap, BTreeSet},
    future, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use tokio::{net::unix::pipe, time};

/// How often to look anyway while every directory is watched: what inotify can't see, such as a driver bound to a PCI
/// function, is seen then.
const SLOW: Duration = Duration::from_secs(30);

/// How often to look where a directory can't be watched, for one because the user's inotify instances are used up.
const FAST: Duration = Duration::from_secs(1);

/// Changes come in bursts; they are looked at together.
const SETTLE: Duration = Duration::from_millis(20);

/// Watches directories with one inotify instance, and falls back to a timer.
#[derive(Debug)]
pub(crate) struct Watcher {
    /// Read like a pipe, which is the event loop's safe way to wait for a descriptor.
    inotify: Option<pipe::Receiver>,
    watched: BTreeMap<PathBuf, i32>,
    /// Whether every directory asked for is watched.
    complete: bool,
}

impl Watcher {
    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(|inotify| pipe::Receiver::from_file_unchecked(inotify.into()))
            .inspect_err(|error| {
                tracing::warn!(%error, "inotify can't be used; looking for changes every second instead");
            });
        Self { inotify: inotify.ok(), watched: BTreeMap::new(), complete: false }
    }

    /// Watches exactly these directories, for one that isn't there the nearest one above it.
    ///
    /// True if a directory is watched now that wasn't: what changed in it before went unseen, so look again. Blocks.
    pub(crate) fn set(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let before: BTreeSet<i32> = self.watched.values().copied().collect();
        self.watched.clear();
        self.complete = true;
        for directory in directories {
            match watch_nearest(inotify, directory) {
                Ok((path, descriptor)) => {
                    self.watched.insert(path, descriptor);
                }
                Err(error) => {
                    self.complete = false;
                    tracing::debug!(directory = %directory.display(), %error, "directory can't be watched");
                }
            }
        }
        let now: BTreeSet<i32> = self.watched.values().copied().collect();
        for stale in before.difference(&now) {
            // EINVAL: the directory is gone, and its watch with it.
            let _ = inotify::remove_watch(inotify, *stale);
        }
        now.difference(&before).next().is_some()
    }

    /// Returns when something may have changed.
    pub(crate) async fn changed(&mut self) {
        let patience = if self.complete { SLOW } else { FAST };
        let Some(inotify) = &self.inotify else { return time::sleep(patience).await };
        let events = async {
            // An error of the descriptor itself would come back at once, for ever: the timer serves then.
            if read(inotify).await.is_err() {
                future::pending::<()>().await;
            }
        };
        if time::timeout(patience, events).await.is_ok() {
            time::sleep(SETTLE).await;
            // What came meanwhile is part of the same burst.
            while take(inotify).is_ok() {}
        }
    }
}

/// Waits for events and takes them; which they are doesn't matter.
async fn read(inotify: &pipe::Receiver) -> io::Result<()> {
    loop {
        inotify.readable().await?;
        match take(inotify) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            taken => return taken,
        }
    }
}

/// Takes some of the events that are there; `WouldBlock` if there are none.
fn take(inotify: &pipe::Receiver) -> io::Result<()> {
    // Room for at least one event with the longest of names (inotify(7)).
    match inotify.try_read(&mut [0_u8; 4096])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn watch_nearest(inotify: &pipe::Receiver, directory: &Path) -> Result<(PathBuf, i32), Errno> {
    let events = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    let mut error = Errno::NOENT;
    for path in directory.ancestors() {
        match inotify::add_watch(inotify, path, events) {
            Ok(descriptor) => return Ok((path.to_owned(), descriptor)),
            Err(found @ (Errno::NOENT | Errno::NOTDIR)) => error = found,
            Err(found) => return Err(found),
        }
    }
    Err(error)
}
