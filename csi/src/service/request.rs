//! The fields that many requests share.

use keelson_host::Problem;
use keelson_proto::csi::v1::VolumeCapability;

use super::State;
use crate::policy::{Capability, Rejected, TargetPath, names, overlap};

/// A field that must be there and keep to the limit of all strings.
pub(super) fn required<'a>(at: &str, text: &'a str) -> Result<&'a str, Problem> {
    if text.is_empty() {
        return Err(Problem::new(at, "", "is missing", "it is required"));
    }
    names::check_string(text).map_err(|wrong| Problem::new(at, "", wrong, "keep to the limits of the CSI spec"))?;
    Ok(text)
}

/// A staging or target path. What is mounted there must neither hide a pool nor lie in one.
pub(super) fn path(state: &State, at: &str, text: &str) -> Result<TargetPath, Problem> {
    if text.is_empty() {
        return Err(Problem::new(at, "", "is missing", "it is required"));
    }
    let path = TargetPath::try_from(text.to_owned())
        .map_err(|wrong| Problem::new(at, text, wrong, "use an absolute path without \"..\""))?;
    for pool in &state.settings.pools {
        // A directory above the pool may be a link, and a target path has none in it.
        if [&pool.path, &pool.resolved].into_iter().any(|pool| overlap(path.as_path(), pool)) {
            let wrong = format!("is, holds or lies in pool {} at {}", pool.name, pool.path.display());
            return Err(Problem::new(at, text, wrong, "use a path outside of all pools"));
        }
    }
    Ok(path)
}

/// The capability of a stage or publish call.
pub(super) fn capability(capability: Option<&VolumeCapability>) -> Result<Capability, Rejected> {
    Capability::parse("volume_capability", capability)
}
