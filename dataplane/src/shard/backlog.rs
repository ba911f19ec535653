//! How many packets without a route a shard takes up while more arrive than it can deal with.

use crate::packet::BURST;

/// A packet without a route costs as much as ten that have one. Where the port's queue fills, whatever comes next finds no room in
/// it, packets of established connections, too. So with each turn for which the shard is behind it asks its classifiers half as
/// often, down to once for each kind: first about what begins a connection, which its client sends again, and when there is no more
/// of that to give up about connections whose routes are lost or on another unit. Their answers wait a little then, too.
#[derive(Debug)]
pub(super) struct Backlog {
    /// What this turn may take up: beginnings, and the rest.
    limits: [usize; 2],
    /// What it has taken up of each.
    taken: [usize; 2],
    behind: bool,
}

impl Default for Backlog {
    fn default() -> Self {
        Self { limits: [usize::MAX; 2], taken: [0; 2], behind: false }
    }
}

impl Backlog {
    /// Notes that one of the ports is [behind](crate::packet::Queue::is_behind).
    pub(super) fn note(&mut self) {
        self.behind = true;
    }

    /// A turn begins.
    pub(super) fn turn(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if std::mem::take(&mut self.behind) {
            let kind = usize::from(taken[BEGINNINGS] <= 1);
            // What it took and not what it might have: that is where less work begins.
            self.limits[kind] = (taken[kind] / 2).max(1);
        } else {
            let [beginnings, rest] = &mut self.limits;
            let limit = if *rest < usize::MAX { rest } else { beginnings };
            *limit = if *limit < UNLIMITED { 2 * *limit } else { usize::MAX };
        }
    }

    /// Whether one more packet without a route is taken up in this turn.
    pub(super) fn allows(&mut self, begins: bool) -> bool {
        let kind = if begins { BEGINNINGS } else { REST };
        let allowed = self.taken[kind] < self.limits[kind];
        self.taken[kind] += usize::from(allowed);
        allowed
    }

    /// How many answers this turn takes from each classifier: more than it asks for while it is behind.
    pub(super) fn answers(&self) -> usize {
        if self.behind { BURST / 4 } else { BURST }
    }
}

const BEGINNINGS: usize = 0;
const REST: usize = 1;
/// More than a turn takes from a port: a limit beyond it is none.
const UNLIMITED: usize = 16 * BURST;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many beginnings and others a turn takes up of a hundred each.
    fn taken(backlog: &mut Backlog, behind: bool) -> (usize, usize) {
        backlog.turn();
        if behind {
            backlog.note();
        }
        let mut count = |begins| (0..100).filter(|_| backlog.allows(begins)).count();
        (count(true), count(false))
    }

    #[test]
    fn beginnings_are_given_up_first_and_one_of_each_kind_never() {
        let mut backlog = Backlog::default();
        assert_eq!(taken(&mut backlog, true), (100, 100));
        let falling: Vec<_> = (0..14).map(|_| taken(&mut backlog, true)).collect();
        let beginnings = [50, 25, 12, 6, 3, 1].map(|taken| (taken, 100));
        let rest = [50, 25, 12, 6, 3, 1].map(|taken| (1, taken));
        assert_eq!(falling, beginnings.into_iter().chain(rest).chain([(1, 1); 2]).collect::<Vec<_>>());
        // As soon as the queue is short again, more is taken up: first of the rest.
        taken(&mut backlog, false);
        let rising: Vec<_> = (0..30).map(|_| taken(&mut backlog, false)).collect();
        assert_eq!(rising[..2], [(1, 2), (1, 4)]);
        assert_eq!(rising[29], (100, 100));
    }

    #[test]
    fn what_nothing_begins_for_is_given_up_at_once() {
        let mut backlog = Backlog::default();
        let mut others = || {
            backlog.turn();
            backlog.note();
            (0..20).filter(|_| backlog.allows(false)).count()
        };
        assert_eq!([(); 5].map(|()| others()), [20, 10, 5, 2, 1]);
    }
}
