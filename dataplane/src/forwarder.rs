//! The forwarder: looks up 4-tuple routes for a burst at a time, rewrites, and nothing else.
//!
//! Every stage runs over the whole burst before the next begins, so that the memory of all its packets is fetched at once: check,
//! find the direction, hash and prefetch; look up and rewrite. Plain packets of established flows take this quick lane; the others go
//! one by one, parsed in full. What cannot be done by a route is left to others, by a [`Fate`]. Nothing here decides where a
//! connection goes.

mod dead_ports;
mod errors;
mod exhausted;
mod full_nat;
mod local;
mod pairs;
mod paths;
mod quick;
mod steer;
mod tables;

pub use dead_ports::DeadPorts;
pub use pairs::is_return;

use std::net::IpAddr;

use arrayvec::ArrayVec;
use weir_cpu::MapError;

use crate::counters::{DropReason, Drops, ShardCounters};
use crate::farm::{Farm, PortId};
use crate::flow::{FlowHash, Key, Owners, protocol};
use crate::packet::{BURST, Burst, Packet};
use crate::parse::{Class, Parsed};
use crate::plumbing::{Event, Notice, Plumb};
use crate::rewrite::{self, Stop};

pub use self::quick::{Asking, QuickLane};
pub(crate) use self::steer::Side;
use crate::route_table::{Action, Mode, Route, RouteTable, Slot4, Slot6, State};
use crate::translation::TranslationTable;

/// What becomes of one packet after its look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Rewritten; goes out by this port.
    Send(PortId),
    /// Rewritten; goes out by this port in pieces of so many bytes.
    Pieces(PortId, u16),
    /// No route (or one that says so): to the classifier.
    Divert {
        /// It opens a connection on the route of one that is closing or out of time.
        zombie: bool,
    },
    /// Another shard owns its flow.
    HandOver(usize),
    /// For the kernel twin, perhaps after the dataplane had a chance to answer it itself.
    Twin,
    /// For the kernel, by this port's twin.
    Kernel(PortId),
    /// ARP, neighbour discovery or ICMP to a VIP: the dataplane may answer.
    Respond,
    /// A fragment: to the shard that has its datagram, and there to the fragment table.
    Fragment,
    /// Too big for its way, which takes so many bytes: dropped, and its sender is told.
    TooBig(u16),
    /// The link-layer address of the next hop, on this port's link, is not known: it waits until the kernel has found it.
    Unresolved(PortId, IpAddr),
    /// An ICMP error about a flow without a route: to the classifier, which knows whose it is.
    DivertError {
        /// The flow, client to VIP.
        key: Key,
    },
    /// Dropped: an ICMP error that has lowered the path MTU to a tunnel's end, of which the other shards are told.
    PathMtu(IpAddr, u16),
    /// Dropped, and counted by reason.
    Drop(DropReason),
}

