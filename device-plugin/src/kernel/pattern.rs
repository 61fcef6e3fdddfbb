//! Finds what a pattern matches.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use glob::Pattern;
use keelson_host::HostRoot;
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat},
    io::Errno,
};

use super::{NodeAt, Skipped, node::what_is};
use crate::{config::NodePattern, policy::Node};

/// What a pattern's search came upon.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// The device nodes, by path.
    pub(crate) nodes: Vec<Node>,
    /// What the pattern matches and isn't offered, with the reason.
    pub(crate) skipped: Vec<Skipped>,
    /// The directories looked into, as seen below the root; those in which a change can change the result.
    pub(crate) directories: BTreeSet<PathBuf>,
}

impl Search {
    /// Finds what `pattern` matches below `root`, following no symbolic link.
    ///
    /// # Errors
    ///
    /// The path that could not be read. What is absent, or goes away in between, is no error.
    pub(crate) fn run(&mut self, root: &HostRoot, pattern: &NodePattern) -> Result<(), (PathBuf, io::Error)> {
        let device_directory = PathBuf::from("/dev");
        match open_directory(CWD, &root.join(&device_directory)) {
            Ok(directory) => self.descend(&directory, &device_directory, pattern.components()),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err((device_directory, error.into())),
        }
    }

    fn descend(
        &mut self,
        directory: &OwnedFd,
        path: &Path,
        components: &[Pattern],
    ) -> Result<(), (PathBuf, io::Error)> {
        let Some((component, rest)) = components.split_first() else { return Ok(()) };
        self.directories.insert(path.to_owned());
        let failed = |error: Errno| (path.to_owned(), error.into());
        for entry in Dir::read_from(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A pattern is text, so it can't mean a name that is none.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") || !NodePattern::component_matches(component, name) {
                continue;
            }
            let path = path.join(name);
            let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err((path, error.into())),
            };
            if rest.is_empty() {
                match what_is(&stat, &path) {
                    NodeAt::Device(node) => self.nodes.push(node),
                    NodeAt::Other(what) => self.skipped.push(Skipped { path, reason: format!("is {what}") }),
                    NodeAt::Nothing => {}
                }
                continue;
            }
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => match open_directory(directory, Path::new(name)) {
                    Ok(below) => self.descend(&below, &path, rest)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err((path, error.into())),
                },
                FileType::Symlink => {
                    self.skipped.push(Skipped { path, reason: "is a symbolic link, not a directory".to_owned() });
                }
                // Nothing is below a file.
                _ => {}
            }
        }
        Ok(())
    }
}

fn open_directory(at: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}
