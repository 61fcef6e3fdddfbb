//! The record of one container's placement, as it stands on disk.

use keelson_host::CpuSet;
use serde::{Deserialize, Serialize};

use crate::{
    Mode,
    policy::{Container, Kind, Placement, Recorded},
};

/// The version of the format that this release writes, and the only one there has been.
const VERSION: u32 = 1;

/// A placement with who has it and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    /// The runtime's id of the container; the file has its name.
    pub(crate) container: String,
    name: String,
    pod: PodRecord,
    /// The mode in which it was decided: what was only observed was never told to the runtime.
    mode: Mode,
    placement: PlacementRecord,
    reasons: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodRecord {
    sandbox: String,
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
enum PlacementRecord {
    Exclusive { cpus: CpuSet, mems: CpuSet },
    Shared,
    Untouched,
}

/// Why a file is no record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it is not a record: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has version {0} of the format, and this release reads version {VERSION}")]
    Version(u32),
    #[error("it is the record of container {0:?}")]
    Container(String),
}

impl RecordError {
    /// Whether a newer release wrote it, to which an upgrade may come back.
    pub(crate) fn is_newer(&self) -> bool {
        matches!(self, Self::Version(version) if *version > VERSION)
    }
}

impl Record {
    pub(crate) fn new(container: &Container, placement: &Placement, mode: Mode) -> Self {
        Self {
            version: VERSION,
            container: container.id.clone(),
            name: container.name.clone(),
            pod: PodRecord {
                sandbox: container.pod.sandbox.clone(),
                namespace: container.pod.namespace.clone(),
                name: container.pod.name.clone(),
                uid: container.pod.uid.clone(),
            },
            mode,
            placement: match &placement.kind {
                Kind::Exclusive { cpus, mems } => PlacementRecord::Exclusive { cpus: cpus.clone(), mems: mems.clone() },
                Kind::Shared { .. } => PlacementRecord::Shared,
                Kind::Untouched => PlacementRecord::Untouched,
            },
            reasons: placement.reasons.clone(),
        }
    }

    /// Reads the record of `container`.
    pub(super) fn parse(bytes: &[u8], container: &str) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // The version first: what else a newer format holds is not for this release to judge.
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let record: Self = serde_json::from_slice(bytes)?;
        if record.container != container {
            return Err(RecordError::Container(record.container));
        }
        Ok(record)
    }

    /// What the policy wants to know of it.
    pub(crate) fn recorded(&self) -> Recorded {
        let kind = match &self.placement {
            PlacementRecord::Exclusive { cpus, mems } => Kind::Exclusive { cpus: cpus.clone(), mems: mems.clone() },
            PlacementRecord::Shared => Kind::Shared { managed: false },
            PlacementRecord::Untouched => Kind::Untouched,
        };
        let placement = Placement { kind, reasons: self.reasons.clone() };
        Recorded { placement, enforced: self.mode == Mode::Enforce }
    }

    /// The mode in which it was decided.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }
}
