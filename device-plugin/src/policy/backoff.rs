//! How long to wait before trying again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double from 0.2 s to 30 s, each made shorter by up to half at random, so that many nodes or plugins that
/// fail together don't try together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait; `random` is any number.
    pub(crate) fn next(&mut self, random: u32) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(1.0 - f64::from(random) / f64::from(u32::MAX) / 2.0)
    }

    /// Starts again from the shortest wait.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..10).map(|_| backoff.next(0)).collect();
        assert_eq!(waits[..4], [200, 400, 800, 1600].map(Duration::from_millis));
        assert_eq!(waits[9], LONGEST);
        assert_eq!((0..100).map(|_| backoff.next(0)).max(), Some(LONGEST));
        backoff.reset();
        assert_eq!(backoff.next(0), FIRST);
    }

    #[test]
    fn chance_makes_a_wait_shorter_by_half_at_most() {
        assert_eq!(Backoff::default().next(u32::MAX), FIRST / 2);
        let half = Backoff::default().next(u32::MAX / 2);
        assert!(half > FIRST / 2 && half < FIRST, "{half:?}");
    }
}
