//! Typed errors, and the one place that maps them to gRPC codes.

use std::{io, path::PathBuf};

use keelson_host::{Problem, error_chain};
use tonic::{Code, Status};

use crate::{
    kernel::{
        HelperError, KernelError, LoopError, MOUNT_WITH_OPTIONS, SET_OPTION, freeze::FreezeError, reflink::CloneError,
    },
    policy::{InvalidToken, OutOfRange},
    service::{
        CreateError, DeleteError, ExpandError, GroupError, MetadataError, ModifyError, OriginError, Pending,
        PublishError, SnapshotError, StageError, StatsError, VolumeError,
    },
    store::{Lacking, LookupError, RecordError, StoreError, Unavailable},
};

/// Why the driver can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory could not be used.
    #[error("failed to use the state directory: {reason}")]
    State {
        /// What failed there and why.
        reason: String,
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

/// A program that the driver can't do without is not installed.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not installed; install e2fsprogs")]
pub(crate) struct MissingProgram(pub(crate) &'static str);

/// Why a question could not be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    #[error("{0}")]
    Invalid(Problem),
    #[error(transparent)]
    Pending(#[from] Pending),
    #[error(transparent)]
    Token(#[from] InvalidToken),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("a look at pool {pool} did not end: does its disk still answer?")]
    NotResponding { pool: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Problem> for QueryError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

/// Which gRPC code an error is; the CSI spec's tables decide, and this trait is where they are obeyed.
trait Coded: std::error::Error {
    fn code(&self) -> Code;
}

impl Coded for MissingProgram {
    fn code(&self) -> Code {
        // Probe: "the plugin is in an unhealthy state or is missing a dependency".
        Code::FailedPrecondition
    }
}

impl Coded for Unavailable {
    fn code(&self) -> Code {
        Code::Unavailable
    }
}

impl Coded for Pending {
    fn code(&self) -> Code {
        Code::Aborted
    }
}

impl Coded for InvalidToken {
    fn code(&self) -> Code {
        Code::Aborted
    }
}

impl Coded for LookupError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown { .. } => Code::NotFound,
            Self::Unavailable(error) => error.code(),
            // The volume is there, but in no state to be worked on.
            Self::Damaged { .. } => Code::FailedPrecondition,
        }
    }
}

impl Coded for StoreError {
    fn code(&self) -> Code {
        match self {
            Self::Io { source, .. } => code_of_io(source),
            Self::Record(error) => error.code(),
            Self::Unavailable(error) => error.code(),
        }
    }
}

impl Coded for RecordError {
    fn code(&self) -> Code {
        match self {
            Self::Io { source, .. } => code_of_io(source),
            Self::Content { .. } | Self::Version { .. } => Code::FailedPrecondition,
        }
    }
}

/// For files of the driver's own.
fn code_of_io(error: &io::Error) -> Code {
    match error.raw_os_error() {
        // Others may write to the pool's filesystem as well, so it can be full although it was counted.
        Some(libc::ENOSPC | libc::EDQUOT) => Code::ResourceExhausted,
        // The disk is failing; what is on it can't be told.
        Some(libc::EIO | libc::EROFS) => Code::Unavailable,
        _ => Code::Internal,
    }
}

impl Coded for Lacking {
    fn code(&self) -> Code {
        match self {
            Self::Space { .. } => Code::ResourceExhausted,
            Self::Store(error) => error.code(),
        }
    }
}

impl Coded for OutOfRange {
    fn code(&self) -> Code {
        match self {
            // Not well-formed, whatever the driver can do.
            Self::Negative { .. } | Self::Contradiction { .. } => Code::InvalidArgument,
            Self::Limit { .. }
            | Self::Shrink { .. }
            | Self::Source { .. }
            | Self::Growth { .. }
            | Self::TooLarge { .. } => Code::OutOfRange,
        }
    }
}

impl Coded for HelperError {
    fn code(&self) -> Code {
        match self {
            // Nobody knows how it will end.
            Self::Deadline { .. } => Code::DeadlineExceeded,
            // The filesystem knows no such option, or no such value of it: the caller's mistake.
            Self::Step { step, .. } if step == SET_OPTION => Code::InvalidArgument,
            // ENOMEM is what the block layer calls a block beyond the device's end.
            Self::Step { step, errno: Some(libc::EINVAL | libc::ENOMEM), .. } if step == MOUNT_WITH_OPTIONS => {
                Code::InvalidArgument
            }
            Self::Step { errno, .. } => code_of_path(*errno),
            Self::Run { .. } | Self::Exit { .. } => Code::Internal,
        }
    }
}

/// For calls on paths that the caller chose.
fn code_of_path(errno: Option<i32>) -> Code {
    match errno {
        // A link in the path, or a file where a directory should be: never followed, never replaced.
        Some(libc::ELOOP | libc::ENOTDIR | libc::EEXIST | libc::ENAMETOOLONG) => Code::InvalidArgument,
        // In use, not empty, or the directory above isn't there.
        Some(libc::EBUSY | libc::ENOTEMPTY | libc::ENOENT) => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

impl Coded for KernelError {
    fn code(&self) -> Code {
        match self {
            Self::Helper(error) => error.code(),
            Self::Path { source, .. } => code_of_path(source.raw_os_error()),
            Self::Loop(LoopError { source, .. }) => code_of_io(source),
            Self::Mounts(_) => Code::Internal,
        }
    }
}

impl Coded for FreezeError {
    fn code(&self) -> Code {
        match self {
            Self::Helper(error) => error.code(),
            Self::Expired { .. } => Code::DeadlineExceeded,
            Self::Lost => Code::Internal,
        }
    }
}

impl Coded for QueryError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Pending(error) => error.code(),
            Self::Token(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Unavailable(error) => error.code(),
            Self::NotResponding { .. } => Code::Unavailable,
            Self::Store(error) => error.code(),
        }
    }
}

impl Coded for CreateError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Size(error) => error.code(),
            Self::Pending(error) => error.code(),
            Self::Topology { .. } => Code::ResourceExhausted,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Unavailable(error) => error.code(),
            Self::Lacking(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Format(error) => error.code(),
            Self::NotFormatted { .. } | Self::Identity(_) => Code::Internal,
            Self::Origin(error) => error.code(),
            Self::Clone(CloneError::Unsupported { source, .. } | CloneError::Failed { source, .. }) => {
                code_of_io(source)
            }
        }
    }
}

