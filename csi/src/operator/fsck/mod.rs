//! What is wrong with the pools and what they hold. Nothing is repaired.

mod attached;
mod deep;
mod item;
mod pool;

use std::time::Duration;

use serde::Serialize;

use super::{
    Finding, OperatorError, Severity,
    list::measure,
    picture::Picture,
    survey::{Item, Survey},
};
use crate::StorageSettings;

pub(super) use attached::{deleted_loops, is_nobodys};
pub(super) use item::examine;
pub(super) use pool::{driver_uses, is_template, unreadable};

/// What [`fsck`] looks at.
#[derive(Clone, Debug, Default)]
pub struct FsckRequest {
    /// Ids or names: these volumes and snapshots and nothing else. Empty: everything.
    pub selectors: Vec<String>,
    /// Also have each filesystem's own program check what isn't in use.
    pub deep: bool,
    /// How long such a program may take for one image.
    pub deadline: Option<Duration>,
}

/// What [`fsck`] found.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FsckReport {
    /// Everything that is wrong, the errors first.
    pub findings: Vec<Finding>,
    /// Pools that could not be read: of what they hold, nothing is known.
    pub unread_pools: Vec<String>,
    /// How many volumes and snapshots were looked at.
    pub checked: usize,
    /// How many of them their filesystem's own program has checked.
    pub checked_deeply: usize,
}

impl FsckReport {
    /// How many findings are more than notes.
    #[must_use]
    pub fn wrong(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity != Severity::Note).count()
    }
}

/// How long a check of one image may take unless told.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Looks at all that is on disk and in the kernel, and tells what doesn't fit.
///
/// # Errors
///
/// [`OperatorError::NotFound`] for a selector that nothing has, and what kept it from looking.
pub fn fsck(settings: &StorageSettings, request: &FsckRequest) -> Result<FsckReport, OperatorError> {
    let picture = Picture::take(settings)?;
    let survey = Survey::take(settings);
    let all = survey.items();
    for selector in &request.selectors {
        if !all.iter().any(|item| item.is_called(selector)) {
            return Err(OperatorError::NotFound { selector: selector.clone(), pools: survey.unread() });
        }
    }
    let is_chosen =
        |item: &&Item<'_>| request.selectors.is_empty() || request.selectors.iter().any(|name| item.is_called(name));
    let chosen: Vec<&Item<'_>> = all.iter().filter(is_chosen).collect();
    let mut report = FsckReport { checked: chosen.len(), ..FsckReport::default() };
    if request.selectors.is_empty() {
        measure(&survey)?;
        report.unread_pools = survey.unread();
        report.findings.extend(pool::examine(settings, &survey, &picture)?);
        report.findings.extend(attached::examine(settings, &survey, &picture)?);
    }
    report.findings.extend(chosen.iter().flat_map(|item| examine(item, settings, &picture)));
    if request.deep {
        let helper = settings.helper.clone().with_deadline(request.deadline.unwrap_or(DEADLINE));
        for item in &chosen {
            let (finding, checked) = deep::examine(item, settings, &picture, &helper);
            report.findings.extend(finding);
            report.checked_deeply += usize::from(checked);
        }
    }
    report.findings.sort_by(|one, other| (one.severity, &one.place).cmp(&(other.severity, &other.place)));
    Ok(report)
}
