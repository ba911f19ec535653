//! ICMP errors between the families, RFC 7915 sections 4.2, 4.3, 5.2 and 5.3: written anew, with what they quote translated.
//!
//! A router that reports an error has no address in the other family: the error comes from the address that stands for the far end.
//! An extension (RFC 4884) is left out, and the quotation is cut so that the error is no longer than errors may be. A quoted fragment
//! is quoted as the fragment that its sender has sent.

use std::net::{IpAddr, SocketAddr};

use super::{Quoted, original, u16_at};
use crate::counters::DropReason;
use crate::flow::{join_ports, protocol};
use crate::packet::Packet;
use crate::parse::Parsed;
use crate::tunneler::{IPV4, IPV6};
use crate::wire::checksum::{Delta, Sum};
use crate::wire::{Addresses, Protocol, icmpv4, icmpv6, ipv4, ipv6, ipv6_ext};

/// Rewrites an error about a full-nat flow for its receiver `to`, who knows the flow as `to` → `from`; both are of the family that
/// the error is not of. `parsed` no longer describes the packet afterwards. The TTL is the caller's, who has decremented it.
///
/// # Errors
///
/// [`DropReason::Icmp`] for an error that has no counterpart in the other family, or ends of unfit families;
/// [`DropReason::NoBuffer`]. The packet is unchanged then.
pub fn to_other_family<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    quoted: &Quoted,
    from: SocketAddr,
    to: SocketAddr,
) -> Result<(), DropReason> {
    let frame = packet.data();
    let (l3, l4, end) =
        (usize::from(parsed.l3), usize::from(parsed.l4), usize::from(parsed.l3) + usize::from(parsed.ip_len));
    let message = frame.get(l4..end).filter(|message| message.len() >= 8).ok_or(DropReason::Truncated)?;
    let is_v4 = parsed.key.source().is_ipv4();
    let difference = HEADER_DIFFERENCE + if quoted.fragment.is_some() { FRAGMENT_HEADER } else { 0 };
    let head = if is_v4 { head_v6(message, difference) } else { head_v4(message, difference) };
    let head = head.ok_or(DropReason::Icmp)?;
    let upper = upper(frame, message, l4, quoted, is_v4, from, to).ok_or(DropReason::Truncated)?;

    let mut out = [0; LONGEST];
    let (link, rest) = out.split_at_mut(l3);
    link.copy_from_slice(frame.get(..l3).ok_or(DropReason::Truncated)?);
    let ip = &frame[l3..];
    let (class, ttl) = if is_v4 { (ip[1], ip[8]) } else { (ip[0] << 4 | ip[1] >> 4, ip[7]) };
    let inner = &frame[quoted.l3..];
    let (inner_class, inner_ttl) = if is_v4 { (inner[1], inner[8]) } else { (inner[0] << 4 | inner[1] >> 4, inner[7]) };
    let protocol = Protocol(quoted.key.protocol());
    let len = match (from.ip(), to.ip()) {
        (IpAddr::V6(from), IpAddr::V6(to)) if is_v4 => {
            link[l3 - 2..].copy_from_slice(&IPV6);
            let extra = if quoted.fragment.is_some() { ipv6_ext::FRAGMENT_LEN } else { 0 };
            let upper = &upper.bytes[..upper.len.min(MAX_V6 - 88 - extra)];
            let len = 48 + extra + upper.len();
            let quoted_len = usize::from(u16_at(inner, 2)).saturating_sub(usize::from(inner[0] & 0xf) * 4) + extra;
            let next = if quoted.fragment.is_some() { Protocol::FRAGMENT } else { protocol };
            let header = ipv6::Repr {
                hop_limit: ttl,
                traffic_class: class,
                ..ipv6::Repr::new(from, to, Protocol::ICMPV6, size(len))
            };
            let quotation = ipv6::Repr {
                hop_limit: inner_ttl,
                traffic_class: inner_class,
                ..ipv6::Repr::new(to, from, next, size(quoted_len))
            };
            let (ip, message) = rest.split_at_mut(40);
            header.emit(ip).map_err(|_| DropReason::Icmp)?;
            quotation.emit(&mut message[8..48]).map_err(|_| DropReason::Icmp)?;
            if let Some(fragment) = quoted.fragment {
                let header = ipv6_ext::Repr { next_header: protocol, fragment };
                header.emit(&mut message[48..]).map_err(|_| DropReason::Icmp)?;
            }
            message[..8].copy_from_slice(&head);
            message[48 + extra..len].copy_from_slice(upper);
            let mut message = icmpv6::Packet::new_checked(&mut message[..len]).map_err(|_| DropReason::Icmp)?;
            message.fill_checksum(Addresses::V6 { source: from, destination: to });
            l3 + 40 + len
        }
        (IpAddr::V4(from), IpAddr::V4(to)) if !is_v4 => {
            link[l3 - 2..].copy_from_slice(&IPV4);
            let upper = &upper.bytes[..upper.len.min(MAX_V4 - 48)];
            let len = 28 + upper.len();
            let extensions = quoted.l4 - quoted.l3 - 40;
            let quoted_len = usize::from(u16_at(inner, 4)).saturating_sub(extensions);
            let header = ipv4::Repr { ttl, tos: class, ..ipv4::Repr::new(from, to, Protocol::ICMP, size(len)) };
            let [.., high, low] = quoted.fragment.map_or(0, |fragment| fragment.identification).to_be_bytes();
            let quotation = ipv4::Repr {
                ttl: inner_ttl,
                tos: inner_class,
                identification: u16::from_be_bytes([high, low]),
                dont_fragment: quoted.fragment.is_none(),
                more_fragments: quoted.fragment.is_some_and(|fragment| fragment.more),
                ..ipv4::Repr::new(to, from, protocol, size(quoted_len))
            };
            let (ip, message) = rest.split_at_mut(20);
            header.emit(ip).map_err(|_| DropReason::Icmp)?;
            quotation.emit(&mut message[8..28]).map_err(|_| DropReason::Icmp)?;
            message[..8].copy_from_slice(&head);
            message[28..len].copy_from_slice(upper);
            icmpv4::Packet::new_checked(&mut message[..len]).map_err(|_| DropReason::Icmp)?.fill_checksum();
            l3 + 20 + len
        }
        _ => return Err(DropReason::Icmp),
    };
    if !packet.resize(len) {
        return Err(DropReason::NoBuffer);
    }
    packet.data_mut().copy_from_slice(&out[..len]);
    Ok(())
}

