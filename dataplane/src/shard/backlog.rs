//! How many packets without a route, and for kernel twins, a shard takes up while more arrive than it can deal with.

use crate::packet::BURST;

/// A packet without a route costs as much as ten that have one, and one for a twin much more. Where the port's queue fills, whatever
/// comes next finds no room in it, packets of established connections, too. So with each turn for which the shard is behind it takes
/// half as many of them up, down to one of each kind: first of what is for a twin and not urgent there; then of what begins a
/// connection, which its client sends again; and when there is no more of that to give up, of connections whose routes are lost or on
/// another unit. Classifiers' answers wait a little then, too, and most of what the kernel sends.
#[derive(Debug)]
pub(super) struct Backlog {
    /// What this turn may take up of each kind, in the order in which they are given up.
    limits: [usize; KINDS],
    /// What it has taken up of each.
    taken: [usize; KINDS],
    behind: bool,
    /// Turns in a row before this one for which the shard was behind.
    turns: usize,
}

impl Default for Backlog {
    fn default() -> Self {
        Self { limits: [usize::MAX; KINDS], taken: [0; KINDS], behind: false, turns: 0 }
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
            self.turns += 1;
            let kind = taken.iter().position(|taken| *taken > 1).unwrap_or(REST);
            // What it took and not what it might have: that is where less work begins.
            self.limits[kind] = (taken[kind] / 2).max(1);
        } else {
            self.turns = 0;
            if let Some(limit) = self.limits.iter_mut().rev().find(|limit| **limit < usize::MAX) {
                *limit = if *limit < UNLIMITED { 2 * *limit } else { usize::MAX };
            }
        }
    }

    /// Whether one more packet without a route is taken up in this turn.
    pub(super) fn allows(&mut self, begins: bool) -> bool {
        self.takes_up(if begins { BEGINNINGS } else { REST })
    }

    /// Whether one more packet that is not urgent goes to a twin in this turn.
    pub(super) fn allows_twin(&mut self) -> bool {
        self.takes_up(TWINS)
    }

    /// Whether this turn takes what kernels have sent.
    pub(super) fn takes_from_twins(&self) -> bool {
        self.turns.is_multiple_of(SELDOM)
    }

    fn takes_up(&mut self, kind: usize) -> bool {
        let allowed = self.taken[kind] < self.limits[kind];
        self.taken[kind] += usize::from(allowed);
        allowed
    }

    /// How many answers this turn takes from each classifier: more than it asks for while it is behind.
    pub(super) fn answers(&self) -> usize {
        if self.behind { BURST / 4 } else { BURST }
    }
}

const TWINS: usize = 0;
const BEGINNINGS: usize = 1;
const REST: usize = 2;
const KINDS: usize = 3;
/// One of so many turns takes what kernels have sent, while the shard is behind.
const SELDOM: usize = 8;
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
    fn what_is_for_a_twin_is_given_up_before_all_else() {
        let mut backlog = Backlog::default();
        let mut turn = |behind| {
            backlog.turn();
            if behind {
                backlog.note();
            }
            let twins = (0..20).filter(|_| backlog.allows_twin()).count();
            let others = [true, false].map(|begins| (0..20).filter(|_| backlog.allows(begins)).count());
            (twins, others, backlog.takes_from_twins())
        };
        let falling: Vec<_> = (0..10).map(|_| turn(true)).collect();
        let twins: Vec<_> = falling.iter().map(|(twins, ..)| *twins).collect();
        assert_eq!(twins, [20, 10, 5, 2, 1, 1, 1, 1, 1, 1]);
        let beginnings: Vec<_> = falling.iter().map(|(_, [beginnings, _], _)| *beginnings).collect();
        assert_eq!(beginnings, [20, 20, 20, 20, 20, 10, 5, 2, 1, 1]);
        assert_eq!(falling[9].1, [1, 10]);
        let kernels: Vec<_> = falling.iter().map(|(.., kernel)| *kernel).collect();
        assert_eq!(kernels, [true, false, false, false, false, false, false, false, true, false]);
        let last = (0..40).map(|_| turn(false)).last().unwrap();
        assert_eq!(last, (20, [20, 20], true));
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
