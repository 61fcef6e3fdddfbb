//! One device node.

use std::{io, path::Path};

use keelson_host::{DeviceKind, HostRoot};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, openat2},
    io::Errno,
};

use crate::policy::Node;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeAt {
    /// A character or block device node.
    Device(Node),
    /// Something else: what it is, as the end of the sentence "is ...".
    Other(&'static str),
    /// Nothing.
    Nothing,
}

/// Looks at `path` below `root`. Symbolic links are not followed, neither the last component nor one before it.
pub(crate) fn look_at(root: &HostRoot, path: &Path) -> io::Result<NodeAt> {
    let below = path.strip_prefix("/").unwrap_or(path);
    let directory = openat2(
        CWD,
        root.path(),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    )?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(&directory, below, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Ok(file) => Ok(what_is(&fstat(&file)?, path)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(NodeAt::Nothing),
        // A component before the last is a link.
        Err(Errno::LOOP) => Ok(NodeAt::Other("reached over a symbolic link")),
        Err(error) => Err(error.into()),
    }
}

/// What a file that was looked at without following links is.
pub(crate) fn what_is(stat: &Stat, path: &Path) -> NodeAt {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => DeviceKind::Char,
        FileType::BlockDevice => DeviceKind::Block,
        FileType::Symlink => return NodeAt::Other("a symbolic link"),
        FileType::Directory => return NodeAt::Other("a directory"),
        FileType::RegularFile => return NodeAt::Other("a regular file"),
        FileType::Socket => return NodeAt::Other("a socket"),
        FileType::Fifo => return NodeAt::Other("a named pipe"),
        FileType::Unknown => return NodeAt::Other("no device node"),
    };
    NodeAt::Device(Node {
        path: path.to_owned(),
        container_path: path.to_owned(),
        kind,
        major: major(stat.st_rdev),
        minor: minor(stat.st_rdev),
        mode: stat.st_mode & 0o777,
    })
}
