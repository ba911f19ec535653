//! The responder's answers, taken apart again with the wire formats.

use super::*;
use crate::wire::tcp::Flags;
use crate::wire::{arp, icmpv4, icmpv6, ndisc, tcp, udp, vlan};
use proptest::prelude::*;

const UNIT: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const CLIENT: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 100);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 2);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd80, 0, 0, 0, 0, 0, 0, 0x100);
const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd80, 0, 0, 0, 0, 0, 0, 2);
const V4: Addresses = Addresses::V4 { source: PEER, destination: VIP };
const V6: Addresses = Addresses::V6 { source: PEER6, destination: VIP6 };

fn owned(address: IpAddr) -> bool {
    address == VIP || address == VIP6
}

/// A frame from the client to the unit, with a VLAN tag if asked for.
fn frame(tagged: bool, ethertype: EtherType, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14];
    let outer = if tagged { EtherType::VLAN } else { ethertype };
    ethernet::Repr { destination: UNIT, source: CLIENT, ethertype: outer }.emit(&mut frame).unwrap();
    if tagged {
        let mut tag = [0; 4];
        vlan::Repr { id: 80, priority: 3, drop_eligible: false, ethertype }.emit(&mut tag).unwrap();
        frame.extend(tag);
    }
    frame.extend(payload);
    frame
}

/// An IP frame around an upper-layer packet.
fn ip_frame(tagged: bool, addresses: Addresses, protocol: Protocol, upper: &[u8]) -> Vec<u8> {
    let len = u16::try_from(upper.len()).unwrap();
    match addresses {
        Addresses::V4 { source, destination } => {
            let mut packet = vec![0; 20];
            let repr = ipv4::Repr { ttl: 3, tos: 0x28, ..ipv4::Repr::new(source, destination, protocol, len) };
            repr.emit(&mut packet).unwrap();
            packet.extend(upper);
            frame(tagged, EtherType::IPV4, &packet)
        }
        Addresses::V6 { source, destination } => {
            let mut packet = vec![0; 40];
            let hop_limit = if protocol == Protocol::ICMPV6 { 255 } else { 3 };
            let repr = ipv6::Repr { hop_limit, ..ipv6::Repr::new(source, destination, protocol, len) };
            repr.emit(&mut packet).unwrap();
            packet.extend(upper);
            frame(tagged, EtherType::IPV6, &packet)
        }
    }
}

fn segment(addresses: Addresses, flags: Flags, payload: &[u8]) -> Vec<u8> {
    let repr = tcp::Repr {
        source_port: 40000,
        destination_port: 80,
        sequence: 0xffff_fffe,
        acknowledgement: 77,
        flags,
        ..tcp::Repr::default()
    };
    let mut upper = vec![0; repr.len() + payload.len()];
    repr.emit(&mut upper, payload, addresses).unwrap();
    upper
}

fn datagram(addresses: Addresses, payload: &[u8]) -> Vec<u8> {
    let mut upper = vec![0; 8 + payload.len()];
    udp::Repr { source_port: 5000, destination_port: 53 }.emit(&mut upper, payload, addresses).unwrap();
    upper
}

fn ping(addresses: Addresses, data: &[u8]) -> (Protocol, Vec<u8>) {
    let mut upper = vec![0; 8 + data.len()];
    match addresses {
        Addresses::V4 { .. } => {
            icmpv4::Repr::EchoRequest { identifier: 7, sequence: 1 }.emit(&mut upper, data).unwrap();
            (Protocol::ICMP, upper)
        }
        Addresses::V6 { .. } => {
            icmpv6::Repr::EchoRequest { identifier: 7, sequence: 1 }.emit(&mut upper, data, addresses).unwrap();
            (Protocol::ICMPV6, upper)
        }
    }
}

fn arp_request(source_ip: Ipv4Addr) -> arp::Repr {
    let (target_mac, target_ip) = (MacAddress::ZERO, VIP);
    arp::Repr { operation: arp::Operation::REQUEST, source_mac: CLIENT, source_ip, target_mac, target_ip }
}

fn arp_frame(request: arp::Repr) -> Vec<u8> {
    let mut payload = [0; arp::PACKET_LEN];
    request.emit(&mut payload).unwrap();
    frame(true, EtherType::ARP, &payload)
}

fn solicitation(addresses: Addresses, link_address: Option<MacAddress>) -> Vec<u8> {
    let repr = ndisc::Repr::Solicitation { target: VIP6, link_address };
    let mut upper = vec![0; repr.len()];
    repr.emit(&mut upper, addresses).unwrap();
    ip_frame(true, addresses, Protocol::ICMPV6, &upper)
}

