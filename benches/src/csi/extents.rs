//! The file behind a published block volume, and in how many pieces it lies.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::run;

/// How many extents the file behind a block volume has.
pub(super) fn count(volume: &Path) -> Result<u64> {
    let file = backing_file(volume)?;
    let said = run("filefrag", &[file.as_os_str()])?;
    let number = said.trim().rsplit_once(": ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("filefrag said {said:?}"))
}

fn backing_file(volume: &Path) -> Result<PathBuf> {
    let found = fs::metadata(volume)?;
    ensure!(found.file_type().is_block_device(), "{} is no block device", volume.display());
    let number = rustix::fs::minor(found.rdev());
    let path = format!("/sys/block/loop{number}/loop/backing_file");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    Ok(PathBuf::from(text.trim_end()))
}
