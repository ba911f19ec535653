//! Next hops that the kernel is still resolving: packets wait for them in a bounded place, and not for long.

use std::net::SocketAddr;

use weir_dataplane::counters::DropReason;
use weir_dataplane::farm::{Neighbour, Prefix, Way};
use weir_dataplane::route_table::Mode;
use weir_dataplane::wire::tcp::Flags;

use crate::frames;
use crate::lab::{ENDPOINTS, Family, HTTP, Lab, MACS, Setup, data, everywhere, host_of, syn};

/// What the control plane would have to ask its kernel for.
fn wanted(lab: &Lab) -> Vec<(u16, std::net::IpAddr)> {
    lab.shards.iter().flat_map(|shard| std::iter::from_fn(|| shard.published().wanted())).collect()
}

fn without_hosts(mode: Mode, family: Family) -> (Lab, Vec<Neighbour>) {
    let mut setup = Setup { shards: 2, ..Setup::new(mode) };
    let (known, gone) = setup.parts.neighbours.iter().partition(|neighbour| neighbour.port == 0);
    setup.parts.neighbours = known;
    let gone: Vec<Neighbour> = gone;
    assert!(gone.iter().any(|neighbour| neighbour.address == family.host(1)));
    (Lab::new(setup), gone)
}

#[test]
fn a_connection_waits_for_its_host() {
    everywhere(|mode, family| {
        let (mut lab, hosts) = without_hosts(mode, family);
        assert!(lab.exchange(0, [syn(family, 1, HTTP), data(family, 1, HTTP, b"early")]).is_empty());
        assert_eq!((lab.held(), lab.count("unresolved_held")), (2, 2));
        let asked = wanted(&lab);
        assert_eq!(asked.len(), 1, "asked once");
        // Another neighbour is none of its business.
        let (port, address) = asked[0];
        let (its, others): (Vec<_>, Vec<_>) = hosts.into_iter().partition(|host| host.address == address);
        lab.change(|parts| parts.neighbours.extend(others));
        assert!(lab.exchange(0, []).is_empty());
        lab.change(|parts| parts.neighbours.extend(its));
        let seen = lab.exchange(0, []);
        assert_eq!((seen.len(), lab.held()), (2, 0));
        assert_eq!((seen[0].flags, seen[1].payload.as_slice()), (Some(Flags::SYN), b"early".as_slice()));
        assert_eq!((usize::from(port), family.host(host_of(&seen[0]) as u16 + 1)), (seen[0].port, address));
        assert_eq!(lab.desk.answers.asked(), 1, "one decision");
    });
}

#[test]
fn who_does_not_answer_is_given_up() {
    everywhere(|mode, family| {
        let (mut lab, _) = without_hosts(mode, family);
        for client in 0..200 {
            lab.exchange(0, [syn(family, client, HTTP)]);
        }
        // Sixteen for each host in each shard.
        assert!((16 * ENDPOINTS..=2 * 16 * ENDPOINTS).contains(&lab.held()), "{}", lab.held());
        assert_eq!(lab.dropped(DropReason::Unresolved) as usize + lab.held(), 200);
        let asked = wanted(&lab);
        assert!((ENDPOINTS..=2 * ENDPOINTS).contains(&asked.len()), "{asked:?}");
        lab.now.0 += 3_000;
        lab.run();
        lab.check();
        assert_eq!((lab.held(), lab.dropped(DropReason::Unresolved)), (0, 200));
        // And is asked for again by the next packet.
        lab.exchange(0, [syn(family, 1, HTTP)]);
        assert_eq!(wanted(&lab).len(), 1);
    });
}

#[test]
fn an_answer_waits_for_the_gateway_that_the_longest_prefix_names() {
    for family in [Family::V4, Family::V6] {
        let mut lab = Lab::plain(Mode::Nat);
        let (near, far) = (family.client(1), family.client(2));
        let gateway: std::net::IpAddr = match family {
            Family::V4 => "10.0.0.77".parse().unwrap(),
            Family::V6 => "fd00::77".parse().unwrap(),
        };
        // A host route by another gateway, whom nobody knows yet.
        let length = if family == Family::V4 { 32 } else { 128 };
        lab.change(|parts| {
            parts.prefixes.push(Prefix { address: near.ip(), length, ways: vec![Way::Gateway(0, gateway)] })
        });
        for client in [near, far] {
            let opened = lab.forward(frames::segment(MACS[0], client, family.vip(HTTP), Flags::SYN, b""));
            let (from, to): (SocketAddr, SocketAddr) = (opened.destination, opened.source);
            let answer = frames::segment(MACS[1], from, to, Flags::SYN | Flags::ACK, b"");
            let seen = lab.exchange(1, [answer]);
            assert_eq!(seen.len(), usize::from(client == far));
        }
        assert_eq!((wanted(&lab), lab.held()), (vec![(0, gateway)], 1));
        let mac = [2, 0, 0, 0, 0, 77];
        lab.change(|parts| parts.neighbours.push(Neighbour { port: 0, address: gateway, mac }));
        let seen = lab.exchange(0, []);
        assert_eq!((seen.len(), seen[0].mac, seen[0].source), (1, mac, family.vip(HTTP)));
    }
}
