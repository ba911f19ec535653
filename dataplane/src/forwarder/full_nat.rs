//! Full-nat in the forwarder: a pool's port for each connection, and both directions translated by it.
//!
//! The way there needs nothing but the route's value and the farm. The way back has a [`Translation`] in the shard's table. Which
//! port a flow gets depends on its key alone as long as that port is free, so that a route which had to go comes back as it was.

use std::net::SocketAddr;

use weir_identity::EndpointId;

use crate::counters::DropReason;
use crate::farm::{Endpoint, Farm, Hop, NoHop};
use crate::flow::Key;
use crate::forwarder::{Fate, Forwarder};
use crate::packet::Packet;
use crate::parse::Parsed;
use crate::rewrite::{self, Stop};
use crate::route_table::{Action, Mode};
use crate::translation::{self, Family, PoolPort, Translation, TranslationTable, size_after, translate_both};
use crate::wire::ipv6;

/// Where a packet goes, and from whom its receiver sees it come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) hop: Hop,
}

/// Translates a packet as its route says and returns how it leaves; `endpoint`, `mode` and `value` are the route's.
pub(super) fn deliver<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    endpoint: EndpointId,
    mode: Mode,
    value: u64,
    translations: &TranslationTable,
    farm: &Farm,
) -> Result<Fate, Stop> {
    if parsed.ttl <= 1 {
        return Err(Stop::Drop(DropReason::Ttl));
    }
    let Way { source, destination, hop } = way(&parsed.key, endpoint, mode, value, translations, farm)?;
    let mtu = farm.ports[usize::from(hop.port)].mtu;
    let fate = match (Family::of(parsed.key.source().ip()), Family::of(destination.ip())) {
        (Family::V4, Family::V6) => {
            fits_v6(packet.data_mut(), parsed, mode, mtu)?;
            Fate::Send(hop.port)
        }
        (Family::V6, Family::V4) if size_after(parsed, Family::V4) > mtu => {
            if !translation::may_be_fragmented(packet.data(), parsed) {
                return Err(Stop::TooBig(mtu.saturating_add(HEADER_DIFFERENCE)));
            }
            Fate::Pieces(hop.port, mtu)
        }
        (from, to) if from == to && parsed.ip_len > mtu => return Err(Stop::TooBig(mtu)),
        _ => Fate::Send(hop.port),
    };
    rewrite::decrement_ttl(packet.data_mut(), parsed.headers());
    translate_both(packet, parsed, source, destination).map_err(Stop::Drop)?;
    packet.data_mut()[..12].copy_from_slice(&hop.ethernet);
    Ok(fate)
}

/// The ends and the next hop of packets with this key, by their route.
pub(super) fn way(
    key: &Key,
    endpoint: EndpointId,
    mode: Mode,
    value: u64,
    translations: &TranslationTable,
    farm: &Farm,
) -> Result<Way, Stop> {
    if mode == Mode::FullNat {
        let endpoint = farm.endpoint(endpoint).ok_or(Stop::Drop(DropReason::Inactive))?;
        let hop = endpoint.hop.ok_or_else(|| rewrite::no_hop(endpoint, farm))?;
        let source = pool_address(endpoint, value, farm).ok_or(Stop::Drop(DropReason::NoRoute))?;
        return Ok(Way { source, destination: endpoint_address(endpoint, key), hop });
    }
    let gone = Stop::Drop(DropReason::NoRoute);
    let Translation { client, vip, port } = translations.find(slot(value)).ok_or(gone)?;
    let vip = farm.vips.get(vip as usize).ok_or(Stop::Drop(DropReason::Inactive))?;
    let hop = farm.hop_to(client.ip(), rewrite::flow_of_port(client.port())).map_err(|reason| match reason {
        NoHop::NoRoute => gone,
        NoHop::Unresolved(port, neighbour) => Stop::Unresolved(port, neighbour),
    })?;
    Ok(Way { source: SocketAddr::new(vip.address, port), destination: client, hop })
}

