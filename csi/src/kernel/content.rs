//! The content of volumes and snapshots: a raw file, a directory, or a subvolume.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::FallocateFlags;

use super::{
    image,
    reflink::{self, CloneError},
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

/// Copies the content at `source` to the new path `target`: at once and as of one instant where blocks can be shared,
/// else by reading and writing what isn't a hole; `progress` is told how many bytes were copied.
///
/// Gives the new image, which isn't synced; nothing for a directory or subvolume.
pub(crate) fn copy(
    source: &Path,
    target: &Path,
    kind: ContentKind,
    shares_blocks: bool,
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
        ContentKind::Directory | ContentKind::Subvolume => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// What the image at `path` takes on its disk, shared or not, in bytes.
pub(crate) fn taken(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.blocks().saturating_mul(512))
}
