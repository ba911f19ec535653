//! Translation: literal bytes, there and back again, and every checksum recomputed.

use proptest::prelude::*;

use super::*;
use crate::packet::HeapPacket;
use crate::parse::parse;
use crate::tunneler::tests::{Given, MAC, given};
use crate::wire::checksum::upper_sum;
use crate::wire::{Dissection, ipv6};

fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
    let (source, destination) =
        if v6 { ("[fd80::1]:30000", "[fd80::11]:8080") } else { ("10.80.0.1:30000", "10.80.0.11:8080") };
    (source.parse().unwrap(), destination.parse().unwrap())
}

fn query(v6: bool) -> Given {
    let (source, destination) =
        if v6 { ("[2001:db8::2]:1234", "[2001:db8::1]:53") } else { ("10.0.0.2:1234", "10.9.0.1:53") };
    Given {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        udp: true,
        checksum: true,
        tags: 0,
        class: 0x2e,
        ttl: 63,
        payload: b"hi".to_vec(),
        padding: 0,
    }
}

fn translated(frame: &[u8], v6: bool) -> Result<HeapPacket, DropReason> {
    let mut packet = HeapPacket::new(frame);
    let (source, destination) = ends(v6);
    let before = packet.clone();
    let result = translate_both(&mut packet, &parse(frame, MAC)?, source, destination);
    if result.is_err() {
        assert_eq!(packet, before);
    }
    result.map(|()| packet)
}

/// Whether the checksum of the TCP segment or UDP datagram is right.
fn verifies(frame: &[u8]) -> bool {
    let parts = Dissection::of(frame).unwrap();
    upper_sum(parts.addresses, parts.protocol, parts.payload(frame)).is_valid()
}

#[test]
fn v6_to_v4_is_these_bytes() {
    let frame = Given { tags: 1, padding: 9, ..query(true) }.frame();
    let packet = translated(&frame, false).unwrap();
    let data = packet.data();
    assert_eq!(data[..16], frame[..16]);
    assert_eq!(data[16..38], [8, 0, 0x45, 0x2e, 0, 30, 0, 0, 0x40, 0, 63, 17, 0x26, 0xf6, 10, 80, 0, 1, 10, 80, 0, 11]);
    // By hand: 0a50 + 0001 + 0a50 + 000b + 0011 + 000a + 7530 + 1f90 + 000a + 6869 = 111fa, so 11fb, so ee04.
    assert_eq!(data[38..], [0x75, 0x30, 0x1f, 0x90, 0, 10, 0xee, 0x04, b'h', b'i']);
}

