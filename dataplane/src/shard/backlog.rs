//! How many packets without a route a shard takes up while more arrive than it can deal with.

use crate::packet::BURST;

/// A packet without a route costs as much as ten that have one. Where the port's queue fills, whatever comes next finds no room in
/// it, packets of established connections, too; so the shard then asks its classifiers less, down to once a turn: first about
/// what begins a connection, which its client sends again, and next about connections whose routes are lost or on another unit.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// 0: as many as come.
    level: u32,
    /// What this turn still takes up: beginnings, and the rest.
    left: [usize; 2],
    behind: bool,
}

impl Backlog {
    /// Notes that one of the ports is [behind](crate::packet::Queue::is_behind).
    pub(super) fn note(&mut self) {
        self.behind = true;
    }

    /// A turn begins.
    pub(super) fn turn(&mut self) {
        self.level = if std::mem::take(&mut self.behind) {
            (self.level + 1).min(2 * STEPS)
        } else {
            self.level.saturating_sub(1)
        };
        self.left = [self.level, self.level.saturating_sub(STEPS)].map(|level| match level {
            0 => usize::MAX,
            level => (BURST >> (level - 1)).max(1),
        });
    }

    /// Whether one more packet without a route is taken up in this turn.
    pub(super) fn allows(&mut self, begins: bool) -> bool {
        let left = &mut self.left[usize::from(!begins)];
        let allowed = *left > 0;
        *left -= usize::from(allowed);
        allowed
    }
}

/// Halvings until one is left of a burst, which is as many as a turn takes back from a classifier.
const STEPS: u32 = BURST.ilog2() + 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many beginnings and others a turn takes up of a thousand.
    fn taken(backlog: &mut Backlog, behind: bool) -> (usize, usize) {
        if behind {
            backlog.note();
        }
        backlog.turn();
        let mut count = |begins| (0..1000).filter(|_| backlog.allows(begins)).count();
        (count(true), count(false))
    }

    #[test]
    fn beginnings_are_given_up_first_and_one_of_each_kind_never() {
        let mut backlog = Backlog::default();
        assert_eq!(taken(&mut backlog, false), (1000, 1000));
        let falling: Vec<_> = (0..14).map(|_| taken(&mut backlog, true)).collect();
        let halves = [32, 16, 8, 4, 2, 1];
        let expected = halves.map(|begin| (begin, 1000)).into_iter().chain(halves.map(|other| (1, other)));
        assert_eq!(falling, expected.chain([(1, 1); 2]).collect::<Vec<_>>());
        // As soon as the queue is short again, more is taken up.
        let rising: Vec<_> = (0..12).map(|_| taken(&mut backlog, false)).collect();
        assert_eq!(rising[..2], [(1, 2), (1, 4)]);
        assert_eq!(rising[11], (1000, 1000));
    }
}
