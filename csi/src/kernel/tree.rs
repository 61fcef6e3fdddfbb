//! Removing folders of a pool.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Removes a file or folder of the pool's own; nothing there is fine. No link inside is followed.
///
/// Images are cut to nothing first: xfs gives the space of a removed file back some time later, of a cut one at once.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.is_dir() {
        return ignore_missing(fs::remove_file(path));
    }
    let image = path.join("image");
    if fs::symlink_metadata(&image).is_ok_and(|found| found.is_file()) {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        OpenOptions::new().write(true).custom_flags(flags).open(&image)?.set_len(0)?;
    }
    ignore_missing(fs::remove_dir_all(path))
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
