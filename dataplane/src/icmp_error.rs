//! ICMP and ICMPv6 errors about flows: finds the flow in the quoted packet, and translates the error the way its flow is.
//!
//! An error goes back to who sent the packet that it quotes, so it travels with the packets that *answer* the quoted one: its
//! route is the one of the quoted key reversed. An error to a VIP, from the client's side, quotes host → client; one from the
//! host's side quotes client → host as the host's side saw it.
//!
//! In dsr and in tunnels an error goes on unchanged to the host that owns the flow, for that host has the VIP. The MTU in
//! "fragmentation needed" or "packet too big" is not lowered by the tunnel's overhead there: the error is about packets from
//! host to client, and those go past the unit, without a tunnel. In the translating modes no packet changes its length, so
//! that the MTU is right as well; but between the families, where it is changed by the headers' difference.

mod across;
mod tunnel;

pub use across::to_other_family;
pub use tunnel::{TunnelError, about_tunnel};

use std::net::{IpAddr, SocketAddr};

use crate::counters::DropReason;
use crate::flow::{Key, Key4, Key6, Owners, protocol};
use crate::parse::{Class, Parsed};
use crate::wire::checksum::Sum;
use crate::wire::{Addresses, Delta, Protocol, icmpv4, icmpv6, ipv4, ipv6, ipv6_ext};

/// The packet that an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Its addresses and ports, as quoted.
    pub key: Key,
    /// Where its IP header begins, in bytes from the frame's start.
    pub l3: usize,
    /// Where its TCP or UDP header begins.
    pub l4: usize,
    /// Whether its TCP or UDP checksum is in the quotation. Half of one is left as it is: it cannot be updated, nor checked.
    pub checksummed: bool,
    /// Of the first fragment of its datagram (in IPv6 of a whole packet with a fragment header, too): what it says.
    pub fragment: Option<ipv6_ext::Fragment>,
}

impl Quoted {
    /// The key of the route that the error follows: client → VIP if it is to the VIP, host → client if from the host's side.
    #[must_use]
    pub fn route_key(&self) -> Key {
        self.key.reversed()
    }

    /// The shard that owns the flow. The client is who should have received the quoted packet if the error is to the VIP, and who
    /// sent it (or what stands for it in full-nat) if the error is from the host's side.
    #[must_use]
    pub fn owner(&self, owners: &Owners, to_vip: bool) -> usize {
        if to_vip { owners.client_is_destination(&self.key) } else { owners.client_is_source(&self.key) }
    }
}

/// The packet that the error in `frame` quotes, once the error's checksum is right.
///
/// Errors are "destination unreachable", "time exceeded" and "parameter problem" (RFC 792, RFC 4443), "fragmentation needed"
/// (RFC 1191) and "packet too big" among them. Source quench is obsolete (RFC 6633), and redirects are for neighbours.
///
/// # Errors
///
/// [`DropReason::Truncated`] if the quotation ends before the ports' eight bytes, [`DropReason::BadChecksum`], and
/// [`DropReason::Icmp`] if it is no such error, quotes no TCP or UDP (or a later fragment), or quotes what its receiver cannot
/// have sent.
pub fn quoted(frame: &[u8], parsed: &Parsed) -> Result<Quoted, DropReason> {
    if parsed.class != Class::Icmp {
        return Err(DropReason::Icmp);
    }
    let (start, end) = (usize::from(parsed.l4), usize::from(parsed.l3) + usize::from(parsed.ip_len));
    let message = frame.get(start..end).ok_or(DropReason::Truncated)?;
    let quoted = match (&parsed.key, parsed.key.protocol()) {
        (Key::V4(_), protocol::ICMP) => quoted4(message),
        (Key::V6(key), protocol::ICMPV6) => quoted6(message, key),
        _ => Err(DropReason::Icmp),
    }?;
    // The error is sent to who sent the quoted packet: anything else is forged.
    if quoted.key.source().ip() != parsed.key.destination().ip() {
        return Err(DropReason::Icmp);
    }
    Ok(Quoted { l3: start + quoted.l3, l4: start + quoted.l4, ..quoted })
}

