//! Which loop devices are bound to an image, without a look at all the others each time.
//!
//! The first question about an image looks at every loop device of the machine. After that this process knows: it
//! alone binds the images of its pools. What it knows is a hint all the same: every device is asked what it is bound
//! to. What would destroy data on a wrong answer looks at all of them: [`find_anew`].

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use keelson_host::HostRoot;

use super::{LoopDevice, LoopError, failed, node, open};
use crate::kernel::sys;

/// Device and inode number of a file.
type Identity = (u64, u64);

/// The numbers of each image that was asked for. Loop devices are the kernel's, so there is one table for a process.
static KNOWN: LazyLock<Mutex<HashMap<Identity, BTreeSet<u32>>>> = LazyLock::new(Mutex::default);

/// The table is whole after every single change, so one that a panicking thread held is as good as any.
fn known() -> MutexGuard<'static, HashMap<Identity, BTreeSet<u32>>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn identity(image: &Path) -> Result<Option<Identity>, LoopError> {
    match fs::metadata(image) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("look at", image, error)),
    }
}

/// The devices bound to `image`, in the order of their numbers; none if there is no such file.
pub(crate) fn find(root: &HostRoot, image: &Path) -> Result<Vec<LoopDevice>, LoopError> {
    let Some(identity) = identity(image)? else { return Ok(Vec::new()) };
    let hint = known().get(&identity).cloned();
    if let Some(numbers) = hint {
        return bound(root, numbers, identity);
    }
    let found = bound(root, named_like(root, image)?, identity)?;
    // Added to what another thread may have learnt meanwhile.
    known().entry(identity).or_default().extend(found.iter().map(|device| device.number));
    Ok(found)
}

/// The same by a look at every loop device, since others may have bound the image too; for the time when a device that
/// is missed costs data.
pub(crate) fn find_anew(root: &HostRoot, image: &Path) -> Result<Vec<LoopDevice>, LoopError> {
    let Some(identity) = identity(image)? else { return Ok(Vec::new()) };
    known().remove(&identity);
    bound(root, named_like(root, image)?, identity)
}

/// Remembers that `number` is bound to the image.
pub(super) fn remember(image: &Path, number: u32) -> Result<(), LoopError> {
    if let Some(identity) = identity(image)? {
        known().entry(identity).or_default().insert(number);
    }
    Ok(())
}

/// Forgets a number that was bound to the image. Only who holds the volume may: what somebody else learns at the same
/// time is older.
pub(super) fn forget(image: &Path, number: u32) -> Result<(), LoopError> {
    if let Some(identity) = identity(image)?
        && let Some(numbers) = known().get_mut(&identity)
    {
        numbers.remove(&number);
    }
    Ok(())
}

/// Those of the numbered devices that are bound to the file.
fn bound(
    root: &HostRoot,
    numbers: impl IntoIterator<Item = u32>,
    identity: Identity,
) -> Result<Vec<LoopDevice>, LoopError> {
    let mut found = Vec::new();
    for number in numbers {
        // Or a device node would be made for a number that was removed.
        if !root.join(format!("sys/block/loop{number}")).exists() {
            continue;
        }
        let node = node(root, number)?;
        let device = match open(&node, false) {
            Ok(device) => device,
            // The number was removed since.
            Err(error) if error.source.raw_os_error() == Some(libc::ENXIO) => continue,
            Err(error) => return Err(error),
        };
        match sys::loop_status(device.as_fd()) {
            Ok(info) if (info.device, info.inode) == identity => found.push(LoopDevice::new(node, number, info.flags)),
            Ok(_) => {}
            // It was let go in between.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
            Err(error) => return Err(failed("ask for the file behind", &node, error)),
        }
    }
    Ok(found)
}

/// Forgets all but `left`, as [`forget`] does.
pub(super) fn keep_only(image: &Path, left: &[LoopDevice]) -> Result<(), LoopError> {
    if let Some(identity) = identity(image)? {
        known().insert(identity, left.iter().map(|device| device.number).collect());
    }
    Ok(())
}

/// The numbers of all bound devices whose file is named like the image. No other device is opened: to open one can
/// already be in its owner's way.
fn named_like(root: &HostRoot, image: &Path) -> Result<BTreeSet<u32>, LoopError> {
    let blocks = root.join("sys/block");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&blocks).map_err(|source| failed("list", &blocks, source))? {
        let entry = entry.map_err(|source| failed("list", &blocks, source))?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else { continue };
        // "loop/backing_file" exists while the device is bound, and shows the path as of then.
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if is_named_like(Path::new(backing.trim_end_matches('\n')), image) {
            found.insert(number);
        }
    }
    Ok(found)
}

/// Whether `backing` ends with the same directory and file name as `image`: the volume's id and `image`.
fn is_named_like(backing: &Path, image: &Path) -> bool {
    let last_two =
        |path: &Path| -> Option<PathBuf> { Some(PathBuf::from(path.parent()?.file_name()?).join(path.file_name()?)) };
    last_two(image).is_some_and(|end| backing.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_file_is_compared_by_its_last_two_names() {
        let image = Path::new("/pools/a/volumes/v1-1/image");
        assert!(is_named_like(Path::new("/mnt/elsewhere/volumes/v1-1/image"), image));
        assert!(!is_named_like(Path::new("/pools/a/volumes/v1-2/image"), image));
        assert!(!is_named_like(Path::new("/pools/a/volumes/xv1-1/image"), image));
        assert!(!is_named_like(Path::new("/pools/a/volumes/v1-1/image (deleted)"), image));
        assert!(!is_named_like(Path::new(""), image));
    }
}
