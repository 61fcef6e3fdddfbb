//! Removing what is shown to be nobody's, on an operator's word. Never a volume, never a snapshot.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use keelson_host::{HostRoot, error_chain};
use serde::Serialize;

use super::{
    OperatorError,
    fsck::{deleted_loops, driver_uses, is_nobodys, is_template},
    picture::{Picture, is_of_loop},
    survey::{Survey, why},
};
use crate::{
    StorageSettings,
    kernel::{
        loop_device::{self, BoundLoop},
        tree,
    },
    registration,
    store::{Attachment, Attachments, Pool},
};

/// How far [`gc`] goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcRequest {
    /// Only tell what would be removed.
    pub dry_run: bool,
    /// Let go of a deleted image's loop device even if a process has it open; then it goes at the last close.
    pub force: bool,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GcEntry {
    /// What it is: `leftover`, `template`, `attachment`, `loop` or `socket`.
    pub what: &'static str,
    /// Where it is: a path.
    pub place: String,
    /// By what it is seen to be nobody's, or why it was left alone, or could not be removed.
    pub reason: String,
}

/// What [`gc`] did.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// What was removed, or in a dry run: would be.
    pub removed: Vec<GcEntry>,
    /// What was left alone.
    pub skipped: Vec<GcEntry>,
    /// What could not be removed.
    pub failed: Vec<GcEntry>,
}

impl Collected {
    fn skip(&mut self, what: &'static str, place: &Path, reason: impl Into<String>) {
        self.skipped.push(GcEntry { what, place: place.display().to_string(), reason: reason.into() });
    }

    /// Has `remove` remove something unless this is a dry run.
    fn take(
        &mut self,
        request: GcRequest,
        what: &'static str,
        place: &Path,
        reason: &str,
        remove: impl FnOnce() -> Result<(), String>,
    ) {
        let entry = |reason: String| GcEntry { what, place: place.display().to_string(), reason };
        match if request.dry_run { Ok(()) } else { remove() } {
            Ok(()) => self.removed.push(entry(reason.to_owned())),
            Err(error) => self.failed.push(entry(error)),
        }
    }
}

/// Removes leftovers, broken templates, records of what is attached no more, loop devices of deleted images, and dead
/// registration sockets.
///
/// # Errors
///
/// What kept it from looking. That something can't be removed is in the answer.
pub fn gc(settings: &StorageSettings, request: GcRequest) -> Result<Collected, OperatorError> {
    let mut collected = Collected::default();
    // Before the pools: what is attached was a volume before.
    let picture = Picture::take(settings)?;
    let survey = Survey::take(settings);
    for pool in survey.read() {
        in_pool(pool, &settings.root, request, &mut collected)?;
    }
    for (pool, sight) in survey.each() {
        if let Err(error) = sight {
            collected.skip("pool", &pool.settings.path, why(error));
        }
    }
    let records = Attachments::existing(&settings.state_dir);
    for (id, attachment) in &picture.attachments {
        if let Ok(attachment) = attachment
            && is_nobodys(&survey, &picture, id, attachment)
        {
            let reason = "there is no such volume, and nothing of it is mounted";
            collected.take(request, "attachment", &records.path_of(id), reason, || {
                records.write(id, &Attachment::default()).map_err(|error| error_chain(&error))
            });
        }
    }
    for one in deleted_loops(&survey, &picture) {
        release(one, &picture, settings, request, &mut collected);
    }
    if let Some(directory) = &settings.registration {
        let failed = |error: io::Error| OperatorError::Kernel(format!("{}: {error}", directory.display()));
        for socket in registration::dead_sockets(directory).map_err(failed)? {
            collected.take(request, "socket", &socket, "nobody serves it", || remove_file(&socket));
        }
    }
    Ok(collected)
}

/// What only the one who has the pool's lock may judge: a driver that runs may be at work on it.
fn in_pool(pool: &Pool, root: &HostRoot, request: GcRequest, collected: &mut Collected) -> Result<(), OperatorError> {
    if pool.leftovers()?.is_empty() && bad_templates(pool)?.is_empty() {
        return Ok(());
    }
    let claimed = if driver_uses(pool, root) {
        Err("a driver uses the pool, and may be at work on it; its next start sweeps what is left".to_owned())
    } else if request.dry_run {
        Ok(())
    } else {
        pool.claim_now().map_err(|error| error_chain(&error))
    };
    // Again, with the lock: what lies there now is nobody's work.
    for path in pool.leftovers()? {
        match &claimed {
            Err(reason) => collected.skip("leftover", &path, reason.as_str()),
            Ok(()) => {
                collected.take(request, "leftover", &path, "half made or half removed, and no driver runs", || {
                    tree::remove(&path).map(drop).map_err(|error| error.to_string())
                });
            }
        }
    }
    for (path, problem) in bad_templates(pool)? {
        match &claimed {
            Err(reason) => collected.skip("template", &path, reason.as_str()),
            Ok(()) => collected.take(request, "template", &path, &problem, || remove_file(&path)),
        }
    }
    pool.release();
    Ok(())
}

fn bad_templates(pool: &Pool) -> Result<Vec<(PathBuf, String)>, OperatorError> {
    let files = pool.template_files()?;
    Ok(files.into_iter().filter_map(|path| is_template(&path).err().map(|problem| (path, problem))).collect())
}

fn release(
    one: &BoundLoop,
    picture: &Picture,
    settings: &StorageSettings,
    request: GcRequest,
    collected: &mut Collected,
) {
    let node = &one.device.node;
    if let Some(mount) = picture.mounts.iter().find(|mount| is_of_loop(mount, one)) {
        return collected.skip("loop", node, format!("its image is deleted, but mounted at {}", mount.point.display()));
    }
    match openers(&settings.root, one.device.device()) {
        Err(error) => return collected.skip("loop", node, format!("who has it open can't be seen: {error}")),
        Ok(openers) if !openers.is_empty() && !request.force => {
            let processes: Vec<String> = openers.iter().map(ToString::to_string).collect();
            return collected.skip(
                "loop",
                node,
                format!("its image is deleted, but processes have it open: {}", processes.join(", ")),
            );
        }
        Ok(_) => {}
    }
    let reason = format!("its image {} is deleted", one.file.display());
    collected.take(request, "loop", node, &reason, || {
        loop_device::let_go(&one.device, one.identity).map_err(|error| error_chain(&error))
    });
}

/// The processes that have the block device open.
fn openers(root: &HostRoot, (major, minor): (u32, u32)) -> io::Result<Vec<u32>> {
    let device = rustix::fs::makedev(major, minor);
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("proc"))? {
        let entry = entry?;
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended since.
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else { continue };
        let is_it = |file: &fs::DirEntry| {
            fs::metadata(file.path()).is_ok_and(|found| found.rdev() == device && found.mode() & 0o170_000 == 0o060_000)
        };
        if files.flatten().any(|file| is_it(&file)) {
            found.push(process);
        }
    }
    Ok(found)
}

fn remove_file(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}
