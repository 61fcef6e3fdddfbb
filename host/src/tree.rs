//! Reading files below a [`HostRoot`] that may be hostile: nothing outside of it is ever opened, nothing blocks,
//! and nothing without bound is read.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat},
    io::Errno,
};

use crate::{HostRoot, InspectError};

/// The longest file that is read. Attributes are a page or so; a mount table with 50,000 lines stays below this.
const LONGEST_FILE: u64 = 16 << 20;

/// The fullest directory that is listed, sixteen times the CPUs that Linux can be configured for.
const MOST_ENTRIES: usize = 1 << 17;

/// openat2(2): `EAGAIN` means that something was mounted or renamed, anywhere on the machine, while a `..` was being
/// resolved, and that the caller may try again.
const MOST_ATTEMPTS: u32 = 1000;

/// Reads a file below `root` as text, without the final newline that the kernel's attributes carry.
///
/// # Errors
///
/// When it can't be read, is no regular file, is longer than 16 MiB or isn't UTF-8.
pub fn read_text(root: &HostRoot, path: impl AsRef<Path>) -> Result<String, InspectError> {
    Tree::open(root)?.text(path)
}

/// The id of the boot that runs now: a UUID that is another one after the next (random(4)).
///
/// # Errors
///
/// When the kernel doesn't tell.
pub fn boot_id() -> Result<String, InspectError> {
    read_text(&HostRoot::system(), "/proc/sys/kernel/random/boot_id")
}

/// A [`HostRoot`] opened for reading.
///
/// Invariant: paths are resolved as if the root were `/` (`RESOLVE_IN_ROOT`), so neither an absolute symbolic link
/// nor any number of `..` leads out of it. This is what a link in a container's `/host` means on the host, too.
pub(crate) struct Tree {
    root: HostRoot,
    directory: OwnedFd,
}

impl Tree {
    pub(crate) fn open(root: &HostRoot) -> Result<Self, InspectError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(root.path(), flags, Mode::empty()) {
            Ok(directory) => Ok(Self { root: root.clone(), directory }),
            Err(error) => Err(InspectError::Read { path: root.path().to_owned(), source: error.into() }),
        }
    }

    /// A file's content.
    pub(crate) fn bytes(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, InspectError> {
        self.read(path.as_ref()).map_err(|source| self.failed(path, source))
    }

    /// An attribute as text, without the final newline that sysfs adds.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Result<String, InspectError> {
        let path = path.as_ref();
        match String::from_utf8(self.bytes(path)?) {
            Ok(mut text) => {
                text.truncate(text.trim_end().len());
                Ok(text)
            }
            Err(error) => Err(self.unexpected(path, &String::from_utf8_lossy(error.as_bytes()), "UTF-8 text")),
        }
    }

    /// An attribute as text, `None` if it isn't there: the kernel leaves out what doesn't apply.
    pub(crate) fn text_if_present(&self, path: impl AsRef<Path>) -> Result<Option<String>, InspectError> {
        if_present(self.text(path))
    }

    /// An attribute that `parse` understands, `None` if it isn't there. `expected` says what it holds.
    pub(crate) fn value<T>(
        &self,
        path: impl AsRef<Path>,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, InspectError> {
        let path = path.as_ref();
        let Some(text) = self.text_if_present(path)? else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| self.unexpected(path, &text, expected))
    }

    /// The names in a directory, sorted; the file system's own order means nothing.
    ///
    /// A name that isn't UTF-8 is none of the kernel's and is left out.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> Result<Vec<String>, InspectError> {
        self.list(path.as_ref(), |_| true).map_err(|source| self.failed(path, source))
    }

    /// The names in a directory, sorted; none if there is no such directory.
    pub(crate) fn names_if_present(&self, path: impl AsRef<Path>) -> Result<Vec<String>, InspectError> {
        Ok(if_present(self.names(path))?.unwrap_or_default())
    }

    /// The names of the real directories in a directory, sorted; links to directories are none. None if there is no
    /// such directory.
    pub(crate) fn subdirectories(&self, path: impl AsRef<Path>) -> Result<Vec<String>, InspectError> {
        let names = self.list(path.as_ref(), |kind| kind == FileType::Directory);
        Ok(if_present(names.map_err(|source| self.failed(path, source)))?.unwrap_or_default())
    }

    /// The text of a symbolic link, `None` if nothing or something else is there.
    pub(crate) fn link(&self, path: impl AsRef<Path>) -> Result<Option<PathBuf>, InspectError> {
        let target = self
            .resolve(path.as_ref(), OFlags::PATH | OFlags::NOFOLLOW)
            .and_then(|link| {
                if is(&link, FileType::Symlink)? { Ok(Some(readlinkat(&link, "", Vec::new())?)) } else { Ok(None) }
            })
            .map_err(|source| self.failed(path, source));
        let target = if_present(target)?.flatten();
        Ok(target.map(|target| PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes()))))
    }

    /// The last component of a symbolic link's text: how sysfs names a driver, a group or a master.
    pub(crate) fn link_name(&self, path: impl AsRef<Path>) -> Result<Option<String>, InspectError> {
        let target = self.link(path)?;
        Ok(target.and_then(|target| target.file_name().map(|name| name.to_string_lossy().into_owned())))
    }

    /// What `path` leads to, symbolic links followed within the root.
    pub(crate) fn stat(&self, path: impl AsRef<Path>) -> Result<Stat, InspectError> {
        self.resolve(path.as_ref(), OFlags::PATH)
            .and_then(|file| Ok(fstat(file)?))
            .map_err(|source| self.failed(path, source))
    }

    /// Whether `path` leads to anything.
    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.resolve(path.as_ref(), OFlags::PATH).is_ok()
    }

    /// The error for an attribute that holds something else than the kernel documents.
    pub(crate) fn unexpected(&self, path: impl AsRef<Path>, content: &str, expected: &'static str) -> InspectError {
        InspectError::unexpected(self.root.join(path), content, expected)
    }

    fn failed(&self, path: impl AsRef<Path>, source: io::Error) -> InspectError {
        InspectError::Read { path: self.root.join(path), source }
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        for _ in 0..MOST_ATTEMPTS {
            match openat2(&self.directory, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        // Looked at before it is opened: opening a FIFO would wait for a writer, and opening a device may do anything.
        if !is(&self.resolve(path, OFlags::PATH)?, FileType::RegularFile)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
        }
        let file = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let mut content = Vec::new();
        File::from(file).take(LONGEST_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > LONGEST_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is longer than {LONGEST_FILE} bytes")));
        }
        Ok(content)
    }

    fn list(&self, path: &Path, wanted: impl Fn(FileType) -> bool) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::new(self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)?)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
                && wanted(entry.file_type())
            {
                names.push(name.to_owned());
            }
            if names.len() > MOST_ENTRIES {
                let message = format!("has more than {MOST_ENTRIES} entries");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn is(file: &OwnedFd, kind: FileType) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == kind)
}

