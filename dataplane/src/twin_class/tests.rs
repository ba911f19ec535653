//! Classification over literal frames: a peer's address and the right port together, in both families and behind tags.

use proptest::prelude::*;

use super::TwinClass::{Neighbour, Peer, Rest};
use super::*;

/// The router at 10.0.0.254 and fd00::fe, the other units 10.7.0.0/24 and fd07::/64, a cluster port and a probed host.
fn peers() -> TwinPeers {
    let address = |text: &str| text.parse().unwrap();
    TwinPeers::new(vec![7300])
        .with(address("10.0.0.254"), 32)
        .with(address("fd00::fe"), 128)
        .with(address("10.7.0.0"), 24)
        .with(address("fd07::"), 64)
        .probing(address("10.1.0.11"), 8080)
        .probing(address("fd01::11"), 8080)
}

fn frame(source: &str, protocol: u8, hop_limit: u8, upper: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match source.parse().unwrap() {
        IpAddr::V4(source) => {
            frame.extend([8, 0, 0x45, 0xc0, 0, 20, 0, 0, 0x40, 0, hop_limit, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend([10, 0, 0, 1]);
        }
        IpAddr::V6(source) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol, hop_limit]);
            frame.extend(source.octets());
            frame.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        }
    }
    frame.extend(upper);
    frame
}

/// The beginning of a TCP or UDP header is enough.
fn ports(from: u16, to: u16) -> [u8; 8] {
    let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
    [a, b, c, d, 0, 8, 0, 0]
}

fn tagged(frame: &[u8], tags: usize) -> Vec<u8> {
    let mut tagged = frame.to_vec();
    for _ in 0..tags {
        tagged.splice(12..12, [0x81, 0, 0, 7]);
    }
    tagged
}

/// What a frame is, which up to two tags do not change.
#[track_caller]
fn class(frame: &[u8]) -> TwinClass {
    let class = TwinClass::of(frame, &peers());
    for tags in 1..=2 {
        assert_eq!(TwinClass::of(&tagged(frame, tags), &peers()), class);
    }
    class
}

const UDP: u8 = protocol::UDP;
const TCP: u8 = protocol::TCP;
/// A router, another unit, and a stranger.
const PEERS: [[&str; 2]; 2] = [["10.0.0.254", "fd00::fe"], ["10.7.0.9", "fd07::9"]];
const STRANGERS: [&str; 4] = ["10.0.0.253", "10.7.1.9", "fd00::fd", "fd07:0:0:1::9"];

#[test]
fn protocols_of_the_network_are_urgent_from_peers_alone() {
    let urgent = [
        (UDP, 255, ports(49_152, 3784)),
        (UDP, 64, ports(49_152, 3785)),
        (UDP, 64, ports(49_152, 4784)),
        (TCP, 1, ports(40_000, 179)),
        (TCP, 64, ports(179, 40_000)),
        (UDP, 64, ports(40_000, 7300)),
        (UDP, 64, ports(7300, 40_000)),
    ];
    for (protocol, hop_limit, upper) in urgent {
        for source in PEERS.concat() {
            assert_eq!(class(&frame(source, protocol, hop_limit, &upper)), Peer, "{source} {protocol} {upper:?}");
        }
        for source in STRANGERS {
            assert_eq!(class(&frame(source, protocol, hop_limit, &upper)), Rest, "{source} {protocol} {upper:?}");
        }
    }
}

#[test]
fn anything_else_of_a_peer_is_not() {
    let others = [
        // By a router: no neighbour has sent it.
        (UDP, 254, ports(49_152, 3784)),
        // The other protocol, the other side, SSH, HTTP.
        (TCP, 255, ports(49_152, 3784)),
        (UDP, 255, ports(3784, 49_152)),
        (UDP, 255, ports(40_000, 179)),
        (TCP, 255, ports(40_000, 7300)),
        (TCP, 64, ports(40_000, 22)),
        (TCP, 64, ports(8080, 40_000)),
        // Echo, OSPF.
        (protocol::ICMP, 255, [8, 0, 0, 0, 0, 0, 0, 0]),
        (89, 1, [2, 1, 0, 44, 0, 0, 0, 0]),
    ];
    for (protocol, hop_limit, upper) in others {
        for source in PEERS.concat() {
            assert_eq!(class(&frame(source, protocol, hop_limit, &upper)), Rest, "{source} {protocol} {upper:?}");
        }
    }
}

