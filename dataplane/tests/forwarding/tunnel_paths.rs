//! ICMP errors about the unit's own tunnel packets: a narrow path is remembered, and whoever sends too much is told by the VIP.

use std::net::IpAddr;

use weir_dataplane::counters::DropReason;
use weir_dataplane::route_table::Mode;
use weir_dataplane::tunneler::Tunnel;
use weir_dataplane::wire::{Addresses, Dissection, Protocol, icmpv4, icmpv6};

use crate::frames;
use crate::lab::{Family, HTTP, Lab, MACS, Setup, data, syn};

/// A unit of several shards with tunnels from its own address; the outer header's family.
fn unit(mode: Mode, family: Family, outer: Family) -> Lab {
    let mut setup = Setup { twins: true, ..Setup::new(mode) }.sharded(3);
    for endpoint in &mut setup.parts.endpoints {
        if endpoint.address.is_ipv4() == (family == Family::V4) {
            endpoint.address = outer.host(endpoint.host.0 as u16);
        }
        let unit = own(if endpoint.address.is_ipv4() { Family::V4 } else { Family::V6 });
        endpoint.tunnel = match mode {
            Mode::Ipip => Tunnel::ipip(unit, endpoint.address),
            _ => Tunnel::gue(unit, endpoint.address, 6080),
        };
    }
    Lab::new(setup)
}

fn own(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 1, 0, 1].into(),
        Family::V6 => "fd01::1".parse().unwrap(),
    }
}

fn everywhere(test: impl Fn(Mode, Family, Family)) {
    for mode in [Mode::Ipip, Mode::Gue] {
        for family in [Family::V4, Family::V6] {
            [family, family.other()].into_iter().for_each(|outer| test(mode, family, outer));
        }
    }
}

/// Everything that a frame makes the unit send, by port.
fn sends(lab: &mut Lab, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
    lab.arrive(0, port, frame);
    lab.run();
    lab.check();
    lab.wire.raw().into_iter().map(|(_, port, frame)| (port, frame)).collect()
}

/// A router's error about a frame that the unit has sent, with so much quoted as a router has to.
fn error(sent: &[u8], kind: [u8; 2], word: u32) -> Vec<u8> {
    let parts = Dissection::of(sent).unwrap();
    let (unit, v4) = (parts.addresses.source(), parts.addresses.source().is_ipv4());
    let router: IpAddr = if v4 { [10, 1, 0, 99].into() } else { "fd01::99".parse().unwrap() };
    let quotation = &sent[parts.ip..parts.end.min(parts.ip + if v4 { 28 } else { 1232 })];
    let mut message = [&kind[..], &[0, 0], &word.to_be_bytes(), quotation].concat();
    let addresses = frames::addresses(router, unit);
    let protocol = if v4 {
        icmpv4::Packet::new_checked(&mut message[..]).unwrap().fill_checksum();
        Protocol::ICMP
    } else {
        icmpv6::Packet::new_checked(&mut message[..]).unwrap().fill_checksum(addresses);
        Protocol::ICMPV6
    };
    frames::frame(MACS[1], addresses, protocol, &message)
}

fn too_big(sent: &[u8], mtu: u32) -> Vec<u8> {
    error(sent, if Dissection::of(sent).unwrap().addresses.source().is_ipv4() { [3, 4] } else { [2, 0] }, mtu)
}

/// What the VIP tells a client; `None` if the answer is no such error.
fn told(answer: &[(usize, Vec<u8>)], family: Family) -> Option<u32> {
    let [(0, frame)] = answer else { return None };
    let parts = Dissection::of(frame).unwrap();
    assert_eq!(parts.addresses.source(), family.vip(0).ip());
    let message = parts.payload(frame);
    Some(match parts.addresses {
        Addresses::V4 { .. } => {
            let error = icmpv4::Packet::new_checked(message).unwrap();
            error.verify_checksum().unwrap();
            assert_eq!((error.kind(), error.code()), (3, 4));
            error.mtu().into()
        }
        addresses @ Addresses::V6 { .. } => {
            let error = icmpv6::Packet::new_checked(message).unwrap();
            error.verify_checksum(addresses).unwrap();
            assert_eq!(error.kind(), 2);
            error.mtu()
        }
    })
}

/// A client's segment that is an IP packet of so many bytes.
fn sized(family: Family, client: u16, length: usize) -> Vec<u8> {
    data(family, client, HTTP, &vec![7; length - if family == Family::V4 { 40 } else { 60 }])
}

#[test]
fn a_narrow_path_is_remembered_in_every_shard_and_tried_again_later() {
    everywhere(|mode, family, outer| {
        let mut lab = unit(mode, family, outer);
        for client in 0..12 {
            lab.arrive(0, 0, &syn(family, client, HTTP));
        }
        lab.run();
        lab.wire.raw();
        let overhead = if outer == Family::V4 { 20 } else { 40 } + if mode == Mode::Gue { 12 } else { 0 };
        let large = sends(&mut lab, 0, &sized(family, 0, 1440)).pop().unwrap().1;
        let end = Dissection::of(&large).unwrap().addresses.destination();
        assert!(sends(&mut lab, 1, &too_big(&large, 1400)).is_empty());
        assert_eq!((lab.count("tunnel_errors"), lab.count("paths_lowered"), lab.count("twin")), (1, 3, 0));
        assert_eq!(lab.dropped(DropReason::TunnelError), 1);
        // The way to that host takes so much, in whichever shard the client is; the ways to the others are as they were.
        let (mut narrow, mut wide) = (0, 0);
        for client in 0..12 {
            let fits = sends(&mut lab, 0, &sized(family, client, 1400 - overhead));
            let there = Dissection::of(&fits[0].1).unwrap().addresses.destination() == end;
            let more = sends(&mut lab, 0, &sized(family, client, 1401 - overhead));
            assert_eq!(told(&more, family), there.then_some(1400 - overhead as u32), "{client}");
            *if there { &mut narrow } else { &mut wide } += 1;
        }
        assert!(narrow > 1 && wide > 1, "{narrow} {wide}");
        // Nobody can widen it, nor narrow it below what every host takes.
        sends(&mut lab, 1, &too_big(&large, 1450));
        sends(&mut lab, 1, &too_big(&large, 1));
        let least = if outer == Family::V4 { 576 } else { 1280 };
        let believed = if family == Family::V4 { least - overhead } else { 1280 };
        let more = sends(&mut lab, 0, &sized(family, 0, believed + 1));
        assert_eq!(told(&more, family), Some(believed as u32));
        lab.pass(500);
        lab.now.0 += 600_000;
        lab.run();
        lab.pass(500);
        sends(&mut lab, 0, &syn(family, 0, HTTP));
        assert_eq!(told(&sends(&mut lab, 0, &sized(family, 0, 1440)), family), None);
    });
}

