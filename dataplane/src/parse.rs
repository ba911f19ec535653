//! The hot path's parser: one pass over a frame's headers with all checks, to a [`Parsed`] that later stages work from.
//!
//! The wire formats in [`crate::wire`] are the reference; this reads the same fields at fixed places, decides nothing that needs a
//! table, and is total: any bytes give a class or a drop reason.

use crate::counters::DropReason;
use crate::flow::{Key, Key4, Key6, protocol};

/// What a packet is, before any table is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// TCP or UDP with its ports, or ESP or GRE, with zero as ports: all of a client is one flow.
    Flow,
    /// ICMP or ICMPv6: `key` has addresses, and zero as ports.
    Icmp,
    /// A fragment (any but an atomic one): `key` has ports only if `fragment.offset` is 0 and they are in it.
    Fragment,
    /// Another IP protocol: `key` has addresses, and zero as ports.
    OtherIp,
    /// ARP.
    Arp,
    /// No IP, or nothing that the dataplane handles: for the kernel twin.
    Foreign,
}

/// A fragment's place in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fragment {
    /// Identification (IPv4: 16 bits).
    pub id: u32,
    /// Offset of its payload in the datagram, in bytes.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
    /// Bytes of the datagram's payload that it carries.
    pub len: u16,
}

/// A frame whose headers have been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// What it is.
    pub class: Class,
    /// Addresses, ports and protocol.
    pub key: Key,
    /// Where the IP header begins: 14, 18 or 22.
    pub l3: u8,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Where the TCP, UDP or ICMP header begins.
    pub l4: u16,
    /// Length of the IP packet (header and payload), in bytes; the frame may have padding behind it.
    pub ip_len: u16,
    /// Set for [`Class::Fragment`], and for a fragment whose flow is known, which is [`Class::Flow`].
    pub fragment: Fragment,
    /// Whether the frame was sent to this port's address rather than to a group.
    pub unicast: bool,
}

/// TCP flag bits, RFC 9293 section 3.1.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// Acknowledgement is valid.
    pub const ACK: u8 = 16;
}

/// What rewriting needs to know of a packet's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Where the IP header begins.
    pub l3: usize,
    /// Where the TCP or UDP header begins.
    pub l4: usize,
    /// Length of the IP packet, in bytes.
    pub ip_len: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Whether it is IPv6.
    pub v6: bool,
    /// Without a TCP or UDP header at `l4`, its flow's ports: of a later fragment the first one's, of ESP and GRE zero.
    pub later: Option<[u8; 4]>,
}

impl Headers {
    /// Source and destination port, where the protocol has them.
    #[inline]
    #[must_use]
    pub fn ports(&self, frame: &[u8]) -> [u8; 4] {
        let there = || frame.get(self.l4..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        self.later.unwrap_or_else(there)
    }
}

impl Parsed {
    /// What rewriting needs to know.
    #[inline]
    #[must_use]
    pub fn headers(&self) -> Headers {
        Headers {
            l3: usize::from(self.l3),
            l4: usize::from(self.l4),
            ip_len: self.ip_len,
            ttl: self.ttl,
            protocol: self.key.protocol(),
            v6: matches!(self.key, Key::V6(_)),
            later: (self.is_later() || !has_ports(self.key.protocol())).then(|| self.key.ports()),
        }
    }

    /// Whether it is a fragment, the first one or a later one.
    #[inline]
    #[must_use]
    pub fn is_piece(&self) -> bool {
        self.fragment.len != 0
    }

    /// Whether it is a fragment without the TCP or UDP header, which the first one has.
    #[inline]
    #[must_use]
    pub fn is_later(&self) -> bool {
        self.fragment.offset != 0
    }

    /// Whether this opens a connection: a SYN without an ACK.
    #[inline]
    #[must_use]
    pub fn opens(&self) -> bool {
        self.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }

