//! Kernel twins: what the unit's place in the network depends on reaches its kernel through any flood, and the flood is bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use weir_dataplane::counters::DropReason;
use weir_dataplane::farm::Port;
use weir_dataplane::route_table::Mode;
use weir_dataplane::shard::TwinRates;
use weir_dataplane::twin_class::TwinPeers;
use weir_dataplane::wire::tcp::Flags;
use weir_identity::Moment;

use crate::frames;
use crate::lab::{Family, HTTP, Lab, MACS, Setup, data, syn};
use crate::nat::families;

/// A unit whose clients' gateway is a peer.
fn setup(shards: usize, rates: TwinRates) -> Setup {
    let mut setup = Setup { twins: true, twin_rates: rates, ..Setup::new(Mode::Dsr) }.sharded(shards);
    let peers = [Family::V4, Family::V6].map(|family| peer(family, 0).ip());
    let peers = peers.into_iter().fold(TwinPeers::new(vec![7300]), |peers, address| peers.with(address, 128));
    setup.parts.twin_peers = Arc::new(peers);
    setup
}

fn peer(family: Family, port: u16) -> SocketAddr {
    let address: &str = if family == Family::V4 { "10.0.0.254" } else { "fd00::fe" };
    SocketAddr::new(address.parse().unwrap(), port)
}

/// The unit's own address at the clients' side.
fn own(family: Family, port: u16) -> SocketAddr {
    let address: &str = if family == Family::V4 { "10.0.0.1" } else { "fd00::1" };
    SocketAddr::new(address.parse().unwrap(), port)
}

fn from_link(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [8, 0] {
        frame[22] = 255;
        frames::set_header_checksum(&mut frame);
    } else {
        frame[21] = 255;
    }
    frame
}

/// BFD, BGP and a heartbeat, as if from `source`.
fn urgent(family: Family, source: SocketAddr) -> [Vec<u8>; 4] {
    let from = |port| SocketAddr::new(source.ip(), port);
    [
        from_link(frames::datagram(MACS[0], from(50_000), own(family, 3784), b"bfd")),
        frames::segment(MACS[0], from(50_000), own(family, 179), Flags::ACK, b"bgp"),
        frames::segment(MACS[0], from(179), own(family, 50_000), Flags::ACK, b"bgp"),
        frames::datagram(MACS[0], from(7300), own(family, 7300), b"quic"),
    ]
}

