//! Full-nat: both ends of a packet are rewritten at once, within a family or across (RFC 7915), and what that takes in tables.
//!
//! Within a family the packet is changed in place. Across families its IP header is replaced, and Ethernet header and tags
//! move by the difference. Either way the TCP or UDP checksum follows by the difference between old and new pseudo header
//! and ports (RFC 1624), never by reading the payload. The one exception is a UDP datagram without a checksum that goes from
//! IPv4 to IPv6, where it needs one: that is computed.
//!
//! Across families, as RFC 7915 has it, with these policies:
//! - TTL and hop limit, DSCP and ECN are carried over; the flow label is 0.
//! - IPv4 options are left out; a packet with a source route is dropped.
//! - Extension headers: the packet is dropped.
//! - Fragments are dropped: a zero UDP checksum could not be computed, and the datagram is one only at its end.
//! - IPv4 gets DF and, being atomic, identification 0 (RFC 6864). RFC 7915 section 5.1 clears DF up to 1260 bytes, for IPv4
//!   paths narrower than that; from a unit to its endpoints there are none.
//! - An IPv4 packet without DF that has become too long is not fragmented. Who calls asks [`size_after`] first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub mod pool;
pub mod table;

pub use pool::{BadPool, PoolPort, PoolPorts};
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
        (Key::V4(_), Family::V6) => {
            let header = parsed.l4.saturating_sub(u16::from(parsed.l3));
            parsed.ip_len.saturating_sub(header).saturating_add(40)
        }
        (Key::V6(_), Family::V4) => parsed.ip_len.saturating_sub(20),
    }
}

/// Replaces addresses and ports of both ends. The TTL is the caller's, who has decremented it.
///
/// Within a family fragments are translated, too: ports and checksum in the first one, addresses in all. Across families
/// `parsed` no longer describes the packet afterwards.
///
/// # Errors
///
/// [`DropReason::NoRoute`] for ends of different families, [`DropReason::Protocol`] for anything but TCP and UDP,
/// [`DropReason::Truncated`] if `parsed` is of a longer packet; across families also [`DropReason::Fragment`],
/// [`DropReason::ExtensionHeader`], [`DropReason::BadHeader`] (source route), [`DropReason::TooBig`] (beyond 65535 bytes)
/// and [`DropReason::NoBuffer`]. The packet is unchanged then.
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
    // Where a fragment goes on there is no header, and the first one's checksum is the whole datagram's.
    let check_at = if parsed.fragment.offset == 0 { Some(check_at(parsed)?) } else { None };
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
        translate_ports(frame, l4, check_at, delta, ports, parsed.key.protocol());
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
    let check_at = whole(parsed)?;
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    if l4 != l3 + 40 {
        return Err(DropReason::ExtensionHeader);
    }
    let Some(old) = packet.data().get(l3..).and_then(<[u8]>::first_chunk::<40>) else {
        return Err(DropReason::Truncated);
    };
    let delta = Delta::of_sums(
        Sum::new().bytes(&old[8..]).bytes(&packet.data()[l4..l4 + 4]),
        Sum::new().bytes(&addresses4(source, destination)).bytes(&ports),
    );
    let mut header = [0; 20];
    header[0] = 0x45;
    header[1] = old[0] << 4 | old[1] >> 4;
    header[2..4].copy_from_slice(&size_after(parsed, Family::V4).to_be_bytes());
    header[6] = DONT_FRAGMENT;
    header[8] = old[7];
    header[9] = parsed.key.protocol();
    header[12..].copy_from_slice(&addresses4(source, destination));
    let check = Sum::new().bytes(&header).checksum();
    header[10..12].copy_from_slice(&check.to_be_bytes());
    replace_header(packet, parsed.headers(), 40, &header, IPV4)?;
    translate_ports(packet.data_mut(), l3 + 20, check_at - 20, delta, ports, parsed.key.protocol());
    Ok(())
}

/// IPv4 to IPv6, RFC 7915 section 4.1.
fn to_v6<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    ports: [u8; 4],
) -> Result<(), DropReason> {
    let check_at = whole(parsed)?;
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let header_len = l4 - l3;
    let Some(old) = packet.data().get(l3..).and_then(<[u8]>::first_chunk::<20>) else {
        return Err(DropReason::Truncated);
    };
    if header_len != 20 && source_routed(&packet.data()[l3..]) {
        return Err(DropReason::BadHeader);
    }
    let length = parsed.ip_len - u16::from(parsed.l3).abs_diff(parsed.l4);
    if length > u16::MAX - 40 {
        return Err(DropReason::TooBig);
    }
    let addresses = addresses6(source, destination);
    let delta = Delta::of_sums(
        Sum::new().bytes(&old[12..]).bytes(&packet.data()[l4..l4 + 4]),
        Sum::new().bytes(&addresses).bytes(&ports),
    );
    let mut header = [0; 40];
    header[..4].copy_from_slice(&(0x6000_0000 | u32::from(old[1]) << 20).to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = parsed.key.protocol();
    header[7] = old[8];
    header[8..].copy_from_slice(&addresses);
    replace_header(packet, parsed.headers(), header_len, &header, IPV6)?;
    let (l4, check_at) = (l3 + 40, check_at - header_len + 40);
    let frame = packet.data_mut();
    translate_ports(frame, l4, check_at, delta, ports, parsed.key.protocol());
    if parsed.key.protocol() == protocol::UDP && frame[check_at..check_at + 2] == [0, 0] {
        sum_datagram(&mut frame[l4..], source, destination);
    }
    Ok(())
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
fn sum_datagram(datagram: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) {
    let length = u16::from_be_bytes([datagram[4], datagram[5]]);
    let covered = usize::from(length).min(datagram.len());
    let sum = Sum::new().pseudo_header(Addresses::V6 { source, destination }, Protocol::UDP, u32::from(length));
    let check = sum.bytes(&datagram[..covered]).udp_checksum();
    datagram[6..8].copy_from_slice(&check.to_be_bytes());
}

/// Where the TCP or UDP checksum is, for a packet that may change its family.
#[inline]
fn whole(parsed: &Parsed) -> Result<usize, DropReason> {
    if parsed.class == Class::Fragment { Err(DropReason::Fragment) } else { check_at(parsed) }
}

/// Where the TCP or UDP checksum is.
#[inline]
fn check_at(parsed: &Parsed) -> Result<usize, DropReason> {
    match parsed.key.protocol() {
        protocol::TCP => Ok(usize::from(parsed.l4) + 16),
        protocol::UDP => Ok(usize::from(parsed.l4) + 6),
        _ => Err(DropReason::Protocol),
    }
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
