//! What was asked to be staged and published: the arguments, which the kernel doesn't keep.
//!
//! Two files for each volume in `<stateDir>/storage/attachments`. They are written before a mount is made and changed
//! after it is gone. So they may tell of a mount that isn't there, never the other way round: only what is recorded
//! *and* mounted counts, except that a publish stages anew what is recorded as staged and was unmounted by a reboot.
//!
//! ```text
//! <volume id>.json              where it is staged; survives a power cut, for that publish
//! <volume id>.published.json    where it is published, once that has changed; needn't survive one, as no mount does
//! ```

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use keelson_host::Durability;
use serde::{Deserialize, Serialize};

use super::format::{Format, RecordError, create_record, read_record, write_record};
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

/// Where a volume is published, where that isn't what the file of its stage says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Publications {
    published: Vec<Publication>,
}

impl Format for Publications {
    const NEWEST: u32 = 1;
}

impl Attachments {
    /// Opens the records below the state directory, and removes what a killed process left half-written.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let directory = state_dir.join("storage/attachments");
        fs::create_dir_all(&directory).map_err(RecordError::io("create", &directory))?;
        // Paths of Pods and mount options, which may be sensitive. Those who made it before let everybody in.
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&directory, private).map_err(RecordError::io("close", &directory))?;
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
        let recorded: Option<Attachment> = read_record(&self.path_of(id))?;
        let Some(Publications { published }) = read_record(&self.publications_of(id))? else { return Ok(recorded) };
        Ok(Some(Attachment { published, ..recorded.unwrap_or_default() }))
    }

    /// What is recorded of a volume; nothing if it never was staged, or if a power cut left half a record: then its stage
    /// wasn't answered yet.
    pub(crate) fn read(&self, id: &VolumeId) -> Result<Attachment, RecordError> {
        let mut attachment: Attachment = read_unless_half(&self.path_of(id))?.unwrap_or_default();
        if let Some(Publications { published }) = read_unless_half(&self.publications_of(id))? {
            attachment.published = published;
        }
        Ok(attachment)
    }

    /// Records that the volume is about to be staged. That survives a power cut.
    pub(crate) fn write_stage(&self, id: &VolumeId, attachment: &Attachment) -> Result<(), RecordError> {
        write_durably(&self.path_of(id), attachment)?;
        remove(&self.publications_of(id))
    }

    /// Records the volume's new state.
    pub(crate) fn write(&self, id: &VolumeId, attachment: &Attachment) -> Result<(), RecordError> {
        let (path, publications) = (self.path_of(id), self.publications_of(id));
        if attachment.staged.is_none() && attachment.published.is_empty() {
            // The stage goes in any case: the next publish takes what is left of it for one that a reboot undid.
            let published = remove(&publications);
            return remove(&path).and(published);
        }
        let recorded: Option<Attachment> = read_unless_half(&path)?;
        if recorded.is_some_and(|recorded| recorded.staged == attachment.staged) {
            // The file of the stage is left alone: a power cut may lose what replaces it.
            let published = attachment.published.clone();
            return write_record(&publications, &Publications { published }, Durability::Process);
        }
        self.write_stage(id, attachment)
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

    fn publications_of(&self, id: &VolumeId) -> PathBuf {
        self.directory.join(format!("{id}.published.json"))
    }
}

/// Reads a record; one that a crash left half-written is none.
fn read_unless_half<T: Format>(path: &Path) -> Result<Option<T>, RecordError> {
    match read_record(path) {
        Err(error @ RecordError::Content { .. }) => {
            tracing::warn!(%error, "a record of where a volume is staged or published is lost");
            Ok(None)
        }
        record => record,
    }
}

