//! The health & load handler: turns the standings of a service into allotments for classifiers.

use std::cmp::Reverse;
use std::time::Duration;

use hashbrown::HashMap;
use weir_identity::{EndpointId, Moment, ServiceId};

use crate::demand::Askers;
use crate::expected::Expected;
use crate::standing::{Policy, Select, ServiceStanding, Standing};

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

/// What a handler grants a classifier: one share for each endpoint that fits, in the operator's order.
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
    /// All endpoints, and where each is.
    known: Vec<Expected>,
    places: HashMap<EndpointId, usize>,
    /// The endpoints that fit, in the operator's order.
    fit: Vec<Fit>,
    weights: u64,
    /// Some of them say their load.
    live: bool,
    /// What a connection costs of a capacity.
    cost: f64,
    askers: Askers,
    /// Who comes first when the last tokens are dealt out: scratch of a grant.
    by_rest: Vec<(Reverse<i128>, usize, usize)>,
}

#[derive(Debug)]
struct Fit {
    endpoint: EndpointId,
    /// Its place among all endpoints.
    place: usize,
    /// By its standing.
    standing: u32,
    /// In the latest grant.
    weight: u32,
    /// Parts of a token that earlier grants kept from it (or, below zero, gave it ahead of the others).
    owed: i128,
    /// What it may claim of the grant in the making.
    claim: i128,
    /// Connections that it can still take, in the latest grant.
    room: f64,
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
        for standing in &known.standings {
            served.say(standing.endpoint, standing.capacity, standing.load);
        }
        served.live = served.fit.iter().any(|fit| served.known[fit.place].load().is_some());
        changes
    }

    /// Would an update with this void the allotments granted so far?
    #[must_use]
    pub fn would_change(&self, known: &ServiceStanding) -> bool {
        self.services.get(&known.service).is_none_or(|served| {
            let weight = |standing: &Standing| (standing.endpoint, standing.weight(known.policy.select));
            served.policy != known.policy
                || served.places.len() != known.standings.len()
                || !served.fit.iter().map(|f| (f.endpoint, f.standing)).eq(fit(&known.standings).map(weight))
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
        let expected = &mut served.known[place];
        expected.advance(served.cost, now);
        expected.release(spent);
        expected.count(began, ended);
    }

    /// Grants an allotment into `allotment`, whose room is used again; false (and no share) if no endpoint fits.
    ///
    /// It takes the place of the classifier's earlier one.
    pub fn grant(&mut self, demand: Demand, now: Moment, allotment: &mut Allotment) -> bool {
        allotment.clear();
        allotment.granted = now;
        let Some(served) = self.services.get_mut(&demand.service).filter(|served| !served.fit.is_empty()) else {
            return false;
        };
        allotment.valid = match served.policy.select {
            Select::Tokens => served.policy.max_age,
            Select::Percentages => served.policy.lifetime,
            Select::Hash | Select::RoundRobin | Select::LeastConnection => Duration::MAX,
        };
        if served.policy.select != Select::Tokens {
            let shares = served.fit.iter().map(|f| Share { endpoint: f.endpoint, amount: f.standing });
            allotment.shares.extend(shares);
        } else if served.live {
            served.deal_free(demand, now, allotment);
        } else {
            served.along_capacities();
            served.deal(served.at_least(demand.tokens), demand.rotation, &mut allotment.shares);
        }
        true
    }

    /// Takes back what is left of a classifier's token allotment, so that those who were not served by it are next time.
    ///
    /// Call it before the [`Handler::update`] that voids the allotment; one of other endpoints is ignored.
    pub fn settle(&mut self, demand: Demand, left: &Allotment) {
        let Some(served) = self.services.get_mut(&demand.service) else { return };
        served.askers.take_back(demand.rotation, |place, tokens| served.known[place].release(tokens));
        if !served.fit.iter().map(|f| f.endpoint).eq(left.shares.iter().map(|share| share.endpoint)) {
            return;
        }
        let unspent: i128 = left.shares.iter().map(|share| i128::from(share.amount)).sum();
        for (i, share) in left.shares.iter().enumerate() {
            let part = served.part(unspent * TOKEN, i);
            served.fit[i].owed += i128::from(share.amount) * TOKEN - part;
        }
    }
}

impl Served {
    /// Begins anew with other endpoints, another policy or other weights.
    fn rebuild(&mut self, known: &ServiceStanding) {
        let owed: HashMap<EndpointId, i128> = self.fit.iter().map(|f| (f.endpoint, f.owed)).collect();
        self.askers.clear();
        self.policy = known.policy;
        self.cost = self.cost.max(LEAST_COST);
        let was: HashMap<EndpointId, Expected> =
            self.places.drain().map(|(endpoint, place)| (endpoint, self.known[place].clone())).collect();
        self.known.clear();
        for (place, standing) in known.standings.iter().enumerate() {
            let mut expected = was.get(&standing.endpoint).cloned().unwrap_or_else(|| Expected::new(Moment(0)));
            expected.release(u32::MAX);
            self.known.push(expected);
            self.places.insert(standing.endpoint, place);
        }
        self.fit = fit(&known.standings)
            .map(|standing| Fit {
                endpoint: standing.endpoint,
                place: self.places[&standing.endpoint],
                standing: standing.weight(known.policy.select),
                weight: standing.capacity,
                owed: owed.get(&standing.endpoint).copied().unwrap_or(0),
                claim: 0,
                room: 0.0,
            })
            .collect();
        self.along_capacities();
        self.limit_debts(self.at_least(0));
    }

    fn say(&mut self, endpoint: EndpointId, capacity: u32, load: Option<u32>) {
        if let Some(&place) = self.places.get(&endpoint) {
            self.known[place].say(capacity, load);
        }
    }

    fn along_capacities(&mut self) {
        self.fit.iter_mut().for_each(|fit| fit.weight = fit.standing);
        self.weights = self.fit.iter().map(|f| u64::from(f.weight)).sum();
    }

    /// One token for each endpoint at least: else a farm of thousands would need a grant for every few connections.
    fn at_least(&self, tokens: u32) -> u32 {
        tokens.max(self.policy.tokens).max(u32::try_from(self.fit.len()).unwrap_or(u32::MAX))
    }

    /// The part of `total` that is due to an endpoint by its weight.
    fn part(&self, total: i128, i: usize) -> i128 {
        total * i128::from(self.fit[i].weight) / i128::from(self.weights.max(1))
    }

    /// Nobody is owed more than one grant's worth: old debts must not flood an endpoint that has become small.
    fn limit_debts(&mut self, tokens: u32) {
        for i in 0..self.fit.len() {
            let most = self.part(i128::from(tokens) * TOKEN, i).max(TOKEN);
            self.fit[i].owed = self.fit[i].owed.clamp(-most, most);
        }
    }

    /// Deals out a classifier's part of what is free by what the hosts say.
    fn deal_free(&mut self, demand: Demand, now: Moment, allotment: &mut Allotment) {
        let known = &mut self.known;
        self.askers.expire(now, |place, tokens| known[place].release(tokens));
        self.askers.take_back(demand.rotation, |place, tokens| known[place].release(tokens));
        self.learn_cost(now);
        let mut free = 0.0;
        for fit in &mut self.fit {
            fit.room = self.known[fit.place].free(self.cost);
            free += fit.room.max(0.0);
            fit.weight = whole(fit.room * FINE);
        }
        self.weights = self.fit.iter().map(|f| u64::from(f.weight)).sum();
        let part = self.askers.part(demand.rotation, now);
        let tokens = whole((free * part / FRESH).max(free.min(1.0))).min(self.at_least(demand.tokens));
        if tokens > 0 {
            self.limit_debts(tokens);
            self.deal(tokens, demand.rotation, &mut allotment.shares);
            for (fit, share) in self.fit.iter().zip(&mut allotment.shares) {
                share.amount = share.amount.min(whole(fit.room.ceil()));
            }
        }
        if allotment.shares.iter().all(|share| share.amount == 0) {
            allotment.shares.clear();
            self.deal_slack(demand.rotation, &mut allotment.shares);
        }
        let held = self.fit.iter().zip(&allotment.shares).filter(|(_, share)| share.amount > 0);
        let held = held.map(|(fit, share)| (fit.place, share.amount));
        held.clone().for_each(|(place, tokens)| self.known[place].hold(tokens));
        self.askers.hold(demand.rotation, held, now.after(allotment.valid), now);
    }

    /// What a connection costs: all load that there is, by all connections that it shows; at first a unit of capacity.
    ///
    /// Load that is not ours (another unit's) makes ours look dear, and so leaves us our part of what is free.
    fn learn_cost(&mut self, now: Moment) {
        let (mut load, mut seen, mut capacity) = (1.0, 1.0, 0.0_f64);
        for fit in &self.fit {
            let expected = &mut self.known[fit.place];
            expected.advance(self.cost, now);
            capacity = capacity.max(expected.capacity());
            if let Some(said) = expected.load() {
                load += said;
                seen += expected.seen();
            }
        }
        self.cost = (load / seen).clamp(LEAST_COST, capacity.max(LEAST_COST));
    }

    /// Nothing is free: a few tokens all the same, for those that are least beyond their capacity.
    fn deal_slack(&mut self, rotation: u32, shares: &mut Vec<Share>) {
        self.by_rest.clear();
        for ((i, fit), rank) in self.fit.iter().enumerate().zip(ranks(self.fit.len(), rotation)) {
            shares.push(Share { endpoint: fit.endpoint, amount: 0 });
            let beyond = -fit.room / self.known[fit.place].capacity().max(1.0);
            #[expect(clippy::cast_possible_truncation, reason = "it saturates, and only the order counts")]
            let beyond = (beyond * 1e9) as i128;
            self.by_rest.push((Reverse(-beyond), rank, i));
        }
        let last = self.fit.len().div_ceil(SLACK) - 1;
        self.by_rest.select_nth_unstable(last);
        self.by_rest[..=last].iter().for_each(|(.., i)| shares[*i].amount = 1);
    }

    /// Deals out exactly `tokens` tokens by weight and by what is owed, the last ones by largest remainder.
    fn deal(&mut self, tokens: u32, rotation: u32, shares: &mut Vec<Share>) {
        let total = i128::from(tokens) * TOKEN;
        let mut claimed = 0;
        for i in 0..self.fit.len() {
            // Who has no room has no claim, whatever it is owed.
            let owed = if self.fit[i].weight > 0 { self.fit[i].owed } else { 0 };
            self.fit[i].claim = owed + self.part(total, i);
            claimed += self.fit[i].claim.max(0);
        }
        self.by_rest.clear();
        let mut left = tokens;
        let ranks = ranks(self.fit.len(), rotation);
        for ((i, fit), rank) in self.fit.iter().enumerate().zip(ranks) {
            let exact = fit.claim.max(0) * total / claimed.max(1);
            let amount = u32::try_from(exact / TOKEN).unwrap_or(u32::MAX).min(left);
            left -= amount;
            shares.push(Share { endpoint: fit.endpoint, amount });
            if fit.weight > 0 {
                self.by_rest.push((Reverse(exact % TOKEN), rank, i));
            }
        }
        while let Some(last) = usize::try_from(left).unwrap_or(usize::MAX).min(self.by_rest.len()).checked_sub(1) {
            self.by_rest.select_nth_unstable(last);
            for (.., i) in &self.by_rest[..=last] {
                shares[*i].amount += 1;
                left -= 1;
            }
        }
        for (fit, share) in self.fit.iter_mut().zip(shares) {
            fit.owed = fit.claim - i128::from(share.amount) * TOKEN;
        }
    }
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

/// What there is of it in whole numbers.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates at both ends")]
fn whole(value: f64) -> u32 {
    value as u32
}

/// A token in the parts that are counted.
const TOKEN: i128 = 1 << 20;
/// A connection's room in the parts that are weighed.
const FINE: f64 = 1024.0;
/// No grant is more than one of so many parts of what is free: the next one knows what has ended meanwhile.
const FRESH: f64 = 4.0;
/// Where nothing is free, one of so many endpoints gets a token.
const SLACK: usize = 16;
/// A connection costs at least this of a capacity.
const LEAST_COST: f64 = 0.001;

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
                let free: f64 = served.fit.iter().map(|fit| fit.room.max(0.0)).sum();
                prop_assert!(f64::from(given) <= free.max(1.0), "{} of {}", given, free);
                for (fit, share) in served.fit.iter().zip(&allotment.shares) {
                    let is_slack = given == 1 && share.amount == 1;
                    prop_assert!(is_slack || f64::from(share.amount) < fit.room.max(0.0) + 1.0);
                }
                // What all of them hold is what the handler counts.
                let held: u32 = served.askers.held();
                let counted: u32 = served.known.iter().map(|expected| expected.held()).sum();
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
