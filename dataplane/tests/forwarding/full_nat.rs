//! Full-nat: both ends are translated by a pool's port, which the connection has to itself, for as long as its dead time.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use weir_dataplane::counters::DropReason;
use weir_dataplane::farm::Farm;
use weir_dataplane::flow::FlowHash;
use weir_dataplane::forwarder::{self, Fate, Forwarder};
use weir_dataplane::packet::{HeapPacket, Packet};
use weir_dataplane::parse::parse;
use weir_dataplane::plumbing::Plumb;
use weir_dataplane::route_table::{Action, Mode, Route, State};
use weir_dataplane::translation::PoolPorts;
use weir_dataplane::wire::tcp::Flags;

use crate::frames::{self, Seen};
use crate::lab::{DNS, Family, GATEWAY, HTTP, Lab, MACS, RANGE, Setup, TIMEOUTS, data, fin, host_of, rst, syn};
use crate::nat::{answer, back, connect, families};

/// What the pool's shard 0 has in all.
fn with_ports(first: u16, last: u16) -> Lab {
    let mut setup = Setup::new(Mode::FullNat);
    for pool in &mut setup.parts.pools {
        *pool = PoolPorts::new(pool.addresses()[..1].to_vec(), first..=last, 1).unwrap();
    }
    Lab::new(setup)
}

/// From now on new connections go to one host.
fn one_host(lab: &mut Lab, family: Family) {
    lab.change(|parts| {
        for id in [1, 2].map(|host| crate::lab::endpoint(family, 0, host)) {
            parts.endpoints[id.index()].directive = weir_health_load::Directive::Draining;
        }
    });
}

/// Routes to clients, and ports that are kept for their dead time.
fn ways_back(lab: &Lab) -> (usize, usize) {
    let of = |wanted: fn(&Action) -> bool| lab.routes().iter().filter(|(_, _, action, _)| wanted(action)).count();
    (
        of(|action| matches!(action, Action::Send { mode: Mode::FullNatReturn, .. })),
        of(|action| matches!(action, Action::Drop)),
    )
}

#[test]
fn both_ends_are_translated_in_both_directions() {
    families(|family| {
        let mut lab = Lab::plain(Mode::FullNat);
        let (client, vip) = (family.client(1), family.vip(HTTP));
        let there = lab.forward(syn(family, 1, HTTP));
        let host = host_of(&there);
        let service_port = lab.parts.endpoints[crate::lab::endpoint(family, 0, host).index()].port.unwrap();
        assert_eq!((there.port, there.hop_limit), (1, 63));
        assert!(family.pool().contains(&there.source.ip()) && (20_000..=60_000).contains(&there.source.port()));
        assert_eq!(there.destination, SocketAddr::new(family.host(host as u16 + 1), service_port));
        let here = back(&mut lab, answer(&there, Flags::SYN | Flags::ACK, b"hello"));
        assert_eq!((here.port, here.source, here.destination, here.mac), (0, vip, client, GATEWAY));
        assert_eq!(here.payload, b"hello");
        assert_eq!(lab.state(client, vip), Some(State::Opening));
        let more = lab.forward(data(family, 1, HTTP, b"request"));
        assert_eq!(
            (more.source, more.destination, more.payload.as_slice()),
            (there.source, there.destination, b"request" as _)
        );
        assert_eq!(lab.state(client, vip), Some(State::Established));
        // The same by ports that are kept, and without connections.
        let (low, high) = RANGE;
        for port in [low, low + 7, high] {
            let there = lab.forward(syn(family, port, port));
            assert_eq!(there.destination.port(), port);
            assert_eq!(back(&mut lab, answer(&there, Flags::SYN | Flags::ACK, b"")).source, family.vip(port));
        }
        let there = lab.forward(frames::datagram(MACS[0], client, family.vip(DNS), b"odd"));
        let here = back(&mut lab, answer(&there, Flags::NONE, b"even"));
        assert_eq!((here.source, here.destination, here.payload), (family.vip(DNS), client, b"even".to_vec()));
        assert_eq!(lab.count("twin"), 0);
    });
}

#[test]
fn replies_come_to_the_shard_that_their_port_says() {
    families(|family| {
        // Clients come in by shard 0's queue, hosts by shard 1's: wrong for most flows.
        let mut lab = Lab::new(Setup { classifiers: 2, ..Setup::new(Mode::FullNat).sharded(4) });
        let mut shards = BTreeMap::new();
        for n in 0..40 {
            let there = lab.forward(syn(family, n, HTTP));
            assert_eq!(usize::from(there.source.port() - 20_000) % 4, there.shard);
            lab.arrive(1, 1, &answer(&there, Flags::SYN | Flags::ACK, b""));
            lab.run();
            lab.check();
            let here = lab.wire.seen();
            assert_eq!((here.len(), here[0].source, here[0].destination), (1, family.vip(HTTP), family.client(n)));
            assert_eq!(here[0].shard, there.shard);
            *shards.entry(there.shard).or_insert(0) += 1;
        }
        assert_eq!((shards.len(), lab.routes().len(), lab.count("twin")), (4, 80, 0), "{shards:?}");
    });
}