impl Coded for OriginError {
    fn code(&self) -> Code {
        match self {
            Self::Pending(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Kernel(error) => error.code(),
            Self::InUse { .. } => Code::FailedPrecondition,
            Self::NoCopies { .. } => Code::InvalidArgument,
        }
    }
}

impl Coded for SnapshotError {
    fn code(&self) -> Code {
        match self {
            // "The snapshot is part of a group snapshot: INVALID_ARGUMENT".
            Self::Invalid(_) | Self::Member { .. } => Code::InvalidArgument,
            Self::Pending(error) => error.code(),
            Self::Topology { .. } => Code::ResourceExhausted,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Origin(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Unavailable(error) => error.code(),
            Self::Lacking(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}

impl Coded for GroupError {
    fn code(&self) -> Code {
        match self {
            Self::Snapshot(error) => error.code(),
            Self::Kernel(error) => error.code(),
            // "Cannot snapshot multiple volumes together: FAILED_PRECONDITION".
            Self::Apart { .. } | Self::Loose { .. } => Code::FailedPrecondition,
            Self::Freeze(FreezeError::Helper(HelperError::Step { errno: Some(libc::ETIMEDOUT), .. })) => {
                Code::DeadlineExceeded
            }
            Self::Freeze(FreezeError::Helper(error)) => error.code(),
            Self::Freeze(FreezeError::Expired { .. }) => Code::DeadlineExceeded,
            Self::Freeze(FreezeError::Lost) => Code::Aborted,
        }
    }
}

impl Coded for MetadataError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) | Self::Unrelated { .. } => Code::InvalidArgument,
            Self::Origin(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::NotBlock { .. } => Code::FailedPrecondition,
            Self::Offset { .. } => Code::OutOfRange,
            Self::Unavailable(error) => error.code(),
            Self::Stalled { .. } => Code::DeadlineExceeded,
        }
    }
}

impl Coded for DeleteError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Pending(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::InUse { .. } => Code::FailedPrecondition,
            Self::Kernel(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Record(error) => error.code(),
        }
    }
}

impl Coded for VolumeError {
    fn code(&self) -> Code {
        match self {
            Self::Pending(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Kernel(error) => error.code(),
            Self::Unavailable(error) => error.code(),
            Self::Record(error) => error.code(),
            Self::Unusable(_) => Code::InvalidArgument,
            Self::Occupied(_) | Self::LostFilesystem { .. } | Self::WrongSize { .. } | Self::Covered { .. } => {
                Code::FailedPrecondition
            }
            Self::NotThere { .. } | Self::Stacked { .. } => Code::Internal,
        }
    }
}

impl Coded for StageError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Volume(error) => error.code(),
            Self::Different { .. } => Code::AlreadyExists,
            // "Exceeds capabilities: FAILED_PRECONDITION".
            Self::Unsupported(_)
            | Self::Unfit { .. }
            | Self::Elsewhere { .. }
            | Self::NoDirectory { .. }
            | Self::Published { .. } => Code::FailedPrecondition,
        }
    }
}

impl Coded for PublishError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Volume(error) => error.code(),
            Self::Different { .. } => Code::AlreadyExists,
            Self::Unsupported(_)
            | Self::NoStagingPath
            | Self::Unfit { .. }
            | Self::NotStaged { .. }
            | Self::Elsewhere { .. } => Code::FailedPrecondition,
        }
    }
}

impl Coded for StatsError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Volume(error) => error.code(),
            Self::NotThere { .. } => Code::NotFound,
        }
    }
}

impl Coded for ExpandError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Size(error) => error.code(),
            Self::Volume(error) => error.code(),
            Self::NotThere { .. } => Code::NotFound,
            Self::Unfit { .. } | Self::ReadOnly { .. } | Self::Unprivileged { .. } => Code::FailedPrecondition,
            // The table has no other code for a size that can't be had; Kubernetes then lets the claim be made smaller.
            Self::Lacking(Lacking::Space { .. }) => Code::OutOfRange,
            Self::Lacking(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}

impl Coded for ModifyError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Volume(error) => error.code(),
            Self::Lacking(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}

/// `status.message` is for people and `status.details` must be empty (CSI spec, Error Scheme).
macro_rules! into_status {
    ($($error:ty),*) => {
        $(impl From<$error> for Status {
            fn from(error: $error) -> Self {
                Self::new(error.code(), error_chain(&error))
            }
        })*
    };
}

into_status!(
    MissingProgram,
    QueryError,
    CreateError,
    DeleteError,
    SnapshotError,
    GroupError,
    MetadataError,
    StageError,
    PublishError,
    StatsError,
    ExpandError,
    ModifyError
);