/// A quoted TCP or UDP header with what is quoted behind it.
struct Upper {
    bytes: [u8; MAX_V6],
    len: usize,
}

/// The quoted header with its new ports, and with its checksum if it was quoted.
fn upper(
    frame: &[u8],
    message: &[u8],
    l4: usize,
    quoted: &Quoted,
    is_v4: bool,
    from: SocketAddr,
    to: SocketAddr,
) -> Option<Upper> {
    let extended = if is_v4 { usize::from(message[5]) * 4 } else { usize::from(message[4]) * 8 };
    // In these it is the number of something else.
    let extended = if !is_v4 && !matches!(message[0], icmpv6::kind::UNREACHABLE | icmpv6::kind::TIME_EXCEEDED) {
        0
    } else {
        extended
    };
    let end = l4 + 8 + original(message, extended).len();
    let old = frame.get(quoted.l4..end)?;
    let mut upper = Upper { bytes: [0; MAX_V6], len: old.len().min(MAX_V6) };
    upper.bytes[..upper.len].copy_from_slice(&old[..upper.len]);
    let (source_at, addresses) = if is_v4 { (12, 8) } else { (8, 32) };
    let before = Sum::new().bytes(frame.get(quoted.l3 + source_at..)?.get(..addresses)?).bytes(old.get(..4)?);
    let ports = join_ports(to.port(), from.port());
    let after = sum_of(from.ip(), sum_of(to.ip(), Sum::new())).bytes(&ports);
    upper.bytes[..4].copy_from_slice(&ports);
    if quoted.checksummed {
        let udp = quoted.key.protocol() == protocol::UDP;
        let at = if udp { 6 } else { 16 };
        let (old, delta) = (u16_at(&upper.bytes, at), Delta::of_sums(before, after));
        let new = if udp { delta.apply_udp(old) } else { delta.apply(old) };
        upper.bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
    }
    Some(upper)
}

fn sum_of(address: IpAddr, sum: Sum) -> Sum {
    match address {
        IpAddr::V4(address) => sum.bytes(&address.octets()),
        IpAddr::V6(address) => sum.bytes(&address.octets()),
    }
}