/// Turns "is not there" into `None`; `ENODEV` says that it was there when it was opened (fs/kernfs/file.c).
pub(crate) fn if_present<T>(result: Result<T, InspectError>) -> Result<Option<T>, InspectError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_one_of(&error, [Errno::NOENT, Errno::NOTDIR, Errno::NODEV]) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_one_of<const N: usize>(error: &InspectError, codes: [Errno; N]) -> bool {
    let InspectError::Read { source, .. } = error else { return false };
    source.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw_os_error(code)))
}

/// The decimal number after `prefix`, for names such as `cpu12`, `node3` and `index2`.
pub(crate) fn numbered(name: &str, prefix: &str) -> Option<u32> {
    decimal(name.strip_prefix(prefix)?)
}

/// A decimal number of digits only: `u32::from_str` alone would take `+1`.
pub(crate) fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// What was read of a device, `None` if that has vanished or is about to: links, disks and PCI functions go away while
/// they are being read.
///
/// `witness` is the attribute that every such device has and that the kernel removes first, or among the first. If it is
/// gone after the reading, other attributes may have been missing for that reason, not because they don't apply.
pub(crate) fn unless_gone<T>(
    tree: &Tree,
    witness: &str,
    read: Result<T, InspectError>,
) -> Result<Option<T>, InspectError> {
    match read {
        Ok(value) if tree.exists(witness) => Ok(Some(value)),
        // A link's attributes stay for a while and say EINVAL (net/core/net-sysfs.c, `dev_isalive`).
        Err(error) if tree.exists(witness) && !is_one_of(&error, [Errno::INVAL]) => Err(error),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = HostRoot::at(directory.path());
        File::create(directory.path().join("long")).unwrap().set_len(LONGEST_FILE + 1).unwrap();
        let error = read_text(&root, "/long").unwrap_err();
        assert!(crate::error_chain(&error).ends_with("is longer than 16777216 bytes"), "{error:?}");
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let error = read_text(&root, "/pipe").unwrap_err();
        assert!(crate::error_chain(&error).ends_with("is not a regular file"), "{error:?}");
    }

    #[test]
    fn a_boot_has_an_id() {
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
