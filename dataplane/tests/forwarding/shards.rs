//! Several shards: any queue may feed any of them, each packet reaches the flow's owner, and leaves by whoever has the port.

use std::net::SocketAddr;

use hashbrown::HashMap;
use weir_dataplane::counters::DropReason;
use weir_dataplane::route_table::Mode;

use crate::frames::{self, Seen};
use crate::lab::{Family, HTTP, Lab, MACS, Setup, data, everywhere, syn};

/// The number that a payload carries.
fn number(seen: &Seen) -> u32 {
    u32::from_be_bytes(seen.payload.as_slice().try_into().unwrap())
}

/// Checks that each flow's numbers go up one by one from 0; returns how many flows there are.
fn in_order(seen: &[Seen]) -> usize {
    let mut next: HashMap<SocketAddr, u32> = HashMap::new();
    for each in seen {
        let due = next.entry(each.source).or_default();
        assert_eq!(number(each), *due, "{}", each.source);
        *due += 1;
    }
    next.len()
}

fn owners(lab: &Lab, family: Family, clients: u16) -> Vec<usize> {
    let routes = lab.routes();
    let owner = |n| routes.iter().find(|(_, key, ..)| key.source() == family.client(n)).unwrap().0;
    (0..clients).map(owner).collect()
}

#[test]
fn every_packet_reaches_its_owner_from_any_queue() {
    everywhere(|mode, family| {
        const CLIENTS: u16 = 24;
        let mut lab = Lab::new(Setup { classifiers: 3, ..Setup::new(mode).sharded(4) });
        for n in 0..CLIENTS {
            lab.arrive(usize::from(n) % 4, 0, &syn(family, n, HTTP));
        }
        lab.run();
        let seen = lab.wire.seen();
        let hosts: HashMap<_, _> = seen.iter().map(|seen| (lab.sender(seen), seen.mac)).collect();
        assert_eq!(hosts.len(), usize::from(CLIENTS));
        let owners = owners(&lab, family, CLIENTS);
        assert!((0..4).all(|shard| owners.contains(&shard)));
        // The same flow by each of the queues.
        for queue in 0..4 {
            for n in 0..CLIENTS {
                lab.arrive(queue, 0, &data(family, n, HTTP, b""));
            }
            lab.run();
            lab.check();
            let seen = lab.wire.seen();
            assert_eq!(seen.len(), usize::from(CLIENTS));
            for each in &seen {
                assert_eq!(each.mac, hosts[&lab.sender(each)]);
                let client = (0..CLIENTS).find(|n| family.client(*n) == lab.sender(each)).unwrap();
                assert_eq!(each.shard, owners[usize::from(client)]);
            }
        }
        assert_eq!(lab.desk.answers.asked(), usize::from(CLIENTS));
        assert_eq!(lab.decisions("questions"), u64::from(CLIENTS));
    });
}

#[test]
fn a_flow_keeps_its_order_across_shards() {
    everywhere(|mode, family| {
        const CLIENTS: u16 = 16;
        let mut lab = Lab::new(Setup { classifiers: 2, ..Setup::new(mode).sharded(3) });
        for n in 0..CLIENTS {
            lab.arrive(0, 0, &syn(family, n, HTTP));
        }
        lab.run();
        lab.wire.seen();
        for value in 0..20u32 {
            for n in 0..CLIENTS {
                lab.arrive(usize::from(n) % 3, 0, &data(family, n, HTTP, &value.to_be_bytes()));
            }
        }
        lab.run();
        lab.check();
        let seen = lab.wire.seen();
        assert_eq!((seen.len(), in_order(&seen)), (20 * usize::from(CLIENTS), usize::from(CLIENTS)));
        assert!(lab.count("handed_over") > 0);
    });
}

