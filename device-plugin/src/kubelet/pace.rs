//! How long to wait before a resource is registered again. No clock, no chance of its own.

use std::time::Duration;

use crate::policy::Backoff;

/// Rounds that cost the kubelet little start at least so far apart, whatever ends them so soon.
const APART: Duration = Duration::from_secs(1);

/// The waits between the rounds of one resource.
///
/// Only failures make them longer. While the kubelet is away nothing fails, and a registration that was made starts
/// anew: every second without one, Pods that ask for the devices are rejected for good.
#[derive(Debug, Default)]
pub(super) struct Pace {
    failures: Backoff,
}

impl Pace {
    /// The wait after a round of this length that did not fail: the kubelet is away, or a registration was made and
    /// ended. `random` is any number.
    pub(super) fn again(&mut self, lasted: Duration, random: u32) -> Duration {
        self.failures.reset();
        APART.saturating_sub(lasted) + Backoff::default().next(random)
    }

    /// The wait after a round that failed, longer each time.
    pub(super) fn failed(&mut self, random: u32) -> Duration {
        self.failures.next(random)
    }

    /// Another kubelet has not failed yet.
    pub(super) fn reset(&mut self) {
        self.failures.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest and the shortest wait that chance can make of one.
    const CHANCES: [u32; 2] = [0, u32::MAX];

    #[test]
    fn a_registration_that_lasted_is_made_again_at_once() {
        for random in CHANCES {
            let wait = Pace::default().again(Duration::from_secs(3), random);
            assert!(wait > Duration::ZERO && wait <= Duration::from_millis(200), "{wait:?}");
        }
    }

    /// A kubelet that stayed away long, and then closes every stream as soon as it is open.
    #[test]
    fn an_absent_kubelet_and_closed_streams_do_not_make_the_wait_longer() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            for random in CHANCES {
                let wait = pace.again(Duration::ZERO, random);
                assert!(wait > APART && wait <= Duration::from_millis(1200), "{wait:?}");
            }
        }
    }

    #[test]
    fn a_kubelet_that_refuses_is_asked_less_and_less_until_it_accepts_or_is_another() {
        let mut pace = Pace::default();
        let waits: Vec<Duration> = (0..10).map(|_| pace.failed(0)).collect();
        assert!(waits.is_sorted() && waits[9] == Duration::from_secs(30), "{waits:?}");
        pace.again(Duration::ZERO, 0);
        assert_eq!(pace.failed(0), waits[0]);
        pace.reset();
        assert_eq!(pace.failed(0), waits[0]);
    }
}
