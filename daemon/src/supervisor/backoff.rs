//! How long to wait before a plugin's process is started again. Pure.

use std::time::Duration;

/// A process that ran this long was healthy: its next end starts a new row.
const HEALTHY: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Doubles from 200 ms to 30 s with each end in a row, and starts anew after a healthy minute.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    ends_in_a_row: u32,
}

impl Backoff {
    /// How long to wait after a process that ran for `uptime`.
    pub(super) fn after(&mut self, uptime: Duration) -> Duration {
        if uptime >= HEALTHY {
            self.ends_in_a_row = 0;
        }
        let delay = FIRST.saturating_mul(2_u32.saturating_pow(self.ends_in_a_row)).min(LONGEST);
        self.ends_in_a_row = self.ends_in_a_row.saturating_add(1);
        delay
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_to_half_a_minute() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..9).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000]);
    }

    proptest! {
        #[test]
        fn waits_within_bounds_and_forgives_a_healthy_run(uptimes in prop::collection::vec(0_u64..200, 1..100)) {
            let mut backoff = Backoff::default();
            let mut previous = Duration::ZERO;
            for uptime in uptimes.into_iter().map(Duration::from_secs) {
                let delay = backoff.after(uptime);
                prop_assert!((FIRST..=LONGEST).contains(&delay));
                prop_assert!((uptime >= HEALTHY && delay == FIRST) || (uptime < HEALTHY && delay >= previous));
                previous = delay;
            }
        }
    }
}
