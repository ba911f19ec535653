//! The health & load handler: turns the standings of a service into allotments for classifiers.

use std::time::Duration;

use hashbrown::HashMap;
use weir_identity::{EndpointId, Moment, ServiceId};

use crate::demand::Askers;
use crate::standing::{Policy, Select, ServiceStanding, Standing};
use crate::stock::Stock;

/// A classifier asks for an allotment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The service it has connections for.
    pub service: ServiceId,
    /// How many tokens it would like; the policy's number if that is greater.
    pub tokens: u32,
    /// Which classifier asks, and so where it begins among equals.
    pub rotation: u32,
}

/// One endpoint's part of an allotment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Tokens (token scheme), or its weight among all shares (percentage scheme).
    pub amount: u32,
}

/// What a handler grants a classifier: one share for each endpoint that fits, in the operator's order; in a service of more than 64
/// endpoints for those of one part of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allotment {
    /// The shares, also those of no token.
    pub shares: Vec<Share>,
    /// When it was granted.
    pub granted: Moment,
    /// How long it is good.
    pub valid: Duration,
}

impl Allotment {
    /// Is it too old to be spent?
    #[must_use]
    pub fn is_void(&self, now: Moment) -> bool {
        now.since(self.granted) > self.valid
    }

    /// Ends it before its time.
    pub fn clear(&mut self) {
        self.shares.clear();
    }
}

/// Knows the standings and grants allotments from them.
///
/// Where hosts say their load, tokens are what is free there: capacity less load less what the load cannot show yet, which is tokens that
/// classifiers hold and connections too young ([`Handler::count`]). What a connection costs of a capacity is learned: all load there is
/// by all connections that it shows. Each classifier gets a quarter of its part of all demand at a time. No grant exceeds what is free by a whole token for any
/// endpoint, but where nothing is free, which must not stop the service: then it is one token for each sixteen endpoints, at least one,
/// for those that are least beyond their capacity.
///
/// A service of more than 64 endpoints is granted in parts of at most 64, each in its turn, so that a grant costs the same in every farm. There
/// a grant is 16 tokens at least, also where less is free: so many are nothing beside what thousands of hosts can take.
///
/// Where nobody says a load, tokens are dealt along the capacities. In both, over many grants every endpoint gets its exact part: what
/// rounding kept from one is owed to it, and so is what a classifier had to give back unspent because it was too old
/// ([`Handler::settle`]). Else a service with few connections would only ever use the first tokens of each allotment, those of the
/// greatest endpoint.
#[derive(Debug, Default)]
pub struct Handler {
    services: HashMap<ServiceId, Served>,
}

#[derive(Debug, Default)]
struct Served {
    policy: Policy,
    /// Where each endpoint is in the stock.
    places: HashMap<EndpointId, usize>,
    stock: Stock,
    /// Some of the endpoints that fit say their load.
    live: bool,
    askers: Askers,
}

