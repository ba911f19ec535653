//! Endpoints on the unit itself: its kernel takes packets as a half-NAT host does, and its answers are translated back.

use std::net::{IpAddr, SocketAddr};

use weir_dataplane::counters::DropReason;
use weir_dataplane::route_table::{Action, Mode, State};
use weir_dataplane::wire::tcp::Flags;
use weir_dataplane::wire::{Dissection, Protocol, icmpv4, icmpv6};

use crate::frames::{self, Seen};
use crate::lab::{DNS, Family, GATEWAY, HTTP, Lab, MACS, RANGE, Setup, data, fin, syn};
use crate::nat::families;

/// The unit's own address on the hosts' side.
fn own(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 1, 0, 1].into(),
        Family::V6 => "fd01::1".parse().unwrap(),
    }
}

/// A unit that is its services' only host.
fn unit(shards: usize) -> Lab {
    let mut setup = Setup { twins: true, classifiers: 2, ..Setup::new(Mode::Nat) }.sharded(shards);
    setup.parts.endpoints.retain(|endpoint| endpoint.host.0 == 1);
    for endpoint in &mut setup.parts.endpoints {
        endpoint.address = own(if endpoint.address.is_ipv4() { Family::V4 } else { Family::V6 });
        endpoint.local = Some(1);
    }
    Lab::new(setup)
}

/// The one frame that the kernel gets by the hosts' port's twin for a client's.
#[track_caller]
fn at_kernel(lab: &mut Lab, frame: Vec<u8>) -> Seen {
    lab.arrive(0, 0, &frame);
    lab.run();
    lab.check();
    let twins = lab.wire.at_twins();
    assert_eq!((twins.len(), lab.wire.raw().len()), (1, 0), "{:?}", lab.drops());
    let (port, frame) = &twins[0];
    let seen = Seen::of(0, *port, frame);
    assert_eq!((seen.port, seen.mac), (1, MACS[1]));
    seen
}

/// What the kernel sends by its twin to a next hop, and what leaves for it.
fn kernel_sends(lab: &mut Lab, mut frame: Vec<u8>) -> Vec<Seen> {
    frame[..6].copy_from_slice(&GATEWAY);
    frame[6..12].copy_from_slice(&MACS[1]);
    lab.wire.kernel_sends(0, 1, &frame);
    lab.run();
    lab.check();
    lab.wire.seen()
}

#[test]
fn both_directions_are_translated_whichever_shard_has_them() {
    families(|family| {
        for shards in [1, 4] {
            let mut lab = unit(shards);
            for client in 0..20 {
                let there = at_kernel(&mut lab, syn(family, client, HTTP));
                let port = lab.parts.endpoints[crate::lab::service_of(family)].port.unwrap();
                // The last hop: nobody forwards it any more.
                assert_eq!((there.source, there.hop_limit), (family.client(client), 64));
                assert_eq!(there.destination, SocketAddr::new(own(family), port));
                let answer = frames::segment(MACS[1], there.destination, there.source, Flags::SYN | Flags::ACK, b"hi");
                let here = kernel_sends(&mut lab, answer);
                assert_eq!((here.len(), here[0].port, here[0].mac), (1, 0, GATEWAY));
                assert_eq!((here[0].source, here[0].destination), (family.vip(HTTP), family.client(client)));
                assert_eq!(here[0].payload, b"hi");
                assert_eq!(at_kernel(&mut lab, data(family, client, HTTP, b"more")).payload, b"more");
                assert_eq!(lab.state(family.client(client), family.vip(HTTP)), Some(State::Established));
            }
            assert!(lab.routes().iter().any(|(_, _, action, _)| matches!(action, Action::Local { .. })));
            // A port that is kept, and a datagram.
            assert_eq!(at_kernel(&mut lab, syn(family, 30, RANGE.0 + 7)).destination.port(), RANGE.0 + 7);
            let asked = at_kernel(&mut lab, frames::datagram(MACS[0], family.client(30), family.vip(DNS), b"?"));
            let answer = frames::datagram(MACS[1], asked.destination, asked.source, b"!");
            assert_eq!(kernel_sends(&mut lab, answer)[0].source, family.vip(DNS));
            assert_eq!((lab.decisions("decided"), lab.drops().len()), (22, 0));
            // The end, after which the kernel's late words are its own.
            at_kernel(&mut lab, fin(family, 0, HTTP));
            assert_eq!(lab.state(family.client(0), family.vip(HTTP)), Some(State::Closing));
            lab.pass(40_000);
            assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
        }
    });
}