#[test]
fn an_old_router_means_the_next_lower_plateau() {
    for mode in [Mode::Ipip, Mode::Gue] {
        let mut lab = unit(mode, Family::V4, Family::V4);
        sends(&mut lab, 0, &syn(Family::V4, 0, HTTP));
        let overhead = if mode == Mode::Gue { 32 } else { 20 };
        let large = sends(&mut lab, 0, &sized(Family::V4, 0, 1500 - overhead)).pop().unwrap().1;
        sends(&mut lab, 1, &too_big(&large, 0));
        let answer = sends(&mut lab, 0, &sized(Family::V4, 0, 1500 - overhead));
        assert_eq!(told(&answer, Family::V4), Some(1492 - overhead as u32));
    }
}

#[test]
fn other_errors_are_heard_and_forged_ones_are_not() {
    everywhere(|mode, family, outer| {
        let mut lab = unit(mode, family, outer);
        let sent = sends(&mut lab, 0, &syn(family, 0, HTTP)).pop().unwrap().1;
        let kinds: [[u8; 2]; 3] =
            if outer == Family::V4 { [[3, 1], [3, 2], [11, 0]] } else { [[1, 0], [1, 4], [3, 0]] };
        for kind in kinds {
            assert!(sends(&mut lab, 1, &error(&sent, kind, 0)).is_empty());
        }
        assert_eq!((lab.dropped(DropReason::TunnelError), lab.count("paths_lowered"), lab.count("twin")), (3, 0, 0));
        let whole = too_big(&sent, 1280);
        // About a packet of another sender, to another host, of another protocol, with a wrong checksum: the kernel's to look at.
        let ip = 14 + if outer == Family::V4 { 20 } else { 40 } + 8;
        let (source, destination, protocol) = if outer == Family::V4 { (15, 19, 9) } else { (23, 39, 6) };
        for (at, mend) in [(source, true), (destination, true), (protocol, true), (source, false)] {
            let mut forged = whole.clone();
            forged[ip + at] ^= 0x60;
            if mend {
                let parts = Dissection::of(&forged).unwrap();
                let message = &mut forged[parts.upper..parts.end];
                match outer {
                    Family::V4 => icmpv4::Packet::new_checked(message).unwrap().fill_checksum(),
                    Family::V6 => icmpv6::Packet::new_checked(message).unwrap().fill_checksum(parts.addresses),
                }
            }
            assert!(sends(&mut lab, 1, &forged).is_empty());
        }
        for length in 14..whole.len() {
            sends(&mut lab, 1, &whole[..length]);
        }
        assert_eq!((lab.count("tunnel_errors"), lab.count("paths_lowered")), (3, 0));
    });
}

#[test]
fn an_ipv6_packet_of_1280_bytes_gets_through_in_pieces_of_its_outer_one() {
    for mode in [Mode::Ipip, Mode::Gue] {
        for outer in [Family::V4, Family::V6] {
            let family = Family::V6;
            let mut lab = unit(mode, family, outer);
            for client in 0..6 {
                lab.arrive(0, 0, &syn(family, client, HTTP));
            }
            lab.run();
            lab.wire.raw();
            lab.change(|parts| parts.ports[1].mtu = 1280);
            let overhead = if outer == Family::V4 { 20 } else { 40 } + if mode == Mode::Gue { 12 } else { 0 };
            let mut ids = std::collections::HashSet::new();
            for client in 0..6 {
                let whole = sized(family, client, 1280 - overhead);
                assert_eq!(sends(&mut lab, 0, &whole).len(), 1);
                for length in [1281 - overhead, 1280] {
                    let packet = sized(family, client, length);
                    let sent = sends(&mut lab, 0, &packet);
                    let frames: Vec<_> = sent.iter().map(|(_, frame)| frame.clone()).collect();
                    assert!(sent.len() == 2 && sent.iter().all(|(port, frame)| *port == 1 && frame.len() <= 1294));
                    let parts = Dissection::of(&frames[0]).unwrap();
                    ids.insert(parts.fragment.unwrap().identification);
                    let put_together = frames::reassembled(&frames);
                    let inner = &put_together[14 + overhead..];
                    let mut expected = packet[14..].to_vec();
                    expected[7] -= 1;
                    assert!(inner == expected, "{mode:?} {outer:?} {length}");
                }
                let answer = sends(&mut lab, 0, &sized(family, client, 1281));
                assert_eq!(told(&answer, family), Some(1280));
            }
            assert_eq!((ids.len(), lab.count("split")), (12, 12));
        }
    }
}
