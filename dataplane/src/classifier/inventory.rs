//! The classifier's inventory: the sessions it has decided or been told of, which is its unit's part of the session table.

use weir_cpu::MapError;
use weir_identity::EndpointId;

use crate::flow::{FlowHash, Key};
use crate::populate::Populate;
use crate::route_table::{Action, Entry, IdleTimeouts, Route, RouteTable, Slot, Slot4, Slot6, State};

/// Sessions by flow, 64 bytes each for IPv4.
///
/// A session that a forwarder has a route for lives until that forwarder gives notice; one without a route lives for its state's
/// idle timeout.
#[derive(Debug)]
pub(super) struct Inventory {
    v4: RouteTable<Slot4>,
    v6: RouteTable<Slot6>,
    /// Connections that began or ended since they were asked for.
    news: News,
}

/// Endpoints whose connections began (true) or ended.
type News = Vec<(EndpointId, bool)>;

impl Inventory {
    pub(super) fn new(capacity_v4: usize, capacity_v6: usize, hash: &FlowHash) -> Result<Self, MapError> {
        Ok(Self {
            v4: RouteTable::new(capacity_v4, hash.clone())?,
            v6: RouteTable::new(capacity_v6, hash.clone())?,
            news: News::new(),
        })
    }

    pub(super) fn populate(&mut self, populate: &Populate) -> Result<(), MapError> {
        self.v4.populate(populate)?;
        self.v6.populate(populate)
    }

    pub(super) fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }

    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub(super) fn places(&self) -> usize {
        self.v4.slots().max(self.v6.slots())
    }

    #[inline]
    pub(super) fn prefetch(&self, key: &Key) {
        match key {
            Key::V4(key) => self.v4.prefetch(key),
            Key::V6(key) => self.v6.prefetch(key),
        }
    }

    /// The route of a session that is alive.
    pub(super) fn find(&self, key: &Key, now: u32, timeouts: &IdleTimeouts) -> Option<Route> {
        match key {
            Key::V4(key) => find(&self.v4, key, now, timeouts),
            Key::V6(key) => find(&self.v6, key, now, timeouts),
        }
    }

    /// Remembers a session that a forwarder gets a route for; whether another one had to be forgotten for it.
    pub(super) fn put(&mut self, key: &Key, route: Route, now: u32) -> bool {
        match key {
            Key::V4(key) => put(&mut self.v4, key, route, now, &mut self.news),
            Key::V6(key) => put(&mut self.v6, key, route, now, &mut self.news),
        }
    }

    /// A forwarder gets a route for a session again.
    pub(super) fn mark_routed(&mut self, key: &Key, state: Option<State>, now: u32) {
        self.change(key, |entry| {
            entry.set_flags(ROUTED);
            entry.touch(now);
            state.into_iter().for_each(|state| entry.set_state(state));
        });
    }

    /// The forwarder has no route any more; the session stays for its idle timeout.
    pub(super) fn mark_unrouted(&mut self, key: &Key, now: u32) {
        self.change(key, |entry| {
            entry.set_flags(0);
            entry.touch(now);
        });
    }

    /// The client has continued its handshake. A connection that is already closing stays so.
    pub(super) fn confirm(&mut self, key: &Key) {
        self.change(key, |entry| {
            if entry.state() == State::Opening {
                entry.set_state(State::Established);
            }
        });
    }

    /// The forwarder has completed the route's binding.
    pub(super) fn bind(&mut self, key: &Key, bound: u64) {
        self.change(key, |entry| {
            let Route { action, state } = entry.route();
            if let Action::Send { endpoint, mode, .. } = action {
                entry.set_route(Route { action: Action::Send { endpoint, mode, value: bound }, state });
            }
        });
    }

    /// One side has ended.
    pub(super) fn close(&mut self, key: &Key) {
        self.change(key, |entry| entry.set_state(State::Closing));
    }

    pub(super) fn remove(&mut self, key: &Key) {
        match key {
            Key::V4(key) => self.v4.find(key).into_iter().for_each(|index| remove(&mut self.v4, index, &mut self.news)),
            Key::V6(key) => self.v6.find(key).into_iter().for_each(|index| remove(&mut self.v6, index, &mut self.news)),
        }
    }

    /// Forgets sessions without a route that are out of time, among the next `count` places.
    pub(super) fn sweep(&mut self, count: usize, now: u32, timeouts: &IdleTimeouts) {
        let news = &mut self.news;
        let mut gone = |entry: &Entry| {
            let gone = entry.flags() & ROUTED == 0 && entry.expired(now, timeouts);
            if gone {
                tell(Some(entry.route()), None, news);
            }
            gone
        };
        self.v4.sweep(count, |_, entry| gone(entry));
        self.v6.sweep(count, |_, entry| gone(entry));
    }

    /// Connections that began or ended since the last call, by endpoint. A closing one has ended.
    pub(super) fn news(&mut self) -> impl Iterator<Item = (EndpointId, bool)> + '_ {
        self.news.drain(..)
    }

    fn change(&mut self, key: &Key, change: impl FnOnce(&mut Entry)) {
        let entry = match key {
            Key::V4(key) => self.v4.find(key).map(|index| self.v4.entry_mut(index)),
            Key::V6(key) => self.v6.find(key).map(|index| self.v6.entry_mut(index)),
        };
        if let Some(entry) = entry {
            let before = entry.route();
            change(entry);
            tell(Some(before), Some(entry.route()), &mut self.news);
        }
    }
}

