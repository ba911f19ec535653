//! What the parts of the packet's way take: `cargo bench -p weir-dataplane --bench parts`, compared with the run before.
//!
//! Times of 1024 packets, or flows, that fit into the cache; for the whole, and for more flows than fit, there is `scripts/bench`.

#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a bench fails by panicking")]
#![allow(dead_code, reason = "the other bench uses other parts")]

mod routed;

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weir_dataplane::flow::{FlowHash, Key};
use weir_dataplane::packet::Packet;
use weir_dataplane::parse::parse;
use weir_dataplane::route_table::{Action, Mode, Route, RouteTable, Slot4, State};
use weir_dataplane::wire::checksum::checksum;

use crate::routed::farm::key;
use crate::routed::{FLOWS, Routed, bursts};

fn packets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packets");
    group.throughput(Throughput::Elements(FLOWS));
    for six in [false, true] {
        let bursts = bursts(six, 0..FLOWS);
        group.bench_function(BenchmarkId::new("parse", if six { "IPv6" } else { "IPv4" }), |bencher| {
            let mac = Routed::new(Mode::Dsr, six).farm.ports[0].mac;
            bencher
                .iter(|| bursts.iter().flatten().filter(|packet| parse(black_box(packet.data()), mac).is_ok()).count());
        });
    }
    for (mode, six) in [
        (Mode::Dsr, false),
        (Mode::Dsr, true),
        (Mode::Nat, false),
        (Mode::FullNat, false),
        (Mode::Ipip, false),
        (Mode::Gue, false),
    ] {
        let name = format!("{mode:?}, {}", if six { "IPv6" } else { "IPv4" });
        let mut routed = Routed::new(mode, six);
        group.bench_function(BenchmarkId::new("quick lane", &name), |bencher| {
            bencher.iter_batched(
                || bursts(six, 0..FLOWS),
                |packets| {
                    routed.bursts = packets;
                    assert_eq!(routed.quick(), FLOWS);
                },
                BatchSize::LargeInput,
            );
        });
    }
    for mode in [Mode::Nat, Mode::FullNat] {
        let mut routed = Routed::back(mode, 50_000);
        let answers = routed.bursts.clone();
        group.bench_function(BenchmarkId::new("quick lane", format!("{mode:?}, IPv4, the way back")), |bencher| {
            bencher.iter_batched(
                || answers.clone(),
                |packets| {
                    routed.bursts = packets;
                    assert_eq!(routed.quick(), FLOWS);
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn tables(criterion: &mut Criterion) {
    let keys: Vec<_> =
        (0..2 * FLOWS).filter_map(|flow| if let Key::V4(key) = key(false, flow) { Some(key) } else { None }).collect();
    let (known, unknown) = keys.split_at(FLOWS as usize);
    let route = Route { action: Action::Drop, state: State::Refused };
    let mut table = RouteTable::<Slot4>::new(2 * FLOWS as usize, FlowHash::new(1)).unwrap();
    for key in known {
        table.insert(key, route, 1).unwrap();
    }
    let mut group = criterion.benchmark_group("route table");
    group.throughput(Throughput::Elements(FLOWS));
    for (name, keys) in [("hit", known), ("miss", unknown)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| keys.iter().filter(|key| table.find(black_box(key)).is_some()).count());
        });
    }
    group.bench_function("insert and remove", |bencher| {
        bencher.iter(|| {
            for key in unknown {
                table.insert(key, route, 1).unwrap();
            }
            for key in unknown {
                let at = table.find(key).unwrap();
                table.remove(at);
            }
        });
    });
    group.finish();
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for length in [20, 1480] {
        let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
        group.throughput(Throughput::Bytes(length));
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.iter(|| checksum(black_box(&bytes)))
        });
    }
    group.finish();
}

criterion_group!(parts, packets, tables, checksums);
criterion_main!(parts);
