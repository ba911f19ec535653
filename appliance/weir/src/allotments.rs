//! Each classifier's allotments, from the handler that all of the unit share, and renewed whenever its standings have changed.

use std::sync::Arc;
use std::task::Poll;

use arc_swap::{ArcSwap, Cache};
use weir_health_load::{Allotments, LocalAllotments, Prepared, Request, ServiceStanding, SharedHandler};
use weir_identity::{EndpointId, Moment, ServiceId, Ticket};

/// What is known of all services' endpoints; replaced as a whole, but what did not change in it is shared with the one before.
#[derive(Debug, Default)]
pub struct Standings {
    /// Grows with every change.
    pub generation: u64,
    /// One for each service.
    pub services: Vec<Arc<Prepared>>,
    /// Who grants allotments from them.
    pub handler: SharedHandler,
}

impl Standings {
    /// The standings, which the handler knows from now on.
    #[must_use]
    pub fn new(generation: u64, services: Vec<ServiceStanding>, handler: SharedHandler) -> Self {
        Self { generation: 0, services: Vec::new(), handler }.next(generation, services)
    }

    /// What follows these standings: only services that changed are prepared again, and told to the handler one by one, so that classifiers
    /// find it free between two of them.
    #[must_use]
    pub fn next(&self, generation: u64, services: Vec<ServiceStanding>) -> Self {
        // Services keep their places; one that has another is only prepared once more.
        let before = self.services.iter().map(Some).chain(std::iter::repeat(None));
        let services: Vec<_> =
            services.into_iter().zip(before).map(|(known, before)| Prepared::new(known, before)).collect();
        for (place, prepared) in services.iter().enumerate() {
            if !self.services.get(place).is_some_and(|before| Arc::ptr_eq(before, prepared)) {
                self.handler.lock().update(prepared.known());
            }
        }
        Self { generation, services, handler: Arc::clone(&self.handler) }
    }
}

/// Allotments that follow the unit's [`Standings`].
pub struct UnitAllotments {
    local: LocalAllotments,
    standings: Cache<Arc<ArcSwap<Standings>>, Arc<Standings>>,
    generation: u64,
}

impl UnitAllotments {
    /// The allotments of classifier number `rotation`.
    #[must_use]
    pub fn new(rotation: u32, standings: Arc<ArcSwap<Standings>>) -> Self {
        let handler = Arc::clone(&standings.load().handler);
        Self {
            local: LocalAllotments::sharing(rotation, handler),
            standings: Cache::new(standings),
            generation: u64::MAX,
        }
    }

    fn refresh(&mut self) {
        let standings = self.standings.load();
        if standings.generation != self.generation {
            self.generation = standings.generation;
            self.local.follow(&standings.services);
        }
    }
}

impl Allotments for UnitAllotments {
    fn take(&mut self, request: Request, now: Moment) -> Poll<Option<EndpointId>> {
        self.refresh();
        self.local.take(request, now)
    }

    fn poll_answer(&mut self, now: Moment) -> Option<(Ticket, Option<EndpointId>)> {
        self.local.poll_answer(now)
    }

    fn guess(&mut self, service: ServiceId, client: u64) -> Option<EndpointId> {
        self.refresh();
        self.local.guess(service, client)
    }

    fn began(&mut self, service: ServiceId, endpoint: EndpointId) {
        self.local.began(service, endpoint);
    }

    fn ended(&mut self, service: ServiceId, endpoint: EndpointId) {
        self.local.ended(service, endpoint);
    }

    fn is_fit(&mut self, service: ServiceId, endpoint: EndpointId) -> bool {
        self.refresh();
        self.local.is_well(service, endpoint)
    }
}