/// The answer's bytes, after the stations and the checksums of all layers proved right.
fn checked(answer: Answer, out: &[u8]) -> (Dissection, Vec<u8>) {
    let Answer::Reply(len) = answer else { panic!("no answer") };
    let reply = out[..len].to_vec();
    let parts = Dissection::of(&reply).unwrap();
    let payload = parts.payload(&reply);
    match parts.protocol {
        Protocol::TCP => tcp::Packet::new_checked(payload).unwrap().verify_checksum(parts.addresses).unwrap(),
        Protocol::ICMP => icmpv4::Packet::new_checked(payload).unwrap().verify_checksum().unwrap(),
        Protocol::ICMPV6 => icmpv6::Packet::new_checked(payload).unwrap().verify_checksum(parts.addresses).unwrap(),
        other => panic!("answered with {other}"),
    }
    let payload = payload.to_vec();
    (parts, payload)
}

fn stations(frame: &[u8]) -> (MacAddress, MacAddress) {
    let header = ethernet::Packet::new_checked(frame).unwrap();
    (header.source(), header.destination())
}

#[test]
fn arp_request_becomes_the_reply() {
    for source_ip in [PEER, Ipv4Addr::UNSPECIFIED] {
        let mut bytes = arp_frame(arp_request(source_ip));
        bytes.extend([0; 14]); // padding
        let len = bytes.len();
        assert_eq!(answer_arp(&mut bytes, UNIT, owned), Answer::Reply(len));
        assert_eq!(stations(&bytes), (UNIT, CLIENT));
        assert_eq!(bytes[12..18], [0x81, 0x00, 0x60, 80, 0x08, 0x06]);
        let reply = arp::Repr::parse(&arp::Packet::new_checked(&bytes[18..]).unwrap());
        assert_eq!(reply, arp_request(source_ip).reply(UNIT));
        assert_eq!((reply.source_ip, reply.source_mac, reply.target_mac), (VIP, UNIT, CLIENT));
    }
}

#[test]
fn arp_that_gets_no_answer() {
    let request = arp_request(PEER);
    for wrong in [
        arp::Repr { operation: arp::Operation::REPLY, ..request },
        arp::Repr { target_ip: PEER, source_ip: Ipv4Addr::new(10, 80, 0, 3), ..request },
        arp::Repr { source_ip: VIP, ..request },
        arp::Repr { source_ip: Ipv4Addr::BROADCAST, ..request },
        arp::Repr { source_mac: MacAddress::BROADCAST, ..request },
        arp::Repr { source_mac: UNIT, ..request },
    ] {
        let mut bytes = arp_frame(wrong);
        let before = bytes.clone();
        assert_eq!(answer_arp(&mut bytes, UNIT, owned), Answer::None, "{wrong}");
        assert_eq!(bytes, before);
    }
    let other = MacAddress([2, 0, 0, 0, 0, 9]);
    assert_eq!(answer_arp(&mut arp_frame(request), other, owned), Answer::None);
}

#[test]
fn solicitation_is_answered() {
    let group = Addresses::V6 { source: PEER6, destination: "ff02::1:ff00:100".parse().unwrap() };
    for (addresses, link_address) in [(V6, Some(CLIENT)), (group, Some(CLIENT)), (V6, None)] {
        let bytes = solicitation(addresses, link_address);
        let mut out = [0; 90];
        let (parts, message) = checked(answer(&bytes, &mut out, UNIT, owned), &out);
        assert_eq!((parts.hop_limit, parts.link.vlan), (255, Some(80)));
        assert_eq!(parts.addresses, V6.reversed());
        assert_eq!(stations(&out), (UNIT, CLIENT));
        let message = ndisc::Packet::new_checked(message).unwrap();
        assert!(message.solicited() && message.overrides() && !message.router());
        assert_eq!((message.target(), message.link_address()), (VIP6, Some(UNIT)));
        assert_eq!(answer(&bytes, &mut out[..89], UNIT, owned), Answer::None);
    }
}

#[test]
fn address_probe_is_answered_to_all() {
    let probe = Addresses::V6 { source: Ipv6Addr::UNSPECIFIED, destination: "ff02::1:ff00:100".parse().unwrap() };
    let mut out = [0; 90];
    let (parts, message) = checked(answer(&solicitation(probe, None), &mut out, UNIT, owned), &out);
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    assert_eq!(parts.addresses, Addresses::V6 { source: VIP6, destination: all });
    assert_eq!(stations(&out), (UNIT, MacAddress([0x33, 0x33, 0, 0, 0, 1])));
    let message = ndisc::Packet::new_checked(message).unwrap();
    assert!(!message.solicited() && message.overrides());
    // RFC 4861 7.1.1: with a link-layer address, or to another group, it is invalid.
    assert_eq!(answer(&solicitation(probe, Some(CLIENT)), &mut out, UNIT, owned), Answer::None);
    let direct = Addresses::V6 { source: Ipv6Addr::UNSPECIFIED, destination: VIP6 };
    assert_eq!(answer(&solicitation(direct, None), &mut out, UNIT, owned), Answer::None);
}