#[test]
fn what_the_kernel_sends_for_itself_leaves_as_it_is() {
    families(|family| {
        let mut lab = unit(3);
        at_kernel(&mut lab, syn(family, 1, HTTP));
        let other = SocketAddr::new(own(family), 22);
        for n in 0..10 {
            let seen =
                kernel_sends(&mut lab, frames::segment(MACS[1], other, family.client(n), Flags::ACK, b"of its own"));
            assert_eq!((seen.len(), seen[0].port, seen[0].source, seen[0].hop_limit), (1, 1, other, 64));
            assert_eq!(seen[0].mac, GATEWAY);
        }
        // Whoever asks the unit itself is not the VIP's client.
        let direct = frames::segment(MACS[1], family.client(1), other, Flags::SYN, b"");
        lab.arrive(0, 1, &direct);
        lab.run();
        assert_eq!(lab.wire.at_twins(), [(1, direct)]);
    });
}

#[test]
fn errors_go_both_ways() {
    families(|family| {
        let mut lab = unit(3);
        let there = at_kernel(&mut lab, syn(family, 1, HTTP));
        let error = |from: IpAddr, to: IpAddr, about: &[u8]| {
            let addresses = frames::addresses(from, to);
            let kind: [u8; 8] = if family == Family::V4 { [3, 3, 0, 0, 0, 0, 0, 0] } else { [1, 4, 0, 0, 0, 0, 0, 0] };
            let mut message = [&kind, &about[14..]].concat();
            let protocol = if family == Family::V4 {
                icmpv4::Packet::new_checked(&mut message[..]).unwrap().fill_checksum();
                Protocol::ICMP
            } else {
                icmpv6::Packet::new_checked(&mut message[..]).unwrap().fill_checksum(addresses);
                Protocol::ICMPV6
            };
            frames::frame(MACS[0], addresses, protocol, &message)
        };
        // A client's, about what the VIP has said to it.
        let said = frames::segment(MACS[0], family.vip(HTTP), family.client(1), Flags::ACK, b"");
        lab.arrive(0, 0, &error(family.client(1).ip(), family.vip(HTTP).ip(), &said));
        lab.run();
        let twins = lab.wire.at_twins();
        let parts = Dissection::of(&twins[0].1).unwrap();
        assert_eq!((twins.len(), twins[0].0, parts.addresses.destination()), (1, 1, own(family)));
        let quoted = [&said[..14], &parts.payload(&twins[0].1)[8..]].concat();
        assert_eq!(Seen::of(0, 0, &quoted).source, there.destination);
        // The kernel's, about what a client has said to it.
        let asked = frames::segment(MACS[0], there.source, there.destination, Flags::SYN, b"");
        let mut frame = error(own(family), family.client(1).ip(), &asked);
        frame[..6].copy_from_slice(&GATEWAY);
        frame[6..12].copy_from_slice(&MACS[1]);
        lab.wire.kernel_sends(0, 1, &frame);
        lab.run();
        lab.check();
        let sent = lab.wire.raw();
        let parts = Dissection::of(&sent[0].2).unwrap();
        assert_eq!((sent.len(), sent[0].1, parts.addresses.source()), (1, 0, family.vip(0).ip()));
        let quoted = [&asked[..14], &parts.payload(&sent[0].2)[8..]].concat();
        assert_eq!(Seen::of(0, 0, &quoted).destination, family.vip(HTTP));
    });
}

#[test]
fn what_does_not_fit_is_told_to_either_side_and_an_inactive_unit_gets_nothing() {
    families(|family| {
        let mut lab = unit(2);
        lab.change(|parts| parts.ports[0].mtu = 1400);
        let there = at_kernel(&mut lab, syn(family, 1, HTTP));
        let answer = frames::segment(MACS[1], there.destination, there.source, Flags::ACK, &[1; 1400]);
        assert!(kernel_sends(&mut lab, answer).is_empty());
        let twins = lab.wire.at_twins();
        let parts = Dissection::of(&twins[0].1).unwrap();
        assert_eq!((twins.len(), parts.addresses.destination()), (1, own(family)));
        assert_eq!((lab.count("told_too_big"), lab.dropped(DropReason::TooBig)), (1, 1));
        lab.change(|parts| {
            parts.endpoints.iter_mut().for_each(|endpoint| endpoint.directive = weir_health_load::Directive::Inactive);
        });
        assert!(lab.exchange(0, [data(family, 1, HTTP, b"")]).is_empty());
        assert_eq!((lab.dropped(DropReason::Inactive), lab.wire.at_twins().len()), (1, 0));
    });
}