fn find<S: Slot>(table: &RouteTable<S>, key: &S::Key, now: u32, timeouts: &IdleTimeouts) -> Option<Route> {
    let entry = table.entry(table.find(key)?);
    (entry.flags() & ROUTED != 0 || !entry.expired(now, timeouts)).then(|| entry.route())
}

/// Notes what a change of a session means for its endpoint.
fn tell(before: Option<Route>, after: Option<Route>, news: &mut News) {
    let endpoint = |route: Option<Route>| match route?.action {
        Action::Send { endpoint, .. } if !matches!(route?.state, State::Closing | State::Refused) => Some(endpoint),
        _ => None,
    };
    let (before, after) = (endpoint(before), endpoint(after));
    if before != after {
        news.extend(before.map(|endpoint| (endpoint, false)));
        news.extend(after.map(|endpoint| (endpoint, true)));
    }
}

fn remove<S: Slot>(table: &mut RouteTable<S>, index: usize, news: &mut News) {
    tell(Some(table.entry(index).route()), None, news);
    table.remove(index);
}

fn put<S: Slot>(table: &mut RouteTable<S>, key: &S::Key, route: Route, now: u32, news: &mut News) -> bool {
    if let Some(index) = table.find(key) {
        let entry = table.entry_mut(index);
        tell(Some(entry.route()), Some(route), news);
        entry.set_route(route);
        entry.set_flags(ROUTED);
        entry.touch(now);
        return false;
    }
    let mut evicted = false;
    if table.is_full() {
        let mut victim = None;
        // A sparse stretch may hold nothing; the cursor moves on each time.
        for _ in 0..EVICTION_ROUNDS {
            victim = table.least_worth(EVICTION_SAMPLE, now);
            if victim.is_some() {
                break;
            }
        }
        if let Some((index, _)) = victim {
            remove(table, index, news);
            evicted = true;
        }
    }
    let index = table.insert(key, route, now).or_else(|full| {
        let in_the_way = table.least_in_the_way(key, now).and_then(|worst| table.find(&worst)).ok_or(full)?;
        remove(table, in_the_way, news);
        evicted = true;
        table.insert(key, route, now)
    });
    if let Ok(index) = index {
        table.entry_mut(index).set_flags(ROUTED);
        tell(None, Some(route), news);
    }
    evicted
}

