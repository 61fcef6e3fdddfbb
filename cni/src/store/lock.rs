//! Locks between the processes that serve a network. The kernel releases them when a process dies.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

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
    /// Waits for the lock of the attachment with `number` in the file at `path`.
    #[expect(clippy::cast_possible_truncation, reason = "F_WRLCK and SEEK_SET are 1 and 0; C has them as int")]
    pub(crate) fn acquire(path: &Path, number: u64) -> io::Result<Self> {
        let range = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            // Offsets are signed; a bit less makes no difference to a hash.
            l_start: (number >> 2).cast_signed(),
            l_len: 1,
            // The kernel wants 0 for locks that belong to the open file.
            l_pid: 0,
        };
        let lock = |file: &File| match fcntl(file, FcntlArg::F_OFD_SETLKW(&range)) {
            Ok(_) => Ok(()),
            Err(errno) => Err(Errno::into(errno)),
        };
        Ok(Self { _file: lock_file(path, lock)? })
    }
}

/// The exclusive lock of a network, held only for the few file operations that choose or return addresses.
#[derive(Debug)]
pub(crate) struct NetworkLock {
    _file: File,
}

impl NetworkLock {
    /// Waits for the lock on the file at `path`.
    pub(crate) fn acquire(path: &Path) -> io::Result<Self> {
        Ok(Self { _file: lock_file(path, File::lock)? })
    }
}

/// Opens and locks the file at `path`, made when missing.
///
/// Whoever held the lock before may have removed the store, and somebody else made a new one: then the lock that we
/// waited for protects nothing any more, and the new file's is waited for.
fn lock_file(path: &Path, lock: impl Fn(&File) -> io::Result<()>) -> io::Result<File> {
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        while let Err(error) = lock(&file) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let locked = file.metadata()?;
        match path.metadata() {
            Ok(current) if (current.dev(), current.ino()) == (locked.dev(), locked.ino()) => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, TryLockError},
        thread,
    };

    use super::*;

    #[test]
    fn a_lock_on_a_removed_file_is_not_taken_for_one_on_its_successor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = NetworkLock::acquire(&path).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| NetworkLock::acquire(&path).unwrap());
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
        let first = AttachmentLock::acquire(&path, 1 << 40).unwrap();
        let _other = AttachmentLock::acquire(&path, 2 << 40).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| AttachmentLock::acquire(&path, 1 << 40).unwrap());
            assert!(!waiting.is_finished());
            drop(first);
            waiting.join().unwrap();
        });
    }
}
