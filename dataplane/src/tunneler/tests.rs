//! Outer headers: literal bytes, and for every shape that the wire views find a right header and the very packet inside.

use std::collections::HashSet;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::packet::HeapPacket;
use crate::parse::parse;
use crate::wire::checksum::upper_checksum;
use crate::wire::{Addresses, Dissection, checksum};

pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A client's packet, to be made.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) udp: bool,
    pub(crate) checksum: bool,
    pub(crate) tags: usize,
    pub(crate) class: u8,
    pub(crate) ttl: u8,
    pub(crate) payload: Vec<u8>,
    pub(crate) padding: usize,
}

impl Given {
    /// The frame, with every checksum computed by the book.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let addresses = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4 { source, destination },
            (IpAddr::V6(source), IpAddr::V6(destination)) => Addresses::V6 { source, destination },
            _ => panic!("mixed families"),
        };
        let mut upper = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let (protocol, at) = if self.udp { (17, 6) } else { (6, 16) };
        if self.udp {
            upper.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
            upper.extend([0, 0]);
        } else {
            upper.extend([0, 0, 0, 9, 0, 0, 0, 8, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
        }
        upper.extend(&self.payload);
        if self.checksum {
            let check = upper_checksum(addresses, Protocol(protocol), &upper);
            let check = if self.udp && check == 0 { 0xffff } else { check };
            upper[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        let mut frame = MAC.to_vec();
        frame.extend([2, 0, 0, 0, 0, 2]);
        for tag in 0..self.tags {
            frame.extend([0x81, 0, 0xa0, 10 + u8::try_from(tag).unwrap()]);
        }
        let len = u16::try_from(upper.len()).unwrap();
        match addresses {
            Addresses::V4 { source, destination } => {
                frame.extend([8, 0]);
                let mut header = vec![0x45, self.class];
                header.extend((len + 20).to_be_bytes());
                header.extend([0x12, 0x34, 0x40, 0, self.ttl, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let check = checksum::checksum(&header);
                header[10..12].copy_from_slice(&check.to_be_bytes());
                frame.extend(header);
            }
            Addresses::V6 { source, destination } => {
                frame.extend([0x86, 0xdd]);
                frame.extend((0x6000_0000 | u32::from(self.class) << 20).to_be_bytes());
                frame.extend(len.to_be_bytes());
                frame.extend([protocol, self.ttl]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
        }
        frame.extend(upper);
        frame.extend(std::iter::repeat_n(0xee, self.padding));
        frame
    }
}

/// Packets of both families and protocols, with zero to two tags and padding.
pub(crate) fn given() -> impl Strategy<Value = Given> {
    let socket = |v6: bool| {
        let v4 = (0x0a00_0000u32..0x0aff_ffff, any::<u16>())
            .prop_map(|(address, port)| SocketAddr::new(std::net::Ipv4Addr::from(address).into(), port));
        let six = (any::<u64>(), any::<u16>()).prop_map(|(address, port)| {
            let address = std::net::Ipv6Addr::from(0x2001_0db8u128 << 96 | u128::from(address));
            SocketAddr::new(address.into(), port)
        });
        if v6 { six.boxed() } else { v4.boxed() }
    };
    any::<bool>()
        .prop_flat_map(move |v6| (socket(v6), socket(v6)))
        .prop_filter("ends differ", |(a, b)| a.ip() != b.ip())
        .prop_flat_map(|(source, destination)| {
            let rest = (any::<bool>(), any::<bool>(), 0usize..3, any::<u8>(), 1u8.., 0usize..40);
            (Just((source, destination)), rest, prop::collection::vec(any::<u8>(), 0..300))
        })
        .prop_map(|((source, destination), (udp, checksum, tags, class, ttl, padding), payload)| {
            let checksum = checksum || !udp || source.is_ipv6();
            Given { source, destination, udp, checksum, tags, class, ttl, payload, padding }
        })
}

fn tunnel(gue: bool, v6: bool) -> Tunnel {
    let (source, destination) = if v6 { ("fd80::1", "fd80::11") } else { ("10.80.0.1", "10.80.0.11") };
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    if gue { Tunnel::gue(source, destination, gue::PORT) } else { Tunnel::ipip(source, destination) }.unwrap()
}

fn syn() -> Given {
    Given {
        source: "10.0.0.2:1234".parse().unwrap(),
        destination: "10.9.0.1:80".parse().unwrap(),
        udp: true,
        checksum: true,
        tags: 0,
        class: 0xb9,
        ttl: 63,
        payload: b"hi".to_vec(),
        padding: 0,
    }
}

#[test]
fn ipip_is_these_bytes() {
    let frame = Given { padding: 16, ..syn() }.frame();
    let mut packet = HeapPacket::new(&frame);
    tunnel(false, false).encapsulate(&mut packet, parse(&frame, MAC).unwrap().headers(), 7).unwrap();
    let (outer, inner) = packet.data().split_at(34);
    assert_eq!(outer[..14], frame[..14]);
    // The header's checksum, by hand: 45b9 + 0032 + 4000 + 4004 + 0a50 + 0001 + 0a50 + 000b = da9b.
    assert_eq!(outer[14..], [0x45, 0xb9, 0, 50, 0, 0, 0x40, 0, 64, 4, 0x25, 0x64, 10, 80, 0, 1, 10, 80, 0, 11]);
    assert_eq!(inner, &frame[14..44]);
}

#[test]
fn gue_over_ipv6_is_these_bytes() {
    let frame = Given { tags: 1, ..syn() }.frame();
    let mut packet = HeapPacket::new(&frame);
    tunnel(true, true).encapsulate(&mut packet, parse(&frame, MAC).unwrap().headers(), 0xc0de).unwrap();
    let data = packet.data();
    assert_eq!(data[..16], frame[..16]);
    assert_eq!(data[16..18], [0x86, 0xdd]);
    assert_eq!(data[18..26], [0x6b, 0x90, 0xc0, 0xde, 0, 42, 17, 64]);
    assert_eq!(data[26..28], [0xfd, 0x80]);
    assert_eq!(data[58..70], [0xc0, 0xde, 0x17, 0xc0, 0, 42, 0, 0, 0, 4, 0, 0]);
    assert_eq!(data[70..], frame[18..]);
}

#[test]
fn some_tunnels_cannot_be() {
    let ip = |address: &str| address.parse::<IpAddr>().unwrap();
    assert_eq!(Tunnel::ipip(ip("10.0.0.1"), ip("fd80::1")), None);
    assert_eq!(Tunnel::ipip(ip("0.0.0.0"), ip("10.0.0.1")), None);
    assert_eq!(Tunnel::ipip(ip("fd80::1"), ip("ff02::1")), None);
    assert_eq!(Tunnel::ipip(ip("10.0.0.1"), ip("255.255.255.255")), None);
    assert_eq!(Tunnel::gue(ip("10.0.0.1"), ip("10.0.0.2"), 0), None);
}

#[test]
fn fits_says_what_would() {
    for (gue, v6, inner) in [(false, false, 1480), (true, false, 1468), (false, true, 1460), (true, true, 1448)] {
        let tunnel = tunnel(gue, v6);
        assert_eq!((tunnel.fits(inner, 1500), tunnel.fits(inner + 1, 1500)), (Ok(()), Err(inner)));
        assert_eq!(1500 - tunnel.overhead(), inner);
        assert_eq!(tunnel.fits(1, 10), Err(0));
    }
}

#[test]
fn a_refused_packet_is_unchanged() {
    let frame = syn().frame();
    let parsed = parse(&frame, MAC).unwrap();
    for shape in 0..4 {
        let tunnel = tunnel(shape & 1 != 0, shape & 2 != 0);
        let mut packet = HeapPacket::new(&frame);
        packet.prepend(128 - usize::from(tunnel.overhead()) + 1).unwrap().fill(9);
        packet.data_mut()[..frame.len()].copy_from_slice(&frame);
        let before = packet.clone();
        assert_eq!(tunnel.encapsulate(&mut packet, parsed.headers(), 0), Err(DropReason::NoBuffer));
        let long = Headers { ip_len: 65_535 - tunnel.overhead() + 1, ..parsed.headers() };
        assert_eq!(tunnel.encapsulate(&mut packet, long, 0), Err(DropReason::TooBig));
        let long = Headers { ip_len: 2000, ..parsed.headers() };
        assert_eq!(tunnel.encapsulate(&mut packet, long, 0), Err(DropReason::Truncated));
        assert_eq!(packet, before);
        // With one byte more of headroom it goes.
        assert!(packet.trim_front(1));
        packet.data_mut()[..frame.len()].copy_from_slice(&frame);
        assert_eq!(tunnel.encapsulate(&mut packet, parsed.headers(), 0), Ok(()));
    }
}

#[test]
fn entropy_is_a_dynamic_port_of_the_flow() {
    let ports: HashSet<u16> =
        (0..1000).map(|port| entropy(0x0100_000a, 0x5000_0000 | u32::from_be(port << 16))).collect();
    assert!(ports.iter().all(|port| *port >= 49_152));
    assert!(ports.len() > 900, "{} of 1000", ports.len());
}

proptest! {
    #[test]
    fn the_packet_is_inside(given in given(), gue: bool, v6: bool, entropy: u16) {
        let frame = given.frame();
        let parsed = parse(&frame, MAC).unwrap();
        let mut packet = HeapPacket::new(&frame);
        let tunnel = tunnel(gue, v6);
        tunnel.encapsulate(&mut packet, parsed.headers(), entropy).unwrap();

        let data = packet.data();
        let (l3, ip_len) = (usize::from(parsed.l3), usize::from(parsed.ip_len));
        prop_assert_eq!(&data[..l3 - 2], &frame[..l3 - 2]);
        prop_assert_eq!(data.len(), l3 + usize::from(tunnel.overhead()) + ip_len);
        let outer = Dissection::of(data).unwrap();
        prop_assert_eq!((outer.end, outer.fragment), (data.len(), None));
        prop_assert_eq!((outer.traffic_class, outer.hop_limit), (given.class, 64));
        prop_assert_eq!(outer.addresses.destination(), if v6 { "fd80::11" } else { "10.80.0.11" }.parse::<IpAddr>().unwrap());
        if v6 {
            let header = ipv6::Packet::new_checked(outer.packet(data)).unwrap();
            prop_assert_eq!(header.flow_label(), u32::from(entropy | 0xc000));
        } else {
            let header = ipv4::Packet::new_checked(outer.packet(data)).unwrap();
            prop_assert!(header.dont_fragment() && header.verify_checksum().is_ok());
        }
        let inner = if given.source.is_ipv6() { Protocol::IPV6 } else { Protocol::IPV4 };
        let body = outer.payload(data);
        let body = if gue {
            prop_assert_eq!(outer.protocol, Protocol::UDP);
            let datagram = udp::Packet::new_checked(body).unwrap();
            prop_assert_eq!((datagram.source_port(), datagram.destination_port()), (entropy | 0xc000, gue::PORT));
            prop_assert_eq!((datagram.checksum(), datagram.datagram_len()), (0, body.len()));
            let header = gue::Packet::new_checked(&body[8..]).unwrap();
            prop_assert_eq!((header.protocol(), header.is_control(), header.header_len()), (inner, false, 4));
            &body[12..]
        } else {
            prop_assert_eq!(outer.protocol, inner);
            body
        };
        prop_assert_eq!(body, &frame[l3..l3 + ip_len]);
    }
}
