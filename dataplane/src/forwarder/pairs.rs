//! Routes of either family, and connections with a route for each direction: both are installed, live and go together.
//!
//! Across families one direction is in the IPv4 table and the other in the IPv6 table, so everything here works on [`Key`]s.

use arrayvec::ArrayVec;

use crate::counters::DropReason;
use crate::farm::Farm;
use crate::flow::Key;
use crate::forwarder::Forwarder;
use crate::forwarder::dead_ports::For;
use crate::plumbing::{Event, Notice};
use crate::rewrite;
use crate::route_table::{Action, Entry, Mode, Route, State};

/// Where a route is; until one is added or removed.
#[derive(Debug, Clone, Copy)]
pub(super) enum At {
    V4(usize),
    V6(usize),
}

/// To whom a pool's port is open once its connection's directions have gone, and at what moment they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// To nobody, for all of its dead time from now on: something else takes its place, or it has been deleted.
    ToNobody(u32),
    /// To the flow itself: should it come back, it goes on as it was.
    ToItself(u32),
}

impl Forwarder {
    /// Asks the processor for the lines where a key may be.
    #[inline]
    pub(crate) fn prefetch(&self, key: &Key) {
        match key {
            Key::V4(key) => self.routes4.prefetch(key),
            Key::V6(key) => self.routes6.prefetch(key),
        }
    }

    pub(super) fn find(&self, key: &Key) -> Option<At> {
        match key {
            Key::V4(key) => self.routes4.find(key).map(At::V4),
            Key::V6(key) => self.routes6.find(key).map(At::V6),
        }
    }

    pub(super) fn entry(&self, at: At) -> &Entry {
        match at {
            At::V4(index) => self.routes4.entry(index),
            At::V6(index) => self.routes6.entry(index),
        }
    }

    pub(super) fn entry_mut(&mut self, at: At) -> &mut Entry {
        match at {
            At::V4(index) => self.routes4.entry_mut(index),
            At::V6(index) => self.routes6.entry_mut(index),
        }
    }

    /// Installs a route: where there is no place left for it, in that of the least one that stands in its way.
    fn insert(&mut self, key: &Key, route: Route, farm: &Farm, now: u32) -> bool {
        if self.insert_free(key, route, now) {
            return true;
        }
        let worst = self.least_in_the_way(key, now).filter(|worst| self.yields(worst, route.state, farm, now));
        worst.is_some_and(|worst| self.evict(&worst, farm, now)) && self.insert_free(key, route, now)
    }

    /// Whether a route gives way to one in this state. Anybody can open connections, and make segments up: what has not been confirmed
    /// drives nothing out that has, unless that was silent for as long as a connection may take to open.
    fn yields(&self, worst: &Key, to: State, farm: &Farm, now: u32) -> bool {
        is_confirmed(to)
            || self
                .find(worst)
                .map(|at| self.entry(at))
                .is_none_or(|entry| !is_confirmed(entry.state()) || entry.idle(now) > farm.timeouts.of(State::Opening))
    }

    fn insert_free(&mut self, key: &Key, route: Route, now: u32) -> bool {
        match key {
            Key::V4(key) => self.routes4.insert(key, route, now).is_ok(),
            Key::V6(key) => self.routes6.insert(key, route, now).is_ok(),
        }
    }

    fn least_in_the_way(&self, key: &Key, now: u32) -> Option<Key> {
        match key {
            Key::V4(key) => self.routes4.least_in_the_way(key, now).map(Key::V4),
            Key::V6(key) => self.routes6.least_in_the_way(key, now).map(Key::V6),
        }
    }

    /// Removes a route alone.
    fn remove(&mut self, key: &Key) {
        match key {
            Key::V4(key) => self.routes4.find(key).into_iter().for_each(|index| self.routes4.remove(index)),
            Key::V6(key) => self.routes6.find(key).into_iter().for_each(|index| self.routes6.remove(index)),
        }
    }

    /// Free places in the table that `key` belongs to.
    fn room_for(&self, key: &Key) -> usize {
        match key {
            Key::V4(_) => self.routes4.capacity().saturating_sub(self.routes4.len()),
            Key::V6(_) => self.routes6.capacity().saturating_sub(self.routes6.len()),
        }
    }

    /// What the live route of `key` says.
    pub(super) fn live(&self, key: &Key, farm: &Farm, now: u32) -> Option<Action> {
        let entry = self.entry(self.find(key)?);
        (!entry.expired(now, &farm.timeouts)).then(|| entry.action())
    }