#[test]
fn solicitation_that_gets_no_answer() {
    let good = solicitation(V6, Some(CLIENT));
    let mut out = [0; 128];
    assert_ne!(answer(&good, &mut out, UNIT, owned), Answer::None);
    assert_eq!(answer(&good, &mut out, UNIT, |_| false), Answer::None);
    for (at, value) in [
        (18 + 7, 254),      // passed on by a router
        (18 + 40 + 1, 1),   // code
        (18 + 40 + 2, 0),   // checksum
        (18 + 40 + 25, 0),  // option of length 0
        (18 + 40 + 8, 255), // multicast target
        (11, 2),            // from the unit itself
    ] {
        let mut bytes = good.clone();
        bytes[at] = value;
        if at == 11 {
            bytes[6..12].copy_from_slice(&UNIT.0);
        }
        assert_eq!(answer(&bytes, &mut out, UNIT, owned), Answer::None, "{at}");
    }
}

#[test]
fn echo_becomes_the_reply() {
    for (tagged, addresses) in [(false, V4), (true, V4), (false, V6), (true, V6)] {
        let (protocol, upper) = ping(addresses, &[0xaa; 57]);
        let mut bytes = ip_frame(tagged, addresses, protocol, &upper);
        let request = bytes.clone();
        let len = bytes.len();
        let mut out = vec![0; len];
        assert_eq!(echo(&request, &mut out, owned), Answer::Reply(len));
        let (parts, message) = checked(echo_in_place(&mut bytes, owned), &out);
        assert_eq!(bytes, out);
        assert_eq!((parts.addresses, parts.hop_limit), (addresses.reversed(), 64));
        assert_eq!(stations(&bytes), (UNIT, CLIENT));
        assert_eq!(message[0], if addresses == V4 { 0 } else { 129 });
        assert_eq!(message[4..], upper[4..]);
        assert_eq!(parts.link.vlan, tagged.then_some(80));
        assert_eq!(echo_in_place(&mut request.clone(), |_| false), Answer::None);
        assert_eq!(echo_in_place(&mut request.clone(), |_| true), Answer::None, "from an own address");
        // The reply is no request.
        assert_eq!(echo_in_place(&mut bytes, |address| address == PEER || address == PEER6), Answer::None);
        let mut corrupt = request.clone();
        corrupt[len - 1] ^= 1;
        let before = corrupt.clone();
        assert_eq!(echo_in_place(&mut corrupt, owned), Answer::None);
        assert_eq!(corrupt, before);
        let asks = [&request, &corrupt, &bytes].map(|frame| asks_for_echo(frame, owned));
        assert_eq!(asks, [true, true, false], "whatever the checksum says");
        assert!(!asks_for_echo(&request, |_| false) && !asks_for_echo(&request, |_| true));
    }
}

#[test]
fn reset_follows_rfc_9293() {
    for addresses in [V4, V6] {
        let cases = [
            // with ACK: its own acknowledgement number
            (Flags::ACK | Flags::PSH, &b"data"[..], (77, 0, Flags::RST)),
            (Flags::SYN | Flags::ACK, &b""[..], (77, 0, Flags::RST)),
            // without: sequence 0, and everything acknowledged, wrapping
            (Flags::SYN, &b""[..], (0, 0xffff_ffff, Flags::RST | Flags::ACK)),
            (Flags::SYN | Flags::FIN, &b"abc"[..], (0, 3, Flags::RST | Flags::ACK)),
            (Flags::NONE, &b"abcd"[..], (0, 2, Flags::RST | Flags::ACK)),
        ];
        for (flags, payload, (sequence, acknowledgement, expected)) in cases {
            let mut bytes = ip_frame(true, addresses, Protocol::TCP, &segment(addresses, flags, payload));
            bytes.extend([0; 6]); // padding is no data
            let mut out = [0xee; 128];
            let (parts, message) = checked(refuse(&bytes, &mut out, UNIT), &out);
            assert_eq!((parts.addresses, parts.hop_limit, parts.link.vlan), (addresses.reversed(), 64, Some(80)));
            assert_eq!(stations(&out), (UNIT, CLIENT));
            let reply = tcp::Repr::parse(&tcp::Packet::new_checked(message).unwrap());
            assert_eq!((reply.source_port, reply.destination_port), (80, 40000));
            assert_eq!((reply.sequence, reply.acknowledgement, reply.flags), (sequence, acknowledgement, expected));
            assert_eq!(reset(&out[..parts.end], &mut [0; 128]), Answer::None, "a reset for a reset");
            assert_eq!(reset(&bytes, &mut out[..parts.end - 1]), Answer::None, "no room");
        }
    }
}

