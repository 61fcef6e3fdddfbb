//! Answers a call when its time is over, whatever it waits for.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tonic::codegen::http::HeaderMap;

use crate::policy::{Bounds, client_timeout};

/// How long the client of a call is kept waiting: as long as it wants to, if that isn't longer than the method's longest.
pub(super) fn patience(headers: &HeaderMap, bounds: Bounds) -> Duration {
    let client = headers.get("grpc-timeout").and_then(|header| header.to_str().ok()).and_then(client_timeout);
    client.map_or(bounds.longest, |client| client.min(bounds.longest))
}

/// What `work` comes to, or `None` at the deadline.
///
/// tonic has a timer of its own for the client's timeout, which answers CANCELLED and is set a moment after this one. It
/// looks at the time only after this has: so at the deadline the clock decides here, and not which timer fired first.
pub(super) async fn until<T>(deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut timer) = (pin!(work), pin!(sleep_until(deadline)));
    poll_fn(|context| {
        if let Poll::Ready(outcome) = work.as_mut().poll(context) {
            return Poll::Ready(Some(outcome));
        }
        if Instant::now() >= deadline {
            return Poll::Ready(None);
        }
        timer.as_mut().poll(context).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::bounds;

    #[test]
    fn the_shorter_of_the_clients_and_the_methods_time_holds() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", value.parse().unwrap());
            patience(&headers, bounds("CreateVolume"))
        };
        assert_eq!(with("15S"), Duration::from_secs(15));
        assert_eq!(with("5H"), Duration::from_secs(300));
        assert_eq!(with("soon"), Duration::from_secs(300));
        assert_eq!(patience(&HeaderMap::new(), bounds("Probe")), Duration::from_secs(10));
    }

    #[tokio::test]
    async fn work_that_is_done_counts_even_at_the_deadline() {
        assert_eq!(until(Instant::now(), std::future::ready(1)).await, Some(1));
        assert_eq!(until(Instant::now(), std::future::pending::<()>()).await, None);
    }
}
