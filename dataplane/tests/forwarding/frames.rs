//! The traffic: segments and datagrams of clients and hosts, and what is seen on the wire, with every checksum checked.

use std::net::{IpAddr, SocketAddr};

use weir_dataplane::wire::tcp::{self, Flags};
use weir_dataplane::wire::{Addresses, Dissection, EtherType, MacAddress, Protocol, ethernet, ipv4, ipv6, udp};

/// A frame to `to`'s port from somebody on its link.
pub(crate) fn frame(to: [u8; 6], addresses: Addresses, protocol: Protocol, upper: &[u8]) -> Vec<u8> {
    let length = u16::try_from(upper.len()).unwrap();
    let (ethertype, mut ip) = match addresses {
        Addresses::V4 { source, destination } => {
            let mut ip = vec![0; ipv4::HEADER_LEN];
            ipv4::Repr::new(source, destination, protocol, length).emit(&mut ip).unwrap();
            (EtherType::IPV4, ip)
        }
        Addresses::V6 { source, destination } => {
            let mut ip = vec![0; ipv6::HEADER_LEN];
            ipv6::Repr::new(source, destination, protocol, length).emit(&mut ip).unwrap();
            (EtherType::IPV6, ip)
        }
    };
    ip.extend(upper);
    let mut frame = vec![0; ethernet::HEADER_LEN];
    let source = MacAddress([2, 0, 0, 0, 9, 9]);
    ethernet::Repr { destination: MacAddress(to), source, ethertype }.emit(&mut frame).unwrap();
    frame.extend(ip);
    frame
}

pub(crate) fn addresses(source: IpAddr, destination: IpAddr) -> Addresses {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4 { source, destination },
        (IpAddr::V6(source), IpAddr::V6(destination)) => Addresses::V6 { source, destination },
        _ => panic!("{source} and {destination} are of two families"),
    }
}

/// A TCP segment to the port with the address `to`.
pub(crate) fn segment(
    to: [u8; 6],
    source: SocketAddr,
    destination: SocketAddr,
    flags: Flags,
    payload: &[u8],
) -> Vec<u8> {
    let repr = tcp::Repr {
        source_port: source.port(),
        destination_port: destination.port(),
        sequence: 1000,
        acknowledgement: if flags.contains(Flags::ACK) { 2000 } else { 0 },
        flags,
        window: 512,
        ..tcp::Repr::default()
    };
    let addresses = addresses(source.ip(), destination.ip());
    let mut upper = vec![0; repr.len() + payload.len()];
    repr.emit(&mut upper, payload, addresses).unwrap();
    frame(to, addresses, Protocol::TCP, &upper)
}

/// A UDP datagram to the port with the address `to`.
pub(crate) fn datagram(to: [u8; 6], source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let addresses = addresses(source.ip(), destination.ip());
    let mut upper = vec![0; udp::HEADER_LEN + payload.len()];
    let repr = udp::Repr { source_port: source.port(), destination_port: destination.port() };
    repr.emit(&mut upper, payload, addresses).unwrap();
    frame(to, addresses, Protocol::UDP, &upper)
}

/// A frame that a unit has sent, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Which shard's queue of which port it left by.
    pub(crate) shard: usize,
    pub(crate) port: usize,
    /// Whom it was addressed to on the link.
    pub(crate) mac: [u8; 6],
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) hop_limit: u8,
    /// None for UDP.
    pub(crate) flags: Option<Flags>,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) payload: Vec<u8>,
}

