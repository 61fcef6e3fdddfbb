//! What the kernel and the state directory have of volumes that the pools don't.

use std::path::{Path, PathBuf};

use keelson_host::Mount;

use super::super::{
    Finding, OperatorError,
    picture::{Picture, id_named, id_of_image, is_of_loop},
    survey::Survey,
};
use crate::{
    StorageSettings,
    kernel::{KernelError, loop_device::BoundLoop},
    policy::VolumeId,
    registration,
    store::{Attachment, Attachments, Lookup, Pool, VolumeRecord},
};

pub(super) fn examine(
    settings: &StorageSettings,
    survey: &Survey,
    picture: &Picture,
) -> Result<Vec<Finding>, OperatorError> {
    let mut findings = Vec::new();
    let records = Attachments::existing(&settings.state_dir);
    for (id, attachment) in &picture.attachments {
        let of = (format!("volume {id}"), records.path_of(id).display().to_string());
        match attachment {
            Err(problem) => {
                let remedy =
                    "nothing: mounts are recognised by what they show, and the next stage or publish writes it anew";
                findings.push(Finding::warning("attachment-unreadable", &of, problem, remedy));
            }
            Ok(attachment) if is_nobodys(survey, picture, id, attachment) => {
                let problem = "is recorded as attached, but there is no such volume, and nothing of it is mounted";
                findings.push(Finding::warning("attachment-stale", &of, problem, "run `keelson storage gc`"));
            }
            Ok(_) => {}
        }
    }
    for one in deleted_loops(survey, picture) {
        let of = (one.device.node.display().to_string(), one.file.display().to_string());
        let mounts: Vec<String> = mounts_of(picture, one).map(|mount| mount.point.display().to_string()).collect();
        findings.push(if mounts.is_empty() {
            let problem = "this loop device keeps an image that was deleted, and its space";
            Finding::warning("loop-deleted-image", &of, problem, "run `keelson storage gc`")
        } else {
            let problem = format!(
                "its image was deleted, but is mounted at {}: what is written there is lost",
                mounts.join(", ")
            );
            let remedy = "copy what is needed from there, stop who uses it, unmount it, and run `keelson storage gc`";
            Finding::error("mount-deleted-image", &of, problem, remedy)
        });
    }
    for mount in &picture.mounts {
        findings.extend(directory_of_nobody(survey, &picture.mounts, mount));
    }
    if let Some(directory) = &settings.registration {
        for socket in registration::dead_sockets(directory).map_err(KernelError::path(directory))? {
            let of = ("registration socket".to_owned(), socket.display().to_string());
            let problem = "nobody serves it, and the kubelet dials it again and again";
            findings.push(Finding::warning(
                "socket-dead",
                &of,
                problem,
                "start the driver, or run `keelson storage gc`",
            ));
        }
    }
    Ok(findings)
}

/// Whether what is recorded as attached is nobody's: no pool could hold the volume, and nothing is mounted.
pub(in crate::operator) fn is_nobodys(
    survey: &Survey,
    picture: &Picture,
    id: &VolumeId,
    attachment: &Attachment,
) -> bool {
    let is_known = |pool| !matches!(Pool::find::<VolumeRecord>(pool, id), Lookup::Absent);
    if !survey.unread().is_empty() || survey.read().any(is_known) {
        return false;
    }
    let is_mounted = |path: &Path| picture.mounts.iter().any(|mount| mount.point == path);
    let paths = attachment.published.iter().map(|publication| &publication.target);
    let mut paths = paths.chain(attachment.staged.iter().map(|staged| &staged.path));
    let bound = picture.loops.iter().any(|one| id_of_image(&one.file) == Some(id.as_str()));
    !bound && !paths.any(|path| is_mounted(path.as_path()))
}

/// Loop devices whose image lay in a pool that was read, and is deleted: by the file's path and its filesystem. One that
/// lay elsewhere on that filesystem is somebody else's.
pub(in crate::operator) fn deleted_loops<'a>(
    survey: &'a Survey,
    picture: &'a Picture,
) -> impl Iterator<Item = &'a BoundLoop> {
    let pools: Vec<&Pool> = survey.read().collect();
    let is_in = |one: &BoundLoop, pool: &Pool| {
        let settings = &pool.settings;
        let is_below = one.file.starts_with(&settings.path) || one.file.starts_with(&settings.resolved);
        is_below && pool.device() == Some(one.identity.0)
    };
    picture.loops.iter().filter(move |one| one.deleted && pools.iter().any(|pool| is_in(one, pool)))
}

/// Where what is behind a loop device is mounted.
pub(in crate::operator) fn mounts_of<'a>(picture: &'a Picture, one: &'a BoundLoop) -> impl Iterator<Item = &'a Mount> {
    picture.mounts.iter().filter(move |mount| is_of_loop(mount, one))
}

/// What the kernel appends to the root of a mount whose directory was removed.
const DELETED: &str = "//deleted";

/// A mount of a volume's directory, of a pool that was read, that has no record any more.
fn directory_of_nobody(survey: &Survey, mounts: &[Mount], mount: &Mount) -> Option<Finding> {
    let root = mount.root.to_str()?;
    let root = Path::new(root.strip_suffix(DELETED).unwrap_or(root));
    let folder = root.parent().filter(|_| root.file_name().is_some_and(|name| name == "data"))?;
    let id = id_named(folder)?.parse::<VolumeId>().ok()?;
    if !survey.unread().is_empty() {
        return None;
    }
    let is_absent = |pool: &Pool| matches!(pool.find::<VolumeRecord>(&id), Lookup::Absent);
    let mut pools = survey.read().filter_map(|pool| within_filesystem(pool, mounts));
    // What lies elsewhere is another pool's, of another config.
    if !pools.any(|(device, pool)| device == mount.device && root.starts_with(pool)) || !survey.read().all(is_absent) {
        return None;
    }
    let of = (format!("volume {id}"), mount.point.display().to_string());
    let problem = "it is mounted here, but no pool has it: what is written here is lost";
    let remedy = "copy what is needed from there, stop who uses it, and unmount it with `umount`";
    Some(Finding::error("mount-deleted-directory", &of, problem, remedy))
}

/// The pool's filesystem, and where in it the pool lies.
fn within_filesystem(pool: &Pool, mounts: &[Mount]) -> Option<((u32, u32), PathBuf)> {
    let resolved = &pool.settings.resolved;
    // Of several at one point the last one is on top.
    let mount =
        mounts.iter().filter(|mount| resolved.starts_with(&mount.point)).max_by_key(|one| one.point.iter().count())?;
    Some((mount.device, mount.root.join(resolved.strip_prefix(&mount.point).ok()?)))
}