/// Type, code and the second word of an ICMPv4 error as ICMPv6 has them, RFC 7915 section 4.2; no checksum. `difference` is by how many
/// bytes the quoted packet is longer in IPv6.
fn head_v6(message: &[u8], difference: u32) -> Option<[u8; 8]> {
    let (kind, code, word) = match (message[0], message[1]) {
        (icmpv4::kind::UNREACHABLE, 2) => (icmpv6::kind::PARAMETER_PROBLEM, 1, NEXT_HEADER),
        (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::PORT) => {
            (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::PORT, 0)
        }
        (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::FRAGMENTATION_NEEDED) => {
            // 0 is an old router's, which leaves us nothing but the minimum.
            let mtu = u32::from(u16_at(message, 6)).saturating_add(difference).max(MIN_MTU_V6);
            (icmpv6::kind::PACKET_TOO_BIG, 0, mtu)
        }
        (icmpv4::kind::UNREACHABLE, 9 | 10 | 13 | 15) => (icmpv6::kind::UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0),
        (icmpv4::kind::UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => (icmpv6::kind::UNREACHABLE, NO_ROUTE, 0),
        (icmpv4::kind::TIME_EXCEEDED, code) => (icmpv6::kind::TIME_EXCEEDED, code, 0),
        (icmpv4::kind::PARAMETER_PROBLEM, 0 | 2) => {
            (icmpv6::kind::PARAMETER_PROBLEM, 0, pointer(&POINTERS_4_TO_6, usize::from(message[4]))?)
        }
        _ => return None,
    };
    Some(head(kind, code, word))
}

/// The other way, section 5.2.
fn head_v4(message: &[u8], difference: u32) -> Option<[u8; 8]> {
    let word = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    let (kind, code, word) = match (message[0], message[1]) {
        (icmpv6::kind::UNREACHABLE, 0 | 2 | 3) => (icmpv4::kind::UNREACHABLE, HOST, 0),
        (icmpv6::kind::UNREACHABLE, ADMINISTRATIVELY_PROHIBITED) => (icmpv4::kind::UNREACHABLE, HOST_PROHIBITED, 0),
        (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::PORT) => {
            (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::PORT, 0)
        }
        (icmpv6::kind::PACKET_TOO_BIG, _) => {
            let mtu = word.saturating_sub(difference).min(u32::from(u16::MAX));
            (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::FRAGMENTATION_NEEDED, mtu)
        }
        (icmpv6::kind::TIME_EXCEEDED, code) => (icmpv4::kind::TIME_EXCEEDED, code, 0),
        (icmpv6::kind::PARAMETER_PROBLEM, 0) => {
            let place = usize::try_from(word).ok()?;
            (icmpv4::kind::PARAMETER_PROBLEM, 0, pointer(&POINTERS_6_TO_4, place)? << 24)
        }
        (icmpv6::kind::PARAMETER_PROBLEM, 1) => (icmpv4::kind::UNREACHABLE, PROTOCOL, 0),
        _ => return None,
    };
    Some(head(kind, code, word))
}

fn head(kind: u8, code: u8, word: u32) -> [u8; 8] {
    let [a, b, c, d] = word.to_be_bytes();
    [kind, code, 0, 0, a, b, c, d]
}

/// Where a header's field at `place` stands in the other family's header; `None` if it has no such field.
fn pointer(table: &[(std::ops::RangeInclusive<usize>, u32)], place: usize) -> Option<u32> {
    table.iter().find(|(range, _)| range.contains(&place)).map(|(_, there)| *there)
}

fn size(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// RFC 7915, figure 3.
const POINTERS_4_TO_6: [(std::ops::RangeInclusive<usize>, u32); 7] =
    [(0..=0, 0), (1..=1, 1), (2..=3, 4), (8..=8, 7), (9..=9, 6), (12..=15, 8), (16..=19, 24)];
/// RFC 7915, figure 6.
const POINTERS_6_TO_4: [(std::ops::RangeInclusive<usize>, u32); 7] =
    [(0..=0, 0), (1..=1, 1), (4..=5, 2), (6..=6, 9), (7..=7, 8), (8..=23, 12), (24..=39, 16)];
/// The place of "next header" in an IPv6 header.
const NEXT_HEADER: u32 = 6;
/// By how many bytes an IPv6 header is longer than an IPv4 header.
const HEADER_DIFFERENCE: u32 = 20;
/// What a fragment has more in IPv6: its sender would else be told a length that is too big again.
const FRAGMENT_HEADER: u32 = 8;
/// Codes of "destination unreachable" in ICMPv6.
const NO_ROUTE: u8 = 0;
const ADMINISTRATIVELY_PROHIBITED: u8 = 1;
/// Codes of "destination unreachable" in ICMPv4.
const HOST: u8 = 1;
const PROTOCOL: u8 = 2;
const HOST_PROHIBITED: u8 = 10;
/// RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4 c: no error is longer, in bytes of IP packet.
const MAX_V4: usize = 576;
const MAX_V6: usize = 1280;
/// RFC 8200 section 5.
const MIN_MTU_V6: u32 = 1280;
/// The longest, behind two VLAN tags.
const LONGEST: usize = 22 + MAX_V6;