/// As [`quoted`], with offsets in bytes from the message's start.
fn quoted4(message: &[u8]) -> Result<Quoted, DropReason> {
    let data = error4(message)?;
    let packet = ipv4::Packet::new_quoted(data).map_err(|_| DropReason::Truncated)?;
    if packet.fragment_offset() != 0 {
        return Err(DropReason::Icmp);
    }
    let (ports, checksummed) = ports(data, packet.header_len(), packet.total_len(), packet.protocol())?;
    let (source, destination) = (packet.source().octets(), packet.destination().octets());
    let key = Key::V4(Key4 { source, destination, ports, protocol: packet.protocol().0 });
    let l3 = icmpv4::HEADER_LEN;
    let identification = packet.identification().into();
    let first = ipv6_ext::Fragment { offset: 0, more: true, identification };
    let fragment = packet.more_fragments().then_some(first);
    Ok(Quoted { key, l3, l4: l3 + packet.header_len(), checksummed, fragment })
}

/// What an ICMPv4 error with a right checksum quotes.
fn error4(message: &[u8]) -> Result<&[u8], DropReason> {
    let error = icmpv4::Packet::new_checked(message).map_err(|_| DropReason::Truncated)?;
    if !matches!(
        error.kind(),
        icmpv4::kind::UNREACHABLE | icmpv4::kind::TIME_EXCEEDED | icmpv4::kind::PARAMETER_PROBLEM
    ) {
        return Err(DropReason::Icmp);
    }
    error.verify_checksum().map_err(|_| DropReason::BadChecksum)?;
    // RFC 4884 4.1: the quotation's length in 32-bit words, if an extension follows it.
    Ok(original(message, usize::from(message[5]) * 4))
}

/// As [`quoted4`].
fn quoted6(message: &[u8], outer: &Key6) -> Result<Quoted, DropReason> {
    let data = error6(message, outer)?;
    let packet = ipv6::Packet::new_quoted(data).map_err(|_| DropReason::Truncated)?;
    let rest = data.get(ipv6::HEADER_LEN..).ok_or(DropReason::Truncated)?;
    let upper = ipv6_ext::walk(packet.next_header(), rest).map_err(|_| DropReason::Truncated)?;
    // What an authentication header covers cannot be translated, and no route has brought it here.
    if upper.fragment.is_some_and(|fragment| fragment.offset != 0) || upper.authenticated || upper.segments_left {
        return Err(DropReason::Icmp);
    }
    let at = ipv6::HEADER_LEN + upper.offset;
    let (ports, checksummed) = ports(data, at, ipv6::HEADER_LEN + packet.payload_len(), upper.protocol)?;
    let (source, destination) = (packet.source().octets(), packet.destination().octets());
    let key = Key::V6(Key6 { source, destination, ports, protocol: upper.protocol.0 });
    let l3 = icmpv6::HEADER_LEN;
    Ok(Quoted { key, l3, l4: l3 + at, checksummed, fragment: upper.fragment })
}

/// As [`error4`]; the checksum covers the outer addresses.
fn error6<'m>(message: &'m [u8], outer: &Key6) -> Result<&'m [u8], DropReason> {
    let error = icmpv6::Packet::new_checked(message).map_err(|_| DropReason::Truncated)?;
    if !matches!(error.kind(), icmpv6::kind::UNREACHABLE..=icmpv6::kind::PARAMETER_PROBLEM) {
        return Err(DropReason::Icmp);
    }
    let addresses = Addresses::V6 { source: outer.source.into(), destination: outer.destination.into() };
    error.verify_checksum(addresses).map_err(|_| DropReason::BadChecksum)?;
    // RFC 4884 4.2: in 64-bit words, in "unreachable" and "time exceeded" alone; the others have a number there.
    let extended = matches!(error.kind(), icmpv6::kind::UNREACHABLE | icmpv6::kind::TIME_EXCEEDED);
    Ok(original(message, if extended { usize::from(message[4]) * 8 } else { 0 }))
}