impl From<Stop> for Fate {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Drop(reason) => Fate::Drop(reason),
            Stop::TooBig(mtu) => Fate::TooBig(mtu),
            Stop::Unresolved(port, neighbour) => Fate::Unresolved(port, neighbour),
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
    /// What full-nat's ways back are translated to.
    translations: TranslationTable,
    dead_ports: DeadPorts,
    exhausted: exhausted::Exhausted,
    paths: paths::PathMtus,
    hash: FlowHash,
    shard: usize,
    owners: Owners,
    asking: Asking,
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
    /// Which shard owns which flows.
    pub owners: Owners,
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
        let routes4 = RouteTable::new(settings.routes_ipv4, settings.hash.clone())?;
        let routes6 = RouteTable::new(settings.routes_ipv6, settings.hash.clone())?;
        Ok(Self {
            asking: Asking::suiting(routes4.bytes(), routes6.bytes()),
            routes4,
            routes6,
            // Each has a route from its client, in the table of the client's family.
            translations: TranslationTable::new(settings.routes_ipv4, settings.routes_ipv6),
            dead_ports: DeadPorts::new(settings.routes_ipv4, settings.routes_ipv6, settings.hash.clone()),
            exhausted: exhausted::Exhausted::new(),
            paths: paths::PathMtus::default(),
            hash: settings.hash.clone(),
            shard: settings.shard,
            owners: settings.owners.clone(),
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

    /// What full-nat's ways back are translated to.
    #[must_use]
    pub fn translations(&self) -> &TranslationTable {
        &self.translations
    }

    /// Full-nat's ports that no connection has and none may have yet.
    #[must_use]
    pub fn dead_ports(&self) -> &DeadPorts {
        &self.dead_ports
    }

    /// The unit's hashes.
    #[must_use]
    pub fn hash(&self) -> &FlowHash {
        &self.hash
    }

    /// Which shard owns which flows.
    #[inline]
    #[must_use]
    pub fn owners(&self) -> &Owners {
        &self.owners
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
        packets.iter().for_each(Packet::prefetch);
        self.enter::<false, false, false, P>(packets, &[port; BURST], farm, &mut lane);
        self.look(packets, &mut lane, farm, now);
        self.leave(packets, &mut lane, farm, now)
    }

    /// Forwards one packet the general way.
    pub fn forward_one<P: Packet>(&mut self, packet: &mut P, parsed: &Parsed, farm: &Farm, now: u32) -> Fate {
        if parsed.class == Class::Icmp {
            let fate = self.forward_error(packet, parsed, farm, now);
            if let Some(fate) = fate.or_else(|| self.tunnel_error(packet.data(), parsed, farm, now)) {
                return fate;
            }
        }
        if parsed.class != Class::Flow {
            return Self::not_a_flow(parsed, farm);
        }
        let from_client = farm.vip_of(&parsed.key).is_some();
        if !from_client && farm.pool_of(&parsed.key).is_none() && !farm.is_from_endpoint(&parsed.key) {
            return Fate::Twin;
        }
        if self.owners.shards() > 1 {
            let owner = self.owner(&parsed.key, from_client);
            if owner != self.shard {
                return Fate::HandOver(owner);
            }
        }
        self.act(packet, parsed, from_client, farm, now)
    }

    fn not_a_flow(parsed: &Parsed, farm: &Farm) -> Fate {
        match parsed.class {
            Class::Arp => Fate::Respond,
            Class::Icmp if !parsed.unicast || farm.is_for_us(&parsed.key) => Fate::Respond,
            // ND to a unicast address, and unreachability probes for a VIP
            Class::Icmp if parsed.key.protocol() == protocol::ICMPV6 && parsed.ttl == 255 => Fate::Respond,
            Class::Fragment if farm.is_for_us(&parsed.key) || farm.is_from_endpoint(&parsed.key) => Fate::Fragment,
            Class::OtherIp if farm.is_for_us(&parsed.key) => Fate::Drop(DropReason::Protocol),
            _ => Fate::Twin,
        }
    }

    /// The shard that owns a flow. On the hosts' side a pool's port stands for the client, and is of its bucket.
    fn owner(&self, key: &Key, from_client: bool) -> usize {
        if from_client { self.owners.client_is_source(key) } else { self.owners.client_is_destination(key) }
    }

    /// Looks the packet up and does what its route says.
    fn act<P: Packet>(&mut self, packet: &mut P, parsed: &Parsed, from_client: bool, farm: &Farm, now: u32) -> Fate {
        let mut zombie = false;
        if let Some(at) = self.find(&parsed.key) {
            let entry = self.entry_mut(at);
            if entry.expired(now, &farm.timeouts) {
                if self.renew(&parsed.key, farm, now) {
                    return self.act(packet, parsed, from_client, farm, now);
                }
                if !from_client {
                    return Self::unknown_answer(parsed, farm);
                }
                return Self::divert(parsed, parsed.opens());
            }
            let state = entry.state();
            zombie = state == State::Closing && parsed.opens();
            if !zombie {
                entry.touch(now);
                let action = entry.action();
                let event = if parsed.closes() && matches!(state, State::Opening | State::Established) {
                    entry.set_state(State::Closing);
                    Some(Event::Closing)
                } else if state == State::Opening && !parsed.opens() && !parsed.is_later() {
                    entry.set_state(State::Established);
                    Some(Event::Confirmed)
                } else {
                    None
                };
                if let Some(event) = event {
                    self.happened(&parsed.key, action, event, farm);
                }
                return self.by_route(packet, parsed, action, farm);
            }
        }
        if !from_client {
            return Self::unknown_answer(parsed, farm);
        }
        Self::divert(parsed, zombie)
    }

    /// An endpoint's own traffic, or the answer of a connection that is forgotten; the kernel has nothing at a pool's address.
    #[cold]
    fn unknown_answer(parsed: &Parsed, farm: &Farm) -> Fate {
        if farm.pool_of(&parsed.key).is_some() { Fate::Drop(DropReason::NoRoute) } else { Fate::Twin }
    }

    #[cold]
    fn divert(parsed: &Parsed, zombie: bool) -> Fate {
        if parsed.ttl <= 1 { Fate::Drop(DropReason::Ttl) } else { Fate::Divert { zombie } }
    }

    /// Does what a live route says.
    #[inline]
    fn by_route<P: Packet>(&mut self, packet: &mut P, parsed: &Parsed, action: Action, farm: &Farm) -> Fate {
        match action {
            Action::Send { endpoint, mode: Mode::Ipip | Mode::Gue, .. }
                if parsed.ip_len > self.path_room(endpoint, farm) =>
            {
                if parsed.ttl <= 1 {
                    return Fate::Drop(DropReason::Ttl);
                }
                self.too_big(packet, parsed, endpoint, self.path_room(endpoint, farm), farm)
            }
            Action::Send { endpoint, mode, value } => {
                let sent = if matches!(mode, Mode::FullNat | Mode::FullNatReturn) {
                    full_nat::deliver(packet, parsed, endpoint, mode, value, &self.translations, farm)
                } else {
                    rewrite::deliver(packet, parsed.headers(), endpoint, mode, value, farm).map(Fate::Send)
                };
                match sent {
                    Ok(fate) => {
                        self.counters.hits += 1;
                        fate
                    }
                    Err(Stop::TooBig(room)) if matches!(mode, Mode::Ipip | Mode::Gue) => {
                        self.too_big(packet, parsed, endpoint, room, farm)
                    }
                    Err(stop) => stop.into(),
                }
            }
            Action::Drop => Fate::Drop(DropReason::Refused),
            Action::Divert => Self::divert(parsed, false),
            Action::Local { endpoint } => self.rewrite_for_kernel(packet, parsed, endpoint, farm),
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
        match self.plumb_route(&parsed.key, route, replace, farm, now) {
            Ok(action) => self.by_route(packet, parsed, action, farm),
            Err(reason) => Fate::Drop(reason),
        }
    }

    /// Installs a route, or keeps the one that is there, without a packet of its flow.
    pub fn install_for(&mut self, key: &Key, route: Route, replace: bool, farm: &Farm, now: u32) {
        // Where that fails, the error that it was for finds no route.
        let _ = self.plumb_route(key, route, replace, farm, now);
    }

    /// Obeys an order that came without a packet.
    pub fn plumb(&mut self, plumb: &Plumb, farm: &Farm, now: u32) {
        match plumb {
            Plumb::Replace(key, route) => {
                let _ = self.plumb_route(key, *route, true, farm, now); // what fails is told by a notice
            }
            Plumb::Delete(key) => self.delete(key, farm, now),
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
        if farm.endpoint(endpoint).is_some_and(|endpoint| endpoint.local.is_some()) {
            return self.rewrite_for_kernel(packet, parsed, endpoint, farm);
        }
        match rewrite::deliver(packet, parsed.headers(), endpoint, mode, 0, farm) {
            Ok(port) => Fate::Send(port),
            Err(stop) => stop.into(),
        }
    }
}

/// The most notices of one installation: each direction may evict for the number of routes and in its full lines, and find no
/// place even so, or find one and get a pool's port.
const EVICTIONS: usize = 5;
