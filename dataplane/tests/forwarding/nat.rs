//! Half-NAT: both directions of a connection, and that they live and die together.

use std::net::SocketAddr;

use weir_dataplane::flow::Key;
use weir_dataplane::route_table::{Mode, State};
use weir_dataplane::wire::tcp::Flags;

use crate::frames::{self, Seen};
use crate::lab::{DNS, Family, GATEWAY, HTTP, Lab, MACS, RANGE, Setup, TIMEOUTS, data, fin, host_of, rst, syn};

pub(crate) fn families(test: impl Fn(Family)) {
    [Family::V4, Family::V6].into_iter().for_each(test);
}

/// The host's answer to a packet that it got.
pub(crate) fn answer(to: &Seen, flags: Flags, payload: &[u8]) -> Vec<u8> {
    if to.flags.is_some() {
        frames::segment(MACS[1], to.destination, to.source, flags, payload)
    } else {
        frames::datagram(MACS[1], to.destination, to.source, payload)
    }
}

pub(crate) fn back(lab: &mut Lab, frame: Vec<u8>) -> Seen {
    let seen = lab.exchange(1, [frame]);
    assert_eq!(seen.len(), 1, "{:?}", lab.drops());
    seen.into_iter().next().unwrap()
}

/// A connection with its handshake done; the SYN as the host got it.
pub(crate) fn connect(lab: &mut Lab, family: Family, client: u16) -> Seen {
    let opened = lab.forward(syn(family, client, HTTP));
    back(lab, answer(&opened, Flags::SYN | Flags::ACK, b""));
    lab.forward(data(family, client, HTTP, b""));
    opened
}

/// States of the direction back, if it is there.
fn back_state(lab: &Lab, opened: &Seen) -> Option<State> {
    let found = |(_, key, ..): &&(usize, Key, _, State)| key.source() == opened.destination;
    lab.routes().iter().find(found).map(|(.., state)| *state)
}

#[test]
fn both_directions_are_translated() {
    families(|family| {
        let mut lab = Lab::plain(Mode::Nat);
        let (client, vip) = (family.client(1), family.vip(HTTP));
        let there = lab.forward(syn(family, 1, HTTP));
        let host = host_of(&there);
        let service_port = lab.parts.endpoints[crate::lab::endpoint(family, 0, host).index()].port.unwrap();
        assert_eq!((there.port, there.source, there.hop_limit), (1, client, 63));
        assert_eq!(there.destination, SocketAddr::new(family.host(host as u16 + 1), service_port));
        let here = back(&mut lab, answer(&there, Flags::SYN | Flags::ACK, b"hello"));
        assert_eq!((here.port, here.source, here.destination, here.mac), (0, vip, client, GATEWAY));
        assert_eq!(here.payload, b"hello");
        // The host's SYN-ACK says nothing of the client; the client's ACK does.
        assert_eq!(lab.state(client, vip), Some(State::Opening));
        lab.forward(data(family, 1, HTTP, b""));
        assert_eq!(lab.state(client, vip), Some(State::Established));
        // The same by ports that are kept.
        let (low, high) = RANGE;
        for port in [low, low + 7, high] {
            let there = lab.forward(syn(family, port, port));
            assert_eq!(there.destination.port(), port);
            assert_eq!(back(&mut lab, answer(&there, Flags::SYN | Flags::ACK, b"")).source, family.vip(port));
        }
        let there = lab.forward(frames::datagram(MACS[0], client, family.vip(DNS), b"odd"));
        let here = back(&mut lab, answer(&there, Flags::NONE, b"even"));
        assert_eq!(
            (here.source, here.destination, here.payload.as_slice()),
            (family.vip(DNS), client, b"even" as &[u8])
        );
    });
}

#[test]
fn what_a_host_sends_for_itself_goes_to_the_kernel() {
    families(|family| {
        let mut lab = Lab::plain(Mode::Nat);
        let host = SocketAddr::new(family.host(1), 40_000);
        let own = frames::segment(MACS[1], host, family.client(9), Flags::SYN, b"");
        assert!(lab.exchange(1, [own]).is_empty());
        assert_eq!((lab.count("twin"), lab.decisions("questions")), (1, 0));
    });
}

#[test]
fn both_entries_expire_together() {
    families(|family| {
        let mut lab = Lab::plain(Mode::Nat);
        connect(&mut lab, family, 1);
        assert_eq!(lab.routes().len(), 2);
        for _ in 0..(TIMEOUTS[1] + 20_000) / 500 {
            lab.pass(500);
            assert_ne!(lab.routes().len(), 1, "one direction went alone");
        }
        assert_eq!((lab.routes().len(), lab.decisions("inventory"), lab.count("routes_expired")), (0, 0, 1));
    });
}

#[test]
fn traffic_from_the_host_alone_keeps_the_pair() {
    families(|family| {
        let mut lab = Lab::plain(Mode::Nat);
        let opened = connect(&mut lab, family, 1);
        for _ in 0..4 {
            lab.pass(u64::from(TIMEOUTS[1]) / 2);
            back(&mut lab, answer(&opened, Flags::ACK, b"more"));
        }
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (2, 1));
        // The client's next packet finds its route as if it had never been silent.
        let questions = lab.decisions("questions");
        lab.forward(data(family, 1, HTTP, b"thanks"));
        assert_eq!((lab.decisions("questions"), lab.desk.answers.asked()), (questions, 1));
    });
}

