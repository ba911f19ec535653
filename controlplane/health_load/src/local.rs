//! Allotments within one classifier: a handler beside it, so that every answer comes at once.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hashbrown::HashMap;
use weir_identity::{EndpointId, Moment, ServiceId, Ticket};

use crate::allotment::{Allotments, Request};
use crate::desk::{Desk, Ledger, SharedHandler};
use crate::handler::Demand;
use crate::least_connection::LeastConnection;
use crate::percentages::Percentages;
use crate::prepared::Prepared;
use crate::standing::{Policy, Select, ServiceStanding};
use crate::tokens::Tokens;

/// One classifier's allotments, granted by a [`Handler`](crate::Handler) of its own or one that the unit's classifiers share.
///
/// Taking allocates nothing once an allotment of each size has been seen (but for least-connection's tree), and costs at most the logarithm
/// of the number of endpoints.
#[derive(Debug)]
pub struct LocalAllotments {
    rotation: u32,
    desk: Desk,
    books: HashMap<ServiceId, Book>,
    /// Counts updates, to find the services that are no more.
    round: u64,
    /// When the handler was told of connections, and whether there are new ones.
    told: Moment,
    news: bool,
}

/// What a classifier keeps of one service.
#[derive(Debug)]
struct Book {
    prepared: Arc<Prepared>,
    scheme: Scheme,
    ledger: Ledger,
    round: u64,
}

#[derive(Debug)]
enum Scheme {
    Tokens(Tokens),
    /// Round-robin as well: its parts do not change with the load.
    Percentages(Percentages),
    LeastConnection(LeastConnection),
    /// All is prepared.
    Hash,
}

impl LocalAllotments {
    /// Allotments of the classifier number `rotation`: each classifier (of all units) should have its own.
    #[must_use]
    pub fn new(rotation: u32) -> Self {
        Self::with(rotation, None)
    }

    /// The same from a handler that others ask, too, and that is told by somebody else what is known: before [`LocalAllotments::update`].
    #[must_use]
    pub fn sharing(rotation: u32, handler: SharedHandler) -> Self {
        Self::with(rotation, Some(handler))
    }

    fn with(rotation: u32, handler: Option<SharedHandler>) -> Self {
        let desk = Desk::new(handler);
        LocalAllotments { rotation, desk, books: HashMap::new(), round: 0, told: Moment(0), news: false }
    }

    /// Takes what is now known of all services; a service that is not among them is forgotten.
    ///
    /// A change in what fits, in a weight or in the policy voids the service's allotment: an endpoint that is no longer fit loses its
    /// tokens at once, one that has become fit gets some with the next grant. Other services keep what they have left. Load alone voids no
    /// tokens: there are never more than what was free.
    pub fn update(&mut self, services: &[ServiceStanding]) {
        let prepare = |known: &ServiceStanding| {
            Prepared::new(known.clone(), self.books.get(&known.service).map(|book| &book.prepared))
        };
        let services: Vec<_> = services.iter().map(prepare).collect();
        self.follow(&services);
    }

    /// The same with what somebody else has prepared, which costs little: for an endpoint that changed the logarithm of their number. Only a
    /// service that is new, or of which a change was missed, is taken over endpoint by endpoint.
    pub fn follow(&mut self, services: &[Arc<Prepared>]) {
        self.round += 1;
        for prepared in services {
            self.follow_service(prepared);
        }
        self.books.retain(|service, book| {
            let stays = book.round == self.round;
            if !stays && let Some(mut handler) = self.desk.own() {
                handler.remove(*service);
            }
            stays
        });
    }

    /// Whether an endpoint is one of the service's, and is not failing.
    #[must_use]
    pub fn is_well(&self, service: ServiceId, endpoint: EndpointId) -> bool {
        self.books.get(&service).is_some_and(|book| book.prepared.is_well(endpoint))
    }