impl Seen {
    /// Takes a TCP or UDP frame apart; every checksum must be right.
    pub(crate) fn of(shard: usize, port: usize, frame: &[u8]) -> Seen {
        let parts = Dissection::of(frame).unwrap();
        let upper = &frame[parts.upper..parts.end];
        let mut mac = [0; 6];
        mac.copy_from_slice(&frame[..6]);
        let base = |source: u16, destination: u16, payload: &[u8]| Seen {
            shard,
            port,
            mac,
            source: SocketAddr::new(parts.addresses.source(), source),
            destination: SocketAddr::new(parts.addresses.destination(), destination),
            hop_limit: parts.hop_limit,
            flags: None,
            sequence: 0,
            acknowledgement: 0,
            payload: payload.to_vec(),
        };
        if parts.protocol == Protocol::TCP {
            let segment = tcp::Packet::new_checked(upper).unwrap();
            segment.verify_checksum(parts.addresses).unwrap();
            Seen {
                flags: Some(segment.flags()),
                sequence: segment.sequence(),
                acknowledgement: segment.acknowledgement(),
                ..base(segment.source_port(), segment.destination_port(), segment.payload())
            }
        } else {
            assert_eq!(parts.protocol, Protocol::UDP);
            let datagram = udp::Packet::new_checked(upper).unwrap();
            datagram.verify_checksum(parts.addresses).unwrap();
            base(datagram.source_port(), datagram.destination_port(), datagram.payload())
        }
    }
}

/// A whole untagged frame's packet in fragments of at most `piece` bytes (a multiple of 8), in order.
pub(crate) fn fragments(frame: &[u8], id: u32, piece: usize) -> Vec<Vec<u8>> {
    assert_eq!(piece % 8, 0);
    let v4 = frame[12..14] == [8, 0];
    let (head, payload) = frame.split_at(if v4 { 34 } else { 54 });
    let count = payload.len().div_ceil(piece);
    let part = |index: usize| {
        let bytes = &payload[index * piece..payload.len().min((index + 1) * piece)];
        let more = index + 1 < count;
        let mut frame = head.to_vec();
        if v4 {
            let place = (index * piece / 8) as u16 | if more { 0x2000 } else { 0 };
            frame[16..18].copy_from_slice(&(20 + bytes.len() as u16).to_be_bytes());
            frame[18..20].copy_from_slice(&(id as u16).to_be_bytes());
            frame[20..22].copy_from_slice(&place.to_be_bytes());
            set_header_checksum(&mut frame);
        } else {
            frame[18..20].copy_from_slice(&(8 + bytes.len() as u16).to_be_bytes());
            let next = std::mem::replace(&mut frame[20], 44);
            frame.extend([next, 0]);
            frame.extend(((index * piece) as u16 | u16::from(more)).to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(bytes);
        frame
    };
    (0..count).map(part).collect()
}

/// The whole frame that fragments of one datagram make, in whatever order they are; none may overlap or be missing.
pub(crate) fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut pieces: Vec<(u16, bool, &[u8])> = Vec::new();
    let mut head = Vec::new();
    for frame in fragments {
        let parts = Dissection::of(frame).unwrap();
        let fragment = parts.fragment.unwrap();
        if fragment.offset == 0 {
            head = frame[..if frame[12..14] == [8, 0] { 34 } else { 54 }].to_vec();
            if frame[12..14] != [8, 0] {
                head[20] = frame[54];
            }
        }
        pieces.push((fragment.offset, fragment.more, parts.payload(frame)));
    }
    pieces.sort_unstable_by_key(|(offset, ..)| *offset);
    let mut payload = Vec::new();
    for (index, (offset, more, bytes)) in pieces.iter().enumerate() {
        assert_eq!((usize::from(*offset), *more), (payload.len(), index + 1 < pieces.len()));
        payload.extend_from_slice(bytes);
    }
    if head[12..14] == [8, 0] {
        head[16..18].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        head[20..22].fill(0);
        set_header_checksum(&mut head);
    } else {
        head[18..20].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    head.extend(payload);
    head
}

/// The same IPv4 frame, which routers may take to pieces.
pub(crate) fn without_df(frame: &[u8], id: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    frame[20..22].fill(0);
    set_header_checksum(&mut frame);
    frame
}

pub(crate) fn set_header_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let check = weir_dataplane::wire::checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
}
