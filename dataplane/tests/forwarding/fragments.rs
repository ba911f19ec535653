//! Fragments through a unit: they follow their flow whatever their order and queue, and nothing of a flood or an overlap gets by.

use proptest::prelude::*;
use weir_dataplane::counters::DropReason;
use weir_dataplane::fragments::{Limits, TIMEOUT_V6};
use weir_dataplane::route_table::Mode;
use weir_dataplane::wire::tcp::Flags;

use crate::frames::{self, Seen, fragments, reassembled};
use crate::lab::{DNS, Family, HTTP, Lab, MACS, Setup, everywhere, syn};

/// A client's question of so many bytes, in fragments.
fn question(family: Family, client: u16, id: u32, size: usize) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (0..size).map(|at| (at as u32 + id) as u8).collect();
    fragments(&frames::datagram(MACS[0], family.client(client), family.vip(DNS), &payload), id, 1200)
}

/// What has left, put together; all of it is one datagram.
#[track_caller]
fn arrived(lab: &Lab) -> Seen {
    let raw = lab.wire.raw();
    let frames: Vec<_> = raw.iter().map(|(.., frame)| frame.clone()).collect();
    let mut macs: Vec<_> = frames.iter().map(|frame| frame[..6].to_vec()).collect();
    macs.dedup();
    assert_eq!(macs.len(), 1, "all go to one station: {:?}, {} to the kernel", lab.drops(), lab.count("twin"));
    Seen::of(raw[0].0, raw[0].1, &reassembled(&frames))
}

fn several_shards(mode: Mode) -> Lab {
    Lab::new(Setup { classifiers: 2, ..Setup::new(mode) }.sharded(4))
}

#[test]
fn in_any_order_by_any_queue_a_datagram_arrives_whole() {
    everywhere(|mode, family| {
        let mut lab = several_shards(mode);
        for (round, order) in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]].into_iter().enumerate() {
            for client in 0..12 {
                let id = u32::from(client) * 10 + round as u32;
                let parts = question(family, client, id, 4000);
                assert_eq!(parts.len(), 4);
                for (queue, at) in order.into_iter().enumerate() {
                    lab.arrive(queue, 0, &parts[at]);
                    if round % 2 == 1 {
                        lab.run(); // one by one: the table has to wait
                    }
                }
                lab.run();
                lab.check();
                let there = arrived(&lab);
                assert_eq!(there.source == family.client(client), mode != Mode::FullNat);
                assert_eq!(there.payload.len(), 4000);
                assert_eq!(there.payload[1], (id + 1) as u8);
                // The host's answer is as long.
                if mode != Mode::Dsr {
                    let answer = frames::datagram(MACS[1], there.destination, there.source, &there.payload);
                    for (queue, at) in order.into_iter().enumerate() {
                        lab.arrive(queue, 1, &fragments(&answer, 7000 + id, 1200)[at]);
                    }
                    lab.run();
                    lab.check();
                    let here = arrived(&lab);
                    assert_eq!((here.source, here.destination), (family.vip(DNS), family.client(client)));
                    assert_eq!(here.payload, there.payload);
                }
            }
        }
        // Each client was decided about once, by its first datagram.
        assert_eq!(lab.desk.answers.asked(), 12);
        assert_eq!(lab.held(), 0);
        let datagrams = if mode == Mode::Dsr { 48 } else { 96 };
        assert_eq!((lab.count("datagrams_completed"), lab.count("fragments")), (datagrams, 4 * datagrams));
        assert!(lab.count("fragments_held") > 0);
    });
}

#[test]
fn they_wait_for_a_decision_with_their_flow() {
    everywhere(|mode, family| {
        let mut lab = several_shards(mode);
        lab.desk.answers.later(true);
        for at in [1, 0, 3, 2] {
            lab.arrive(at, 0, &question(family, 1, 1, 4000)[at]);
            lab.run();
        }
        assert_eq!((lab.held(), lab.wire.raw().len()), (4, 0));
        lab.desk.answers.release(9);
        lab.run();
        lab.check();
        assert_eq!(arrived(&lab).payload.len(), 4000);
    });
}

#[test]
fn fragments_of_a_connection_go_where_it_is() {
    everywhere(|mode, family| {
        let mut lab = several_shards(mode);
        let there = lab.forward(syn(family, 3, HTTP));
        let segment = frames::segment(MACS[0], family.client(3), family.vip(HTTP), Flags::ACK | Flags::PSH, &[5; 2000]);
        for part in fragments(&segment, 9, 800) {
            lab.arrive(1, 0, &part);
        }
        lab.run();
        lab.check();
        let seen = arrived(&lab);
        assert_eq!((seen.mac, seen.destination, seen.payload.len()), (there.mac, there.destination, 2000));
        // A SYN has no reason to come in pieces, and a header that does is an attack.
        for part in
            fragments(&frames::segment(MACS[0], family.client(4), family.vip(HTTP), Flags::SYN, &[5; 40]), 1, 24)
        {
            lab.arrive(0, 0, &part);
        }
        for part in fragments(&segment, 10, 8) {
            lab.arrive(0, 0, &part);
        }
        lab.run();
        lab.check();
        assert!(lab.wire.raw().is_empty());
        assert!(lab.dropped(DropReason::BadFragment) >= 3, "{:?}", lab.drops());
    });
}

