//! The percentage scheme at the classifier: each endpoint's part of all connections, kept smoothly and without chance. Round-robin, too.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;
use weir_identity::EndpointId;

use crate::handler::ranks;

/// Each endpoint's part of one service's connections, with the running record of whom it served.
///
/// Stride scheduling: an endpoint's turn comes every 1/weight of the way, and the one whose turn is next is served. A changed weight costs
/// the logarithm of the number of endpoints.
#[derive(Debug)]
pub(crate) struct Percentages {
    /// By turn, then by rank: the first is served next. A turn that is not its endpoint's any more is passed over.
    turns: BinaryHeap<Reverse<Turn>>,
    members: HashMap<EndpointId, Turn>,
    rotation: u32,
    /// Endpoints that came later, to stagger them.
    added: u64,
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
        Percentages { turns: BinaryHeap::new(), members: HashMap::new(), rotation, added: 0 }
    }

    /// Whose turn it is.
    pub(crate) fn take(&mut self, avoid: Option<EndpointId>) -> Option<EndpointId> {
        let mut turn = self.next()?;
        if Some(turn.endpoint) == avoid
            && let Some(next) = self.next()
        {
            self.turns.push(Reverse(turn));
            turn = next;
        }
        if turn.at > FAR {
            self.turns.push(Reverse(turn));
            self.rebase(turn.at);
            turn = self.next()?;
        }
        turn.at += turn.stride;
        self.members.insert(turn.endpoint, turn);
        self.turns.push(Reverse(turn));
        Some(turn.endpoint)
    }

    /// Begins with other weights; whoever had gone part of the way to its turn has gone that part of the new way.
    pub(crate) fn rebuild(&mut self, weights: &[(EndpointId, u32)]) {
        let here = self.here();
        let before = std::mem::take(&mut self.members);
        let n = u64::try_from(weights.len()).unwrap_or(u64::MAX);
        let turn = |((endpoint, weight), rank): (&(EndpointId, u32), usize)| {
            let stride = stride(*weight);
            // The first turns are staggered, each classifier beginning elsewhere.
            let after = u64::try_from(rank + 1).unwrap_or(u64::MAX);
            let at = before.get(endpoint).map_or_else(|| part(after, stride, n), |turn| turn.left(here, stride));
            (*endpoint, Turn { at, rank, stride, endpoint: *endpoint })
        };
        self.members = weights.iter().zip(ranks(weights.len(), self.rotation)).map(turn).collect();
        self.refill();
    }

    /// Takes over some changes: a weight, or none for an endpoint that fits no more.
    pub(crate) fn change(&mut self, changes: &[(EndpointId, Option<u32>)]) {
        let here = self.here();
        for (endpoint, weight) in changes {
            let before = self.members.remove(endpoint);
            let Some(weight) = weight else { continue };
            let stride = stride(*weight);
            let (left, rank) = if let Some(turn) = before {
                (turn.left(here, stride), turn.rank)
            } else {
                self.added += 1;
                // Its first turn is anywhere on its way.
                let anywhere = self.added.wrapping_mul(GOLDEN) % WHOLE;
                (part(stride, anywhere, WHOLE), usize::try_from(self.added).unwrap_or(usize::MAX))
            };
            let turn = Turn { at: here.saturating_add(left), rank, stride, endpoint: *endpoint };
            self.members.insert(*endpoint, turn);
            self.turns.push(Reverse(turn));
        }
        if self.turns.len() > 2 * self.members.len() + SPARE {
            self.refill();
        }
    }

    /// The next turn that still is its endpoint's.
    fn next(&mut self) -> Option<Turn> {
        loop {
            let turn = self.turns.pop()?.0;
            if self.members.get(&turn.endpoint) == Some(&turn) {
                return Some(turn);
            }
        }
    }

    /// How far along the way all are.
    fn here(&mut self) -> u64 {
        let next = self.next();
        self.turns.extend(next.map(Reverse));
        next.map_or(0, |turn| turn.at)
    }

    /// Lets the way begin at `here`.
    fn rebase(&mut self, here: u64) {
        self.members.values_mut().for_each(|turn| turn.at = turn.at.saturating_sub(here));
        self.refill();
    }

    fn refill(&mut self) {
        self.turns.clear();
        self.turns.extend(self.members.values().copied().map(Reverse));
    }
}

impl Turn {
    /// What is left of the way to its turn, on a way that becomes another.
    fn left(&self, here: u64, stride: u64) -> u64 {
        part(part(self.at.saturating_sub(here), WHOLE, self.stride), stride, WHOLE)
    }
}

fn stride(weight: u32) -> u64 {
    WHOLE / u64::from(weight.max(1))
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
/// Turns that are nobody's any more and may stay, beside as many as there are endpoints.
const SPARE: usize = 64;
/// The golden section of 2^64: its multiples are far from each other.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn served(scheme: &mut Percentages, endpoints: usize, takes: u32) -> Vec<u32> {
        let mut counts = vec![0; endpoints];
        (0..takes).for_each(|_| counts[scheme.take(None).unwrap().index()] += 1);
        counts
    }

    #[test]
    fn changes_do_what_a_new_beginning_does() {
        let mut scheme = Percentages::new(3);
        scheme.rebuild(&[(EndpointId(0), 10), (EndpointId(1), 20), (EndpointId(2), 30)]);
        assert_eq!(served(&mut scheme, 4, 600), [100, 200, 300, 0]);
        scheme.change(&[(EndpointId(2), None), (EndpointId(0), Some(40)), (EndpointId(3), Some(60))]);
        let counts = served(&mut scheme, 4, 1_200);
        for (count, due) in counts.iter().zip([400u32, 200, 0, 600]) {
            assert!(count.abs_diff(due) <= 1, "{counts:?}");
        }
        // Many changes without a turn leave no more behind than there are endpoints.
        for weight in 1..1_000 {
            scheme.change(&[(EndpointId(0), Some(weight))]);
        }
        assert!(scheme.turns.len() <= 2 * 3 + SPARE);
        scheme.change(&[(EndpointId(0), None), (EndpointId(1), None), (EndpointId(3), None)]);
        assert_eq!(scheme.take(None), None);
    }

    #[test]
    fn the_way_begins_anew_before_it_ends() {
        let mut scheme = Percentages::new(0);
        scheme.rebuild(&[(EndpointId(0), 1), (EndpointId(1), 1)]);
        let far = scheme.members.values().map(|turn| (turn.endpoint, Turn { at: FAR + turn.at, ..*turn })).collect();
        scheme.members = far;
        scheme.refill();
        assert_eq!(served(&mut scheme, 2, 100), [50, 50]);
        assert!(scheme.members.values().all(|turn| turn.at < FAR));
    }
}
