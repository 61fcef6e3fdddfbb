//! Everything about one volume, snapshot or group: record, image, loop devices, mounts, Pods, relatives, operations.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use keelson_host::error_chain;
use serde::Serialize;

use super::{
    DamagedReport, DeviceReport, Finding, GroupReport, ImageReport, OperatorError, Relation, RelativeReport,
    SnapshotReport, UseReport, VolumeReport,
    fsck::{examine, unreadable},
    list::{damaged_report, group_report, measure, snapshot_report, volume_report},
    picture::Picture,
    survey::{Damaged, Item, Subject, Survey},
};
use crate::{
    Operation, StorageSettings,
    kernel::{
        extents,
        loop_device::BoundLoop,
        superblock::{self, Signature},
    },
    store::Kept,
};

/// What the driver that runs is at; none runs, or it doesn't answer: why.
pub type Running = Result<Vec<Operation>, String>;

/// What is shown.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "record")]
pub enum ShownKind {
    /// A volume.
    Volume(VolumeReport),
    /// A snapshot.
    Snapshot(SnapshotReport),
    /// A group of snapshots.
    Group(GroupReport),
    /// What its record no longer tells.
    Damaged(DamagedReport),
}

/// One thing and the whole chain behind it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Its record.
    #[serde(flatten)]
    pub kind: ShownKind,
    /// Where that lies.
    pub folder: String,
    /// The file behind it; a directory or a group has none.
    pub image: Option<ImageReport>,
    /// Why the image could not be read.
    pub image_problem: Option<String>,
    /// Its loop devices.
    pub devices: Vec<DeviceReport>,
    /// Where it is mounted, with the Pods.
    pub uses: Vec<UseReport>,
    /// Where the driver was asked to stage it.
    pub recorded_staged: Option<String>,
    /// Where the driver was asked to publish it.
    pub recorded_published: Vec<String>,
    /// What it was copied from, what was copied from it, and what else shares its blocks.
    pub relatives: Vec<RelativeReport>,
    /// What the driver is doing to it now; none if no driver answers.
    pub operations: Option<Vec<Operation>>,
    /// Why that isn't known.
    pub operations_problem: Option<String>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// All that is called `selector`, by id or by name.
///
/// # Errors
///
/// [`OperatorError::NotFound`], and what kept it from looking.
pub fn show(settings: &StorageSettings, selector: &str, running: &Running) -> Result<Vec<Shown>, OperatorError> {
    let picture = Picture::take(settings)?;
    let survey = Survey::take(settings);
    measure(&survey)?;
    let items = survey.items();
    let mut shown: Vec<Shown> = items
        .iter()
        .filter(|item| item.is_called(selector))
        .map(|item| show_item(item, &items, settings, &picture, running))
        .collect();
    for (pool, record) in
        survey.groups().filter(|(_, record)| record.id.as_str() == selector || record.name == selector)
    {
        let folder = record.folder(pool).to_string_lossy().into_owned();
        let kind = ShownKind::Group(group_report(pool, &record));
        shown.push(bare(kind, folder, &[record.id.as_str(), &record.name], running));
    }
    let damaged = survey.damaged();
    shown.extend(damaged.iter().filter(|one| one.id == selector).map(|one| show_damaged(one, &picture, running)));
    if shown.is_empty() {
        return Err(OperatorError::NotFound { selector: selector.to_owned(), pools: survey.unread() });
    }
    Ok(shown)
}

fn bare(kind: ShownKind, folder: String, called: &[&str], running: &Running) -> Shown {
    let (operations, operations_problem) = match running {
        Ok(all) => {
            let concerns = |operation: &&Operation| called.iter().any(|name| operation.subject.contains(name));
            (Some(all.iter().filter(concerns).cloned().collect()), None)
        }
        Err(problem) => (None, Some(problem.clone())),
    };
    Shown {
        kind,
        folder,
        image: None,
        image_problem: None,
        devices: Vec::new(),
        uses: Vec::new(),
        recorded_staged: None,
        recorded_published: Vec::new(),
        relatives: Vec::new(),
        operations,
        operations_problem,
        findings: Vec::new(),
    }
}

