//! The Unix sockets that the plugins serve on.

use std::{
    fs, io,
    os::{
        linux::fs::MetadataExt,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

/// The most bytes of a Unix socket's path: `sun_path` holds 108, the last of them a NUL (unix(7)).
pub const LONGEST_SOCKET_PATH: usize = 107;

/// A listening Unix socket that only root may connect to, removed when dropped.
///
/// A file left at the path by a killed process is replaced if it is a socket; anything else there is an error. On
/// drop the path is removed only while it is still this very socket: a successor may have bound it anew.
#[derive(Debug)]
pub struct PrivateSocket {
    path: PathBuf,
    identity: (u64, u64),
}

impl PrivateSocket {
    /// Binds `path` with mode 0600 and gives the non-blocking listener with the guard that removes it.
    ///
    /// The socket is bound under a temporary name beside `path` and renamed once its mode is set, so that there is
    /// no moment at which others could connect, and no moment at which a running predecessor's path is missing.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a path over 107 bytes, `AlreadyExists` if the path is there and is no socket, else the
    /// error of the failing call.
    pub fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        Self::bind_through(path, &path.with_extension("tmp"))
    }

    /// [`PrivateSocket::bind`] with a temporary name of one's own in the same directory, where others look at what
    /// appears there.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind_through(path: &Path, temporary: &Path) -> io::Result<(UnixListener, Self)> {
        if path.as_os_str().len().max(temporary.as_os_str().len()) > LONGEST_SOCKET_PATH {
            let message = format!(
                "socket path {} is longer than {LONGEST_SOCKET_PATH} bytes; choose a shorter one",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        remove_socket(path, false)?;
        remove_socket(temporary, true)?;
        let listener = UnixListener::bind(temporary)?;
        fs::set_permissions(temporary, fs::Permissions::from_mode(0o600))?;
        fs::rename(temporary, path)?;
        listener.set_nonblocking(true)?;
        let metadata = fs::symlink_metadata(path)?;
        Ok((listener, Self { path: path.to_owned(), identity: (metadata.st_dev(), metadata.st_ino()) }))
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to this socket: a restarting kubelet removes what it finds in its directory.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| (found.st_dev(), found.st_ino()) == self.identity)
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        if self.is_in_place() {
            // The process is ending; the next start replaces what could not be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the socket at `path` is one that nobody listens on. A listener whose queue is full answers EAGAIN, and is
/// alive.
///
/// # Errors
///
/// When no socket can be made, or for a path that is longer than a socket's can be.
pub fn is_dead_socket(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(true),
        Ok(()) | Err(_) => Ok(false),
    }
}

/// Checks that `path` is a socket or absent, and removes it if asked to.
fn remove_socket(path: &Path, remove: bool) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} exists and is not a socket; remove it or choose another path", path.display()),
        )),
        Ok(_) if remove => fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn binds_privately_and_removes_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        let (_listener, guard) = PrivateSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        drop(guard);
        assert!(!path.exists());
    }

    #[test]
    fn replaces_the_socket_of_a_killed_process_and_leaves_a_successor_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        let (_old, old_guard) = PrivateSocket::bind(&path).unwrap();
        let (_new, _new_guard) = PrivateSocket::bind(&path).unwrap();
        assert!(!old_guard.is_in_place());
        drop(old_guard);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_is_dead_once_its_listener_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(!is_dead_socket(&path).unwrap());
        drop(listener);
        assert!(is_dead_socket(&path).unwrap());
        assert!(!is_dead_socket(&directory.path().join("none")).unwrap(), "what isn't there is not dead");
    }

    #[test]
    fn anything_but_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        fs::write(&path, b"precious").unwrap();
        assert_eq!(PrivateSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_that_the_kernel_would_cut_is_refused() {
        let path = Path::new("/tmp").join("x".repeat(120));
        assert_eq!(PrivateSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