    /// Whether this ends a connection, or one side of it.
    #[inline]
    #[must_use]
    pub fn closes(&self) -> bool {
        self.tcp_flags & (tcp_flags::FIN | tcp_flags::RST) != 0
    }
}

/// Reads and checks the headers of `frame`, which came in by a port with the address `mac`.
///
/// # Errors
///
/// The reason for which the frame has to be dropped.
#[inline]
pub fn parse(frame: &[u8], mac: [u8; 6]) -> Result<Parsed, DropReason> {
    let Some(ethernet) = frame.first_chunk::<ETHERNET>() else {
        return Err(DropReason::Truncated);
    };
    let destination: [u8; 6] = first(ethernet);
    if ethernet[6..12] == mac {
        return Err(DropReason::OwnMac);
    }
    let unicast = destination == mac;
    if !unicast && destination[0] & 1 == 0 {
        return Err(DropReason::ForeignMac);
    }
    let ethertype = [ethernet[12], ethernet[13]];
    if ethertype == IPV4 && unicast {
        return parse4(frame, ETHERNET, true);
    }
    parse_other(frame, ethertype, unicast)
}

/// The same for everything that is not an untagged IPv4 packet.
fn parse_other(frame: &[u8], mut ethertype: [u8; 2], unicast: bool) -> Result<Parsed, DropReason> {
    let mut l3 = ETHERNET;
    while ethertype == VLAN || ethertype == PROVIDER_VLAN {
        if l3 > ETHERNET + 4 {
            return Ok(foreign(Class::Foreign, l3, unicast));
        }
        let Some(tag) = frame.get(l3..l3 + 4) else {
            return Err(DropReason::Truncated);
        };
        ethertype = [tag[2], tag[3]];
        l3 += 4;
    }
    match ethertype {
        IPV4 => parse4(frame, l3, unicast),
        IPV6 => parse6(frame, l3, unicast),
        ARP => Ok(foreign(Class::Arp, l3, unicast)),
        _ => Ok(foreign(Class::Foreign, l3, unicast)),
    }
}

/// IPv4, RFC 791, and what is in it.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "offsets in a frame's headers fit 16 bits, l3 is at most 22")]
fn parse4(frame: &[u8], l3: usize, unicast: bool) -> Result<Parsed, DropReason> {
    let ip = &frame[l3..];
    let Some(header) = ip.first_chunk::<20>() else {
        return Err(DropReason::Truncated);
    };
    let header_len = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return Err(DropReason::BadHeader);
    }
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total < header_len {
        return Err(DropReason::BadLength);
    }
    if total > ip.len() {
        return Err(DropReason::Truncated);
    }
    let sum = if header_len == 20 { sum20(header) } else { sum_words(&ip[..header_len]) };
    if fold(sum) != 0xffff {
        return Err(DropReason::BadChecksum);
    }
    if header_len > 20 {
        check_options(&ip[20..header_len])?;
    }
    let (source, destination) = (chunk::<4>(header, 12), chunk::<4>(header, 16));
    if bad_source4(source) && unicast || source == destination {
        return Err(DropReason::BadSource);
    }
    let mut parsed = Parsed {
        class: Class::OtherIp,
        key: Key::V4(Key4 { source, destination, ports: [0; 4], protocol: header[9] }),
        l3: l3 as u8,
        tcp_flags: 0,
        ttl: header[8],
        l4: (l3 + header_len) as u16,
        ip_len: total as u16,
        fragment: Fragment::default(),
        unicast,
    };
    let payload = &ip[header_len..total];
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if fragment & 0x3fff != 0 {
        parsed.fragment = Fragment {
            id: u32::from(u16::from_be_bytes([header[4], header[5]])),
            offset: (fragment & 0x1fff) << 3,
            more: fragment & 0x2000 != 0,
            len: payload.len() as u16,
        };
        return fragment_of(parsed, payload);
    }
    upper(parsed, header[9], payload)
}

/// IPv4 options are for the host and go on as they are, but for source routes (RFC 7126 section 4.3) and what is no list of options.
#[cold]
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    loop {
        options = match options {
            [] | [END_OF_OPTIONS, ..] => return Ok(()),
            [NO_OPERATION, rest @ ..] => rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return Err(DropReason::IpOption),
            [_, length, ..] if *length >= 2 => options.get(usize::from(*length)..).ok_or(DropReason::IpOption)?,
            _ => return Err(DropReason::IpOption),
        };
    }
}

