//! Keeps one resource registered.

use std::path::Path;

use keelson_host::error_chain;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{endpoint::Endpoint, pace::Pace, session::session, socket::kubelet_socket};
use crate::{conditions::Conditions, service::Offer};

/// Offers a resource to the kubelet until `shutdown`, registering it again whenever that is needed.
///
/// The first registration waits for the first list, whose CDI file is written by then. `changes` ticks when something
/// in the kubelet's directory may have changed. No socket is left at the end.
pub(crate) async fn offer_until(
    mut offer: Offer,
    directory: &Path,
    changes: watch::Receiver<u64>,
    conditions: &Conditions,
    shutdown: &CancellationToken,
) {
    tokio::select! {
        // Its error means that nothing will ever be listed, so there is nothing to offer.
        listed = offer.listing.wait_for(Option::is_some) => if listed.is_err() { return },
        () = shutdown.cancelled() => return,
    }
    let mut told = None;
    tokio::select! {
        () = keep_registered(&offer, directory, &mut told, changes, conditions) => {}
        () = shutdown.cancelled() => {}
    }
    if let Some(endpoint) = told {
        endpoint.stop().await;
    }
}

/// Registers, for ever. `told` is the endpoint that the kubelet was told last: it answers until another is registered.
async fn keep_registered(
    offer: &Offer,
    directory: &Path,
    told: &mut Option<Endpoint>,
    mut changes: watch::Receiver<u64>,
    conditions: &Conditions,
) {
    let subject = offer.name.to_string();
    let mut pace = Pace::default();
    loop {
        changes.mark_unchanged();
        let started = Instant::now();
        let before = kubelet_socket(directory).ok().flatten();
        let outcome = session(offer, directory, told, changes.clone(), conditions).await;
        let (random, _) = Uuid::new_v4().as_u64_pair();
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a random number will do")]
        let random = random as u32;
        let pause = match outcome {
            Ok(ended) => {
                conditions.set(subject.as_str(), format!("registering again: {ended}"));
                pace.again(started.elapsed(), random)
            }
            Err(error) => {
                conditions.set(subject.as_str(), error_chain(&error));
                if error.is_absence() { pace.again(started.elapsed(), random) } else { pace.failed(random) }
            }
        };
        let pause = time::sleep(pause);
        let mut pause = std::pin::pin!(pause);
        // A kubelet that appears meanwhile is registered with at once.
        loop {
            if kubelet_socket(directory).ok().flatten() != before {
                pace.reset();
                break;
            }
            tokio::select! {
                // The plugin's watch outlives this.
                _ = changes.changed() => {}
                () = &mut pause => break,
            }
        }
    }
}