    /// The key of a connection's direction from the client, whichever direction is given.
    #[must_use]
    pub fn client_flow(&self, key: &Key, action: Action, farm: &Farm) -> Option<Key> {
        match action {
            Action::Send { mode: Mode::NatReturn, value, .. } => rewrite::client_key(key, value, farm),
            Action::Send { mode: Mode::FullNatReturn, value, .. } => self.translated_client(key, value, farm),
            _ => Some(*key),
        }
    }

    /// The key of a connection's other direction, where the forwarder has a route for that.
    #[must_use]
    pub fn other_direction(&self, key: &Key, action: Action, farm: &Farm) -> Option<Key> {
        match action {
            Action::Send { mode: Mode::FullNat, .. } => Self::pool_key(key, action, farm),
            _ if is_return(action) => self.client_flow(key, action, farm),
            _ => rewrite::return_key(key, action, farm).map(|(key, _)| key),
        }
    }

    /// Installs `route`, or keeps a live one unless it has to yield; returns what is to be done with the packet.
    ///
    /// # Errors
    ///
    /// [`DropReason`] where that needs a pool's port, and there is none, or no room to remember it.
    pub(super) fn plumb_route(
        &mut self,
        key: &Key,
        route: Route,
        replace: bool,
        farm: &Farm,
        now: u32,
    ) -> Result<Action, DropReason> {
        if let Some(at) = self.find(key) {
            let entry = self.entry(at);
            if !replace && !entry.expired(now, &farm.timeouts) {
                let action = entry.action();
                self.counters.routes_kept += 1;
                return Ok(action);
            }
            if !self.remove_pair(key, farm, Leave::ToNobody(now)) {
                return Err(DropReason::TableFull);
            }
            self.counters.routes_deleted += 1;
        }
        let full_nat = matches!(route.action, Action::Send { mode: Mode::FullNat, .. });
        let action = if full_nat {
            let bound = self.with_pool_port(key, route.action, farm, now);
            bound.ok_or_else(|| self.refuse(key, DropReason::PoolExhausted))?
        } else {
            route.action
        };
        let back = self.other_direction(key, action, farm);
        let route = Route { action, ..route };
        if self.make_room(key, back.as_ref(), route.state, farm, now)
            && self.insert_pair(key, back.as_ref(), route, farm, now)
        {
            self.counters.routes_installed += 1;
            if let Action::Send { mode: Mode::FullNat, value, .. } = action {
                self.notify(Notice { key: *key, event: Event::Bound(value) });
            }
        } else if full_nat {
            return Err(self.refuse(key, DropReason::TableFull));
        } else {
            // Elsewhere forwarding does not depend on remembering: the packet goes all the same.
            self.notify(Notice { key: *key, event: Event::Evicted });
        }
        Ok(action)
    }

    /// Adds both directions of a connection; false if there was no place for one of them, and then there is none.
    fn insert_pair(&mut self, key: &Key, back: Option<&Key>, route: Route, farm: &Farm, now: u32) -> bool {
        if !self.insert(key, route, farm, now) {
            return false;
        }
        let Some(back) = back else {
            return true;
        };
        let Some(action) = self.return_action(key, route.action, farm) else {
            self.remove(key);
            return false;
        };
        let state = if route.state == State::Datagram { State::Datagram } else { State::Established };
        let there = Route { action, state };
        if let Some(at) = self.find(back) {
            let entry = self.entry_mut(at);
            entry.set_route(there);
            entry.touch(now);
            return true;
        }
        // What had to go for the way back may have been the way there.
        if self.insert(back, there, farm, now) && self.find(key).is_some() {
            return true;
        }
        self.remove(key);
        self.remove(back);
        if let Action::Send { mode: Mode::FullNatReturn, value, .. } = action {
            self.forget_translation(value);
        }
        false
    }

    /// What is done with the packets of the way back.
    fn return_action(&mut self, key: &Key, action: Action, farm: &Farm) -> Option<Action> {
        match action {
            Action::Send { endpoint, mode: Mode::FullNat, .. } => {
                let value = self.translate_back(key, farm)?;
                Some(Action::Send { endpoint, mode: Mode::FullNatReturn, value })
            }
            Action::Send { endpoint, .. } | Action::Local { endpoint } => {
                let (_, value) = rewrite::return_key(key, action, farm)?;
                Some(Action::Send { endpoint, mode: Mode::NatReturn, value })
            }
            _ => None,
        }
    }

