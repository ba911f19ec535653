//! Rewriting a packet for its way: link-layer addresses, TTL, translated addresses and ports, and the checksums that go with them.

use std::net::{IpAddr, SocketAddr};

use weir_health_load::Directive;
use weir_identity::EndpointId;

use crate::counters::DropReason;
use crate::farm::{Endpoint, Farm, Hop, NoHop, PortId};
use crate::flow::{Key, destination_port, protocol};
use crate::packet::Packet;
use crate::parse::Headers;
use crate::plain4;
use crate::route_table::{Action, Mode, VipPort};
use crate::tunneler::{self, Tunnel};
use crate::wire::checksum;

/// Why a packet does not go its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is dropped.
    Drop(DropReason),
    /// It is longer than this many bytes, which is what fits.
    TooBig(u16),
    /// The link-layer address of this neighbour, on this port's link, is not known yet.
    Unresolved(PortId, IpAddr),
}

/// Rewrites a packet as its route says and returns the port it leaves by.
///
/// # Errors
///
/// [`Stop`]; the packet is unchanged but, where a tunnel found no room for its header, for the TTL.
#[inline]
pub fn deliver<P: Packet>(
    packet: &mut P,
    headers: Headers,
    endpoint: EndpointId,
    mode: Mode,
    value: u64,
    farm: &Farm,
) -> Result<PortId, Stop> {
    if headers.ttl <= 1 {
        return Err(Stop::Drop(DropReason::Ttl));
    }
    let endpoint = farm.endpoint(endpoint).ok_or(Stop::Drop(DropReason::Inactive))?;
    match mode {
        Mode::Dsr => deliver_dsr(packet, headers, endpoint, farm),
        Mode::Nat => {
            let hop = endpoint.hop.as_ref().ok_or_else(|| no_hop(endpoint, farm))?;
            let frame = leave(packet, headers, hop, farm)?;
            decrement_ttl(frame, headers);
            translate(frame, headers, Side::Destination, endpoint.address, endpoint.port);
            Ok(hop.port)
        }
        Mode::NatReturn => {
            let to = VipPort::from_value(value);
            let vip = farm.vips.get(to.vip as usize).ok_or(Stop::Drop(DropReason::Inactive))?;
            let hop = hop_back(packet.data(), headers, farm)?;
            let frame = leave(packet, headers, &hop, farm)?;
            decrement_ttl(frame, headers);
            translate(frame, headers, Side::Source, vip.address, Some(to.port));
            Ok(hop.port)
        }
        Mode::Ipip | Mode::Gue => {
            let hop = endpoint.hop.as_ref().ok_or_else(|| no_hop(endpoint, farm))?;
            let tunnel = endpoint.tunnel.as_ref().ok_or(Stop::Drop(DropReason::NoRoute))?;
            tunnel.fits(headers.ip_len, farm.ports[usize::from(hop.port)].mtu).map_err(Stop::TooBig)?;
            encapsulate(packet, headers, tunnel, hop)
        }
        // Full-nat is translated by the forwarder, whose tables it needs; without a route of its own no packet has a pool's port.
        Mode::FullNat | Mode::FullNatReturn | Mode::FlowId => Err(Stop::Drop(DropReason::NoRoute)),
    }
}

/// Puts a packet into a tunnel whose first hop is `hop`.
///
/// # Errors
///
/// [`Stop`] where there is no room for the header; only the TTL has changed then.
#[inline]
pub(crate) fn encapsulate<P: Packet>(
    packet: &mut P,
    headers: Headers,
    tunnel: &Tunnel,
    hop: &Hop,
) -> Result<PortId, Stop> {
    let entropy = entropy(packet.data(), headers);
    decrement_ttl(packet.data_mut(), headers);
    tunnel.encapsulate(packet, headers, entropy).map_err(Stop::Drop)?;
    packet.data_mut()[..12].copy_from_slice(&hop.ethernet);
    Ok(hop.port)
}

/// New link-layer addresses and one hop less to live: all that [`Mode::Dsr`] does.
///
/// # Errors
///
/// As [`deliver`].
#[inline(always)]
pub fn deliver_dsr<P: Packet>(
    packet: &mut P,
    headers: Headers,
    endpoint: &Endpoint,
    farm: &Farm,
) -> Result<PortId, Stop> {
    let hop = endpoint.hop.as_ref().ok_or_else(|| no_hop(endpoint, farm))?;
    pass_on(packet, headers, hop, farm)
}

