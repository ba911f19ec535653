//! The forwarder: looks up 4-tuple routes for a burst at a time, rewrites, and nothing else.
//!
//! Every stage runs over the whole burst before the next begins, so that the memory of all its packets is fetched at once: check,
//! find the direction, hash and prefetch; look up and rewrite. Plain packets of established flows take this quick lane; the others go
//! one by one, parsed in full. What cannot be done by a route is left to others, by a [`Fate`]. Nothing here decides where a
//! connection goes.

mod errors;
mod quick;

use arrayvec::ArrayVec;
use weir_cpu::MapError;

use crate::counters::{DropReason, Drops, ShardCounters};
use crate::farm::{Farm, PortId};
use crate::flow::{FlowHash, Key, Key4, Key6, place, protocol};
use crate::packet::{BURST, Burst, Packet};
use crate::parse::{Class, Parsed};
use crate::plumbing::{Event, Notice, Plumb};
use crate::rewrite::{self, Stop};

pub use self::quick::QuickLane;
use crate::route_table::{Action, Mode, Route, RouteTable, Slot, Slot4, Slot6, State};

/// What becomes of one packet after its look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Rewritten; goes out by this port.
    Send(PortId),
    /// No route (or one that says so): to the classifier that owns clients with this hash.
    Divert {
        /// Hash of the client's address and port.
        client: u64,
        /// It opens a connection on the route of one that is closing or out of time.
        zombie: bool,
    },
    /// Another shard owns its flow.
    HandOver(usize),
    /// For the kernel twin, perhaps after the dataplane had a chance to answer it itself.
    Twin,
    /// ARP, neighbour discovery or ICMP to a VIP: the dataplane may answer.
    Respond,
    /// Too big for its way, which takes so many bytes: dropped, and its sender is told.
    TooBig(u16),
    /// An ICMP error about a flow without a route: to the classifier, which knows whose it is.
    DivertError {
        /// The flow, client to VIP.
        key: Key,
        /// Hash of the client's address and port.
        client: u64,
    },
    /// Dropped, and counted by reason.
    Drop(DropReason),
}

impl From<Stop> for Fate {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Drop(reason) => Fate::Drop(reason),
            Stop::TooBig(mtu) => Fate::TooBig(mtu),
        }
    }
}

/// The port that each packet of a burst leaves by, in their order; [`GENERAL`] for one that goes the general way.
///
/// Plain numbers: an enum of several words would be written in pieces and read at once, which the processor waits for. What is behind
/// the last packet is [`GENERAL`].
pub type Departures = [PortId; BURST];

/// Not forwarded yet: to be given to [`Forwarder::forward_one`].
pub const GENERAL: PortId = PortId::MAX;

/// One shard's routes and the work of forwarding by them.
#[derive(Debug)]
pub struct Forwarder {
    routes4: RouteTable<Slot4>,
    routes6: RouteTable<Slot6>,
    hash: FlowHash,
    shard: usize,
    shards: usize,
    /// What this shard has counted.
    pub counters: ShardCounters,
    /// What it has dropped.
    pub drops: Drops,
    notices: ArrayVec<Notice, { 2 * BURST }>,
}

/// How large a shard's tables are, and its place among the shards.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This shard, counted from 0.
    pub shard: usize,
    /// How many there are.
    pub shards: usize,
    /// IPv4 routes in this shard; a NAT connection takes two.
    pub routes_ipv4: usize,
    /// IPv6 routes in this shard.
    pub routes_ipv6: usize,
    /// The unit's hashes.
    pub hash: FlowHash,
}

impl Forwarder {
    /// A forwarder without routes.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space for the tables.
    pub fn new(settings: &Settings) -> Result<Self, MapError> {
        Ok(Self {
            routes4: RouteTable::new(settings.routes_ipv4, settings.hash.clone())?,
            routes6: RouteTable::new(settings.routes_ipv6, settings.hash.clone())?,
            hash: settings.hash.clone(),
            shard: settings.shard,
            shards: settings.shards,
            counters: ShardCounters::default(),
            drops: Drops::default(),
            notices: ArrayVec::new(),
        })
    }

    /// IPv4 routes.
    #[must_use]
    pub fn routes4(&self) -> &RouteTable<Slot4> {
        &self.routes4
    }

    /// IPv6 routes.
    #[must_use]
    pub fn routes6(&self) -> &RouteTable<Slot6> {
        &self.routes6
    }

    /// The unit's hashes.
    #[must_use]
    pub fn hash(&self) -> &FlowHash {
        &self.hash
    }

