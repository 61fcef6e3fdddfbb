//! Removing folders of a pool.

use std::{
    fs::{self, File, OpenOptions},
    io, iter,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::subvolume::{self, SubvolumeId};

/// The inode number of every subvolume's top directory: include/uapi/linux/btrfs_tree.h, `BTRFS_FIRST_FREE_OBJECTID`
const TOP: u64 = 256;

/// Removes a file or folder of the pool's own; nothing there is fine. No link inside is followed.
///
/// Images are cut to nothing first: xfs gives the space of a removed file back some time later, of a cut one at once.
/// Subvolumes are deleted whole, with those that lie in them; gives which. What an error leaves is found another time.
pub(crate) fn remove(path: &Path) -> io::Result<Vec<SubvolumeId>> {
    let mut deleted = Vec::new();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(deleted),
        Err(error) => return Err(error),
    };
    if !found.is_dir() {
        return ignore_missing(fs::remove_file(path)).map(|()| deleted);
    }
    // A group's folder holds those of its snapshots.
    for folder in iter::once(path.to_owned()).chain(folders(path)?) {
        cut(&folder.join("image"))?;
        delete_subvolume(&folder, "data", &mut deleted)?;
    }
    match ignore_missing(fs::remove_dir_all(path)) {
        // Somebody with a directory on a btrfs may have made subvolumes in it that take no writes.
        Err(error) if error.raw_os_error() == Some(libc::EROFS) && subvolume::is_btrfs(File::open(path)?)? => {
            delete_subvolumes_below(path, &mut deleted)?;
            ignore_missing(fs::remove_dir_all(path))?;
        }
        removed => removed?,
    }
    Ok(deleted)
}

fn cut(image: &Path) -> io::Result<()> {
    if fs::symlink_metadata(image).is_ok_and(|found| found.is_file()) {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        OpenOptions::new().write(true).custom_flags(flags).open(image)?.set_len(0)?;
    }
    Ok(())
}

/// Deletes what is called `name` in `folder` if it is a subvolume.
fn delete_subvolume(folder: &Path, name: &str, deleted: &mut Vec<SubvolumeId>) -> io::Result<()> {
    // Elsewhere a directory may have that inode number as well.
    let is_top = |found: fs::Metadata| found.is_dir() && found.ino() == TOP;
    if fs::symlink_metadata(folder.join(name)).is_ok_and(is_top) {
        let folder = File::open(folder)?;
        if subvolume::is_btrfs(&folder)? {
            deleted.extend(subvolume::delete_all(&folder, name).map_err(|error| error.source)?);
        }
    }
    Ok(())
}

fn delete_subvolumes_below(path: &Path, deleted: &mut Vec<SubvolumeId>) -> io::Result<()> {
    for folder in folders(path)? {
        if let Some(name) = folder.file_name().and_then(|name| name.to_str()) {
            delete_subvolume(path, name, deleted)?;
        }
        if folder.exists() {
            delete_subvolumes_below(&folder, deleted)?;
        }
    }
    Ok(())
}

/// The directories in a directory.
fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
