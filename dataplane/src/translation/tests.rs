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
    // Extension headers are left out between the families (RFC 7915 section 5.1), and stay within.
    let packet = translated(&frame, false).unwrap();
    assert_eq!(packet.data(), translated(&query(true).frame(), false).unwrap().data());
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

/// The packet of a whole frame in fragments whose payloads end at these places; IPv6 has `extension` before the fragment header.
fn pieces(frame: &[u8], bounds: &[usize], id: u32, extension: &[u8]) -> Vec<Vec<u8>> {
    let parsed = parse(frame, MAC).unwrap();
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let payload = &frame[l4..l3 + usize::from(parsed.ip_len)];
    let bounds = [&[0], bounds, &[payload.len()]].concat();
    let piece = |at: &[usize]| {
        let (from, to, more) = (at[0], at[1], at[1] < payload.len());
        let mut piece = frame[..l4].to_vec();
        if parsed.key.source().is_ipv4() {
            piece[l3 + 2..l3 + 4].copy_from_slice(&u16::try_from(20 + to - from).unwrap().to_be_bytes());
            piece[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes()[2..]);
            let place = u16::from(more) << 13 | u16::try_from(from / 8).unwrap();
            piece[l3 + 6..l3 + 8].copy_from_slice(&place.to_be_bytes());
            piece[l3 + 10..l3 + 12].fill(0);
            let check = crate::wire::checksum::checksum(&piece[l3..l3 + 20]);
            piece[l3 + 10..l3 + 12].copy_from_slice(&check.to_be_bytes());
        } else {
            let len = u16::try_from(extension.len() + 8 + to - from).unwrap();
            piece[l3 + 4..l3 + 6].copy_from_slice(&len.to_be_bytes());
            let next = std::mem::replace(&mut piece[l3 + 6], if extension.is_empty() { 44 } else { 60 });
            piece.extend(extension);
            piece.extend([next, 0]);
            piece.extend((u16::try_from(from).unwrap() | u16::from(more)).to_be_bytes());
            piece.extend(id.to_be_bytes());
        }
        piece.extend(&payload[from..to]);
        piece
    };
    bounds.windows(2).map(piece).collect()
}

/// Destination options that lead to a fragment header.
const OPTIONS: [u8; 8] = [44, 0, 1, 4, 0, 0, 0, 0];

#[test]
fn fragments_become_these_bytes() {
    // IPv4 to IPv6: an eight-byte header more.
    let parts = pieces(&query(false).frame(), &[8], 0xabcd, &[]);
    let first = translated(&parts[0], true).unwrap();
    assert_eq!(first.data()[12..22], [0x86, 0xdd, 0x62, 0xe0, 0, 0, 0, 16, 44, 63]);
    assert_eq!(first.data()[54..62], [17, 0, 0, 1, 0, 0, 0xab, 0xcd]);
    // The checksum is the whole datagram's.
    let whole = translated(&query(false).frame(), true).unwrap();
    assert_eq!(first.data()[62..], whole.data()[54..62]);
    let last = with_ports_of(&parts[0], &parts[1], true).unwrap();
    assert_eq!(last.data()[18..21], [0, 10, 44]);
    assert_eq!(last.data()[54..], [17, 0, 0, 8, 0, 0, 0xab, 0xcd, b'h', b'i']);
    // IPv6 to IPv4: the lower half of the identification, no DF; other extension headers are left out.
    let parts = pieces(&query(true).frame(), &[8], 0x1234_abcd, &OPTIONS);
    let first = translated(&parts[0], false).unwrap();
    assert_eq!(first.data()[12..24], [8, 0, 0x45, 0x2e, 0, 28, 0xab, 0xcd, 0x20, 0, 63, 17]);
    assert_eq!(first.data()[34..], [0x75, 0x30, 0x1f, 0x90, 0, 10, 0xee, 0x04]);
    let last = with_ports_of(&parts[0], &parts[1], false).unwrap();
    assert_eq!(last.data()[16..24], [0, 22, 0xab, 0xcd, 0, 1, 63, 17]);
    assert_eq!(last.data()[34..], *b"hi");
    // An atomic one is whole, and may be taken to pieces.
    let atomic = pieces(&query(true).frame(), &[], 0x1234_abcd, &[]).remove(0);
    let packet = translated(&atomic, false).unwrap();
    assert_eq!(packet.data()[16..24], [0, 30, 0xab, 0xcd, 0, 0, 63, 17]);
    assert_eq!(packet.data()[34..], translated(&query(true).frame(), false).unwrap().data()[34..]);
}