fn arp() -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 9, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 9, 9]].concat();
    frame.extend([10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    frame
}

fn stranger(family: Family, n: u16) -> Vec<u8> {
    frames::datagram(MACS[0], family.client(n), own(family, 9), &n.to_be_bytes())
}

fn is_from(family: Family, source: SocketAddr, frame: &[u8]) -> bool {
    match (family, source.ip()) {
        (Family::V4, std::net::IpAddr::V4(address)) => frame[26..30] == address.octets(),
        (Family::V6, std::net::IpAddr::V6(address)) => frame[22..38] == address.octets(),
        _ => false,
    }
}

#[test]
fn a_flood_to_the_units_own_address_takes_nothing_from_its_peers() {
    families(|family| {
        for shards in [1, 3] {
            let mut lab = Lab::new(setup(shards, TwinRates { rest: 1000, control: 1000 }));
            let vip = lab.forward(syn(family, 1, HTTP));
            let (mut due, mut strangers, mut neighbours, mut sent) = (0, 0, 0, 0);
            let (mut peers_seen, mut arps_seen, mut others_seen) = (0, 0, 0);
            for _ in 0..100 {
                lab.now = Moment(lab.now.0 + 10);
                for shard in 0..shards {
                    // By everybody's port numbers, from addresses that nobody has configured.
                    for n in 0..40 {
                        lab.arrive(shard, 0, &stranger(family, n));
                        urgent(family, family.client(n)).iter().for_each(|frame| lab.arrive(shard, 0, frame));
                        strangers += 5;
                    }
                }
                for frame in urgent(family, peer(family, 0)) {
                    lab.arrive(sent % shards, 0, &frame);
                    (sent, due) = (sent + 1, due + 1);
                }
                lab.arrive(sent % shards, 0, &arp());
                neighbours += 1;
                lab.arrive(0, 0, &data(family, 1, HTTP, b"on"));
                lab.run();
                lab.check();
                let seen = lab.wire.seen();
                assert_eq!((seen.len(), seen[0].mac), (1, vip.mac));
                for (port, frame) in lab.wire.at_twins() {
                    assert_eq!(port, 0);
                    let peer = is_from(family, peer(family, 0), &frame);
                    peers_seen += usize::from(peer);
                    arps_seen += usize::from(frame[12..14] == [8, 6]);
                    others_seen += u64::from(!peer && frame[12..14] != [8, 6]);
                }
            }
            assert_eq!((peers_seen, arps_seen), (due, neighbours));
            // A second's budget over all shards, and what may come at once.
            assert!((1000..=1032).contains(&others_seen), "{others_seen}");
            assert_eq!(lab.dropped(DropReason::TwinRate), strangers - others_seen);
            assert_eq!(lab.drops().len(), 1, "{:?}", lab.drops());
        }
    });
}

#[test]
fn a_storm_on_the_link_takes_nothing_from_peers_and_is_bounded() {
    let mut lab = Lab::new(setup(2, TwinRates { rest: 1000, control: 1000 }));
    let (mut arps, mut peers) = (0, 0);
    for _ in 0..100 {
        lab.now = Moment(lab.now.0 + 10);
        (0..200).for_each(|n| lab.arrive(n % 2, 0, &arp()));
        urgent(Family::V4, peer(Family::V4, 0)).iter().for_each(|frame| lab.arrive(0, 0, frame));
        lab.run();
        lab.check();
        for (_, frame) in lab.wire.at_twins() {
            *(if frame[12..14] == [8, 6] { &mut arps } else { &mut peers }) += 1;
        }
    }
    assert_eq!(peers, 400);
    assert!((1000..=1032).contains(&arps), "{arps}");
    assert_eq!(lab.dropped(DropReason::TwinControlRate), 20_000 - arps);
}

#[test]
fn a_turn_sends_one_burst_and_what_is_urgent_first() {
    let mut lab = Lab::new(setup(1, TwinRates::default()));
    (0..40).for_each(|n| lab.arrive(0, 0, &stranger(Family::V4, n)));
    urgent(Family::V4, peer(Family::V4, 0)).iter().for_each(|frame| lab.arrive(0, 0, frame));
    lab.arrive(0, 0, &arp());
    lab.shards[0].turn(lab.now);
    lab.check();
    let first = lab.wire.at_twins();
    assert_eq!((first.len(), lab.held()), (32, 13));
    assert!(first[..4].iter().all(|(_, frame)| is_from(Family::V4, peer(Family::V4, 0), frame)));
    assert_eq!(first[4].1, arp());
    // What a twin does not take is what is least urgent of the burst.
    urgent(Family::V4, peer(Family::V4, 0)).iter().for_each(|frame| lab.arrive(0, 0, frame));
    lab.wire.accepts.store(4, Ordering::Relaxed);
    lab.shards[0].turn(lab.now);
    lab.check();
    let second = lab.wire.at_twins();
    assert!(second.iter().all(|(_, frame)| is_from(Family::V4, peer(Family::V4, 0), frame)));
    assert_eq!((second.len(), lab.dropped(DropReason::TwinFull), lab.held()), (4, 13, 0));
}

#[test]
fn a_full_queue_of_one_class_leaves_the_others_theirs() {
    let mut lab = Lab::new(setup(2, TwinRates { rest: u32::MAX, control: 1000 }));
    // Shard 1 receives alone: the one that has the twin does not come to take anything.
    for n in 0..30 {
        (0..10).for_each(|_| lab.arrive(1, 0, &stranger(Family::V6, n)));
        lab.shards[1].turn(lab.now);
        lab.now = Moment(lab.now.0 + 1);
    }
    assert_eq!((lab.held(), lab.dropped(DropReason::TwinRing)), (256, 44));
    urgent(Family::V6, peer(Family::V6, 0)).iter().for_each(|frame| lab.arrive(1, 0, frame));
    lab.shards[1].turn(lab.now);
    assert_eq!((lab.held(), lab.dropped(DropReason::TwinRing)), (260, 44));
    lab.run();
    lab.check();
    let twins = lab.wire.at_twins();
    assert!(twins[..4].iter().all(|(_, frame)| is_from(Family::V6, peer(Family::V6, 0), frame)));
    assert_eq!(twins.len(), 260);
}

#[test]
fn a_shard_that_is_behind_gives_up_what_is_not_urgent() {
    let mut lab = Lab::new(setup(1, TwinRates { rest: u32::MAX, ..TwinRates::default() }));
    lab.wire.behind.store(1, Ordering::Relaxed);
    // Each turn takes eight bursts, and more waits behind them: each sixteenth packet is a peer's.
    let frames = urgent(Family::V4, peer(Family::V4, 0));
    let mut peers = 0;
    for n in 0..2560_u16 {
        if n % 16 == 0 {
            lab.arrive(0, 0, &frames[usize::from(n / 16 % 4)]);
            peers += 1;
        } else {
            lab.arrive(0, 0, &stranger(Family::V4, n % 40));
        }
    }
    for _ in 0..20 {
        lab.now = Moment(lab.now.0 + 1);
        lab.shards[0].turn(lab.now);
    }
    lab.run();
    lab.check();
    let twins = lab.wire.at_twins();
    let seen = twins.iter().filter(|(_, frame)| is_from(Family::V4, peer(Family::V4, 0), frame)).count();
    assert_eq!(seen, peers);
    // The first turn takes all, the second half of it.
    let (shed, ring) = (lab.dropped(DropReason::TwinShed), lab.dropped(DropReason::TwinRing));
    assert!(shed > 1000 && ring > 0, "{:?}", lab.drops());
    assert_eq!(shed + ring + twins.len() as u64, 2560);
}

#[test]
fn the_kernel_waits_while_packets_of_flows_do() {
    let mut lab = Lab::new(setup(1, TwinRates::default()));
    lab.forward(syn(Family::V4, 1, HTTP));
    let said = frames::segment([2, 0, 0, 0, 0, 254], own(Family::V4, 179), peer(Family::V4, 50_000), Flags::ACK, b"");
    (0..200).for_each(|_| lab.wire.kernel_sends(0, 0, &said));
    lab.wire.behind.store(1, Ordering::Relaxed);
    let mut turns = Vec::new();
    for _ in 0..20 {
        (0..300).for_each(|_| lab.arrive(0, 0, &data(Family::V4, 1, HTTP, b"")));
        let before = lab.wire.from_twins.load(Ordering::Relaxed);
        lab.shards[0].turn(lab.now);
        turns.push(lab.wire.from_twins.load(Ordering::Relaxed) - before);
    }
    // The first turn knows of nothing yet; then one of eight.
    let due: Vec<_> = (0..20).map(|turn| if turn % 8 == 0 { 32 } else { 0 }).collect();
    assert_eq!(turns, due);
    lab.wire.behind.store(usize::MAX, Ordering::Relaxed);
    lab.run();
    lab.check();
    assert_eq!(lab.wire.from_twins.load(Ordering::Relaxed), 200);
}

#[test]
fn a_vlans_packets_count_as_its_ports_and_reach_the_kernel_with_their_tag() {
    families(|family| {
        let mut setup = setup(2, TwinRates { rest: 1000, control: 1000 });
        setup.parts.ports.push(Port { mac: MACS[0], mtu: 1500, vlan: Some((0, 7)) });
        let mut lab = Lab::new(setup);
        let tagged = |mut frame: Vec<u8>| {
            frame.splice(12..12, [0x81, 0, 0, 7]);
            frame
        };
        let frames = urgent(family, peer(family, 0)).map(tagged);
        (0..100).for_each(|n| lab.arrive(1, 0, &tagged(stranger(family, n))));
        (0..100).for_each(|n| lab.arrive(1, 0, &stranger(family, n)));
        frames.iter().for_each(|frame| lab.arrive(1, 0, frame));
        lab.run();
        lab.check();
        let twins = lab.wire.at_twins();
        assert!(twins.iter().all(|(port, _)| *port == 0));
        let peers: Vec<_> = twins.iter().filter(|(_, frame)| frames.contains(frame)).collect();
        assert_eq!((peers.len(), twins.len(), lab.dropped(DropReason::TwinRate)), (4, 36, 168));
    });
}

#[test]
fn where_the_kernel_sees_the_port_itself_nothing_is_dropped() {
    let mut setup = setup(1, TwinRates { rest: 1, control: 1 });
    setup.twins = false;
    let mut lab = Lab::new(setup);
    lab.exchange(0, (0..100).map(|n| stranger(Family::V4, n)));
    assert_eq!((lab.count("twin"), lab.drops().len()), (100, 0));
}
