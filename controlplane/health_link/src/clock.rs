//! The drivers' clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use weir_health_protocol::Rank;
use weir_identity::{Incarnation, Moment};

/// Time since the driver began, and its name among all lives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    begun: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the drivers' clock")]
    pub(crate) fn new() -> Self {
        Clock { begun: Instant::now() }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn instant(&self, moment: Moment) -> tokio::time::Instant {
        // A millisecond later: what is due at a moment is not due before it is over.
        (self.begun + moment.since_start() + Duration::from_millis(1)).into()
    }
}

/// Now, by the runtime's clock.
pub(crate) fn instant() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A number for this life of a source for a host: its rank, milliseconds since 1970, and chance.
#[must_use]
pub fn new_life(rank: Rank) -> Incarnation {
    use std::hash::{BuildHasher, RandomState};
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let bits = weir_health_protocol::LIFE_BITS;
    let chance = RandomState::new().hash_one(std::process::id()) & ((1 << bits) - 1);
    rank.life(u64::try_from(since.as_millis()).unwrap_or(0) << bits | chance)
}

/// Half of a time to all of it, by chance: what many do should not be done by all at once.
pub(crate) fn some_of(time: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let chance = RandomState::new().hash_one(()) & 0xff;
    time / 2 + time * u32::try_from(chance).unwrap_or(0) / 512
}

/// A driver that could not run for so long drops what has come in the meantime.
pub(crate) const SLEPT: Duration = Duration::from_millis(1_500);
