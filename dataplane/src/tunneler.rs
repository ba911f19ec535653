//! The tunneler's sending half: delivery to a host under an outer IP header, with the client's packet untouched inside.
//!
//! A [`Tunnel`] is an endpoint's outer header, made once when the farm is made. A packet only adds what differs from packet to
//! packet: lengths, traffic class, entropy, the protocol of what is inside, and the header checksum by a sum over the rest. The
//! outer family is independent of the inner one: 4in4, 6in4 (RFC 2003, RFC 4213), 4in6, 6in6 (RFC 2473), or any of these
//! as GUE variant 0 over UDP (draft-ietf-intarea-gue-09).
//!
//! Nothing is ever fragmented: the outer IPv4 header has DF and, being atomic, identification 0 (RFC 6864), and who calls asks
//! [`Tunnel::fits`] first. DSCP is copied (RFC 2983, uniform model), and so is ECN (RFC 6040, normal mode).
//!
//! GUE's UDP checksum is zero over either family. IPv4 allows that of any datagram (RFC 768); over IPv6 it is for tunnels
//! whose inner packets have checksums of their own (RFC 6935, and RFC 6936 section 5), and the host's GUE port has to accept it (Linux:
//! `udp6zerocsumrx`, which `fou` sets).

use std::net::IpAddr;

use crate::counters::DropReason;
use crate::farm::{Hop, PortId};
use crate::packet::Packet;
use crate::parse::Headers;
use crate::plain4;
use crate::wire::checksum::Sum;
use crate::wire::{Protocol, gue, ipv4, ipv6, udp};

/// What stands before the inner packet on the way to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    shape: Shape,
    /// The outer header in its first [`Tunnel::overhead`] bytes; fields that a packet fills in are zero.
    header: [u8; GUE6],
    /// IPv4: the sum of the header as it stands there.
    sum: Sum,
}

/// The outer headers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Ipip4,
    Ipip6,
    Gue4,
    Gue6,
}

impl Tunnel {
    /// IP in IP. `None` unless both addresses are of one family and each can be one host's.
    #[must_use]
    pub fn ipip(source: IpAddr, destination: IpAddr) -> Option<Self> {
        Self::new(source, destination, None)
    }

    /// GUE to UDP `port` of the host, usually [`gue::PORT`]. `None` as for [`Tunnel::ipip`], and for port 0.
    #[must_use]
    pub fn gue(source: IpAddr, destination: IpAddr, port: u16) -> Option<Self> {
        if port == 0 { None } else { Self::new(source, destination, Some(port)) }
    }

    /// Bytes that the tunnel adds: 20 or 40, and 12 more for GUE.
    #[inline]
    #[must_use]
    pub fn overhead(&self) -> u16 {
        match self.shape {
            Shape::Ipip4 => 20,
            Shape::Ipip6 => 40,
            Shape::Gue4 => 32,
            Shape::Gue6 => 52,
        }
    }

