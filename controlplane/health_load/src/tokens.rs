//! The token scheme at the classifier: an allotment of tokens, and the order in which they are consumed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use weir_identity::{EndpointId, Moment};

use crate::desk::{Desk, Ledger};
use crate::handler::{Allotment, Demand, Share, ranks};
use crate::standing::Take;

/// What is left of the latest token allotment of one service.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// The amounts are what is left.
    allotment: Allotment,
    /// What was left of one that became void while somebody else had the handler.
    unsettled: Allotment,
    order: Order,
    rotation: u32,
    /// The place of each share among equals.
    ranks: Vec<usize>,
    /// Who was last when there was no token.
    last: usize,
}

/// Shares with tokens left, by index, whose turn comes as the service says.
#[derive(Debug)]
enum Order {
    /// By tokens left, then by rank.
    Greatest(BinaryHeap<(u32, Reverse<usize>, usize)>),
    /// The one served last goes to the back.
    RoundRobin { queue: VecDeque<usize>, last: usize },
    /// The first one until it is used up.
    Linear(VecDeque<usize>),
}

impl Tokens {
    pub(crate) fn new(take: Take, rotation: u32) -> Self {
        let order = match take {
            Take::Greatest => Order::Greatest(BinaryHeap::new()),
            Take::RoundRobin => Order::RoundRobin { queue: VecDeque::new(), last: usize::MAX },
            Take::Linear => Order::Linear(VecDeque::new()),
        };
        let (allotment, unsettled) = Default::default();
        Tokens { allotment, unsettled, order, rotation, ranks: Vec::new(), last: 0 }
    }

    /// Consumes a token; asks for a new allotment if there is none left or they are too old. While somebody else has the handler, the
    /// endpoints that `fit` take turns.
    pub(crate) fn take(
        &mut self,
        demand: Demand,
        avoid: Option<EndpointId>,
        (desk, ledger, fit): (&Desk, &mut Ledger, &[(EndpointId, u32)]),
        now: Moment,
    ) -> Option<EndpointId> {
        if self.allotment.shares.is_empty() || self.allotment.is_void(now) || self.order.is_empty() {
            let renewed = self.renew(demand, (desk, ledger), now);
            if !renewed {
                return self.without_token(avoid, fit);
            }
        }
        if let Some(endpoint) = self.consume(avoid) {
            return Some(endpoint);
        }
        // Nothing fits, or only what is to be avoided has tokens left.
        let avoid = avoid.filter(|_| !self.allotment.shares.is_empty())?;
        self.renew(demand, (desk, ledger), now);
        self.consume(Some(avoid)).or_else(|| self.without_token(Some(avoid), fit)).or_else(|| self.consume(None))
    }

    /// Gives back what is left; if somebody else has the handler, with the next allotment.
    pub(crate) fn void(&mut self, demand: Demand, desk: &Desk) {
        if let Some(mut handler) = desk.try_lock() {
            handler.settle(demand, &self.allotment);
        } else if !self.allotment.shares.is_empty() {
            std::mem::swap(&mut self.unsettled, &mut self.allotment);
        }
        self.allotment.clear();
        self.order.clear();
    }

    /// False if somebody else has the handler.
    fn renew(&mut self, demand: Demand, (desk, ledger): (&Desk, &mut Ledger), now: Moment) -> bool {
        if !desk.renew(demand, ledger, now, (&mut self.allotment, &mut self.unsettled)) {
            return false;
        }
        self.order.clear();
        let shares = &self.allotment.shares;
        if self.ranks.len() != shares.len() {
            self.ranks = ranks(shares.len(), self.rotation).collect();
        }
        // Ranks count up from the one that is first, and go on from the front behind the last.
        let first = self.ranks.iter().position(|rank| *rank == 0).unwrap_or(0);
        let in_turn = |from: usize| (from..shares.len()).chain(0..from).filter(|i| shares[*i].amount > 0);
        match &mut self.order {
            Order::Greatest(heap) => {
                heap.extend(in_turn(0).map(|i| (shares[i].amount, Reverse(self.ranks[i]), i)));
            }
            Order::RoundRobin { queue, last } => {
                queue.extend(in_turn(if *last < shares.len() { *last + 1 } else { first }));
            }
            Order::Linear(queue) => queue.extend(in_turn(first)),
        }
        true
    }

    /// Takes the next token of an endpoint other than `avoid`.
    fn consume(&mut self, avoid: Option<EndpointId>) -> Option<EndpointId> {
        let shares = &mut self.allotment.shares;
        let avoided = |i: usize, shares: &[Share]| avoid == Some(shares[i].endpoint);
        let i = match &mut self.order {
            Order::Greatest(heap) => {
                let mut kept = heap.pop()?;
                if avoided(kept.2, shares) {
                    let avoided = kept;
                    let next = heap.pop();
                    heap.push(avoided);
                    kept = next?;
                }
                kept.0 -= 1;
                if kept.0 > 0 {
                    heap.push(kept);
                }
                kept.2
            }
            Order::RoundRobin { queue, last } => {
                let at = usize::from(avoided(*queue.front()?, shares));
                let i = queue.remove(at)?;
                if shares[i].amount > 1 {
                    queue.push_back(i);
                }
                *last = i;
                i
            }
            Order::Linear(queue) => {
                let at = usize::from(avoided(*queue.front()?, shares));
                let i = *queue.get(at)?;
                if shares[i].amount == 1 {
                    queue.remove(at);
                }
                i
            }
        };
        shares[i].amount -= 1;
        Some(shares[i].endpoint)
    }

    /// The next endpoint, though it has no token: of the allotment if there is one, else of all that fit.
    fn without_token(&mut self, avoid: Option<EndpointId>, fit: &[(EndpointId, u32)]) -> Option<EndpointId> {
        let shares = &self.allotment.shares;
        let count = if shares.is_empty() { fit.len() } else { shares.len() };
        let endpoint = |i: usize| if shares.is_empty() { fit[i].0 } else { shares[i].endpoint };
        self.last = (1..=count).map(|step| (self.last + step) % count).find(|i| Some(endpoint(*i)) != avoid)?;
        Some(endpoint(self.last))
    }
}

impl Order {
    fn is_empty(&self) -> bool {
        match self {
            Order::Greatest(heap) => heap.is_empty(),
            Order::RoundRobin { queue, .. } | Order::Linear(queue) => queue.is_empty(),
        }
    }

    fn clear(&mut self) {
        match self {
            Order::Greatest(heap) => heap.clear(),
            Order::RoundRobin { queue, .. } | Order::Linear(queue) => queue.clear(),
        }
    }
}
