//! Locks between the processes that serve a network. The kernel releases them when a process dies.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

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
    #[expect(clippy::cast_possible_truncation, reason = "F_WRLCK and SEEK_SET are 1 and 0; C has them as int")]
    /// Waits for the lock of the attachment with `number` in the file at `path`.
    pub(crate) fn acquire(path: &Path, number: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let range = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            // Offsets are signed; a bit less makes no difference to a hash.
            l_start: (number >> 2).cast_signed(),
            l_len: 1,
            // The kernel wants 0 for locks that belong to the open file.
            l_pid: 0,
        };
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&range)) {
                Ok(_) => return Ok(Self { _file: file }),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The exclusive lock of a network, held only for the few file operations that choose or return addresses, or that
/// make the bridge.
#[derive(Debug)]
pub(crate) struct NetworkLock {
    _file: File,
}

impl NetworkLock {
    pub(crate) fn acquire(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        loop {
            match file.lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