/// IPv6, RFC 8200, with its extension headers.
#[expect(clippy::cast_possible_truncation, reason = "as for IPv4; the chain is bounded by a 16-bit length")]
fn parse6(frame: &[u8], l3: usize, unicast: bool) -> Result<Parsed, DropReason> {
    let ip = &frame[l3..];
    let Some(header) = ip.first_chunk::<40>() else {
        return Err(DropReason::Truncated);
    };
    if header[0] >> 4 != 6 {
        return Err(DropReason::BadHeader);
    }
    let total = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if total > ip.len() {
        return Err(DropReason::Truncated);
    }
    if total > usize::from(u16::MAX) {
        return Err(DropReason::BadLength);
    }
    let (source, destination) = (chunk::<16>(header, 8), chunk::<16>(header, 24));
    let unspecified = source == [0; 16];
    if source[0] == 0xff || source == LOOPBACK6 || source == destination {
        return Err(DropReason::BadSource);
    }
    let mut parsed = Parsed {
        class: Class::OtherIp,
        key: Key::V6(Key6 { source, destination, ports: [0; 4], protocol: header[6] }),
        l3: l3 as u8,
        tcp_flags: 0,
        ttl: header[7],
        l4: (l3 + 40) as u16,
        ip_len: total as u16,
        fragment: Fragment::default(),
        unicast,
    };
    let (mut next, mut at, mut in_fragments) = (header[6], 40, false);
    // RFC 8200 section 4.1: every header at most once, destination options twice.
    for step in 0..=MAX_EXTENSION_HEADERS {
        parsed.l4 = (l3 + at) as u16;
        set_protocol(&mut parsed.key, next);
        let length = match next {
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
                // An unspecified source is right in neighbour discovery alone.
                if unspecified && next != protocol::ICMPV6 {
                    return Err(DropReason::BadSource);
                }
                return upper(parsed, next, &ip[at..total]);
            }
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING | AUTHENTICATION => {
                let Some(extension) = ip[at..total].first_chunk::<4>() else {
                    return Err(DropReason::Truncated);
                };
                // RFC 5095: a type 0 routing header with segments left could send packets in circles.
                if next == ROUTING && extension[3] != 0 || next == HOP_BY_HOP && at != 40 {
                    return Err(DropReason::ExtensionHeader);
                }
                let units = usize::from(extension[1]);
                let length = if next == AUTHENTICATION { (units + 2) * 4 } else { (units + 1) * 8 };
                next = extension[0];
                length
            }
            FRAGMENT => {
                let Some(extension) = ip[at..total].first_chunk::<8>() else {
                    return Err(DropReason::Truncated);
                };
                // A fragment of a fragment is nothing that a sender makes.
                if std::mem::replace(&mut in_fragments, true) || step == MAX_EXTENSION_HEADERS {
                    return Err(DropReason::ExtensionHeader);
                }
                let place = u16::from_be_bytes([extension[2], extension[3]]);
                next = extension[0];
                if place & 0xfff9 != 0 {
                    let payload = &ip[at + 8..total];
                    parsed.l4 = (l3 + at + 8) as u16;
                    set_protocol(&mut parsed.key, next);
                    parsed.fragment = Fragment {
                        id: u32::from_be_bytes(chunk::<4>(extension, 4)),
                        offset: place & 0xfff8,
                        more: place & 1 != 0,
                        len: payload.len() as u16,
                    };
                    return fragment_of(parsed, payload);
                }
                8
            }
            _ => return upper(parsed, next, &ip[at..total]),
        };
        at += length;
        if at > total {
            return Err(DropReason::Truncated);
        }
    }
    Err(DropReason::ExtensionHeader)
}

/// The header above IP.
#[inline]
fn upper(mut parsed: Parsed, protocol: u8, payload: &[u8]) -> Result<Parsed, DropReason> {
    match protocol {
        protocol::TCP => {
            let Some(tcp) = payload.first_chunk::<20>() else {
                return Err(DropReason::Truncated);
            };
            let header_len = usize::from(tcp[12] >> 4) * 4;
            if header_len < 20 {
                return Err(DropReason::BadHeader);
            }
            if header_len > payload.len() {
                return Err(DropReason::Truncated);
            }
            let flags = tcp[13] & 0x3f;
            let opens_and_closes = flags & tcp_flags::SYN != 0 && flags & (tcp_flags::FIN | tcp_flags::RST) != 0;
            if opens_and_closes || flags & (tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK | tcp_flags::FIN) == 0 {
                return Err(DropReason::BadFlags);
            }
            parsed.tcp_flags = flags;
            parsed.class = Class::Flow;
            set_ports(&mut parsed.key, chunk::<4>(tcp, 0));
        }
        protocol::UDP => {
            let Some(udp) = payload.first_chunk::<8>() else {
                return Err(DropReason::Truncated);
            };
            let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            if length < 8 || length > payload.len() {
                return Err(DropReason::BadLength);
            }
            parsed.class = Class::Flow;
            set_ports(&mut parsed.key, chunk::<4>(udp, 0));
        }
        protocol::ICMP | protocol::ICMPV6 => {
            if payload.len() < 8 {
                return Err(DropReason::Truncated);
            }
            parsed.class = Class::Icmp;
        }
        protocol::ESP | protocol::GRE => parsed.class = Class::Flow,
        _ => {}
    }
    Ok(parsed)
}

