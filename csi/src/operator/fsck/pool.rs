//! The pools themselves: which they are, what lies in them beside volumes, whether their promises hold.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path};

use keelson_host::HostRoot;

use super::super::{
    Finding, OperatorError,
    df::space,
    picture::Picture,
    survey::{Damaged, Survey, is_absent, why},
};
use crate::{
    StorageSettings,
    kernel::superblock::{self, Signature},
    policy::FilesystemType,
    store::{GroupRecord, Pool, Remembered, Sight},
};

pub(super) fn examine(
    settings: &StorageSettings,
    survey: &Survey,
    picture: &Picture,
) -> Result<Vec<Finding>, OperatorError> {
    let mut findings = Vec::new();
    for (pool, sight) in survey.each() {
        let of = title(pool);
        match sight {
            Err(error) => {
                let memory = Remembered::path_of(&settings.state_dir, &pool.settings.name);
                let remedy = format!(
                    "mount the pool's disk; to give the name to another pool on purpose, remove the file in which it is \
                     remembered, {}",
                    memory.display()
                );
                findings.push(Finding::error("pool-unavailable", &of, why(error), &remedy));
            }
            Ok(Sight::Unused) => {}
            Ok(Sight::Pool { read_only, remembered }) => {
                if *read_only {
                    let remedy = format!(
                        "look at the kernel's log for why; if nothing is wrong with the disk: `mount -o remount,rw {}`",
                        mount_point(pool, picture).display()
                    );
                    findings.push(Finding::error("pool-read-only", &of, "its filesystem is read-only", &remedy));
                }
                if !remembered {
                    let problem = "it is not remembered outside, so any pool at its path would be taken for it";
                    let remedy = "start the driver, which remembers it; nothing is lost";
                    findings.push(Finding::note("pool-not-remembered", &of, problem, remedy));
                }
                findings.extend(contents(pool, &settings.root)?);
                findings.extend(promises(survey, pool)?);
            }
        }
    }
    findings.extend(survey.damaged().iter().map(unreadable));
    findings.extend(same_names(survey));
    Ok(findings)
}

pub(super) fn title(pool: &Pool) -> (String, String) {
    (format!("pool {}", pool.settings.name), pool.settings.path.display().to_string())
}

/// Where the filesystem that the pool lies on is mounted.
fn mount_point<'a>(pool: &'a Pool, picture: &'a Picture) -> &'a Path {
    let resolved = &pool.settings.resolved;
    let above = picture.mounts.iter().map(|mount| mount.point.as_path()).filter(|point| resolved.starts_with(point));
    above.max_by_key(|point| point.iter().count()).unwrap_or(resolved)
}

fn at(pool: &Pool, path: &Path) -> (String, String) {
    (title(pool).0, path.display().to_string())
}

fn contents(pool: &Pool, root: &HostRoot) -> Result<Vec<Finding>, OperatorError> {
    let mut findings = Vec::new();
    for path in pool.strangers()? {
        let problem = "is nothing of the driver's, and is left alone";
        findings.push(Finding::warning("stranger", &at(pool, &path), problem, "move it out of the pool"));
    }
    let in_use = driver_uses(pool, root);
    for path in pool.leftovers()?.iter().filter(|path| !is_absent(path)) {
        let of = at(pool, path);
        findings.push(if in_use {
            let problem = "is half made or half removed; a driver uses the pool, and may be at work on it";
            Finding::note("leftover", &of, problem, "wait; the driver's next start sweeps what is left")
        } else {
            let problem = "is half made or half removed, and no driver is at work on it";
            Finding::warning("leftover", &of, problem, "start the driver, which sweeps it, or run `keelson storage gc`")
        });
    }
    for path in pool.template_files()? {
        if let Err(problem) = is_template(&path)
            && !(in_use && is_half(&path))
            && !is_absent(&path)
        {
            let remedy = "nothing is lost without it: run `keelson storage gc` while the driver is stopped";
            findings.push(Finding::warning("template-invalid", &at(pool, &path), problem, remedy));
        }
    }
    for group in pool.filtered::<GroupRecord>(|_| true).unwrap_or_default() {
        findings.extend(members(pool, &group));
    }
    Ok(findings)
}

pub(in crate::operator) fn unreadable(damaged: &Damaged<'_>) -> Finding {
    let of = (damaged.id.clone(), damaged.folder.display().to_string());
    let remedy = "its calls fail with FAILED_PRECONDITION; restore its record (docs/formats-storage.md) or, if its data \
                  isn't needed, remove its folder while the driver is stopped";
    Finding::error("record-unreadable", &of, damaged.reason.as_str(), remedy)
}

/// A template in the making.
fn is_half(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Whether a file among the templates is one: `<filesystem>-<bytes>`, and shows that filesystem.
pub(in crate::operator) fn is_template(path: &Path) -> Result<(), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let named = name
        .split_once('-')
        .and_then(|(filesystem, bytes)| Some((FilesystemType::named(filesystem)?, bytes.parse::<u64>().ok()?)));
    let Some((filesystem, bytes)) = named else { return Err("isn't named like a template".to_owned()) };
    let read = fs::File::open(path).and_then(|file| Ok((file.metadata()?.len(), superblock::read(&file)?)));
    match read {
        Ok((length, _)) if length != bytes => Err(format!("has {length} bytes instead of {bytes}")),
        Ok((_, Signature::Filesystem(shown))) if shown.filesystem == filesystem && shown.bytes <= bytes => Ok(()),
        Ok(_) => Err(format!("doesn't hold the {filesystem} filesystem that its name says")),
        Err(error) => Err(format!("can't be read: {error}")),
    }
}