#[test]
fn errors_quote_as_much_as_allowed() {
    type Error = fn(&[u8], &mut [u8]) -> Answer;
    // Per family: type, code, and the last two bytes of the header.
    let errors: [(Error, [u8; 4], [u8; 4]); 4] = [
        (|frame, out| refuse(frame, out, UNIT), [3, 3, 0, 0], [1, 4, 0, 0]),
        (|frame, out| too_big(frame, 1460, out), [3, 4, 0x05, 0xb4], [2, 0, 0x05, 0xb4]),
        (|frame, out| too_big(frame, 10, out), [3, 4, 0, 68], [2, 0, 0x05, 0x00]),
        (time_exceeded, [11, 0, 0, 0], [3, 0, 0, 0]),
    ];
    for (addresses, size, longest) in [(V4, 100, 576), (V4, 1400, 576), (V6, 100, 1280), (V6, 1400, 1280)] {
        let bytes = ip_frame(true, addresses, Protocol::UDP, &datagram(addresses, &vec![0xab; size]));
        for (error, four, six) in errors {
            let mut out = [0xee; 1400];
            let (parts, message) = checked(error(&bytes, &mut out), &out);
            assert_eq!((parts.addresses, parts.link.vlan), (addresses.reversed(), Some(80)));
            assert_eq!(stations(&out), (UNIT, CLIENT));
            let head = [message[0], message[1], message[6], message[7]];
            assert_eq!(head, if addresses == V4 { four } else { six });
            let quote = &message[8..];
            assert_eq!(quote, &bytes[18..18 + quote.len()]);
            assert_eq!(parts.end - parts.ip, longest.min(parts.upper - parts.ip + 8 + bytes.len() - 18));
            // No error about an error, not even when it is sent to us.
            turn_link(&mut out[..parts.end]).unwrap();
            assert_eq!(time_exceeded(&out[..parts.end], &mut [0; 1400]), Answer::None);
        }
    }
}

#[test]
fn what_must_not_be_answered() {
    let mut out = [0; 1400];
    let good = ip_frame(false, V4, Protocol::UDP, &datagram(V4, b"hello"));
    assert_ne!(time_exceeded(&good, &mut out), Answer::None);
    assert_eq!(refuse(&good, &mut out, MacAddress([2, 0, 0, 0, 0, 9])), Answer::None, "flooded to us");

    for (source, destination) in [
        (Ipv4Addr::UNSPECIFIED, VIP),
        (Ipv4Addr::BROADCAST, VIP),
        (Ipv4Addr::new(224, 0, 0, 1), VIP),
        (Ipv4Addr::LOCALHOST, VIP),
        (PEER, Ipv4Addr::new(239, 1, 1, 1)),
        (PEER, Ipv4Addr::BROADCAST),
        (VIP, VIP),
    ] {
        let addresses = Addresses::V4 { source, destination };
        let bytes = ip_frame(false, addresses, Protocol::UDP, &datagram(addresses, b""));
        assert_eq!(port_unreachable(&bytes, &mut out), Answer::None, "{addresses}");
        let bytes = ip_frame(false, addresses, Protocol::TCP, &segment(addresses, Flags::SYN, b""));
        assert_eq!(reset(&bytes, &mut out), Answer::None, "{addresses}");
    }
    let addresses = Addresses::V6 { source: "ff02::1".parse().unwrap(), destination: VIP6 };
    let bytes = ip_frame(false, addresses, Protocol::UDP, &datagram(addresses, b""));
    assert_eq!(port_unreachable(&bytes, &mut out), Answer::None);

    for station in [0, 6] {
        let mut bytes = good.clone();
        bytes[station] |= 1;
        assert_eq!(time_exceeded(&bytes, &mut out), Answer::None, "a group on the link");
    }

    // The first fragment may be reported, later ones not; a reset needs the whole segment.
    let fragment = |more_fragments: bool, fragment_offset: u16, protocol: Protocol, upper: &[u8]| {
        let len = u16::try_from(upper.len()).unwrap();
        let repr = ipv4::Repr {
            dont_fragment: false,
            more_fragments,
            fragment_offset,
            ..ipv4::Repr::new(PEER, VIP, protocol, len)
        };
        let mut packet = vec![0; 20];
        repr.emit(&mut packet).unwrap();
        packet.extend(upper);
        frame(false, EtherType::IPV4, &packet)
    };
    let upper = segment(V4, Flags::SYN, b"1234");
    assert_ne!(time_exceeded(&fragment(true, 0, Protocol::TCP, &upper), &mut out), Answer::None);
    assert_eq!(time_exceeded(&fragment(false, 24, Protocol::TCP, &upper), &mut out), Answer::None);
    assert_eq!(reset(&fragment(true, 0, Protocol::TCP, &upper), &mut out), Answer::None);
    let (protocol, upper) = ping(V4, b"1234");
    assert_eq!(echo_in_place(&mut fragment(true, 0, protocol, &upper), owned), Answer::None);

    // A loose source route.
    let mut packet = vec![0; 28];
    ipv4::Repr::new(PEER, VIP, Protocol::UDP, 16).emit(&mut packet).unwrap();
    packet[0] = 0x47;
    packet[20..28].copy_from_slice(&[131, 7, 4, 10, 0, 0, 9, 0]);
    packet.extend(datagram(V4, b""));
    ipv4::Packet::new_checked(&mut packet).unwrap().fill_checksum();
    assert!(Dissection::of(&frame(false, EtherType::IPV4, &packet)).unwrap().source_routed);
    assert_eq!(port_unreachable(&frame(false, EtherType::IPV4, &packet), &mut out), Answer::None);
}