    /// The unit's address that its packets come from.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        let octets = |at: usize| self.header.get(at..).and_then(<[u8]>::first_chunk::<16>).copied().unwrap_or_default();
        match self.shape {
            Shape::Ipip4 | Shape::Gue4 => IpAddr::from([12, 13, 14, 15].map(|at| self.header[at])),
            Shape::Ipip6 | Shape::Gue6 => IpAddr::from(octets(8)),
        }
    }

    /// Whether an IP packet of `ip_len` bytes goes through the tunnel by a link with this `mtu`.
    ///
    /// # Errors
    ///
    /// The MTU to tell the packet's sender. For an IPv6 sender it is of use from 1280 on (RFC 8200 section 5).
    #[inline]
    pub fn fits(&self, ip_len: u16, mtu: u16) -> Result<(), u16> {
        let inner = mtu.saturating_sub(self.overhead());
        if ip_len <= inner { Ok(()) } else { Err(inner) }
    }

    /// Puts the outer header before the packet; Ethernet header and VLAN tags move to the front, padding behind the packet is cut.
    ///
    /// `entropy` is the flow's, for those who balance on the way: UDP source port in 49152–65535 (its upper two bits are
    /// set here) and IPv6 flow label; see [`entropy`]. The inner TTL is the caller's, who has decremented it. `headers` no
    /// longer describes the packet afterwards.
    ///
    /// # Errors
    ///
    /// [`DropReason::NoBuffer`] without headroom, [`DropReason::TooBig`] beyond 65535 bytes, [`DropReason::Truncated`] if
    /// `headers` are of a longer packet. The packet is unchanged then.
    #[inline]
    pub fn encapsulate<P: Packet>(&self, packet: &mut P, headers: Headers, entropy: u16) -> Result<(), DropReason> {
        let Headers { l3, ip_len, .. } = headers;
        let Some([first, second, ..]) = packet.data().get(l3..).and_then(<[u8]>::first_chunk::<20>) else {
            return Err(DropReason::Truncated);
        };
        let Some(outer_len) = ip_len.checked_add(self.overhead()) else {
            return Err(DropReason::TooBig);
        };
        let (class, inner) =
            if headers.v6 { (first << 4 | second >> 4, Protocol::IPV6.0) } else { (*second, Protocol::IPV4.0) };
        let entropy = entropy | ENTROPY_MIN;
        match self.shape {
            Shape::Ipip4 => {
                let header: [u8; IPIP4] = self.outer4(outer_len, class, inner);
                replace_header(packet, headers, 0, &header, IPV4)
            }
            Shape::Ipip6 => {
                let header: [u8; IPIP6] = self.outer6(outer_len, class, inner, entropy);
                replace_header(packet, headers, 0, &header, IPV6)
            }
            Shape::Gue4 => {
                let mut header: [u8; GUE4] = self.outer4(outer_len, class, 0);
                self.datagram(&mut header[IPIP4..], outer_len - 20, inner, entropy);
                replace_header(packet, headers, 0, &header, IPV4)
            }
            Shape::Gue6 => {
                let mut header: [u8; GUE6] = self.outer6(outer_len, class, 0, entropy);
                self.datagram(&mut header[IPIP6..], outer_len - 40, inner, entropy);
                replace_header(packet, headers, 0, &header, IPV6)
            }
        }
    }

    /// What goes before plain IPv4 packets with this next hop, by a port that takes IP packets of `mtu` bytes; `None` over IPv6.
    #[must_use]
    pub fn outer_frame(&self, hop: Hop, mtu: u16) -> Option<OuterFrame> {
        let (overhead, protocol) = match self.shape {
            Shape::Ipip4 => (IPIP4, Protocol::IPV4.0),
            Shape::Gue4 => (GUE4, 0),
            Shape::Ipip6 | Shape::Gue6 => return None,
        };
        let mut bytes = [0; 14 + GUE4];
        bytes[..12].copy_from_slice(&hop.ethernet);
        bytes[12..14].copy_from_slice(&IPV4);
        bytes[14..14 + overhead].copy_from_slice(&self.header[..overhead]);
        bytes[23] |= protocol;
        if overhead == GUE4 {
            bytes[43] = Protocol::IPV4.0;
        }
        let sum = !Sum::new().bytes(&bytes[14..34]).checksum();
        Some(OuterFrame {
            bytes,
            gue: overhead == GUE4,
            port: hop.port,
            room: mtu.saturating_sub(self.overhead()),
            sum: sum.to_be().into(),
        })
    }

    fn new(source: IpAddr, destination: IpAddr, port: Option<u16>) -> Option<Self> {
        let one_host = |address: IpAddr| {
            let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
            !address.is_unspecified() && !address.is_multicast() && !broadcast
        };
        if !one_host(source) || !one_host(destination) {
            return None;
        }
        let mut header = [0; GUE6];
        let (shape, len) = match (source, destination, port) {
            (IpAddr::V4(_), IpAddr::V4(_), None) => (Shape::Ipip4, IPIP4),
            (IpAddr::V6(_), IpAddr::V6(_), None) => (Shape::Ipip6, IPIP6),
            (IpAddr::V4(_), IpAddr::V4(_), Some(_)) => (Shape::Gue4, IPIP4),
            (IpAddr::V6(_), IpAddr::V6(_), Some(_)) => (Shape::Gue6, IPIP6),
            _ => return None,
        };
        let protocol = if port.is_some() { Protocol::UDP.0 } else { 0 };
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header[0] = 0x45;
                header[6] = DONT_FRAGMENT;
                header[8] = HOP_LIMIT;
                header[9] = protocol;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header[0] = 0x60;
                header[6] = protocol;
                header[7] = HOP_LIMIT;
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
            }
            _ => return None,
        }
        if let Some(port) = port {
            header[len + 2..len + 4].copy_from_slice(&port.to_be_bytes());
        }
        Some(Self { shape, header, sum: Sum::new().bytes(&header[..IPIP4]) })
    }

    /// The outer IPv4 header; `protocol` is 0 where the template has it.
    #[inline]
    fn outer4<const N: usize>(&self, total_len: u16, class: u8, protocol: u8) -> [u8; N] {
        let mut header = [0; N];
        header.copy_from_slice(&self.header[..N]);
        header[1] = class;
        header[2..4].copy_from_slice(&total_len.to_be_bytes());
        header[9] |= protocol;
        let sum = self.sum.u16(u16::from(class)).u16(total_len).u16(u16::from(protocol));
        header[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
        header
    }

    /// The outer IPv6 header; `total_len` counts it, too.
    #[inline]
    fn outer6<const N: usize>(&self, total_len: u16, class: u8, protocol: u8, entropy: u16) -> [u8; N] {
        let mut header = [0; N];
        header.copy_from_slice(&self.header[..N]);
        let first = 0x6000_0000 | u32::from(class) << 20 | u32::from(entropy);
        header[..4].copy_from_slice(&first.to_be_bytes());
        header[4..6].copy_from_slice(&(total_len - 40).to_be_bytes());
        header[6] |= protocol;
        header
    }

    /// UDP without a checksum, and GUE.
    #[inline]
    fn datagram(&self, header: &mut [u8], len: u16, inner: u8, entropy: u16) {
        header[..2].copy_from_slice(&entropy.to_be_bytes());
        header[4..6].copy_from_slice(&len.to_be_bytes());
        header[9] = inner;
    }
}

