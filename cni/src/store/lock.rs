//! Locks between the processes that serve a network. The kernel releases them when a process dies.

use std::{
    fs::File,
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, fcntl};

/// How long a lock is waited for. A call waits for at most two, one after the other: a minute, half of what the kubelet
/// gives a runtime (`runtimeRequestTimeout`, two minutes). What is done under a lock takes milliseconds, so a holder
/// that keeps it this long hangs, as on a dead disk.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The exclusive lock of one attachment: ADD, DEL, CHECK and GC of the same one wait for each other, those of others
/// don't.
///
/// All attachments share one file, in which each locks the byte at its number: nothing is left behind, and two
/// attachments with the same number merely wait for each other. Closing the file releases the lock.
#[derive(Debug)]
pub(crate) struct AttachmentLock {
    _file: File,
}

impl AttachmentLock {
    /// Waits for the lock of the attachment with `number` in the file at `path`, but not longer than `limit`.
    pub(crate) fn acquire(path: &Path, number: u64, limit: Duration) -> io::Result<Self> {
        Ok(Self { _file: lock_file(path, Some(limit), Self::locker(number))? })
    }

    /// The same lock if nobody has it.
    pub(crate) fn try_acquire(path: &Path, number: u64) -> io::Result<Option<Self>> {
        match lock_file(path, None, Self::locker(number)) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "F_WRLCK and SEEK_SET are 1 and 0; C has them as int")]
    fn locker(number: u64) -> impl Fn(&File, Mode) -> io::Result<()> + Copy + Send + 'static {
        let range = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            // Offsets are signed; a bit less makes no difference to a hash.
            l_start: (number >> 2).cast_signed(),
            l_len: 1,
            // The kernel wants 0 for locks that belong to the open file.
            l_pid: 0,
        };
        move |file: &File, mode| {
            let operation = match mode {
                Mode::Try => FcntlArg::F_OFD_SETLK(&range),
                Mode::Wait => FcntlArg::F_OFD_SETLKW(&range),
            };
            fcntl(file, operation).map(drop).map_err(io::Error::from)
        }
    }
}

/// The exclusive lock of a network, held only for the few file operations that choose or return addresses.
#[derive(Debug)]
pub(crate) struct NetworkLock {
    _file: File,
}

impl NetworkLock {
    /// Waits for the lock on the file at `path`, but not longer than `limit`.
    pub(crate) fn acquire(path: &Path, limit: Duration) -> io::Result<Self> {
        Ok(Self { _file: lock_file(path, Some(limit), lock_whole)? })
    }
}

/// The exclusive lock of a container's network namespace, which the reference sbr plugin takes as well. It is that of
/// the open file, so it is held as long as `file` is open anywhere.
#[derive(Debug)]
pub(crate) struct NamespaceLock {
    _file: File,
}

impl NamespaceLock {
    /// Waits for the lock of the namespace that `file` is, but not longer than `limit`.
    pub(crate) fn acquire(file: &File, limit: Duration) -> io::Result<Self> {
        let file = file.try_clone()?;
        let _file = match lock_whole(&file, Mode::Try) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(file, Instant::now() + limit, lock_whole)?,
            other => other.map(|()| file)?,
        };
        Ok(Self { _file })
    }
}

fn lock_whole(file: &File, mode: Mode) -> io::Result<()> {
    match mode {
        Mode::Try => file.try_lock().map_err(io::Error::from),
        Mode::Wait => file.lock(),
    }
}

/// What to do about a lock that somebody else holds.
#[derive(Clone, Copy)]
enum Mode {
    /// Fail with [`io::ErrorKind::WouldBlock`].
    Try,
    Wait,
}

/// Opens and locks the file at `path`, made when missing; after `limit` of waiting it fails with
/// [`io::ErrorKind::TimedOut`], without a limit at once with [`io::ErrorKind::WouldBlock`]. A symbolic link there is refused (`ELOOP`): it could lead to any file of the host.
///
/// Whoever held the lock before may have removed the store, and somebody else made a new one: then the lock that we
/// waited for protects nothing any more, and the new file's is waited for.
fn lock_file(
    path: &Path,
    limit: Option<Duration>,
    lock: impl Fn(&File, Mode) -> io::Result<()> + Copy + Send + 'static,
) -> io::Result<File> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(path)?;
        match lock(&file, Mode::Try) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match deadline {
                Some(deadline) => file = wait(file, deadline, lock)?,
                None => return Err(error),
            },
            other => other?,
        }
        let locked = file.metadata()?;
        match path.symlink_metadata() {
            Ok(current) if (current.dev(), current.ino()) == (locked.dev(), locked.ino()) => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

/// Waits for the lock in a thread of its own: the kernel serves waiters in their order, and knows no time limit.
///
/// A thread that nobody waits for any more gives the lock back as soon as it has it.
fn wait(
    file: File,
    deadline: Instant,
    lock: impl Fn(&File, Mode) -> io::Result<()> + Send + 'static,
) -> io::Result<File> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("lock".to_owned()).spawn(move || {
        let locked = loop {
            match lock(&file, Mode::Wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        // If the receiver has gone, so does the file, and with it the lock.
        let _ = sender.send(locked.map(|()| file));
    })?;
    let left = deadline.saturating_duration_since(Instant::now());
    receiver.recv_timeout(left).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, TryLockError},
        os::unix::fs::symlink,
    };

    use super::*;

    #[test]
    fn a_lock_on_a_removed_file_is_not_taken_for_one_on_its_successor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = NetworkLock::acquire(&path, LIMIT).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| NetworkLock::acquire(&path, LIMIT).unwrap());
            fs::remove_file(&path).unwrap();
            drop(first);
            let second = waiting.join().unwrap();
            let current = File::open(&path).unwrap();
            assert!(matches!(current.try_lock(), Err(TryLockError::WouldBlock)));
            drop(second);
            current.try_lock().unwrap();
        });
    }

    #[test]
    fn attachments_wait_only_for_themselves() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attachments.lock");
        let first = AttachmentLock::acquire(&path, 1 << 40, LIMIT).unwrap();
        let _other = AttachmentLock::acquire(&path, 2 << 40, LIMIT).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| AttachmentLock::acquire(&path, 1 << 40, LIMIT).unwrap());
            assert!(!waiting.is_finished());
            drop(first);
            waiting.join().unwrap();
        });
    }

    #[test]
    fn nobody_waits_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let timed_out = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let network = NetworkLock::acquire(&path, LIMIT).unwrap();
        timed_out(NetworkLock::acquire(&path, Duration::ZERO).unwrap_err());
        drop(network);
        // Who gave up waiting doesn't keep the lock either.
        NetworkLock::acquire(&path, LIMIT).unwrap();
        let attachment = AttachmentLock::acquire(&path, 1 << 40, LIMIT).unwrap();
        timed_out(AttachmentLock::acquire(&path, 1 << 40, Duration::ZERO).unwrap_err());
        drop(attachment);
        let again = AttachmentLock::acquire(&path, 1 << 40, LIMIT).unwrap();
        // Somebody else than a waiter is told at once.
        assert!(AttachmentLock::try_acquire(&path, 1 << 40).unwrap().is_none());
        drop(again);
        assert!(AttachmentLock::try_acquire(&path, 1 << 40).unwrap().is_some());
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let target = directory.path().join("target");
        symlink(&target, &path).unwrap();
        for error in [
            NetworkLock::acquire(&path, LIMIT).map(drop).unwrap_err(),
            AttachmentLock::acquire(&path, 0, LIMIT).map(drop).unwrap_err(),
        ] {
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        }
        assert!(!target.exists());
    }
}