#[test]
fn a_port_whose_queues_are_the_owners_is_looked_up_first() {
    everywhere(|mode, family| {
        const CLIENTS: u16 = 16;
        let mut lab = Lab::new(Setup::new(mode).sharded(2));
        for n in 0..CLIENTS {
            lab.arrive(0, 0, &syn(family, n, HTTP));
        }
        lab.run();
        lab.wire.seen();
        let owners = owners(&lab, family, CLIENTS);
        assert_eq!(owners.iter().copied().collect::<std::collections::BTreeSet<_>>().len(), 2);
        let mut sent = 0;
        // As many packets of each flow as make a shard decide, and more; its order is checked over everything.
        let mut seen = Vec::new();
        let mut rounds = |lab: &mut Lab, queue: &dyn Fn(usize) -> usize| {
            for _ in 0..1200 {
                for n in 0..CLIENTS {
                    let value: u32 = sent;
                    lab.arrive(queue(owners[usize::from(n)]), 0, &data(family, n, HTTP, &value.to_be_bytes()));
                }
                sent += 1;
            }
            lab.run();
            lab.check();
            seen.extend(lab.wire.seen());
        };
        assert!(lab.shards.iter().all(|shard| shard.steers(0)), "nothing is known at first");
        rounds(&mut lab, &|owner| owner);
        assert!(lab.shards.iter().all(|shard| !shard.steers(0)));
        // A NIC that does not do any more what it did: all of it comes by the other queue.
        rounds(&mut lab, &|owner| 1 - owner);
        assert!(lab.shards.iter().all(|shard| shard.steers(0)));
        rounds(&mut lab, &|owner| owner);
        assert!(lab.shards.iter().all(|shard| !shard.steers(0)));
        assert_eq!((seen.len(), in_order(&seen)), (3600 * usize::from(CLIENTS), usize::from(CLIENTS)));
        let shares: Vec<_> = lab
            .shards
            .iter_mut()
            .map(|shard| {
                shard.publish();
                shard.published().share(0)
            })
            .collect();
        let foreign: u64 = shares.iter().map(|share| share.foreign).sum();
        assert!(foreign >= 1200 * u64::from(CLIENTS), "{shares:?}");
        assert!(foreign <= lab.count("handed_over"), "{shares:?}");
    });
}

#[test]
fn who_has_no_queue_of_a_port_sends_by_another_shard() {
    everywhere(|mode, family| {
        // Shard 0 alone has the clients' port, shard 2 alone the hosts'.
        let sender = |_, port| if port == 0 { 0 } else { 2 };
        let mut lab = Lab::new(Setup { sender, ..Setup::new(mode).sharded(3) });
        assert!(lab.has_queue(0, 0) && !lab.has_queue(0, 1));
        for n in 0..20 {
            let there = lab.forward(syn(family, n, HTTP));
            assert_eq!((there.shard, there.port), (2, 1));
            if mode == Mode::Nat {
                let ack = weir_dataplane::wire::tcp::Flags::ACK;
                lab.arrive(2, 1, &frames::segment(MACS[1], there.destination, there.source, ack, b""));
                lab.run();
                lab.check();
                let here = lab.wire.seen();
                assert_eq!((here.len(), here[0].shard, here[0].port), (1, 0, 0));
                assert_eq!((here[0].source, here[0].destination), (family.vip(HTTP), family.client(n)));
            }
        }
        let owners = owners(&lab, family, 20);
        assert!((0..3).all(|shard| owners.contains(&shard)));
    });
}

#[test]
fn a_twin_gets_what_any_shard_receives() {
    everywhere(|mode, family| {
        let mut lab = Lab::new(Setup { twins: true, ..Setup::new(mode).sharded(3) });
        let stranger = SocketAddr::new(family.host(3), 22);
        for shard in 0..3 {
            for (port, mac) in MACS.into_iter().enumerate() {
                let flags = weir_dataplane::wire::tcp::Flags::SYN;
                lab.arrive(shard, port, &frames::segment(mac, family.client(1), stranger, flags, &[shard as u8]));
            }
        }
        lab.run();
        lab.check();
        assert!(lab.wire.seen().is_empty());
        let mut ports: Vec<_> = lab.wire.at_twins().into_iter().map(|(port, _)| port).collect();
        ports.sort_unstable();
        assert_eq!(ports, [0, 0, 0, 1, 1, 1]);
        // And what a kernel sends leaves by its port as it is.
        let frame = frames::segment(MACS[0], stranger, family.client(1), weir_dataplane::wire::tcp::Flags::ACK, b"");
        lab.wire.kernel_sends(0, 1, &frame);
        lab.run();
        lab.check();
        assert_eq!(lab.wire.raw(), [(0, 1, frame)]);
    });
}

#[test]
fn a_full_twin_is_a_drop_and_not_a_delivery() {
    let mut lab = Lab::new(Setup { twins: true, ..Setup::new(Mode::Nat) });
    lab.wire.accepts.store(0, std::sync::atomic::Ordering::Relaxed);
    let stranger = SocketAddr::new(Family::V4.host(3), 22);
    let flags = weir_dataplane::wire::tcp::Flags::SYN;
    lab.exchange(0, [frames::segment(MACS[0], Family::V4.client(1), stranger, flags, b"")]);
    assert_eq!((lab.dropped(DropReason::TwinFull), lab.count("twin")), (1, 0));
}