/// Link-layer, IP and, in GUE, UDP header of a tunnel over IPv4, to be put before plain IPv4 packets: in one piece, without options,
/// behind an Ethernet header without tags. The same as [`Tunnel::encapsulate`] in fewer instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct OuterFrame {
    bytes: [u8; 14 + GUE4],
    gue: bool,
    port: PortId,
    /// The longest IP packet that goes inside.
    room: u16,
    /// Of the IP header as it stands there: sixteen bits, in the machine's order of bytes.
    sum: u32,
}

impl OuterFrame {
    /// Puts the headers before such a packet, takes one hop from it, cuts padding behind it, and returns the port it leaves by.
    /// `None`, with nothing changed, if it is too long or there is no headroom.
    #[inline(always)]
    pub(crate) fn push<P: Packet>(&self, packet: &mut P) -> Option<PortId> {
        if self.gue {
            self.push_some::<P, GUE4, { 14 + GUE4 }>(packet)
        } else {
            self.push_some::<P, IPIP4, { 14 + IPIP4 }>(packet)
        }
    }

    /// `N` bytes more, which with the Ethernet header are `M`.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "headers' lengths, and one of two addresses")]
    fn push_some<P: Packet, const N: usize, const M: usize>(&self, packet: &mut P) -> Option<PortId> {
        let start = packet.data().first_chunk::<54>()?;
        let (class, ip_len) = (start[15], u16::from_be_bytes([start[16], start[17]]));
        let entropy = entropy(plain4::addresses(start) as u32, plain4::ports(start));
        if ip_len > self.room {
            return None;
        }
        let outer_len = ip_len + N as u16;
        let frame = packet.prepend(N)?;
        let padded = frame.len() > M + usize::from(ip_len);
        plain4::decrement_ttl::<34>(frame[N..].first_chunk_mut()?);
        let outer: &mut [u8; M] = frame.first_chunk_mut()?;
        outer.copy_from_slice(&self.bytes[..M]);
        outer[15] = class;
        outer[16..18].copy_from_slice(&outer_len.to_be_bytes());
        // Sums do not mind the order of bytes (RFC 1071), so none is turned round but what is written.
        let sum = self.sum + u32::from(u16::from(class).to_be()) + u32::from(outer_len.to_be());
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        outer[24..26].copy_from_slice(&(!sum).to_ne_bytes());
        if N == GUE4 {
            outer[34..36].copy_from_slice(&entropy.to_be_bytes());
            outer[38..40].copy_from_slice(&(outer_len - IPIP4 as u16).to_be_bytes());
        }
        if padded {
            packet.resize(M + usize::from(ip_len));
        }
        Some(self.port)
    }
}

