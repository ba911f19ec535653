//! The health & load handler: turns the standings of a service into allotments for classifiers.

use std::cmp::Reverse;
use std::time::Duration;

use hashbrown::HashMap;
use weir_identity::{EndpointId, Moment, ServiceId};

use crate::standing::{Policy, Select, ServiceStanding, Standing};

/// A classifier asks for an allotment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The service it has connections for.
    pub service: ServiceId,
    /// How many tokens it would like; the policy's number if that is greater.
    pub tokens: u32,
    /// Which classifier asks: where it begins among equals.
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
/// Over many grants every endpoint gets its exact part: what rounding kept from one is owed to it, and so is what a classifier had
/// to give back unspent because it was too old ([`Handler::settle`]). Else a service with few connections would only ever use
/// the first tokens of each allotment, those of the greatest endpoint.
#[derive(Debug, Default)]
pub struct Handler {
    services: HashMap<ServiceId, Served>,
}

#[derive(Debug)]
struct Served {
    policy: Policy,
    /// The endpoints that fit, in the operator's order.
    fit: Vec<Fit>,
    weights: u64,
    /// Who comes first when the last tokens are dealt out: scratch of a grant.
    by_rest: Vec<(Reverse<i128>, usize, usize)>,
}

#[derive(Debug)]
struct Fit {
    endpoint: EndpointId,
    weight: u32,
    /// Parts of a token that earlier grants kept from it (or, below zero, gave it ahead of the others).
    owed: i128,
    /// What it may claim of the grant in the making.
    claim: i128,
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
        if !self.would_change(known) {
            return false;
        }
        let owed: HashMap<EndpointId, i128> = match self.services.get(&known.service) {
            Some(served) => served.fit.iter().map(|f| (f.endpoint, f.owed)).collect(),
            None => HashMap::new(),
        };
        let mut served = Served { policy: known.policy, fit: Vec::new(), weights: 0, by_rest: Vec::new() };
        served.fit.extend(fit(&known.standings).map(|s| Fit {
            endpoint: s.endpoint,
            weight: s.capacity,
            owed: 0,
            claim: 0,
        }));
        served.weights = served.fit.iter().map(|f| u64::from(f.weight)).sum();
        let tokens = served.at_least(0);
        for i in 0..served.fit.len() {
            // Nobody is owed more than one grant's worth: old debts must not flood an endpoint that has become small.
            let most = served.part(i128::from(tokens) * TOKEN, i).max(TOKEN);
            let owed = owed.get(&served.fit[i].endpoint).copied().unwrap_or(0);
            served.fit[i].owed = owed.clamp(-most, most);
        }
        self.services.insert(known.service, served);
        true
    }

    /// Would an update with this void the allotments granted so far?
    #[must_use]
    pub fn would_change(&self, known: &ServiceStanding) -> bool {
        self.services.get(&known.service).is_none_or(|served| {
            served.policy != known.policy
                || !served
                    .fit
                    .iter()
                    .map(|f| (f.endpoint, f.weight))
                    .eq(fit(&known.standings).map(|s| (s.endpoint, s.capacity)))
        })
    }

    /// Forgets a service.
    pub fn remove(&mut self, service: ServiceId) {
        self.services.remove(&service);
    }

    /// Grants an allotment into `allotment`, whose room is used again; false (and no share) if no endpoint fits.
    pub fn grant(&mut self, demand: Demand, now: Moment, allotment: &mut Allotment) -> bool {
        allotment.clear();
        allotment.granted = now;
        let Some(served) = self.services.get_mut(&demand.service).filter(|served| !served.fit.is_empty()) else {
            return false;
        };
        if served.policy.select == Select::Tokens {
            allotment.valid = served.policy.max_age;
            let tokens = served.at_least(demand.tokens);
            served.deal(tokens, demand.rotation, &mut allotment.shares);
        } else {
            allotment.valid = served.policy.lifetime;
            let shares = served.fit.iter().map(|f| Share { endpoint: f.endpoint, amount: f.weight });
            allotment.shares.extend(shares);
        }
        true
    }

    /// Takes back what is left of a token allotment, so that those who were not served by it are next time.
    ///
    /// Call it before the [`Handler::update`] that voids the allotment; one of other endpoints is ignored.
    pub fn settle(&mut self, service: ServiceId, left: &Allotment) {
        let Some(served) = self.services.get_mut(&service) else { return };
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
    /// One token for each endpoint at least: else a farm of thousands would need a grant for every few connections.
    fn at_least(&self, tokens: u32) -> u32 {
        tokens.max(self.policy.tokens).max(u32::try_from(self.fit.len()).unwrap_or(u32::MAX))
    }

    /// The part of `total` that is due to an endpoint by its weight.
    fn part(&self, total: i128, i: usize) -> i128 {
        total * i128::from(self.fit[i].weight) / i128::from(self.weights.max(1))
    }

    /// Deals out exactly `tokens` tokens by weight and by what is owed, the last ones by largest remainder.
    fn deal(&mut self, tokens: u32, rotation: u32, shares: &mut Vec<Share>) {
        let total = i128::from(tokens) * TOKEN;
        let mut claimed = 0;
        for i in 0..self.fit.len() {
            self.fit[i].claim = self.fit[i].owed + self.part(total, i);
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
            self.by_rest.push((Reverse(exact % TOKEN), rank, i));
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

/// A token in the parts that are counted.
const TOKEN: i128 = 1 << 20;

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
        handler.settle(SERVICE, &allotment);
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

    proptest! {
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
                handler.settle(SERVICE, &allotment);
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
