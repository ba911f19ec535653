//! Full rings and slow ports: what finds no room is dropped and counted by its reason, what found some keeps its order.

use std::sync::atomic::Ordering;

use weir_dataplane::counters::DropReason;

use weir_dataplane::farm::NoEndpoint;
use weir_dataplane::wire::{Protocol, icmpv4, icmpv6};
use weir_health_load::Directive;

use crate::frames;
use crate::lab::{DNS, Family, HTTP, Lab, MACS, Setup, data, everywhere, syn};

#[test]
fn a_full_ring_to_the_classifier_drops_what_comes_last_and_first_what_comes_again() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { divert_ring: 4, ..Setup::new(mode) });
        (0..3).for_each(|n| lab.arrive(0, 0, &syn(family, n, HTTP)));
        (20..24).for_each(|n| lab.arrive(0, 0, &syn(family, n, HTTP)));
        // In the middle of a connection whose route is lost.
        (3..5).for_each(|n| lab.arrive(0, 0, &data(family, n, HTTP, b"more")));
        lab.arrive(0, 0, &syn(family, 25, HTTP));
        // The classifier stands still.
        lab.shards[0].turn(lab.now);
        let dropped = [DropReason::DivertShed, DropReason::DivertRing].map(|reason| lab.dropped(reason));
        assert_eq!((lab.count("diverted"), dropped, lab.held()), (4, [5, 1], 4));
        lab.check();
        let seen = lab.exchange(0, []);
        assert_eq!(
            seen.iter().map(|seen| lab.sender(seen)).collect::<Vec<_>>(),
            (0..4).map(|n| family.client(n)).collect::<Vec<_>>()
        );
        assert_eq!(lab.held(), 0);
    });
}

#[test]
fn a_shard_that_is_behind_takes_up_fewer_packets_without_a_route() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { divert_ring: 4096, ..Setup::new(mode) });
        (0..16).for_each(|n| drop(lab.forward(syn(family, n, HTTP))));
        lab.wire.behind.store(256, Ordering::Relaxed);
        // Of each four packets two are of connections that have routes, one begins one, and one is of a connection nobody knows.
        for n in 0..1024 {
            lab.arrive(0, 0, &data(family, n % 16, HTTP, b"some"));
            lab.arrive(0, 0, &data(family, n % 16, HTTP, b"more"));
            lab.arrive(0, 0, &syn(family, 2000 + n, HTTP));
            lab.arrive(0, 0, &data(family, 4000 + n, HTTP, b"lost"));
        }
        let turns: Vec<_> = (0..16)
            .map(|_| {
                let before = (lab.count("diverted"), lab.dropped(DropReason::DivertShed));
                lab.shards[0].turn(lab.now);
                (lab.count("diverted") - before.0, lab.dropped(DropReason::DivertShed) - before.1)
            })
            .collect();
        // 256 packets a turn: 64 that begin a connection and 64 others.
        let expected = [128, 96, 80, 72, 68, 66, 65, 33, 17, 9, 5, 3, 2, 2, 2, 2].map(|taken| (taken, 128 - taken));
        assert_eq!(turns, expected);
        assert_eq!(lab.wire.seen().len(), 2048);
        lab.check();
    });
}

#[test]
fn a_shard_whose_port_cannot_tell_is_behind_when_it_has_been_busy_for_long() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { divert_ring: 8192, ..Setup::new(mode) });
        lab.wire.behind.store(0, Ordering::Relaxed);
        (0..256 * 20).for_each(|n| lab.arrive(0, 0, &syn(family, n, HTTP)));
        let shed: Vec<_> = (0..20)
            .map(|_| {
                lab.shards[0].turn(lab.now);
                lab.dropped(DropReason::DivertShed)
            })
            .collect();
        // 17 turns that have all they may, and the next one takes up half of it.
        let expected: Vec<_> = [0; 17].into_iter().chain([128, 128 + 192, 128 + 192 + 224]).collect();
        assert_eq!(shed, expected);
        lab.run();
        lab.check();
    });
}