/// A fragment: the first one has ports, if it is long enough to be honest.
fn fragment_of(mut parsed: Parsed, payload: &[u8]) -> Result<Parsed, DropReason> {
    parsed.class = Class::Fragment;
    let Fragment { offset, more, len, .. } = parsed.fragment;
    // Every fragment but the last carries a multiple of 8 bytes, and none reaches beyond the largest datagram.
    if more && len % 8 != 0 || len == 0 || u32::from(offset) + u32::from(len) > u32::from(u16::MAX) {
        return Err(DropReason::BadFragment);
    }
    let protocol = parsed.key.protocol();
    if matches!(protocol, protocol::ESP | protocol::GRE) {
        // Every fragment has all that names its flow.
        parsed.class = Class::Flow;
    }
    if offset == 0 && matches!(protocol, protocol::TCP | protocol::UDP) {
        let needed = if protocol == protocol::TCP { 20 } else { 8 };
        if payload.len() < needed {
            return Err(DropReason::BadFragment);
        }
        if protocol == protocol::TCP {
            // RFC 1858: all of the header is in the first fragment. And no sender has a reason to take a SYN to pieces.
            if usize::from(payload[12] >> 4) * 4 > payload.len() || payload[13] & tcp_flags::SYN != 0 {
                return Err(DropReason::BadFragment);
            }
            parsed = upper(parsed, protocol, payload)?;
            parsed.class = Class::Fragment;
        } else if u16::from_be_bytes([payload[4], payload[5]]) < 8 {
            return Err(DropReason::BadLength);
        }
        set_ports(&mut parsed.key, chunk::<4>(payload, 0));
    }
    Ok(parsed)
}

/// Whether packets of a flow have ports, where TCP and UDP have them.
#[inline]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}

fn foreign(class: Class, l3: usize, unicast: bool) -> Parsed {
    Parsed {
        class,
        key: Key::V4(Key4 { source: [0; 4], destination: [0; 4], ports: [0; 4], protocol: 0 }),
        l3: u8::try_from(l3).unwrap_or(0),
        tcp_flags: 0,
        ttl: 0,
        l4: 0,
        ip_len: 0,
        fragment: Fragment::default(),
        unicast,
    }
}

#[inline]
fn set_ports(key: &mut Key, ports: [u8; 4]) {
    match key {
        Key::V4(key) => key.ports = ports,
        Key::V6(key) => key.ports = ports,
    }
}

fn set_protocol(key: &mut Key, protocol: u8) {
    match key {
        Key::V4(key) => key.protocol = protocol,
        Key::V6(key) => key.protocol = protocol,
    }
}

/// `N` bytes at `at`; the caller has checked that they are there.
#[inline(always)]
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut chunk = [0; N];
    chunk.copy_from_slice(&bytes[at..at + N]);
    chunk
}

#[inline(always)]
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    chunk(bytes, 0)
}

/// A source that only a broken or dishonest sender has: 0/8, 127/8, multicast, 240/4 with broadcast.
#[inline]
fn bad_source4([first, ..]: [u8; 4]) -> bool {
    first == 0 || first == 127 || first >= 224
}

/// Sums the 32-bit words of a header without options.
#[inline]
fn sum20(header: &[u8; 20]) -> u64 {
    let word = |at| u64::from(u32::from_ne_bytes(chunk::<4>(header, at)));
    word(0) + word(4) + word(8) + word(12) + word(16)
}

fn sum_words(header: &[u8]) -> u64 {
    header.chunks_exact(4).map(|word| u64::from(u32::from_ne_bytes(first(word)))).sum()
}