    /// Which shard owns the flow of a client with this hash.
    #[inline]
    #[must_use]
    pub fn owner(&self, client: u64) -> usize {
        place(client, self.shards)
    }

    /// Whether any notice has come up.
    #[inline]
    #[must_use]
    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// Hands the notices that have come up to `tell`, in order; those that it does not take stay for the next time.
    pub fn tell_notices(&mut self, mut tell: impl FnMut(&Notice) -> bool) {
        self.notices.retain(|notice| !tell(notice));
    }

    /// Whether there is room for the notices of what one more route may evict: without them sessions would live for ever.
    #[inline]
    #[must_use]
    pub fn has_room_for_notices(&self) -> bool {
        self.notices.remaining_capacity() >= EVICTIONS
    }

    /// Forwards what is plain of a burst that came in by `port`: the quick lane's three passes without anything between them. The
    /// rest is untouched.
    #[inline]
    pub fn forward<P: Packet>(&mut self, packets: &mut Burst<P>, port: PortId, farm: &Farm, now: u32) -> Departures {
        let mut lane = QuickLane::default();
        self.enter(packets, port, farm, &mut lane);
        self.look(packets, &mut lane);
        self.leave(packets, &lane, farm, now)
    }

    /// Forwards one packet the general way.
    pub fn forward_one<P: Packet>(&mut self, packet: &mut P, parsed: &Parsed, farm: &Farm, now: u32) -> Fate {
        if parsed.class == Class::Icmp
            && let Some(fate) = self.forward_error(packet, parsed, farm, now)
        {
            return fate;
        }
        match self.approach(parsed, farm) {
            Approach::LookUp { home, client, from_client } => {
                self.act(packet, parsed, home, client, from_client, farm, now)
            }
            Approach::Done(fate) => fate,
        }
    }

    /// Direction, owner and home line of a packet; the line is on its way when this returns.
    #[inline]
    fn approach(&self, parsed: &Parsed, farm: &Farm) -> Approach {
        if parsed.class != Class::Flow {
            return Approach::Done(Self::not_a_flow(parsed, farm));
        }
        let from_client = match &parsed.key {
            Key::V4(key) => farm.vip4(key).is_some(),
            Key::V6(key) => farm.vip6(key).is_some(),
        };
        if !from_client && !farm.is_from_endpoint(&parsed.key) {
            return Approach::Done(Fate::Twin);
        }
        let client = if self.shards == 1 {
            0 // who asks for it computes it
        } else {
            let client = self.client(&parsed.key, from_client);
            let owner = self.owner(client);
            if owner != self.shard {
                return Approach::Done(Fate::HandOver(owner));
            }
            client
        };
        let home = match &parsed.key {
            Key::V4(key) => self.routes4.prefetch(key),
            Key::V6(key) => self.routes6.prefetch(key),
        };
        Approach::LookUp { home, client, from_client }
    }

    fn not_a_flow(parsed: &Parsed, farm: &Farm) -> Fate {
        match parsed.class {
            Class::Arp => Fate::Respond,
            Class::Icmp if !parsed.unicast || farm.vip_of(&parsed.key).is_some() => Fate::Respond,
            // ND to a unicast address, and unreachability probes for a VIP
            Class::Icmp if parsed.key.protocol() == protocol::ICMPV6 && parsed.ttl == 255 => Fate::Respond,
            Class::Fragment if farm.vip_of(&parsed.key).is_some() || farm.is_from_endpoint(&parsed.key) => {
                Fate::Drop(DropReason::Fragment)
            }
            Class::OtherIp if farm.vip_of(&parsed.key).is_some() => Fate::Drop(DropReason::Protocol),
            _ => Fate::Twin,
        }
    }

    fn client(&self, key: &Key, from_client: bool) -> u64 {
        if from_client { self.hash.client_is_source(key) } else { self.hash.client_is_destination(key) }
    }

