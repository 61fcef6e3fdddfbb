//! Waiting for a condition instead of sleeping for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Polls `condition` until it gives a value, and returns that.
///
/// # Panics
///
/// With `what` when nothing came within `limit`. The limit is a net for a hung test, not an assertion of speed:
/// make it generous.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// [`wait_until`] for asynchronous tests.
///
/// # Panics
///
/// As [`wait_until`].
pub async fn wait_until_async<T>(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