/// A flow's entropy from the last four bytes of its source address and its ports, as they stand in the packet: a port in 49152–65535.
#[inline]
#[must_use]
pub fn entropy(source: u32, ports: u32) -> u16 {
    let words = u64::from(ports) << 32 | u64::from(source);
    ((words ^ words >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16 | ENTROPY_MIN
}

/// Puts `header` where `old_len` bytes of the packet's IP header are; the Ethernet header with its tags moves along and gets
/// `ethertype`, padding behind the packet is cut. Unchanged on errors.
#[inline]
pub(crate) fn replace_header<P: Packet, const N: usize>(
    packet: &mut P,
    headers: Headers,
    old_len: usize,
    header: &[u8; N],
    ethertype: [u8; 2],
) -> Result<(), DropReason> {
    let (l3, ip_len) = (headers.l3, usize::from(headers.ip_len));
    let old = packet.data();
    // With or without tags the longest Ethernet header is moved: what is too much lands where the new header goes.
    let Some(&link) = old.first_chunk::<MAX_LINK>() else {
        return Err(DropReason::Truncated);
    };
    if !(14..=MAX_LINK).contains(&l3) || old.len() < l3 + ip_len {
        return Err(DropReason::Truncated);
    }
    if N >= old_len {
        packet.prepend(N - old_len).ok_or(DropReason::NoBuffer)?;
    } else if !packet.trim_front(old_len - N) {
        return Err(DropReason::Truncated);
    }
    let len = l3 + ip_len - old_len + N;
    if packet.data().len() != len && !packet.resize(len) {
        return Err(DropReason::NoBuffer); // never: this cuts
    }
    let frame = packet.data_mut();
    frame[..MAX_LINK].copy_from_slice(&link);
    frame[l3 - 2..l3].copy_from_slice(&ethertype);
    frame[l3..l3 + N].copy_from_slice(header);
    Ok(())
}

/// Ethernet header with two VLAN tags.
const MAX_LINK: usize = 22;
pub(crate) const IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const IPV6: [u8; 2] = [0x86, 0xdd];
/// The upper half of IPv4's fragment field: DF.
pub(crate) const DONT_FRAGMENT: u8 = 0x40;
/// RFC 1700's default.
const HOP_LIMIT: u8 = 64;
/// The smallest source port that carries entropy: the dynamic ports, RFC 6335.
const ENTROPY_MIN: u16 = 0xc000;
const IPIP4: usize = ipv4::HEADER_LEN;
const IPIP6: usize = ipv6::HEADER_LEN;
const GUE4: usize = IPIP4 + udp::HEADER_LEN + gue::HEADER_LEN;
const GUE6: usize = IPIP6 + udp::HEADER_LEN + gue::HEADER_LEN;

#[cfg(test)]
pub(crate) mod tests;