#[test]
fn announcements() {
    let mut out = [0; 86];
    assert_eq!(announce(VIP.into(), UNIT, &mut out), Answer::Reply(42));
    assert_eq!(stations(&out), (UNIT, MacAddress::BROADCAST));
    let message = arp::Repr::parse(&arp::Packet::new_checked(&out[14..42]).unwrap());
    assert_eq!((message.source_ip, message.target_ip, message.source_mac), (VIP, VIP, UNIT));
    assert_eq!(announce(VIP.into(), UNIT, &mut out[..41]), Answer::None);

    let (parts, message) = checked(announce(VIP6.into(), UNIT, &mut out), &out);
    assert_eq!((parts.end, parts.hop_limit), (86, 255));
    let message = ndisc::Packet::new_checked(message).unwrap();
    assert!(message.overrides() && !message.solicited());
    assert_eq!((message.target(), message.link_address()), (VIP6, Some(UNIT)));
    assert_eq!(announce(VIP6.into(), UNIT, &mut out[..85]), Answer::None);
}

/// One good frame of each sort that the responder knows.
fn questions() -> Vec<Vec<u8>> {
    let mut frames = vec![arp_frame(arp_request(PEER)), solicitation(V6, Some(CLIENT))];
    for addresses in [V4, V6] {
        for tagged in [false, true] {
            let (protocol, upper) = ping(addresses, b"abcdefgh");
            frames.push(ip_frame(tagged, addresses, protocol, &upper));
            frames.push(ip_frame(tagged, addresses, Protocol::UDP, &datagram(addresses, b"query")));
            frames.push(ip_frame(tagged, addresses, Protocol::TCP, &segment(addresses, Flags::SYN, b"")));
        }
    }
    frames
}

proptest! {
    #[test]
    fn any_frame(which in 0usize..14, flips in prop::collection::vec((0usize..120, any::<u8>()), 0..4), cut in 0usize..140,
                 room in 0usize..200) {
        let mut bytes = questions().swap_remove(which);
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut);
        let mut out = vec![0; room];
        for answer in [
            answer(&bytes, &mut out, UNIT, owned),
            echo(&bytes, &mut out, owned),
            refuse(&bytes, &mut out, UNIT),
            too_big(&bytes, 1400, &mut out),
            time_exceeded(&bytes, &mut out),
        ] {
            if let Answer::Reply(len) = answer {
                prop_assert!(len <= room);
            }
        }
        if let Answer::Reply(len) = time_exceeded(&bytes, &mut out) {
            let _ = checked(Answer::Reply(len), &out);
        }
        let before = bytes.clone();
        if answer_arp(&mut bytes, UNIT, owned) == Answer::None && echo_in_place(&mut bytes, owned) == Answer::None {
            prop_assert_eq!(bytes, before);
        }
    }

    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let mut out = [0; 1500];
        let _ = (answer(&bytes, &mut out, UNIT, |_| true), refuse(&bytes, &mut out, UNIT));
        let _ = (echo_in_place(&mut bytes, |_| true), time_exceeded(&bytes, &mut out));
    }
}
