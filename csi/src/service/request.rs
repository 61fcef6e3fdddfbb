//! The fields that many requests share.

use keelson_host::Problem;
use keelson_proto::csi::v1::VolumeCapability;

use crate::policy::{Capability, Rejected, TargetPath, names};

/// A field that must be there and keep to the limit of all strings.
pub(super) fn required<'a>(at: &str, text: &'a str) -> Result<&'a str, Problem> {
    if text.is_empty() {
        return Err(Problem::new(at, "", "is missing", "it is required"));
    }
    names::check_string(text).map_err(|wrong| Problem::new(at, "", wrong, "keep to the limits of the CSI spec"))?;
    Ok(text)
}

/// A staging or target path.
pub(super) fn path(at: &str, text: &str) -> Result<TargetPath, Problem> {
    if text.is_empty() {
        return Err(Problem::new(at, "", "is missing", "it is required"));
    }
    TargetPath::try_from(text.to_owned())
        .map_err(|wrong| Problem::new(at, text, wrong, "use an absolute path without \"..\""))
}

/// The capability of a stage or publish call.
pub(super) fn capability(capability: Option<&VolumeCapability>) -> Result<Capability, Rejected> {
    Capability::parse("volume_capability", capability)
}
