//! Why the plugin could not run, and which gRPC code each refusal has.

use keelson_host::{InspectError, error_chain};
use tonic::Status;

use crate::{kernel::SimulatedError, policy::AllocationError, store::StoreError};

/// Why the plugin could not start or go on.
///
/// A kubelet that is absent, restarts or refuses the plugin is none of these, nor is a device that is missing: that
/// makes the plugin not ready, or the device unhealthy.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] ErrorKind);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ErrorKind {
    #[error("failed to prepare the plugin's directories")]
    Store(#[from] StoreError),
    #[error("failed to read the boot's id")]
    BootId(#[from] InspectError),
}

/// What [`crate::uninstall`] could not remove. The rest is gone.
#[derive(Debug, thiserror::Error)]
#[error("failed to remove what the device plugin left: {}", .0.join("; "))]
pub struct UninstallError(Vec<String>);

impl UninstallError {
    /// `Ok` if every step was.
    pub(crate) fn collect<const N: usize>(steps: [Result<(), UninstallStepError>; N]) -> Result<(), Self> {
        let failed: Vec<String> = steps.into_iter().filter_map(Result::err).map(|error| error_chain(&error)).collect();
        if failed.is_empty() { Ok(()) } else { Err(Self(failed)) }
    }
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) enum UninstallStepError {
    Store(#[from] StoreError),
    Simulated(#[from] SimulatedError),
}

/// The one place that chooses codes. The kubelet shows the message on the Pod and tries no call again, whichever code
/// it has.
impl From<AllocationError> for Status {
    fn from(error: AllocationError) -> Self {
        let message = error.to_string();
        match error {
            AllocationError::Empty(_) | AllocationError::Repeated { .. } => Self::invalid_argument(message),
            AllocationError::Unknown { .. } => Self::not_found(message),
            AllocationError::Unhealthy { .. } | AllocationError::Changed { .. } => Self::failed_precondition(message),
            AllocationError::Deadline { .. } => Self::deadline_exceeded(message),
        }
    }
}
