//! Who may call, and how many at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, transport::server::UdsConnectInfo};

use crate::policy::Bounds;

/// How many calls may be worked on at once. The kubelet and the sidecars have some dozens; far more is a sign that a
/// disk has stopped answering, and then each further thread would be one more that waits for it.
const MOST_CALLS: usize = 256;

/// Lets calls in.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    slots: Arc<Semaphore>,
    /// The user that may call beside root: the driver's own.
    user: u32,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { slots: Arc::new(Semaphore::new(MOST_CALLS)), user: rustix::process::geteuid().as_raw() }
    }

    /// Checks who is at the other end of the socket. Its mode says the same, once, to who connects; a socket that somebody
    /// opens up, and a connection that is handed on, it doesn't stop.
    pub(super) fn check(&self, peer: Option<&UdsConnectInfo>) -> Result<(), Status> {
        let user = peer.and_then(|peer| peer.peer_cred).map(|credentials| credentials.uid());
        match user {
            Some(user) if user == 0 || user == self.user => Ok(()),
            Some(user) => Err(Status::permission_denied(format!("user {user} is not root"))),
            None => Err(Status::permission_denied("it can't be told which user calls")),
        }
    }

    /// A slot for a call that works on a disk.
    ///
    /// Without one it is UNAVAILABLE: RESOURCE_EXHAUSTED would have the external-provisioner look for another node, as if
    /// this one's pools were full.
    pub(super) fn slot(&self, bounds: Bounds) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if !bounds.works {
            return Ok(None);
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            Status::unavailable(format!("{MOST_CALLS} calls are being worked on already; try again later"))
        })?;
        Ok(Some(slot))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;
    use tonic::{Code, transport::server::Connected};

    use super::*;
    use crate::policy::bounds;

    #[tokio::test]
    async fn root_and_the_drivers_own_user_may_call() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = one.connect_info();
        let user = peer.peer_cred.unwrap().uid();
        let gate = |user| Gate { slots: Arc::new(Semaphore::new(1)), user };
        assert!(gate(user).check(Some(&peer)).is_ok());
        assert_eq!(gate(user + 1).check(Some(&peer)).is_ok(), user == 0);
        assert_eq!(gate(user).check(None).unwrap_err().code(), Code::PermissionDenied);
    }

    #[test]
    fn what_works_on_no_disk_needs_no_slot() {
        let gate = Gate::new();
        let slots: Vec<_> = (0..MOST_CALLS).map(|_| gate.slot(bounds("CreateVolume")).unwrap().unwrap()).collect();
        assert_eq!(gate.slot(bounds("NodeGetVolumeStats")).unwrap_err().code(), Code::Unavailable);
        assert!(gate.slot(bounds("Probe")).unwrap().is_none());
        drop(slots);
        assert!(gate.slot(bounds("CreateVolume")).unwrap().is_some());
    }
}