#[test]
fn what_overlaps_dies_and_what_never_comes_is_not_waited_for() {
    everywhere(|mode, family| {
        let mut lab = several_shards(mode);
        // The same bytes twice with other bounds: the datagram is dead, whichever comes first.
        let whole = frames::datagram(MACS[0], family.client(1), family.vip(DNS), &[1; 3000]);
        let (coarse, fine) = (fragments(&whole, 5, 1200), fragments(&whole, 5, 800));
        for part in [&coarse[1], &fine[1], &coarse[0], &coarse[2]] {
            lab.arrive(0, 0, part);
        }
        lab.run();
        lab.check();
        assert_eq!((lab.held(), lab.wire.raw().len()), (0, 0));
        assert_eq!((lab.dropped(DropReason::BadFragment), lab.count("datagrams_killed")), (4, 1));
        // A duplicate does no harm.
        for part in [&coarse[1], &coarse[1], &coarse[0], &coarse[2]] {
            let mut part = part.clone();
            let id = if family == Family::V4 { 18 } else { 58 };
            part[id] ^= 1;
            if family == Family::V4 {
                part[24..26].fill(0);
                let check = weir_dataplane::wire::checksum::checksum(&part[14..34]);
                part[24..26].copy_from_slice(&check.to_be_bytes());
            }
            lab.arrive(0, 0, &part);
        }
        lab.run();
        assert_eq!(arrived(&lab).payload.len(), 3000);
        assert_eq!(lab.dropped(DropReason::BadFragment), 5);
        // Without its first one a datagram has its time, and no more.
        lab.arrive(0, 0, &question(family, 2, 6, 4000)[2]);
        lab.run();
        assert_eq!(lab.held(), 1);
        lab.now.0 += TIMEOUT_V6.as_millis() as u64;
        lab.run();
        lab.check();
        // The dead one is forgotten then, too.
        assert_eq!((lab.held(), lab.dropped(DropReason::Fragment), lab.count("datagrams_timed_out")), (0, 1, 2));
    });
}

#[test]
fn a_flood_is_bounded_and_does_not_lock_others_out() {
    everywhere(|mode, family| {
        let mut setup = Setup::new(mode);
        setup.fragments = Limits { datagrams: 40, held: 10 };
        let mut lab = Lab::new(setup);
        for id in 0..500 {
            lab.arrive(0, 0, &question(family, 7, id, 4000)[1 + id as usize % 3]);
            if id % 16 == 0 {
                lab.run();
                lab.check();
            }
        }
        lab.run();
        lab.check();
        assert_eq!(lab.held(), 10);
        assert_eq!(lab.dropped(DropReason::FragmentTable), 490);
        // Who sends in order is not held up by it.
        for part in question(family, 8, 1, 4000) {
            lab.arrive(0, 0, &part);
        }
        lab.run();
        lab.check();
        assert_eq!(arrived(&lab).payload.len(), 4000);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Datagrams of several clients, their fragments mixed, lost and doubled: each complete one arrives once and whole, and every
    /// packet is accounted for.
    #[test]
    fn complete_datagrams_arrive_once(
        nat: bool, v6: bool,
        sent in prop::collection::vec((0u16..4, 0u32..6, 0usize..4, 0usize..3), 1..120),
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut lab = Lab::new(Setup { shards: 3, ..Setup::new(if nat { Mode::Nat } else { Mode::Dsr }) });
        let mut parts = std::collections::BTreeMap::<(u16, u32), [bool; 4]>::new();
        let (mut complete, mut frames) = (0, Vec::new());
        for (client, id, at, queue) in sent {
            lab.arrive(queue, 0, &question(family, client, id, 4000)[at]);
            parts.entry((client, id)).or_default()[at] = true;
            // A datagram that is complete is forgotten: what comes of it afterwards begins another.
            let done = parts[&(client, id)] == [true; 4];
            if done {
                parts.remove(&(client, id));
                complete += 1;
            }
            lab.run();
            lab.check();
            frames.extend(lab.wire.raw());
            prop_assert_eq!(lab.count("datagrams_completed"), complete);
        }
        lab.run();
        lab.check();
        frames.extend(lab.wire.raw());
        // What has a first fragment goes on; each place of a datagram once.
        let going = parts.values().filter(|at| at[0]).flatten().filter(|at| **at).count();
        prop_assert_eq!(frames.len() as u64, complete * 4 + going as u64);
        lab.now.0 += TIMEOUT_V6.as_millis() as u64;
        lab.run();
        lab.check();
        prop_assert_eq!(lab.held(), 0);
        prop_assert_eq!(lab.count("datagrams_killed"), 0);
    }
}
