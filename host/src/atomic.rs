//! The one file writer that every store uses.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

/// What must survive when [`write_atomic`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The death of this process: other processes see the old content or the new, never a mixture.
    Process,
    /// A power cut as well: the content and its directory entry are synced before this returns.
    PowerLoss,
}

/// Replaces the file at `path` so that a crash leaves the old content or the new, never a mixture.
///
/// The content goes to a temporary file in the same directory, which is then renamed: containerd's and the
/// kubelet's watchers only notice a rename within the directory. `mode` is the new file's permission bits, whatever the
/// process's umask. A temporary file that a killed process left is named `.NAME.PID.N.tmp`; stores sweep those at start.
///
/// # Errors
///
/// The I/O error of the step that failed. The old content is then still in place, unless the last step failed, which
/// syncs the directory for [`Durability::PowerLoss`]: the new content is in place then, and a power cut may bring the
/// old one back. Writing again is right in either case.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display())));
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".{}.{}.{number}.tmp", name.to_string_lossy(), process::id()));
    let written = write_and_rename(&temporary, path, content, mode, durability);
    if written.is_err() {
        // The write's own error is what the caller needs; a leftover is swept by the store.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    if durability == Durability::PowerLoss {
        // The rename itself is only durable once the directory is.
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn write_and_rename(
    temporary: &Path,
    path: &Path,
    content: &[u8],
    mode: u32,
    durability: Durability,
) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode & 0o600).open(temporary)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    if durability == Durability::PowerLoss {
        file.sync_all()?;
    }
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_content_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        write_atomic(&path, b"old", 0o600, Durability::Process).unwrap();
        write_atomic(&path, b"new", 0o600, Durability::PowerLoss).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_mode_is_the_one_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        // Every usual umask takes some bit away from each of the last two.
        for mode in [0o600, 0o444, 0o666, 0o777] {
            write_atomic(&path, b"", mode, Durability::Process).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode, "{mode:o}");
        }
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"x").unwrap();
        // A non-empty directory can't be replaced by a file, whoever asks.
        assert!(write_atomic(&path, b"new", 0o600, Durability::Process).is_err());
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"x");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        assert_eq!(
            write_atomic(Path::new("/"), b"", 0o600, Durability::Process).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
