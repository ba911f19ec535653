//! What becomes of ways and neighbours over a link that is down.

use weir_config::Machine;
use weir_dataplane::flow::ToeplitzKey;
use weir_netlink::{Gateway, Link, NeighbourState, Route, RouteKind};

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

/// A kernel with a neighbour on each twin, and a default route by both.
fn knowledge() -> Knowledge {
    let config = weir_config::check("test.yaml", YAML, &Machine::default()).unwrap();
    let mut knowledge = Knowledge::new(Arc::new(config), vec![[2, 0, 0, 0, 0, 1]; 3], &ToeplitzKey::from_seed(1));
    let link = |name: &str, index| Link { name: name.to_owned(), index, mac: [2; 6], mtu: 1500, up: true };
    let neighbour = |interface, text: &str| weir_netlink::Neighbour {
        interface,
        address: address(text),
        mac: [2, 0, 0, 0, 0, 9],
        state: NeighbourState::Reachable,
    };
    let gateway = |interface, via: &str| Gateway { interface, via: Some(address(via)), weight: 1 };
    knowledge.kernel = Some(Arc::new(Snapshot {
        links: vec![link("front0", 1), link("farm0", 2), link("farm0.7", 3)],
        neighbours: vec![neighbour(1, "192.0.2.254"), neighbour(2, "10.20.0.11"), neighbour(2, "10.20.0.254")],
        routes: vec![Route {
            prefix: weir_netlink::Prefix { address: address("0.0.0.0"), len: 0 },
            kind: RouteKind::Unicast,
            gateways: vec![gateway(1, "192.0.2.254"), gateway(2, "10.20.0.254")],
        }],
        ..Snapshot::default()
    }));
    knowledge
}

fn ways(knowledge: &Knowledge, text: &str) -> Option<Vec<Way>> {
    let found = knowledge.farm().prefixes.into_iter().find(|prefix| prefix.address == address(text));
    found.map(|prefix| prefix.ways)
}

fn neighbours(knowledge: &Knowledge) -> Vec<IpAddr> {
    knowledge.farm().neighbours.iter().map(|neighbour| neighbour.address).collect()
}

#[test]
fn all_ways_are_used_while_all_links_are_up() {
    let knowledge = knowledge();
    let both = vec![Way::Gateway(0, address("192.0.2.254")), Way::Gateway(1, address("10.20.0.254"))];
    assert_eq!(ways(&knowledge, "0.0.0.0"), Some(both));
    assert_eq!(ways(&knowledge, "203.0.113.0"), Some(vec![Way::Gateway(1, address("10.20.0.254"))]));
    assert_eq!(neighbours(&knowledge).len(), 4);
}

#[test]
fn ways_and_neighbours_over_a_dead_link_are_not_used() {
    let mut knowledge = knowledge();
    knowledge.down[1] = true;
    assert_eq!(ways(&knowledge, "0.0.0.0"), Some(vec![Way::Gateway(0, address("192.0.2.254"))]));
    assert_eq!(ways(&knowledge, "203.0.113.0"), None, "the default route takes over");
    // Its own hosts are nowhere else: a packet for a VIP must not go round by the router.
    assert_eq!(ways(&knowledge, "10.20.0.0"), Some(vec![Way::OnLink(1)]));
    assert_eq!(ways(&knowledge, "10.30.0.0"), Some(vec![Way::OnLink(2)]));
    assert_eq!(neighbours(&knowledge), [address("192.0.2.254")], "of its VLAN neither");
    knowledge.down[1] = false;
    assert_eq!(neighbours(&knowledge).len(), 4, "until it is back");
}

#[test]
fn the_kernels_word_counts_for_interfaces_that_it_has() {
    let mut knowledge = knowledge();
    let mut snapshot = (**knowledge.kernel.as_ref().unwrap()).clone();
    snapshot.links[0].up = false;
    knowledge.kernel = Some(Arc::new(snapshot));
    assert_eq!(ways(&knowledge, "0.0.0.0"), Some(vec![Way::Gateway(1, address("10.20.0.254"))]));
    assert!(!neighbours(&knowledge).contains(&address("192.0.2.254")));
}
