//! A rate limit that several shards share without a lock: what they allow together is bounded, whichever of them receives.

use std::sync::atomic::{AtomicU64, Ordering};

use weir_identity::Moment;

/// So many actions a second, and so many at once after a quiet time, over all who ask.
///
/// It keeps the moment until which the actions so far have used the rate up. Who asks too early only reads that, so a flood of
/// refusals takes no cache line from the other shards.
#[derive(Debug)]
pub struct SharedRate {
    /// Nanoseconds that one action uses up.
    each: u64,
    /// How far ahead of the time the actions may be, in nanoseconds.
    ahead: u64,
    /// Used up until then, in nanoseconds of the unit's clock. All shards read and write.
    used: AtomicU64,
}

impl SharedRate {
    /// `rate` actions a second, at most `burst` at once; each counts as 1 where it is 0.
    #[must_use]
    pub fn new(rate: u32, burst: u32) -> Self {
        let each = SECOND.div_ceil(u64::from(rate.max(1)));
        Self { each, ahead: each * u64::from(burst.max(1) - 1), used: AtomicU64::new(0) }
    }

    /// Whether one more action is allowed, which counts then.
    ///
    /// Shards' clocks may differ by a millisecond: a `now` before another one brings nothing and takes nothing back.
    #[inline]
    pub fn allow(&self, now: Moment) -> bool {
        let now = now.0.saturating_mul(MILLISECOND);
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            if used > now.saturating_add(self.ahead) {
                return false;
            }
            let next = used.max(now).saturating_add(self.each);
            match self.used.compare_exchange_weak(used, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => used = seen,
            }
        }
    }
}

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allowed(rate: &SharedRate, now: u64, asked: usize) -> usize {
        (0..asked).filter(|_| rate.allow(Moment(now))).count()
    }

    #[test]
    fn the_burst_then_the_rate() {
        let rate = SharedRate::new(1000, 5);
        assert_eq!(allowed(&rate, 7, 20), 5);
        assert_eq!(allowed(&rate, 7, 20), 0);
        assert_eq!(allowed(&rate, 8, 20), 1);
        assert_eq!(allowed(&rate, 11, 20), 3);
        assert_eq!(allowed(&rate, 10, 20), 0, "an earlier moment brings nothing");
        assert_eq!(allowed(&rate, 100_000, 20), 5, "a quiet time brings no more than the burst");
    }

    #[test]
    fn a_slow_rate_keeps_its_fractions() {
        let rate = SharedRate::new(3, 1);
        let given = (0..=10_000).filter(|now| rate.allow(Moment(*now))).count();
        assert_eq!(given, 30);
    }

    #[test]
    fn who_asks_together_gets_no_more_together() {
        let rate = SharedRate::new(1000, 100);
        let given: usize = std::thread::scope(|scope| {
            let ask = || (0..1000).map(|now| allowed(&rate, now, 10)).sum::<usize>();
            let shards = [(); 4].map(|()| scope.spawn(ask));
            shards.into_iter().map(|shard| shard.join().unwrap()).sum()
        });
        // All of the first burst, and a second's.
        assert!((1000..=1100).contains(&given), "{given}");
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            rate in 1u32..100_000, burst in 1u32..500, steps in prop::collection::vec((0u64..50, 0usize..2000), 1..50),
        ) {
            let shared = SharedRate::new(rate, burst);
            let (mut now, mut given) = (1000, 0);
            for (step, asked) in steps {
                now += step;
                given += allowed(&shared, now, asked) as u64;
                prop_assert!(given * 1000 <= u64::from(burst) * 1000 + u64::from(rate) * (now - 1000));
            }
        }
    }
}