    /// Looks the packet up and does what its route says.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "the stages' values, all of them in registers")]
    fn act<P: Packet>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        home: usize,
        client: u64,
        from_client: bool,
        farm: &Farm,
        now: u32,
    ) -> Fate {
        let found = match &parsed.key {
            Key::V4(key) => self.routes4.find_at(home, key).map(|index| self.routes4.entry_mut(index)),
            Key::V6(key) => self.routes6.find_at(home, key).map(|index| self.routes6.entry_mut(index)),
        };
        let mut zombie = false;
        if let Some(entry) = found {
            if entry.expired(now, &farm.timeouts) {
                if self.renew(&parsed.key, home, farm, now) {
                    return self.act(packet, parsed, home, client, from_client, farm, now);
                }
                if !from_client {
                    return Fate::Twin;
                }
                return self.divert(parsed, client, parsed.opens());
            }
            let state = entry.state();
            zombie = state == State::Closing && parsed.opens();
            if !zombie {
                entry.touch(now);
                let action = entry.action();
                let event = if parsed.closes() && matches!(state, State::Opening | State::Established) {
                    entry.set_state(State::Closing);
                    Some(Event::Closing)
                } else if state == State::Opening && !parsed.opens() {
                    entry.set_state(State::Established);
                    Some(Event::Confirmed)
                } else {
                    None
                };
                if let Some(event) = event {
                    self.happened(&parsed.key, action, event, farm);
                }
                return self.by_route(packet, parsed, action, client, farm);
            }
        }
        if !from_client {
            // An endpoint's own traffic, or the answer of a connection that is forgotten.
            return Fate::Twin;
        }
        self.divert(parsed, client, zombie)
    }

    /// A route that is out of time lives on if its other direction does: both go together.
    #[cold]
    fn renew(&mut self, key: &Key, home: usize, farm: &Farm, now: u32) -> bool {
        match key {
            Key::V4(key) => renew(&mut self.routes4, home, key, farm, now),
            Key::V6(key) => renew(&mut self.routes6, home, key, farm, now),
        }
    }

    #[cold]
    fn divert(&mut self, parsed: &Parsed, client: u64, zombie: bool) -> Fate {
        if parsed.ttl <= 1 {
            return Fate::Drop(DropReason::Ttl);
        }
        let client = if client == 0 { self.client(&parsed.key, true) } else { client };
        Fate::Divert { client, zombie }
    }

    /// Does what a live route says.
    #[inline]
    fn by_route<P: Packet>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        action: Action,
        client: u64,
        farm: &Farm,
    ) -> Fate {
        match action {
            Action::Send { endpoint, mode, value } => {
                match rewrite::deliver(packet, parsed.headers(), endpoint, mode, value, farm) {
                    Ok(port) => {
                        self.counters.hits += 1;
                        Fate::Send(port)
                    }
                    Err(stop) => stop.into(),
                }
            }
            Action::Drop => Fate::Drop(DropReason::Refused),
            Action::Divert => self.divert(parsed, client, false),
            Action::Local => Fate::Twin,
        }
    }

    /// A classifier's answer came with its packet: installs the route, or keeps the one that is there, and forwards.
    pub fn install<P: Packet>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        route: Route,
        replace: bool,
        farm: &Farm,
        now: u32,
    ) -> Fate {
        let action = match &parsed.key {
            Key::V4(key) => self.plumb4(key, route, replace, farm, now),
            Key::V6(key) => self.plumb6(key, route, replace, farm, now),
        };
        self.by_route(packet, parsed, action, 0, farm)
    }

    /// Installs a route, or keeps the one that is there, without a packet of its flow.
    pub fn install_for(&mut self, key: &Key, route: Route, replace: bool, farm: &Farm, now: u32) {
        match key {
            Key::V4(key) => self.plumb4(key, route, replace, farm, now),
            Key::V6(key) => self.plumb6(key, route, replace, farm, now),
        };
    }

    /// Obeys an order that came without a packet.
    pub fn plumb(&mut self, plumb: &Plumb, farm: &Farm, now: u32) {
        match plumb {
            Plumb::Replace(Key::V4(key), route) => {
                self.plumb4(key, *route, true, farm, now);
            }
            Plumb::Replace(Key::V6(key), route) => {
                self.plumb6(key, *route, true, farm, now);
            }
            Plumb::Delete(Key::V4(key)) => {
                if let Some(index) = self.routes4.find(key) {
                    remove_pair(&mut self.routes4, index, farm);
                    self.counters.routes_deleted += 1;
                }
            }
            Plumb::Delete(Key::V6(key)) => {
                if let Some(index) = self.routes6.find(key) {
                    remove_pair(&mut self.routes6, index, farm);
                    self.counters.routes_deleted += 1;
                }
            }
        }
    }

    /// Forwards one packet by no route.
    pub fn once<P: Packet>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        endpoint: weir_identity::EndpointId,
        mode: Mode,
        farm: &Farm,
    ) -> Fate {
        match rewrite::deliver(packet, parsed.headers(), endpoint, mode, 0, farm) {
            Ok(port) => Fate::Send(port),
            Err(stop) => stop.into(),
        }
    }

    /// Looks at the next `count` places of both tables for routes out of time. A route goes only when `tell` has taken its notice.
    pub fn expire(&mut self, count: usize, farm: &Farm, now: u32, mut tell: impl FnMut(Notice) -> bool) {
        self.counters.routes_expired += expire(&mut self.routes4, count, farm, now, &mut tell);
        self.counters.routes_expired += expire(&mut self.routes6, count, farm, now, &mut tell);
    }

    /// What the live route of `key` says.
    fn live(&self, key: &Key, farm: &Farm, now: u32) -> Option<Action> {
        let entry = match key {
            Key::V4(key) => self.routes4.entry(self.routes4.find(key)?),
            Key::V6(key) => self.routes6.entry(self.routes6.find(key)?),
        };
        (!entry.expired(now, &farm.timeouts)).then(|| entry.action())
    }

    /// What happened to a route is told about the flow's direction from the client, and done to it as well.
    #[cold]
    fn happened(&mut self, key: &Key, action: Action, event: Event, farm: &Farm) {
        let mut key = *key;
        if let Action::Send { mode: Mode::NatReturn, value, .. } = action {
            if event == Event::Confirmed {
                return;
            }
            let Some(forward) = rewrite::client_key(&key, value, farm) else {
                return;
            };
            key = forward;
            let entry = match &key {
                Key::V4(key) => self.routes4.find(key).map(|index| self.routes4.entry_mut(index)),
                Key::V6(key) => self.routes6.find(key).map(|index| self.routes6.entry_mut(index)),
            };
            if let Some(entry) = entry {
                entry.set_state(State::Closing);
            }
        }
        if self.notices.try_push(Notice { key, event }).is_err() {
            self.counters.notices_deferred += 1; // a state that the next packet or the end of the route will tell
        }
    }

    fn plumb4(&mut self, key: &Key4, route: Route, replace: bool, farm: &Farm, now: u32) -> Action {
        plumb(&mut self.routes4, key, route, replace, farm, now, &mut self.counters, &mut self.notices)
    }

    fn plumb6(&mut self, key: &Key6, route: Route, replace: bool, farm: &Farm, now: u32) -> Action {
        plumb(&mut self.routes6, key, route, replace, farm, now, &mut self.counters, &mut self.notices)
    }
}