fn show_item(
    item: &Item<'_>,
    all: &[Item<'_>],
    settings: &StorageSettings,
    picture: &Picture,
    running: &Running,
) -> Shown {
    let kind = match &item.subject {
        Subject::Volume(record) => ShownKind::Volume(volume_report(item, record, picture)),
        Subject::Snapshot(record) => ShownKind::Snapshot(snapshot_report(item, record)),
    };
    let folder = item.folder.to_string_lossy().into_owned();
    let mut shown = bare(kind, folder, &[item.id(), item.name()], running);
    if item.is_image() {
        shown.add_image(&item.path());
    }
    shown.devices = picture.loops_of(item).into_iter().map(device_report).collect();
    shown.uses = picture.uses(item);
    shown.add_attachment(item.id(), picture);
    shown.relatives = relatives(item, all);
    shown.findings = examine(item, settings, picture);
    shown
}

/// What is left to see without the record: the folder tells what it is.
fn show_damaged(one: &Damaged<'_>, picture: &Picture, running: &Running) -> Shown {
    let folder = one.folder.to_string_lossy().into_owned();
    let mut shown = bare(ShownKind::Damaged(damaged_report(one)), folder, &[&one.id], running);
    let image = one.folder.join("image");
    if image.exists() {
        shown.add_image(&image);
        shown.devices = picture.loops_at(&image).into_iter().map(device_report).collect();
        shown.uses = picture.uses_at(&one.id, &image, true);
    } else {
        shown.uses = picture.uses_at(&one.id, &one.folder.join("data"), false);
    }
    shown.add_attachment(&one.id, picture);
    shown.findings = vec![unreadable(one)];
    shown
}

impl Shown {
    fn add_image(&mut self, path: &Path) {
        match image(path) {
            Ok(found) => self.image = Some(found),
            Err(error) => self.image_problem = Some(error_chain(&error)),
        }
    }

    fn add_attachment(&mut self, id: &str, picture: &Picture) {
        if let Some(attachment) = picture.attachment(id) {
            let published = attachment.published.iter().map(|publication| publication.target.to_string());
            self.recorded_staged = attachment.staged.as_ref().map(|staged| staged.path.to_string());
            self.recorded_published = published.collect();
        }
    }
}

fn image(path: &Path) -> io::Result<ImageReport> {
    let file = fs::File::open(path)?;
    let found = file.metadata()?;
    let (shows, superblock) = match superblock::read(&file)? {
        Signature::Filesystem(superblock) => (Some(superblock.filesystem.as_str().to_owned()), Some(superblock)),
        Signature::Other(name) => (Some(name.to_owned()), None),
        Signature::None => (None, None),
    };
    Ok(ImageReport {
        path: path.to_string_lossy().into_owned(),
        bytes: found.len(),
        allocated_bytes: found.blocks().saturating_mul(512),
        extents: extents::count(&file)?,
        shows,
        filesystem_uuid: superblock.as_ref().map(|superblock| superblock.uuid.to_string()),
        filesystem_bytes: superblock.map(|superblock| superblock.bytes),
    })
}

fn device_report(one: &BoundLoop) -> DeviceReport {
    DeviceReport {
        node: one.device.node.to_string_lossy().into_owned(),
        bytes: one.bytes,
        direct_io: one.device.direct_io,
        read_only: one.device.read_only,
        read_ahead_kib: one.read_ahead_kib,
        discards: !one.refuses_discards,
        letting_go: one.device.letting_go,
    }
}

fn source_of<'a>(item: &'a Item<'_>) -> Option<&'a str> {
    match &item.subject {
        Subject::Volume(record) => record.source.as_ref().map(crate::store::Source::as_str),
        Subject::Snapshot(record) => Some(record.volume.as_str()),
    }
}

fn relatives(item: &Item<'_>, all: &[Item<'_>]) -> Vec<RelativeReport> {
    let source = source_of(item);
    let mut found: Vec<RelativeReport> = all
        .iter()
        .filter(|other| other.id() != item.id())
        .filter_map(|other| {
            let relation = if source == Some(other.id()) {
                Relation::Source
            } else if source_of(other) == Some(item.id()) {
                Relation::Copy
            } else if other.family() == item.family() {
                Relation::Family
            } else {
                return None;
            };
            Some(RelativeReport { id: other.id().to_owned(), name: Some(other.name().to_owned()), relation })
        })
        .collect();
    if let Some(source) = source
        && !found.iter().any(|relative| relative.id == source)
    {
        found.insert(0, RelativeReport { id: source.to_owned(), name: None, relation: Relation::Source });
    }
    found
}
