//! Keeps one resource registered.

use std::{path::Path, time::Duration};

use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    session::{Ended, SessionError, session},
    socket::kubelet_socket,
};
use crate::{conditions::Conditions, error::chain, policy::Backoff, service::Offer};

/// A registration that lasted this long was a good one.
const LASTING: Duration = Duration::from_secs(10);

/// Offers a resource to the kubelet until `shutdown`, registering it again whenever that is needed.
///
/// The first registration waits for the first list, whose CDI file is written by then. `changes` ticks when something
/// in the kubelet's directory may have changed.
pub(crate) async fn offer_until(
    mut offer: Offer,
    directory: &Path,
    mut changes: watch::Receiver<u64>,
    conditions: &Conditions,
    shutdown: &CancellationToken,
) {
    let subject = offer.name.to_string();
    tokio::select! {
        // Its error means that nothing will ever be listed, so there is nothing to offer.
        listed = offer.listing.wait_for(Option::is_some) => if listed.is_err() { return },
        () = shutdown.cancelled() => return,
    }
    let mut backoff = Backoff::default();
    while !shutdown.is_cancelled() {
        changes.mark_unchanged();
        let started = Instant::now();
        let before = kubelet_socket(directory).ok().flatten();
        let registered = || {
            tracing::info!(resource = %subject, "registered with the kubelet");
            conditions.clear(&subject);
        };
        match session(&offer, directory, changes.clone(), shutdown, registered).await {
            Ok(Ended::Stopped) => return,
            Ok(ended) => conditions.set(subject.as_str(), format!("registering again: {ended}")),
            Err(error @ SessionError::Absent(_)) => conditions.set(subject.as_str(), error.to_string()),
            Err(error) => conditions.set(subject.as_str(), chain(&error)),
        }
        if started.elapsed() >= LASTING {
            backoff.reset();
        }
        let (random, _) = Uuid::new_v4().as_u64_pair();
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a random number will do")]
        let pause = time::sleep(backoff.next(random as u32));
        let mut pause = std::pin::pin!(pause);
        // A kubelet that appears meanwhile is registered with at once.
        while kubelet_socket(directory).ok().flatten() == before {
            tokio::select! {
                _ = changes.changed() => {}
                () = &mut pause => break,
                () = shutdown.cancelled() => return,
            }
        }
    }
}