#[test]
fn v4_to_v6_is_these_bytes() {
    let packet = translated(&query(false).frame(), true).unwrap();
    let data = packet.data();
    assert_eq!(data[12..22], [0x86, 0xdd, 0x62, 0xe0, 0, 0, 0, 10, 17, 63]);
    assert_eq!(data[22..38], [0xfd, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(data[38..54], [0xfd, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11]);
    assert_eq!(data[54..60], [0x75, 0x30, 0x1f, 0x90, 0, 10]);
    assert!(verifies(data));
}

#[test]
fn a_datagram_without_checksum_gets_one_only_where_it_must() {
    let bare = Given { checksum: false, ..query(false) };
    assert_eq!(translated(&bare.frame(), false).unwrap().data()[40..42], [0, 0]);
    let packet = translated(&bare.frame(), true).unwrap();
    assert_ne!(packet.data()[60..62], [0, 0]);
    assert!(verifies(packet.data()));
    // Behind the datagram, but in the packet: not covered by its checksum.
    let mut frame = Given { payload: b"hi and more".to_vec(), ..bare }.frame();
    frame[39] = 10;
    let packet = translated(&frame, true).unwrap();
    let datagram = &packet.data()[54..64];
    let parts = Dissection::of(packet.data()).unwrap();
    assert!(upper_sum(parts.addresses, Protocol::UDP, datagram).is_valid());
}

#[test]
fn options_go_and_source_routes_are_dropped() {
    let with = |options: &[u8]| {
        let mut frame = query(false).frame();
        frame.splice(34..34, options.iter().copied());
        let words = u8::try_from(options.len() / 4).unwrap();
        frame[14] += words;
        frame[17] += words * 4;
        frame[24..26].fill(0);
        let check = crate::wire::checksum::checksum(&frame[14..34 + options.len()]);
        frame[24..26].copy_from_slice(&check.to_be_bytes());
        frame
    };
    for count in 1..=10 {
        let frame = with(&[1, 1, 1, 1].repeat(count)); // no operation
        assert_eq!(size_after(&parse(&frame, MAC).unwrap(), Family::V6), 50);
        let plain = translated(&query(false).frame(), true).unwrap();
        assert_eq!(translated(&frame, true).unwrap().data(), plain.data());
        // In the family they stay.
        let packet = translated(&frame, false).unwrap();
        assert_eq!(packet.data()[34..34 + count * 4], [1, 1, 1, 1].repeat(count));
        assert!(verifies(packet.data()));
    }
    assert_eq!(translated(&with(&[131, 7, 4, 10, 0, 0, 9, 0]), true), Err(DropReason::IpOption));
    assert_eq!(translated(&with(&[137, 7, 4, 10, 0, 0, 9, 0]), true), Err(DropReason::IpOption));
}

#[test]
fn what_cannot_be_translated_says_why() {
    let mut frame = query(true).frame();
    frame.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
    frame[19] += 8;
    frame[20] = 60;
    assert_eq!(translated(&frame, false), Err(DropReason::ExtensionHeader));
    let packet = translated(&frame, true).unwrap();
    assert_eq!(packet.data()[54..62], frame[54..62]);
    assert!(verifies(packet.data()));

    let frame = query(false).frame();
    let parsed = parse(&frame, MAC).unwrap();
    let mut packet = HeapPacket::new(&frame);
    let (four, six) = (ends(false), ends(true));
    assert_eq!(translate_both(&mut packet, &parsed, four.0, six.1), Err(DropReason::NoRoute));
    let long = Parsed { ip_len: 100, ..parsed };
    assert_eq!(translate_both(&mut packet, &long, four.0, four.1), Err(DropReason::Truncated));
    let icmp = Parsed { class: Class::Icmp, ..parsed };
    assert_eq!(translate_both(&mut packet, &icmp, four.0, four.1), Err(DropReason::Protocol));
    packet.prepend(109).unwrap();
    packet.data_mut()[..frame.len()].copy_from_slice(&frame);
    let before = packet.clone();
    assert_eq!(translate_both(&mut packet, &parsed, six.0, six.1), Err(DropReason::NoBuffer));
    assert_eq!(packet, before);
}

#[test]
fn fragments_keep_to_their_family() {
    let whole = Given { payload: (0..100).collect(), ..query(false) };
    let piece = |from: usize, to: usize, more: bool| {
        let frame = whole.frame();
        let mut piece = frame[..34].to_vec();
        piece.extend(&frame[34 + from..34 + to]);
        piece[17] = u8::try_from(20 + to - from).unwrap();
        piece[20..22].copy_from_slice(&(u16::from(more) << 13 | u16::try_from(from / 8).unwrap()).to_be_bytes());
        piece[24..26].fill(0);
        let check = crate::wire::checksum::checksum(&piece[14..34]);
        piece[24..26].copy_from_slice(&check.to_be_bytes());
        piece
    };
    let (first, last) = (piece(0, 48, true), piece(48, 108, false));
    assert_eq!(translated(&first, true), Err(DropReason::Fragment));
    assert_eq!(translated(&last, true), Err(DropReason::Fragment));
    let mut datagram = translated(&first, false).unwrap().data()[34..].to_vec();
    let last = translated(&last, false).unwrap();
    assert!(Dissection::of(last.data()).is_ok(), "its header's checksum is right");
    datagram.extend(&last.data()[34..]);
    assert_eq!(datagram, translated(&whole.frame(), false).unwrap().data()[34..]);
}

proptest! {
    #[test]
    fn there_and_back_again(given in given(), v6: bool) {
        let frame = given.frame();
        let parsed = parse(&frame, MAC).unwrap();
        let mut packet = HeapPacket::new(&frame);
        let (source, destination) = ends(v6);
        translate_both(&mut packet, &parsed, source, destination).unwrap();

        let l3 = usize::from(parsed.l3);
        prop_assert_eq!(&packet.data()[..l3 - 2], &frame[..l3 - 2]);
        let there = parse(packet.data(), MAC).unwrap();
        prop_assert_eq!(there.key, Key::new(source, destination, parsed.key.protocol()).unwrap());
        prop_assert_eq!(there.ip_len, size_after(&parsed, if v6 { Family::V6 } else { Family::V4 }));
        prop_assert_eq!((there.ttl, there.l3), (given.ttl, parsed.l3));
        let parts = Dissection::of(packet.data()).unwrap();
        prop_assert_eq!(parts.traffic_class, given.class);
        let crossed = v6 != given.source.is_ipv6();
        if crossed && v6 {
            prop_assert_eq!(ipv6::Packet::new_checked(parts.packet(packet.data())).unwrap().flow_label(), 0);
        } else if crossed {
            prop_assert!(ipv4::Packet::new_checked(parts.packet(packet.data())).unwrap().dont_fragment());
        }
        if crossed {
            prop_assert_eq!(parts.end, packet.data().len());
        }
        let has_checksum = given.checksum || crossed;
        prop_assert!(!has_checksum || verifies(packet.data()));
        // Not only valid, but the very bytes that a new computation gives.
        let made = Given { source, destination, checksum: has_checksum, ..given.clone() }.frame();
        let made_parts = Dissection::of(&made).unwrap();
        prop_assert_eq!(parts.payload(packet.data()), made_parts.payload(&made));

        translate_both(&mut packet, &there, given.source, given.destination).unwrap();
        let back = Given { checksum: has_checksum, padding: if crossed { 0 } else { given.padding }, ..given.clone() };
        let mut back = back.frame();
        if crossed && given.source.is_ipv4() {
            // The identification is lost on the way.
            back[l3 + 4..l3 + 6].fill(0);
            back[l3 + 10..l3 + 12].fill(0);
            let check = crate::wire::checksum::checksum(&back[l3..l3 + 20]);
            back[l3 + 10..l3 + 12].copy_from_slice(&check.to_be_bytes());
        }
        prop_assert_eq!(packet.data(), &back[..]);
    }
}