/// Sends a packet on by `hop`, one hop less to live.
///
/// # Errors
///
/// [`Stop::TooBig`] if it does not fit; the packet is unchanged then.
#[inline(always)]
pub(crate) fn pass_on<P: Packet>(packet: &mut P, headers: Headers, hop: &Hop, farm: &Farm) -> Result<PortId, Stop> {
    let frame = leave(packet, headers, hop, farm)?;
    decrement_ttl(frame, headers);
    Ok(hop.port)
}

/// The key of the way back that a half-NAT route needs in the forwarder, and that way's value.
#[must_use]
pub fn return_key(key: &Key, action: Action, farm: &Farm) -> Option<(Key, u64)> {
    let (Action::Send { endpoint, mode: Mode::Nat, .. } | Action::Local { endpoint }) = action else {
        return None;
    };
    let endpoint: &Endpoint = farm.endpoint(endpoint)?;
    let destination = key.destination();
    let from = SocketAddr::new(endpoint.address, endpoint.port.unwrap_or(destination.port()));
    let back = Key::new(from, key.source(), key.protocol())?;
    Some((back, VipPort { vip: farm.vip_of(key)?, port: destination.port() }.to_value()))
}

/// The key of the direction from the client, from that of the way back and its value.
#[must_use]
pub fn client_key(back: &Key, value: u64, farm: &Farm) -> Option<Key> {
    let VipPort { vip, port } = VipPort::from_value(value);
    let vip = farm.vips.get(vip as usize)?.address;
    Key::new(back.destination(), SocketAddr::new(vip, port), back.protocol())
}

/// Why there is no way to an endpoint.
#[cold]
pub(crate) fn no_hop(endpoint: &Endpoint, farm: &Farm) -> Stop {
    if endpoint.directive == Directive::Inactive {
        return Stop::Drop(DropReason::Inactive);
    }
    match farm.hop_to(endpoint.address, endpoint.stable()) {
        Err(NoHop::Unresolved(port, neighbour)) => Stop::Unresolved(port, neighbour),
        Ok(_) | Err(NoHop::NoRoute) => Stop::Drop(DropReason::NoRoute),
    }
}

/// Checks that the packet fits the way, and writes the link-layer addresses.
#[inline(always)]
fn leave<'p, P: Packet>(packet: &'p mut P, headers: Headers, hop: &Hop, farm: &Farm) -> Result<&'p mut [u8], Stop> {
    let mtu = farm.ports[usize::from(hop.port)].mtu;
    if headers.ip_len > mtu {
        return Err(Stop::TooBig(mtu));
    }
    let frame = packet.data_mut();
    frame[..12].copy_from_slice(&hop.ethernet);
    Ok(frame)
}

/// One hop less to live; for IPv4 the header checksum follows, RFC 1624.
#[inline(always)]
pub(crate) fn decrement_ttl(frame: &mut [u8], headers: Headers) {
    let l3 = headers.l3;
    if headers.v6 {
        frame[l3 + 7] -= 1;
        return;
    }
    if let Some(frame) = frame[l3 - 14..].first_chunk_mut::<34>() {
        plain4::decrement_ttl(frame);
    }
}

/// Where the client of a returning packet is.
pub(crate) fn hop_back(frame: &[u8], headers: Headers, farm: &Farm) -> Result<Hop, Stop> {
    let at = headers.l3 + if headers.v6 { 24 } else { 16 };
    let client: IpAddr = if headers.v6 {
        let mut octets = [0; 16];
        octets.copy_from_slice(&frame[at..at + 16]);
        octets.into()
    } else {
        [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]].into()
    };
    farm.hop_to(client, flow_of_port(destination_port(headers.ports(frame)))).map_err(|reason| match reason {
        NoHop::NoRoute => Stop::Drop(DropReason::NoRoute),
        NoHop::Unresolved(port, neighbour) => Stop::Unresolved(port, neighbour),
    })
}