impl Forwarder {
    /// The action with a pool's port that is free towards its endpoint: the one that it names already, if it may have that; `None`
    /// if none of those tried is.
    pub(super) fn with_pool_port(&mut self, key: &Key, action: Action, farm: &Farm, now: u32) -> Option<Action> {
        let Action::Send { endpoint, mode, value } = action else {
            return Some(action);
        };
        self.dead_ports.prepare().ok()?;
        let pool = farm.pools.get(farm.endpoint(endpoint)?.pool?)?;
        let hash = self.hash.route(key);
        let is_free = |action| {
            let back = Self::pool_key(key, action, farm);
            back.filter(|back| self.find(back).is_none() && !self.dead_ports.keeps(back, hash, now, &farm.timeouts))
        };
        let named = PoolPort::from_value(value).port;
        let comes_here = |action| {
            Self::pool_key(key, action, farm).is_some_and(|back| self.owners.client_is_destination(&back) == self.shard)
        };
        if pool.has(named) && comes_here(action) && is_free(action).is_some() {
            return Some(action);
        }
        let client = key.source();
        let bucket = self.owners.hash().bucket(client.ip(), client.port());
        // What decides which ports there are: the endpoint, the pool and the bucket, which stands in the place of a port.
        let to = endpoint_address(farm.endpoint(endpoint)?, key);
        let from = SocketAddr::new(pool.address(0)?, u16::try_from(bucket).ok()?);
        let search = self.hash.route(&Key::new(to, from, key.protocol())?);
        let allowed = self.exhausted.attempts(search, now);
        let mut tried = 0;
        let found = (0..pool.attempts().min(allowed)).find_map(|attempt| {
            let (address, port) = pool.candidate(hash, attempt, bucket)?;
            tried += 1;
            let value = PoolPort { address: u32::try_from(address).ok()?, port }.to_value();
            let action = Action::Send { endpoint, mode, value };
            is_free(action).map(|_| action)
        });
        self.counters.pool_ports_tried += tried;
        self.exhausted.ended(search, allowed, found.is_some(), now);
        found
    }

    /// The key of the way back in full-nat, of the direction from the client and its action.
    pub(super) fn pool_key(key: &Key, action: Action, farm: &Farm) -> Option<Key> {
        let Action::Send { endpoint, value, .. } = action else {
            return None;
        };
        let endpoint = farm.endpoint(endpoint)?;
        Key::new(endpoint_address(endpoint, key), pool_address(endpoint, value, farm)?, key.protocol())
    }

    /// Remembers whose packets on the way back are; the value of their route.
    pub(super) fn translate_back(&mut self, key: &Key, farm: &Farm) -> Option<u64> {
        let (client, port) = (key.source(), key.destination().port());
        self.translations.insert(Translation { client, vip: farm.vip_of(key)?, port }).map(u64::from)
    }

    /// Forgets it; its route has gone.
    pub(super) fn forget_translation(&mut self, value: u64) {
        self.translations.remove(slot(value));
    }

    /// The key of the direction from the client, of the way back's key and value.
    pub(super) fn translated_client(&self, back: &Key, value: u64, farm: &Farm) -> Option<Key> {
        let Translation { client, vip, port } = self.translations.find(slot(value))?;
        let vip = farm.vips.get(vip as usize)?.address;
        Key::new(client, SocketAddr::new(vip, port), back.protocol())
    }
}

/// The pool's address and port that stand for the client.
fn pool_address(endpoint: &Endpoint, value: u64, farm: &Farm) -> Option<SocketAddr> {
    let PoolPort { address, port } = PoolPort::from_value(value);
    let address = farm.pools.get(endpoint.pool?)?.address(address as usize)?;
    Some(SocketAddr::new(address, port))
}

/// Where the endpoint serves the packets with this key, which is of the direction from the client.
fn endpoint_address(endpoint: &Endpoint, key: &Key) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port.unwrap_or(key.destination().port()))
}

/// Whether an IPv4 packet still fits the link that takes `mtu` bytes when it has become an IPv6 one; else how long it may be (RFC
/// 7915 sections 4.1 and 4.2). What senders allow to be taken to pieces fits no more than [`ipv6::LEAST_MTU`] on its way to a client: who
/// is behind a narrow path could tell nobody.
fn fits_v6(frame: &mut [u8], parsed: &Parsed, mode: Mode, mtu: u16) -> Result<(), Stop> {
    let size = size_after(parsed, Family::V6);
    if size <= mtu.min(ipv6::LEAST_MTU) {
        return Ok(());
    }
    let in_pieces = translation::may_be_fragmented(frame, parsed);
    let most = if in_pieces && mode == Mode::FullNatReturn { mtu.min(ipv6::LEAST_MTU) } else { mtu };
    if size <= most {
        return Ok(());
    }
    if in_pieces {
        translation::sum_before_pieces(frame, parsed);
    }
    let fragment = in_pieces || translation::is_fragment(parsed);
    Err(Stop::TooBig(most.saturating_sub(HEADER_DIFFERENCE + if fragment { FRAGMENT_HEADER } else { 0 })))
}

#[expect(clippy::cast_possible_truncation, reason = "a way back's value is a slot's number")]
pub(super) fn slot(value: u64) -> u32 {
    value as u32
}

/// By how many bytes an IPv6 header is longer than an IPv4 header.
const HEADER_DIFFERENCE: u16 = 20;
/// What a fragment header adds.
const FRAGMENT_HEADER: u16 = 8;