#[test]
fn answers_to_probes_come_from_what_is_probed() {
    for (source, from, due) in [
        ("10.1.0.11", 8080, Peer),
        ("fd01::11", 8080, Peer),
        ("10.1.0.11", 80, Rest),
        ("10.1.0.12", 8080, Rest),
        ("fd01::12", 8080, Rest),
    ] {
        assert_eq!(class(&frame(source, TCP, 64, &ports(from, 40_000))), due, "{source} {from}");
        assert_eq!(class(&frame(source, UDP, 64, &ports(from, 40_000))), Rest);
        assert_eq!(class(&frame(source, TCP, 64, &ports(40_000, from))), Rest);
    }
}

#[test]
fn neighbours_are_asked_for_on_the_link_alone() {
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    assert_eq!(class(&arp), Neighbour);
    for kind in 133..=137 {
        let message = [kind, 0, 0, 0, 0, 0, 0, 0];
        for source in ["fe80::2", "::", "fd00::99"] {
            assert_eq!(class(&frame(source, protocol::ICMPV6, 255, &message)), Neighbour, "{kind}");
            assert_eq!(class(&frame(source, protocol::ICMPV6, 254, &message)), Rest, "{kind}");
        }
        // The number means nothing in IPv4.
        assert_eq!(class(&frame("10.0.0.2", protocol::ICMPV6, 255, &message)), Rest);
    }
    for kind in [1, 128, 132, 138] {
        assert_eq!(class(&frame("fd00::fe", protocol::ICMPV6, 255, &[kind, 0, 0, 0, 0, 0, 0, 0])), Rest, "{kind}");
    }
}

#[test]
fn fragments_and_stacks_of_tags_are_the_rest() {
    let mut bfd = frame("10.0.0.254", UDP, 255, &ports(49_152, 3784));
    assert_eq!(TwinClass::of(&tagged(&bfd, 3), &peers()), Rest);
    for place in [[0x20, 0], [0, 1]] {
        bfd[20..22].copy_from_slice(&place);
        assert_eq!(class(&bfd), Rest);
    }
    // Options move the ports.
    let mut bfd = frame("10.0.0.254", UDP, 255, &[&[1; 4][..], &ports(49_152, 3784)].concat());
    assert_eq!(class(&bfd), Rest);
    bfd[14] = 0x46;
    assert_eq!(class(&bfd), Peer);
}

#[test]
fn without_peers_only_the_link_is_urgent() {
    let none = TwinPeers::default();
    let bfd = frame("10.0.0.254", UDP, 255, &ports(49_152, 3784));
    assert_eq!(TwinClass::of(&bfd, &none), Rest);
    assert_eq!(TwinClass::of(&frame("10.0.0.254", UDP, 255, &ports(0, 0)), &none), Rest);
    assert_eq!(TwinClass::of(&frame("fe80::2", protocol::ICMPV6, 255, &[135, 0, 0, 0]), &none), Neighbour);
}

proptest! {
    #[test]
    fn any_bytes_are_something(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0usize..6, cut in 0usize..120) {
        if bytes.len() > 14 {
            let ethertypes = [[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0], [0x88, 0xa8], [1, 2]];
            bytes[12..14].copy_from_slice(&ethertypes[kind]);
        }
        prop_assert!(TwinClass::of(&bytes, &peers()) != TwinClass::Flow);
        // A peer's packet that is cut anywhere never becomes more than it was.
        let bfd = frame("fd07::9", UDP, 255, &ports(49_152, 3784));
        let class = TwinClass::of(&bfd[..cut.min(bfd.len())], &peers());
        prop_assert!(class == Rest || cut >= 58 && class == Peer);
    }
}
