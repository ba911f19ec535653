//! Each classifier's allotments, from the handler that all of the unit share, and renewed whenever its standings have changed.

use std::sync::Arc;
use std::task::Poll;

use arc_swap::{ArcSwap, Cache};
use weir_health_load::{Allotments, Health, LocalAllotments, Request, ServiceStanding, SharedHandler};
use weir_identity::{EndpointId, Moment, ServiceId, Ticket};

/// What is known of all services' endpoints; replaced as a whole.
#[derive(Debug, Default)]
pub struct Standings {
    /// Grows with every change.
    pub generation: u64,
    /// One for each service.
    pub services: Vec<ServiceStanding>,
    /// Who grants allotments from them.
    pub handler: SharedHandler,
}

impl Standings {
    /// The standings, which the handler knows from now on.
    #[must_use]
    pub fn new(generation: u64, services: Vec<ServiceStanding>, handler: SharedHandler) -> Self {
        {
            let mut handler = handler.lock();
            services.iter().for_each(|known| {
                handler.update(known);
            });
        }
        Self { generation, services, handler }
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
            self.local.update(&standings.services);
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
        let services = &self.standings.load().services;
        let mut all = services.iter().filter(|standing| standing.service == service).flat_map(|s| &s.standings);
        all.any(|standing| standing.endpoint == endpoint && standing.health != Health::Failing)
    }
}
