//! What the endpoints of a service can take, in parts of at most 64 of them: a grant deals out one part, so that it costs the same in
//! every farm.

use std::cmp::Reverse;
use std::ops::Range;

use hashbrown::HashMap;
use weir_identity::{EndpointId, Moment};

use crate::expected::Expected;
use crate::handler::{Share, fit, ranks};
use crate::standing::ServiceStanding;

/// The endpoints of one service and what is left to be granted of each.
///
/// Parts take turns along what they can take: each is as far along the way as tokens of it were spent, and the one that is least far is next
/// ([`Percentages`](crate::percentages::Percentages) does the same with endpoints). Within a part tokens are dealt out along what each endpoint
/// can take and what is owed to it. A service of 64 endpoints or fewer is a single part.
///
/// What hosts' reports leave free changes with time. It is worked out anew for the part of a grant, and for one more each time; for all others
/// it is as of the last time, but for what has been heard of them since.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    /// All endpoints, and where each is among those that fit.
    known: Vec<Known>,
    /// The endpoints that fit, in the operator's order.
    pub(crate) fit: Vec<Fit>,
    parts: Vec<Part>,
    /// What a connection costs of a capacity.
    cost: f64,
    /// How far along the way the part of the latest grant was.
    reached: f64,
    /// The part that is looked at beside that of the next grant.
    due: usize,
    /// Who comes first when the last tokens are dealt out: scratch of a grant.
    by_rest: Vec<(Reverse<i128>, usize, usize)>,
}

#[derive(Debug)]
struct Known {
    endpoint: EndpointId,
    expected: Expected,
    fit: Option<usize>,
}

/// An endpoint that gets new connections.
#[derive(Debug)]
pub(crate) struct Fit {
    pub(crate) endpoint: EndpointId,
    /// Its place among all endpoints.
    place: usize,
    /// Its part.
    part: usize,
    /// By its standing.
    pub(crate) standing: u32,
    /// In the latest grant.
    weight: u32,
    /// Parts of a token that earlier grants kept from it (or, below zero, gave it ahead of the others).
    owed: i128,
    /// What it may claim of the grant in the making.
    claim: i128,
    /// Connections that it can still take.
    pub(crate) room: f64,
}

#[derive(Debug)]
struct Part {
    range: Range<usize>,
    /// How far along the way it is: tokens by what it can take.
    at: f64,
    /// What that was in the latest grant.
    by: f64,
    /// All weights by the standings, and in the latest grant.
    standing: u64,
    weights: u64,
    /// Rooms of all; of those that have any.
    room: f64,
    free: f64,
    /// Sums over those that say their load, and over all.
    load: f64,
    seen: f64,
    capacity: f64,
    /// The greatest capacity.
    greatest: f64,
}

