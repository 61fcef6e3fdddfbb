//! What volumes, snapshots and groups of snapshots say about themselves, and where their parts lie.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::format::Format;
use crate::policy::{Content, ContentKind, GroupId, Provisioning, Settings, SnapshotId, VolumeId};

/// `volume.json` in a volume's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct VolumeRecord {
    /// The volume's id; the folder's name as well.
    pub(crate) id: VolumeId,
    /// The name that it was created under.
    pub(crate) name: String,
    /// Its exact size; where nothing enforces one, what was asked for.
    pub(crate) bytes: u64,
    pub(crate) provisioning: Provisioning,
    pub(crate) content: Content,
    /// What its content was copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<Source>,
    /// The volume that all those descend from that may share blocks with it; none if it is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) family: Option<VolumeId>,
    /// At most so many of its bytes are those of the template that it, or the first of its family, was cloned from.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) template_bytes: u64,
    /// What a VolumeAttributesClass set.
    #[serde(default, skip_serializing_if = "Settings::is_default")]
    pub(crate) settings: Settings,
    /// The project id of its quota, where a directory has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<u32>,
}

/// Version 1 had no `source`, `family`, `templateBytes`, `settings` and `project`.
impl Format for VolumeRecord {
    const NEWEST: u32 = 2;
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a volume's content was copied from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Source {
    Volume(VolumeId),
    Snapshot(SnapshotId),
}

impl Source {
    /// The id, of either kind.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Volume(id) => id.as_str(),
            Self::Snapshot(id) => id.as_str(),
        }
    }
}

/// `snapshot.json` in a snapshot's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SnapshotRecord {
    /// The snapshot's id; the folder's name as well.
    pub(crate) id: SnapshotId,
    /// The name that it was created under; empty in a group, which has one.
    pub(crate) name: String,
    /// The volume it was cut from, which may be gone.
    pub(crate) volume: VolumeId,
    /// The volume's size at the cut.
    pub(crate) bytes: u64,
    /// What it took at the cut, so what it can come to have alone.
    pub(crate) held: u64,
    /// When it was cut: nanoseconds since 1970.
    pub(crate) created: u64,
    pub(crate) content: Content,
    /// The volume that all those descend from that may share blocks with it.
    pub(crate) family: VolumeId,
    /// As of the volume.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) template_bytes: u64,
    /// The group that it belongs to, in whose folder it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<GroupId>,
}

impl Format for SnapshotRecord {
    const NEWEST: u32 = 1;
}

/// `group.json` in a group's folder, beside the folders of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GroupRecord {
    /// The group's id; the folder's name as well.
    pub(crate) id: GroupId,
    /// The name that it was created under.
    pub(crate) name: String,
    /// When it was cut: nanoseconds since 1970.
    pub(crate) created: u64,
    /// Its snapshots, in the order of the request.
    pub(crate) snapshots: Vec<SnapshotId>,
    /// For how long the volumes' filesystems were frozen, in microseconds.
    pub(crate) pause_microseconds: u64,
}

impl Format for GroupRecord {
    const NEWEST: u32 = 1;
}

impl VolumeRecord {
    pub(crate) fn new(id: VolumeId, name: String, bytes: u64, provisioning: Provisioning, content: Content) -> Self {
        let settings = Settings::default();
        Self {
            id,
            name,
            bytes,
            provisioning,
            content,
            source: None,
            family: None,
            template_bytes: 0,
            settings,
            project: None,
        }
    }

    /// The volume that all those descend from that may share blocks with it.
    pub(crate) fn family(&self) -> &VolumeId {
        self.family.as_ref().unwrap_or(&self.id)
    }
}

/// The raw file of the volume or snapshot in `folder`.
pub(crate) fn image(folder: &Path) -> PathBuf {
    folder.join("image")
}

/// The directory or subvolume of the volume or snapshot in `folder`.
pub(crate) fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// What the volume or snapshot of that kind in `folder` has as its content: a raw file or a directory.
pub(crate) fn content_path(folder: &Path, kind: ContentKind) -> PathBuf {
    if kind.is_image() { image(folder) } else { data(folder) }
}

