//! Full-nat: both ends of a packet are rewritten at once, within a family or across (RFC 7915), and what that takes in tables.
//!
//! Within a family the packet is changed in place. Across families its IP header is replaced, and Ethernet header and tags
//! move by the difference. Either way the TCP or UDP checksum follows by the difference between old and new pseudo header
//! and ports (RFC 1624), never by reading the payload. The one exception is a UDP datagram without a checksum that goes from
//! IPv4 to IPv6, where it needs one: that is computed.
//!
//! Across families, as RFC 7915 has it, with these policies:
//! - TTL and hop limit, DSCP and ECN are carried over; the flow label is 0.
//! - IPv4 options and IPv6 extension headers are left out, but for the fragment header; a packet with a source route or an
//!   authentication header is dropped.
//! - A fragment stays one, of the same datagram as far as IPv4's 16 bits of identification say; the first one's checksum is the
//!   datagram's, and follows as a whole packet's does. A UDP checksum that is missing cannot be computed then: it is dropped.
//! - An atomic fragment becomes an IPv4 packet that may be fragmented; no other packet becomes or stays one.
//! - IPv4 gets DF else and, being atomic, identification 0 (RFC 6864). RFC 7915 section 5.1 clears DF up to 1260 bytes, for IPv4
//!   paths narrower than that; from a unit to its endpoints there are none.
//! - What has become too long is not taken to pieces here. Who calls asks [`size_after`] first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub mod pool;
pub mod table;

pub use pool::{BadPool, LEAST_PORTS, PoolPort, PoolPorts};
pub use table::{Translation, TranslationTable};

use crate::counters::DropReason;
use crate::flow::{Key, join_ports, protocol};
use crate::packet::Packet;
use crate::parse::{Class, Parsed};
use crate::tunneler::{DONT_FRAGMENT, IPV4, IPV6, replace_header};
use crate::wire::checksum::{Delta, Sum};
use crate::wire::{Addresses, Protocol, ipv4};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[inline]
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// The IP packet's length, in bytes, once it is of `family`; 65535 for anything beyond.
#[inline]
#[must_use]
pub fn size_after(parsed: &Parsed, family: Family) -> u16 {
    match (parsed.key, family) {
        (Key::V4(_), Family::V4) | (Key::V6(_), Family::V6) => parsed.ip_len,
        (Key::V4(_), Family::V6) => payload_len(parsed).saturating_add(if is_fragment(parsed) { 48 } else { 40 }),
        (Key::V6(_), Family::V4) => payload_len(parsed).saturating_add(20),
    }
}

/// Whether a packet is a fragment of a larger one.
#[inline]
#[must_use]
pub fn is_fragment(parsed: &Parsed) -> bool {
    parsed.fragment.offset != 0 || parsed.fragment.more
}

/// Whether routers may take a packet to pieces: IPv4 without DF, or what becomes that for its IPv6 fragment header.
#[must_use]
pub fn may_be_fragmented(frame: &[u8], parsed: &Parsed) -> bool {
    let l3 = usize::from(parsed.l3);
    match parsed.key {
        Key::V4(_) => frame.get(l3 + 6).is_some_and(|flags| flags & DONT_FRAGMENT == 0),
        Key::V6(_) => matches!(fragment_header(frame, parsed), Ok(Some(_))),
    }
}

/// Bytes behind the IP header and its options or extensions.
#[inline]
fn payload_len(parsed: &Parsed) -> u16 {
    parsed.ip_len.saturating_sub(parsed.l4.saturating_sub(u16::from(parsed.l3)))
}