impl Stock {
    /// Begins anew with other endpoints, another policy or other weights; `tokens` is what a grant of all would be.
    pub(crate) fn rebuild(&mut self, known: &ServiceStanding, tokens: u32) {
        let owed: HashMap<EndpointId, i128> = self.fit.iter().map(|f| (f.endpoint, f.owed)).collect();
        let ways: Vec<f64> = self.parts.iter().map(|part| (part.at - self.reached).max(0.0)).collect();
        self.cost = self.cost.max(LEAST_COST);
        self.reached = 0.0;
        let mut was: HashMap<EndpointId, Expected> =
            self.known.drain(..).map(|known| (known.endpoint, known.expected)).collect();
        for standing in &known.standings {
            let mut expected = was.remove(&standing.endpoint).unwrap_or_else(|| Expected::new(Moment(0)));
            expected.release(u32::MAX);
            self.known.push(Known { endpoint: standing.endpoint, expected, fit: None });
        }
        self.fit.clear();
        let places = (0..).zip(&known.standings);
        let mut places = places.map(|(place, standing)| (place, standing.endpoint));
        for standing in fit(&known.standings) {
            let Some((place, endpoint)) = places.find(|(_, endpoint)| *endpoint == standing.endpoint) else { break };
            self.known[place].fit = Some(self.fit.len());
            let weight = standing.weight(known.policy.select);
            let owed = owed.get(&endpoint).copied().unwrap_or(0);
            let (part, claim, room) = (0, 0, 0.0);
            self.fit.push(Fit { endpoint, place, part, standing: weight, weight, owed, claim, room });
        }
        self.parts.clear();
        let parts = self.fit.len().div_ceil(PART).max(1);
        for index in 0..parts {
            let range = index * self.fit.len() / parts..(index + 1) * self.fit.len() / parts;
            self.fit[range.clone()].iter_mut().for_each(|fit| fit.part = index);
            let standing = self.fit[range.clone()].iter().map(|fit| u64::from(fit.standing)).sum();
            let at = ways.get(index).copied().unwrap_or(0.0);
            let (by, weights) = (as_float(standing), standing);
            let (room, free, load, seen, capacity, greatest) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
            self.parts.push(Part { range, at, by, standing, weights, room, free, load, seen, capacity, greatest });
        }
        self.due = 0;
        for index in 0..parts {
            self.along_capacities(index);
            self.limit_debts(index, self.tokens_of(index, tokens));
        }
    }

    /// How many endpoints fit.
    pub(crate) fn len(&self) -> usize {
        self.fit.len()
    }

    /// Whether this endpoint has this place among all.
    pub(crate) fn is_at(&self, place: usize, endpoint: EndpointId) -> bool {
        self.known.get(place).is_some_and(|known| known.endpoint == endpoint)
    }

    /// Whether an endpoint that fits says its load.
    pub(crate) fn is_live(&self) -> bool {
        self.fit.iter().any(|fit| self.known[fit.place].expected.load().is_some())
    }

    /// What a host says of the endpoint at a place.
    pub(crate) fn say(&mut self, place: usize, capacity: u32, load: Option<u32>) {
        self.change(place, |expected, _| expected.say(capacity, load));
    }

    /// Tokens of the endpoint at a place came back, or were spent.
    pub(crate) fn release(&mut self, place: usize, tokens: u32) {
        self.change(place, |expected, _| expected.release(tokens));
    }

    /// Connections began and ended at the endpoint at a place; `spent` of them by a token.
    pub(crate) fn count(&mut self, place: usize, (began, ended): (u32, u32), spent: u32, now: Moment) {
        self.change(place, |expected, cost| {
            expected.advance(cost, now);
            expected.release(spent);
            expected.count(began, ended);
        });
    }

    /// Grants tokens along the capacities by the standings; `tokens` is what a grant of all would be.
    pub(crate) fn deal_capacities(&mut self, tokens: u32, rotation: u32, shares: &mut Vec<Share>) {
        let index = self.next_part(rotation, |part| Some(as_float(part.standing))).unwrap_or(0);
        self.along_capacities(index);
        let tokens = self.tokens_of(index, tokens);
        self.deal(index, tokens, rotation, shares);
        let by = as_float(self.parts[index].standing);
        self.passes(index, tokens, by);
    }

