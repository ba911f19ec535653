//! What a new farm does to connections: draining, inactive, backups, and services that nobody can serve.

use weir_dataplane::counters::DropReason;
use weir_dataplane::farm::NoEndpoint;
use weir_dataplane::route_table::{Mode, State};
use weir_dataplane::wire::{Dissection, Protocol, icmpv4, icmpv6, tcp::Flags};
use weir_health_load::Directive;

use crate::frames;
use crate::lab::{DNS, Family, GATEWAY, HTTP, Lab, MACS, TIMEOUTS, data, endpoint, everywhere, fin, host_of, rst, syn};

/// Sets the directive of one host's endpoint for HTTP.
fn direct(lab: &mut Lab, family: Family, host: usize, directive: Directive) {
    lab.change(|parts| parts.endpoints[endpoint(family, 0, host).index()].directive = directive);
}

#[test]
fn a_draining_endpoint_keeps_what_it_has_and_gets_nothing_new() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let hosts: Vec<_> = (0..30).map(|n| host_of(&lab.forward(syn(family, n, HTTP)))).collect();
        assert!(hosts.contains(&0));
        direct(&mut lab, family, 0, Directive::Draining);
        for (n, host) in (0..).zip(&hosts) {
            assert_eq!(host_of(&lab.forward(data(family, n, HTTP, b""))), *host);
        }
        for n in 100..130 {
            assert_ne!(host_of(&lab.forward(syn(family, n, HTTP))), 0);
        }
        // A finished connection's tuple is a new one; unknown ones may be there.
        let there = hosts.iter().position(|host| *host == 0).unwrap() as u16;
        lab.forward(fin(family, there, HTTP));
        assert_ne!(host_of(&lab.forward(syn(family, there, HTTP))), 0);
        let guessed: Vec<_> = (200..240).map(|n| host_of(&lab.forward(data(family, n, HTTP, b"")))).collect();
        assert!(guessed.contains(&0));
    });
}

#[test]
fn nothing_goes_to_an_inactive_endpoint() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let hosts: Vec<_> = (0..30).map(|n| host_of(&lab.forward(syn(family, n, HTTP)))).collect();
        direct(&mut lab, family, 0, Directive::Inactive);
        for (n, host) in (0..).zip(&hosts) {
            let seen = lab.exchange(0, [data(family, n, HTTP, b"")]);
            assert_eq!(seen.iter().map(host_of).collect::<Vec<_>>(), if *host == 0 { vec![] } else { vec![*host] });
        }
        let lost = hosts.iter().filter(|host| **host == 0).count() as u64;
        assert!(lost > 0);
        assert_eq!(lab.dropped(DropReason::Inactive), lost);
        for n in 100..160 {
            assert_ne!(host_of(&lab.forward(syn(family, n, HTTP))), 0);
            assert_ne!(host_of(&lab.forward(data(family, n + 100, HTTP, b""))), 0);
        }
        // What the inventory knows of it is no use either: gone is gone, and a SYN goes elsewhere.
        lab.pass(u64::from(TIMEOUTS[0]) + 500);
        let there = hosts.iter().position(|host| *host == 0).unwrap() as u16;
        lab.exchange(0, [rst(family, there, HTTP)]);
        assert_ne!(host_of(&lab.forward(syn(family, there, HTTP))), 0);
        // It comes back.
        direct(&mut lab, family, 0, Directive::Active);
        assert!((300..330).any(|n| host_of(&lab.forward(syn(family, n, HTTP))) == 0));
    });
}

#[test]
fn a_session_at_an_inactive_endpoint_is_not_plumbed_again() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let host = host_of(&lab.forward(syn(family, 1, HTTP)));
        lab.forward(data(family, 1, HTTP, b""));
        // Out of time, and not swept: the classifier is asked.
        lab.now.0 += u64::from(TIMEOUTS[1]) + 1;
        direct(&mut lab, family, host, Directive::Inactive);
        assert!(lab.exchange(0, [data(family, 1, HTTP, b"")]).is_empty());
        assert_eq!((lab.dropped(DropReason::Inactive), lab.decisions("inventory")), (1, 0));
        assert_ne!(host_of(&lab.forward(syn(family, 1, HTTP))), host);
    });
}

#[test]
fn backups_stand_in_for_the_others() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        lab.change(|parts| parts.endpoints[endpoint(family, 0, 2).index()].backup = true);
        assert!((0..20).all(|n| host_of(&lab.forward(syn(family, n, HTTP))) != 2));
        assert_eq!(lab.decisions("backup"), 0);
        direct(&mut lab, family, 0, Directive::Draining);
        direct(&mut lab, family, 1, Directive::Draining);
        assert!((20..40).all(|n| host_of(&lab.forward(syn(family, n, HTTP))) == 2));
        assert_eq!(lab.decisions("backup"), 20);
        direct(&mut lab, family, 0, Directive::Active);
        assert!((40..60).all(|n| host_of(&lab.forward(syn(family, n, HTTP))) == 0));
    });
}