    fn follow_service(&mut self, prepared: &Arc<Prepared>) {
        let known = prepared.known();
        let (rotation, demand) = (self.rotation, self.demand(known.service));
        let mut is_new = false;
        let book = self.books.entry(known.service).or_insert_with(|| {
            is_new = true;
            let (prepared, scheme) = (Arc::clone(prepared), Scheme::new(&known.policy, rotation));
            Book { prepared, scheme, ledger: Ledger::default(), round: 0 }
        });
        book.round = self.round;
        if Arc::ptr_eq(&book.prepared, prepared) && !is_new {
            return;
        }
        let before = std::mem::replace(&mut book.prepared, Arc::clone(prepared));
        let voids = is_new || before.revision() != prepared.revision();
        // What is left has to be given back under the standings it was granted by; a change that does not concern it leaves it.
        if let (Scheme::Tokens(tokens), true) = (&mut book.scheme, voids) {
            tokens.void(demand, &self.desk);
        }
        if let Some(mut handler) = self.desk.own() {
            handler.update(known);
        }
        if !voids {
            return;
        }
        let policies = (&before.known().policy, &known.policy);
        if (policies.0.select, policies.0.take) != (policies.1.select, policies.1.take) {
            book.scheme = Scheme::new(policies.1, rotation);
            is_new = true;
        }
        let changes = prepared.changes_since(before.revision()).filter(|_| !is_new);
        match (&mut book.scheme, changes) {
            (Scheme::Tokens(_) | Scheme::Hash, _) => {}
            (Scheme::Percentages(percentages), None) => percentages.rebuild(prepared.fit()),
            (Scheme::Percentages(percentages), Some(changes)) => percentages.change(changes),
            (Scheme::LeastConnection(least), None) => least.rebuild(prepared.fit(), &book.ledger, rotation),
            (Scheme::LeastConnection(least), Some(changes)) => least.change(changes, &book.ledger),
        }
    }

    fn demand(&self, service: ServiceId) -> Demand {
        Demand { service, tokens: 0, rotation: self.rotation }
    }

    /// Tells the handler of connections that began and ended; if it is busy, another time.
    fn tell(&mut self, now: Moment) {
        let Some(mut handler) = self.desk.try_lock() else { return };
        for (service, book) in &mut self.books {
            let demand = Demand { service: *service, tokens: 0, rotation: self.rotation };
            book.ledger.tell(&mut handler, demand, now);
        }
        (self.told, self.news) = (now, false);
    }
}

impl Allotments for LocalAllotments {
    fn take(&mut self, request: Request, now: Moment) -> Poll<Option<EndpointId>> {
        let demand = self.demand(request.service);
        let Some(book) = self.books.get_mut(&request.service) else { return Poll::Ready(None) };
        let Book { prepared, scheme, ledger, .. } = book;
        Poll::Ready(match scheme {
            Scheme::Tokens(tokens) => tokens.take(demand, request.avoid, (&self.desk, ledger, prepared.fit()), now),
            Scheme::Percentages(percentages) => percentages.take(request.avoid),
            Scheme::LeastConnection(least) => least.take(request.avoid),
            Scheme::Hash => prepared.hashed().and_then(|table| match request.avoid {
                Some(avoid) => table.lookup_avoiding(request.client, avoid),
                None => table.lookup(request.client),
            }),
        })
    }

    fn poll_answer(&mut self, now: Moment) -> Option<(Ticket, Option<EndpointId>)> {
        if self.news && now.since(self.told) >= TOLD_EVERY {
            self.tell(now);
        }
        None
    }

    fn guess(&mut self, service: ServiceId, client: u64) -> Option<EndpointId> {
        self.books.get(&service)?.prepared.existing().lookup(client)
    }

    fn began(&mut self, service: ServiceId, endpoint: EndpointId) {
        if let Some(book) = self.books.get_mut(&service) {
            let live = book.ledger.begin(endpoint);
            book.counted(endpoint, live);
            self.news = true;
        }
    }

    fn ended(&mut self, service: ServiceId, endpoint: EndpointId) {
        if let Some(book) = self.books.get_mut(&service) {
            let live = book.ledger.end(endpoint);
            book.counted(endpoint, live);
            self.news = true;
        }
    }
}