#[test]
fn traffic_from_the_client_alone_keeps_the_pair() {
    families(|family| {
        let mut lab = Lab::plain(Mode::Nat);
        let opened = connect(&mut lab, family, 1);
        let ask = || frames::datagram(MACS[0], family.client(2), family.vip(DNS), b"?");
        let asked = lab.forward(ask());
        for _ in 0..8 {
            lab.pass(u64::from(TIMEOUTS[3]) - 500);
            lab.forward(ask());
            lab.forward(data(family, 1, HTTP, b"upload"));
        }
        assert_eq!(lab.routes().len(), 4);
        // An answer at last, long after the direction back was last used.
        assert_eq!(back(&mut lab, answer(&asked, Flags::NONE, b"!")).source, family.vip(DNS));
        assert_eq!(back(&mut lab, answer(&opened, Flags::ACK, b"!")).source, family.vip(HTTP));
        assert_eq!(lab.count("twin"), 0);
    });
}

#[test]
fn the_host_may_close() {
    families(|family| {
        for end in [Flags::FIN | Flags::ACK, Flags::RST] {
            let mut lab = Lab::plain(Mode::Nat);
            let opened = connect(&mut lab, family, 1);
            back(&mut lab, answer(&opened, end, b""));
            assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Closing));
            // A half-closed connection goes on in both directions.
            lab.forward(data(family, 1, HTTP, b"upload"));
            back(&mut lab, answer(&opened, Flags::ACK, b""));
            // A SYN is a new connection, answered from where it went.
            let again = lab.forward(syn(family, 1, HTTP));
            assert_eq!((lab.decisions("reopened"), lab.desk.answers.asked()), (1, 2));
            assert_eq!(back(&mut lab, answer(&again, Flags::SYN | Flags::ACK, b"")).destination, family.client(1));
            assert_eq!(lab.routes().len(), 2);
            back(&mut lab, answer(&again, end, b""));
            lab.pass(u64::from(TIMEOUTS[2]) + 6_000);
            assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
        }
    });
}

#[test]
fn the_client_may_close_and_the_host_after_it() {
    families(|family| {
        let mut lab = Lab::plain(Mode::Nat);
        let opened = connect(&mut lab, family, 1);
        lab.forward(fin(family, 1, HTTP));
        back(&mut lab, answer(&opened, Flags::ACK, b"the rest"));
        assert_eq!(back_state(&lab, &opened), Some(State::Established));
        back(&mut lab, answer(&opened, Flags::FIN | Flags::ACK, b""));
        assert_eq!(lab.state(family.client(1), family.vip(HTTP)), Some(State::Closing));
        lab.pass(u64::from(TIMEOUTS[2]) + 6_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
    });
}

#[test]
fn a_replaced_route_leaves_no_way_back_behind() {
    families(|family| {
        let mut lab = Lab::plain(Mode::Nat);
        for _ in 0..7 {
            connect(&mut lab, family, 1);
            assert_eq!(lab.routes().len(), 2);
            lab.forward(rst(family, 1, HTTP));
        }
        assert_eq!(lab.decisions("reopened"), 6);
    });
}

#[test]
fn two_flows_that_share_a_way_back_do_not_end_each_other() {
    families(|family| {
        // From one client port to two ports of the VIP that lead to one port of one host: the later flow has the way back.
        let mut lab = Lab::plain(Mode::Nat);
        let port = lab.parts.endpoints[crate::lab::endpoint(family, 0, 0).index()].port.unwrap();
        lab.change(|parts| {
            for service in [0, 2] {
                for host in 1..3 {
                    let id = crate::lab::endpoint(family, service, host);
                    parts.endpoints[id.index()].directive = weir_health_load::Directive::Draining;
                }
            }
        });
        let first = lab.forward(syn(family, 1, HTTP));
        let second = lab.forward(syn(family, 1, port));
        assert_eq!((first.source, first.destination), (second.source, second.destination));
        lab.forward(data(family, 1, port, b""));
        assert_eq!(lab.routes().len(), 3);
        // The first one's end, by expiry of its handshake, leaves the other one's way back.
        for _ in 0..10 {
            lab.pass(900);
            lab.forward(data(family, 1, port, b""));
        }
        assert!(lab.state(family.client(1), family.vip(HTTP)).is_none());
        assert_eq!(back(&mut lab, answer(&second, Flags::ACK, b"")).source, family.vip(port));
        lab.pass(u64::from(TIMEOUTS[1]) + 6_000);
        assert_eq!((lab.routes().len(), lab.decisions("inventory")), (0, 0));
    });
}

#[test]
fn a_reply_meets_the_shard_of_its_connection() {
    families(|family| {
        // Clients come in by shard 0's queue, hosts by shard 1's: wrong for most flows.
        let mut lab = Lab::new(Setup { shards: 4, classifiers: 2, ..Setup::new(Mode::Nat) });
        for n in 0..40 {
            let there = lab.forward(syn(family, n, HTTP));
            lab.arrive(1, 1, &answer(&there, Flags::SYN | Flags::ACK, b""));
            lab.run();
            lab.check();
            let here = lab.wire.seen();
            assert_eq!((here.len(), here[0].source, here[0].destination), (1, family.vip(HTTP), family.client(n)));
            assert_eq!(here[0].shard, there.shard);
        }
        let routes = lab.routes();
        assert_eq!(routes.len(), 80);
        for n in 0..40 {
            let of = |(shard, key, ..): &(usize, Key, _, State)| {
                (key.source() == family.client(n) || key.destination() == family.client(n)).then_some(*shard)
            };
            let shards: Vec<_> = routes.iter().filter_map(of).collect();
            assert_eq!((shards.len(), shards[0]), (2, shards[1]));
        }
        assert_eq!(lab.count("twin"), 0);
    });
}