    /// Grants tokens along what is free by what the hosts say: `part` is the classifier's of all demand, `most` the most of all.
    ///
    /// Returns the tokens by places. Release what the classifier still had before.
    pub(crate) fn deal_free(
        &mut self,
        (part, most): (f64, u32),
        rotation: u32,
        now: Moment,
        shares: &mut Vec<Share>,
    ) -> impl Iterator<Item = (usize, u32)> {
        let has_several = self.parts.len() > 1;
        if has_several {
            self.due = (self.due + 1) % self.parts.len();
            self.look(self.due, now);
            self.weigh(self.due);
        }
        let with_room = self.next_part(rotation, |part| (part.free >= 1.0).then_some(part.free));
        let index = with_room.unwrap_or_else(|| self.least_beyond(rotation));
        self.look(index, now);
        self.learn_cost();
        self.weigh(index);
        let free: f64 = self.parts.iter().map(|part| part.free).sum();
        let mut tokens = whole((free * part / FRESH).max(free.min(1.0))).min(most);
        let mut slack = self.parts[index].range.len().div_ceil(SLACK);
        if has_several {
            let here = self.parts[index].free;
            let mine = whole(f64::from(tokens) * here / free.max(1.0));
            // What a grant costs has to be shared by some connections.
            (tokens, slack) = if here >= f64::from(LEAST) { (mine.max(LEAST), 0) } else { (0, LEAST as usize) };
        }
        if tokens > 0 {
            self.limit_debts(index, tokens);
            self.deal(index, tokens, rotation, shares);
            let range = self.parts[index].range.clone();
            for (fit, share) in self.fit[range].iter().zip(&mut *shares) {
                share.amount = share.amount.min(whole(fit.room.ceil()));
            }
            self.passes(index, tokens, self.parts[index].free);
        }
        if shares.iter().all(|share| share.amount == 0) {
            shares.clear();
            self.deal_slack(index, slack.max(1), rotation, shares);
        }
        let range = self.parts[index].range.clone();
        for (i, share) in range.clone().zip(&*shares).filter(|(_, share)| share.amount > 0) {
            self.change(self.fit[i].place, |expected, _| expected.hold(share.amount));
        }
        let held = self.fit[range].iter().zip(shares).filter(|(_, share)| share.amount > 0);
        held.map(|(fit, share)| (fit.place, share.amount))
    }

    /// Takes back what is left of a grant, among which the endpoint at `place` is the first; one of other endpoints is ignored.
    pub(crate) fn settle(&mut self, place: usize, left: &[Share]) {
        let Some(fit) = self.known[place].fit else { return };
        let index = self.fit[fit].part;
        let range = self.parts[index].range.clone();
        if !self.fit[range.clone()].iter().map(|f| f.endpoint).eq(left.iter().map(|share| share.endpoint)) {
            return;
        }
        let unspent: i128 = left.iter().map(|share| i128::from(share.amount)).sum();
        for (i, share) in range.zip(left) {
            self.fit[i].owed += i128::from(share.amount) * TOKEN - self.due_to(unspent * TOKEN, i);
        }
        let part = &mut self.parts[index];
        #[expect(clippy::cast_precision_loss, reason = "tokens of one grant")]
        let back = unspent as f64 / part.by.max(1.0);
        part.at -= back;
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> u32 {
        self.known.iter().map(|known| known.expected.held()).sum()
    }

    /// Changes what is known of an endpoint, and with it what its part has free.
    fn change(&mut self, place: usize, change: impl FnOnce(&mut Expected, f64)) {
        let known = &mut self.known[place];
        change(&mut known.expected, self.cost);
        let Some(fit) = known.fit else { return };
        let fit = &mut self.fit[fit];
        let before = std::mem::replace(&mut fit.room, known.expected.free(self.cost));
        let part = &mut self.parts[fit.part];
        part.room += fit.room - before;
        part.free += fit.room.max(0.0) - before.max(0.0);
    }

    /// Whose turn it is among the parts that can take something; equals by the classifier's rank.
    fn next_part(&self, rotation: u32, takes: impl Fn(&Part) -> Option<f64>) -> Option<usize> {
        if self.parts.len() == 1 {
            return takes(&self.parts[0]).map(|_| 0);
        }
        let parts = self.parts.iter().enumerate().zip(ranks(self.parts.len(), rotation));
        let can = parts.filter(|((_, part), _)| takes(part).is_some_and(|takes| takes > 0.0));
        // Whoever could take nothing for long does not get all of it afterwards.
        let next = can.map(|((index, part), rank)| (part.at.max(self.reached), rank, index));
        next.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(.., index)| index)
    }

