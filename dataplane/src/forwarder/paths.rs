//! Path MTUs of tunnels, where a router has said that they are smaller than the first link's: RFC 1191 and RFC 8201.
//!
//! The error itself goes no further: what it quotes of the client's packet is rarely enough, and a packet that was too big comes again.
//! The next one is answered from the VIP as if the tunnel's link were so narrow (soft state, RFC 2003 section 5.1). After
//! [`LIFETIME`] a larger packet is tried again. Errors of other kinds say nothing that a client could act upon: they are counted, and
//! it is for probes and agents to find a host that cannot be reached.

use std::net::IpAddr;

use hashbrown::HashMap;
use weir_identity::EndpointId;

use crate::counters::DropReason;
use crate::farm::Farm;
use crate::flow::Key;
use crate::forwarder::{Fate, Forwarder};
use crate::icmp_error;
use crate::packet::Packet;
use crate::parse::Parsed;
use crate::rewrite;
use crate::wire::ipv6;

/// The tunnels' ends whose paths are narrow.
#[derive(Debug, Default)]
pub(super) struct PathMtus {
    /// Each with its MTU and the moment at which it was told; bounded by the farm's endpoints.
    known: HashMap<IpAddr, (u16, u32)>,
    /// The smallest of them.
    smallest: Option<u16>,
}

impl PathMtus {
    /// Bytes of an inner packet that fit through all of these.
    #[inline]
    pub(super) fn room(&self) -> u16 {
        self.smallest.map_or(u16::MAX, |mtu| mtu.saturating_sub(MOST_OVERHEAD))
    }

    fn lower(&mut self, end: IpAddr, mtu: u16, now: u32) -> bool {
        let lowers = self.known.get(&end).is_none_or(|(known, _)| mtu < *known);
        if lowers {
            self.known.insert(end, (mtu, now));
            self.count();
        }
        lowers
    }

    fn expire(&mut self, now: u32) {
        if self.smallest.is_some() {
            self.known.retain(|_, (_, told)| now.wrapping_sub(*told) < LIFETIME);
            self.count();
        }
    }

    fn count(&mut self) {
        self.smallest = self.known.values().map(|(mtu, _)| *mtu).min();
    }
}

impl Forwarder {
    /// Hears an ICMP error about one of the unit's own tunnel packets; `None` if it is none.
    pub(super) fn tunnel_error(&mut self, frame: &[u8], parsed: &Parsed, farm: &Farm, now: u32) -> Option<Fate> {
        if !farm.tunnels() {
            return None;
        }
        let error = icmp_error::about_tunnel(frame, parsed).ok()?;
        if farm.tunnel_to(error.destination)?.source() != error.source {
            return None;
        }
        self.counters.tunnel_errors += 1;
        match error.too_big {
            Some(mtu) if self.lower_path(error.destination, mtu, farm, now) => {
                Some(Fate::PathMtu(error.destination, mtu))
            }
            _ => Some(Fate::Drop(DropReason::TunnelError)),
        }
    }

    /// No more than `mtu` bytes get through to a tunnel's end; false if that is nothing new.
    pub fn lower_path(&mut self, end: IpAddr, mtu: u16, farm: &Farm, now: u32) -> bool {
        let lowers = farm.tunnel_to(end).is_some() && self.paths.lower(end, mtu, now);
        self.counters.paths_lowered += u64::from(lowers);
        lowers
    }

    /// Bytes of an inner packet that get through the tunnel to an endpoint, as far as routers have said.
    pub(super) fn path_room(&self, endpoint: EndpointId, farm: &Farm) -> u16 {
        if self.paths.smallest.is_none() {
            return u16::MAX;
        }
        let narrow = farm.endpoint(endpoint).and_then(|endpoint| {
            let (mtu, _) = self.paths.known.get(&endpoint.address)?;
            Some(mtu.saturating_sub(endpoint.tunnel.as_ref()?.overhead()))
        });
        narrow.unwrap_or(u16::MAX)
    }

    /// A packet of a tunnel's flow for which there is only so much room. An IPv6 sender is not told of less than 1280 bytes: what is no
    /// longer than that goes on, its outer packet in pieces.
    #[cold]
    pub(super) fn too_big<P: Packet>(
        &self,
        packet: &mut P,
        parsed: &Parsed,
        endpoint: EndpointId,
        room: u16,
        farm: &Farm,
    ) -> Fate {
        let in_pieces = matches!(parsed.key, Key::V6(_)) && room < ipv6::LEAST_MTU && parsed.ip_len <= ipv6::LEAST_MTU;
        let tunnel = farm.endpoint(endpoint).and_then(|endpoint| Some((endpoint.tunnel.as_ref()?, endpoint.hop?)));
        match tunnel.filter(|_| in_pieces) {
            Some((tunnel, hop)) => match rewrite::encapsulate(packet, parsed.headers(), tunnel, &hop) {
                Ok(port) => Fate::Pieces(port, room.saturating_add(tunnel.overhead())),
                Err(stop) => stop.into(),
            },
            None => Fate::TooBig(room),
        }
    }

    /// Forgets the narrow paths that are due to be tried again.
    pub(super) fn expire_paths(&mut self, now: u32) {
        self.paths.expire(now);
    }
}

/// Milliseconds until a larger packet is tried: ten minutes, RFC 1191 section 6.3 and RFC 8201 section 4.
const LIFETIME: u32 = 600_000;
/// GUE over IPv6.
const MOST_OVERHEAD: u16 = 52;
