//! The percentage scheme at the classifier: each endpoint's part of all connections, kept smoothly and without chance. Round-robin, too.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;
use weir_identity::{EndpointId, Moment};

use crate::desk::Desk;
use crate::handler::{Allotment, Demand, Share, ranks};

/// A percentage allotment of one service, with the running record of whom it served.
///
/// Stride scheduling: an endpoint's turn comes every 1/weight of the way, and the one whose turn is next is served.
#[derive(Debug)]
pub(crate) struct Percentages {
    allotment: Allotment,
    /// The next allotment, before it is known whether anything changed.
    next: Allotment,
    /// By turn, then by rank: the first is served next.
    turns: BinaryHeap<Reverse<Turn>>,
    rotation: u32,
    /// The standings changed since the turns were made.
    stale: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    /// How far along the way its turn comes.
    at: u64,
    rank: usize,
    /// The way from one turn to the next.
    stride: u64,
    endpoint: EndpointId,
}

impl Percentages {
    pub(crate) fn new(rotation: u32) -> Self {
        Percentages {
            allotment: Allotment::default(),
            next: Allotment::default(),
            turns: BinaryHeap::new(),
            rotation,
            stale: false,
        }
    }

    /// Whose turn it is; asks for a new allotment if this one's lifetime is over.
    pub(crate) fn take(
        &mut self,
        demand: Demand,
        avoid: Option<EndpointId>,
        desk: &Desk,
        now: Moment,
    ) -> Option<EndpointId> {
        if self.allotment.shares.is_empty() || self.allotment.is_void(now) {
            self.renew(demand, desk, now);
        }
        let mut turn = self.turns.pop()?.0;
        if Some(turn.endpoint) == avoid
            && let Some(next) = self.turns.pop()
        {
            self.turns.push(Reverse(turn));
            turn = next.0;
        }
        if turn.at > FAR {
            self.rebase(turn.at);
            turn.at = 0;
        }
        turn.at += turn.stride;
        self.turns.push(Reverse(turn));
        Some(turn.endpoint)
    }

    /// Ends the allotment; the record of whom it served stays.
    pub(crate) fn void(&mut self) {
        self.allotment.clear();
        self.stale = true;
    }

    fn renew(&mut self, demand: Demand, desk: &Desk, now: Moment) {
        desk.lock().grant(demand, now, &mut self.next);
        std::mem::swap(&mut self.next, &mut self.allotment);
        if self.stale || self.next.shares != self.allotment.shares {
            self.stale = false;
            self.rebuild();
        }
    }

    /// Begins with new strides; whoever had gone part of the way to its turn has gone that part of the new way.
    fn rebuild(&mut self) {
        let here = self.turns.peek().map_or(0, |next| next.0.at);
        let left: HashMap<EndpointId, u64> = self
            .turns
            .drain()
            .map(|Reverse(turn)| (turn.endpoint, part(turn.at.saturating_sub(here), WHOLE, turn.stride)))
            .collect();
        let shares = &self.allotment.shares;
        let n = u64::try_from(shares.len()).unwrap_or(u64::MAX);
        let turn = |(Share { endpoint, amount }, rank): (&Share, usize)| {
            let stride = WHOLE / u64::from((*amount).max(1));
            // The first turns are staggered, each classifier beginning elsewhere.
            let after = u64::try_from(rank + 1).unwrap_or(u64::MAX);
            let at = match left.get(endpoint) {
                Some(left) => part(*left, stride, WHOLE),
                None => part(after, stride, n),
            };
            Reverse(Turn { at, rank, stride, endpoint: *endpoint })
        };
        self.turns.extend(shares.iter().zip(ranks(shares.len(), self.rotation)).map(turn));
    }

    /// Lets the way begin at `here`.
    fn rebase(&mut self, here: u64) {
        let mut turns = std::mem::take(&mut self.turns).into_vec();
        for turn in &mut turns {
            turn.0.at = turn.0.at.saturating_sub(here);
        }
        self.turns = turns.into();
    }
}

/// `of * numerator / denominator`.
fn part(of: u64, numerator: u64, denominator: u64) -> u64 {
    let exact = u128::from(of) * u128::from(numerator) / u128::from(denominator.max(1));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

/// The way from one turn to the next at weight 1.
const WHOLE: u64 = 1 << 40;

/// Where the way has to begin anew before it ends.
const FAR: u64 = 1 << 62;