    /// The part that is least beyond its capacity.
    fn least_beyond(&self, rotation: u32) -> usize {
        let parts = self.parts.iter().enumerate().zip(ranks(self.parts.len(), rotation));
        let rooms = parts.map(|((index, part), rank)| (part.room / part.capacity.max(1.0), Reverse(rank), index));
        rooms.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map_or(0, |(.., index)| index)
    }

    /// A part got tokens, of so much that it can take.
    fn passes(&mut self, index: usize, tokens: u32, by: f64) {
        let part = &mut self.parts[index];
        self.reached = self.reached.max(part.at);
        part.by = by.max(1.0);
        part.at = part.at.max(self.reached) + f64::from(tokens) / part.by;
    }

    /// A part's tokens, of a grant of all.
    fn tokens_of(&self, index: usize, tokens: u32) -> u32 {
        if self.parts.len() == 1 {
            return tokens;
        }
        let all: u64 = self.parts.iter().map(|part| part.standing).sum();
        let mine = u128::from(tokens) * u128::from(self.parts[index].standing) / u128::from(all.max(1));
        u32::try_from(mine).unwrap_or(u32::MAX).max(1)
    }

    fn along_capacities(&mut self, index: usize) {
        let part = &mut self.parts[index];
        self.fit[part.range.clone()].iter_mut().for_each(|fit| fit.weight = fit.standing);
        part.weights = part.standing;
    }

    /// The part of `total` that is due to an endpoint by its weight.
    fn due_to(&self, total: i128, i: usize) -> i128 {
        let Fit { weight, part, .. } = self.fit[i];
        scale(total, weight.into(), self.parts[part].weights.max(1).into())
    }

    /// Nobody is owed more than one grant's worth: old debts must not flood an endpoint that has become small.
    fn limit_debts(&mut self, index: usize, tokens: u32) {
        for i in self.parts[index].range.clone() {
            let most = self.due_to(i128::from(tokens) * TOKEN, i).max(TOKEN);
            self.fit[i].owed = self.fit[i].owed.clamp(-most, most);
        }
    }

    /// Works everything out anew, as of the last time that an endpoint was looked at: for a beginning.
    pub(crate) fn look_at_all(&mut self) {
        (0..self.parts.len()).for_each(|index| self.sum(index));
        self.learn_cost();
        for index in 0..self.parts.len() {
            self.weigh(index);
            self.along_capacities(index);
        }
    }

    /// Lets time pass at a part's endpoints.
    fn look(&mut self, index: usize, now: Moment) {
        for fit in &self.fit[self.parts[index].range.clone()] {
            self.known[fit.place].expected.advance(self.cost, now);
        }
        self.sum(index);
    }

    /// Adds up what a part's endpoints have and what they say.
    fn sum(&mut self, index: usize) {
        let part = &mut self.parts[index];
        (part.load, part.seen, part.capacity, part.greatest) = (0.0, 0.0, 0.0, 0.0);
        for fit in &self.fit[part.range.clone()] {
            let expected = &self.known[fit.place].expected;
            part.capacity += expected.capacity();
            part.greatest = part.greatest.max(expected.capacity());
            if let Some(said) = expected.load() {
                part.load += said;
                part.seen += expected.seen();
            }
        }
    }

    /// Works out what a part's endpoints have free.
    fn weigh(&mut self, index: usize) {
        let part = &mut self.parts[index];
        (part.room, part.free, part.weights) = (0.0, 0.0, 0);
        for fit in &mut self.fit[part.range.clone()] {
            fit.room = self.known[fit.place].expected.free(self.cost);
            fit.weight = whole(fit.room * FINE);
            part.room += fit.room;
            part.free += fit.room.max(0.0);
            part.weights += u64::from(fit.weight);
        }
    }

