//! The quick lane does what the general way does, byte for byte, or leaves a packet as it was.

use std::net::SocketAddr;

use proptest::prelude::*;
use weir_dataplane::farm::{Farm, Neighbour, Prefix, Way};
use weir_dataplane::flow::{FlowHash, Key, Owners, protocol};
use weir_dataplane::forwarder::{Asking, Fate, Forwarder, GENERAL, Settings};
use weir_dataplane::packet::{Burst, HeapPacket, Packet};
use weir_dataplane::parse::parse;
use weir_dataplane::plumbing::Plumb;
use weir_dataplane::rewrite::return_key;
use weir_dataplane::route_table::{Action, Mode, Route, State};
use weir_dataplane::translation::PoolPort;
use weir_dataplane::tunneler::Tunnel;
use weir_dataplane::wire::tcp::Flags;

use crate::frames;
use crate::lab::{DNS, Family, HTTP, Lab, MACS, Setup, endpoint, key};

/// What a client sends.
#[derive(Debug, Clone)]
struct Sent {
    family: Family,
    udp: bool,
    /// UDP over IPv4 without a checksum.
    unsummed: bool,
    class: u8,
    hops: u8,
    payload: usize,
    padding: usize,
    client: u16,
}

impl Sent {
    fn frame(&self) -> Vec<u8> {
        let Self { family, client, .. } = *self;
        self.between(MACS[0], family.client(client), family.vip(if self.udp { DNS } else { HTTP }))
    }