#[cfg(test)]
mod tests {
    use keelson_host::Durability;

    use super::*;
    use crate::store::format::{read_record, write_record};

    #[test]
    fn the_formats_are_as_documented() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let volume = r#"{
  "version": 2,
  "id": "v1-0123456789abcdef0123456789abcdef",
  "name": "pvc-1",
  "bytes": 67108864,
  "provisioning": "thin",
  "content": {
    "type": "ext4",
    "uuid": "6f0c2f9e-5a57-4c0f-9a77-0d7c9d3f1a11"
  },
  "source": {
    "snapshot": "s1-0123456789abcdef0123456789abcdef"
  },
  "family": "v1-1123456789abcdef0123456789abcdef",
  "templateBytes": 737280,
  "settings": {
    "readAheadKiB": 1024
  },
  "project": 7
}
"#;
        std::fs::write(&path, volume).unwrap();
        let record: VolumeRecord = read_record(&path).unwrap().unwrap();
        write_record(&path, &record, Durability::Process).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), volume);

        let snapshot = r#"{"version": 1, "id": "s1-0123456789abcdef0123456789abcdef", "name": "snap-1",
            "volume": "v1-0123456789abcdef0123456789abcdef", "bytes": 4096, "held": 4096, "created": 1,
            "content": {"type": "block"}, "family": "v1-0123456789abcdef0123456789abcdef"}"#;
        std::fs::write(&path, snapshot).unwrap();
        assert_eq!(read_record::<SnapshotRecord>(&path).unwrap().unwrap().name, "snap-1");

        let group = r#"{"version": 1, "id": "g1-0123456789abcdef0123456789abcdef", "name": "group-1", "created": 1,
            "snapshots": ["s1-0123456789abcdef0123456789abcdef"], "pauseMicroseconds": 1500}"#;
        std::fs::write(&path, group).unwrap();
        assert_eq!(read_record::<GroupRecord>(&path).unwrap().unwrap().pause_microseconds, 1500);
    }

    #[test]
    fn parts_lie_where_the_format_says() {
        let folder = Path::new("/pool/volumes/v1-0");
        assert_eq!(content_path(folder, ContentKind::Block), folder.join("image"));
        assert_eq!(content_path(folder, ContentKind::Directory), folder.join("data"));
        let (volume, snapshot) = (VolumeId::generate(), SnapshotId::generate());
        assert_eq!(Source::Volume(volume.clone()).as_str(), volume.as_str());
        assert_eq!(Source::Snapshot(snapshot.clone()).as_str(), snapshot.as_str());
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_one_that_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_record::<VolumeRecord>(&folder.path().join("none")).unwrap().is_none());
        assert!(read_record::<VolumeRecord>(folder.path()).is_err());
    }

    #[test]
    fn a_volume_of_version_1_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("volume.json");
        let text = r#"{"version": 1, "id": "v1-0123456789abcdef0123456789abcdef", "name": "pvc-1", "bytes": 67108864,
            "provisioning": "thick", "content": {"type": "ext4", "uuid": "6f0c2f9e-5a57-4c0f-9a77-0d7c9d3f1a11"}}"#;
        std::fs::write(&path, text).unwrap();
        let record: VolumeRecord = read_record(&path).unwrap().unwrap();
        assert_eq!((record.name.as_str(), record.provisioning), ("pvc-1", Provisioning::Thick));
        assert_eq!(record.family(), &record.id);
    }

    #[test]
    fn an_id_that_is_a_path_is_no_id() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("volume.json");
        let text = r#"{"version": 1, "id": "../../etc", "name": "x", "bytes": 1, "provisioning": "thin",
                       "content": {"type": "block"}}"#;
        std::fs::write(&path, text).unwrap();
        assert!(read_record::<VolumeRecord>(&path).is_err());
    }
}
