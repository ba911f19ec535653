//! Full-nat at size: more than a million connections over four pool addresses, each told from all others on its way back.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weir_dataplane::farm::Farm;
use weir_dataplane::flow::toeplitz::Toeplitz;
use weir_dataplane::flow::{FlowHash, Key, Owners, protocol};
use weir_dataplane::forwarder::{self, Forwarder};
use weir_dataplane::plumbing::{Event, Plumb};
use weir_dataplane::route_table::{Action, Mode, Route, State};
use weir_dataplane::translation::{PoolPort, PoolPorts};

use crate::lab::{Family, HTTP, key, parts};

const CONNECTIONS: u32 = 1 << 20;
const HOSTS: u32 = 8;

#[test]
#[expect(clippy::disallowed_methods, reason = "the speed is printed")]
fn a_million_connections_have_four_addresses() {
    let mut parts = parts(Mode::FullNat);
    let addresses: Vec<IpAddr> = (200..204).map(|n| Ipv4Addr::new(10, 1, 0, n).into()).collect();
    parts.pools[0] = PoolPorts::new(addresses, 1024..=65_535, &Toeplitz::new(&key())).unwrap();
    // As many hosts as it takes: each has its own 258,048 pairs.
    let first = parts.endpoints[0].clone();
    parts.endpoints.clear();
    parts.endpoints.extend((0..HOSTS).map(|n| weir_dataplane::farm::Endpoint {
        address: Ipv4Addr::new(10, 1, 0, 11 + n as u8).into(),
        ..first.clone()
    }));
    let farm = Farm::new(parts);
    let routes = 2 * CONNECTIONS as usize;
    let hash = FlowHash::new(1);
    let settings =
        forwarder::Settings { shard: 0, owners: Owners::new(&key(), 1), routes_ipv4: routes, routes_ipv6: 2, hash };
    let mut forwarder = Forwarder::new(&settings).unwrap();

    let flow = |n: u32| {
        let client = SocketAddr::new(Ipv4Addr::from(0xc612_0000 + n / 60_000).into(), 1024 + (n % 60_000) as u16);
        Key::new(client, Family::V4.vip(HTTP), protocol::TCP).unwrap()
    };
    let began = std::time::Instant::now();
    let mut bound: Vec<u64> = Vec::with_capacity(CONNECTIONS as usize);
    for n in 0..CONNECTIONS {
        let endpoint = weir_identity::EndpointId(n % HOSTS);
        let action = Action::Send { endpoint, mode: Mode::FullNat, value: 0 };
        forwarder.plumb(&Plumb::Replace(flow(n), Route { action, state: State::Established }), &farm, 0);
        forwarder.tell_notices(|notice| {
            let Event::Bound(value) = notice.event else { panic!("{notice:?}") };
            bound.push(value);
            true
        });
    }
    let each = began.elapsed() / CONNECTIONS;
    assert_eq!(bound.len(), CONNECTIONS as usize);
    assert_eq!((forwarder.routes4().len(), forwarder.translations().len()), (routes, CONNECTIONS as usize));
    let pairs: HashSet<(u32, u64)> = (0..CONNECTIONS).map(|n| (n % HOSTS, bound[n as usize])).collect();
    assert_eq!(pairs.len(), CONNECTIONS as usize, "a pair serves one connection for each endpoint");
    let used: HashSet<u32> = bound.iter().map(|value| PoolPort::from_value(*value).address).collect();
    assert_eq!(used.len(), 4);
    // Each way back leads to its own client.
    for n in (0..CONNECTIONS).step_by(997) {
        let endpoint = weir_identity::EndpointId(n % HOSTS);
        let there = Action::Send { endpoint, mode: Mode::FullNat, value: bound[n as usize] };
        let back = forwarder.other_direction(&flow(n), there, &farm).unwrap();
        let Key::V4(key) = &back else { panic!("{back:?}") };
        let entry = forwarder.routes4().entry(forwarder.routes4().find(key).unwrap());
        assert_eq!(forwarder.client_flow(&back, entry.action(), &farm), Some(flow(n)));
    }
    let bytes = forwarder.routes4().bytes() / CONNECTIONS as usize + 16;
    eprintln!("{CONNECTIONS} connections over 4 addresses: {each:?} and {bytes} bytes each");
    assert!(bytes <= 160, "{bytes} bytes for both directions and the translation");
}