/// Writes a record that survives a power cut, with one wait for the disk where there is none yet: a new file is synced
/// together with its name.
fn write_durably(path: &Path, attachment: &Attachment) -> Result<(), RecordError> {
    match create_record(path, attachment) {
        Ok(file) => file.sync_all().map_err(RecordError::io("sync", path)),
        Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            write_record(path, attachment, Durability::PowerLoss)
        }
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecordError::io("remove", path)(error)),
        _ => Ok(()),
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
        for _ in 0..2 {
            attachments.write_stage(&id, &staged).unwrap();
            assert_eq!(attachments.read(&id).unwrap(), staged);
        }
        for _ in 0..2 {
            attachments.write(&id, &Attachment::default()).unwrap();
            assert_eq!(attachments.read(&id).unwrap(), Attachment::default());
        }
        assert_eq!(fs::read_dir(state.path().join("storage/attachments")).unwrap().count(), 0);
    }

    #[test]
    fn the_directory_is_closed_to_others_also_one_that_was_open() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("storage/attachments");
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        Attachments::open(state.path()).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_stage_is_no_longer_recorded_though_its_publications_stay() {
        let state = tempfile::tempdir().unwrap();
        let attachments = Attachments::open(state.path()).unwrap();
        let id = VolumeId::generate();
        let path = TargetPath::try_from("/a".to_owned()).unwrap();
        let capability = Capability { mode: AccessMode::Writer, access: Access::Block };
        let staged = Attachment { staged: Some(Staged { path, capability }), ..Attachment::default() };
        // What can't be removed.
        fs::create_dir(attachments.publications_of(&id)).unwrap();
        attachments.write_stage(&id, &staged).unwrap_err();
        attachments.write(&id, &Attachment::default()).unwrap_err();
        assert!(!attachments.path_of(&id).exists());
    }

    #[test]
    fn what_is_recorded_is_listed_and_what_cannot_be_removed_is_told() {
        let state = tempfile::tempdir().unwrap();
        let attachments = Attachments::open(state.path()).unwrap();
        let id = VolumeId::generate();
        assert_eq!(attachments.ids().unwrap(), []);
        fs::create_dir(attachments.path_of(&id)).unwrap();
        assert_eq!(attachments.ids().unwrap(), std::slice::from_ref(&id));
        attachments.write(&id, &Attachment::default()).unwrap_err();
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
        let read = attachments.read(&id).unwrap();
        fs::remove_file(attachments.path_of(&id)).unwrap();
        attachments.write(&id, &read).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&fs::read(attachments.path_of(&id)).unwrap()).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn a_publication_leaves_the_file_of_the_stage_alone() {
        let state = tempfile::tempdir().unwrap();
        let attachments = Attachments::open(state.path()).unwrap();
        let id = VolumeId::generate();
        let target = |path: &str| TargetPath::try_from(path.to_owned()).unwrap();
        let capability = Capability { mode: AccessMode::Writer, access: Access::Block };
        let mut attachment = Attachment {
            staged: Some(Staged { path: target("/a"), capability: capability.clone() }),
            ..Attachment::default()
        };
        attachments.write(&id, &attachment).unwrap();
        let stage = fs::read(attachments.path_of(&id)).unwrap();
        for path in ["/b", "/c"] {
            attachment.published.push(Publication {
                target: target(path),
                capability: capability.clone(),
                read_only: false,
            });
            attachments.write(&id, &attachment).unwrap();
            assert_eq!(attachments.read(&id).unwrap(), attachment);
        }
        assert_eq!(fs::read(attachments.path_of(&id)).unwrap(), stage);
        // A power cut may leave half of it.
        fs::write(attachments.publications_of(&id), "").unwrap();
        assert_eq!(attachments.read(&id).unwrap().staged, attachment.staged);
        attachments.write(&id, &attachment).unwrap();
        attachment.staged = Some(Staged { path: target("/d"), capability });
        attachments.write(&id, &attachment).unwrap();
        assert_eq!(attachments.read(&id).unwrap(), attachment);
        assert_eq!(attachments.ids().unwrap(), std::slice::from_ref(&id));
        attachments.write(&id, &Attachment::default()).unwrap();
        assert_eq!(fs::read_dir(&attachments.directory).unwrap().count(), 0);
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