    /// The classifier is to forget what could not be installed.
    #[cold]
    fn refuse(&mut self, key: &Key, reason: DropReason) -> DropReason {
        self.notify(Notice { key: *key, event: Event::Expired });
        reason
    }

    fn notify(&mut self, notice: Notice) {
        if self.notices.try_push(notice).is_err() {
            self.counters.notices_deferred += 1; // never: who installs has asked for room
        }
    }

    /// Evicts until there is room for both directions of a connection in this state; false if that is not possible.
    fn make_room(&mut self, key: &Key, back: Option<&Key>, state: State, farm: &Farm, now: u32) -> bool {
        let together = back.is_some_and(|back| matches!(back, Key::V4(_)) == matches!(key, Key::V4(_)));
        let needs = [(Some(key), 1 + usize::from(together)), (back.filter(|_| !together), 1)];
        needs.into_iter().filter_map(|(key, count)| Some((key?, count))).all(|(key, count)| {
            while self.room_for(key) < count {
                let worst = self.least_worth(key, state, now).filter(|worst| self.yields(worst, state, farm, now));
                if !worst.is_some_and(|worst| self.evict(&worst, farm, now)) {
                    return false;
                }
            }
            true
        })
    }

    /// Among a sample of the table that `key` belongs to, the route that is worth least. What is only `state` so far looks once.
    fn least_worth(&mut self, key: &Key, state: State, now: u32) -> Option<Key> {
        (0..if is_confirmed(state) { EVICTION_ROUNDS } else { 1 }).find_map(|_| match key {
            Key::V4(_) => self.routes4.least_worth(EVICTION_SAMPLE, now).map(|(_, key)| Key::V4(key)),
            Key::V6(_) => self.routes6.least_worth(EVICTION_SAMPLE, now).map(|(_, key)| Key::V6(key)),
        })
    }

    /// A route goes, with its other direction; its classifier hears of it. False if there is no room to say so, or to note that its
    /// pool's port is dead.
    fn evict(&mut self, key: &Key, farm: &Farm, now: u32) -> bool {
        let Some(at) = self.find(key).filter(|_| !self.notices.is_full()) else {
            return false;
        };
        let flow = self.client_flow(key, self.entry(at).action(), farm);
        if !self.remove_pair(key, farm, Leave::ToItself(now)) {
            return false;
        }
        self.notices.extend(flow.map(|key| Notice { key, event: Event::Evicted }));
        self.counters.routes_evicted += 1;
        true
    }

    /// Deletes a connection's routes, as a classifier has ordered.
    pub(super) fn delete(&mut self, key: &Key, farm: &Farm, now: u32) {
        if let Some(at) = self.find(key) {
            if self.remove_pair(key, farm, Leave::ToNobody(now)) {
                self.counters.routes_deleted += 1;
            } else {
                self.entry_mut(at).set_state(State::Closing); // it ends by itself
            }
        }
    }

    /// Looks at the next `count` places of both tables for routes out of time. A route goes only when `tell` has taken its notice.
    /// Both directions of a connection go together or not at all.
    pub fn expire(&mut self, count: usize, farm: &Farm, now: u32, mut tell: impl FnMut(Notice) -> bool) {
        let mut candidates: ArrayVec<Key, { 2 * EXPIRED_AT_ONCE }> = ArrayVec::new();
        self.routes4.sweep(count, |key, entry| {
            if entry.expired(now, &farm.timeouts) && candidates.len() < EXPIRED_AT_ONCE {
                candidates.push(Key::V4(*key));
            }
            false
        });
        self.routes6.sweep(count, |key, entry| {
            if entry.expired(now, &farm.timeouts) && !candidates.is_full() {
                candidates.push(Key::V6(*key));
            }
            false
        });
        for key in candidates {
            let Some(at) = self.find(&key) else {
                continue;
            };
            let action = self.entry(at).action();
            if self.other_direction_lives(&key, farm, now) {
                continue;
            }
            let pair = self.pair(&key, farm);
            if !self.bury_ports(&pair, farm, Leave::ToItself(now)) {
                continue;
            }
            let told = match self.client_flow(&key, action, farm) {
                Some(key) if action != Action::Drop => tell(Notice { key, event: Event::Expired }),
                _ => true,
            };
            if told {
                self.remove_all(&pair);
                self.counters.routes_expired += 1;
            }
        }
        self.dead_ports.sweep(count, now, &farm.timeouts);
        self.expire_paths(now);
    }

    /// A route that is out of time lives on if its other direction does: both go together.
    #[cold]
    pub(super) fn renew(&mut self, key: &Key, farm: &Farm, now: u32) -> bool {
        let lives = self.other_direction_lives(key, farm, now);
        if lives && let Some(at) = self.find(key) {
            self.entry_mut(at).touch(now);
        }
        lives
    }

