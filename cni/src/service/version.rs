//! VERSION: which versions of the spec this plugin speaks.

use serde_json::{Value, json};

use crate::{
    config::{network::stated_version, version::SpecVersion},
    error::Failure,
};

/// Answers with the caller's own `cniVersion`, known or not, as the spec asks.
pub(super) fn version(config: &[u8]) -> Result<Value, Failure> {
    let stated = if config.trim_ascii().is_empty() { None } else { stated_version(config)? };
    let supported: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    Ok(json!({
        "cniVersion": stated.unwrap_or_else(|| SpecVersion::NEWEST.to_string()),
        "supportedVersions": supported,
    }))
}
