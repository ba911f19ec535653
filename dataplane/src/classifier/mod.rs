//! The classifier: sees what has no route, decides once per connection, and sends the packet back with its route.
//!
//! It asks its inventory first, so that a retransmitted SYN or a failover's burst never costs two tokens or two endpoints. While an
//! answer is pending, later packets of the flow wait behind the first in a bounded place. It is sans-IO and generic over what
//! stands for a packet: the buffer itself over a ring, a cookie between units.

mod association;
mod binding;
mod inventory;
mod pending;

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use weir_cpu::MapError;
use weir_health_load::{Allotments, Directive, Request};
use weir_identity::{EndpointId, Moment, ServiceId, Ticket};
use weir_sessions::{Binding, SessionKey, SessionLookup};

use self::inventory::Inventory;
use self::pending::{Pending, Waiting};
use crate::counters::ClassifierCounters;
use crate::farm::{Farm, NoEndpoint};
use crate::flow::{FlowHash, Key, protocol};
use crate::plumbing::{Ask, Event, Notice, Question, Refusal, Reply, Verdict};
use crate::populate::Populate;
use crate::route_table::{Action, Route, State};
use crate::sweep::SweepPace;

/// One classifier; a value that one core owns.
pub struct Classifier<H> {
    farm: Arc<Farm>,
    inventory: Inventory,
    pace: SweepPace,
    pending: Pending<H>,
    allotments: Box<dyn Allotments>,
    sessions: Box<dyn SessionLookup>,
    tickets: u64,
    counters: ClassifierCounters,
    /// New connections given to each endpoint, and refused for each service for want of one.
    chosen: Vec<u64>,
    refused: Vec<u64>,
}

/// How much a classifier may remember.
#[derive(Debug, Clone)]
pub struct Settings {
    /// IPv4 sessions in the inventory.
    pub sessions_ipv4: usize,
    /// IPv6 sessions in the inventory.
    pub sessions_ipv6: usize,
    /// Packets that may wait for decisions.
    pub pending: usize,
    /// The unit's hashes.
    pub hash: FlowHash,
}

impl<H> Classifier<H> {
    /// A classifier that spends `allotments` and asks `sessions`.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space for the inventory.
    pub fn new(
        settings: &Settings,
        farm: Arc<Farm>,
        allotments: Box<dyn Allotments>,
        sessions: Box<dyn SessionLookup>,
    ) -> Result<Self, MapError> {
        Ok(Self {
            chosen: vec![0; farm.endpoints.len()],
            refused: vec![0; farm.services.len()],
            farm,
            inventory: Inventory::new(settings.sessions_ipv4, settings.sessions_ipv6, &settings.hash)?,
            pace: SweepPace::default(),
            pending: Pending::new(settings.pending),
            allotments,
            sessions,
            tickets: 0,
            counters: ClassifierCounters::default(),
        })
    }

    /// Takes the inventory's memory now; to be called before the first session.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough.
    pub fn populate(&mut self, populate: &Populate) -> Result<(), MapError> {
        self.inventory.populate(populate)
    }