    /// The same from somebody to somebody.
    fn between(&self, mac: [u8; 6], source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
        let payload: Vec<u8> = (0..self.payload).map(|n| (n * 7 + 1) as u8).collect();
        let mut frame = if self.udp {
            frames::datagram(mac, source, destination, &payload)
        } else {
            frames::segment(mac, source, destination, Flags::ACK | Flags::PSH, &payload)
        };
        if family == Family::V4 {
            (frame[15], frame[22]) = (self.class, self.hops);
            frames::set_header_checksum(&mut frame);
            if self.udp && self.unsummed {
                frame[40..42].fill(0);
            }
        } else {
            (frame[14], frame[15], frame[21]) = (0x60 | self.class >> 4, self.class << 4, self.hops);
        }
        // Ethernet has no shorter ones, and the lane none shorter than TCP's headers.
        let shortest = if family == Family::V4 { 60 } else { 74 };
        frame.resize((frame.len() + self.padding).max(shortest), 0xee);
        frame
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let payload = prop_oneof![0_usize..64, 1380_usize..1472];
    let kind = (any::<bool>(), any::<bool>(), any::<bool>());
    (kind, any::<u8>(), any::<u8>(), payload, 0_usize..8, 1_u16..500).prop_map(
        |((six, udp, unsummed), class, hops, payload, padding, client)| Sent {
            family: if six { Family::V6 } else { Family::V4 },
            udp,
            unsummed,
            class,
            hops,
            payload,
            padding,
            client,
        },
    )
}

/// A farm of hosts of the same or the other family, with tunnels to them in the modes that want one.
fn farm(mode: Mode, across: bool) -> Farm {
    let setup = Setup::new(mode);
    let mut parts = if across { setup.across() } else { setup }.parts;
    for endpoint in &mut parts.endpoints {
        let unit = if endpoint.address.is_ipv4() { [10, 1, 0, 1].into() } else { "fd01::1".parse().unwrap() };
        endpoint.tunnel = match mode {
            Mode::Ipip => Tunnel::ipip(unit, endpoint.address),
            Mode::Gue => Tunnel::gue(unit, endpoint.address, 6080),
            _ => None,
        };
    }
    Farm::new(parts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_quick_lane_is_the_general_way(
        sent in sent(),
        (mode, across) in prop_oneof![
            Just((Mode::Dsr, false)),
            Just((Mode::Nat, false)),
            (prop_oneof![Just(Mode::FullNat), Just(Mode::Ipip), Just(Mode::Gue)], any::<bool>()),
        ],
        host in 0_usize..3,
    ) {
        let farm = farm(mode, across);
        let hash = FlowHash::new(3);
        let mut forwarder =
            Forwarder::new(&Settings { shard: 0, owners: Owners::new(&key(), 1), routes_ipv4: 8, routes_ipv6: 8, hash }).unwrap();
        let frame = sent.frame();
        let parsed = parse(&frame, MACS[0]).unwrap();
        let endpoint = endpoint(sent.family, usize::from(sent.udp), host);
        let state = if sent.udp { State::Datagram } else { State::Established };
        let route = Route { action: Action::Send { endpoint, mode, value: 0 }, state };
        forwarder.plumb(&Plumb::Replace(parsed.key, route), &farm, 1);
        forwarder.tell_notices(|_| true);

        let mut burst: Burst<_> = [HeapPacket::new(&frame)].into_iter().collect();
        let departure = forwarder.forward(&mut burst, 0, &farm, 2)[0];
        if departure == GENERAL {
            prop_assert_eq!(burst[0].data(), &frame[..]);
            let plain = sent.hops > 1 && sent.payload < 64;
            prop_assert!(!plain, "left to the general way");
        } else {
            let mut packet = HeapPacket::new(&frame);
            prop_assert_eq!(forwarder.forward_one(&mut packet, &parsed, &farm, 2), Fate::Send(departure));
            prop_assert_eq!(burst[0].data(), packet.data());
            prop_assert_ne!(packet.data(), &frame[..]);
        }
    }
}

/// How a client is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// By the default route.
    Far,
    /// By one of several gateways, the last of which is not known.
    Several,
    /// On a link, known or not.
    OnLink { known: bool },
    /// Not at all.
    Nowhere,
}

/// The farm of [`farm`] with a route to a client.
fn farm_towards(client: SocketAddr, how: Client, mode: Mode, across: bool) -> Farm {
    let setup = Setup::new(mode);
    let mut parts = if across { setup.across() } else { setup }.parts;
    let length = if client.is_ipv4() { 32 } else { 128 };
    let mac = |n| [2, 0, 0, 0, 7, n];
    let gateway = |n: u8| if client.is_ipv4() { [10, 0, 0, n].into() } else { format!("fd00::{n}").parse().unwrap() };
    let ways = match how {
        Client::Far => return Farm::new(parts),
        Client::Several => vec![Way::Gateway(0, gateway(1)), Way::Gateway(1, gateway(2)), Way::Gateway(0, gateway(3))],
        Client::OnLink { .. } => vec![Way::OnLink(0)],
        Client::Nowhere => vec![],
    };
    parts.prefixes.push(Prefix { address: client.ip(), length, ways });
    parts.neighbours.push(Neighbour { port: 0, address: gateway(1), mac: mac(1) });
    parts.neighbours.push(Neighbour { port: 1, address: gateway(2), mac: mac(2) });
    if how == (Client::OnLink { known: true }) {
        parts.neighbours.push(Neighbour { port: 0, address: client.ip(), mac: mac(9) });
    }
    Farm::new(parts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_ways_back_are_the_general_way(
        sent in sent(),
        how in prop_oneof![
            Just(Client::Far),
            Just(Client::Several),
            any::<bool>().prop_map(|known| Client::OnLink { known }),
            Just(Client::Nowhere),
        ],
        (mode, across) in prop_oneof![Just((Mode::Nat, false)), any::<bool>().prop_map(|across| (Mode::FullNat, across))],
        host in 0_usize..3,
    ) {
        let client = sent.family.client(sent.client);
        let farm = farm_towards(client, how, mode, across);
        let hash = FlowHash::new(3);
        let mut forwarder =
            Forwarder::new(&Settings { shard: 0, owners: Owners::new(&key(), 1), routes_ipv4: 8, routes_ipv6: 8, hash }).unwrap();
        let protocol = if sent.udp { protocol::UDP } else { protocol::TCP };
        let vip = sent.family.vip(if sent.udp { DNS } else { HTTP });
        let key = Key::new(client, vip, protocol).unwrap();
        let endpoint = endpoint(sent.family, usize::from(sent.udp), host);
        let state = if sent.udp { State::Datagram } else { State::Established };
        let route = Route { action: Action::Send { endpoint, mode, value: 0 }, state };
        forwarder.plumb(&Plumb::Replace(key, route), &farm, 1);
        forwarder.tell_notices(|_| true);
        let action = match key {
            Key::V4(key) => forwarder.routes4().entry(forwarder.routes4().find(&key).unwrap()).action(),
            Key::V6(key) => forwarder.routes6().entry(forwarder.routes6().find(&key).unwrap()).action(),
        };
        let (from, to) = match return_key(&key, action, &farm) {
            Some((back, _)) => (back.source(), back.destination()),
            None => {
                let Action::Send { value, .. } = action else { unreachable!() };
                let PoolPort { address, port } = PoolPort::from_value(value);
                let endpoint = farm.endpoint(endpoint).unwrap();
                let address = farm.pools[endpoint.pool.unwrap()].address(address as usize).unwrap();
                (SocketAddr::new(endpoint.address, endpoint.port.unwrap()), SocketAddr::new(address, port))
            }
        };
        let frame = sent.between(MACS[1], from, to);
        let parsed = parse(&frame, MACS[1]).unwrap();

        let mut burst: Burst<_> = [HeapPacket::new(&frame)].into_iter().collect();
        let departure = forwarder.forward(&mut burst, 1, &farm, 2)[0];
        let mut packet = HeapPacket::new(&frame);
        let fate = forwarder.forward_one(&mut packet, &parsed, &farm, 2);
        if departure == GENERAL {
            prop_assert_eq!(burst[0].data(), &frame[..]);
            let plain = sent.hops > 1 && sent.payload < 64 && matches!(fate, Fate::Send(_));
            prop_assert!(!plain, "left to the general way");
        } else {
            prop_assert_eq!(fate, Fate::Send(departure));
            prop_assert_eq!(burst[0].data(), packet.data());
            prop_assert_ne!(packet.data(), &frame[..]);
        }
    }
}

/// Many bursts one behind the other, of both families, with packets in between that are left to the general way.
#[test]
fn when_lines_are_asked_for_makes_no_difference() {
    let sent = |together4, together6| {
        let mut lab = Lab::new(Setup { asking: Asking { together4, together6 }, ..Setup::new(Mode::Dsr) });
        let segment = |client: u16, flags: Flags| {
            let family = if client.is_multiple_of(3) { Family::V6 } else { Family::V4 };
            frames::segment(MACS[0], family.client(client), family.vip(HTTP), flags, b"x")
        };
        let mut seen = lab.exchange(0, (1..=200).map(|client| segment(client, Flags::SYN)));
        assert_eq!(seen.len(), 200, "{:?}", lab.drops());
        for length in [1, 31, 32, 33, 200] {
            // Every eleventh closes.
            let flags = |client: u16| if client % 11 == 7 { Flags::ACK | Flags::FIN } else { Flags::ACK };
            let all = lab.exchange(0, (1..=length).map(|client| segment(client, flags(client))));
            assert_eq!(all.len(), usize::from(length), "{:?}", lab.drops());
            seen.extend(all);
        }
        (seen, lab.count("hits"))
    };
    let (seen, hits) = sent(false, false);
    assert!(hits >= 297, "{hits} of 297 packets had a route");
    for (together4, together6) in [(true, false), (false, true), (true, true)] {
        assert_eq!(sent(together4, together6), (seen.clone(), hits));
    }
}
