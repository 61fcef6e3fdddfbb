//! What was asked to be staged and published: the arguments, which the kernel doesn't keep.
//!
//! `<stateDir>/storage/attachments/<volume id>.json` is written before a mount is made and changed after it is
//! gone. So it may tell of a mount that isn't there, never the other way round: only what is recorded *and* mounted
//! counts. After a reboot nothing is mounted, and so nothing counts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use keelson_host::Durability;
use serde::{Deserialize, Serialize};

use super::format::{Format, RecordError, read_record, write_record};
use crate::policy::{Capability, Publication, TargetPath, VolumeId};

/// The records of all volumes of this node.
#[derive(Debug)]
pub(crate) struct Attachments {
    directory: PathBuf,
}

/// How one volume is, or was to be, staged and published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Attachment {
    pub(crate) staged: Option<Staged>,
    pub(crate) published: Vec<Publication>,
}

/// Where and as what a volume is staged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Staged {
    pub(crate) path: TargetPath,
    pub(crate) capability: Capability,
}

impl Format for Attachment {
    const NEWEST: u32 = 1;
}

impl Attachments {
    /// Opens the records below the state directory, and removes what a killed process left half-written.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let directory = state_dir.join("storage/attachments");
        fs::create_dir_all(&directory).map_err(RecordError::io("create", &directory))?;
        for entry in fs::read_dir(&directory).map_err(RecordError::io("list", &directory))? {
            let entry = entry.map_err(RecordError::io("list", &directory))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                fs::remove_file(entry.path()).map_err(RecordError::io("remove", &entry.path()))?;
            }
        }
        Ok(Self { directory })
    }

    /// The records below the state directory as they are, for who only looks; there may be none.
    pub(crate) fn existing(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("storage/attachments") }
    }

    /// As [`Attachments::read`], but half a record is an error.
    pub(crate) fn read_whole(&self, id: &VolumeId) -> Result<Option<Attachment>, RecordError> {
        read_record(&self.path_of(id))
    }

    /// What is recorded of a volume; nothing if it never was staged, or if a power cut left half a record: whatever it
    /// told of is no longer mounted.
    pub(crate) fn read(&self, id: &VolumeId) -> Result<Attachment, RecordError> {
        match read_record(&self.path_of(id)) {
            Err(error @ RecordError::Content { .. }) => {
                tracing::warn!(volume = %id, %error, "the record of where a volume is staged is lost");
                Ok(Attachment::default())
            }
            record => Ok(record?.unwrap_or_default()),
        }
    }

    /// Records the volume's new state. It needn't survive a power cut, as no mount does.
    pub(crate) fn write(&self, id: &VolumeId, attachment: &Attachment) -> Result<(), RecordError> {
        let path = self.path_of(id);
        if attachment.staged.is_some() || !attachment.published.is_empty() {
            return write_record(&path, attachment, Durability::Process);
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecordError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The volumes that something is recorded of.
    pub(crate) fn ids(&self) -> Result<Vec<VolumeId>, RecordError> {
        let failed = RecordError::io("list", &self.directory);
        let mut ids = Vec::new();
        let listed = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ids),
            listed => listed.map_err(&failed)?,
        };
        for entry in listed {
            let name = entry.map_err(&failed)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok()));
        }
        Ok(ids)
    }

    pub(crate) fn path_of(&self, id: &VolumeId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Access, AccessMode};

    #[test]
    fn nothing_recorded_leaves_no_file() {
        let state = tempfile::tempdir().unwrap();
        let attachments = Attachments::open(state.path()).unwrap();
        let id = VolumeId::generate();
        let path = TargetPath::try_from("/a".to_owned()).unwrap();
        let capability = Capability { mode: AccessMode::Writer, access: Access::Block };
        let staged = Attachment { staged: Some(Staged { path, capability }), ..Attachment::default() };
        attachments.write(&id, &staged).unwrap();
        assert_eq!(attachments.read(&id).unwrap(), staged);
        for _ in 0..2 {
            attachments.write(&id, &Attachment::default()).unwrap();
            assert_eq!(attachments.read(&id).unwrap(), Attachment::default());
        }
        assert_eq!(fs::read_dir(state.path().join("storage/attachments")).unwrap().count(), 0);
    }

    #[test]
    fn the_format_is_as_documented() {
        let text = r#"{
            "version": 1,
            "staged": {"path": "/s", "capability": {"mode": "singleWriter", "access": "block"}},
            "published": [{
                "target": "/t",
                "capability": {
                    "mode": "writer",
                    "access": {"mount": {"filesystem": "", "options": {"attributes": 6, "filesystem": ["discard"]}}}
                },
                "readOnly": false
            }]
        }"#;
        let state = tempfile::tempdir().unwrap();
        let attachments = Attachments::open(state.path()).unwrap();
        let id = VolumeId::generate();
        fs::write(attachments.path_of(&id), text).unwrap();
        attachments.write(&id, &attachments.read(&id).unwrap()).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&fs::read(attachments.path_of(&id)).unwrap()).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn half_a_record_is_none() {
        let state = tempfile::tempdir().unwrap();
        let attachments = Attachments::open(state.path()).unwrap();
        let id = VolumeId::generate();
        for text in ["", "\0\0", "{", "[]"] {
            fs::write(attachments.path_of(&id), text).unwrap();
            assert_eq!(attachments.read(&id).unwrap(), Attachment::default(), "{text:?}");
        }
        fs::write(attachments.path_of(&id), r#"{"version": 2}"#).unwrap();
        assert!(attachments.read(&id).is_err());
    }

    #[test]
    fn what_a_killed_process_left_is_swept() {
        let state = tempfile::tempdir().unwrap();
        let attachments = Attachments::open(state.path()).unwrap();
        let half = attachments.directory.join(".v1-0.json.1.0.tmp");
        fs::write(&half, b"{").unwrap();
        Attachments::open(state.path()).unwrap();
        assert!(!half.exists());
    }
}