/// A forwarder has a route for this session.
const ROUTED: u8 = 1;
const EVICTION_SAMPLE: usize = 32;
const EVICTION_ROUNDS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Key4, Key6, protocol};
    use crate::route_table::Mode;

    const TIMEOUTS: IdleTimeouts = IdleTimeouts([10, 1_000, 100, 50, 10]);

    fn keys(n: u8) -> [Key; 2] {
        let v4 =
            Key4 { source: [10, 0, 0, n], destination: [10, 9, 0, 1], ports: [9, n, 0, 80], protocol: protocol::TCP };
        let v6 = Key6 { source: [n; 16], destination: [9; 16], ports: [9, n, 0, 80], protocol: protocol::TCP };
        [Key::V4(v4), Key::V6(v6)]
    }

    fn route(endpoint: u32, state: State) -> Route {
        Route { action: Action::Send { endpoint: EndpointId(endpoint), mode: Mode::Nat, value: 0 }, state }
    }

    fn inventory() -> Inventory {
        Inventory::new(4, 4, &FlowHash::new(1)).unwrap()
    }

    #[test]
    fn a_routed_session_lives_until_its_forwarder_says_otherwise() {
        for key in keys(1) {
            let mut inventory = inventory();
            inventory.put(&key, route(1, State::Opening), 0);
            inventory.sweep(100, 5_000, &TIMEOUTS);
            assert_eq!(inventory.find(&key, 5_000, &TIMEOUTS), Some(route(1, State::Opening)));
            inventory.confirm(&key);
            inventory.mark_unrouted(&key, 5_000);
            assert_eq!(inventory.find(&key, 6_000, &TIMEOUTS), Some(route(1, State::Established)));
            assert_eq!(inventory.find(&key, 6_001, &TIMEOUTS), None, "out of time is a miss before the sweep");
            inventory.sweep(100, 6_001, &TIMEOUTS);
            assert_eq!(inventory.len(), 0);
        }
    }

    #[test]
    fn a_late_confirmation_does_not_open_a_closing_connection() {
        for key in keys(1) {
            let mut inventory = inventory();
            inventory.put(&key, route(1, State::Opening), 0);
            inventory.close(&key);
            inventory.confirm(&key);
            assert_eq!(inventory.find(&key, 0, &TIMEOUTS).unwrap().state, State::Closing);
            // Notices about what is forgotten change nothing.
            inventory.remove(&key);
            inventory.close(&key);
            inventory.mark_unrouted(&key, 0);
            assert_eq!(inventory.len(), 0);
        }
    }

    #[test]
    fn every_connection_that_began_ends_once() {
        for family in 0..2 {
            let key = |n| keys(n)[family];
            let mut inventory = inventory();
            let mut live = [0i32; 3];
            let mut count = |inventory: &mut Inventory| {
                inventory.news().for_each(|(endpoint, began)| live[endpoint.index()] += if began { 1 } else { -1 });
                live
            };
            (0..4).for_each(|n| assert!(!inventory.put(&key(n), route(1, State::Opening), 0)));
            assert_eq!(count(&mut inventory), [0, 4, 0]);
            inventory.confirm(&key(0));
            inventory.put(&key(1), route(2, State::Opening), 1);
            assert_eq!(count(&mut inventory), [0, 3, 1], "one goes to another endpoint");
            inventory.close(&key(0));
            inventory.close(&key(0));
            inventory.remove(&key(0));
            assert_eq!(count(&mut inventory), [0, 2, 1]);
            inventory.put(&key(0), route(0, State::Established), 2);
            inventory.put(&key(4), route(0, State::Established), 3); // for it another one is forgotten
            assert_eq!(count(&mut inventory).iter().sum::<i32>(), 4);
            (0..5).for_each(|n| inventory.mark_unrouted(&key(n), 3));
            inventory.sweep(100, 10_000, &TIMEOUTS);
            assert_eq!(count(&mut inventory), [0, 0, 0]);
        }
    }

    #[test]
    fn a_full_inventory_forgets_what_is_worth_least() {
        for family in 0..2 {
            let key = |n| keys(n)[family];
            let mut inventory = inventory();
            for n in 0..4 {
                let state = if n == 2 { State::Opening } else { State::Established };
                assert!(!inventory.put(&key(n), route(n.into(), state), n.into()));
            }
            assert!(!inventory.put(&key(0), route(9, State::Established), 10), "a known one needs no room");
            assert!(inventory.put(&key(4), route(4, State::Established), 11));
            assert!(inventory.put(&key(5), route(5, State::Established), 12));
            let known: Vec<_> = (0..6).filter(|n| inventory.find(&key(*n), 12, &TIMEOUTS).is_some()).collect();
            assert_eq!(known, [0, 3, 4, 5]);
        }
    }
}
