//! Where a classifier meets its handler: one of its own, or one that all classifiers of the unit share.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};
use weir_identity::{EndpointId, Moment};

use crate::handler::{Allotment, Demand, Handler};

/// A handler that several classifiers ask. They hold it only while they deal, and never wait for it: while somebody else has it, endpoints
/// take turns.
pub type SharedHandler = Arc<Mutex<Handler>>;

/// The way to a handler.
#[derive(Debug)]
pub(crate) struct Desk {
    handler: SharedHandler,
    /// Somebody else tells the handler what is known.
    pub(crate) shared: bool,
}

/// The connections at a service's endpoints, as one classifier counts them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    counts: HashMap<EndpointId, Count>,
    /// Those with something the handler has not heard of.
    news: Vec<EndpointId>,
}

#[derive(Debug, Default)]
struct Count {
    live: u32,
    began: u32,
    ended: u32,
}

impl Desk {
    pub(crate) fn new(handler: Option<SharedHandler>) -> Desk {
        Desk { shared: handler.is_some(), handler: handler.unwrap_or_default() }
    }

    /// The handler, if it is the classifier's own, so that nobody else can have it.
    pub(crate) fn own(&self) -> Option<MutexGuard<'_, Handler>> {
        (!self.shared).then(|| self.handler.lock())
    }

    /// The handler, unless somebody else has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Handler>> {
        self.handler.try_lock()
    }

    /// Gives back what is left of an allotment and gets another for it; false if somebody else has the handler.
    pub(crate) fn renew(
        &self,
        demand: Demand,
        ledger: &mut Ledger,
        now: Moment,
        (allotment, unsettled): (&mut Allotment, &mut Allotment),
    ) -> bool {
        let soon = (0..TRIES).find_map(|_| {
            std::hint::spin_loop();
            self.try_lock()
        });
        let Some(mut handler) = soon else { return false };
        ledger.tell(&mut handler, demand, now);
        if !unsettled.shares.is_empty() {
            handler.settle(demand, unsettled);
            unsettled.clear();
        }
        handler.settle(demand, allotment);
        handler.grant(demand, now, allotment);
        true
    }
}

impl Ledger {
    /// A connection began; returns how many there are.
    pub(crate) fn begin(&mut self, endpoint: EndpointId) -> u32 {
        let count = self.changed(endpoint);
        count.began += 1;
        count.live += 1;
        count.live
    }

    /// A connection ended; returns how many there are.
    pub(crate) fn end(&mut self, endpoint: EndpointId) -> u32 {
        let count = self.changed(endpoint);
        count.ended += 1;
        count.live = count.live.saturating_sub(1);
        count.live
    }

    /// How many there are at an endpoint.
    pub(crate) fn live(&self, endpoint: EndpointId) -> u32 {
        self.counts.get(&endpoint).map_or(0, |count| count.live)
    }

    /// Tells the handler what it has not heard of.
    pub(crate) fn tell(&mut self, handler: &mut Handler, demand: Demand, now: Moment) {
        for endpoint in self.news.drain(..) {
            if let Some(count) = self.counts.get_mut(&endpoint) {
                handler.count(demand, endpoint, count.began, count.ended, now);
                (count.began, count.ended) = (0, 0);
            }
        }
    }

    fn changed(&mut self, endpoint: EndpointId) -> &mut Count {
        let count = self.counts.entry(endpoint).or_default();
        if (count.began, count.ended) == (0, 0) {
            self.news.push(endpoint);
        }
        count
    }
}

/// How often one looks whether the handler is free: another classifier's grant among a few endpoints takes less than a microsecond.
const TRIES: usize = 32;
