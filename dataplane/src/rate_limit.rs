//! A token bucket in integers: how often the dataplane answers by itself (ICMP errors, resets, echo) and asks others.

use weir_identity::Moment;

/// So many actions a second, and so many at once after a quiet time. One shard owns it: nothing is shared.
///
/// It counts thousandths of a token, and a millisecond brings `rate` of them: exact, however often it is asked, without a
/// division or a float.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBucket {
    /// Tokens a second, and so thousandths of a token a millisecond.
    rate: u64,
    /// The most that it holds, in thousandths of a token.
    full: u64,
    /// What it holds, in thousandths of a token.
    level: u64,
    /// Until when `level` has been brought forward.
    at: Moment,
}

impl TokenBucket {
    /// A full bucket: `rate` tokens a second, at most `burst` at once.
    ///
    /// With a rate of 0 nothing comes after the first `burst`; with a burst of 0 nothing is ever allowed. A burst
    /// of 1 cannot keep the fraction that comes with a token, and stays a little below the rate.
    #[must_use]
    pub fn new(rate: u32, burst: u32, now: Moment) -> Self {
        let full = u64::from(burst) * TOKEN;
        Self { rate: u64::from(rate), full, level: full, at: now }
    }

    /// Takes a token, if there is one.
    ///
    /// A `now` before an earlier one brings nothing and takes nothing back.
    #[inline]
    pub fn allow(&mut self, now: Moment) -> bool {
        if now > self.at {
            let gained = (now.0 - self.at.0).saturating_mul(self.rate);
            self.level = self.level.saturating_add(gained).min(self.full);
            self.at = now;
        }
        match self.level.checked_sub(TOKEN) {
            Some(rest) => {
                self.level = rest;
                true
            }
            None => false,
        }
    }
}

/// A token, in the bucket's unit: the milliseconds of a second.
const TOKEN: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allowed(bucket: &mut TokenBucket, now: u64, asked: usize) -> usize {
        (0..asked).filter(|_| bucket.allow(Moment(now))).count()
    }

    #[test]
    fn the_burst_then_the_rate() {
        let mut bucket = TokenBucket::new(10, 5, Moment(0));
        assert_eq!(allowed(&mut bucket, 0, 20), 5);
        assert_eq!(allowed(&mut bucket, 99, 20), 0);
        assert_eq!(allowed(&mut bucket, 100, 20), 1);
        assert_eq!(allowed(&mut bucket, 399, 20), 2);
        assert_eq!(allowed(&mut bucket, 400, 20), 1, "the fraction was kept");
    }

    #[test]
    fn idling_fills_it_and_no_more() {
        let mut bucket = TokenBucket::new(u32::MAX, 7, Moment(0));
        assert_eq!(allowed(&mut bucket, 0, 20), 7);
        assert_eq!(allowed(&mut bucket, u64::MAX - 1, 20), 7);
        assert_eq!(allowed(&mut bucket, u64::MAX, 20), 7);
        assert_eq!(allowed(&mut bucket, u64::MAX, 20), 0, "time has ended");
        let mut largest = TokenBucket::new(u32::MAX, u32::MAX, Moment(0));
        assert!(largest.allow(Moment(u64::MAX)) && largest.level == largest.full - TOKEN);
    }

    #[test]
    fn a_step_back_in_time_gives_nothing() {
        let mut bucket = TokenBucket::new(1000, 1, Moment(500));
        assert!(bucket.allow(Moment(500)));
        assert!(!bucket.allow(Moment(0)) && !bucket.allow(Moment(500)), "the way back is not counted twice");
        assert!(bucket.allow(Moment(501)));
    }

    #[test]
    fn nothing_means_nothing() {
        assert_eq!(allowed(&mut TokenBucket::new(0, 3, Moment(0)), u64::MAX, 20), 3);
        assert_eq!(allowed(&mut TokenBucket::new(1000, 0, Moment(0)), u64::MAX, 20), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            rate in 0u32..5000, burst in 0u32..50, steps in prop::collection::vec((0u64..50, 0usize..20), 1..200),
        ) {
            let mut bucket = TokenBucket::new(rate, burst, Moment(3));
            let (mut now, mut given) = (3, 0);
            for (step, asked) in steps {
                now += step;
                given += allowed(&mut bucket, now, asked) as u64;
                prop_assert!(given * TOKEN <= u64::from(burst) * TOKEN + u64::from(rate) * (now - 3));
            }
        }

        #[test]
        fn the_rate_is_reached(rate in 1u32..500, seconds in 1u64..20) {
            let mut bucket = TokenBucket::new(rate, 2, Moment(0));
            let given = (0..=seconds * 1000).filter(|now| bucket.allow(Moment(*now))).count() as u64;
            prop_assert_eq!(given, u64::from(rate) * seconds + 2);
        }
    }
}
