//! Loop devices, mounts and records of what is staged, read once for all volumes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use keelson_host::{Mount, error_chain};
use rustix::fs::{major, minor};
use uuid::Uuid;

use super::{
    OperatorError,
    report::{UseKind, UseReport},
    survey::Item,
};
use crate::{
    StorageSettings,
    kernel::{
        KernelError,
        loop_device::{self, BoundLoop},
        shows,
    },
    policy::{SnapshotId, VolumeId},
    store::{Attachment, Attachments},
};

/// The kernel's side of all volumes, and the records beside the pools.
///
/// To be taken before the pools are surveyed: what is attached was a volume before.
pub(super) struct Picture {
    pub(super) loops: Vec<BoundLoop>,
    pub(super) mounts: Vec<Mount>,
    /// By volume; of one that can't be read, why.
    pub(super) attachments: BTreeMap<VolumeId, Result<Attachment, String>>,
}

impl Picture {
    pub(super) fn take(settings: &StorageSettings) -> Result<Self, OperatorError> {
        let records = Attachments::existing(&settings.state_dir);
        let mut attachments = BTreeMap::new();
        for id in records.ids()? {
            match records.read_whole(&id) {
                Ok(None) => {}
                Ok(Some(attachment)) => drop(attachments.insert(id, Ok(attachment))),
                Err(error) => drop(attachments.insert(id, Err(error_chain(&error)))),
            }
        }
        let loops = loop_device::bound_to(&settings.root, |file| id_of_image(file).is_some());
        let mounts = keelson_host::mounts(&settings.root).map_err(KernelError::from)?;
        Ok(Self { loops: loops.map_err(KernelError::from)?, mounts, attachments })
    }

    /// The loop devices bound to an item's image.
    pub(super) fn loops_of(&self, item: &Item<'_>) -> Vec<&BoundLoop> {
        if item.is_image() { self.loops_at(&item.path()) } else { Vec::new() }
    }

    /// The loop devices bound to an image.
    pub(super) fn loops_at(&self, image: &Path) -> Vec<&BoundLoop> {
        let Ok(found) = fs::metadata(image) else { return Vec::new() };
        let identity = (found.dev(), found.ino());
        self.loops.iter().filter(|one| one.identity == identity).collect()
    }

    /// The mounts of an item: of the filesystem on its device, of the device's node, or of its directory.
    pub(super) fn mounts_of(&self, item: &Item<'_>) -> Vec<&Mount> {
        self.mounts_at(&item.path(), item.is_image())
    }

    fn mounts_at(&self, path: &Path, is_image: bool) -> Vec<&Mount> {
        if is_image {
            let loops = self.loops_at(path);
            return self.mounts.iter().filter(|mount| loops.iter().any(|one| is_of_loop(mount, one))).collect();
        }
        let depth = path.iter().count().saturating_sub(3);
        let end: PathBuf = path.iter().skip(depth).collect();
        self.mounts.iter().filter(|mount| mount.root.ends_with(&end)).collect()
    }

    pub(super) fn attachment(&self, id: &str) -> Option<&Attachment> {
        self.attachments.get(&id.parse().ok()?)?.as_ref().ok()
    }

    /// Where an item is in use: each mount, as what it was asked for, and what keeps a raw block volume staged.
    pub(super) fn uses(&self, item: &Item<'_>) -> Vec<UseReport> {
        self.uses_at(item.id(), &item.path(), item.is_image())
    }

    /// The same of what has that id, and its content at `path`.
    pub(super) fn uses_at(&self, id: &str, path: &Path, is_image: bool) -> Vec<UseReport> {
        let attachment = self.attachment(id);
        let mounts = self.mounts_at(path, is_image).into_iter().map(|mount| {
            let path = mount.point.to_string_lossy().into_owned();
            UseReport {
                what: kind_of(attachment, &mount.point),
                pod_uid: pod_of(&mount.point),
                read_only: mount.is_read_only(),
                path,
            }
        });
        mounts.collect()
    }
}

fn kind_of(attachment: Option<&Attachment>, point: &Path) -> UseKind {
    let Some(attachment) = attachment else { return UseKind::Mounted };
    if attachment.staged.as_ref().is_some_and(|staged| staged.path.as_path() == point) {
        UseKind::Staged
    } else if attachment.published.iter().any(|publication| publication.target.as_path() == point) {
        UseKind::Published
    } else {
        UseKind::Mounted
    }
}

/// Whether a mount shows the filesystem on the device, or the device's own node.
pub(super) fn is_of_loop(mount: &Mount, one: &BoundLoop) -> bool {
    if shows(mount, one.device.device()) {
        return true;
    }
    // A raw block volume: `/loop7` of devtmpfs is mounted on a file.
    let is_node = mount.root.file_name() == one.device.node.file_name();
    is_node
        && rustix::fs::stat(&mount.point)
            .is_ok_and(|found| (major(found.st_rdev), minor(found.st_rdev)) == one.device.device())
}

/// The volume or snapshot whose image a file seems to be: `.../<id>/image`.
pub(super) fn id_of_image(file: &Path) -> Option<&str> {
    if file.file_name()? != "image" {
        return None;
    }
    id_named(file.parent()?)
}

/// The volume or snapshot that a folder is named like.
pub(super) fn id_named(folder: &Path) -> Option<&str> {
    let name = folder.file_name()?.to_str()?;
    (name.parse::<VolumeId>().is_ok() || name.parse::<SnapshotId>().is_ok()).then_some(name)
}

/// The Pod that the kubelet mounts something for, by the path. Samples:
/// `/var/lib/kubelet/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount`,
/// `/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/<volume>/<uid>`.
pub(super) fn pod_of(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let below_pods = parts.iter().position(|part| *part == "pods").and_then(|at| parts.get(at + 1));
    let of_device = || parts.contains(&"volumeDevices").then(|| parts.last()).flatten();
    let uid = below_pods.or_else(of_device)?;
    // A static Pod's is a hash: the same digits without dashes.
    Uuid::parse_str(uid).is_ok().then(|| (*uid).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_by_the_kubelets_paths() {
        let uid = "5b1c2d3e-0000-4000-8000-0123456789ab";
        for path in [
            format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/pvc-1/mount"),
            format!("/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/{uid}"),
            format!("/srv/kubelet/pods/{uid}/volume-subpaths/pvc-1/main/0"),
        ] {
            assert_eq!(pod_of(Path::new(&path)).as_deref(), Some(uid), "{path}");
        }
        for path in ["/var/lib/kubelet/pods/../x", "/pods", "/mnt/volumeDevices/publish/pvc-1/x", "/"] {
            assert_eq!(pod_of(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn an_image_is_told_by_its_folder() {
        let id = "v1-0123456789abcdef0123456789abcdef";
        assert_eq!(id_of_image(Path::new(&format!("/p/volumes/{id}/image"))), Some(id));
        assert_eq!(id_of_image(Path::new(&format!("/p/volumes/{id}/data"))), None);
        assert_eq!(id_of_image(Path::new("/p/disk/image")), None);
        assert_eq!(id_of_image(Path::new("image")), None);
    }
}