/// What is to be done with a packet that has been parsed.
#[derive(Debug, Clone, Copy)]
enum Approach {
    LookUp { home: usize, client: u64, from_client: bool },
    Done(Fate),
}

/// Installs `route`, or keeps a live one unless it has to yield; returns what is to be done with the packet.
#[expect(clippy::too_many_arguments, reason = "one function for both families, on the forwarder's parts")]
fn plumb<S: Slot>(
    table: &mut RouteTable<S>,
    key: &S::Key,
    route: Route,
    replace: bool,
    farm: &Farm,
    now: u32,
    counters: &mut ShardCounters,
    notices: &mut ArrayVec<Notice, { 2 * BURST }>,
) -> Action {
    if let Some(index) = table.find(key) {
        let entry = table.entry(index);
        if !replace && !entry.expired(now, &farm.timeouts) {
            counters.routes_kept += 1;
            return entry.action();
        }
        remove_pair(table, index, farm);
        counters.routes_deleted += 1;
    }
    let back = rewrite::return_key(&S::widen(*key), route.action, farm);
    let needed = 1 + usize::from(back.is_some());
    while table.len() + needed > table.capacity() && evict(table, farm, now, notices) {
        counters.routes_evicted += 1;
    }
    // Forwarding does not depend on remembering: a full table sends the packet all the same.
    if table.len() + needed <= table.capacity() && table.insert(key, route, now).is_ok() {
        counters.routes_installed += 1;
        if let Some((back, value)) = back.and_then(|(back, value)| Some((S::narrow(&back)?, value)))
            && let Action::Send { endpoint, .. } = route.action
        {
            let action = Action::Send { endpoint, mode: Mode::NatReturn, value };
            let state = if route.state == State::Datagram { State::Datagram } else { State::Established };
            match table.find(&back) {
                Some(index) => {
                    let entry = table.entry_mut(index);
                    entry.set_route(Route { action, state });
                    entry.touch(now);
                }
                None => {
                    let _ = table.insert(&back, Route { action, state }, now);
                }
            }
        }
    }
    route.action
}

