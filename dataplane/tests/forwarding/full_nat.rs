//! Full-nat: both ends are translated by a pool's port, which the connection has to itself, for as long as its dead time.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use weir_dataplane::counters::DropReason;
use weir_dataplane::farm::Farm;
use weir_dataplane::flow::toeplitz::Toeplitz;
use weir_dataplane::flow::{FlowHash, Key, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{self, Fate, Forwarder};
use weir_dataplane::packet::{Burst, HeapPacket, Packet};
use weir_dataplane::parse::parse;
use weir_dataplane::plumbing::Plumb;
use weir_dataplane::route_table::{Action, Mode, Route, State};
use weir_dataplane::translation::PoolPorts;
use weir_dataplane::wire::tcp::Flags;
use weir_dataplane::wire::{Dissection, Protocol, icmpv4, icmpv6};
use weir_sessions::{Binding, SessionKey};

use crate::frames::{self, Seen};
use crate::lab::{DNS, Family, GATEWAY, HTTP, Lab, MACS, RANGE, Setup, TIMEOUTS, data, fin, host_of, key, rst, syn};
use crate::nat::{answer, back, connect};

/// Runs a test with clients and hosts of each family: the clients', and the hosts'.
fn families(test: impl Fn(Family, Family)) {
    for family in [Family::V4, Family::V6] {
        test(family, family);
        test(family, family.other());
    }
}

/// A unit between these families.
fn setup(family: Family, hosts: Family) -> Setup {
    let setup = Setup::new(Mode::FullNat);
    if hosts == family { setup } else { setup.across() }
}

/// One whose pools have an address with these ports.
fn with_ports(family: Family, hosts: Family, first: u16, last: u16) -> Lab {
    let mut setup = setup(family, hosts);
    for pool in &mut setup.parts.pools {
        let hash = Toeplitz::new(&ToeplitzKey::one_bucket());
        *pool = PoolPorts::of_any_size(pool.addresses()[..1].to_vec(), first..=last, &hash).unwrap();
    }
    setup.key = ToeplitzKey::one_bucket();
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
    let back = |(.., action, _): &&(usize, Key, Action, State)| {
        matches!(action, Action::Send { mode: Mode::FullNatReturn, .. })
    };
    let dead = lab.shards.iter().map(|shard| shard.forwarder().dead_ports().len()).sum();
    (lab.routes().iter().filter(back).count(), dead)
}

#[test]
fn both_ends_are_translated_in_both_directions() {
    families(|family, hosts| {
        let mut lab = Lab::new(setup(family, hosts));
        let (client, vip) = (family.client(1), family.vip(HTTP));
        let there = lab.forward(syn(family, 1, HTTP));
        let host = host_of(&there);
        let service_port = lab.parts.endpoints[crate::lab::endpoint(family, 0, host).index()].port.unwrap();
        assert_eq!((there.port, there.hop_limit), (1, 63));
        assert!(hosts.pool().contains(&there.source.ip()) && (20_000..=60_000).contains(&there.source.port()));
        assert_eq!(there.destination, SocketAddr::new(hosts.host(host as u16 + 1), service_port));
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
    let hash = Toeplitz::new(&key());
    families(|family, hosts| {
        // Clients come in by shard 0's queue, hosts by shard 1's: wrong for most flows.
        let mut lab = Lab::new(Setup { classifiers: 2, ..setup(family, hosts).sharded(4) });
        let mut shards = BTreeMap::new();
        for n in 0..40 {
            let there = lab.forward(syn(family, n, HTTP));
            let client = family.client(n);
            let bucket = hash.bucket(client.ip(), client.port());
            assert_eq!(bucket, hash.bucket(there.source.ip(), there.source.port()), "whatever the number of shards");
            assert_eq!(bucket % 4, there.shard);
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
    families(|family, hosts| {
        let mut lab = with_ports(family, hosts, 30_000, 30_000);
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
    families(|family, hosts| {
        let mut lab = with_ports(family, hosts, 30_000, 30_000);
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
    families(|family, hosts| {
        let mut lab = with_ports(family, hosts, 30_000, 30_001);
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
        assert_eq!(lab.dropped(DropReason::NoRoute), 1);
        assert_eq!(back(&mut lab, answer(&second, Flags::SYN | Flags::ACK, b"")).destination, family.client(1));
        lab.forward(data(family, 1, HTTP, b""));
        lab.pass(u64::from(TIMEOUTS[2]) + 12_000);
        assert_eq!(ways_back(&lab), (1, 0));
        assert_eq!(lab.forward(syn(family, 2, HTTP)).source, first.source);
    });
}

#[test]
fn the_pair_lives_and_dies_together() {
    families(|family, hosts| {
        let mut lab = Lab::new(setup(family, hosts));
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
    families(|family, hosts| {
        for end in [Flags::FIN | Flags::ACK, Flags::RST] {
            let mut lab = Lab::new(setup(family, hosts));
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
    families(|family, hosts| {
        let mut lab = Lab::new(Setup { routes: 8, ..setup(family, hosts) });
        let opened = connect(&mut lab, family, 1);
        for n in 2..=10 {
            // Nothing gives way to a SYN that was not silent for as long as this.
            lab.now.0 += u64::from(TIMEOUTS[0]) + 1;
            connect(&mut lab, family, n);
        }
        assert!(lab.routes().len() <= 16 && lab.count("routes_evicted") > 0);
        let pairs: Vec<_> = (1..=10).map(|n| lab.forward(data(family, n, HTTP, b""))).collect();
        assert_eq!((pairs[0].source, pairs[0].destination), (opened.source, opened.destination));
        assert_eq!(pairs.iter().map(|pair| (pair.source, pair.destination)).collect::<HashSet<_>>().len(), 10);
        assert_eq!(lab.decisions("guessed"), 0);
    });
}

#[test]
fn many_connections_have_few_addresses() {
    // Two addresses and 500 ports towards each of three hosts: 3000 connections, and each is told from all others.
    let family = Family::V4;
    let mut setup = Setup { routes: 16_384, sessions: 16_384, ..Setup::new(Mode::FullNat) };
    for pool in &mut setup.parts.pools {
        let hash = Toeplitz::new(&ToeplitzKey::one_bucket());
        *pool = PoolPorts::of_any_size(pool.addresses().to_vec(), 20_000..=20_499, &hash).unwrap();
    }
    setup.key = ToeplitzKey::one_bucket();
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
    families(|family, hosts| {
        let farm = Farm::new(with_ports(family, hosts, 30_000, 30_000).parts);
        let settings = forwarder::Settings {
            shard: 0,
            owners: Owners::new(&ToeplitzKey::one_bucket(), 1),
            routes_ipv4: 8,
            routes_ipv6: 8,
            hash: FlowHash::new(1),
        };
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
        assert_eq!(forwarder.routes4().len() + forwarder.routes6().len(), 0);
        let left = |forwarder: &Forwarder| forwarder.dead_ports().len();
        assert_eq!((left(&forwarder), forwarder.counters.routes_deleted), (1, 1));
        assert_eq!(install(&mut forwarder, 2, 20).1, Fate::Drop(DropReason::PoolExhausted));
        forwarder.expire(10_000, &farm, 10 + TIMEOUTS[2], |_| true);
        assert_eq!(left(&forwarder), 1);
        forwarder.expire(10_000, &farm, 11 + TIMEOUTS[2], |notice| panic!("of no session: {notice:?}"));
        assert_eq!(left(&forwarder), 0);
        assert_eq!(install(&mut forwarder, 2, 11 + TIMEOUTS[2]).1, Fate::Send(1));
    });
}

#[test]
fn a_half_open_connection_leaves_its_port_dead() {
    families(|family, hosts| {
        let farm = Farm::new(with_ports(family, hosts, 30_000, 30_000).parts);
        let mut forwarder = small_forwarder(8);
        let install = |forwarder: &mut Forwarder, client, now| opens(forwarder, &farm, family, client, 0, now);
        assert_eq!(install(&mut forwarder, 1, 0), Fate::Send(1));
        forwarder.expire(10_000, &farm, TIMEOUTS[0] + 1, |_| true);
        assert_eq!((forwarder.routes4().len() + forwarder.routes6().len(), forwarder.dead_ports().len()), (0, 1));
        // Counted from its last packet, not from its end.
        assert_eq!(install(&mut forwarder, 2, TIMEOUTS[2]), Fate::Drop(DropReason::PoolExhausted));
        assert_eq!(install(&mut forwarder, 2, TIMEOUTS[2] + 1), Fate::Send(1));
        // What has been silent for longer than that leaves no dead port.
        forwarder.expire(10_000, &farm, 100_000, |_| true);
        assert_eq!((forwarder.counters.routes_expired, forwarder.dead_ports().len()), (2, 0));
    });
}

/// A forwarder of one shard with so many routes.
fn small_forwarder(routes: usize) -> Forwarder {
    let hash = FlowHash::new(1);
    let settings = forwarder::Settings {
        shard: 0,
        owners: Owners::new(&ToeplitzKey::one_bucket(), 1),
        routes_ipv4: routes,
        routes_ipv6: routes,
        hash,
    };
    Forwarder::new(&settings).unwrap()
}

/// A client's SYN comes back from the classifier with a route to a host.
fn opens(forwarder: &mut Forwarder, farm: &Farm, family: Family, client: u16, host: usize, now: u32) -> Fate {
    let mut packet = HeapPacket::new(&syn(family, client, HTTP));
    let parsed = parse(packet.data(), MACS[0]).unwrap();
    let action = Action::Send { endpoint: crate::lab::endpoint(family, 0, host), mode: Mode::FullNat, value: 0 };
    let fate = forwarder.install(&mut packet, &parsed, Route { action, state: State::Opening }, true, farm, now);
    forwarder.tell_notices(|_| true);
    fate
}

#[test]
fn an_established_connection_is_forwarded_by_bursts() {
    families(|family, hosts| {
        let farm = Farm::new(setup(family, hosts).parts);
        let mut forwarder = small_forwarder(8);
        assert_eq!(opens(&mut forwarder, &farm, family, 1, 0, 0), Fate::Send(1));
        // The first request goes one by one, and makes it established.
        let one_by_one = |forwarder: &mut Forwarder, port: usize, frame: &[u8]| {
            let mut packet = HeapPacket::new(frame);
            let parsed = parse(frame, MACS[port]).unwrap();
            assert_eq!(forwarder.forward_one(&mut packet, &parsed, &farm, 1), Fate::Send(1 - port as u16));
            packet.data().to_vec()
        };
        let in_bursts = |forwarder: &mut Forwarder, port: usize, frame: &[u8]| {
            let mut burst: Burst<_> = [HeapPacket::new(frame), HeapPacket::new(frame)].into_iter().collect();
            let departures = forwarder.forward(&mut burst, port as u16, &farm, 2);
            assert_eq!(departures[..2], [1 - port as u16; 2]);
            assert_eq!(burst[0], burst[1]);
            burst[0].data().to_vec()
        };
        let request = data(family, 1, HTTP, b"request");
        let there = one_by_one(&mut forwarder, 0, &request);
        assert_eq!(in_bursts(&mut forwarder, 0, &request), there);
        let reply = answer(&Seen::of(0, 1, &there), Flags::ACK, b"reply");
        let here = one_by_one(&mut forwarder, 1, &reply);
        assert_eq!(in_bursts(&mut forwarder, 1, &reply), here);
        assert_eq!(Seen::of(0, 0, &here).destination, family.client(1));
    });
}

#[test]
fn an_evicted_connection_leaves_its_port_dead_for_all_others() {
    families(|family, hosts| {
        let farm = Farm::new(with_ports(family, hosts, 30_000, 30_000).parts);
        let mut forwarder = small_forwarder(2);
        let install = |forwarder: &mut Forwarder, client, host, now| opens(forwarder, &farm, family, client, host, now);
        // The table has room for one connection in a family, for two across.
        let evicting: u16 = if family == hosts { 2 } else { 3 };
        for client in 1..=evicting {
            assert_eq!(install(&mut forwarder, client, usize::from(client - 1), 0), Fate::Send(1));
        }
        assert_eq!((forwarder.counters.routes_evicted, forwarder.dead_ports().len()), (1, 1));
        // Whoever went comes back by its port; others do not get it, though no route has it.
        let lost = (1..=evicting).find(|client| {
            let key = parse(&syn(family, *client, HTTP), MACS[0]).unwrap().key;
            match key {
                Key::V4(key) => forwarder.routes4().find(&key).is_none(),
                Key::V6(key) => forwarder.routes6().find(&key).is_none(),
            }
        });
        let host = usize::from(lost.unwrap() - 1);
        assert_eq!(install(&mut forwarder, 9, host, TIMEOUTS[2]), Fate::Drop(DropReason::PoolExhausted));
        assert_eq!(install(&mut forwarder, lost.unwrap(), host, TIMEOUTS[2]), Fate::Send(1));
        forwarder.plumb(&Plumb::Delete(parse(&syn(family, lost.unwrap(), HTTP), MACS[0]).unwrap().key), &farm, 5_000);
        assert_eq!(install(&mut forwarder, 9, host, 5_000 + TIMEOUTS[2]), Fate::Drop(DropReason::PoolExhausted));
        assert_eq!(install(&mut forwarder, 9, host, 5_001 + TIMEOUTS[2]), Fate::Send(1));
    });
}

#[test]
fn a_binding_says_all_and_brings_a_connection_back_by_its_port() {
    families(|family, hosts| {
        let mut lab = Lab::new(setup(family, hosts));
        let opened = connect(&mut lab, family, 1);
        let key = Key::new(family.client(1), family.vip(HTTP), 6).unwrap();
        let now = lab.now;
        let binding = lab.seats[0].classifier().binding(&key, now).unwrap();
        assert_eq!(binding.pool, Some((opened.source.ip(), opened.source.port())));
        assert_eq!((binding.endpoint.address, binding.mode), (opened.destination.ip(), Mode::FullNat as u8));
        // Another unit, to which the session table gives another port than the one that its hash would name.
        let mut other = Lab::new(setup(family, hosts));
        let pool = binding.pool.map(|(address, port)| (address, port ^ 1));
        let service = other.parts.services[crate::lab::service_of(family)].id;
        let session = SessionKey::connection(service, 6, key.source(), key.destination());
        other.memory.learn(session, Binding { pool, ..binding });
        let seen = other.forward(data(family, 1, HTTP, b"moved"));
        assert_eq!((seen.source.ip(), seen.source.port()), pool.unwrap());
        assert_eq!((seen.destination, other.decisions("recalled")), (opened.destination, 1));
        let now = other.now;
        assert_eq!(other.seats[0].classifier().binding(&key, now).unwrap().pool, pool);
        // One that is not this pool's is no binding: the forwarder chooses.
        let session = SessionKey::connection(service, 6, family.client(2), key.destination());
        other.memory.learn(session, Binding { pool: pool.map(|(address, _)| (address, 9)), ..binding });
        let seen = other.forward(data(family, 2, HTTP, b"moved"));
        assert!((20_000..=60_000).contains(&seen.source.port()));
    });
}

/// Frames that a frame makes the unit send.
pub(crate) fn sends(lab: &mut Lab, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
    lab.arrive(0, port, frame);
    lab.run();
    lab.wire.raw().into_iter().map(|(_, port, frame)| (port, frame)).collect()
}

/// The MTU that an ICMP error to somebody tells.
pub(crate) fn told(frame: &[u8], to: IpAddr) -> u32 {
    let parts = Dissection::of(frame).unwrap();
    assert_eq!(parts.addresses.destination(), to);
    let message = parts.payload(frame);
    if parts.protocol == Protocol::ICMP {
        let error = icmpv4::Packet::new_checked(message).unwrap();
        assert_eq!(
            (error.kind(), error.code()),
            (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::FRAGMENTATION_NEEDED)
        );
        error.verify_checksum().unwrap();
        error.mtu().into()
    } else {
        let error = icmpv6::Packet::new_checked(message).unwrap();
        assert_eq!(error.kind(), icmpv6::kind::PACKET_TOO_BIG);
        error.verify_checksum(parts.addresses).unwrap();
        error.mtu()
    }
}

#[test]
fn what_becomes_too_long_is_told_to_its_sender() {
    families(|family, hosts| {
        let mut lab = Lab::new(setup(family, hosts));
        let opened = connect(&mut lab, family, 1);
        // What fits on a link of 1500 bytes, less the TCP header and its own.
        let most = |from: Family, to: Family| match (from, to) {
            (Family::V4, Family::V4) => 1460,
            (Family::V6, Family::V4) => 1460, // told as 1520, which its own link does not carry
            _ => 1440,
        };
        let there = most(family, hosts);
        assert_eq!(lab.forward(data(family, 1, HTTP, &vec![7; there])).payload.len(), there);
        let here = most(hosts, family);
        assert_eq!(back(&mut lab, answer(&opened, Flags::ACK, &vec![7; here])).payload.len(), here);
        let sent = sends(&mut lab, 0, &data(family, 1, HTTP, &vec![7; there + 1]));
        let header = if family == Family::V4 { 40 } else { 60 };
        assert_eq!((sent.len(), sent[0].0), (1, 0));
        assert_eq!(told(&sent[0].1, family.client(1).ip()) as usize, there + header);
        let sent = sends(&mut lab, 1, &answer(&opened, Flags::ACK, &vec![7; here + 1]));
        let header = if hosts == Family::V4 { 40 } else { 60 };
        assert_eq!((sent.len(), sent[0].0), (1, 1));
        assert_eq!(told(&sent[0].1, opened.destination.ip()) as usize, here + header);
        assert_eq!(lab.dropped(DropReason::TooBig), 2);
    });
}

/// "Too big" (of 1400 bytes) about a frame, from a router.
pub(crate) fn too_big(about: &[u8], to: [u8; 6]) -> Vec<u8> {
    let parts = Dissection::of(about).unwrap();
    let packet = &about[parts.ip..parts.end];
    let router: IpAddr =
        if parts.addresses.source().is_ipv4() { "203.0.113.9" } else { "2001:db8:ffff::9" }.parse().unwrap();
    let addresses = frames::addresses(router, parts.addresses.source());
    let mut upper = vec![0; 8 + packet.len()];
    if router.is_ipv4() {
        let repr = icmpv4::Repr::Unreachable { code: icmpv4::unreachable::FRAGMENTATION_NEEDED, mtu: 1400 };
        repr.emit(&mut upper, packet).unwrap();
        frames::frame(to, addresses, Protocol::ICMP, &upper)
    } else {
        icmpv6::Repr::PacketTooBig { mtu: 1400 }.emit(&mut upper, packet, addresses).unwrap();
        frames::frame(to, addresses, Protocol::ICMPV6, &upper)
    }
}

#[test]
fn errors_go_back_in_the_words_of_their_receiver() {
    families(|family, hosts| {
        for shards in [1, 3] {
            let mut lab = Lab::new(setup(family, hosts).sharded(shards));
            let shift = |from: Family, to: Family| match (from, to) {
                (Family::V4, Family::V6) => 1420,
                (Family::V6, Family::V4) => 1380,
                _ => 1400,
            };
            for n in 1..6 {
                let request = data(family, n, HTTP, b"request");
                let there = connect(&mut lab, family, n);
                let at_host = sends(&mut lab, 0, &request).pop().unwrap().1;
                // From a router between unit and host, about what the client has sent.
                let (port, error) = sends(&mut lab, 1, &too_big(&at_host, MACS[1])).pop().unwrap();
                assert_eq!((port, told(&error, family.client(n).ip())), (0, shift(hosts, family)));
                assert_eq!(quoted(&error), (family.client(n), family.vip(HTTP)));
                // From a router between unit and client, about what the host has answered.
                let reply = answer(&there, Flags::ACK, b"reply");
                let at_client = sends(&mut lab, 1, &reply).pop().unwrap().1;
                let (port, error) = sends(&mut lab, 0, &too_big(&at_client, MACS[0])).pop().unwrap();
                assert_eq!((port, told(&error, there.destination.ip())), (1, shift(family, hosts)));
                assert_eq!(quoted(&error), (there.destination, there.source));
            }
        }
    });
}

/// Both ends of the packet that an error quotes, whose checksums must be right as far as they can be seen.
fn quoted(error: &[u8]) -> (SocketAddr, SocketAddr) {
    let parts = Dissection::of(error).unwrap();
    let packet = &parts.payload(error)[8..];
    let ethertype = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    let frame = [&error[..12], &ethertype, packet].concat();
    let seen = Seen::of(0, 0, &frame);
    (seen.source, seen.destination)
}

#[test]
fn a_pool_on_the_link_is_answered_for() {
    let lab = Lab::plain(Mode::FullNat);
    let farm = lab.farms.load();
    for family in [Family::V4, Family::V6] {
        for address in family.pool() {
            assert!(farm.answers_for(1, address) && !farm.answers_for(0, address) && farm.stands_for(address));
        }
        assert!(!farm.answers_for(1, family.host(1)) && !farm.stands_for(family.host(1)));
    }
}
