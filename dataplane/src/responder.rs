//! Answers that the dataplane itself gives: neighbour discovery and echo for its own addresses, resets, ICMP errors; sans-IO.
//!
//! Everything works on frames as plain bytes, VLAN tags included, and leaves the tags as they are. Where an answer is as long
//! as the question it is made in place; else it is written into a buffer of the caller. What is malformed, or must not be
//! answered, gets no answer: nothing here is an error. How often to answer is the caller's to limit (RFC 4443 2.4 f).
//!
//! Upper-layer checksums are checked where the kernel of the asking side computes them in software (ICMP, neighbour
//! discovery), not in TCP: a peer on a virtual link may leave TCP's to a hardware that is not there.

mod echo;
mod error;
mod neighbour;
mod reset;

pub use echo::{asks_for_echo, echo, echo_in_place};
pub use error::{port_unreachable, time_exceeded, too_big};
pub use neighbour::{announce, answer_arp, answer_solicitation};
pub use reset::reset;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{Addresses, Dissection, EtherType, MacAddress, Protocol};
use crate::wire::{ethernet, ipv4, ipv6, vlan::Link};

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a reply has to be sent"]
pub enum Answer {
    /// No answer is due, or the buffer is too short for it. A frame that would have been changed in place is as it was.
    None,
    /// The answer is a frame of so many bytes, at the start of the buffer (or of the frame, in place).
    Reply(usize),
}

impl From<Option<usize>> for Answer {
    fn from(len: Option<usize>) -> Answer {
        len.map_or(Answer::None, Answer::Reply)
    }
}

/// Answers ARP requests and neighbour solicitations for the addresses that `owns` knows, into `out`.
///
/// `mac` is the port's own address: what is for another station, or comes from `mac` itself, gets no answer. `out` must hold
/// the frame, or 94 bytes if that is more.
pub fn answer(frame: &[u8], out: &mut [u8], mac: MacAddress, owns: impl Fn(IpAddr) -> bool) -> Answer {
    let Ok(link) = Link::of(frame) else { return Answer::None };
    match link.ethertype {
        EtherType::IPV6 => answer_solicitation(frame, out, mac, owns),
        EtherType::ARP => {
            let Some(copy) = out.get_mut(..frame.len()) else { return Answer::None };
            copy.copy_from_slice(frame);
            answer_arp(copy, mac, owns)
        }
        _ => Answer::None,
    }
}

/// Refuses a packet that came to `mac`: a reset for TCP, "port unreachable" for UDP; nothing for other protocols.
pub fn refuse(frame: &[u8], out: &mut [u8], mac: MacAddress) -> Answer {
    let (Ok(header), Ok(parts)) = (ethernet::Packet::new_checked(frame), Dissection::of(frame)) else {
        return Answer::None;
    };
    match parts.protocol {
        // What a switch floods to us may be another unit's connection.
        _ if header.destination() != mac => Answer::None,
        Protocol::TCP => reset(frame, out),
        Protocol::UDP => port_unreachable(frame, out),
        _ => Answer::None,
    }
}

/// A frame that may be answered by its receiver, taken apart: unicast from a real sender to a real receiver on both layers,
/// with its upper-layer header, and without a source route.
fn answerable(frame: &[u8]) -> Option<Dissection> {
    let parts = Dissection::of(frame).ok()?;
    let header = ethernet::Packet::new_checked(frame).ok()?;
    let real = match parts.addresses {
        Addresses::V4 { source, destination } => is_host_v4(source) && is_host_v4(destination) && source != destination,
        Addresses::V6 { source, destination } => is_host_v6(source) && is_host_v6(destination) && source != destination,
    };
    let linked = header.source().is_unicast() && header.destination().is_unicast();
    (real && linked && !parts.is_later_fragment() && !parts.source_routed).then_some(parts)
}

/// Whether one host on a network can have the address: not "this network" (0/8), loopback, multicast, reserved or broadcast.
fn is_host_v4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first < 224 && !address.is_loopback()
}

/// Whether one host on a network can have the address.
fn is_host_v6(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

/// Writes the link and IP headers of the way back; returns the place of `payload_len` bytes and the frame's whole length.
fn way_back<'o>(
    frame: &[u8],
    parts: &Dissection,
    out: &'o mut [u8],
    protocol: Protocol,
    payload_len: usize,
    traffic_class: u8,
) -> Option<(&'o mut [u8], usize)> {
    let stated = u16::try_from(payload_len).ok()?;
    let ip_len = match parts.addresses {
        Addresses::V4 { .. } => ipv4::HEADER_LEN,
        Addresses::V6 { .. } => ipv6::HEADER_LEN,
    };
    let len = parts.ip + ip_len + payload_len;
    let (link, rest) = out.get_mut(..len)?.split_at_mut_checked(parts.ip)?;
    link.copy_from_slice(frame.get(..parts.ip)?);
    turn_link(link)?;
    let (ip, payload) = rest.split_at_mut_checked(ip_len)?;
    let written = match parts.addresses.reversed() {
        Addresses::V4 { source, destination } => {
            ipv4::Repr { tos: traffic_class, ..ipv4::Repr::new(source, destination, protocol, stated) }.emit(ip)
        }
        Addresses::V6 { source, destination } => {
            ipv6::Repr { traffic_class, ..ipv6::Repr::new(source, destination, protocol, stated) }.emit(ip)
        }
    };
    written.ok().map(|_| (payload, len))
}

/// Swaps the stations of a frame.
fn turn_link(frame: &mut [u8]) -> Option<()> {
    let mut header = ethernet::Packet::new_checked(frame).ok()?;
    let (source, destination) = (header.source(), header.destination());
    header.set_source(destination);
    header.set_destination(source);
    Some(())
}

#[cfg(test)]
mod tests;
