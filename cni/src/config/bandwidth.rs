//! Bandwidth: how fast a container may send and receive.

use serde::{Deserialize, Serialize};

/// One direction's limit, a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// Bits per second.
    pub(crate) rate: u64,
    /// Bits that may pass at once.
    pub(crate) burst: u64,
}

/// The limits of one container; at least one of the two is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bandwidth {
    /// What the container receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ingress: Option<Limit>,
    /// What the container sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) egress: Option<Limit>,
}
