//! What a volume says about itself, and where its parts lie.

use std::path::{Path, PathBuf};

use keelson_host::Durability;
use serde::{Deserialize, Serialize};

use super::identity::{RecordError, VERSION, read_record, write_record};
use crate::policy::{Content, ContentKind, Provisioning, VolumeId};

/// `volume.json` in a volume's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct VolumeRecord {
    version: u32,
    /// The volume's id; the folder's name as well.
    pub(crate) id: VolumeId,
    /// The name that it was created under.
    pub(crate) name: String,
    /// An image's exact size; for a directory what was asked for, which nothing enforces.
    pub(crate) bytes: u64,
    pub(crate) provisioning: Provisioning,
    pub(crate) content: Content,
}

impl VolumeRecord {
    pub(crate) fn new(id: VolumeId, name: String, bytes: u64, provisioning: Provisioning, content: Content) -> Self {
        Self { version: VERSION, id, name, bytes, provisioning, content }
    }

    /// Reads the record of the volume in `folder`; none if the file is missing.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, RecordError> {
        read_record(&folder.join("volume.json"))
    }

    /// Writes the record and makes it and its entry in `folder` durable.
    pub(super) fn write(&self, folder: &Path) -> Result<(), RecordError> {
        write_record(&folder.join("volume.json"), self, Durability::PowerLoss)
    }
}

/// The raw file of the volume in `folder`.
pub(crate) fn image(folder: &Path) -> PathBuf {
    folder.join("image")
}

/// The directory of the volume in `folder`.
pub(crate) fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// What the volume of that kind in `folder` has as its content: a raw file or a directory.
pub(crate) fn content_path(folder: &Path, kind: ContentKind) -> PathBuf {
    match kind {
        ContentKind::Block | ContentKind::Filesystem(_) => image(folder),
        ContentKind::Directory => data(folder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_as_documented() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{
            "version": 1,
            "id": "v1-0123456789abcdef0123456789abcdef",
            "name": "pvc-1",
            "bytes": 67108864,
            "provisioning": "thin",
            "content": {"type": "ext4", "uuid": "6f0c2f9e-5a57-4c0f-9a77-0d7c9d3f1a11"}
        }"#;
        std::fs::write(folder.path().join("volume.json"), text).unwrap();
        let record = VolumeRecord::read(folder.path()).unwrap().unwrap();
        assert_eq!(record.name, "pvc-1");
        record.write(folder.path()).unwrap();
        assert_eq!(VolumeRecord::read(folder.path()).unwrap(), Some(record));
    }

    #[test]
    fn an_id_that_is_a_path_is_no_id() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"version": 1, "id": "../../etc", "name": "x", "bytes": 1, "provisioning": "thin",
                       "content": {"type": "block"}}"#;
        std::fs::write(folder.path().join("volume.json"), text).unwrap();
        assert!(VolumeRecord::read(folder.path()).is_err());
    }
}
