//! The FIB against an ordinary longest-prefix table, and against readers that look while it changes.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ip_network_table_deps_treebitmap::IpLookupTable;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;
use crate::farm::{Neighbour, Prefix, Way};
use crate::flow::place;

/// What the FIB has to do, done plainly.
#[derive(Default)]
struct Model {
    v4: IpLookupTable4,
    v6: IpLookupTable6,
    neighbours: HashMap<(PortId, IpAddr), [u8; 6]>,
}

struct IpLookupTable4(IpLookupTable<Ipv4Addr, Vec<Way>>);
struct IpLookupTable6(IpLookupTable<Ipv6Addr, Vec<Way>>);

impl Default for IpLookupTable4 {
    fn default() -> Self {
        Self(IpLookupTable::new())
    }
}

impl Default for IpLookupTable6 {
    fn default() -> Self {
        Self(IpLookupTable::new())
    }
}

impl Model {
    fn apply(&mut self, change: &RouteChange) {
        let length = u32::from(change.length);
        match (change.address, &change.ways) {
            (IpAddr::V4(address), Some(ways)) => drop(self.v4.0.insert(address, length, ways.clone())),
            (IpAddr::V6(address), Some(ways)) => drop(self.v6.0.insert(address, length, ways.clone())),
            (IpAddr::V4(address), None) => drop(self.v4.0.remove(address, length)),
            (IpAddr::V6(address), None) => drop(self.v6.0.remove(address, length)),
        }
    }

    fn know(&mut self, change: &NeighbourChange) {
        match change.mac {
            Some(mac) => self.neighbours.insert((change.port, change.address), mac),
            None => self.neighbours.remove(&(change.port, change.address)),
        };
    }

    fn ways(&self, address: IpAddr) -> &[Way] {
        let ways = match address {
            IpAddr::V4(address) => self.v4.0.longest_match(address).map(|(.., ways)| ways),
            IpAddr::V6(address) => self.v6.0.longest_match(address).map(|(.., ways)| ways),
        };
        ways.map_or(&[], Vec::as_slice)
    }

    fn hop(&self, address: IpAddr, flow: u64) -> Result<(PortId, [u8; 6]), NoHop> {
        let ways = self.ways(address);
        let (port, neighbour) = match ways.get(place(flow, ways.len())) {
            Some(Way::OnLink(port)) => (*port, address),
            Some(Way::Gateway(port, gateway)) => (*port, *gateway),
            None => return Err(NoHop::NoRoute),
        };
        self.neighbours.get(&(port, neighbour)).map(|mac| (port, *mac)).ok_or(NoHop::Unresolved(port, neighbour))
    }
}

/// One of few addresses, so that prefixes lie within one another and neighbours under them.
fn address() -> impl Strategy<Value = IpAddr> {
    let byte = || prop_oneof![Just(0_u8), Just(1), Just(0x80), Just(0xff)];
    prop_oneof![
        [byte(), byte(), byte(), byte()].prop_map(|bytes| Ipv4Addr::from(bytes).into()),
        [byte(), byte(), byte(), byte()]
            .prop_map(|[a, b, c, d]| { Ipv6Addr::from([0x20, a, 0, b, 0, 0, c, 0, 0, 0, 0, 0, 0, 0, c, d]).into() }),
    ]
}

fn masked(address: IpAddr, length: u8) -> (IpAddr, u8) {
    match address {
        IpAddr::V4(address) => {
            let length = length.min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            (Ipv4Addr::from_bits(address.to_bits() & mask).into(), length)
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            (Ipv6Addr::from_bits(address.to_bits() & mask).into(), length)
        }
    }
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        (0_u16..3).prop_map(Way::OnLink),
        (0_u16..3, address()).prop_map(|(port, gateway)| Way::Gateway(port, gateway)),
    ]
}

fn route() -> impl Strategy<Value = RouteChange> {
    let length = prop_oneof![3 => 0_u8..=32, 1 => 32_u8..=128];
    let ways = prop_oneof![
        2 => Just(None),
        5 => prop::collection::vec(way(), 1).prop_map(Some),
        2 => prop::collection::vec(way(), 0..4).prop_map(Some),
    ];
    (address(), length, ways).prop_map(|(address, length, ways)| {
        let (address, length) = masked(address, length);
        RouteChange { address, length, ways }
    })
}

fn neighbour() -> impl Strategy<Value = NeighbourChange> {
    (0_u16..3, address(), prop::option::of(0_u8..3)).prop_map(|(port, address, mac)| NeighbourChange {
        port,
        address,
        mac: mac.map(|mac| [2, 0, 0, 0, 9, mac]),
    })
}

#[derive(Debug, Clone)]
enum Step {
    Routes(Vec<RouteChange>),
    Neighbours(Vec<NeighbourChange>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec(route(), 1..12).prop_map(Step::Routes),
        prop::collection::vec(neighbour(), 1..12).prop_map(Step::Neighbours),
    ]
}

