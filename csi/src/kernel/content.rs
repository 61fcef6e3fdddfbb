//! The content of volumes and snapshots: a raw file, a directory, or a subvolume.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::fs::FallocateFlags;

use super::{
    image,
    reflink::{self, CloneError},
    subvolume,
};
use crate::policy::ContentKind;

/// Makes an image that is one hole of `bytes`.
pub(crate) fn create_image(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    image::prepare(&file)?;
    file.set_len(bytes)?;
    Ok(file)
}

/// Takes the space of an image's holes.
pub(crate) fn fill_holes(image: &File, bytes: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(image, FallocateFlags::empty(), 0, bytes)?)
}

/// Makes an empty directory that everybody may look into; who may write is the kubelet's to say.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)
}

/// Makes an empty subvolume that everybody may look into.
pub(crate) fn create_subvolume(path: &Path) -> io::Result<()> {
    let (home, name) = place(path)?;
    subvolume::create(&home, name).map_err(|error| error.source)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// The directory in which `path` lies, and its name there.
fn place(path: &Path) -> io::Result<(File, &str)> {
    let (Some(home), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Err(io::ErrorKind::InvalidFilename.into());
    };
    Ok((File::open(home)?, name))
}

/// Copies the content at `source` to the new path `target`: at once and as of one instant where blocks can be shared,
/// else by reading and writing what isn't a hole; `progress` is told how many bytes were copied.
///
/// Gives the new image, which isn't synced; nothing for a subvolume, which is one that takes no writes if `read_only`.
pub(crate) fn copy(
    source: &Path,
    target: &Path,
    kind: ContentKind,
    shares_blocks: bool,
    read_only: bool,
    progress: impl FnMut(u64),
) -> io::Result<Option<File>> {
    match kind {
        ContentKind::Block | ContentKind::Filesystem(_) => {
            let source = File::open(source)?;
            if shares_blocks {
                return match reflink::clone_file(&source, target) {
                    Ok(file) => Ok(Some(file)),
                    Err(CloneError::Unsupported { source, .. } | CloneError::Failed { source, .. }) => Err(source),
                };
            }
            let file = create_image(target, source.metadata()?.len())?;
            reflink::copy_sparse(&source, &file, progress)?;
            Ok(Some(file))
        }
        ContentKind::Subvolume => {
            let (home, name) = place(target)?;
            subvolume::snapshot(File::open(source)?, home, name, read_only).map_err(|error| error.source)?;
            Ok(None)
        }
        ContentKind::Directory => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// What the image or subvolume at `path` takes on its disk, shared or not, in bytes; none if nobody counts that. A
/// subvolume's is that of the last transaction, of which making a snapshot is one.
pub(crate) fn taken(path: &Path, kind: ContentKind) -> io::Result<Option<u64>> {
    match kind {
        ContentKind::Block | ContentKind::Filesystem(_) => Ok(Some(fs::metadata(path)?.blocks().saturating_mul(512))),
        ContentKind::Subvolume => {
            let figures = subvolume::figures_at(path).map_err(|error| error.source)?;
            Ok(figures.map(|figures| figures.referenced))
        }
        ContentKind::Directory => Ok(None),
    }
}
