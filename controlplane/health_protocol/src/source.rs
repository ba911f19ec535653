//! Who speaks for a host where several could: its own agent, and proxies that watch it from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_identity::{HostId, Incarnation, Moment, UnitId};

use crate::message::Beat;
use crate::refusal::Refusal;
use crate::unit::Origin;

/// How good a source is: 0 is the best, and the host's own agent; 3 the worst.
///
/// Each source has a rank, which is part of its life's number: so a life of a better rank is a later one, and units need not be told
/// more. All sources keep their own tables and heartbeats; a unit believes one of them at a time:
///
/// - One that counts keeps counting until it has been silent for the age-out. Then the best of those that are heard takes its place, and
///   the host is live throughout.
/// - A better one that is (again) heard takes the place only after it was heard without a gap for twice the age-out: so one that comes and
///   goes changes nothing. Where the host is not live there is nothing to be kept quiet, and it does so at once.
/// - A goodbye is the host's, whoever said it: nobody of a worse rank takes the place of a host that is gone.
///
/// Units pass on the heartbeats of sources that do not count, too: all units come to the same choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rank(u8);

impl Rank {
    /// A rank from 0 to [`Rank::WORST`].
    #[must_use]
    pub const fn new(rank: u8) -> Option<Rank> {
        if rank <= Rank::WORST { Some(Rank(rank)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The rank that a life has in its two highest bits: 3 there is rank 0.
    #[must_use]
    pub fn of(life: Incarnation) -> Rank {
        let highest = u8::try_from(life.0 >> RANK_SHIFT).unwrap_or(0);
        Rank(Rank::WORST - highest)
    }

    /// A life's number with this rank in it.
    #[must_use]
    pub fn life(self, life: u64) -> Incarnation {
        Incarnation(life & ((1 << RANK_SHIFT) - 1) | u64::from(Rank::WORST - self.0) << RANK_SHIFT)
    }

    /// The worst one.
    pub const WORST: u8 = 3;
}

/// What is known of a host's sources that do not count now.
#[derive(Debug, Default)]
pub(crate) struct Others(BTreeMap<Rank, Other>);

/// A source that does not count now.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) incarnation: Incarnation,
    pub(crate) sequence: u64,
    pub(crate) interval_ms: u16,
    pub(crate) vouched: Vouched,
    /// Its latest heartbeat; none since its goodbye.
    pub(crate) heard: Option<Moment>,
    /// Since when there was no gap between its heartbeats.
    pub(crate) steady: Moment,
    /// It speaks to this unit itself.
    pub(crate) direct: bool,
    /// The unit that last passed on what it said.
    pub(crate) through: Option<UnitId>,
}

/// The counter of the latest heartbeat that each leader vouched for: what one says is measured by its own words only.
#[derive(Debug, Default)]
pub(crate) struct Vouched(Vec<(HostId, u64)>);

impl Vouched {
    pub(crate) fn latest(&self, voucher: HostId) -> u64 {
        self.0.iter().find(|(known, _)| *known == voucher).map_or(0, |(_, sequence)| *sequence)
    }

    pub(crate) fn note(&mut self, voucher: HostId, sequence: u64) {
        self.0.retain(|(known, _)| *known != voucher);
        if self.0.len() >= VOUCHERS_MAX {
            self.0.remove(0);
        }
        self.0.push((voucher, sequence));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Others {
    /// Takes a heartbeat; for how long it has been heard without a gap.
    pub(crate) fn hear(&mut self, origin: Origin<'_>, beat: &Beat, now: Moment) -> Result<Duration, Refusal> {
        let (host, said, interval_ms) = (beat.host, beat.incarnation, beat.interval_ms);
        let other = self.0.entry(Rank::of(said)).or_insert(Other {
            incarnation: said,
            sequence: 0,
            interval_ms,
            vouched: Vouched::default(),
            heard: None,
            steady: now,
            direct: false,
            through: None,
        });
        if said < other.incarnation {
            return Err(Refusal::Stale { host, said, known: other.incarnation });
        }
        if said == other.incarnation && beat.sequence <= other.sequence {
            return Err(Refusal::Replayed { host, sequence: beat.sequence, known: other.sequence });
        }
        let steady = if other.is_heard(now) { other.steady } else { now };
        if said > other.incarnation {
            other.vouched.clear();
        }
        (other.incarnation, other.sequence, other.interval_ms) = (said, beat.sequence, interval_ms);
        (other.heard, other.steady) = (Some(now), steady);
        match origin {
            Origin::Host(_) => other.direct = true,
            Origin::Unit(unit) => other.through = Some(unit),
        }
        Ok(now.since(steady))
    }

    /// A leader says that one lives. It has to be known from its own word; for how long it has been heard without a gap.
    pub(crate) fn vouch(&mut self, voucher: HostId, beat: &Beat, now: Moment) -> Result<Duration, Refusal> {
        let (host, said) = (beat.host, beat.incarnation);
        let known = self.0.get_mut(&Rank::of(said)).filter(|other| other.incarnation == said);
        let Some(other) = known.filter(|other| other.heard.is_some()) else { return Err(Refusal::Outranked(host)) };
        let latest = other.sequence.max(other.vouched.latest(voucher));
        if beat.sequence <= latest {
            return Err(Refusal::Replayed { host, sequence: beat.sequence, known: latest });
        }
        other.vouched.note(voucher, beat.sequence);
        (other.steady, other.heard) = (if other.is_heard(now) { other.steady } else { now }, Some(now));
        Ok(now.since(other.steady))
    }

    /// One says goodbye.
    pub(crate) fn leave(&mut self, incarnation: Incarnation, sequence: u64) {
        if let Some(other) = self.0.get_mut(&Rank::of(incarnation)).filter(|other| other.incarnation == incarnation)
            && sequence > other.sequence
        {
            (other.sequence, other.heard) = (sequence, None);
        }
    }

    /// One does not count any more.
    pub(crate) fn put(&mut self, other: Other) {
        self.0.insert(Rank::of(other.incarnation), other);
    }

    /// One counts from now on.
    pub(crate) fn take(&mut self, rank: Rank) -> Option<Other> {
        self.0.remove(&rank)
    }

    /// The best that is heard.
    pub(crate) fn best(&self, now: Moment) -> Option<Rank> {
        self.0.iter().find(|(_, other)| other.is_heard(now)).map(|(rank, _)| *rank)
    }
}

impl Other {
    fn is_heard(&self, now: Moment) -> bool {
        self.heard.is_some_and(|heard| now.since(heard) < age_out(Duration::from_millis(self.interval_ms.into())))
    }
}

/// After so long without a heartbeat a source is silent: three are missing, and the last is late.
pub(crate) fn age_out(interval: Duration) -> Duration {
    interval * 7 / 2
}

/// A better source that comes back counts after it was heard for so many age-outs without a gap.
pub(crate) const RETURNS_AFTER: u32 = 2;

/// So many leaders' words are remembered.
const VOUCHERS_MAX: usize = 64;

const RANK_SHIFT: u32 = 62;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_life_of_a_better_rank_is_a_later_one(a in 0..=Rank::WORST, b in 0..=Rank::WORST, x: u64, y: u64) {
            let (a, b) = (Rank::new(a).unwrap(), Rank::new(b).unwrap());
            prop_assert_eq!(Rank::of(a.life(x)), a);
            prop_assert!(a >= b || a.life(x) > b.life(y));
            prop_assert!(a != b || (a.life(x) > b.life(y)) == (x << 2 > y << 2));
        }
    }

    #[test]
    fn there_are_four_ranks() {
        assert_eq!(Rank::new(4), None);
        assert_eq!(Rank::of(Incarnation(1)).number(), 3);
    }
}