#[test]
fn a_full_ring_to_the_owner_drops_what_comes_last() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { handover_ring: 4, ..Setup::new(mode).sharded(2) });
        let strangers = strangers(&mut lab, family);
        strangers[..10].iter().for_each(|n| lab.arrive(0, 0, &data(family, *n, HTTP, b"")));
        lab.shards[0].turn(lab.now);
        assert_eq!((lab.dropped(DropReason::HandoverRing), lab.held()), (6, 4));
        lab.check();
        let seen = lab.exchange(0, []);
        let clients: Vec<_> = strangers[..4].iter().map(|n| family.client(*n)).collect();
        assert_eq!(seen.iter().map(|seen| lab.sender(seen)).collect::<Vec<_>>(), clients);
    });
}

/// Clients whose flows shard 1 owns; each has a route.
fn strangers(lab: &mut Lab, family: Family) -> Vec<u16> {
    for n in 0..40 {
        lab.forward(syn(family, n, HTTP));
    }
    let routes = lab.routes();
    let owner = |n: &u16| routes.iter().any(|(shard, key, ..)| *shard == 1 && key.source() == family.client(*n));
    (0..40).filter(owner).collect()
}

/// An echo request to the VIP.
fn ping(family: Family, sequence: u16) -> Vec<u8> {
    let addresses = frames::addresses(family.client(1).ip(), family.vip(0).ip());
    let mut upper = vec![0; 12];
    let protocol = if family == Family::V4 {
        icmpv4::Repr::EchoRequest { identifier: 1, sequence }.emit(&mut upper, b"ping").unwrap();
        Protocol::ICMP
    } else {
        icmpv6::Repr::EchoRequest { identifier: 1, sequence }.emit(&mut upper, b"ping", addresses).unwrap();
        Protocol::ICMPV6
    };
    frames::frame(MACS[0], addresses, protocol, &upper)
}

#[test]
fn what_a_unit_says_by_itself_has_a_rate() {
    everywhere(|mode, family| {
        let mut setup = Setup::new(mode);
        setup.parts.services.iter_mut().for_each(|service| service.no_endpoint = NoEndpoint::Reset);
        setup.parts.endpoints.iter_mut().for_each(|endpoint| endpoint.directive = Directive::Inactive);
        let mut lab = Lab::new(Setup { divert_ring: 4096, ..setup });
        (0..1200).for_each(|n| lab.arrive(0, 0, &ping(family, n)));
        lab.run();
        lab.check();
        assert_eq!((lab.count("responded"), lab.dropped(DropReason::IcmpRate)), (1000, 200));
        lab.now.0 += 100;
        (0..200).for_each(|n| lab.arrive(0, 0, &ping(family, n)));
        lab.run();
        assert_eq!((lab.count("responded"), lab.dropped(DropReason::IcmpRate)), (1100, 300));
        // The same of "port unreachable", which has a rate of its own; resets are for connections.
        for n in 0..1200 {
            lab.arrive(0, 0, &frames::datagram(MACS[0], family.client(n), family.vip(DNS), b"question"));
            lab.arrive(0, 0, &syn(family, n, HTTP));
        }
        lab.run();
        lab.check();
        assert_eq!((lab.count("refused"), lab.dropped(DropReason::NoEndpoint)), (2200, 200));
    });
}

#[test]
fn the_rate_of_echoes_comes_before_their_checksums() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        let corrupt = |n| {
            let mut frame = ping(family, n);
            *frame.last_mut().unwrap() ^= 1;
            frame
        };
        // What is no request takes nothing of the budget; what says that it is one does, since telling costs as much as an answer.
        let reply = {
            let mut frame = ping(family, 0);
            let upper = frame.len() - 12;
            frame[upper] = if family == Family::V4 { 0 } else { 129 };
            frame
        };
        (0..50).for_each(|_| lab.arrive(0, 0, &reply));
        (0..400).for_each(|n| lab.arrive(0, 0, &corrupt(n)));
        (0..600).for_each(|n| lab.arrive(0, 0, &ping(family, n)));
        lab.run();
        assert_eq!((lab.count("responded"), lab.dropped(DropReason::Icmp)), (600, 450));
        // With the budget used up, a wrong checksum is not even looked for.
        (0..20).for_each(|n| lab.arrive(0, 0, &corrupt(n)));
        lab.run();
        lab.check();
        assert_eq!((lab.dropped(DropReason::Icmp), lab.dropped(DropReason::IcmpRate)), (450, 20));
    });
}