#[test]
fn a_port_serves_one_connection_for_each_endpoint() {
    families(|family| {
        let mut lab = with_ports(30_000, 30_000);
        // An endpoint whose one port is taken has none for the next; whoever comes again may get another endpoint.
        let mut opened: Vec<(u16, Seen)> = Vec::new();
        for n in 1..=30 {
            opened.extend(lab.exchange(0, [syn(family, n, HTTP)]).pop().map(|seen| (n, seen)));
        }
        assert_eq!(opened.iter().map(|(_, seen)| host_of(seen)).collect::<HashSet<_>>().len(), 3);
        assert_eq!(opened.iter().map(|(_, seen)| seen.source).collect::<HashSet<_>>().len(), 1);
        // Nothing is left of the others, and nobody suffers from them.
        assert_eq!((opened.len(), lab.dropped(DropReason::PoolExhausted)), (3, 27));
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (6, 3));
        for (n, seen) in &opened {
            assert_eq!(back(&mut lab, answer(seen, Flags::SYN | Flags::ACK, b"")).destination, family.client(*n));
            assert_eq!(lab.forward(data(family, *n, HTTP, b"")).source, seen.source);
        }
        // Other services of the same hosts are other endpoints.
        lab.forward(syn(family, 4, RANGE.1));
        lab.forward(frames::datagram(MACS[0], family.client(4), family.vip(DNS), b""));
    });
}

#[test]
fn a_service_may_reset_what_finds_no_port() {
    families(|family| {
        let mut lab = with_ports(30_000, 30_000);
        lab.change(|parts| {
            parts.services.iter_mut().for_each(|service| service.no_endpoint = weir_dataplane::farm::NoEndpoint::Reset);
        });
        one_host(&mut lab, family);
        assert_eq!(lab.forward(syn(family, 1, HTTP)).source.port(), 30_000);
        let seen = lab.forward(syn(family, 2, HTTP));
        assert_eq!((seen.port, seen.source, seen.destination), (0, family.vip(HTTP), family.client(2)));
        assert!(seen.flags.unwrap().contains(Flags::RST));
        assert_eq!((lab.count("refused"), lab.dropped(DropReason::PoolExhausted)), (1, 0));
    });
}

#[test]
fn a_port_is_used_again_only_after_its_dead_time() {
    families(|family| {
        let mut lab = with_ports(30_000, 30_001);
        one_host(&mut lab, family);
        let first = connect(&mut lab, family, 1);
        back(&mut lab, answer(&first, Flags::FIN | Flags::ACK, b""));
        lab.forward(fin(family, 1, HTTP));
        // The same client's next connection has the other port; the first one's is not free.
        let second = lab.forward(syn(family, 1, HTTP));
        assert_ne!(first.source, second.source);
        assert_eq!((lab.decisions("reopened"), ways_back(&lab)), (1, (1, 1)));
        assert!(lab.exchange(0, [syn(family, 2, HTTP)]).is_empty());
        assert_eq!(lab.dropped(DropReason::PoolExhausted), 1);
        // What the host still says in the first one reaches nobody; in the second one it does.
        assert!(lab.exchange(1, [answer(&first, Flags::FIN | Flags::ACK, b"")]).is_empty());
        assert_eq!(lab.dropped(DropReason::Refused), 1);
        assert_eq!(back(&mut lab, answer(&second, Flags::SYN | Flags::ACK, b"")).destination, family.client(1));
        lab.forward(data(family, 1, HTTP, b""));
        lab.pass(u64::from(TIMEOUTS[2]) + 6_000);
        assert_eq!(ways_back(&lab), (1, 0));
        assert_eq!(lab.forward(syn(family, 2, HTTP)).source, first.source);
    });
}

#[test]
fn the_pair_lives_and_dies_together() {
    families(|family| {
        let mut lab = Lab::plain(Mode::FullNat);
        let opened = connect(&mut lab, family, 1);
        assert_eq!(lab.routes().len(), 2);
        // Traffic of one side alone keeps both.
        for _ in 0..4 {
            lab.pass(u64::from(TIMEOUTS[1]) / 2);
            back(&mut lab, answer(&opened, Flags::ACK, b"more"));
        }
        for _ in 0..4 {
            lab.pass(u64::from(TIMEOUTS[1]) / 2);
            lab.forward(data(family, 1, HTTP, b"more"));
        }
        assert_eq!(back(&mut lab, answer(&opened, Flags::ACK, b"")).source, family.vip(HTTP));
        assert_eq!((lab.routes().len(), lab.decisions("inventory"), lab.desk.answers.asked()), (2, 1, 1));
        for _ in 0..(TIMEOUTS[1] + 20_000) / 500 {
            lab.pass(500);
            assert_ne!(lab.routes().len(), 1, "one direction went alone");
        }
        assert_eq!((lab.routes().len(), lab.decisions("inventory"), lab.count("routes_expired")), (0, 0, 1));
        // Its host's late words find nothing.
        assert!(lab.exchange(1, [answer(&opened, Flags::ACK, b"")]).is_empty());
        assert_eq!((lab.dropped(DropReason::NoRoute), lab.count("twin")), (1, 0));
    });
}