/// Replaces addresses and ports of both ends. The TTL is the caller's, who has decremented it.
///
/// Of fragments the first one has ports and the checksum, and all have the addresses. Across families `parsed` no longer
/// describes the packet afterwards.
///
/// # Errors
///
/// [`DropReason::NoRoute`] for ends of different families, [`DropReason::Protocol`] for anything but TCP and UDP,
/// [`DropReason::Truncated`] if `parsed` is of a longer packet; across families also [`DropReason::ExtensionHeader`]
/// (authentication, or others behind a fragment header), [`DropReason::BadHeader`] (source route), [`DropReason::NoChecksum`]
/// (a fragment without that of UDP), [`DropReason::TooBig`] (beyond 65535 bytes) and [`DropReason::NoBuffer`]. The packet is
/// unchanged then.
#[inline]
pub fn translate_both<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<(), DropReason> {
    if !matches!(parsed.class, Class::Flow | Class::Fragment) {
        return Err(DropReason::Protocol);
    }
    if packet.data().len() < usize::from(parsed.l3) + usize::from(parsed.ip_len) {
        return Err(DropReason::Truncated);
    }
    let ports = join_ports(source.port(), destination.port());
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => match parsed.key {
            Key::V4(_) => in_place(packet, parsed, 12, &addresses4(source, destination), ports),
            Key::V6(_) => to_v4(packet, parsed, source, destination, ports),
        },
        (IpAddr::V6(source), IpAddr::V6(destination)) => match parsed.key {
            Key::V6(_) => in_place(packet, parsed, 8, &addresses6(source, destination), ports),
            Key::V4(_) => to_v6(packet, parsed, source, destination, ports),
        },
        _ => Err(DropReason::NoRoute),
    }
}

/// Within a family: `addresses` stand at `at` in the IP header.
#[inline]
fn in_place<P: Packet, const N: usize>(
    packet: &mut P,
    parsed: &Parsed,
    at: usize,
    addresses: &[u8; N],
    ports: [u8; 4],
) -> Result<(), DropReason> {
    let check_at = check_at(parsed)?;
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let frame = packet.data_mut();
    let Some(old) = frame.get_mut(l3 + at..).and_then(<[u8]>::first_chunk_mut::<N>) else {
        return Err(DropReason::Truncated);
    };
    let (before, after) = (Sum::new().bytes(old), Sum::new().bytes(addresses));
    *old = *addresses;
    if matches!(parsed.key, Key::V4(_)) {
        let header = Delta::of_sums(before, after);
        patch(frame, l3 + 10, |check| header.apply(check));
    }
    if let Some(check_at) = check_at {
        let delta = Delta::of_sums(before.bytes(&frame[l4..l4 + 4]), after.bytes(&ports));
        translate_ports(frame, l4, l4 + check_at, delta, ports, parsed.key.protocol());
    }
    Ok(())
}

/// IPv6 to IPv4, RFC 7915 section 5.1.
fn to_v4<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ports: [u8; 4],
) -> Result<(), DropReason> {
    let check_at = check_at(parsed)?;
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let fragment = if l4 == l3 + 40 { None } else { fragment_header(packet.data(), parsed)? };
    let Some(old) = packet.data().get(l3..).and_then(<[u8]>::first_chunk::<40>) else {
        return Err(DropReason::Truncated);
    };
    let addresses = addresses4(source, destination);
    let (before, after) = (Sum::new().bytes(&old[8..]), Sum::new().bytes(&addresses));
    let mut header = [0; 20];
    header[0] = 0x45;
    header[1] = old[0] << 4 | old[1] >> 4;
    header[2..4].copy_from_slice(&size_after(parsed, Family::V4).to_be_bytes());
    match fragment {
        None => header[6] = DONT_FRAGMENT,
        // Section 5.1.1. The offset stands three bits higher here, and the flag at the other end.
        Some([_, _, high, low, .., id_high, id_low]) => {
            let place = u16::from_be_bytes([high, low]);
            header[4..6].copy_from_slice(&[id_high, id_low]);
            header[6..8].copy_from_slice(&(place >> 3 | (place & 1) << 13).to_be_bytes());
        }
    }
    header[8] = old[7];
    header[9] = parsed.key.protocol();
    header[12..].copy_from_slice(&addresses);
    let check = Sum::new().bytes(&header).checksum();
    header[10..12].copy_from_slice(&check.to_be_bytes());
    replace_header(packet, parsed.headers(), l4 - l3, &header, IPV4)?;
    if let Some(check_at) = check_at {
        let (frame, l4) = (packet.data_mut(), l3 + 20);
        let delta = Delta::of_sums(before.bytes(&frame[l4..l4 + 4]), after.bytes(&ports));
        translate_ports(frame, l4, l4 + check_at, delta, ports, parsed.key.protocol());
    }
    Ok(())
}

