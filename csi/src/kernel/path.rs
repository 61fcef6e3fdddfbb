//! Paths below directories that others write to, opened without following a symbolic link anywhere.
//!
//! Invariant: what comes from a request is opened here and only here. A link put into the place of a directory, at
//! whatever moment, makes the call fail with `ELOOP`; it never redirects it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags};

use crate::policy::TargetPath;

/// Opens what `path` leads to, as a handle that can be looked at and mounted on.
pub(crate) fn open(path: &TargetPath) -> io::Result<OwnedFd> {
    open_without_links(path.as_path(), OFlags::PATH)
}

/// Opens the directory that is mounted at `path`, for calls on its filesystem; where nothing is mounted, that would be
/// the one around it, and is refused.
pub(crate) fn open_mounted(path: &TargetPath) -> io::Result<OwnedFd> {
    let root = open_without_links(path.as_path(), OFlags::RDONLY | OFlags::DIRECTORY)?;
    let found = rustix::fs::statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(root);
    }
    Err(io::Error::other("nothing is mounted there"))
}

/// Opens the directory above `path`.
pub(crate) fn open_parent(path: &TargetPath) -> io::Result<OwnedFd> {
    open_without_links(path.parent(), OFlags::PATH | OFlags::DIRECTORY)
}

fn open_without_links(path: &std::path::Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(rustix::fs::CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// What `path` leads to, or none if there is nothing.
pub(crate) fn look(path: &TargetPath) -> io::Result<Option<Stat>> {
    match open(path) {
        Ok(file) => Ok(Some(rustix::fs::fstat(file)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes an empty directory at `path`, whose parent must exist, and says whether it did; one that is there is fine.
/// What holds something is refused: the mount would hide it, and could not be cleaned up after.
pub(crate) fn make_directory(path: &TargetPath) -> io::Result<bool> {
    let parent = open_parent(path)?;
    match rustix::fs::mkdirat(&parent, path.name(), Mode::from_raw_mode(0o750)) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => match found_at(&parent, path)? {
            Found::Directory if is_empty(&parent, path)? => Ok(false),
            Found::Directory => Err(io::Error::from_raw_os_error(libc::ENOTEMPTY)),
            Found::Link => Err(io::Error::from_raw_os_error(libc::ELOOP)),
            _ => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        },
        Err(error) => Err(error.into()),
    }
}

/// Makes an empty file at `path`, whose parent must exist, and says whether it did; one that is there is fine.
pub(crate) fn make_file(path: &TargetPath) -> io::Result<bool> {
    let parent = open_parent(path)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, path.name(), flags, Mode::from_raw_mode(0o640)) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::EXIST) => match found_at(&parent, path)? {
            Found::EmptyFile => Ok(false),
            Found::Link => Err(io::Error::from_raw_os_error(libc::ELOOP)),
            Found::File => Err(io::Error::from_raw_os_error(libc::ENOTEMPTY)),
            _ => Err(io::Error::from_raw_os_error(libc::EEXIST)),
        },
        Err(error) => Err(error.into()),
    }
}

fn is_empty(parent: impl AsFd, path: &TargetPath) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in Dir::new(rustix::fs::openat(parent, path.name(), flags, Mode::empty())?)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is at a path, as far as it matters to who makes or removes a mount point.
enum Found {
    Directory,
    EmptyFile,
    File,
    Link,
    Other,
}

fn found_at(parent: impl AsFd, path: &TargetPath) -> io::Result<Found> {
    let found = rustix::fs::statat(parent, path.name(), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => Found::Directory,
        FileType::RegularFile if found.st_size == 0 => Found::EmptyFile,
        FileType::RegularFile => Found::File,
        FileType::Symlink => Found::Link,
        _ => Found::Other,
    })
}

/// Removes the empty directory or empty file at `path`, which is all that a mount point ever is; anything else there
/// is somebody else's. Nothing there is fine.
pub(crate) fn remove(path: &TargetPath) -> io::Result<()> {
    let parent = match open_parent(path) {
        Ok(parent) => parent,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let flags = match found_at(&parent, path) {
        Ok(Found::Directory) => AtFlags::REMOVEDIR,
        Ok(Found::EmptyFile) => AtFlags::empty(),
        Ok(Found::Link) => return Err(io::Error::from_raw_os_error(libc::ELOOP)),
        Ok(Found::File) => return Err(io::Error::from_raw_os_error(libc::ENOTEMPTY)),
        Ok(Found::Other) => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    match rustix::fs::unlinkat(&parent, path.name(), flags) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    fn target(path: &Path) -> TargetPath {
        TargetPath::try_from(path.to_str().unwrap().to_owned()).unwrap()
    }

    /// A temporary directory whose own path holds no link.
    fn directory() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        (directory, path)
    }

    #[test]
    fn a_link_anywhere_in_the_path_is_refused() {
        let (_guard, top) = directory();
        fs::create_dir_all(top.join("real/inner")).unwrap();
        symlink(top.join("real"), top.join("link")).unwrap();
        symlink(top.join("real/inner"), top.join("real/last")).unwrap();
        for path in ["link/inner", "link/new", "real/last/new"] {
            let path = target(&top.join(path));
            for result in [make_directory(&path).map(drop), make_file(&path).map(drop), remove(&path)] {
                assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ELOOP), "{path}");
            }
        }
        assert_eq!(look(&target(&top.join("real/last"))).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        let link = target(&top.join("link"));
        for result in [make_directory(&link).map(drop), make_file(&link).map(drop), remove(&link)] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ELOOP));
        }
        assert!(top.join("real/inner").is_dir());
    }

    #[test]
    fn making_and_removing_can_be_repeated() {
        let (_guard, top) = directory();
        let (subdirectory, file) = (target(&top.join("d")), target(&top.join("f")));
        for made in [true, false] {
            assert_eq!(make_directory(&subdirectory).unwrap(), made);
            assert_eq!(make_file(&file).unwrap(), made);
        }
        assert_eq!(make_file(&subdirectory).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert_eq!(make_directory(&file).unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
        for _ in 0..2 {
            remove(&subdirectory).unwrap();
            remove(&file).unwrap();
        }
        assert_eq!(fs::read_dir(&top).unwrap().count(), 0);
    }

    #[test]
    fn what_holds_something_is_neither_used_nor_removed() {
        let (_guard, top) = directory();
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("d/precious"), b"x").unwrap();
        for name in ["d", "d/precious"] {
            assert_eq!(remove(&target(&top.join(name))).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
        }
        assert_eq!(make_directory(&target(&top.join("d"))).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
        assert_eq!(make_file(&target(&top.join("d/precious"))).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
        assert_eq!(fs::read(top.join("d/precious")).unwrap(), b"x");
        let _socket = std::os::unix::net::UnixListener::bind(top.join("s")).unwrap();
        assert_eq!(remove(&target(&top.join("s"))).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }
}