/// A unit where nobody can serve a family's services.
fn deserted(mode: Mode, no_endpoint: NoEndpoint) -> Lab {
    let mut lab = Lab::plain(mode);
    lab.change(|parts| {
        parts.services.iter_mut().for_each(|service| service.no_endpoint = no_endpoint);
        parts.endpoints.iter_mut().for_each(|endpoint| endpoint.directive = Directive::Inactive);
    });
    lab
}

#[test]
fn without_an_endpoint_there_is_silence_if_that_is_wanted() {
    everywhere(|mode, family| {
        let mut lab = deserted(mode, NoEndpoint::Drop);
        let ask = frames::datagram(MACS[0], family.client(2), family.vip(DNS), b"?");
        assert!(lab.exchange(0, [syn(family, 1, HTTP), ask]).is_empty());
        assert_eq!((lab.dropped(DropReason::NoEndpoint), lab.decisions("no_endpoint")), (2, 2));
        assert!(lab.routes().is_empty());
        // A connection that nobody knows dies in the forwarder for a while.
        assert!(lab.exchange(0, (0..3).map(|_| data(family, 3, HTTP, b""))).is_empty());
        assert_eq!(lab.state(family.client(3), family.vip(HTTP)), Some(State::Refused));
        let questions = lab.decisions("questions");
        assert!(lab.exchange(0, [data(family, 3, HTTP, b"")]).is_empty());
        assert_eq!(lab.decisions("questions"), questions);
        lab.pass(u64::from(TIMEOUTS[4]) + 6_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
    });
}

#[test]
fn without_an_endpoint_clients_are_told_if_that_is_wanted() {
    everywhere(|mode, family| {
        let mut lab = deserted(mode, NoEndpoint::Reset);
        let seen = lab.forward(syn(family, 1, HTTP));
        assert_eq!((seen.port, seen.mac), (0, [2, 0, 0, 0, 9, 9]), "to the station that sent it");
        assert_eq!((seen.source, seen.destination), (family.vip(HTTP), family.client(1)));
        // RFC 9293 3.10.7.1: the SYN had sequence number 1000 and no ACK.
        assert_eq!(seen.flags, Some(Flags::RST | Flags::ACK));
        assert_eq!((seen.sequence, seen.acknowledgement), (0, 1001));
        let ask = frames::datagram(MACS[0], family.client(2), family.vip(DNS), b"?");
        lab.arrive(0, 0, &ask);
        lab.run();
        lab.check();
        let [(0, 0, answer)] = &lab.wire.raw()[..] else { panic!("one answer is due") };
        let parts = Dissection::of(answer).unwrap();
        assert_eq!(parts.addresses.reversed(), Dissection::of(&ask).unwrap().addresses);
        let upper = &answer[parts.upper..parts.end];
        match family {
            Family::V4 => {
                assert_eq!(parts.protocol, Protocol::ICMP);
                let error = icmpv4::Packet::new_checked(upper).unwrap();
                error.verify_checksum().unwrap();
                assert_eq!((error.kind(), error.code()), (3, 3));
            }
            Family::V6 => {
                assert_eq!(parts.protocol, Protocol::ICMPV6);
                let error = icmpv6::Packet::new_checked(upper).unwrap();
                error.verify_checksum(parts.addresses).unwrap();
                assert_eq!((error.kind(), error.code()), (1, 4));
            }
        }
        assert_eq!((lab.count("refused"), lab.count("sent"), lab.drops().len()), (2, 2, 0));
        // A connection that nobody knows learns of it as well: RFC 9293 3.10.7.1, the reset takes its acknowledgement number.
        let seen = lab.forward(data(family, 3, HTTP, b"?"));
        assert_eq!((seen.flags, seen.sequence), (Some(Flags::RST), 2000));
        // A reset is never answered.
        assert!(lab.exchange(0, [rst(family, 4, HTTP)]).is_empty());
        assert_eq!(lab.dropped(DropReason::NoEndpoint), 1);
        assert_ne!(GATEWAY, [2, 0, 0, 0, 9, 9]);
        assert!(lab.routes().is_empty());
    });
}

#[test]
fn a_service_may_have_all_ports() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        lab.change(|parts| {
            // The range of each family becomes everything that the others leave.
            for service in [2, 5] {
                parts.services[service].ports = std::iter::once(1..=u16::MAX).collect();
            }
        });
        for (client, port) in [(1, 1), (2, 81), (3, u16::MAX)] {
            let seen = lab.forward(syn(family, client, port));
            assert_eq!(seen.destination.port(), port);
        }
        let seen = lab.forward(syn(family, 4, HTTP));
        assert_eq!(seen.destination.port() == HTTP, mode == Mode::Dsr);
        assert!(lab.exchange(0, [frames::datagram(MACS[0], family.client(5), family.vip(81), b"")]).is_empty());
    });
}
