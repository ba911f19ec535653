//! What the parts of the packet's way cost in instructions, which no other load on the machine changes: `cargo bench -p weir-dataplane
//! --bench instructions` (needs valgrind, and `cargo install gungraun-runner` once).
//!
//! Figures are of 1024 packets in bursts of 32, all with routes; of one turn; of 4096 packets over several shards; of 512 routes. More than the limit beside each fails.

#![expect(missing_docs, reason = "of what the macros make")]
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a bench fails by panicking")]
#![allow(dead_code, reason = "the other bench uses other parts")]

mod routed;

use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use weir_dataplane::flow::{FlowHash, Key};
use weir_dataplane::route_table::{Action, Mode, Route, RouteTable, Slot4, State};
use weir_dataplane::shard::Shard;
use weir_identity::Moment;

use crate::routed::farm::key;
use crate::routed::spread::feed::Feed;
use crate::routed::spread::{self, Spread};
use crate::routed::{Arrivals, FLOWS, LATER, Routed, Waiting, shard};

#[library_benchmark]
#[bench::dsr(args = (Routed::new(Mode::Dsr, false)), config = most(203_000))]
#[bench::dsr6(args = (Routed::new(Mode::Dsr, true)), config = most(206_000))]
#[bench::nat(args = (Routed::new(Mode::Nat, false)), config = most(324_000))]
#[bench::full_nat(args = (Routed::new(Mode::FullNat, false)), config = most(350_000))]
#[bench::nat_back(args = (Routed::back(Mode::Nat, 0)), config = most(450_000))]
#[bench::nat_back_many_networks(args = (Routed::back(Mode::Nat, 2000)), config = most(450_000))]
#[bench::full_nat_back(args = (Routed::back(Mode::FullNat, 0)), config = most(450_000))]
#[bench::full_nat_back_many_networks(args = (Routed::back(Mode::FullNat, 2000)), config = most(450_000))]
#[bench::ipip(args = (Routed::new(Mode::Ipip, false)), config = most(295_000))]
#[bench::gue(args = (Routed::new(Mode::Gue, false)), config = most(312_000))]
fn quick_lane(mut routed: Routed) -> Routed {
    assert_eq!(routed.quick(), FLOWS);
    routed
}

#[library_benchmark]
#[bench::dsr(args = (Routed::new(Mode::Dsr, false)), config = most(625_000))]
#[bench::dsr6(args = (Routed::new(Mode::Dsr, true)), config = most(695_000))]
#[bench::nat(args = (Routed::new(Mode::Nat, false)), config = most(810_000))]
fn general_way(mut routed: Routed) -> Routed {
    assert_eq!(routed.general(), FLOWS);
    routed
}

// A shard's turn: its work is bounded, whatever waits and however many routes there are.
#[library_benchmark]
#[bench::idle(args = (shard(1024, Waiting::Nothing), Moment(1)), config = most(1_100))]
#[bench::expiry(args = (shard(1024, Waiting::Nothing), LATER), config = most(15_000))]
#[bench::busy(args = (shard(1024, Waiting::Everything), LATER), config = most(830_000))]
#[bench::busy_with_many_routes(args = (shard(65_536, Waiting::Everything), LATER), config = most(830_000))]
fn turn(mut shard: Box<Shard<Arrivals>>, now: Moment) -> Box<Shard<Arrivals>> {
    shard.turn(now);
    shard
}

// All packets of several shards' queues, in turns until they have left: what each does to its own, and what a hand-over adds.
#[library_benchmark]
#[bench::one_shard(args = (Spread::new(Feed::Owner, 1)), config = most(1_170_000))]
#[bench::owner_2(args = (Spread::new(Feed::Owner, 2)), config = most(1_190_000))]
#[bench::owner_8(args = (Spread::new(Feed::Owner, 8)), config = most(1_200_000))]
#[bench::four_tuple_2(args = (Spread::new(Feed::FourTuple, 2)), config = most(2_140_000))]
#[bench::four_tuple_8(args = (Spread::new(Feed::FourTuple, 8)), config = most(2_360_000))]
fn shards(mut spread: Spread) -> Spread {
    assert_eq!(spread.forward(), spread::FLOWS);
    spread
}

// 512 routes into a table that is half full then, and into one that is full then.
#[library_benchmark]
#[bench::half_full(args = (table(512)), config = most(55_000))]
#[bench::full(args = (table(0)), config = most(65_000))]
fn insert(mut table: RouteTable<Slot4>) -> RouteTable<Slot4> {
    for flow in FLOWS..FLOWS + 512 {
        let Key::V4(key) = key(false, flow) else { unreachable!() };
        table.insert(&key, ROUTE, 1).unwrap();
    }
    table
}

/// A table of 1024 IPv4 routes with room for 512 and `more`.
fn table(more: usize) -> RouteTable<Slot4> {
    let mut table = RouteTable::new(FLOWS as usize, FlowHash::new(1)).unwrap();
    for flow in 0..FLOWS - 512 - more as u64 {
        let Key::V4(key) = key(false, flow) else { unreachable!() };
        table.insert(&key, ROUTE, 1).unwrap();
    }
    table
}

const ROUTE: Route = Route { action: Action::Drop, state: State::Refused };

/// More instructions than this are a regression; with another compiler the limits may have to move.
fn most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, instructions)]));
    config
}

library_benchmark_group!(name = packets; benchmarks = quick_lane, general_way);
library_benchmark_group!(name = turns; benchmarks = turn);
library_benchmark_group!(name = spreads; benchmarks = shards);
library_benchmark_group!(name = tables; benchmarks = insert);

main!(library_benchmark_groups = packets, turns, spreads, tables);
