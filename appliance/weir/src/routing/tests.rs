//! What becomes of ways and neighbours over a link that is down.

use weir_config::Machine;
use weir_netlink::{Gateway, Link, NeighbourState, RouteKind};

use super::*;

const YAML: &str = "
unit: { id: 1, name: weir-1 }
dataplane: { hugepages: true }
ports:
  - { name: front, device: '0000:03:00.0', twin: front0, addresses: [192.0.2.1/24] }
  - { name: farm, device: '0000:03:00.1', twin: farm0, addresses: [10.20.0.1/16] }
  - { name: tagged, device: 'vlan:farm.7', addresses: [10.30.0.1/16] }
neighbours:
  - { port: tagged, address: 10.30.0.9, mac: '02:00:00:00:00:39' }
routes:
  - { prefix: 203.0.113.0/24, via: 10.20.0.254, port: farm }
hosts:
  - { id: 1, name: host-1, address: 10.20.0.11 }
services:
  - { id: 1, name: web, vip: 198.51.100.1, ports: 80, mode: nat, endpoints: [{ host: host-1 }] }
";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A kernel with a neighbour on each twin, a default route by both, and one that leads nowhere.
fn kernel() -> Snapshot {
    let link = |name: &str, index| Link { name: name.to_owned(), index, mac: [2; 6], mtu: 1500, up: true };
    let neighbour = |interface, text: &str| weir_netlink::Neighbour {
        interface,
        address: address(text),
        mac: [2, 0, 0, 0, 0, 9],
        state: NeighbourState::Reachable,
    };
    let neighbours = [neighbour(1, "192.0.2.254"), neighbour(2, "10.20.0.11"), neighbour(2, "10.20.0.254")];
    let gateway = |interface, via: &str| Gateway { interface, via: Some(address(via)), weight: 1 };
    let route = |text: &str, len, kind, gateways| Route {
        prefix: weir_netlink::Prefix { address: address(text), len },
        kind,
        gateways,
    };
    let both = vec![gateway(1, "192.0.2.254"), gateway(2, "10.20.0.254")];
    let routes =
        [route("0.0.0.0", 0, RouteKind::Unicast, both), route("198.51.100.1", 32, RouteKind::Blackhole, vec![])];
    Snapshot {
        links: vec![link("front0", 1), link("farm0", 2), link("farm0.7", 3)],
        neighbours: neighbours.into_iter().map(|known| ((known.interface, known.address), known)).collect(),
        routes: routes.into_iter().map(|route| (route.prefix, route)).collect(),
        ..Snapshot::default()
    }
}

fn routing() -> Routing {
    let config = weir_config::check("test.yaml", YAML, &Machine::default()).unwrap();
    let mut routing = Routing::new(Arc::new(config)).unwrap();
    assert_eq!(routing.follow(Arc::new(kernel())).full, None);
    routing
}

fn ways(routing: &Routing, text: &str) -> Vec<Way> {
    routing.writer.ways_to(address(text))
}

/// Those that are known of all in the test.
fn neighbours(routing: &Routing) -> Vec<&'static str> {
    let all = [(0, "192.0.2.254"), (1, "10.20.0.11"), (1, "10.20.0.254"), (2, "10.30.0.9")];
    let known = all.into_iter().filter(|(port, text)| routing.writer.mac(*port, address(text)).is_some());
    known.map(|(_, text)| text).collect()
}

fn by_front() -> Way {
    Way::Gateway(0, address("192.0.2.254"))
}

fn by_farm() -> Way {
    Way::Gateway(1, address("10.20.0.254"))
}

#[test]
fn all_ways_are_used_while_all_links_are_up() {
    let routing = routing();
    assert_eq!(ways(&routing, "8.8.8.8"), [by_front(), by_farm()]);
    assert_eq!(ways(&routing, "203.0.113.7"), [by_farm()]);
    assert_eq!(ways(&routing, "198.51.100.1"), [], "a blackhole is no default route");
    assert_eq!(neighbours(&routing).len(), 4);
}

#[test]
fn ways_and_neighbours_over_a_dead_link_are_not_used() {
    let mut routing = routing();
    routing.set_links(&[(1, false)]);
    assert_eq!(ways(&routing, "8.8.8.8"), [by_front()]);
    assert_eq!(ways(&routing, "203.0.113.7"), [by_front()], "the default route takes over");
    // Its own hosts are nowhere else: a packet for a VIP must not go round by the router.
    assert_eq!(ways(&routing, "10.20.0.11"), [Way::OnLink(1)]);
    assert_eq!(ways(&routing, "10.30.0.9"), [Way::OnLink(2)]);
    assert_eq!(neighbours(&routing), ["192.0.2.254"], "of its VLAN neither");
    // What the kernel learns meanwhile changes nothing.
    let mut more = kernel();
    let (key, known) = ((2, address("10.20.0.12")), more.neighbours[&(2, address("10.20.0.11"))]);
    more.neighbours.insert(key, weir_netlink::Neighbour { address: key.1, ..known });
    routing.follow(Arc::new(more));
    assert_eq!(routing.writer.mac(1, key.1), None);
    routing.set_links(&[(1, true)]);
    assert_eq!(neighbours(&routing).len(), 4, "until it is back");
    assert!(routing.writer.mac(1, key.1).is_some());
    assert_eq!(ways(&routing, "203.0.113.7"), [by_farm()]);
}

#[test]
fn the_kernels_word_counts_for_interfaces_that_it_has() {
    let mut routing = routing();
    let mut snapshot = kernel();
    snapshot.links[0].up = false;
    routing.follow(Arc::new(snapshot));
    assert_eq!(ways(&routing, "8.8.8.8"), [by_farm()]);
    assert!(!neighbours(&routing).contains(&"192.0.2.254"));
    routing.follow(Arc::new(kernel()));
    assert_eq!(ways(&routing, "8.8.8.8"), [by_front(), by_farm()]);
    assert_eq!(neighbours(&routing).len(), 4);
}