/// The quotation of a message: all behind its header, or `stated` bytes of it. RFC 4884 4: where an extension follows, it is
/// padded to at least 128 bytes; a lower number is no length, but what an old router left in an unused field.
fn original(message: &[u8], stated: usize) -> &[u8] {
    let data = &message[icmpv4::HEADER_LEN..]; // both families' headers are 8 bytes
    if stated < 128 { data } else { &data[..stated.min(data.len())] }
}

/// The ports at `at` in a quoted packet that was `total` bytes long, and whether the checksum field is quoted as well.
fn ports(data: &[u8], at: usize, total: usize, protocol: Protocol) -> Result<([u8; 4], bool), DropReason> {
    let check_end = match protocol {
        Protocol::TCP => 18,
        Protocol::UDP => 8,
        _ => return Err(DropReason::Icmp),
    };
    let header = data.get(at..).and_then(|header| header.first_chunk::<8>()).ok_or(DropReason::Truncated)?;
    let [a, b, c, d, ..] = *header;
    Ok(([a, b, c, d], at + check_end <= data.len().min(total)))
}

/// Half-NAT, an error to the VIP about host → client: for the host, which knows the connection by its own address.
///
/// # Errors
///
/// [`DropReason::Icmp`] if `endpoint` is of the other family; the frame is unchanged then, here and in all that follow.
pub fn to_endpoint_nat(
    frame: &mut [u8],
    parsed: &Parsed,
    quoted: &Quoted,
    endpoint: SocketAddr,
) -> Result<(), DropReason> {
    let ends = Ends { destination: Some(endpoint.ip()), quoted_source: Some(endpoint), ..Ends::default() };
    translate(frame, parsed, quoted, ends)
}

/// Half-NAT, an error from the host's side about client → host: for the client, which knows the VIP alone.
///
/// What the host itself says comes from the VIP then; a router's address stays.
///
/// # Errors
///
/// As [`to_endpoint_nat`].
pub fn to_client_nat(frame: &mut [u8], parsed: &Parsed, quoted: &Quoted, vip: SocketAddr) -> Result<(), DropReason> {
    let source = from_the_far_end(parsed, quoted).then_some(vip.ip());
    translate(frame, parsed, quoted, Ends { source, quoted_destination: Some(vip), ..Ends::default() })
}

/// Full-NAT, an error to the VIP about VIP → client: for the host, which knows the connection as `endpoint` → `pool`.
///
/// What the client itself says comes from the pool's address then; a router's address stays.
///
/// # Errors
///
/// As [`to_endpoint_nat`], for either address.
pub fn to_endpoint_full_nat(
    frame: &mut [u8],
    parsed: &Parsed,
    quoted: &Quoted,
    endpoint: SocketAddr,
    pool: SocketAddr,
) -> Result<(), DropReason> {
    let ends = Ends {
        source: from_the_far_end(parsed, quoted).then_some(pool.ip()),
        destination: Some(endpoint.ip()),
        quoted_source: Some(endpoint),
        quoted_destination: Some(pool),
    };
    translate(frame, parsed, quoted, ends)
}

/// Full-NAT, an error to the pool's address about pool → host: for the client, which knows the connection as `client` → `vip`.
///
/// What the host itself says comes from the VIP then; a router's address stays.
///
/// # Errors
///
/// As [`to_endpoint_nat`], for either address.
pub fn to_client_full_nat(
    frame: &mut [u8],
    parsed: &Parsed,
    quoted: &Quoted,
    client: SocketAddr,
    vip: SocketAddr,
) -> Result<(), DropReason> {
    let ends = Ends {
        source: from_the_far_end(parsed, quoted).then_some(vip.ip()),
        destination: Some(client.ip()),
        quoted_source: Some(client),
        quoted_destination: Some(vip),
    };
    translate(frame, parsed, quoted, ends)
}

/// Whether the error comes from the station that should have received the quoted packet, not from a router before it.
fn from_the_far_end(parsed: &Parsed, quoted: &Quoted) -> bool {
    parsed.key.source().ip() == quoted.key.destination().ip()
}

/// What an error's addresses become; none where they stay.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    quoted_source: Option<SocketAddr>,
    quoted_destination: Option<SocketAddr>,
}

