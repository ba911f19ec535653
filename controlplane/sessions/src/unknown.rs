//! A bound on what segments of unknown connections may ask: a flood of ACKs must not become a flood of queries.

use std::time::Duration;

use weir_identity::Moment;

/// What may be done about a segment that belongs to no known connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// Ask for its session.
    Ask,
    /// It was asked for a moment ago, and nobody knew it.
    KnownUnknown,
    /// Too many are asking.
    Limited,
}

/// A token bucket for queries, with a small cache of those that found nothing.
///
/// The cache is a fixed array indexed by the key's hash: a newcomer takes the place of an older one. Two keys whose 64-bit hashes
/// are equal share an entry, so the hash should be keyed.
#[derive(Debug)]
pub struct UnknownLimit {
    /// Queries per second.
    rate: u64,
    /// The most thousandths of queries that can be saved up.
    burst: u64,
    /// Thousandths of queries.
    saved: u64,
    filled: Moment,
    remembered_for: Duration,
    /// Hash and until when.
    unknown: Box<[(u64, Moment)]>,
}

impl UnknownLimit {
    /// Allows `rate` queries a second and `burst` at once; remembers up to `entries` that found nothing, each for `remembered_for`.
    #[must_use]
    pub fn new(rate: u32, burst: u32, entries: usize, remembered_for: Duration) -> Self {
        let burst = u64::from(burst) * QUERY;
        UnknownLimit {
            rate: rate.into(),
            burst,
            saved: burst,
            filled: Moment(0),
            remembered_for,
            unknown: vec![(0, Moment(0)); entries.max(1)].into_boxed_slice(),
        }
    }

    /// May this key be asked for now? A query that may be asked is paid for.
    pub fn allow(&mut self, key_hash: u64, now: Moment) -> Allowance {
        let (hash, until) = *self.slot(key_hash);
        if hash == key_hash && until > now {
            return Allowance::KnownUnknown;
        }
        // Queries per second are thousandths per millisecond.
        let earned = now.0.saturating_sub(self.filled.0).saturating_mul(self.rate);
        self.saved = self.saved.saturating_add(earned).min(self.burst);
        self.filled = self.filled.max(now);
        match self.saved.checked_sub(QUERY) {
            Some(left) => {
                self.saved = left;
                Allowance::Ask
            }
            None => Allowance::Limited,
        }
    }

    /// A query found nothing: the same key need not ask again for a while.
    pub fn note_unknown(&mut self, key_hash: u64, now: Moment) {
        *self.slot(key_hash) = (key_hash, now.after(self.remembered_for));
    }

    /// The key has become known.
    pub fn forget(&mut self, key_hash: u64) {
        let slot = self.slot(key_hash);
        if slot.0 == key_hash {
            slot.1 = Moment(0);
        }
    }

    fn slot(&mut self, key_hash: u64) -> &mut (u64, Moment) {
        let entries = u64::try_from(self.unknown.len()).unwrap_or(u64::MAX);
        let index = usize::try_from(key_hash % entries).unwrap_or(0);
        &mut self.unknown[index]
    }
}

/// One query in thousandths.
const QUERY: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_its_rate_and_no_more() {
        let mut limit = UnknownLimit::new(100, 20, 64, Duration::from_secs(1));
        let mut asked = 0;
        for millisecond in 0..10_000u64 {
            for packet in 0..5 {
                asked += u32::from(limit.allow(millisecond * 5 + packet, Moment(millisecond)) == Allowance::Ask);
            }
        }
        assert!((1_015..=1_021).contains(&asked), "{asked}");
    }

    #[test]
    fn nobody_asks_twice_for_the_unknown() {
        let mut limit = UnknownLimit::new(1, 3, 64, Duration::from_millis(500));
        assert_eq!(limit.allow(7, Moment(0)), Allowance::Ask);
        limit.note_unknown(7, Moment(10));
        assert_eq!(limit.allow(7, Moment(509)), Allowance::KnownUnknown);
        assert_eq!(limit.allow(7, Moment(510)), Allowance::Ask);
        limit.note_unknown(7, Moment(510));
        limit.forget(7);
        assert_eq!(limit.allow(7, Moment(511)), Allowance::Ask);
        assert_eq!(limit.allow(7 + 64, Moment(512)), Allowance::Limited);
    }

    #[test]
    fn time_that_goes_back_earns_nothing() {
        let mut limit = UnknownLimit::new(1_000, 1, 1, Duration::ZERO);
        assert_eq!(limit.allow(1, Moment(100)), Allowance::Ask);
        assert_eq!(limit.allow(2, Moment(50)), Allowance::Limited);
        assert_eq!(limit.allow(2, Moment(100)), Allowance::Limited);
        assert_eq!(limit.allow(2, Moment(101)), Allowance::Ask);
    }
}