impl Handler {
    /// A handler that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Handler::default()
    }

    /// Takes what is now known of a service; says whether the allotments granted so far are void.
    ///
    /// They are when the policy, an endpoint that fits or its weight changed. [`Handler::settle`] them before.
    pub fn update(&mut self, known: &ServiceStanding) -> bool {
        let changes = self.would_change(known);
        let served = self.services.entry(known.service).or_default();
        if changes {
            served.rebuild(known);
        }
        for (place, standing) in known.standings.iter().enumerate() {
            // They are in the order of the standings, unless those that do not fit have changed places.
            if served.stock.is_at(place, standing.endpoint) {
                served.stock.say(place, standing.capacity, standing.load);
            } else {
                served.say(standing.endpoint, standing.capacity, standing.load);
            }
        }
        served.live = served.stock.is_live();
        if changes {
            served.stock.look_at_all();
        }
        changes
    }

    /// Would an update with this void the allotments granted so far?
    #[must_use]
    pub fn would_change(&self, known: &ServiceStanding) -> bool {
        self.services.get(&known.service).is_none_or(|served| {
            let weight = |standing: &Standing| (standing.endpoint, standing.weight(known.policy.select));
            served.policy != known.policy
                || served.places.len() != known.standings.len()
                || !served.stock.fit.iter().map(|f| (f.endpoint, f.standing)).eq(fit(&known.standings).map(weight))
        })
    }

    /// Takes what a host says of an endpoint's load, which voids nothing. What its weight depends on needs an [`Handler::update`].
    pub fn report(&mut self, service: ServiceId, endpoint: EndpointId, capacity: u32, load: u32) {
        if let Some(served) = self.services.get_mut(&service) {
            served.say(endpoint, capacity, Some(load));
        }
    }

    /// Forgets a service.
    pub fn remove(&mut self, service: ServiceId) {
        self.services.remove(&service);
    }

    /// Hears from a classifier (which `demand` names, with the service) how many connections began and ended at an endpoint.
    pub fn count(&mut self, demand: Demand, endpoint: EndpointId, began: u32, ended: u32, now: Moment) {
        let Some(served) = self.services.get_mut(&demand.service) else { return };
        let Some(&place) = served.places.get(&endpoint) else { return };
        let spent = served.askers.spend(demand.rotation, place, began, now);
        served.stock.count(place, (began, ended), spent, now);
    }

    /// Grants an allotment into `allotment`, whose room is used again; false (and no share) if no endpoint fits.
    ///
    /// It takes the place of the classifier's earlier one.
    pub fn grant(&mut self, demand: Demand, now: Moment, allotment: &mut Allotment) -> bool {
        allotment.clear();
        allotment.granted = now;
        let Some(served) = self.services.get_mut(&demand.service).filter(|served| served.stock.len() > 0) else {
            return false;
        };
        allotment.valid = match served.policy.select {
            Select::Tokens => served.policy.max_age,
            Select::Percentages => served.policy.lifetime,
            Select::Hash | Select::RoundRobin | Select::LeastConnection => Duration::MAX,
        };
        if served.policy.select != Select::Tokens {
            let shares = served.stock.fit.iter().map(|f| Share { endpoint: f.endpoint, amount: f.standing });
            allotment.shares.extend(shares);
        } else if served.live {
            served.deal_free(demand, now, allotment);
        } else {
            served.stock.deal_capacities(served.at_least(demand.tokens), demand.rotation, &mut allotment.shares);
        }
        true
    }

    /// Takes back what is left of a classifier's token allotment, so that those who were not served by it are next time.
    ///
    /// Call it before the [`Handler::update`] that voids the allotment; one of other endpoints is ignored.
    pub fn settle(&mut self, demand: Demand, left: &Allotment) {
        let Some(served) = self.services.get_mut(&demand.service) else { return };
        served.askers.take_back(demand.rotation, |place, tokens| served.stock.release(place, tokens));
        let first = left.shares.first().and_then(|share| served.places.get(&share.endpoint));
        if let Some(place) = first {
            served.stock.settle(*place, &left.shares);
        }
    }
}

impl Served {
    /// Begins anew with other endpoints, another policy or other weights.
    fn rebuild(&mut self, known: &ServiceStanding) {
        self.askers.clear();
        self.policy = known.policy;
        self.places = (0..).zip(&known.standings).map(|(place, standing)| (standing.endpoint, place)).collect();
        let tokens = at_least(0, &self.policy, fit(&known.standings).count());
        self.stock.rebuild(known, tokens);
    }

    fn say(&mut self, endpoint: EndpointId, capacity: u32, load: Option<u32>) {
        if let Some(&place) = self.places.get(&endpoint) {
            self.stock.say(place, capacity, load);
        }
    }

    fn at_least(&self, tokens: u32) -> u32 {
        at_least(tokens, &self.policy, self.stock.len())
    }

    /// Deals out a classifier's part of what is free by what the hosts say.
    fn deal_free(&mut self, demand: Demand, now: Moment, allotment: &mut Allotment) {
        let stock = &mut self.stock;
        self.askers.expire(now, |place, tokens| stock.release(place, tokens));
        self.askers.take_back(demand.rotation, |place, tokens| stock.release(place, tokens));
        let part = self.askers.part(demand.rotation, now);
        let most = at_least(demand.tokens, &self.policy, stock.len());
        let held = stock.deal_free((part, most), demand.rotation, now, &mut allotment.shares);
        self.askers.hold(demand.rotation, held, now.after(allotment.valid), now);
    }
}

