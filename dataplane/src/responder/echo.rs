//! Echo for a VIP: the request becomes the reply in place.

use std::net::IpAddr;

use super::{Answer, answerable, turn_link};
use crate::wire::checksum::update_u16;
use crate::wire::{Addresses, Dissection, Protocol, icmpv4, icmpv6, ipv4, ipv6};

const HOP_LIMIT: u8 = 64;

/// Answers an ICMP or ICMPv6 echo request to a VIP, into `out`, which must hold the frame.
pub fn echo(frame: &[u8], out: &mut [u8], is_vip: impl Fn(IpAddr) -> bool) -> Answer {
    let Some(copy) = out.get_mut(..frame.len()) else { return Answer::None };
    copy.copy_from_slice(frame);
    echo_in_place(copy, is_vip)
}

/// Whether a frame says that it is an echo request which [`echo_in_place`] would answer. Its checksum, the only part that costs more the
/// longer the frame is, has not been looked at.
#[must_use]
pub fn asks_for_echo(frame: &[u8], is_vip: impl Fn(IpAddr) -> bool) -> bool {
    request(frame, is_vip).is_some()
}

/// Turns an ICMP or ICMPv6 echo request to a VIP into the reply, in place.
///
/// Stations and addresses change places, the hop limit is 64, the checksums are updated incrementally; IPv4 options that do
/// not route stay. Requests in fragments and behind IPv6 extension headers get no answer, nor does a request that comes from
/// a VIP.
pub fn echo_in_place(frame: &mut [u8], is_vip: impl Fn(IpAddr) -> bool) -> Answer {
    turn(frame, is_vip).into()
}

/// An echo request to a VIP, taken apart; its checksum may be wrong.
fn request(frame: &[u8], is_vip: impl Fn(IpAddr) -> bool) -> Option<Dissection> {
    let parts = answerable(frame)?;
    if parts.fragment.is_some() || !is_vip(parts.addresses.destination()) || is_vip(parts.addresses.source()) {
        return None;
    }
    let message = parts.payload(frame);
    let asks = match parts.addresses {
        Addresses::V4 { .. } => {
            let request = icmpv4::Packet::new_checked(message).ok()?;
            parts.protocol == Protocol::ICMP && (request.kind(), request.code()) == (icmpv4::kind::ECHO_REQUEST, 0)
        }
        Addresses::V6 { .. } => {
            let request = icmpv6::Packet::new_checked(message).ok()?;
            parts.protocol == Protocol::ICMPV6
                && (request.kind(), request.code()) == (icmpv6::kind::ECHO_REQUEST, 0)
                && !parts.has_options
        }
    };
    asks.then_some(parts)
}

fn turn(frame: &mut [u8], is_vip: impl Fn(IpAddr) -> bool) -> Option<usize> {
    let parts = request(frame, is_vip)?;
    let message = parts.payload(frame);
    match parts.addresses {
        Addresses::V4 { source, destination } => {
            icmpv4::Packet::new_checked(message).ok()?.verify_checksum().ok()?;
            turn_link(frame)?;
            let mut packet = ipv4::Packet::new_checked(frame.get_mut(parts.ip..)?).ok()?;
            packet.set_source(destination);
            packet.set_destination(source);
            packet.set_ttl(HOP_LIMIT);
            let with_ttl = |ttl: u8| u16::from_be_bytes([ttl, parts.protocol.0]);
            let check = update_u16(packet.checksum(), with_ttl(parts.hop_limit), with_ttl(HOP_LIMIT));
            packet.set_checksum(check);
            let mut reply = icmpv4::Packet::new_checked(packet.payload_mut()).ok()?;
            reply.set_kind(icmpv4::kind::ECHO_REPLY);
            let check = update_u16(reply.checksum(), u16::from_be_bytes([icmpv4::kind::ECHO_REQUEST, 0]), 0);
            reply.set_checksum(check);
        }
        Addresses::V6 { source, destination } => {
            icmpv6::Packet::new_checked(message).ok()?.verify_checksum(parts.addresses).ok()?;
            turn_link(frame)?;
            let mut packet = ipv6::Packet::new_checked(frame.get_mut(parts.ip..)?).ok()?;
            packet.set_source(destination);
            packet.set_destination(source);
            packet.set_hop_limit(HOP_LIMIT);
            // The pseudo header's sum does not change when the addresses change places.
            let mut reply = icmpv6::Packet::new_checked(packet.payload_mut()).ok()?;
            reply.set_kind(icmpv6::kind::ECHO_REPLY);
            let word = |kind: u8| u16::from_be_bytes([kind, 0]);
            let check = update_u16(reply.checksum(), word(icmpv6::kind::ECHO_REQUEST), word(icmpv6::kind::ECHO_REPLY));
            reply.set_checksum(check);
        }
    }
    Some(frame.len())
}
