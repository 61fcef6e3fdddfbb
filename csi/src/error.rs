//! Typed errors, and the one place that maps them to gRPC codes.

use std::{io, path::PathBuf};

/// Why the driver can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory of the driver's own could not be made.
    #[error("failed to create {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket could not be bound.
    #[error("failed to listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The gRPC server failed.
    #[error("failed to serve on {}", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}