/// Folds a sum of 32-bit words to 16 bits, RFC 1071; byte order does not matter for a comparison with all ones.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];
const VLAN: [u8; 2] = [0x81, 0x00];
const PROVIDER_VLAN: [u8; 2] = [0x88, 0xa8];
const LOOPBACK6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MAX_EXTENSION_HEADERS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// An untagged IPv4 TCP SYN from 10.0.0.2:1234 to 10.9.0.1:80, its checksum taken from a capture.
    fn syn() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0x26, 0xc4, 10, 0, 0, 2, 10, 9, 0, 1]);
        frame.extend([0x04, 0xd2, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn a_syn_is_a_flow() {
        let parsed = parse(&syn(), MAC).unwrap();
        assert_eq!(parsed.class, Class::Flow);
        assert_eq!(parsed.key.source(), "10.0.0.2:1234".parse().unwrap());
        assert_eq!(parsed.key.destination(), "10.9.0.1:80".parse().unwrap());
        assert!(parsed.opens() && !parsed.closes());
        assert_eq!((parsed.l3, parsed.l4, parsed.ttl, parsed.ip_len), (14, 34, 64, 40));
    }

    #[test]
    fn each_fault_has_its_reason() {
        let fault = |at: usize, value: u8| {
            let mut frame = syn();
            frame[at] = value;
            parse(&frame, MAC).unwrap_err()
        };
        assert_eq!(fault(5, 9), DropReason::ForeignMac);
        assert_eq!(fault(11, 1), DropReason::OwnMac);
        assert_eq!(fault(14, 0x44), DropReason::BadHeader);
        assert_eq!(fault(17, 10), DropReason::BadLength);
        assert_eq!(fault(17, 200), DropReason::Truncated);
        assert_eq!(fault(22, 63), DropReason::BadChecksum);
        assert_eq!(fault(46, 0x40), DropReason::BadHeader);
        assert_eq!(fault(46, 0x60), DropReason::Truncated);
        assert_eq!(fault(47, 3), DropReason::BadFlags);
        for len in 0..syn().len() {
            assert_eq!(parse(&syn()[..len], MAC), Err(DropReason::Truncated), "at {len}");
        }
    }

    #[test]
    fn tags_move_the_header() {
        let mut frame = syn();
        frame.splice(12..12, [0x88, 0xa8, 0, 5, 0x81, 0, 0, 10]);
        let parsed = parse(&frame, MAC).unwrap();
        assert_eq!((parsed.class, parsed.l3, parsed.l4), (Class::Flow, 22, 42));
        frame.splice(12..12, [0x81, 0, 0, 1]);
        assert_eq!(parse(&frame, MAC).unwrap().class, Class::Foreign);
    }

    #[test]
    fn the_last_extension_header_may_be_a_fragments() {
        let chain = |others: usize, more: u8| {
            let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 2], &IPV6, &[0x60, 0, 0, 0, 0, 0, 60, 64]].concat();
            frame.extend([[0x20; 16], [0xfd; 16]].concat());
            for left in (0..others).rev() {
                frame.extend([if left == 0 { FRAGMENT } else { DESTINATION_OPTIONS }, 0, 1, 4, 0, 0, 0, 0]);
            }
            frame.extend([protocol::UDP, 0, 0, more, 0, 0, 0, 1]);
            frame.extend([0, 53, 0, 53, 0, 8, 0, 0]);
            frame[19] = u8::try_from(frame.len() - 54).unwrap();
            frame
        };
        for more in [0, 1] {
            let parsed = parse(&chain(MAX_EXTENSION_HEADERS - 1, more), MAC).unwrap();
            assert_eq!(parsed.class, if more == 0 { Class::Flow } else { Class::Fragment });
            let parsed = parse(&chain(MAX_EXTENSION_HEADERS, more), MAC);
            assert_eq!(parsed, Err(DropReason::ExtensionHeader), "more {more}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(mut frame in prop::collection::vec(any::<u8>(), 0..200), ethertype in 0usize..5) {
            if frame.len() > 14 {
                frame[..6].copy_from_slice(&MAC);
                frame[12..14].copy_from_slice(&[IPV4, IPV6, ARP, VLAN, [1, 2]][ethertype]);
                frame[14] = [0x45, 0x60, 0, 0, 0][ethertype];
            }
            if let Ok(parsed) = parse(&frame, MAC) && parsed.class == Class::Flow {
                prop_assert!(usize::from(parsed.l4) + 8 <= frame.len());
            }
        }
    }
}
