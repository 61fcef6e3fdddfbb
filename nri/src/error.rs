//! Why the plugin could not run, and why a call of the runtime could not be answered.

use std::{io, path::PathBuf};

use keelson_host::{InspectError, error_chain};
use keelson_proto::google::rpc::Status;

/// Why the plugin could not start or go on.
///
/// A runtime that is absent, restarts or refuses the plugin is none of these: that makes the plugin not ready, and it
/// tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine's topology could not be read.
    #[error("failed to read this machine's CPU topology")]
    Topology(#[source] InspectError),
    /// The records of placements could not be read, or their directory not be made.
    #[error("failed to {action} {}", path.display())]
    Store {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why a call of the runtime gets an error for an answer. Whatever it is, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{service}/{method} is not implemented")]
    Unimplemented { service: String, method: String },
    #[error("failed to decode {what}")]
    Decode { what: &'static str, source: prost::DecodeError },
    #[error("stream {stream}: {wrong}")]
    Stream { stream: u32, wrong: &'static str },
    #[error("{field}: {value:?} {wrong}")]
    Invalid { field: &'static str, value: String, wrong: String },
    #[error("a message of {length} bytes exceeds the {most} allowed")]
    TooLong { length: usize, most: usize },
}

const MOST_MESSAGE_CHARACTERS: usize = 1000;

/// The gRPC status codes in use (google.rpc.Code).
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const UNIMPLEMENTED: i32 = 12;
}

impl Failure {
    /// The status code that the runtime gets: the one place that chooses it.
    ///
    /// None of them is worth a retry. UNIMPLEMENTED makes a runtime with NRI 0.12 or later fall back to the older
    /// `StateChange`; any other fails the runtime's request, and with it a container's creation.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::Unimplemented { .. } => code::UNIMPLEMENTED,
            Self::Decode { .. } | Self::Stream { .. } | Self::Invalid { .. } => code::INVALID_ARGUMENT,
            Self::TooLong { .. } => code::RESOURCE_EXHAUSTED,
        }
    }

    /// The status that goes on the wire: the chain of causes, cut short where it quotes a peer that floods us.
    pub(crate) fn status(&self) -> Status {
        let message = error_chain(self).chars().take(MOST_MESSAGE_CHARACTERS).collect();
        Status { code: self.code(), message, details: Vec::new() }
    }
}