    /// What a connection costs: all load that there is, by all connections that it shows; at first a unit of capacity.
    ///
    /// Load that is not ours (another unit's) makes ours look dear, and so leaves us our part of what is free.
    fn learn_cost(&mut self) {
        let (mut load, mut seen, mut greatest) = (1.0, 1.0, 0.0_f64);
        for part in &self.parts {
            load += part.load;
            seen += part.seen;
            greatest = greatest.max(part.greatest);
        }
        self.cost = (load / seen).clamp(LEAST_COST, greatest.max(LEAST_COST));
    }

    /// Nothing is free: a few tokens all the same, for those that are least beyond their capacity.
    fn deal_slack(&mut self, index: usize, tokens: usize, rotation: u32, shares: &mut Vec<Share>) {
        self.by_rest.clear();
        let fit = &self.fit[self.parts[index].range.clone()];
        for ((i, fit), rank) in fit.iter().enumerate().zip(ranks(fit.len(), rotation)) {
            shares.push(Share { endpoint: fit.endpoint, amount: 0 });
            let beyond = -fit.room / self.known[fit.place].expected.capacity().max(1.0);
            #[expect(clippy::cast_possible_truncation, reason = "it saturates, and only the order counts")]
            let beyond = (beyond * 1e9) as i128;
            self.by_rest.push((Reverse(-beyond), rank, i));
        }
        let last = tokens.min(fit.len()) - 1;
        self.by_rest.select_nth_unstable(last);
        self.by_rest[..=last].iter().for_each(|(.., i)| shares[*i].amount = 1);
    }

    /// Deals out exactly `tokens` tokens by weight and by what is owed, the last ones by largest remainder.
    fn deal(&mut self, index: usize, tokens: u32, rotation: u32, shares: &mut Vec<Share>) {
        let range = self.parts[index].range.clone();
        let total = i128::from(tokens) * TOKEN;
        let mut claimed = 0;
        for i in range.clone() {
            // Who has no room has no claim, whatever it is owed.
            let owed = if self.fit[i].weight > 0 { self.fit[i].owed } else { 0 };
            self.fit[i].claim = owed + self.due_to(total, i);
            claimed += self.fit[i].claim.max(0);
        }
        self.by_rest.clear();
        let mut left = tokens;
        let fits = &mut self.fit[range];
        let ranks = ranks(fits.len(), rotation);
        for ((i, fit), rank) in fits.iter().enumerate().zip(ranks) {
            let exact = scale(fit.claim.max(0), total, claimed.max(1));
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
        for (fit, share) in fits.iter_mut().zip(shares) {
            fit.owed = fit.claim - i128::from(share.amount) * TOKEN;
        }
    }
}

/// `of * numerator / denominator`; the wide division is needed only for very large grants.
fn scale(of: i128, numerator: i128, denominator: i128) -> i128 {
    let narrow = || {
        let product = i64::try_from(of).ok()?.checked_mul(i64::try_from(numerator).ok()?)?;
        product.checked_div(i64::try_from(denominator).ok()?)
    };
    if numerator == denominator { of } else { narrow().map_or_else(|| of * numerator / denominator, i128::from) }
}

/// What there is of it in whole numbers.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates at both ends")]
fn whole(value: f64) -> u32 {
    value as u32
}

#[expect(clippy::cast_precision_loss, reason = "a sum of weights")]
fn as_float(value: u64) -> f64 {
    value as f64
}

/// Endpoints of one part, at the most.
const PART: usize = 64;
/// A token in the parts that are counted.
const TOKEN: i128 = 1 << 20;
/// A connection's room in the parts that are weighed.
const FINE: f64 = 1024.0;
/// No grant is more than one of so many parts of what is free: the next one knows what has ended meanwhile.
const FRESH: f64 = 4.0;
/// Where nothing is free, one of so many endpoints gets a token.
const SLACK: usize = 16;
/// Tokens of a grant in a service of several parts, at the least: there so many beyond what is free are nothing beside what there is.
const LEAST: u32 = 16;
/// A connection costs at least this of a capacity.
const LEAST_COST: f64 = 0.001;
