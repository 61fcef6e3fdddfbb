//! Removing labs that were kept, and those whose process died.

use anyhow::{Context, Result, ensure};

use crate::{
    layout::Layout,
    sweep::{self, sweep},
};

/// What became of each lab.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Removed, with everything they had in the kernel.
    pub removed: Vec<String>,
    /// Left alone: the process that runs them lives.
    pub in_use: Vec<String>,
    /// What could not be removed, and why. The lab's directory then stays, and another call tries again.
    pub failed: Vec<String>,
}

/// Removes `lab`, called like its directory or by its id alone, or without a name every lab, unless a process runs it.
///
/// # Errors
///
/// When there is no such lab, or the labs can't be listed.
pub fn clean(lab: Option<&str>) -> Result<Cleaned> {
    let mut layouts = Layout::existing()?;
    if let Some(lab) = lab {
        layouts.retain(|layout| layout.mark() == lab || layout.id() == lab);
        ensure!(
            !layouts.is_empty(),
            "there is no lab {lab:?}; a lab is called keelson-lab-012abc, or 012abc for short"
        );
    }
    let mut cleaned = Cleaned::default();
    for layout in layouts {
        match layout.try_lock()? {
            Some(_lock) => match sweep(&layout) {
                Ok(()) => cleaned.removed.push(layout.mark()),
                Err(error) => cleaned.failed.push(format!("{error:#}")),
            },
            None => cleaned.in_use.push(layout.mark()),
        }
    }
    Ok(cleaned)
}

/// What the kernel has of `lab`, whether it runs or is thought to be gone.
///
/// # Errors
///
/// When the name is none of a lab, or the kernel can't be asked.
pub fn traces(lab: &str) -> Result<Vec<String>> {
    let layout = Layout::named(lab).with_context(|| format!("{lab:?} is no name of a lab"))?;
    sweep::leftovers(&layout, None)
}
