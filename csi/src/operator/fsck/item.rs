//! One volume or snapshot: its content, and its loop devices.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use keelson_host::HostRoot;

use super::super::{
    Finding,
    picture::{Picture, pod_of},
    survey::Item,
};
use crate::{
    StorageSettings,
    kernel::{
        loop_device::BoundLoop,
        superblock::{self, Signature},
    },
    policy::{Access, Content, FilesystemType, Provisioning},
    store::Attachment,
};

const RESTORE: &str = "restore it from a snapshot or a backup; if its data isn't needed, delete its claim";

/// What is wrong with it; nothing if it was deleted meanwhile.
pub(in crate::operator) fn examine(item: &Item<'_>, settings: &StorageSettings, picture: &Picture) -> Vec<Finding> {
    let path = item.path();
    let of = (item.title(), path.to_string_lossy().into_owned());
    let mut findings = if item.is_image() { image(item, &path, &of) } else { directory(&path, &of) };
    findings.extend(devices(item, picture, &of));
    findings.extend(mounted(item, settings, picture, &of));
    findings.extend(unexplained(item, picture));
    if item.is_gone() { Vec::new() } else { findings }
}

fn directory(path: &Path, of: &(String, String)) -> Vec<Finding> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Vec::new(),
        Ok(_) => vec![Finding::error("directory-missing", of, "is not a directory", RESTORE)],
        Err(error) => vec![Finding::error("directory-missing", of, format!("can't be looked at: {error}"), RESTORE)],
    }
}

fn image(item: &Item<'_>, path: &Path, of: &(String, String)) -> Vec<Finding> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => found,
        Ok(_) => return vec![Finding::error("image-missing", of, "is not a regular file", RESTORE)],
        Err(error) => {
            return vec![Finding::error("image-missing", of, format!("can't be looked at: {error}"), RESTORE)];
        }
    };
    let mut findings = Vec::new();
    let bytes = item.bytes();
    if found.len() != bytes {
        let problem = format!("has {} bytes, its record says {bytes}", found.len());
        findings.push(if found.len() < bytes {
            Finding::error("image-size", of, format!("{problem}: its end is lost"), RESTORE)
        } else {
            // An expansion grows the image first and the record after that.
            Finding::warning("image-size", of, problem, "if an expansion was interrupted, repeat it: nothing is lost")
        });
    }
    let allocated = found.blocks().saturating_mul(512);
    if item.volume().is_some_and(|record| record.provisioning == Provisioning::Thick)
        && allocated < bytes.min(found.len())
    {
        let problem = format!("is thick, but has {allocated} of its {bytes} bytes");
        let remedy = "it can run out of space; stage it again, or copy it to a new volume";
        findings.push(Finding::warning("thick-holes", of, problem, remedy));
    }
    if let Content::Filesystem { filesystem, uuid } = item.content() {
        let remedy = "nothing formats it again: restore it from a snapshot or a backup, or look what is left with \
                      `losetup -r -f --show` and `wipefs`; if its data isn't needed, delete its claim";
        match fs::File::open(path).and_then(|file| superblock::read(&file)) {
            Ok(Signature::Filesystem(shown)) if shown.filesystem == *filesystem && shown.uuid == *uuid => {
                if shown.bytes > found.len() {
                    let problem = format!(
                        "its filesystem has {} bytes, which is more than the image's {}",
                        shown.bytes,
                        found.len()
                    );
                    findings.push(Finding::error("filesystem-larger", of, problem, RESTORE));
                }
            }
            Ok(other) => {
                let shown = match other {
                    Signature::Filesystem(shown) => format!("{} {}", shown.filesystem, shown.uuid),
                    Signature::Other(name) => name.to_owned(),
                    Signature::None => "no filesystem".to_owned(),
                };
                let problem = format!("was formatted as {filesystem} {uuid}, but shows {shown}");
                findings.push(Finding::error("filesystem-lost", of, problem, remedy));
            }
            Err(error) => {
                let problem = format!("its first bytes can't be read: {error}");
                findings.push(Finding::error("image-unreadable", of, problem, "look at the kernel's log for the disk"));
            }
        }
    }
    findings
}

