//! How long routes take from the kernel's announcements to the FIB that cores read; one line of JSON for each table.
//!
//! A table is drawn with the lengths of the Internet's: most IPv4 prefixes are /24, most IPv6 prefixes /48 within some 25,000 allocations.
//! "Load" is all of it: the mirror of the kernel's tables, its snapshot, and the FIB. "Change" is one route by another gateway, the same way,
//! and with a look at whether an endpoint's next hop has changed; "neighbour" is another MAC address of a gateway, with a new farm.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use clap::Parser;
use hdrhistogram::Histogram;
use weir::knowledge::Knowledge;
use weir_config::Machine;
use weir_cpu::{tsc, tsc_hz};
use weir_dataplane::farm::Farm;
use weir_dataplane::flow::ToeplitzKey;
use weir_netlink::state::{Event, LinkData, Mirror, NeighbourData, Placed, RouteData, RouteKey};
use weir_netlink::{Gateway, NeighbourState, Prefix, RouteKind};

#[derive(Debug, Parser)]
struct Options {
    /// Prefixes of each table, IPv4+IPv6.
    #[arg(long, value_delimiter = ',', default_value = "100000+0,1000000+200000")]
    tables: Vec<String>,
    /// Changes that are measured.
    #[arg(long, default_value_t = 1000)]
    changes: u64,
    /// The CPU to run on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    core_affinity::set_for_current(core_affinity::CoreId { id: options.cpu });
    for table in &options.tables {
        let (v4, v6) = table.split_once('+').ok_or("a table is IPv4+IPv6, as in 1000000+200000")?;
        let mut draw = Draw(1);
        let mut prefixes = BTreeSet::new();
        let (v4, v6): (usize, usize) = (v4.parse()?, v6.parse()?);
        while prefixes.len() < v4 {
            prefixes.insert(draw.v4());
        }
        while prefixes.len() < v4 + v6 {
            prefixes.insert(draw.v6());
        }
        measure(&prefixes.into_iter().collect::<Vec<_>>(), options.changes)?;
    }
    Ok(())
}

fn measure(prefixes: &[Prefix], changes: u64) -> Result<(), Box<dyn std::error::Error>> {
    let config =
        weir_config::check("configs/minimal.yaml", include_str!("../configs/minimal.yaml"), &Machine::default());
    let mut knowledge =
        Knowledge::new(Arc::new(config.map_err(|report| report.to_string())?), vec![MAC], &ToeplitzKey::from_seed(1))?;
    let mut mirror = Mirror::new(BTreeSet::from(["eth1".to_owned()]));
    mirror.apply(Event::Link { index: 2, link: LinkData { name: "eth1".into(), mac: MAC, mtu: 1500, up: true } });
    mirror.apply(route(Prefix { address: Ipv4Addr::new(192, 0, 2, 0).into(), len: 24 }, None));
    for n in 0..GATEWAYS {
        mirror.apply(neighbour(n, 1));
    }
    let mut farm = knowledge.farm();
    farm = knowledge.follow(Arc::new(mirror.snapshot()), &farm).1.unwrap_or(farm);

    let began = tsc();
    for (n, prefix) in (0..).zip(prefixes) {
        mirror.apply(route(*prefix, Some(gateway(n))));
    }
    let mirrored = tsc();
    follow(&mut knowledge, &mut mirror, &mut farm)?;
    let loaded = tsc();

    let mut times = Histogram::<u64>::new_with_bounds(1, 1 << 40, 3)?;
    let mut draw = Draw(2);
    for n in 0..changes {
        let prefix = prefixes[draw.below(prefixes.len())];
        let before = tsc();
        mirror.apply(route(prefix, Some(gateway(n))));
        follow(&mut knowledge, &mut mirror, &mut farm)?;
        times.saturating_record(tsc() - before);
    }
    let mut neighbours = Histogram::<u64>::new_with_bounds(1, 1 << 40, 3)?;
    for n in 0..changes {
        let before = tsc();
        mirror.apply(neighbour(n % GATEWAYS, u8::try_from(2 + n / GATEWAYS % 200)?));
        follow(&mut knowledge, &mut mirror, &mut farm)?;
        neighbours.saturating_record(tsc() - before);
    }
    let millis = |ticks: u64| ticks as f64 * 1000.0 / tsc_hz() as f64;
    let quantile = |times: &Histogram<u64>, quantile| millis(times.value_at_quantile(quantile)) * 1000.0;
    println!(
        "{{\"name\":\"weir routes\",\"prefixes\":{},\"load_ms\":{:.1},\"fib_ms\":{:.1},\"change_p50_us\":{:.1},\"change_p99_us\":{:.1},\
         \"neighbour_p50_us\":{:.1},\"neighbour_p99_us\":{:.1}}}",
        prefixes.len(),
        millis(loaded - began),
        millis(loaded - mirrored),
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&neighbours, 0.5),
        quantile(&neighbours, 0.99),
    );
    Ok(())
}

/// As the control plane does with each snapshot.
fn follow(knowledge: &mut Knowledge, mirror: &mut Mirror, farm: &mut Farm) -> Result<(), Box<dyn std::error::Error>> {
    let (followed, new) = knowledge.follow(Arc::new(mirror.snapshot()), farm);
    if let Some(full) = followed.full {
        return Err(full.into());
    }
    if let Some(new) = new {
        *farm = new;
    }
    if followed.routes {
        std::hint::black_box(knowledge.newly_wanted());
    }
    Ok(())
}

fn gateway(n: u64) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, 200 + u8::try_from(n % GATEWAYS).unwrap_or(0)).into()
}

fn neighbour(n: u64, last: u8) -> Event {
    let neighbour = NeighbourData { mac: Some([2, 0, 0, 0, 1, last]), state: NeighbourState::Reachable, managed: true };
    Event::Neighbour { interface: 2, address: gateway(n), neighbour }
}

fn route(prefix: Prefix, via: Option<IpAddr>) -> Event {
    let gateways = vec![Gateway { via, interface: 2, weight: 1 }];
    let key = RouteKey { prefix, metric: 0, tos: 0 };
    Event::Route { key, route: RouteData { kind: RouteKind::Unicast, gateways }, placed: Placed::Replace }
}

/// Numbers in the same order each time.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap_or(0) % end
    }

    fn length(&mut self, shares: &[(u64, u8)]) -> u8 {
        let mut at = self.next() % 100;
        shares
            .iter()
            .find(|(share, _)| at.checked_sub(*share).map(|rest| at = rest).is_none())
            .map_or(24, |(_, len)| *len)
    }

    fn v4(&mut self) -> Prefix {
        let len =
            self.length(&[(60, 24), (11, 22), (10, 23), (5, 21), (5, 20), (3, 19), (2, 18), (1, 17), (2, 16), (1, 14)]);
        // 1.0.0.0 to 223.255.255.255.
        let address = u32::try_from((1 << 24) + self.next() % (223 << 24)).unwrap_or(0);
        Prefix { address: Ipv4Addr::from(address & (u32::MAX << (32 - len))).into(), len }
    }

    fn v6(&mut self) -> Prefix {
        let len = self.length(&[(46, 48), (13, 32), (11, 44), (10, 40), (7, 36), (5, 29), (4, 46), (4, 47)]);
        let allocation = self.next() % 25_000;
        let address = u128::from(0x2000 + (allocation % 32) * 16) << 112
            | u128::from((allocation / 32) * 8) << 96
            | u128::from(self.next() & 0xffff) << 80;
        Prefix { address: Ipv6Addr::from(address & (u128::MAX << (128 - len))).into(), len }
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAYS: u64 = 20;