/// A later fragment, as it is translated after its first one has told the ports.
fn with_ports_of(first: &[u8], later: &[u8], v6: bool) -> Result<HeapPacket, DropReason> {
    let (known, mut parsed) = (parse(first, MAC)?, parse(later, MAC)?);
    (parsed.class, parsed.key) = (Class::Flow, known.key);
    let mut packet = HeapPacket::new(later);
    let (source, destination) = ends(v6);
    let size = size_after(&parsed, if v6 { Family::V6 } else { Family::V4 });
    translate_both(&mut packet, &parsed, source, destination)?;
    assert_eq!(parse(packet.data(), MAC)?.ip_len, size);
    Ok(packet)
}

#[test]
fn what_fragments_cannot_become_says_why() {
    // RFC 7915 section 4.5: nobody has the whole datagram.
    let bare = pieces(&Given { checksum: false, ..query(false) }.frame(), &[8], 1, &[]);
    assert_eq!(translated(&bare[0], true), Err(DropReason::NoChecksum));
    assert_eq!(translated(&bare[0], false).unwrap().data()[40..42], [0, 0]);
    // Section 5.1.1: the fragment header is the last, and authentication covers the addresses.
    let mut behind = pieces(&query(true).frame(), &[], 1, &[]).remove(0);
    behind.splice(62..62, [17, 0, 1, 4, 0, 0, 0, 0]);
    behind[19] += 8;
    behind[54] = 60;
    assert_eq!(translated(&behind, false), Err(DropReason::ExtensionHeader));
    let mut authenticated = query(true).frame();
    authenticated.splice(54..54, [[17, 4, 0, 0], [0; 4], [0; 4], [1; 4], [2; 4], [3; 4]].concat());
    authenticated[19] += 24;
    authenticated[20] = 51;
    assert_eq!(translated(&authenticated, false), Err(DropReason::ExtensionHeader));
}

/// Puts fragments together, by the wire's own view of them: the packet's payload.
fn together(mut parts: Vec<HeapPacket>) -> Vec<u8> {
    let place = |packet: &HeapPacket| Dissection::of(packet.data()).unwrap().fragment.unwrap();
    parts.sort_by_key(|packet| place(packet).offset);
    let mut payload = Vec::new();
    for (index, packet) in parts.iter().enumerate() {
        assert_eq!((usize::from(place(packet).offset), place(packet).more), (payload.len(), index + 1 < parts.len()));
        assert_eq!(place(packet).identification, place(&parts[0]).identification);
        payload.extend(Dissection::of(packet.data()).unwrap().payload(packet.data()));
    }
    payload
}

proptest! {
    /// Whatever the bounds, in all four pairs of families: fragments translated one by one are the fragments of what the whole
    /// packet is translated to.
    #[test]
    fn fragments_make_the_translated_whole(
        given in given(), v6: bool, id: u32, cuts in prop::collection::btree_set(3usize..40, 1..6), options: bool,
    ) {
        prop_assume!(given.checksum || !v6);
        let given = Given { padding: 0, ..given };
        let frame = given.frame();
        let payload = if given.udp { 8 } else { 20 } + given.payload.len();
        let bounds: Vec<_> = cuts.into_iter().map(|cut| cut * 8).filter(|bound| *bound < payload).collect();
        prop_assume!(!bounds.is_empty());
        let mut parts = pieces(&frame, &bounds, id, if options { &OPTIONS } else { &[] });
        let first = translated(&parts[0], v6).unwrap();
        let known = parts.remove(0);
        let later = parts.iter().map(|later| with_ports_of(&known, later, v6).unwrap());
        let all: Vec<_> = std::iter::once(first).chain(later).collect();
        prop_assert_eq!(all.len(), bounds.len() + 1);
        let whole = translated(&frame, v6).unwrap();
        prop_assert!(!given.checksum || verifies(whole.data()));
        let parts = Dissection::of(whole.data()).unwrap();
        for piece in &all {
            let piece = Dissection::of(piece.data()).unwrap();
            prop_assert_eq!((piece.addresses, piece.hop_limit, piece.traffic_class), (parts.addresses, given.ttl, given.class));
        }
        prop_assert_eq!(together(all), parts.payload(whole.data()));
    }
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