/// The fragment header of an IPv6 packet, if it has one: the last of the extension headers before `parsed.l4`.
///
/// # Errors
///
/// [`DropReason::ExtensionHeader`] for authentication, which covers the addresses, and for extension headers behind it (RFC 7915
/// section 5.1.1); [`DropReason::Truncated`].
#[cold]
fn fragment_header(frame: &[u8], parsed: &Parsed) -> Result<Option<[u8; 8]>, DropReason> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let (next, extensions) = frame.get(l3 + 6).zip(frame.get(l3 + 40..l4)).ok_or(DropReason::Truncated)?;
    let (mut next, mut rest) = (Protocol(*next), extensions);
    while let Some(header) = rest.first_chunk::<8>() {
        match next {
            Protocol::FRAGMENT if rest.len() == 8 => return Ok(Some(*header)),
            Protocol::HOP_BY_HOP | Protocol::DESTINATION_OPTIONS | Protocol::ROUTING => {
                next = Protocol(header[0]);
                rest = rest.get((usize::from(header[1]) + 1) * 8..).ok_or(DropReason::Truncated)?;
            }
            _ => return Err(DropReason::ExtensionHeader),
        }
    }
    Ok(None)
}

/// IPv4 to IPv6, RFC 7915 section 4.1.
fn to_v6<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    ports: [u8; 4],
) -> Result<(), DropReason> {
    let check_at = check_at(parsed)?;
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let (frame, header_len, protocol) = (packet.data(), l4 - l3, parsed.key.protocol());
    let Some(old) = frame.get(l3..).and_then(<[u8]>::first_chunk::<20>) else {
        return Err(DropReason::Truncated);
    };
    if header_len != 20 && source_routed(&frame[l3..]) {
        return Err(DropReason::BadHeader);
    }
    let fragment = is_fragment(parsed);
    if fragment && unsummed(frame, parsed) {
        return Err(DropReason::NoChecksum);
    }
    let length = payload_len(parsed).saturating_add(if fragment { 8 } else { 0 });
    if length > u16::MAX - 40 {
        return Err(DropReason::TooBig);
    }
    let addresses = addresses6(source, destination);
    let (before, after) = (Sum::new().bytes(&old[12..]), Sum::new().bytes(&addresses));
    let id = [old[4], old[5]];
    let mut header = [0; 40];
    header[..4].copy_from_slice(&(0x6000_0000 | u32::from(old[1]) << 20).to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = protocol;
    header[7] = old[8];
    header[8..].copy_from_slice(&addresses);
    let l4 = if fragment {
        let mut both = [0; 48];
        both[..40].copy_from_slice(&header);
        both[6] = Protocol::FRAGMENT.0;
        both[40] = protocol;
        let place = parsed.fragment.offset | u16::from(parsed.fragment.more);
        both[42..44].copy_from_slice(&place.to_be_bytes());
        both[46..].copy_from_slice(&id);
        replace_header(packet, parsed.headers(), header_len, &both, IPV6)?;
        l3 + 48
    } else {
        replace_header(packet, parsed.headers(), header_len, &header, IPV6)?;
        l3 + 40
    };
    if let Some(check_at) = check_at {
        let (frame, check_at) = (packet.data_mut(), l4 + check_at);
        let delta = Delta::of_sums(before.bytes(&frame[l4..l4 + 4]), after.bytes(&ports));
        translate_ports(frame, l4, check_at, delta, ports, protocol);
        if protocol == protocol::UDP && frame[check_at..check_at + 2] == [0, 0] {
            sum_datagram(&mut frame[l4..], Addresses::V6 { source, destination });
        }
    }
    Ok(())
}

/// Gives a whole IPv4 datagram that is to be taken to pieces the checksum that its first piece will need, if it has none.
#[cold]
pub fn sum_before_pieces(frame: &mut [u8], parsed: &Parsed) {
    if let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (parsed.key.source(), parsed.key.destination())
        && !is_fragment(parsed)
        && unsummed(frame, parsed)
    {
        let (source, destination) = (*source.ip(), *destination.ip());
        let end = usize::from(parsed.l3) + usize::from(parsed.ip_len);
        sum_datagram(&mut frame[usize::from(parsed.l4)..end], Addresses::V4 { source, destination });
    }
}

/// Whether a packet brings a UDP header without a checksum.
#[inline]
fn unsummed(frame: &[u8], parsed: &Parsed) -> bool {
    let at = usize::from(parsed.l4) + 6;
    parsed.key.protocol() == protocol::UDP && !parsed.is_later() && frame.get(at..at + 2) == Some(&[0, 0])
}

/// The new ports, and the TCP or UDP checksum by difference.
#[inline]
fn translate_ports(frame: &mut [u8], l4: usize, check_at: usize, delta: Delta, ports: [u8; 4], protocol: u8) {
    frame[l4..l4 + 4].copy_from_slice(&ports);
    let udp = protocol == protocol::UDP;
    patch(frame, check_at, |check| if udp { delta.apply_udp(check) } else { delta.apply(check) });
}

/// Computes a checksum for a datagram that has none; IPv6 requires one (RFC 8200 section 8.1).
#[cold]
fn sum_datagram(datagram: &mut [u8], addresses: Addresses) {
    let length = u16::from_be_bytes([datagram[4], datagram[5]]);
    let covered = usize::from(length).min(datagram.len());
    let sum = Sum::new().pseudo_header(addresses, Protocol::UDP, u32::from(length));
    let check = sum.bytes(&datagram[..covered]).udp_checksum();
    datagram[6..8].copy_from_slice(&check.to_be_bytes());
}

/// Where the checksum is in the TCP or UDP header; nowhere in a later fragment, which has none.
#[inline]
fn check_at(parsed: &Parsed) -> Result<Option<usize>, DropReason> {
    let at = match parsed.key.protocol() {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return Err(DropReason::Protocol),
    };
    Ok((!parsed.is_later()).then_some(at))
}

/// Whether an IPv4 packet names its way; RFC 7915 section 4.1 wants that dropped, at least until the way is used up.
#[cold]
fn source_routed(packet: &[u8]) -> bool {
    match ipv4::Packet::new_checked(packet) {
        Ok(packet) => packet.options().any(|option| option.map_or(true, |option| option.is_source_route())),
        Err(_) => true,
    }
}

#[inline]
fn patch(frame: &mut [u8], at: usize, change: impl FnOnce(u16) -> u16) {
    let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
    frame[at..at + 2].copy_from_slice(&change(old).to_be_bytes());
}

/// Both addresses as they stand in an IPv4 header.
#[inline]
fn addresses4(source: Ipv4Addr, destination: Ipv4Addr) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (source.octets(), destination.octets());
    [a, b, c, d, e, f, g, h]
}

/// Both addresses as they stand in an IPv6 header.
#[inline]
fn addresses6(source: Ipv6Addr, destination: Ipv6Addr) -> [u8; 32] {
    let mut both = [0; 32];
    both[..16].copy_from_slice(&source.octets());
    both[16..].copy_from_slice(&destination.octets());
    both
}

#[cfg(test)]
mod tests;
