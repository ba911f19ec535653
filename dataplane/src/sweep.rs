//! How fast tables are swept for what is out of time.

use weir_identity::Moment;

/// How many places of the tables a turn looks at, so that a whole round takes about [`SWEEP_PERIOD`] and no turn takes long.
#[derive(Debug, Default)]
pub(crate) struct SweepPace {
    last: Moment,
    owed: usize,
}

impl SweepPace {
    /// So many of `slots` places are to be looked at now.
    pub(crate) fn due(&mut self, slots: usize, now: Moment) -> usize {
        let elapsed = usize::try_from(now.0.saturating_sub(self.last.0)).unwrap_or(usize::MAX).min(SWEEP_PERIOD);
        self.last = now;
        // Not more than one round is ever owed, or a long sleep would be paid for in one go.
        self.owed = (self.owed + (slots * elapsed).div_ceil(SWEEP_PERIOD)).min(slots);
        let count = self.owed.min(SWEEP_AT_ONCE);
        self.owed -= count;
        count
    }
}

/// Milliseconds for a round through a table.
const SWEEP_PERIOD: usize = 5_000;
const SWEEP_AT_ONCE: usize = 64;