#[test]
fn either_side_may_close() {
    families(|family| {
        for end in [Flags::FIN | Flags::ACK, Flags::RST] {
            let mut lab = Lab::plain(Mode::FullNat);
            let opened = connect(&mut lab, family, 1);
            back(&mut lab, answer(&opened, end, b""));
            assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Closing));
            lab.forward(data(family, 1, HTTP, b"upload"));
            lab.pass(u64::from(TIMEOUTS[2]) + 6_000);
            assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
            connect(&mut lab, family, 1);
            lab.forward(rst(family, 1, HTTP));
            lab.pass(u64::from(TIMEOUTS[2]) + 6_000);
            assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
        }
    });
}

#[test]
fn an_evicted_connection_comes_back_by_the_same_port() {
    families(|family| {
        let mut lab = Lab::new(Setup { routes: 8, ..Setup::new(Mode::FullNat) });
        let opened = connect(&mut lab, family, 1);
        (2..=5).for_each(|n| drop(connect(&mut lab, family, n)));
        assert!(lab.routes().len() <= 8 && lab.count("routes_evicted") > 0);
        let sources: Vec<_> = (1..=5).map(|n| lab.forward(data(family, n, HTTP, b"")).source).collect();
        assert_eq!(sources[0], opened.source);
        assert_eq!(sources.iter().collect::<HashSet<_>>().len(), 5);
        assert_eq!(lab.decisions("guessed"), 0);
    });
}

#[test]
fn many_connections_have_few_addresses() {
    // Two addresses and 500 ports towards each of three hosts: 3000 connections, and each is told from all others.
    let family = Family::V4;
    let mut setup = Setup { routes: 16_384, sessions: 16_384, ..Setup::new(Mode::FullNat) };
    for pool in &mut setup.parts.pools {
        *pool = PoolPorts::new(pool.addresses().to_vec(), 20_000..=20_499, 1).unwrap();
    }
    let mut lab = Lab::new(setup);
    let mut pairs = HashSet::new();
    for n in 0..2_400 {
        let there = lab.forward(syn(family, n, HTTP));
        assert!(pairs.insert((there.source, there.destination)), "{} twice", there.source);
        assert_eq!(back(&mut lab, answer(&there, Flags::SYN | Flags::ACK, b"")).destination, family.client(n));
    }
    assert_eq!(lab.dropped(DropReason::PoolExhausted), 0, "at 80 % of the ports");
}

#[test]
fn a_deleted_route_keeps_its_port_for_the_dead_time() {
    families(|family| {
        let farm = Farm::new(with_ports(30_000, 30_000).parts);
        let settings =
            forwarder::Settings { shard: 0, shards: 1, routes_ipv4: 8, routes_ipv6: 8, hash: FlowHash::new(1) };
        let mut forwarder = Forwarder::new(&settings).unwrap();
        let action = Action::Send { endpoint: crate::lab::endpoint(family, 0, 0), mode: Mode::FullNat, value: 0 };
        let install = |forwarder: &mut Forwarder, client, now| {
            let mut packet = HeapPacket::new(&syn(family, client, HTTP));
            let parsed = parse(packet.data(), MACS[0]).unwrap();
            let route = Route { action, state: State::Opening };
            (parsed.key, forwarder.install(&mut packet, &parsed, route, true, &farm, now))
        };
        let (key, fate) = install(&mut forwarder, 1, 0);
        assert_eq!(fate, Fate::Send(1));
        forwarder.plumb(&Plumb::Delete(key), &farm, 10);
        let left = |forwarder: &Forwarder| forwarder.routes4().len() + forwarder.routes6().len();
        assert_eq!((left(&forwarder), forwarder.counters.routes_deleted), (1, 1));
        assert_eq!(install(&mut forwarder, 2, 20).1, Fate::Drop(DropReason::PoolExhausted));
        forwarder.expire(1_000, &farm, 10 + TIMEOUTS[2], |_| true);
        assert_eq!(left(&forwarder), 1);
        forwarder.expire(1_000, &farm, 11 + TIMEOUTS[2], |notice| panic!("of no session: {notice:?}"));
        assert_eq!(left(&forwarder), 0);
        assert_eq!(install(&mut forwarder, 2, 11 + TIMEOUTS[2]).1, Fate::Send(1));
    });
}