impl Book {
    fn counted(&mut self, endpoint: EndpointId, live: u32) {
        if let Scheme::LeastConnection(least) = &mut self.scheme {
            least.count(endpoint, live);
        }
    }
}

impl Scheme {
    fn new(policy: &Policy, rotation: u32) -> Scheme {
        match policy.select {
            Select::Tokens => Scheme::Tokens(Tokens::new(policy.take, rotation)),
            Select::Percentages | Select::RoundRobin => Scheme::Percentages(Percentages::new(rotation)),
            Select::LeastConnection => Scheme::LeastConnection(LeastConnection::default()),
            Select::Hash => Scheme::Hash,
        }
    }
}

/// How often the handler is told of connections if no allotment is asked for.
const TOLD_EVERY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::handler::fit;
    use crate::handler::tests::{SERVICE, service};
    use crate::standing::{Directive, Health, Take};

    fn request(client: u64) -> Request {
        Request { ticket: Ticket(client), service: SERVICE, client, avoid: None }
    }

    fn take(allotments: &mut LocalAllotments, client: u64, now: u64) -> Option<EndpointId> {
        let Poll::Ready(answer) = allotments.take(request(client), Moment(now)) else {
            panic!("local answers are ready")
        };
        answer
    }

    fn scheme(select: Select, take: Take) -> Policy {
        Policy { select, take, ..Policy::default() }
    }

    /// Every way to spread by capacity.
    fn schemes() -> [Policy; 4] {
        [
            scheme(Select::Tokens, Take::Greatest),
            scheme(Select::Tokens, Take::RoundRobin),
            scheme(Select::Tokens, Take::Linear),
            scheme(Select::Percentages, Take::Greatest),
        ]
    }

    fn with(policy: Policy, capacities: &[u32]) -> LocalAllotments {
        let mut allotments = LocalAllotments::new(0);
        allotments.update(&[service(policy, capacities)]);
        allotments
    }

    /// How many of `takes` connections each endpoint gets, `per_second` of them a second.
    fn spread(allotments: &mut LocalAllotments, endpoints: usize, takes: u32, per_second: u64) -> Vec<u32> {
        let mut counts = vec![0; endpoints];
        for i in 0..u64::from(takes) {
            counts[take(allotments, i.wrapping_mul(0x9e37_79b9_7f4a_7c15), i * 1_000 / per_second).unwrap().index()] +=
                1;
        }
        counts
    }

    fn worst(counts: &[u32], capacities: &[u32]) -> f64 {
        let (all, total) = (counts.iter().sum::<u32>(), capacities.iter().sum::<u32>());
        let off = |(count, capacity): (&u32, &u32)| {
            (f64::from(*count) / f64::from(all) - f64::from(*capacity) / f64::from(total)).abs()
        };
        counts.iter().zip(capacities).map(off).fold(0.0, f64::max)
    }

    #[test]
    fn every_scheme_spreads_along_the_capacities() {
        for policy in schemes() {
            for capacities in [vec![50, 30, 20], vec![1, 1, 1], vec![99, 1], vec![7], (1..=40).collect()] {
                // Many connections to an allotment, and an allotment that is too old after five of them.
                for (takes, per_second) in [(2_000, 100_000), (20_000, 5)] {
                    let mut allotments = with(policy, &capacities);
                    let counts = spread(&mut allotments, capacities.len(), takes, per_second);
                    let off = worst(&counts, &capacities);
                    assert!(off <= 0.01, "{policy:?} {capacities:?} at {per_second}/s: {counts:?}, off by {off}");
                }
            }
        }
        let mut hashed = with(scheme(Select::Hash, Take::Greatest), &[50, 30, 20]);
        let counts = spread(&mut hashed, 3, 100_000, 1_000);
        assert!(worst(&counts, &[50, 30, 20]) <= 0.01, "{counts:?}");
    }

    #[test]
    fn tokens_are_consumed_in_the_order_of_the_service() {
        let first = |order: Take, n: usize| {
            let mut allotments = with(Policy { tokens: 10, ..scheme(Select::Tokens, order) }, &[5, 3, 2]);
            (0..n).map(|i| take(&mut allotments, i as u64, 0).unwrap().0).collect::<Vec<_>>()
        };
        assert_eq!(first(Take::Greatest, 10), [0, 0, 0, 1, 0, 1, 2, 0, 1, 2]);
        assert_eq!(first(Take::RoundRobin, 10), [0, 1, 2, 0, 1, 2, 0, 1, 0, 0]);
        assert_eq!(first(Take::Linear, 12), [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 0, 0]);
    }

    #[test]
    fn percentages_are_smooth() {
        let mut allotments = with(scheme(Select::Percentages, Take::Greatest), &[50, 30, 20]);
        let mut counts = [0u32; 3];
        for i in 1..=500u32 {
            counts[take(&mut allotments, 0, u64::from(i) * 7).unwrap().index()] += 1;
            for (count, capacity) in counts.iter().zip([50, 30, 20]) {
                let due = f64::from(i * capacity) / 100.0;
                assert!((f64::from(*count) - due).abs() <= 1.5, "{counts:?} after {i}");
            }
        }
    }

    #[test]
    fn several_classifiers_do_not_herd() {
        for policy in schemes() {
            for (endpoints, classifiers) in [(10usize, 5u32), (3, 3), (100, 20), (1_000, 8)] {
                let capacities = vec![10; endpoints];
                let mut counts = vec![0u32; endpoints];
                for rotation in 0..classifiers {
                    let mut allotments = LocalAllotments::new(rotation);
                    allotments.update(&[service(policy, &capacities)]);
                    // Not a whole round each: only where they begin keeps them apart.
                    for i in 0..(endpoints / 4).max(1) {
                        counts[take(&mut allotments, i as u64, 0).unwrap().index()] += 1;
                    }
                }
                if policy.take == Take::Linear && policy.select == Select::Tokens {
                    continue; // it says that one endpoint is used up after the other
                }
                let even = classifiers.div_ceil(4).max(1);
                let most = counts.iter().max().unwrap();
                assert!(*most <= even + 1, "{policy:?} {classifiers} on {endpoints}: {most}");
            }
        }
    }

    #[test]
    fn who_is_no_longer_fit_gets_nothing_and_who_becomes_fit_gets_some() {
        for policy in [schemes().as_slice(), &[scheme(Select::Hash, Take::Greatest)]].concat() {
            let mut known = service(policy, &[50, 30, 20]);
            let mut allotments = LocalAllotments::new(0);
            known.standings[2].health = Health::Failing;
            allotments.update(std::slice::from_ref(&known));
            let counts = spread(&mut allotments, 3, 130, 1_000);
            assert_eq!(counts[2], 0, "{policy:?}");
            known.standings[0].directive = Directive::Draining;
            known.standings[2].health = Health::Healthy;
            allotments.update(std::slice::from_ref(&known));
            let counts = spread(&mut allotments, 3, 130, 1_000);
            assert!(counts[0] == 0 && counts[1] > 60 && counts[2] > 30, "{policy:?} {counts:?}");
            known.standings.iter_mut().for_each(|standing| standing.health = Health::Failing);
            allotments.update(std::slice::from_ref(&known));
            assert_eq!(take(&mut allotments, 0, 0), None);
            allotments.update(&[]);
            assert_eq!((take(&mut allotments, 0, 0), allotments.guess(SERVICE, 0)), (None, None));
        }
    }

    #[test]
    fn a_change_elsewhere_leaves_the_tokens() {
        let mut known = service(Policy { tokens: 10, ..scheme(Select::Tokens, Take::Linear) }, &[5, 3, 2, 9]);
        known.standings[3].directive = Directive::Draining;
        let mut allotments = LocalAllotments::new(0);
        let mut other = service(Policy::default(), &[1, 1]);
        other.service = ServiceId(2);
        allotments.update(&[known.clone(), other.clone()]);
        assert!((0..5).all(|i| take(&mut allotments, i, 0) == Some(EndpointId(0))));
        known.standings[3].directive = Directive::Inactive;
        other.standings[0].health = Health::Failing;
        allotments.update(&[other, known]);
        assert_eq!(take(&mut allotments, 5, 0), Some(EndpointId(1)), "the tokens of the first are used up");
    }

    #[test]
    fn nobody_waits_for_a_handler_that_somebody_else_has() {
        let mut known = service(scheme(Select::Tokens, Take::Greatest), &[10, 10, 10, 10]);
        let handler = SharedHandler::default();
        handler.lock().update(&known);
        let mut allotments = LocalAllotments::sharing(0, Arc::clone(&handler));
        // Before its first allotment, and after one became void, those that fit take turns.
        let held = handler.lock();
        allotments.update(std::slice::from_ref(&known));
        assert_eq!(spread(&mut allotments, 4, 40, 1_000), [10, 10, 10, 10]);
        drop(held);
        assert!(take(&mut allotments, 0, 0).is_some());
        let held = handler.lock();
        known.standings[1].health = Health::Failing;
        allotments.update(std::slice::from_ref(&known));
        assert_eq!(spread(&mut allotments, 4, 30, 1_000), [10, 0, 10, 10]);
        allotments.began(SERVICE, EndpointId(0));
        assert_eq!(allotments.poll_answer(Moment(1_000)), None);
        drop(held);
        // What was left of the void one is given back then.
        handler.lock().update(&known);
        assert_eq!(spread(&mut allotments, 4, 300, 1_000), [100, 0, 100, 100]);
    }

    #[test]
    fn what_is_prepared_elsewhere_is_followed_change_by_change() {
        for policy in [scheme(Select::Percentages, Take::Greatest), scheme(Select::LeastConnection, Take::Greatest)] {
            let mut known = service(policy, &[30, 20, 10]);
            let mut prepared = Prepared::new(known.clone(), None);
            let mut allotments = LocalAllotments::new(0);
            let mut live = [0u32; 3];
            let mut serve = |allotments: &mut LocalAllotments, prepared: &Arc<Prepared>, takes: usize| {
                allotments.follow(std::slice::from_ref(prepared));
                for _ in 0..takes {
                    let chosen = take(allotments, 0, 0).unwrap();
                    allotments.began(SERVICE, chosen);
                    live[chosen.index()] += 1;
                }
                live
            };
            assert_eq!(serve(&mut allotments, &prepared, 60), [30, 20, 10], "{policy:?}");
            known.standings[0].health = Health::Failing;
            prepared = Prepared::new(known.clone(), Some(&prepared));
            assert!(!allotments.is_well(SERVICE, EndpointId(9)) && allotments.is_well(SERVICE, EndpointId(0)));
            assert_eq!(serve(&mut allotments, &prepared, 30), [30, 40, 20], "{policy:?}");
            assert!(!allotments.is_well(SERVICE, EndpointId(0)));
            // One change is missed: then it begins anew.
            known.standings[0].health = Health::Healthy;
            prepared = Prepared::new(known.clone(), Some(&prepared));
            known.standings[1].health = Health::Failing;
            known.standings[2].health = Health::Failing;
            prepared = Prepared::new(known.clone(), Some(&prepared));
            assert_eq!(serve(&mut allotments, &prepared, 30), [60, 40, 20], "{policy:?}");
        }
    }

    #[test]
    fn an_old_allotment_is_void_but_not_unjust() {
        let mut allotments = with(scheme(Select::Tokens, Take::Linear), &[50, 50]);
        assert!((0..49).all(|i| take(&mut allotments, i, 1_000) == Some(EndpointId(0))));
        // Two of the next hundred tokens are the first's by now; exactly at its greatest age the old one still is good.
        assert_eq!(take(&mut allotments, 0, 2_000), Some(EndpointId(0)));
        let after: Vec<_> = (0..50).map(|i| take(&mut allotments, i, 2_001).unwrap().0).collect();
        assert_eq!(after.iter().filter(|endpoint| **endpoint == 0).count(), 25);
    }

    #[test]
    fn what_is_to_be_avoided_is_used_only_if_nothing_else_fits() {
        for policy in [schemes().as_slice(), &[scheme(Select::Hash, Take::Greatest)]].concat() {
            for capacities in [vec![50, 30, 20], vec![99, 1], vec![1, 1]] {
                let mut allotments = with(Policy { tokens: 2, ..policy }, &capacities);
                for client in 0..500 {
                    let avoid = Some(EndpointId(0));
                    let answer = allotments.take(Request { avoid, ..request(client << 40) }, Moment(0));
                    assert!(matches!(answer, Poll::Ready(Some(e)) if Some(e) != avoid), "{policy:?} {capacities:?}");
                }
            }
            let mut alone = with(policy, &[5]);
            let answer = alone.take(Request { avoid: Some(EndpointId(0)), ..request(1) }, Moment(0));
            assert_eq!(answer, Poll::Ready(Some(EndpointId(0))), "{policy:?}");
        }
    }

    #[test]
    fn guesses_agree_on_every_unit_and_include_the_draining() {
        let mut known = service(scheme(Select::Hash, Take::Greatest), &[10, 10, 10]);
        let (mut here, mut there) = (LocalAllotments::new(0), LocalAllotments::new(9));
        here.update(std::slice::from_ref(&known));
        // Elsewhere the same endpoints have other handles and another order.
        known.standings.reverse();
        known.standings.iter_mut().for_each(|standing| standing.endpoint.0 += 100);
        known.standings[0].health = Health::Failing;
        there.update(std::slice::from_ref(&known));
        for client in 0..3_000 {
            let guess = here.guess(SERVICE, client).unwrap();
            assert_eq!(there.guess(SERVICE, client), Some(EndpointId(guess.0 + 100)));
            assert_eq!(take(&mut here, client, 0), Some(guess), "all are fit: chosen and guessed are the same");
        }
        known.standings[0].directive = Directive::Draining;
        there.update(std::slice::from_ref(&known));
        assert!((0..100).any(|client| there.guess(SERVICE, client) == Some(EndpointId(102))));
        known.standings[0].directive = Directive::Inactive;
        there.update(std::slice::from_ref(&known));
        assert!((0..3_000).all(|client| there.guess(SERVICE, client) != Some(EndpointId(102))));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "measures how the cost grows")]
    fn thousands_of_endpoints_cost_little_each_time() {
        for policy in schemes() {
            let capacities: Vec<u32> = (0..10_000).map(|i| 1 + i % 99).collect();
            let mut allotments = with(policy, &capacities);
            take(&mut allotments, 0, 0);
            // The best of some batches, each with two grants: others may be using the machine.
            let batch = || {
                let begin = Instant::now();
                for i in 0..20_000 {
                    take(&mut allotments, i, 0).unwrap();
                }
                begin.elapsed() / 20_000
            };
            let each = std::iter::repeat_with(batch).take(5).min().unwrap();
            // Walking through all of them costs some ten microseconds, a heap a few hundred nanoseconds.
            assert!(each < Duration::from_micros(5), "{policy:?}: {each:?} a connection");
        }
    }

    /// Tokens as one would write them down: a list, and a walk through it.
    struct Naive {
        take: Take,
        left: Vec<u32>,
        last: usize,
    }

    impl Naive {
        fn take(&mut self) -> Option<usize> {
            let n = self.left.len();
            let has = |i: &usize| self.left[*i] > 0;
            let i = match self.take {
                Take::Greatest => {
                    let most = *self.left.iter().max().filter(|most| **most > 0)?;
                    self.left.iter().position(|left| *left == most)?
                }
                Take::RoundRobin => (self.last + 1..self.last + 1 + n).map(|i| i % n).find(has)?,
                Take::Linear => (0..n).find(has)?,
            };
            self.left[i] -= 1;
            self.last = i;
            Some(i)
        }
    }

    proptest! {
        #[test]
        fn tokens_agree_with_a_list(
            capacities in proptest::collection::vec(1u32..=99, 1..12),
            tokens in 1u32..80,
            order in prop_oneof![Just(Take::Greatest), Just(Take::RoundRobin), Just(Take::Linear)],
            takes in 1u64..300,
        ) {
            let policy = Policy { tokens, ..scheme(Select::Tokens, order) };
            let mut allotments = with(policy, &capacities);
            let mut handler = crate::handler::Handler::new();
            handler.update(&service(policy, &capacities));
            let mut allotment = crate::handler::Allotment::default();
            let mut naive = Naive { take: order, left: Vec::new(), last: capacities.len() - 1 };
            for i in 0..takes {
                let expected = naive.take().or_else(|| {
                    handler.grant(Demand { service: SERVICE, tokens: 0, rotation: 0 }, Moment(0), &mut allotment);
                    naive.left = allotment.shares.iter().map(|share| share.amount).collect();
                    naive.take()
                });
                prop_assert_eq!(take(&mut allotments, i, 0).map(EndpointId::index), expected);
            }
        }

        #[test]
        fn only_the_fit_are_ever_chosen(
            changes in proptest::collection::vec((0usize..6, 0u32..4, 0u8..3, 0u8..3, any::<bool>()), 1..40),
            which in 0usize..5,
        ) {
            let policy = schemes().get(which).copied().unwrap_or(scheme(Select::Hash, Take::Greatest));
            let mut known = service(Policy { tokens: 7, ..policy }, &[5, 5, 5, 5, 5, 5]);
            let mut allotments = LocalAllotments::new(1);
            for (time, (i, capacity, directive, health, backup)) in (0u64..).zip(changes) {
                let standing = &mut known.standings[i];
                standing.capacity = capacity;
                standing.directive = [Directive::Active, Directive::Draining, Directive::Inactive][usize::from(directive)];
                standing.health = [Health::Healthy, Health::Failing, Health::Unknown][usize::from(health)];
                standing.backup = backup;
                allotments.update(std::slice::from_ref(&known));
                let fits: Vec<_> = fit(&known.standings).map(|standing| standing.endpoint).collect();
                for client in 0..5u64 {
                    match take(&mut allotments, client.wrapping_mul(0x9e37_79b9_7f4a_7c15), time * 300) {
                        Some(endpoint) => prop_assert!(fits.contains(&endpoint)),
                        None => prop_assert!(fits.is_empty()),
                    }
                }
            }
        }
    }

    /// A handler elsewhere, as the classifier sees it: answers come later.
    struct Distant {
        near: LocalAllotments,
        asked: VecDeque<(Moment, Request)>,
    }

    impl Allotments for Distant {
        fn take(&mut self, request: Request, now: Moment) -> Poll<Option<EndpointId>> {
            self.asked.push_back((now.after(Duration::from_millis(2)), request));
            Poll::Pending
        }

        fn poll_answer(&mut self, now: Moment) -> Option<(Ticket, Option<EndpointId>)> {
            let (_, request) = self.asked.pop_front_if(|(due, _)| *due <= now)?;
            let Poll::Ready(answer) = self.near.take(request, now) else { return None };
            Some((request.ticket, answer))
        }

        fn guess(&mut self, service: ServiceId, client: u64) -> Option<EndpointId> {
            self.near.guess(service, client)
        }
    }

    #[test]
    fn an_answer_may_come_later() {
        let mut allotments: Box<dyn Allotments> =
            Box::new(Distant { near: with(Policy::default(), &[1]), asked: VecDeque::new() });
        assert_eq!(allotments.take(request(4), Moment(0)), Poll::Pending);
        assert_eq!(allotments.poll_answer(Moment(1)), None);
        assert_eq!(allotments.poll_answer(Moment(2)), Some((Ticket(4), Some(EndpointId(0)))));
    }
}