impl Ends {
    /// Whether all of them are IPv4 (or IPv6) addresses. Between families an error is written anew: [`to_other_family`].
    fn are_v4(&self, v4: bool) -> bool {
        let quoted = [self.quoted_source, self.quoted_destination].map(|end| end.map(|end| end.ip()));
        [self.source, self.destination].iter().chain(&quoted).flatten().all(|address| address.is_ipv4() == v4)
    }
}

/// Writes the new addresses and ports and every checksum over them, from the inside out, all by difference (RFC 1624): of the
/// quoted TCP or UDP, of the quoted IPv4 header, of the error itself, of its own IPv4 header.
fn translate(frame: &mut [u8], parsed: &Parsed, quoted: &Quoted, ends: Ends) -> Result<(), DropReason> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let v4 = matches!(parsed.key, Key::V4(_));
    if !ends.are_v4(v4) {
        return Err(DropReason::Icmp);
    }
    // `quoted` has read these bytes; a frame that is another one is not touched.
    let check = quoted.l4 + if quoted.key.protocol() == protocol::UDP { 6 } else { 16 };
    let needed = if quoted.checksummed { check + 2 } else { quoted.l4 + 4 };
    if frame.len() < needed {
        return Err(DropReason::Truncated);
    }
    let (source_at, destination_at) = if v4 { (12, 16) } else { (8, 24) };

    let mut addresses = Delta::NONE;
    let mut ports = Delta::NONE;
    for (end, address_at, port_at) in [(ends.quoted_source, source_at, 0), (ends.quoted_destination, destination_at, 2)]
    {
        if let Some(end) = end {
            addresses = addresses.and(put_address(frame, quoted.l3 + address_at, end.ip()));
            ports = ports.and(put(frame, quoted.l4 + port_at, &end.port().to_be_bytes()));
        }
    }
    let mut message = addresses.and(ports);
    if quoted.checksummed {
        let old = u16_at(frame, check);
        let delta = addresses.and(ports);
        let new = if quoted.key.protocol() == protocol::UDP { delta.apply_udp(old) } else { delta.apply(old) };
        message = message.and(put(frame, check, &new.to_be_bytes()));
    }
    if v4 {
        let header_check = addresses.apply(u16_at(frame, quoted.l3 + 10));
        message = message.and(put(frame, quoted.l3 + 10, &header_check.to_be_bytes()));
    }

    let mut outer = Delta::NONE;
    for (end, address_at) in [(ends.source, source_at), (ends.destination, destination_at)] {
        if let Some(address) = end {
            outer = outer.and(put_address(frame, l3 + address_at, address));
        }
    }
    if v4 {
        let header_check = outer.apply(u16_at(frame, l3 + 10));
        put(frame, l3 + 10, &header_check.to_be_bytes());
    } else {
        message = message.and(outer); // its pseudo header, RFC 4443 2.3
    }
    let message_check = message.apply(u16_at(frame, l4 + 2));
    put(frame, l4 + 2, &message_check.to_be_bytes());
    Ok(())
}

/// Writes an address, and says what difference that makes.
fn put_address(frame: &mut [u8], at: usize, address: IpAddr) -> Delta {
    match address {
        IpAddr::V4(address) => put(frame, at, &address.octets()),
        IpAddr::V6(address) => put(frame, at, &address.octets()),
    }
}

/// Writes `new` at an even distance from where the checksum begins, and says what difference that makes.
fn put<const N: usize>(frame: &mut [u8], at: usize, new: &[u8; N]) -> Delta {
    let place = &mut frame[at..at + N];
    let delta = Delta::of_sums(Sum::new().bytes(place), Sum::new().bytes(new));
    place.copy_from_slice(new);
    delta
}

