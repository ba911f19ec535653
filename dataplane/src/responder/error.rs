//! ICMP errors that a VIP sends about packets to it.

use super::{Answer, answerable, way_back};
use crate::wire::{Addresses, Dissection, Protocol, icmpv4, icmpv6, ipv4, ipv6};

/// RFC 1812 4.3.2.3: no error is longer than this, in bytes of IP packet.
const MAX_V4: usize = 576;
/// RFC 4443 2.4 c: the minimum MTU.
const MAX_V6: usize = 1280;
/// The least MTU that an IPv4 sender believes (RFC 791 3.2).
const MIN_MTU_V4: u16 = 68;
/// The least MTU that an IPv6 sender believes (RFC 8200 5).
const MIN_MTU_V6: u32 = 1280;
/// RFC 1812 4.3.2.5: errors go with the precedence "internetwork control".
const TOS_V4: u8 = 0xc0;

/// Writes "port unreachable" about `frame` into `out`, from the packet's destination to its source.
///
/// As all errors: none about ICMP errors, later fragments, source-routed packets, and what comes from or went to more than one
/// station. `out` needs at most 14 bytes, the tags and 576 (IPv4) or 1280 (IPv6) bytes.
pub fn port_unreachable(frame: &[u8], out: &mut [u8]) -> Answer {
    let v4 = icmpv4::Repr::Unreachable { code: icmpv4::unreachable::PORT, mtu: 0 };
    let v6 = icmpv6::Repr::Unreachable { code: icmpv6::unreachable::PORT };
    error(frame, out, v4, v6).into()
}

/// Writes "fragmentation needed" or "packet too big" about `frame` into `out`: `mtu` is what fits, in bytes of IP packet.
///
/// An `mtu` that no sender would believe is raised to the family's minimum, 68 or 1280 bytes. Whether an IPv4 packet may
/// be fragmented instead is for the caller to look at.
pub fn too_big(frame: &[u8], mtu: u32, out: &mut [u8]) -> Answer {
    let mtu_v4 = u16::try_from(mtu).unwrap_or(u16::MAX).max(MIN_MTU_V4);
    let v4 = icmpv4::Repr::Unreachable { code: icmpv4::unreachable::FRAGMENTATION_NEEDED, mtu: mtu_v4 };
    let v6 = icmpv6::Repr::PacketTooBig { mtu: mtu.max(MIN_MTU_V6) };
    error(frame, out, v4, v6).into()
}

/// Writes "time exceeded in transit" about `frame` into `out`.
pub fn time_exceeded(frame: &[u8], out: &mut [u8]) -> Answer {
    error(frame, out, icmpv4::Repr::TimeExceeded { code: 0 }, icmpv6::Repr::TimeExceeded { code: 0 }).into()
}

fn error(frame: &[u8], out: &mut [u8], v4: icmpv4::Repr, v6: icmpv6::Repr) -> Option<usize> {
    let parts = answerable(frame)?;
    if is_icmp_error(&parts, frame) {
        return None;
    }
    let packet = parts.packet(frame);
    let (headers, protocol, tos, longest) = match parts.addresses {
        Addresses::V4 { .. } => (ipv4::HEADER_LEN + icmpv4::HEADER_LEN, Protocol::ICMP, TOS_V4, MAX_V4),
        Addresses::V6 { .. } => (ipv6::HEADER_LEN + icmpv6::HEADER_LEN, Protocol::ICMPV6, 0, MAX_V6),
    };
    let quote = packet.get(..packet.len().min(longest - headers))?;
    let message_len = icmpv4::HEADER_LEN + quote.len(); // both families' headers are 8 bytes
    let (message, len) = way_back(frame, &parts, out, protocol, message_len, tos)?;
    match parts.addresses {
        Addresses::V4 { .. } => v4.emit(message, quote),
        Addresses::V6 { .. } => v6.emit(message, quote, parts.addresses.reversed()),
    }
    .ok()?;
    Some(len)
}

/// Whether the packet reports an error itself, or may: unknown and unreadable messages count.
fn is_icmp_error(parts: &Dissection, frame: &[u8]) -> bool {
    let message = parts.payload(frame);
    match (parts.addresses, parts.protocol) {
        (Addresses::V4 { .. }, Protocol::ICMP) => icmpv4::Packet::new_checked(message)
            .map_or(true, |packet| packet.is_error() || packet.kind() > LAST_QUERY_V4),
        (Addresses::V6 { .. }, Protocol::ICMPV6) => {
            icmpv6::Packet::new_checked(message).map_or(true, |packet| packet.is_error())
        }
        _ => false,
    }
}

/// Address mask reply (RFC 950): above it is nothing that a VIP would be asked.
const LAST_QUERY_V4: u8 = 18;