#[test]
fn a_slow_port_takes_a_prefix() {
    everywhere(|mode, family| {
        let mut lab = Lab::plain(mode);
        lab.forward(syn(family, 1, HTTP));
        lab.wire.accepts.store(3, Ordering::Relaxed);
        // Two tries a burst, three packets each.
        let seen = lab.exchange(0, (0..20).map(|n| data(family, 1, HTTP, &[n])));
        assert_eq!(seen.iter().map(|seen| seen.payload[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        assert_eq!((lab.dropped(DropReason::TxFull), lab.held()), (14, 0));
        lab.wire.accepts.store(0, Ordering::Relaxed);
        assert!(lab.exchange(0, (0..40).map(|n| data(family, 1, HTTP, &[n]))).is_empty());
        assert_eq!((lab.dropped(DropReason::TxFull), lab.held()), (54, 0));
        lab.wire.accepts.store(usize::MAX, Ordering::Relaxed);
        let seen = lab.exchange(0, (0..100).map(|n| data(family, 1, HTTP, &[n])));
        assert_eq!(seen.iter().map(|seen| seen.payload[0]).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    });
}

#[test]
fn answers_that_find_their_ring_full_wait_in_order() {
    everywhere(|mode, family| {
        // The rings in both directions are short; twelve packets gather in three flows.
        let mut lab = Lab::new(Setup { divert_ring: 4, ..Setup::new(mode) });
        lab.desk.answers.later(true);
        for round in 0..4u8 {
            let frames =
                (0..3).map(|n| if round == 0 { syn(family, n, HTTP) } else { data(family, n, HTTP, &[round]) });
            assert!(lab.exchange(0, frames).is_empty());
        }
        assert_eq!(lab.held(), 12);
        lab.desk.answers.release(3);
        // The shard stands still: the ring takes four, and no question is taken as long as answers wait.
        lab.seats[0].turn(lab.now);
        (10..13).for_each(|n| lab.arrive(0, 0, &syn(family, n, HTTP)));
        lab.seats[0].turn(lab.now);
        let seen = lab.exchange(0, []);
        let of_flow = |n| {
            seen.iter()
                .filter(|seen| lab.sender(seen) == family.client(n))
                .map(|seen| seen.payload.first().copied().unwrap_or(0))
                .collect::<Vec<_>>()
        };
        for n in 0..3 {
            assert_eq!(of_flow(n), [0, 1, 2, 3]);
        }
        assert_eq!((seen.len(), lab.held(), lab.drops().len()), (12, 3, 0));
        lab.desk.answers.release(3);
        assert_eq!(lab.exchange(0, []).len(), 3);
    });
}

#[test]
fn a_classifier_that_hears_nothing_holds_its_own_answers_up_and_loses_none() {
    everywhere(|mode, family| {
        // A small table, and a ring for a single notice: each new route evicts one, each eviction has to be told.
        let mut lab = Lab::new(Setup { routes: 8, notice_ring: 1, ..Setup::new(mode) });
        for burst in 0..8 {
            for n in 0..60 {
                lab.arrive(0, 0, &syn(family, burst * 60 + n, HTTP));
            }
            lab.run();
            lab.check();
            assert_eq!(lab.wire.seen().len(), 60);
        }
        assert_eq!((lab.desk.answers.asked(), lab.decisions("inventory"), lab.drops().len()), (480, 480, 0));
        lab.pass(60_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
    });
}