fn members(pool: &Pool, group: &GroupRecord) -> Vec<Finding> {
    let present = pool.filtered(|snapshot: &crate::store::SnapshotRecord| snapshot.group.as_ref() == Some(&group.id));
    let present = present.unwrap_or_default();
    let folder = pool.folder(group);
    let of = (format!("group {} ({})", group.id, group.name), folder.display().to_string());
    let mut findings = Vec::new();
    for id in group.snapshots.iter().filter(|id| !present.iter().any(|snapshot| snapshot.id == **id)) {
        let problem = format!("its snapshot {id} is missing");
        let remedy = "it can't be restored as a whole: restore the folder from a backup, or delete the group";
        findings.push(Finding::error("group-incomplete", &of, problem, remedy));
    }
    for snapshot in present.iter().filter(|snapshot| !group.snapshots.contains(&snapshot.id)) {
        let problem = format!("holds snapshot {}, which its record doesn't name", snapshot.id);
        findings.push(Finding::error(
            "group-stranger",
            &of,
            problem,
            "move the folder out of the pool, driver stopped",
        ));
    }
    if is_absent(&folder) { Vec::new() } else { findings }
}

/// Whether what was promised still fits: others may write to a filesystem that isn't the pool's alone.
fn promises(survey: &Survey, pool: &Pool) -> Result<Option<Finding>, OperatorError> {
    let space = space(&survey.pools, pool)?;
    let usable = space.free_bytes.saturating_add(space.taken_bytes).saturating_sub(space.reserve_bytes);
    let percent = u128::from(pool.settings.overcommit_percent);
    if u128::from(space.promised_bytes) <= u128::from(usable) * percent / 100 {
        return Ok(None);
    }
    let problem = format!(
        "{} bytes are promised, but there is room for {usable}: something else fills its filesystem",
        space.promised_bytes
    );
    let remedy = "free space on the filesystem before volumes run into it; no new volume is made until then";
    Ok(Some(Finding::warning("space-short", &title(pool), problem, remedy)))
}

/// A name means one volume, and one snapshot, on a node.
fn same_names(survey: &Survey) -> Vec<Finding> {
    let mut first: BTreeMap<(bool, String), String> = BTreeMap::new();
    let mut findings = Vec::new();
    // The members of a group have no names of their own.
    for item in survey.items().iter().filter(|item| !item.name().is_empty()) {
        let key = (item.volume().is_some(), item.name().to_owned());
        if let Some(other) = first.get(&key) {
            let of = (item.title(), item.folder.display().to_string());
            let problem = format!("has the same name as {other}: calls that name it find either");
            let remedy = if item.volume().is_some() {
                "delete the one whose id no PersistentVolume has as its volumeHandle"
            } else {
                "delete the one whose id no VolumeSnapshotContent has as its snapshotHandle"
            };
            findings.push(Finding::error("name-twice", &of, problem, remedy));
        } else {
            first.insert(key, item.id().to_owned());
        }
    }
    findings
}

/// Whether some process holds the pool's lock, as the kernel lists it. Sample of a line:
/// `3: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`
pub(in crate::operator) fn driver_uses(pool: &Pool, root: &HostRoot) -> bool {
    let Ok(marker) = fs::metadata(pool.marker()) else { return false };
    let Ok(locks) = fs::read_to_string(root.join("proc/locks")) else { return false };
    locks.lines().any(|line| is_lock_of(line, marker.dev(), marker.ino()))
}

fn is_lock_of(line: &str, device: u64, inode: u64) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, _, _, place, ..] = fields.as_slice() else { return false };
    let parts: Vec<&str> = place.split(':').collect();
    let [major, minor, found] = parts.as_slice() else { return false };
    let hexadecimal = |text: &str| u32::from_str_radix(text, 16).ok();
    let (Some(major), Some(minor)) = (hexadecimal(major), hexadecimal(minor)) else { return false };
    let (own_major, own_minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // Of btrfs the list has another number than stat(2), and both have no disk's major number.
    found.parse() == Ok(inode) && (major == own_major) && (minor == own_minor || major == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_told_by_device_and_inode() {
        let device = rustix::fs::makedev(8, 17);
        assert!(is_lock_of("3: FLOCK  ADVISORY  WRITE 4711 08:11:131 0 EOF", device, 131));
        assert!(!is_lock_of("3: FLOCK  ADVISORY  WRITE 4711 08:11:132 0 EOF", device, 131));
        assert!(!is_lock_of("3: FLOCK  ADVISORY  WRITE 4711 08:12:131 0 EOF", device, 131));
        assert!(!is_lock_of("3: POSIX  ADVISORY  WRITE 4711 08:11:131 0 EOF", device, 131));
        assert!(is_lock_of("3: FLOCK  ADVISORY  WRITE 4711 00:2a:257 0 EOF", rustix::fs::makedev(0, 43), 257));
        for line in ["", "3: -> FLOCK ADVISORY WRITE 1 08:11:131 0 EOF", "3: FLOCK ADVISORY WRITE 1 8:11 0 EOF"] {
            assert!(!is_lock_of(line, device, 131), "{line}");
        }
    }
}