fn devices(item: &Item<'_>, picture: &Picture, of: &(String, String)) -> Vec<Finding> {
    let loops = picture.loops_of(item);
    let mut findings = Vec::new();
    if loops.iter().filter(|one| !one.device.read_only).count() > 1 {
        let nodes: Vec<String> = loops.iter().map(|one| node(one)).collect();
        let problem = format!("can be written to through several loop devices: {}", nodes.join(", "));
        let remedy = "stop its Pods, then detach with `losetup -d` those that the driver didn't bind";
        findings.push(Finding::error("loop-twice", of, problem, remedy));
    }
    for one in loops {
        if one.bytes != item.bytes() {
            let problem =
                format!("its loop device {} has {} bytes, its record says {}", node(one), one.bytes, item.bytes());
            let remedy = "if an expansion was interrupted, repeat it; else `losetup -c` the device";
            findings.push(Finding::error("loop-size", of, problem, remedy));
        }
        let thick = item.volume().is_some_and(|record| record.provisioning == Provisioning::Thick);
        if thick && !one.refuses_discards {
            let problem = format!("is thick, but its loop device {} gives discarded blocks back", node(one));
            findings.push(Finding::warning(
                "thick-discards",
                of,
                problem,
                "make /sys writable for the driver, and stage it again",
            ));
        }
    }
    findings
}

/// What the kernel tells of the filesystem while it is mounted.
fn mounted(item: &Item<'_>, settings: &StorageSettings, picture: &Picture, of: &(String, String)) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Content::Filesystem { filesystem: FilesystemType::Ext4, .. } = item.content() {
        for one in picture.loops_of(item) {
            if let Some(count) = ext4_errors(&settings.root, one.device.number) {
                let problem = format!("its filesystem, mounted from {}, has recorded {count} errors", node(one));
                let remedy = "stop its Pods, and repair a copy of the image with `e2fsck -f`; the kernel's log says what they were";
                findings.push(Finding::error("filesystem-errors", of, problem, remedy));
            }
        }
    }
    let wants_writing = |attachment: &Attachment| {
        let staged = attachment.staged.as_ref();
        staged.is_some_and(|staged| {
            let by_option =
                matches!(&staged.capability.access, Access::Mount { options, .. } if options.is_read_only());
            !staged.capability.is_read_only() && !by_option
        })
    };
    if picture.attachment(item.id()).is_some_and(wants_writing)
        && let Some(mount) =
            picture.mounts_of(item).into_iter().find(|mount| mount.super_options.iter().any(|one| one == "ro"))
    {
        let problem =
            format!("it was staged for writing, but its filesystem at {} is read-only", mount.point.display());
        let remedy = "look at the kernel's log for why; the filesystem protects itself from errors of the disk";
        findings.push(Finding::error("filesystem-read-only", of, problem, remedy));
    }
    findings
}

/// The errors that ext4 has recorded in its superblock, if there are some and it is mounted.
fn ext4_errors(root: &HostRoot, number: u32) -> Option<u64> {
    let count = fs::read_to_string(root.join(format!("sys/fs/ext4/loop{number}/errors_count"))).ok()?;
    count.trim().parse().ok().filter(|count| *count > 0)
}

/// Mounts that nobody is recorded to have asked for. What the kubelet makes of a recorded publication is explained by
/// its Pod, as are subPaths.
fn unexplained(item: &Item<'_>, picture: &Picture) -> Vec<Finding> {
    let attachment = picture.attachment(item.id());
    let is_recorded = |point: &Path| {
        let Some(attachment) = attachment else { return false };
        let pod = pod_of(point);
        attachment.staged.as_ref().is_some_and(|staged| staged.path.as_path() == point)
            || attachment.published.iter().any(|publication| {
                let target = publication.target.as_path();
                target == point || (pod.is_some() && pod_of(target) == pod)
            })
    };
    picture
        .mounts_of(item)
        .into_iter()
        .filter(|mount| !is_recorded(&mount.point))
        .map(|mount| {
            let of = (item.title(), mount.point.to_string_lossy().into_owned());
            let problem = "it is mounted here, but no record says that it was staged or published here";
            let remedy =
                "if no Pod uses it here, unmount it with `umount`; the driver does so when it unpublishes this path";
            Finding::warning("mount-unexplained", &of, problem, remedy)
        })
        .collect()
}

fn node(one: &BoundLoop) -> String {
    one.device.node.display().to_string()
}