    /// Address space that the inventory takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.inventory.bytes()
    }

    /// Goes on with a newer farm.
    pub fn set_farm(&mut self, farm: Arc<Farm>) {
        self.chosen.resize(farm.endpoints.len(), 0);
        self.refused.resize(farm.services.len(), 0);
        self.farm = farm;
    }

    /// New connections given to each endpoint, and those refused for each service because no endpoint was fit.
    #[must_use]
    pub fn spread(&self) -> (&[u64], &[u64]) {
        (&self.chosen, &self.refused)
    }

    /// What it has counted.
    #[must_use]
    pub fn counters(&self) -> ClassifierCounters {
        ClassifierCounters { inventory: self.inventory.len() as u64, ..self.counters }
    }

    /// Decides about a packet, at once (by `reply`) or when an answer comes (by [`Classifier::poll`]).
    pub fn ask(&mut self, question: Question<H>, now: Moment, reply: &mut impl FnMut(Reply<H>)) {
        self.decide(question, now, reply);
        self.tell_connections();
    }

    fn decide(&mut self, question: Question<H>, now: Moment, reply: &mut impl FnMut(Reply<H>)) {
        self.counters.questions += 1;
        let question = if self.pending.is_empty() {
            question
        } else {
            match self.pending.join(question) {
                Ok(()) => {
                    self.counters.queued += 1;
                    return;
                }
                Err((true, question)) => return refuse(question, Verdict::Drop(Refusal::PendingFull), reply),
                Err((false, question)) => question,
            }
        };
        let ask = question.ask;
        let destination = ask.key.destination();
        let Some(vip) = self.farm.vip_of(&ask.key) else {
            return refuse(question, Verdict::Drop(Refusal::NoService), reply);
        };
        let Some(service) = self.farm.service(vip, ask.key.protocol(), destination.port()) else {
            self.counters.no_service += 1;
            let known = self.farm.serves_protocol(vip, ask.key.protocol());
            let refusal = if known { Refusal::NoService } else { Refusal::Protocol };
            return refuse(question, Verdict::Drop(refusal), reply);
        };
        let question = match self.answer_from_inventory(question, now, reply) {
            Some(question) => question,
            None => return,
        };
        if let Some(verdict) = self.rejoin(&ask, service, now) {
            return reply(Reply { key: ask.key, verdict, held: question.held });
        }
        let ticket = self.ticket();
        if ask.opens {
            self.allot(ticket, question, service, now, reply);
        } else {
            match self.sessions.query(ticket, &session_key(self.farm.services[service].id, &ask.key), now) {
                Poll::Ready(binding) => self.after_session(binding, question, service, now, reply),
                Poll::Pending => self.wait(ticket, question, service, now, reply),
            }
        }
    }

    /// Takes late answers and ends waits that lasted too long.
    pub fn poll(&mut self, now: Moment, reply: &mut impl FnMut(Reply<H>)) {
        while let Some((ticket, endpoint)) = self.allotments.poll_answer(now) {
            if let Some(waiting) = self.pending.finish(ticket) {
                self.after_late_allotment(endpoint, waiting, now, reply);
            }
        }
        while let Some((ticket, binding)) = self.sessions.poll_answer(now) {
            if let Some(waiting) = self.pending.finish(ticket) {
                self.after_late_session(binding, waiting, now, reply);
            }
        }
        while let Some(waiting) = self.pending.overdue(now) {
            self.release(waiting, reply, |_, _, _| Verdict::Drop(Refusal::PendingFull));
        }
        self.tell_connections();
    }

    /// Hears from a forwarder what happened to a route.
    pub fn notice(&mut self, notice: &Notice, now: Moment) {
        self.counters.notices += 1;
        match notice.event {
            Event::Confirmed => self.inventory.confirm(&notice.key),
            Event::Closing => self.inventory.close(&notice.key),
            Event::Expired => self.inventory.remove(&notice.key),
            Event::Evicted => self.inventory.mark_unrouted(&notice.key, millis(now)),
            Event::Bound(value) => self.inventory.bind(&notice.key, value),
        }
        self.tell_connections();
    }

    /// Asks the processor for the lines of the inventory where a session may be.
    #[inline]
    pub fn prefetch(&self, key: &Key) {
        self.inventory.prefetch(key);
    }

    /// Forgets what is out of time among the inventory's places that are due.
    pub fn sweep(&mut self, now: Moment) {
        let count = self.pace.due(self.inventory.places(), now);
        if count > 0 {
            self.inventory.sweep(count, millis(now), &self.farm.timeouts);
            self.tell_connections();
        }
    }

    /// Tells the allotments which connections began and ended.
    fn tell_connections(&mut self) {
        for (id, began) in self.inventory.news() {
            let Some(endpoint) = self.farm.endpoint(id) else { continue };
            let service = self.farm.services[endpoint.service].id;
            if began {
                self.allotments.began(service, id);
            } else {
                self.allotments.ended(service, id);
            }
        }
    }

    /// Answers from the inventory, or gives the question back.
    fn answer_from_inventory(
        &mut self,
        question: Question<H>,
        now: Moment,
        reply: &mut impl FnMut(Reply<H>),
    ) -> Option<Question<H>> {
        let ask = question.ask;
        let Some(route) = self.inventory.find(&ask.key, millis(now), &self.farm.timeouts) else {
            return Some(question);
        };
        // A SYN repeated while the first one's answer was on its way still calls the route a zombie: the inventory says Opening.
        let zombie = route.state == State::Closing || ask.zombie && route.state == State::Established;
        let reopens = ask.opens && zombie;
        if reopens {
            self.counters.reopened += 1;
            return Some(question);
        }
        if let Action::Send { endpoint, .. } | Action::Local { endpoint } = route.action {
            let usable = self.farm.endpoint(endpoint).is_some_and(|endpoint| endpoint.directive != Directive::Inactive);
            if !usable {
                self.inventory.remove(&ask.key);
                if ask.opens {
                    return Some(question);
                }
                refuse(question, Verdict::Drop(Refusal::Inactive), reply);
                return None;
            }
        }
        self.counters.remembered += 1;
        let state = next_state(route.state, &ask);
        self.inventory.mark_routed(&ask.key, Some(state), millis(now));
        let verdict = Verdict::Install { route: Route { state, ..route }, replace: false };
        reply(Reply { key: ask.key, verdict, held: question.held });
        None
    }

    /// Asks for an endpoint for a new connection.
    fn allot(
        &mut self,
        ticket: Ticket,
        question: Question<H>,
        service: usize,
        now: Moment,
        reply: &mut impl FnMut(Reply<H>),
    ) {
        match self.choose(ticket, None, &question.ask, service, now) {
            Poll::Ready(endpoint) => {
                let verdict = self.after_allotment(endpoint, &question.ask, service, now);
                reply(Reply { key: question.ask.key, verdict, held: question.held });
            }
            Poll::Pending => self.wait(ticket, question, service, now, reply),
        }
    }

    /// Asks for an endpoint other than `avoid`, and for another one as long as its answers could not be told from those to another
    /// connection of the client. After some tries, or if there is no other, it has to do.
    fn choose(
        &mut self,
        ticket: Ticket,
        mut avoid: Option<EndpointId>,
        ask: &Ask,
        service: usize,
        now: Moment,
    ) -> Poll<Option<EndpointId>> {
        let of = self.farm.services[service].id;
        for _ in 0..TRIES {
            let request = Request { ticket, service: of, client: ask.client, avoid };
            match self.allotments.take(request, now) {
                Poll::Ready(Some(id)) if avoid != Some(id) && self.is_ambiguous(id, ask, now) => avoid = Some(id),
                answer => return answer,
            }
        }
        Poll::Ready(avoid)
    }

    /// Whether half-NAT could not tell an endpoint's answers to this connection from those to another one, of the same client port towards
    /// another service whose endpoint is the same socket.
    fn is_ambiguous(&self, mine: EndpointId, ask: &Ask, now: Moment) -> bool {
        let own_port = self.farm.endpoint(mine).and_then(|endpoint| endpoint.port);
        let there = own_port.unwrap_or(ask.key.destination().port());
        self.farm.rivals(mine, there).any(|theirs| self.leads_to(theirs, there, ask, now).unwrap_or(false))
    }

    /// Whether the client's port has a connection to the socket of another service's endpoint already.
    fn leads_to(&self, theirs: EndpointId, there: u16, ask: &Ask, now: Moment) -> Option<bool> {
        let rival = self.farm.endpoint(theirs)?;
        let other = &self.farm.services[rival.service];
        let port = match rival.port {
            Some(_) => *other.ports.first()?.start(), // it has a single one
            None if other.ports.iter().any(|range| range.contains(&there)) => there,
            None => return None,
        };
        let vip = SocketAddr::new(self.farm.vips.get(other.vip as usize)?.address, port);
        let key = Key::new(ask.key.source(), vip, ask.key.protocol())?;
        let route = self.inventory.find(&key, millis(now), &self.farm.timeouts)?;
        Some(matches!(route.action, Action::Send { endpoint, .. } | Action::Local { endpoint } if endpoint == theirs))
    }

    /// The same as at once, when packets have gathered meanwhile.
    fn after_late_allotment(
        &mut self,
        endpoint: Option<EndpointId>,
        waiting: Waiting<H>,
        now: Moment,
        reply: &mut impl FnMut(Reply<H>),
    ) {
        let ask = waiting.ask;
        let avoid = endpoint.filter(|id| self.is_ambiguous(*id, &ask, now));
        if avoid.is_some() {
            return self.allot_late(avoid, waiting, now, reply);
        }
        self.release(waiting, reply, |classifier, ask, service| {
            classifier.after_allotment(endpoint, ask, service, now)
        });
    }

    /// Asks for an endpoint for a connection whose packets have gathered.
    fn allot_late(
        &mut self,
        avoid: Option<EndpointId>,
        waiting: Waiting<H>,
        now: Moment,
        reply: &mut impl FnMut(Reply<H>),
    ) {
        let ticket = self.ticket();
        match self.choose(ticket, avoid, &waiting.ask, waiting.service, now) {
            Poll::Ready(endpoint) => self.release(waiting, reply, |classifier, ask, service| {
                classifier.after_allotment(endpoint, ask, service, now)
            }),
            Poll::Pending => self.pending.wait_on(ticket, waiting, now),
        }
    }

    fn after_allotment(&mut self, endpoint: Option<EndpointId>, ask: &Ask, service: usize, now: Moment) -> Verdict {
        match endpoint {
            Some(id) => {
                self.counters.decided += 1;
                self.chosen.iter_mut().skip(id.index()).take(1).for_each(|count| *count += 1);
                if self.farm.endpoint(id).is_some_and(|endpoint| endpoint.backup) {
                    self.counters.backup += 1;
                }
                self.bind(id, ask, service, now)
            }
            None => {
                self.counters.no_endpoint += 1;
                self.refused[service] += 1;
                match self.farm.services[service].no_endpoint {
                    NoEndpoint::Drop => Verdict::Drop(Refusal::NoEndpoint),
                    NoEndpoint::Reset => Verdict::Reset(Refusal::NoEndpoint),
                }
            }
        }
    }

    /// A connection that is not in the inventory: where the session table says; else, with ports, by consistent hash.
    fn after_session(
        &mut self,
        binding: Option<Binding>,
        question: Question<H>,
        service: usize,
        now: Moment,
        reply: &mut impl FnMut(Reply<H>),
    ) {
        let ask = question.ask;
        if let Some(verdict) = self.recall(binding, &ask, service, now) {
            return reply(Reply { key: ask.key, verdict, held: question.held });
        }
        if ask.key.protocol() != protocol::TCP {
            // Every unknown datagram is a first one.
            let ticket = self.ticket();
            return self.allot(ticket, question, service, now, reply);
        }
        let verdict = self.guess(&ask, service, now);
        reply(Reply { key: ask.key, verdict, held: question.held });
    }

    /// The same, when the answer came late and packets have gathered.
    fn after_late_session(
        &mut self,
        binding: Option<Binding>,
        waiting: Waiting<H>,
        now: Moment,
        reply: &mut impl FnMut(Reply<H>),
    ) {
        let (ask, service) = (waiting.ask, waiting.service);
        if let Some(verdict) = self.recall(binding, &ask, service, now) {
            return self.release(waiting, reply, |_, _, _| verdict);
        }
        if ask.key.protocol() == protocol::TCP {
            return self.release(waiting, reply, |classifier, ask, service| classifier.guess(ask, service, now));
        }
        self.allot_late(None, waiting, now, reply);
    }

    /// What the session table knows, if the farm still has that endpoint.
    fn recall(&mut self, binding: Option<Binding>, ask: &Ask, service: usize, now: Moment) -> Option<Verdict> {
        let Binding { endpoint: wanted, pool, .. } = binding?;
        let (id, endpoint) = self.farm.endpoints_on(service, wanted.host).find(|(_, endpoint)| {
            endpoint.address == wanted.address && endpoint.port.is_none_or(|port| port == wanted.port)
        })?;
        if endpoint.directive == Directive::Inactive {
            // A new connection of the session goes elsewhere, and nothing of an old one anywhere.
            return (ask.key.protocol() == protocol::TCP && !ask.opens).then_some(Verdict::Drop(Refusal::Inactive));
        }
        self.counters.recalled += 1;
        let value = binding::pool_value(pool, id, &self.farm);
        let state = if ask.opens { State::Opening } else { State::Established };
        Some(self.bind_by(id, value, state, ask, service, now))
    }

    /// Where a connection that nobody knows most probably is.
    fn guess(&mut self, ask: &Ask, service: usize, now: Moment) -> Verdict {
        match self.allotments.guess(self.farm.services[service].id, ask.client) {
            Some(endpoint) if ask.closes => {
                // The last word of a connection nobody knows is passed on and not remembered.
                self.counters.guessed += 1;
                Verdict::Once { endpoint, mode: self.farm.services[service].mode }
            }
            Some(endpoint) => {
                self.counters.guessed += 1;
                self.bind(endpoint, ask, service, now)
            }
            None => {
                self.counters.no_endpoint += 1;
                match self.farm.services[service].no_endpoint {
                    // The rest of it dies in the forwarder.
                    NoEndpoint::Drop => {
                        let route = Route { action: Action::Drop, state: State::Refused };
                        Verdict::Install { route, replace: false }
                    }
                    NoEndpoint::Reset => Verdict::Reset(Refusal::NoEndpoint),
                }
            }
        }
    }

    /// Remembers where a flow goes and makes its route. A guessed connection counts as half-open like a new one until it says more:
    /// anybody can make segments up, and what has not been confirmed is the first to give way.
    fn bind(&mut self, endpoint: EndpointId, ask: &Ask, service: usize, now: Moment) -> Verdict {
        self.bind_by(endpoint, 0, State::Opening, ask, service, now)
    }

    /// The same with a value for its route, and the state of a connection.
    fn bind_by(
        &mut self,
        endpoint: EndpointId,
        value: u64,
        state: State,
        ask: &Ask,
        service: usize,
        now: Moment,
    ) -> Verdict {
        let mode = self.farm.services[service].mode;
        let state = if ask.key.protocol() == protocol::TCP { state } else { State::Datagram };
        let local = self.farm.endpoint(endpoint).is_some_and(|endpoint| endpoint.local.is_some());
        let action = if local { Action::Local { endpoint } } else { Action::Send { endpoint, mode, value } };
        let route = Route { action, state };
        if self.inventory.put(&ask.key, route, millis(now)) {
            self.counters.inventory_evicted += 1;
        }
        self.associate(endpoint, ask, service, now);
        Verdict::Install { route, replace: ask.opens }
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        question: Question<H>,
        service: usize,
        now: Moment,
        reply: &mut impl FnMut(Reply<H>),
    ) {
        self.counters.pending += 1;
        if let Err(question) = self.pending.wait(ticket, question, service, now) {
            refuse(question, Verdict::Drop(Refusal::PendingFull), reply);
        }
    }

    /// Decides once and answers all packets that waited; only the first one's install may replace a route.
    fn release(
        &mut self,
        waiting: Waiting<H>,
        reply: &mut impl FnMut(Reply<H>),
        decide: impl FnOnce(&mut Self, &Ask, usize) -> Verdict,
    ) {
        let mut verdict = decide(self, &waiting.ask, waiting.service);
        for held in waiting.held {
            reply(Reply { key: waiting.ask.key, verdict, held });
            if let Verdict::Install { replace, .. } = &mut verdict {
                *replace = false;
            }
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }
}

fn refuse<H>(question: Question<H>, verdict: Verdict, reply: &mut impl FnMut(Reply<H>)) {
    reply(Reply { key: question.ask.key, verdict, held: question.held });
}

/// The state of a remembered session after one more packet.
fn next_state(state: State, ask: &Ask) -> State {
    match state {
        State::Opening if ask.opens => State::Opening,
        State::Opening | State::Established if ask.closes => State::Closing,
        State::Opening => State::Established,
        state => state,
    }
}

/// A connection's name in the session table.
fn session_key(service: ServiceId, key: &Key) -> SessionKey {
    SessionKey::connection(service, key.protocol(), key.source(), key.destination())
}

/// Endpoints that are asked for a connection, at the most.
const TRIES: usize = 4;

/// The tables' clock: milliseconds, wrapping after 49 days.
#[expect(clippy::cast_possible_truncation, reason = "it wraps, and idle times are differences")]
pub(crate) fn millis(now: Moment) -> u32 {
    now.0 as u32
}