/// One token for each endpoint at least: else a farm of thousands would need a grant for every few connections.
fn at_least(tokens: u32, policy: &Policy, fit: usize) -> u32 {
    tokens.max(policy.tokens).max(u32::try_from(fit).unwrap_or(u32::MAX))
}

/// The endpoints that get new connections: the backups only if no other does.
pub(crate) fn fit(standings: &[Standing]) -> impl Iterator<Item = &Standing> {
    let fits = |standing: &&Standing| standing.fits_new() && standing.capacity > 0;
    let backup = !standings.iter().any(|standing| fits(&standing) && !standing.backup);
    standings.iter().filter(fits).filter(move |standing| standing.backup == backup)
}

/// The place of each of `n` equals in the order in which a classifier goes through them.
///
/// Classifiers begin a golden section apart, so that few of them are far from each other, and up to `n` all begin elsewhere.
pub(crate) fn ranks(n: usize, rotation: u32) -> impl Iterator<Item = usize> {
    let mut step = (n * 618 / 1_000).max(1);
    while gcd(step, n) > 1 {
        step += 1;
    }
    let rotation = usize::try_from(rotation).unwrap_or(0) % n.max(1);
    let first = rotation * step % n.max(1);
    (0..n).map(move |i| (i + n - first) % n)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::standing::{Directive, Health};

    pub(crate) const SERVICE: ServiceId = ServiceId(1);

    pub(crate) fn standings(capacities: &[u32]) -> Vec<Standing> {
        let standing = |(i, capacity): (u32, &u32)| Standing {
            endpoint: EndpointId(i),
            stable: u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            capacity: *capacity,
            load: None,
            directive: Directive::Active,
            health: Health::Healthy,
            backup: false,
        };
        (0..).zip(capacities).map(standing).collect()
    }

    pub(crate) fn service(policy: Policy, capacities: &[u32]) -> ServiceStanding {
        ServiceStanding { service: SERVICE, policy, standings: standings(capacities) }
    }

    fn amounts(allotment: &Allotment) -> Vec<u32> {
        allotment.shares.iter().map(|share| share.amount).collect()
    }

    fn demand(tokens: u32) -> Demand {
        Demand { service: SERVICE, tokens, rotation: 0 }
    }

    #[test]
    fn tokens_are_divided_along_the_capacities() {
        let mut handler = Handler::new();
        let mut allotment = Allotment::default();
        assert!(!handler.grant(demand(100), Moment(0), &mut allotment));
        assert!(handler.update(&service(Policy::default(), &[40, 35, 25])));
        assert!(!handler.update(&service(Policy::default(), &[40, 35, 25])), "nothing changed");
        for _ in 0..3 {
            assert!(handler.grant(demand(100), Moment(7), &mut allotment));
            assert_eq!(amounts(&allotment), [40, 35, 25]);
        }
        assert!(!allotment.is_void(Moment(1_007)));
        assert!(allotment.is_void(Moment(1_008)));
    }

    #[test]
    fn what_rounding_kept_is_given_next_time() {
        let mut handler = Handler::new();
        let mut allotment = Allotment::default();
        let policy = Policy { tokens: 10, ..Policy::default() };
        handler.update(&service(policy, &[1, 1, 1]));
        let mut sums = [0; 3];
        for _ in 0..3 {
            handler.grant(demand(10), Moment(0), &mut allotment);
            let amounts = amounts(&allotment);
            assert_eq!(amounts.iter().sum::<u32>(), 10);
            sums.iter_mut().zip(amounts).for_each(|(sum, amount)| *sum += amount);
        }
        assert_eq!(sums, [10, 10, 10]);
    }

    #[test]
    fn what_came_back_unspent_is_given_again() {
        let mut handler = Handler::new();
        let mut allotment = Allotment::default();
        handler.update(&service(Policy::default(), &[50, 30, 20]));
        handler.grant(demand(100), Moment(0), &mut allotment);
        allotment.shares[0].amount = 30; // twenty connections, all to the greatest
        handler.settle(demand(0), &allotment);
        handler.grant(demand(100), Moment(0), &mut allotment);
        assert_eq!(amounts(&allotment), [40, 36, 24]);
    }

    #[test]
    fn backups_come_in_when_nobody_else_fits() {
        let mut known = service(Policy::default(), &[50, 50, 1]);
        known.standings[2].backup = true;
        let fitting =
            |known: &ServiceStanding| fit(&known.standings).map(|standing| standing.endpoint.0).collect::<Vec<_>>();
        assert_eq!(fitting(&known), [0, 1]);
        known.standings[0].health = Health::Failing;
        assert_eq!(fitting(&known), [1]);
        known.standings[1].directive = Directive::Draining;
        assert_eq!(fitting(&known), [2]);
        known.standings[1] = Standing { capacity: 0, directive: Directive::Active, ..known.standings[1] };
        assert_eq!(fitting(&known), [2], "no capacity, nothing new");
        known.standings[2].directive = Directive::Inactive;
        assert!(fitting(&known).is_empty());
    }

    #[test]
    fn classifiers_begin_apart() {
        for n in [1, 2, 3, 10, 100, 997] {
            let firsts: Vec<usize> = (0..).take(n).map(|r| ranks(n, r).position(|rank| rank == 0).unwrap()).collect();
            let mut sorted = firsts.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..n), "{n}: {firsts:?}");
        }
        assert_eq!(ranks(0, 3).count(), 0);
    }

    /// Hosts that say their load, and one classifier's counts of connections.
    fn loads(handler: &mut Handler, loads: &[u32]) {
        (0..).zip(loads).for_each(|(i, load)| handler.report(SERVICE, EndpointId(i), 80, *load));
    }

    fn live(loads_at_first: &[u32]) -> Handler {
        let mut known = service(Policy::default(), &vec![80; loads_at_first.len()]);
        known.standings.iter_mut().zip(loads_at_first).for_each(|(standing, load)| standing.load = Some(*load));
        let mut handler = Handler::new();
        handler.update(&known);
        handler
    }

    /// Lets it learn that a connection costs ten: five at each host, for long.
    fn taught(hosts: u32) -> Handler {
        let mut handler = live(&vec![0; hosts as usize]);
        (0..hosts).for_each(|i| handler.count(demand(0), EndpointId(i), 5, 0, Moment(0)));
        let mut unused = Allotment::default();
        handler.grant(demand(0), Moment(0), &mut unused);
        for second in 1..=100 {
            loads(&mut handler, &vec![50; hosts as usize]);
            handler.grant(demand(0), Moment(second * 1_000), &mut unused);
        }
        handler.settle(demand(0), &unused);
        handler
    }

    #[test]
    fn tokens_are_what_is_free_less_what_was_granted() {
        let mut handler = taught(4);
        let mut first = Allotment::default();
        handler.grant(demand(0), Moment(100_000), &mut first);
        let mut given = amounts(&first).iter().sum::<u32>();
        assert!((3..=4).contains(&given), "three are free at each, and a quarter of that is granted: {first:?}");
        // Many classifiers get less and less, until the tokens are too old.
        let mut others = vec![Allotment::default(); 20];
        for (rotation, other) in (1..).zip(&mut others) {
            handler.grant(Demand { rotation, ..demand(0) }, Moment(100_500), other);
            given += amounts(other).iter().sum::<u32>();
        }
        assert!((12..=12 + 12).contains(&given), "all that is free and then one token each: {given}");
        assert_eq!(amounts(&others[19]).iter().sum::<u32>(), 1);
        handler.grant(demand(0), Moment(101_501), &mut first);
        assert!(amounts(&first).iter().sum::<u32>() >= 1);
        assert_eq!(handler.services[&SERVICE].askers.held(), amounts(&first).iter().sum::<u32>());
    }

    #[test]
    fn a_change_of_load_needs_no_update_and_a_full_host_gets_nothing() {
        let mut handler = taught(3);
        loads(&mut handler, &[80, 50, 20]);
        let mut allotment = Allotment::default();
        handler.grant(demand(0), Moment(100_000), &mut allotment);
        let [full, some, most] = amounts(&allotment)[..] else { panic!("three") };
        assert!(full == 0 && some < most && (2..=3).contains(&(some + most)), "{allotment:?}");
    }

    #[test]
    fn when_all_are_full_somebody_still_gets_it_in_turn() {
        let mut handler = taught(3);
        loads(&mut handler, &[80, 80, 80]);
        let mut allotment = Allotment::default();
        let mut given = [0; 3];
        for _ in 0..30 {
            handler.grant(demand(0), Moment(100_000), &mut allotment);
            assert_eq!(amounts(&allotment).iter().sum::<u32>(), 1, "{allotment:?}");
            let chosen = amounts(&allotment).iter().position(|tokens| *tokens == 1).unwrap();
            given[chosen] += 1;
            handler.count(demand(0), EndpointId(u32::try_from(chosen).unwrap()), 1, 0, Moment(100_000));
        }
        assert_eq!(given, [10, 10, 10]);
    }

    /// Takes so many tokens one by one, and gives back what was not needed of each grant.
    fn spend(handler: &mut Handler, rotation: u32, takes: usize, per_grant: usize, used: &mut [u32], now: Moment) {
        let demand = Demand { rotation, ..demand(0) };
        let mut allotment = Allotment::default();
        let mut left = takes;
        while left > 0 {
            assert!(handler.grant(demand, now, &mut allotment));
            let mut of_grant = per_grant.min(left);
            while let Some(share) = allotment.shares.iter_mut().filter(|s| s.amount > 0).max_by_key(|s| s.amount)
                && of_grant > 0
            {
                share.amount -= 1;
                used[share.endpoint.index()] += 1;
                handler.count(demand, share.endpoint, 1, 0, now);
                (of_grant, left) = (of_grant - 1, left - 1);
            }
            handler.settle(demand, &allotment);
        }
    }

    #[test]
    fn parts_of_a_great_service_are_fair_whatever_is_spent_of_each_grant() {
        let capacities: Vec<u32> = (0..1_000).map(|i| 1 + i % 97).collect();
        let whole: u32 = capacities.iter().sum();
        for per_grant in [1, 7, 64, usize::MAX] {
            let mut handler = Handler::new();
            handler.update(&service(Policy::default(), &capacities));
            let mut used = vec![0; capacities.len()];
            spend(&mut handler, 0, 50_000, per_grant, &mut used, Moment(0));
            for (used, capacity) in used.iter().zip(&capacities) {
                let due = 50_000.0 * f64::from(*capacity) / f64::from(whole);
                // A part waits for its turn, and within it an endpoint for a grant.
                assert!((f64::from(*used) - due).abs() <= 0.02 * due + 3.0, "{used} of {due} by {per_grant}");
            }
        }
    }

    #[test]
    fn a_great_service_that_is_full_serves_whoever_is_least_beyond() {
        let mut known = service(Policy::default(), &vec![80; 1_000]);
        known.standings.iter_mut().for_each(|standing| standing.load = Some(80));
        let mut handler = Handler::new();
        handler.update(&known);
        let mut used = vec![0; 1_000];
        spend(&mut handler, 0, 5_000, usize::MAX, &mut used, Moment(0));
        assert!(used.iter().all(|used| (4..=6).contains(used)), "{used:?}");
        // Where one part gets free again everything goes there, but no more than it can take.
        for i in 200..260 {
            handler.report(SERVICE, EndpointId(i), 80, 40);
        }
        let before = used.clone();
        spend(&mut handler, 1, 16, usize::MAX, &mut used, Moment(0));
        let there: u32 = (200..260).map(|i| used[i] - before[i]).sum();
        assert_eq!(there, 16);
    }

    #[test]
    fn a_report_of_one_host_among_thousands_is_seen_by_the_next_grants() {
        let mut known = service(Policy::default(), &vec![80; 2_000]);
        known.standings.iter_mut().for_each(|standing| standing.load = Some(79));
        let mut handler = Handler::new();
        handler.update(&known);
        let mut used = vec![0; 2_000];
        spend(&mut handler, 0, 3_000, usize::MAX, &mut used, Moment(0));
        handler.report(SERVICE, EndpointId(1_234), 80, 80);
        handler.count(demand(0), EndpointId(1_234), 200, 0, Moment(0));
        used.fill(0);
        spend(&mut handler, 0, 10_000, usize::MAX, &mut used, Moment(0));
        assert!(used[1_234] == 0 && used.iter().filter(|used| **used > 0).count() == 1_999, "{}", used[1_234]);
    }

    proptest! {
        #[test]
        fn no_grant_exceeds_what_is_free(
            steps in proptest::collection::vec((0u32..4, 0u32..5, 0u32..=80, 0u32..6, 0u32..6, 0u64..400), 1..200),
        ) {
            let mut handler = live(&[0; 5]);
            let mut allotments = vec![Allotment::default(); 4];
            let mut now = Moment(0);
            for (classifier, host, load, began, ended, passed) in steps {
                now = now.after(Duration::from_millis(passed));
                let demand = Demand { rotation: classifier, ..demand(0) };
                handler.report(SERVICE, EndpointId(host), 80, load);
                handler.count(demand, EndpointId(host), began, ended, now);
                let allotment = &mut allotments[classifier as usize];
                prop_assert!(handler.grant(demand, now, allotment));
                let served = &handler.services[&SERVICE];
                let given: u32 = allotment.shares.iter().map(|share| share.amount).sum();
                prop_assert!(given > 0, "it goes on whatever the load");
                // What it holds by now is no room any more.
                let rooms = served.stock.fit.iter().zip(&allotment.shares);
                let rooms: Vec<f64> = rooms.map(|(fit, share)| (fit.room + f64::from(share.amount)).max(0.0)).collect();
                let free: f64 = rooms.iter().sum();
                prop_assert!(f64::from(given) <= free.max(1.0) + 1e-6, "{} of {}", given, free);
                for (room, share) in rooms.iter().zip(&allotment.shares) {
                    let is_slack = given == 1 && share.amount == 1;
                    prop_assert!(is_slack || f64::from(share.amount) < room + 1.0);
                }
                // What all of them hold is what the handler counts.
                let held: u32 = served.askers.held();
                let counted: u32 = served.stock.held();
                prop_assert_eq!(held, counted);
            }
        }

        #[test]
        fn every_grant_is_whole_and_all_together_are_fair(
            capacities in proptest::collection::vec(1u32..=99, 1..40),
            tokens in 0u32..500,
            rotation in 0u32..10,
            spent in proptest::collection::vec(0u32..60, 30),
        ) {
            let mut handler = Handler::new();
            let mut allotment = Allotment::default();
            handler.update(&service(Policy { tokens, ..Policy::default() }, &capacities));
            let size = tokens.max(u32::try_from(capacities.len()).unwrap());
            let mut used = vec![0u32; capacities.len()];
            for spent in spent {
                handler.grant(Demand { rotation, ..demand(0) }, Moment(0), &mut allotment);
                prop_assert_eq!(amounts(&allotment).iter().sum::<u32>(), size);
                // Spend some in the given order, the rest comes back.
                for _ in 0..spent.min(size) {
                    let i = (0..used.len()).max_by_key(|i| allotment.shares[*i].amount).unwrap();
                    allotment.shares[i].amount -= 1;
                    used[i] += 1;
                }
                handler.settle(demand(0), &allotment);
            }
            let (all, weights) = (used.iter().sum::<u32>(), capacities.iter().sum::<u32>());
            for (used, capacity) in used.iter().zip(&capacities) {
                let part = |of: u32| f64::from(of) * f64::from(*capacity) / f64::from(weights);
                // Spending the greatest first evens out what is left, so somebody may wait; but never for more than one grant.
                prop_assert!((f64::from(*used) - part(all)).abs() <= f64::from(size), "{} of {}", used, part(all));
            }
        }
    }
}
