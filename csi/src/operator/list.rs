//! What the pools hold.

use super::{
    DamagedReport, GroupReport, OperatorError, Provision, SnapshotReport, VolumeReport,
    picture::Picture,
    survey::{Damaged, Item, Subject, Survey, content_name},
};
use crate::{
    StorageSettings,
    policy::Provisioning,
    store::{GroupRecord, Pool, SnapshotRecord, VolumeRecord},
};

/// Every volume of the pools that can be read.
///
/// # Errors
///
/// What kept it from looking at the kernel. A pool that can't be read is none: [`super::df`] tells of it, and
/// the second half of the answer names it.
pub fn volumes(settings: &StorageSettings) -> Result<(Vec<VolumeReport>, Vec<String>), OperatorError> {
    let picture = Picture::take(settings)?;
    let survey = Survey::take(settings);
    measure(&survey)?;
    let items = survey.items();
    let reports = items.iter().filter_map(|item| Some(volume_report(item, item.volume()?, &picture)));
    Ok((reports.collect(), survey.unread()))
}

/// Every snapshot of the pools that can be read, those in groups included.
///
/// # Errors
///
/// As [`volumes`].
pub fn snapshots(settings: &StorageSettings) -> Result<(Vec<SnapshotReport>, Vec<String>), OperatorError> {
    let survey = Survey::take(settings);
    measure(&survey)?;
    let items = survey.items();
    let reports = items.iter().filter_map(|item| match &item.subject {
        Subject::Snapshot(record) => Some(snapshot_report(item, record)),
        Subject::Volume(_) => None,
    });
    Ok((reports.collect(), survey.unread()))
}

/// Every group of snapshots of the pools that can be read, and the names of those that can't.
#[must_use]
pub fn groups(settings: &StorageSettings) -> (Vec<GroupReport>, Vec<String>) {
    let survey = Survey::take(settings);
    (survey.groups().map(|(pool, record)| group_report(pool, &record)).collect(), survey.unread())
}

/// What is missing in these lists, as its record can't be read.
#[must_use]
pub fn damaged(settings: &StorageSettings) -> Vec<DamagedReport> {
    Survey::take(settings).damaged().iter().map(damaged_report).collect()
}

pub(super) fn damaged_report(one: &Damaged<'_>) -> DamagedReport {
    DamagedReport { id: one.id.clone(), pool: one.pool.settings.name.clone(), reason: one.reason.clone() }
}

/// Has every pool count what its volumes and snapshots take.
pub(super) fn measure(survey: &Survey) -> Result<(), OperatorError> {
    survey.read().try_for_each(|pool| pool.promises().map(drop)).map_err(OperatorError::from)
}

/// Exclusive and shared bytes, where they are known.
fn figures(item: &Item<'_>) -> (Option<u64>, Option<u64>) {
    let figures = item.pool.figures(item.id()).filter(|figures| item.is_image() || *figures != Default::default());
    (figures.map(|figures| figures.exclusive), figures.map(|figures| figures.shared))
}

pub(super) fn volume_report(item: &Item<'_>, record: &VolumeRecord, picture: &Picture) -> VolumeReport {
    let (exclusive_bytes, shared_bytes) = figures(item);
    let node = |one: &&crate::kernel::loop_device::BoundLoop| one.device.node.to_string_lossy().into_owned();
    VolumeReport {
        id: record.id.to_string(),
        name: record.name.clone(),
        pool: item.pool.settings.name.clone(),
        bytes: record.bytes,
        provisioning: match record.provisioning {
            Provisioning::Thin => Provision::Thin,
            Provisioning::Thick => Provision::Thick,
        },
        content: content_name(&record.content),
        exclusive_bytes,
        shared_bytes,
        source: record.source.as_ref().map(|source| source.as_str().to_owned()),
        uses: picture.uses(item),
        devices: picture.loops_of(item).iter().map(node).collect(),
    }
}

pub(super) fn snapshot_report(item: &Item<'_>, record: &SnapshotRecord) -> SnapshotReport {
    let (exclusive_bytes, shared_bytes) = figures(item);
    SnapshotReport {
        id: record.id.to_string(),
        name: record.name.clone(),
        pool: item.pool.settings.name.clone(),
        volume: record.volume.to_string(),
        group: record.group.as_ref().map(ToString::to_string),
        bytes: record.bytes,
        created_at_seconds: record.created / 1_000_000_000,
        content: content_name(&record.content),
        exclusive_bytes,
        shared_bytes,
    }
}

pub(super) fn group_report(pool: &Pool, record: &GroupRecord) -> GroupReport {
    GroupReport {
        id: record.id.to_string(),
        name: record.name.clone(),
        pool: pool.settings.name.clone(),
        created_at_seconds: record.created / 1_000_000_000,
        pause_microseconds: record.pause_microseconds,
        snapshots: record.snapshots.iter().map(ToString::to_string).collect(),
    }
}
