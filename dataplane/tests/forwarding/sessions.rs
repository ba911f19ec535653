//! Allotments and a session table that answer when the test says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use weir_dataplane::farm::FarmParts;
use weir_health_load::{Allotments, Health, LocalAllotments, Policy, Request, ServiceStanding, Standing};
use weir_identity::{EndpointId, Moment, ServiceId, Ticket};
use weir_sessions::{Binding, Entry, Full, SessionKey, SessionLookup};

/// How answers are given: at once, or one for each [`Answers::release`].
#[derive(Debug, Default)]
pub(crate) struct Answers {
    asked: AtomicUsize,
    later: AtomicBool,
    released: AtomicUsize,
}

impl Answers {
    /// From now on answers come late, or at once again.
    pub(crate) fn later(&self, later: bool) {
        self.later.store(later, Ordering::Relaxed);
    }

    /// Lets this many late answers go.
    pub(crate) fn release(&self, count: usize) {
        self.released.fetch_add(count, Ordering::Relaxed);
    }

    /// How often anything was asked.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn is_late(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.later.load(Ordering::Relaxed)
    }

    fn next<T>(&self, waiting: &mut VecDeque<T>) -> Option<T> {
        if self.released.load(Ordering::Relaxed) == 0 || waiting.is_empty() {
            return None;
        }
        self.released.fetch_sub(1, Ordering::Relaxed);
        waiting.pop_front()
    }
}

/// Where all classifiers' allotments come from: each `take` spends one token.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) answers: Answers,
    standings: ArcSwap<Vec<ServiceStanding>>,
    generation: AtomicUsize,
}

impl Desk {
    pub(crate) fn new(standings: Vec<ServiceStanding>) -> Self {
        let standings = ArcSwap::from_pointee(standings);
        Self { answers: Answers::default(), standings, generation: AtomicUsize::new(1) }
    }

    pub(crate) fn publish(&self, standings: Vec<ServiceStanding>) {
        self.standings.store(Arc::new(standings));
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is known of a farm's endpoints: all healthy, with equal capacities.
pub(crate) fn standings(parts: &FarmParts) -> Vec<ServiceStanding> {
    let of = |(index, service): (usize, &weir_dataplane::farm::Service)| ServiceStanding {
        service: service.id,
        policy: Policy::default(),
        standings: (0..)
            .zip(&parts.endpoints)
            .filter(|(_, endpoint)| endpoint.service == index)
            .map(|(id, endpoint)| Standing {
                endpoint: EndpointId(id),
                stable: endpoint.stable(),
                capacity: 10,
                load: None,
                directive: endpoint.directive,
                health: Health::Healthy,
                backup: endpoint.backup,
            })
            .collect(),
    };
    parts.services.iter().enumerate().map(of).collect()
}

/// One classifier's allotments.
pub(crate) struct DeskAllotments {
    desk: Arc<Desk>,
    local: LocalAllotments,
    generation: usize,
    waiting: VecDeque<Request>,
}

impl DeskAllotments {
    pub(crate) fn new(number: usize, desk: Arc<Desk>) -> Self {
        Self { desk, local: LocalAllotments::new(number as u32), generation: 0, waiting: VecDeque::new() }
    }

    fn refresh(&mut self) {
        let generation = self.desk.generation.load(Ordering::Relaxed);
        if generation != self.generation {
            self.generation = generation;
            self.local.update(&self.desk.standings.load());
        }
    }
}

impl Allotments for DeskAllotments {
    fn take(&mut self, request: Request, now: Moment) -> Poll<Option<EndpointId>> {
        self.refresh();
        if self.desk.answers.is_late() {
            self.waiting.push_back(request);
            return Poll::Pending;
        }
        self.local.take(request, now)
    }

    fn poll_answer(&mut self, now: Moment) -> Option<(Ticket, Option<EndpointId>)> {
        let request = self.desk.answers.next(&mut self.waiting)?;
        self.refresh();
        match self.local.take(request, now) {
            Poll::Ready(endpoint) => Some((request.ticket, endpoint)),
            Poll::Pending => panic!("local answers are ready"),
        }
    }

    fn guess(&mut self, service: ServiceId, client: u64) -> Option<EndpointId> {
        self.refresh();
        self.local.guess(service, client)
    }
}

/// What the session table knows.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) answers: Answers,
    known: ArcSwap<HashMap<SessionKey, Binding>>,
}

impl Memory {
    pub(crate) fn learn(&self, key: SessionKey, binding: Binding) {
        let mut known = HashMap::clone(&self.known.load());
        known.insert(key, binding);
        self.known.store(Arc::new(known));
    }
}

/// One classifier's view of it.
pub(crate) struct MemorySessions {
    memory: Arc<Memory>,
    waiting: VecDeque<(Ticket, SessionKey)>,
}

impl MemorySessions {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        Self { memory, waiting: VecDeque::new() }
    }
}

impl SessionLookup for MemorySessions {
    fn query(&mut self, ticket: Ticket, key: &SessionKey, _: Moment) -> Poll<Option<Binding>> {
        if self.memory.answers.is_late() {
            self.waiting.push_back((ticket, key.clone()));
            return Poll::Pending;
        }
        Poll::Ready(self.memory.known.load().get(key).copied())
    }

    fn poll_answer(&mut self, _: Moment) -> Option<(Ticket, Option<Binding>)> {
        let (ticket, key) = self.memory.answers.next(&mut self.waiting)?;
        Some((ticket, self.memory.known.load().get(&key).copied()))
    }

    fn add(&mut self, entry: Entry, _: Moment) -> Result<(), Full> {
        self.memory.learn(entry.key, entry.binding);
        Ok(())
    }

    fn delete(&mut self, _: &SessionKey, _: Moment) {}
}