fn u16_at(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::Fragment;
    use proptest::prelude::*;

    /// A frame of any message under right checksums, and how the parser would describe it.
    fn frame(v4: bool, message: &[u8]) -> (Vec<u8>, Parsed) {
        let len = u16::try_from(message.len()).unwrap();
        let (key, l3_len, addresses) = if v4 {
            let (source, destination) = ([10, 0, 0, 1], [10, 0, 0, 2]);
            let addresses = Addresses::V4 { source: source.into(), destination: destination.into() };
            (Key::V4(Key4 { source, destination, ports: [0; 4], protocol: 1 }), ipv4::HEADER_LEN, addresses)
        } else {
            let (source, destination) = ([1; 16], [2; 16]);
            let addresses = Addresses::V6 { source: source.into(), destination: destination.into() };
            (Key::V6(Key6 { source, destination, ports: [0; 4], protocol: 58 }), ipv6::HEADER_LEN, addresses)
        };
        let mut frame = vec![0; 14 + l3_len];
        frame[12..14].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xdd] });
        match addresses {
            Addresses::V4 { source, destination } => {
                ipv4::Repr::new(source, destination, Protocol::ICMP, len).emit(&mut frame[14..]).unwrap();
            }
            Addresses::V6 { source, destination } => {
                ipv6::Repr::new(source, destination, Protocol::ICMPV6, len).emit(&mut frame[14..]).unwrap();
            }
        }
        frame.extend(message);
        let l4 = 14 + l3_len;
        frame[l4 + 2..l4 + 4].fill(0);
        let check = message_sum(&frame, l4, addresses).checksum();
        frame[l4 + 2..l4 + 4].copy_from_slice(&check.to_be_bytes());
        let parsed = Parsed {
            class: Class::Icmp,
            key,
            l3: 14,
            tcp_flags: 0,
            ttl: 64,
            l4: u16::try_from(l4).unwrap(),
            ip_len: u16::try_from(l3_len).unwrap() + len,
            fragment: Fragment::default(),
            unicast: true,
        };
        (frame, parsed)
    }

    fn message_sum(frame: &[u8], l4: usize, addresses: Addresses) -> Sum {
        match addresses {
            Addresses::V4 { .. } => Sum::new().bytes(&frame[l4..]),
            Addresses::V6 { .. } => crate::wire::checksum::upper_sum(addresses, Protocol::ICMPV6, &frame[l4..]),
        }
    }

    proptest! {
        #[test]
        fn any_message_is_refused_or_stays_valid(
            v4: bool, kind in 0usize..4, length in any::<u8>(), protocols in any::<[bool; 2]>(),
            mut message in prop::collection::vec(any::<u8>(), 8..260),
        ) {
            message[0] = if v4 { [3, 11, 12, 5][kind] } else { [1, 2, 3, 4][kind] };
            if message.len() > 48 {
                // Near enough to a packet that most of them get past the addresses.
                let ip = &mut message[8..];
                if v4 {
                    ip[0] = 0x45 + (length & 1);
                    ip[6..8].fill(0);
                    ip[9] = if protocols[0] { 6 } else { 17 };
                    ip[12..16].copy_from_slice(&[10, 0, 0, 2]);
                } else {
                    ip[0] = 0x60;
                    ip[6] = if protocols[1] { [0, 43, 44, 60][usize::from(length & 3)] } else { 17 };
                    ip[8..24].fill(2);
                }
            }
            let (mut frame, parsed) = frame(v4, &message);
            if let Ok(found) = quoted(&frame, &parsed) {
                prop_assert!(found.l4 + 8 <= frame.len() && found.l3 < found.l4);
                let [host, pool]: [SocketAddr; 2] = if v4 {
                    ["10.1.2.3:8080", "10.9.9.9:61234"]
                } else {
                    ["[fd01::2:3]:8080", "[fd80::200]:61234"]
                }.map(|end| end.parse().unwrap());
                to_endpoint_full_nat(&mut frame, &parsed, &found, host, pool).unwrap();
                let at = found.l4;
                prop_assert_eq!(&frame[at..at + 4], &[0x1f, 0x90, 0xef, 0x32]);
                let parts = crate::wire::Dissection::of(&frame).unwrap();
                prop_assert_eq!(parts.addresses.destination(), host.ip());
                prop_assert!(message_sum(&frame, usize::from(parsed.l4), parts.addresses).is_valid());
            }
        }
    }
}