    fn other_direction_lives(&self, key: &Key, farm: &Farm, now: u32) -> bool {
        let Some(here) = self.find(key).map(|at| self.entry(at)) else {
            return false;
        };
        let other = self.other_direction(key, here.action(), farm);
        let Some(there) = other.and_then(|key| self.find(&key)).map(|at| self.entry(at)) else {
            return false;
        };
        // The state stands in the direction from the client.
        let state = if is_return(here.action()) { there.state() } else { here.state() };
        there.idle(now) <= farm.timeouts.of(state)
    }

    /// What happened to a route is told about the flow's direction from the client, and done to it as well.
    #[cold]
    pub(super) fn happened(&mut self, key: &Key, action: Action, event: Event, farm: &Farm) {
        let mut key = *key;
        if is_return(action) {
            if event == Event::Confirmed {
                return;
            }
            let Some(forward) = self.client_flow(&key, action, farm) else {
                return;
            };
            key = forward;
            if let Some(at) = self.find(&key) {
                self.entry_mut(at).set_state(State::Closing);
            }
        }
        if self.notices.try_push(Notice { key, event }).is_err() {
            self.counters.notices_deferred += 1; // a state that the next packet or the end of the route will tell
        }
    }

    /// Removes a route and its other direction, if it has one. False if there is no room to note that its pool's port is dead: then
    /// nothing has changed.
    fn remove_pair(&mut self, key: &Key, farm: &Farm, leave: Leave) -> bool {
        let pair = self.pair(key, farm);
        let buried = self.bury_ports(&pair, farm, leave);
        if buried {
            self.remove_all(&pair);
        }
        buried
    }

    /// A route and its other direction, as far as they are there.
    fn pair(&self, key: &Key, farm: &Farm) -> Pair {
        let Some(at) = self.find(key) else {
            return Pair::new();
        };
        let action = self.entry(at).action();
        let flow = self.client_flow(key, action, farm);
        let other = self.other_direction(key, action, farm).and_then(|other| {
            let there = self.entry(self.find(&other)?).action();
            // Two flows of one client port may have met at one endpoint: the way back is the later one's.
            (self.client_flow(&other, there, farm) == flow).then_some((other, there))
        });
        std::iter::once((*key, action)).chain(other).collect()
    }

    /// Notes that the pool's port of a connection that is about to go is dead; false if there is no room for that.
    fn bury_ports(&mut self, pair: &Pair, farm: &Farm, leave: Leave) -> bool {
        let translated = |(_, action): &&_| matches!(action, Action::Send { mode: Mode::FullNatReturn, .. });
        let Some((back, action)) = pair.iter().find(translated) else {
            return true;
        };
        let entries = pair.iter().filter_map(|(key, _)| self.find(key)).map(|at| self.entry(at));
        let state = if entries.clone().any(|entry| entry.state() == State::Datagram) {
            State::Datagram
        } else {
            State::Closing
        };
        let (open, seen) = match leave {
            Leave::ToNobody(now) => (For::Nobody, now),
            Leave::ToItself(now) => {
                let idle = entries.map(|entry| entry.idle(now)).min().unwrap_or(0);
                if idle > farm.timeouts.of(state) {
                    return true;
                }
                let flow = self.client_flow(back, *action, farm).map(|key| self.hash.route(&key));
                (flow.map_or(For::Nobody, For::Flow), now.wrapping_sub(idle))
            }
        };
        self.dead_ports.bury(back, open, state, seen)
    }

    fn remove_all(&mut self, pair: &Pair) {
        for (key, action) in pair {
            self.remove(key);
            if let Action::Send { mode: Mode::FullNatReturn, value, .. } = action {
                self.forget_translation(*value);
            }
        }
    }
}

/// A connection's directions, each with what is done with its packets.
type Pair = ArrayVec<(Key, Action), 2>;

/// Whether a route is of the direction to the client.
#[must_use]
pub fn is_return(action: Action) -> bool {
    matches!(action, Action::Send { mode: Mode::NatReturn | Mode::FullNatReturn, .. })
}

/// Whether its client has shown that it is there.
fn is_confirmed(state: State) -> bool {
    !matches!(state, State::Opening | State::Refused)
}

const EVICTION_SAMPLE: usize = 32;
const EVICTION_ROUNDS: usize = 8;
const EXPIRED_AT_ONCE: usize = 16;