/// Which of several ways back a client's flow keeps to, by its port.
pub(crate) fn flow_of_port(port: u16) -> u64 {
    u64::from(port).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The entropy of a packet's flow in the outer header.
fn entropy(frame: &[u8], headers: Headers) -> u16 {
    let source_at = headers.l3 + if headers.v6 { 20 } else { 12 };
    let source = frame.get(source_at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    tunneler::entropy(u32::from_le_bytes(source), u32::from_le_bytes(headers.ports(frame)))
}

/// Which of a packet's two ends is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Replaces address and port of one end; the checksums follow by difference, RFC 1624. A later fragment has only the address.
#[inline]
pub(crate) fn translate(frame: &mut [u8], headers: Headers, side: Side, address: IpAddr, port: Option<u16>) {
    let l4 = headers.l4;
    if headers.later.is_some() {
        translate_address(frame, headers, side, address, 0);
        return;
    }
    let port_at = match side {
        Side::Source => l4,
        Side::Destination => l4 + 2,
    };
    let old_port = u16::from_be_bytes([frame[port_at], frame[port_at + 1]]);
    let new_port = port.unwrap_or(old_port);
    let check_at = l4 + if headers.protocol == protocol::UDP { 6 } else { 16 };
    let old_check = u16::from_be_bytes([frame[check_at], frame[check_at + 1]]);
    let mut check =
        translate_address(frame, headers, side, address, checksum::update_u16(old_check, old_port, new_port));
    frame[port_at..port_at + 2].copy_from_slice(&new_port.to_be_bytes());
    if headers.protocol == protocol::UDP {
        // RFC 768: zero says "none", and a sum of zero is sent as all ones.
        if old_check == 0 {
            return;
        }
        if check == 0 {
            check = 0xffff;
        }
    }
    frame[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
}

/// Replaces the address of one end, in the IPv4 header's checksum as well; returns the upper protocol's `check` with the difference.
#[inline]
fn translate_address(frame: &mut [u8], headers: Headers, side: Side, address: IpAddr, mut check: u16) -> u16 {
    let l3 = headers.l3;
    match address {
        IpAddr::V4(address) => {
            let at = l3 + if side == Side::Source { 12 } else { 16 };
            let old = u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            let new = u32::from(address);
            check = checksum::update_u32(check, old, new);
            let header_check = u16::from_be_bytes([frame[l3 + 10], frame[l3 + 11]]);
            frame[l3 + 10..l3 + 12].copy_from_slice(&checksum::update_u32(header_check, old, new).to_be_bytes());
            frame[at..at + 4].copy_from_slice(&new.to_be_bytes());
        }
        IpAddr::V6(address) => {
            let at = l3 + if side == Side::Source { 8 } else { 24 };
            let mut old = [0; 16];
            old.copy_from_slice(&frame[at..at + 16]);
            check = checksum::update_addr16(check, old, address.octets());
            frame[at..at + 16].copy_from_slice(&address.octets());
        }
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::join_ports;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the bytes: wrong checksums stay as wrong as they were.
        #[test]
        fn plain_packets_are_translated_as_all_are(
            lower: [u8; 32], upper: [u8; 22], udp: bool, unsummed: bool, ends: [([u8; 4], u16); 2],
        ) {
            let mut frame = [0; 54];
            frame[..32].copy_from_slice(&lower);
            frame[32..].copy_from_slice(&upper);
            frame[23] = if udp { protocol::UDP } else { protocol::TCP };
            if unsummed {
                frame[40..42].fill(0);
            }
            let headers = Headers { l3: 14, l4: 34, ip_len: 40, ttl: 64, protocol: frame[23], v6: false, later: None };
            let (mut one, mut other) = (frame, frame);
            let [(source, from), (destination, to)] = ends;
            translate(&mut one, headers, Side::Source, source.into(), Some(from));
            translate(&mut one, headers, Side::Destination, destination.into(), Some(to));
            let word = |source: [u8; 4], destination: [u8; 4]| u64::from(u32::from_le_bytes(destination)) << 32 | u64::from(u32::from_le_bytes(source));
            plain4::translate(&mut other, word(source, destination), u32::from_le_bytes(join_ports(from, to)));
            prop_assert_eq!(one, other);
        }
    }
}
