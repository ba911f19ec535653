//! Any bytes on any port: no panic, every packet is accounted for, and every buffer comes back.

use std::net::SocketAddr;

use proptest::prelude::*;
use weir_dataplane::farm::NoEndpoint;
use weir_dataplane::flow::toeplitz::Toeplitz;
use weir_dataplane::fragments::TIMEOUT_V6;
use weir_dataplane::route_table::Mode;
use weir_dataplane::translation::PoolPorts;
use weir_dataplane::wire::tcp::Flags;
use weir_dataplane::wire::{Protocol, icmpv4, icmpv6};
use weir_health_load::Directive;

use crate::frames;
use crate::lab::{DNS, Family, HTTP, Lab, MACS, RANGE, Setup, key};

/// A frame and where it arrives.
#[derive(Debug, Clone)]
struct Arrival {
    shard: usize,
    port: usize,
    frame: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Segment(u8),
    Datagram,
    /// One of a datagram's fragments, of a client or, on its way back, of a host.
    Fragment(bool, usize),
    /// A host's answer, which half-NAT translates back.
    Answer(u8),
    /// A host's answer to a pool's address.
    Pooled(u8),
    Ping,
    /// An error about a client's segment.
    Error,
    Arp,
}

fn valid() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let kind = prop_oneof![
        6 => prop::sample::select(vec![2, 2, 16, 24, 17, 4, 20, 18, 0]).prop_map(Kind::Segment),
        3 => Just(Kind::Datagram),
        4 => (any::<bool>(), 0usize..3).prop_map(|(back, at)| Kind::Fragment(back, at)),
        3 => prop::sample::select(vec![18, 16, 17, 4]).prop_map(Kind::Answer),
        3 => prop::sample::select(vec![18, 16, 17, 4]).prop_map(Kind::Pooled),
        1 => Just(Kind::Ping),
        1 => Just(Kind::Error),
        1 => Just(Kind::Arp),
    ];
    let port = prop::sample::select(vec![HTTP, HTTP, DNS, RANGE.0, RANGE.1, 9]);
    (kind, prop::bool::ANY, 0u16..6, port, prop::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(kind, v4, client, port, payload)| {
            let family = if v4 { Family::V4 } else { Family::V6 };
            let (client, vip) = (family.client(client), family.vip(port));
            let addresses = frames::addresses(client.ip(), vip.ip());
            match kind {
                Kind::Segment(flags) => (0, frames::segment(MACS[0], client, vip, Flags(flags), &payload)),
                Kind::Datagram => (0, frames::datagram(MACS[0], client, vip, &payload)),
                Kind::Fragment(back, at) => {
                    let host = SocketAddr::new(family.host(1 + port % 3), if v4 { 8001 } else { 8004 });
                    let (from, to) = if back { (host, client) } else { (client, vip) };
                    let whole = frames::datagram(MACS[usize::from(back)], from, to, &[7; 40]);
                    (usize::from(back), frames::fragments(&whole, 1, 16 + payload.len() % 2 * 8).swap_remove(at % 2))
                }
                Kind::Answer(flags) => {
                    let host = SocketAddr::new(family.host(1 + port % 3), if v4 { 8000 } else { 8003 });
                    (1, frames::segment(MACS[1], host, client, Flags(flags), &payload))
                }
                Kind::Pooled(flags) => {
                    let host = SocketAddr::new(family.host(1 + port % 3), if v4 { 8000 } else { 8003 });
                    let pool = SocketAddr::new(family.pool()[usize::from(port % 2)], 20_000 + client.port() % 3);
                    (1, frames::segment(MACS[1], host, pool, Flags(flags), &payload))
                }
                Kind::Ping | Kind::Error => {
                    let ping = matches!(kind, Kind::Ping);
                    let mut upper = vec![0; 8 + payload.len()];
                    let quoted = frames::segment(MACS[0], vip, client, Flags::ACK, &payload);
                    if v4 {
                        icmpv4::Repr::EchoRequest { identifier: 1, sequence: 1 }.emit(&mut upper, &payload).unwrap();
                        if !ping {
                            upper = [&[3, 1, 0, 0, 0, 0, 0, 0], &quoted[14..]].concat();
                            icmpv4::Packet::new_checked(&mut upper[..]).unwrap().fill_checksum();
                        }
                        (0, frames::frame(MACS[0], addresses, Protocol::ICMP, &upper))
                    } else {
                        let repr = icmpv6::Repr::EchoRequest { identifier: 1, sequence: 1 };
                        repr.emit(&mut upper, &payload, addresses).unwrap();
                        if !ping {
                            upper = [&[1, 0, 0, 0, 0, 0, 0, 0], &quoted[14..]].concat();
                            icmpv6::Packet::new_checked(&mut upper[..]).unwrap().fill_checksum(addresses);
                        }
                        (0, frames::frame(MACS[0], addresses, Protocol::ICMPV6, &upper))
                    }
                }
                Kind::Arp => {
                    let mut frame = vec![0xff; 6];
                    frame.extend([2, 0, 0, 0, 9, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 9, 9, 10, 0, 0, 2]);
                    frame.extend([0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
                    (0, frame)
                }
            }
        },
    )
}

/// A valid frame, tagged, damaged, cut or padded; the IPv4 header's checksum may be set right again, so that the damage gets far.
fn damaged() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let damage = prop::collection::vec((12usize..90, any::<u8>()), 0..4);
    (valid(), damage, 0usize..3, prop::option::of(0usize..140), any::<bool>()).prop_map(
        |((port, mut frame), damage, tags, length, right)| {
            for (at, value) in damage {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            if right && frame.len() >= 34 && frame[12..14] == [8, 0] {
                let end = (14 + usize::from(frame[14] & 0xf) * 4).clamp(34, frame.len());
                frame[24..26].fill(0);
                let check = weir_dataplane::wire::checksum::checksum(&frame[14..end]);
                frame[24..26].copy_from_slice(&check.to_be_bytes());
            }
            for _ in 0..tags {
                frame.splice(12..12, [0x81, 0, 0, 7]);
            }
            length.into_iter().for_each(|length| frame.resize(length, 0));
            (port, frame)
        },
    )
}

fn random() -> impl Strategy<Value = (usize, Vec<u8>)> {
    (0usize..2, any::<bool>(), prop::collection::vec(any::<u8>(), 0..120)).prop_map(|(port, ours, mut frame)| {
        if ours && frame.len() > 14 {
            frame[..6].copy_from_slice(&MACS[port]);
            let head = if frame[14] & 1 == 0 { [8, 0, 0x45] } else { [0x86, 0xdd, 0x60] };
            frame[12..15].copy_from_slice(&head);
        }
        (port, frame)
    })
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let frame = prop_oneof![4 => valid(), 5 => damaged(), 1 => random()];
    let arrival = (0usize..2, frame).prop_map(|(shard, (port, frame))| Arrival { shard, port, frame });
    prop::collection::vec(arrival, 80..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// About 25,000 frames in bursts, with late answers, small rings and a port that shard 1 has no queue of.
    #[test]
    fn every_packet_is_accounted_for(
        arrivals in arrivals(),
        mode in prop::sample::select(vec![Mode::Dsr, Mode::Nat, Mode::FullNat]),
        reset: bool,
        late: bool,
        twins: bool,
        ring in 1usize..40,
        gone in 0usize..18,
    ) {
        let sender = |shard, port| if port == 1 { 0 } else { shard };
        let mut setup = Setup {
            shards: 2, classifiers: 2, routes: 8, sessions: 16, pending: 5, divert_ring: ring, notice_ring: 2,
            handover_ring: ring, sender, twins, ..Setup::new(mode)
        };
        for pool in &mut setup.parts.pools {
            *pool = PoolPorts::of_any_size(pool.addresses().to_vec(), 20_000..=20_127, &Toeplitz::new(&key())).unwrap();
        }
        setup.parts.endpoints[gone].directive = Directive::Inactive;
        if reset {
            setup.parts.services.iter_mut().for_each(|service| service.no_endpoint = NoEndpoint::Reset);
        }
        let mut lab = Lab::new(setup);
        lab.desk.answers.later(late);
        lab.memory.answers.later(late);
        for burst in arrivals.chunks(17) {
            for Arrival { shard, port, frame } in burst {
                lab.arrive(if *port == 1 { 0 } else { *shard }, *port, frame);
            }
            lab.run();
            lab.check();
            lab.now.0 += 50;
            lab.desk.answers.release(2);
            lab.memory.answers.release(2);
            if !late && lab.count("fragments_held") == 0 {
                prop_assert_eq!(lab.held(), 0);
            }
        }
        // After the longest patience nothing is held any more, and after the longest idle time nothing is remembered.
        lab.pass(1_500);
        lab.check();
        prop_assert!(lab.held() == 0 || lab.count("fragments_held") > 0);
        lab.now.0 += TIMEOUT_V6.as_millis() as u64;
        lab.run();
        lab.check();
        prop_assert_eq!(lab.held(), 0);
        lab.pass(30_000);
        lab.check();
        prop_assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
        prop_assert_eq!(lab.wire.raw().len() as u64, lab.count("sent"));
    }
}