fn seen(hop: Result<Next, NoHop>) -> Result<(PortId, [u8; 6]), NoHop> {
    hop.map(|next| (next.port(), next.mac()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn it_answers_as_an_ordinary_table(steps in prop::collection::vec(step(), 1..20), probes in prop::collection::vec(address(), 40)) {
        let (mut writer, mut model) = (FibWriter::sized(SIZES).unwrap(), Model::default());
        let fib = Arc::clone(writer.fib());
        for step in steps {
            match step {
                Step::Routes(changes) => {
                    changes.iter().for_each(|change| model.apply(change));
                    writer.change_routes(changes).unwrap();
                }
                Step::Neighbours(changes) => {
                    changes.iter().for_each(|change| model.know(change));
                    writer.change_neighbours(changes).unwrap();
                }
            }
            for (flow, &probe) in (0_u64..).zip(&probes) {
                let flow = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let expected = model.hop(probe, flow);
                prop_assert_eq!(seen(fib.hop(probe, flow)), expected, "{}", probe);
                let next = match probe {
                    IpAddr::V4(address) => fib.next4(address.octets(), flow),
                    IpAddr::V6(address) => fib.next6(address.octets(), flow),
                };
                prop_assert_eq!(next.map(|next| (next.port(), next.mac())), expected.ok());
                prop_assert_eq!(writer.ways_to(probe), model.ways(probe));
                for port in 0..3 {
                    prop_assert_eq!(fib.is_on_link(probe, port), model.ways(probe).contains(&Way::OnLink(port)));
                    if let Err(NoHop::Unresolved(port, neighbour)) = expected {
                        prop_assert!(!fib.resolves(port, neighbour));
                    }
                }
                let ways = model.ways(probe);
                for way in ways {
                    let (port, neighbour) = match way {
                        Way::OnLink(port) => (*port, probe),
                        Way::Gateway(port, gateway) => (*port, *gateway),
                    };
                    prop_assert_eq!(fib.resolves(port, neighbour), model.neighbours.contains_key(&(port, neighbour)));
                }
            }
        }
        writer.replace_routes(Vec::new()).unwrap();
        prop_assert!(probes.iter().all(|probe| fib.hop(*probe, 0) == Err(NoHop::NoRoute)));
        prop_assert_eq!(writer.in_use(), (0, 0, 0), "nodes and rows that nobody uses");
    }

    /// Of each prefix list in turn each list's prefixes, wherever they come from.
    #[test]
    fn a_list_takes_the_place_of_another(lists in prop::collection::vec(prop::collection::vec(route(), 0..20), 1..5), probes in prop::collection::vec(address(), 40)) {
        let mut writer = FibWriter::sized(SIZES).unwrap();
        for list in lists {
            let mut model = Model::default();
            let list: Vec<_> = list.into_iter().filter(|change| change.ways.is_some()).collect();
            list.iter().for_each(|change| model.apply(change));
            let prefixes = list.into_iter().map(|RouteChange { address, length, ways }| Prefix { address, length, ways: ways.unwrap_or_default() });
            writer.replace_routes(prefixes.collect()).unwrap();
            for &probe in &probes {
                prop_assert_eq!(seen(writer.fib().hop(probe, 7)), model.hop(probe, 7));
            }
        }
    }
}

/// Lists of routes, or of neighbours, one after the other in the FIB while two threads look: each answer must be that of a list that was
/// in force meanwhile.
#[test]
fn a_reader_sees_what_was_or_what_is() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut draw = |count| {
        let strategy = prop::collection::vec(route(), count);
        strategy.new_tree(&mut runner).unwrap().current()
    };
    let probes: Vec<IpAddr> = draw(60).into_iter().map(|change| change.address).collect();
    let mut lists: Vec<Vec<RouteChange>> = (0..40).map(|_| draw(120)).collect();
    lists.iter_mut().flatten().for_each(|change| change.ways = Some(change.ways.take().unwrap_or_default()));
    let macs = [[2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 2]];
    let neighbours: Vec<Neighbour> = (0..3)
        .flat_map(|port| {
            probes.iter().map(move |&address| Neighbour { port, address, mac: macs[usize::from(port % 2)] })
        })
        .collect();
    let expected: Vec<Vec<_>> = lists
        .iter()
        .map(|list| {
            let mut model = Model::default();
            list.iter().for_each(|change| model.apply(change));
            model.neighbours = neighbours.iter().map(|known| ((known.port, known.address), known.mac)).collect();
            probes.iter().map(|probe| model.hop(*probe, 3)).collect()
        })
        .collect();
    let prefixes = |list: &[RouteChange]| {
        let prefix = |change: &RouteChange| Prefix {
            address: change.address,
            length: change.length,
            ways: change.ways.clone().unwrap_or_default(),
        };
        list.iter().map(prefix).collect::<Vec<_>>()
    };
    let mut writer = FibWriter::sized(SIZES).unwrap();
    writer.replace_neighbours(&neighbours).unwrap();
    writer.replace_routes(prefixes(&lists[0])).unwrap();
    // The list that is being put in force: before it counts the one before it.
    let phase = AtomicUsize::new(0);
    let fib = Arc::clone(writer.fib());
    let last = 100 * lists.len();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    for (at, &probe) in probes.iter().enumerate() {
                        let before = phase.load(Ordering::Acquire);
                        let answer = seen(fib.hop(probe, 3));
                        let after = phase.load(Ordering::Acquire);
                        let mut lists = (before.saturating_sub(1)..=after).map(|phase| phase % expected.len());
                        assert!(
                            lists.any(|list| expected[list][at] == answer),
                            "{probe} in {before}..={after}: {answer:?}"
                        );
                        if after == last {
                            return;
                        }
                    }
                }
            });
        }
        for number in 1..=last {
            phase.store(number, Ordering::Release);
            fence(Ordering::SeqCst);
            writer.replace_routes(prefixes(&lists[number % lists.len()])).unwrap();
        }
    });
}

const SIZES: Sizes = Sizes { rows: 2000, nodes_ipv4: 200, nodes_ipv6: 3000 };