/// Makes room: among a sample, the route that is worth least goes, with its other direction. False if none could.
fn evict<S: Slot>(
    table: &mut RouteTable<S>,
    farm: &Farm,
    now: u32,
    notices: &mut ArrayVec<Notice, { 2 * BURST }>,
) -> bool {
    if notices.is_full() {
        return false;
    }
    for _ in 0..EVICTION_ROUNDS {
        if let Some((index, key)) = table.least_worth(EVICTION_SAMPLE, now) {
            let flow = client_flow(&S::widen(key), table.entry(index).action(), farm);
            remove_pair(table, index, farm);
            notices.extend(flow.map(|key| Notice { key, event: Event::Evicted }));
            return true;
        }
    }
    false
}

/// Finds what is out of time among the next `count` places; both directions of a connection go together or not at all.
fn expire<S: Slot>(
    table: &mut RouteTable<S>,
    count: usize,
    farm: &Farm,
    now: u32,
    tell: &mut impl FnMut(Notice) -> bool,
) -> u64 {
    let mut candidates: ArrayVec<S::Key, EXPIRED_AT_ONCE> = ArrayVec::new();
    table.sweep(count, |key, entry| {
        if entry.expired(now, &farm.timeouts) && !candidates.is_full() {
            candidates.push(*key);
        }
        false
    });
    let mut expired = 0;
    for key in candidates {
        let Some(index) = table.find(&key) else {
            continue;
        };
        let action = table.entry(index).action();
        if other_direction_lives(table, &key, action, farm, now) {
            continue;
        }
        let told = match client_flow(&S::widen(key), action, farm) {
            Some(key) if action != Action::Drop => tell(Notice { key, event: Event::Expired }),
            _ => true,
        };
        if told {
            remove_pair(table, index, farm);
            expired += 1;
        }
    }
    expired
}

fn other_direction_lives<S: Slot>(table: &RouteTable<S>, key: &S::Key, action: Action, farm: &Farm, now: u32) -> bool {
    let Some(other) = other_key(&S::widen(*key), action, farm).and_then(|key| S::narrow(&key)) else {
        return false;
    };
    let Some(there) = table.find(&other).map(|index| table.entry(index)) else {
        return false;
    };
    // The state stands in the direction from the client.
    let is_return = matches!(action, Action::Send { mode: Mode::NatReturn, .. });
    let state =
        if is_return { there.state() } else { table.find(key).map_or(State::Closing, |i| table.entry(i).state()) };
    there.idle(now) <= farm.timeouts.of(state)
}

fn renew<S: Slot>(table: &mut RouteTable<S>, home: usize, key: &S::Key, farm: &Farm, now: u32) -> bool {
    let Some(index) = table.find_at(home, key) else {
        return false;
    };
    let lives = other_direction_lives(table, key, table.entry(index).action(), farm, now);
    if lives {
        table.entry_mut(index).touch(now);
    }
    lives
}

/// Removes a route and its other direction, if it has one.
fn remove_pair<S: Slot>(table: &mut RouteTable<S>, index: usize, farm: &Farm) {
    let key = table.key(index);
    let action = table.entry(index).action();
    let other = other_key(&S::widen(key), action, farm);
    table.remove(index);
    if let Some(other) = other.and_then(|key| S::narrow(&key))
        && let Some(index) = table.find(&other)
        // Two flows of one client port may have met at one endpoint: the way back is the later one's.
        && client_flow(&S::widen(other), table.entry(index).action(), farm) == client_flow(&S::widen(key), action, farm)
    {
        table.remove(index);
    }
}

/// The key of a connection's other direction, where the forwarder has a route for that.
fn other_key(key: &Key, action: Action, farm: &Farm) -> Option<Key> {
    match action {
        Action::Send { mode: Mode::NatReturn, value, .. } => rewrite::client_key(key, value, farm),
        _ => rewrite::return_key(key, action, farm).map(|(key, _)| key),
    }
}

/// The key of a connection's direction from the client, whichever direction is given.
fn client_flow(key: &Key, action: Action, farm: &Farm) -> Option<Key> {
    match action {
        Action::Send { mode: Mode::NatReturn, value, .. } => rewrite::client_key(key, value, farm),
        _ => Some(*key),
    }
}

const EVICTION_SAMPLE: usize = 32;
const EVICTION_ROUNDS: usize = 8;
/// The most routes that have to go for a new one: a connection with both directions, and each may meet a single one.
const EVICTIONS: usize = 2;
const EXPIRED_AT_ONCE: usize = 16;
