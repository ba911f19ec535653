//! Several shards fed as NICs feed them: what a packet costs over all shards, and what two cores do; one line of JSON for each
//! combination of feed, shards and queues.
//!
//! Feeds are `owner` (exact RSS: each queue has the flows of its shard), `4-tuple` (RSS over both sides' addresses and ports: a flow
//! comes by one queue, whose shard owns it only by chance) and `one` (one queue for all, and every shard sends). First all shards of a
//! unit run turn by turn on one CPU: nanoseconds a packet are the CPU time over all shards. Then one shard on each of two cores: a
//! core's rate is per second of its own CPU time, and the two are added up. All combinations take turns, and the median counts. Units
//! differ in nothing but the number of shards: their tables have as many slots together, their NICs hold as many packets. What is
//! dropped is named in the row, and `foreign` is the share of packets that came in elsewhere than at their owner. `harness_ns` is what
//! the NIC costs without any shard; it is part of every figure.

#[allow(dead_code, reason = "the other benches use other parts")]
mod farm;
mod feed;
mod nic;
#[allow(dead_code, reason = "it has ports of its own")]
mod ports;
#[allow(dead_code, reason = "the other benches use other parts")]
mod unit;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use clap::Parser;
use weir::ports::MbufPacket;
use weir_cpu::{thread_cpu_time, tsc, tsc_hz};
use weir_dataplane::counters::DropReason;
use weir_dataplane::flow::{FlowHash, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{Forwarder, Settings};
use weir_dataplane::packet::{BURST, Burst, Queue};
use weir_dataplane::route_table::{IdleTimeouts, Mode};
use weir_dataplane::shard::{self, Shard, ShardLink, ShardPort, Twin};
use weir_dpdk::Eal;
use weir_identity::Moment;

use crate::farm::Flows;
use crate::feed::Feed;
use crate::nic::Line;

#[derive(Debug, Parser)]
struct Options {
    /// Flows of all shards together, a power of two.
    #[arg(long, default_value_t = 1 << 16)]
    flows: u64,
    /// Feeds: owner, 4-tuple, one.
    #[arg(long, value_delimiter = ',', default_value = "owner,4-tuple,one")]
    feeds: Vec<String>,
    /// How long each measurement takes, in milliseconds of CPU time.
    #[arg(long, default_value_t = 500)]
    millis: u64,
    /// Measurements of each.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The CPU on which all shards run, and with another one the two cores.
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<usize>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    core_affinity::set_for_current(core_affinity::CoreId { id: options.cpus[0] });
    let (eal, _) = ports::start("spread", &options.cpus, 511)?;
    let feeds = options.feeds.iter().map(|name| Feed::of(name)).collect::<Result<Vec<_>, _>>()?;
    let mut units = Vec::new();
    for &(feed, shards, queues) in COMBINATIONS {
        // One shard is what all others are compared with.
        if feeds.contains(&feed) || shards == 1 {
            units.push(Unit::new(eal, feed, (shards, queues), &options)?);
        }
    }
    let mut rows: Vec<Row> = (0..units.len()).map(|unit| Row { unit, cores: 1, samples: Vec::new() }).collect();
    if let [_, _, ..] = options.cpus[..] {
        let two = units.iter().enumerate().filter(|(_, unit)| unit.shards.len() == 2);
        rows.extend(two.map(|(unit, _)| Row { unit, cores: 2, samples: Vec::new() }));
    }
    for _ in 0..options.runs {
        for row in &mut rows {
            row.samples.push(units[row.unit].measure(&options.cpus[..row.cores], &options)?);
        }
    }
    let alone = rows[0].median(|sample| sample.mpps);
    for row in &rows {
        println!("{}", row.json(&units[row.unit], alone, options.flows));
    }
    Ok(())
}

/// Feed, shards, receive queues. The first is what all are compared with.
const COMBINATIONS: &[(Feed, usize, usize)] = &[
    (Feed::Owner, 1, 1),
    (Feed::Owner, 2, 2),
    (Feed::Owner, 4, 4),
    (Feed::Owner, 8, 8),
    (Feed::FourTuple, 2, 2),
    (Feed::FourTuple, 4, 4),
    (Feed::FourTuple, 8, 8),
    (Feed::FourTuple, 32, 8),
    (Feed::One, 2, 1),
    (Feed::One, 4, 1),
    (Feed::One, 8, 1),
];

/// Shards and what they forward.
struct Unit {
    feed: Feed,
    queues: usize,
    shards: Vec<Shard<Line>>,
    classifiers: Vec<ShardLink<MbufPacket>>,
    /// Nanoseconds a packet without shards.
    harness: f64,
    /// Its time goes by only while it runs.
    now: Moment,
}

/// One measurement.
struct Sample {
    /// Millions of packets a second of CPU time, of all cores together.
    mpps: f64,
    /// The same of time on the wall.
    mpps_wall: f64,
    /// CPU time of all cores for each packet, in nanoseconds.
    nanos: f64,
    /// The share of packets that were handed over.
    foreign: f64,
    dropped: Vec<u64>,
}

/// What counts of a unit's measurements on some cores.
struct Row {
    unit: usize,
    cores: usize,
    samples: Vec<Sample>,
}

impl Unit {
    /// Shards and queues with a route for each flow, and a NIC that deals their packets.
    fn new(
        eal: Eal,
        feed: Feed,
        (count, queues): (usize, usize),
        options: &Options,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let (hash, owners) = (FlowHash::new(0x5745_4952), Owners::new(&ToeplitzKey::from_seed(1), count));
        let (mut owned, mut come) = (vec![Vec::new(); count], vec![Vec::new(); queues]);
        for flow in shuffled(options.flows) {
            let key = farm::key(false, flow.into());
            let owner = feed::owner(&owners, &key);
            owned[owner].push(u64::from(flow));
            come[feed.queue(&key, owner, queues)].push(flow);
        }
        let name = format!("{}{count}x{queues}", feed.name());
        let (mut lines, shared) = nic::lines(eal, &name, come, count - queues)?;
        shared.flow(true);
        let mut runs: Vec<_> = (0..3).map(|_| harness(feed, &mut lines, options.millis / 4)).collect();
        runs.sort_by(f64::total_cmp);
        shared.flow(false);
        let farm = Arc::new(farm::farm(Mode::Dsr, IdleTimeouts::default())?);
        let (mut shards, mut classifiers) = (Vec::new(), Vec::new());
        let neighbourhoods = shard::neighbourhoods(count, HANDOVERS);
        for ((number, owned), (line, neighbours)) in
            owned.into_iter().enumerate().zip(lines.into_iter().zip(neighbourhoods))
        {
            let capacity = usize::try_from(options.flows)?.div_ceil(count) * 9 / 8;
            let settings = Settings {
                shard: number,
                owners: owners.clone(),
                routes_ipv4: capacity,
                routes_ipv6: 1,
                hash: hash.clone(),
            };
            let (link, mut classifier) = shard::link(unit::RING, unit::RING);
            let ports = vec![ShardPort::new(Ok(line), Twin::Itself)];
            let forwarder = Forwarder::new(&settings)?;
            let mut shard = Shard::new(number, Arc::clone(&farm), forwarder, ports, neighbours, vec![link], BURST);
            unit::establish(&mut shard, &mut classifier, owned.into_iter())?;
            shards.push(shard);
            classifiers.push(classifier);
        }
        shared.flow(true);
        let mut unit = Self { feed, queues, shards, classifiers, harness: runs[1], now: Moment(1) };
        unit.alone(Duration::from_millis(50));
        Ok(unit)
    }

    /// Runs it on one core or with one shard on each, and looks whether all is well.
    fn measure(&mut self, cpus: &[usize], options: &Options) -> Result<Sample, String> {
        let limit = Duration::from_millis(options.millis);
        let before = self.counts();
        let clock = Clock::new(self.now);
        let (mpps, cpu) = if let [_] = cpus { self.alone(limit) } else { self.together(cpus, limit) };
        let (after, wall) = (self.counts(), clock.gone());
        for classifier in &mut self.classifiers {
            while classifier.notices.pop().is_ok() {}
        }
        let name = format!("{} {}/{} on {} cores", self.feed.name(), self.shards.len(), self.queues, cpus.len());
        let hits = after.hits - before.hits;
        if after.diverted > before.diverted {
            return Err(format!("{name}: {} packets had no route", after.diverted - before.diverted));
        }
        if (after.sent - before.sent).abs_diff(hits) > u64::from(nic::BUFFERS) {
            return Err(format!("{name}: {hits} packets were counted as forwarded, {} sent", after.sent - before.sent));
        }
        let foreign = (after.handed_over - before.handed_over) as f64 / (after.received - before.received) as f64;
        let expected = self.feed.foreign(self.shards.len());
        // A share of nothing is no number.
        if foreign.is_nan() || (foreign - expected).abs() > 0.05 {
            return Err(format!("{name}: {foreign:.3} of all packets were handed over, not {expected:.3}"));
        }
        let dropped = after.dropped.iter().zip(&before.dropped).map(|(after, before)| after - before).collect();
        let packets = hits as f64;
        Ok(Sample {
            mpps,
            mpps_wall: packets / wall.as_secs_f64() / 1e6,
            nanos: cpu.as_nanos() as f64 / packets,
            foreign,
            dropped,
        })
    }

    /// All shards turn by turn on this core: millions of packets a second of its CPU time, and that time.
    fn alone(&mut self, limit: Duration) -> (f64, Duration) {
        let clock = Clock::new(self.now);
        let (hits, before) = (self.counts().hits, thread_cpu_time());
        let spent = loop {
            for _ in 0..64 {
                let now = clock.now();
                for shard in &mut self.shards {
                    shard.turn(now);
                }
            }
            let spent = thread_cpu_time() - before;
            if spent >= limit {
                break spent;
            }
        };
        // It never steps back.
        self.now = clock.now();
        ((self.counts().hits - hits) as f64 / spent.as_secs_f64() / 1e6, spent)
    }

    /// Each shard on its core, all at the same time: the sum of their rates, and of their CPU times.
    fn together(&mut self, cpus: &[usize], limit: Duration) -> (f64, Duration) {
        let (begin, over, count) = (Barrier::new(cpus.len()), AtomicUsize::new(0), cpus.len());
        let clock = Clock::new(self.now);
        let one = |shard: &mut Shard<Line>, cpu: usize| {
            core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
            begin.wait();
            let (hits, before) = (shard.forwarder().counters.hits, thread_cpu_time());
            let mut rate = None;
            // Who is through goes on until the others are.
            while over.load(Ordering::Relaxed) < count {
                for _ in 0..64 {
                    shard.turn(clock.now());
                }
                let spent = thread_cpu_time() - before;
                if rate.is_none() && spent >= limit {
                    rate = Some((shard.forwarder().counters.hits - hits) as f64 / spent.as_secs_f64() / 1e6);
                    over.fetch_add(1, Ordering::Relaxed);
                }
            }
            (rate.unwrap_or(f64::NAN), thread_cpu_time() - before)
        };
        let sum = thread::scope(|scope| {
            let threads: Vec<_> =
                self.shards.iter_mut().zip(cpus).map(|(shard, cpu)| scope.spawn(|| one(shard, *cpu))).collect();
            threads.into_iter().fold((0.0, Duration::ZERO), |(rates, times), thread| {
                let (rate, time) = thread.join().unwrap_or((f64::NAN, Duration::ZERO));
                (rates + rate, times + time)
            })
        });
        self.now = clock.now();
        sum
    }

    /// What all shards have counted so far.
    fn counts(&self) -> Counts {
        let mut counts = Counts { dropped: vec![0; DropReason::ALL.len()], ..Counts::default() };
        for shard in &self.shards {
            let counters = shard.forwarder().counters;
            counts.hits += counters.hits;
            counts.received += counters.received;
            counts.handed_over += counters.handed_over;
            counts.diverted += counters.diverted;
            counts.sent += shard.queues().map(Line::sent).sum::<u64>();
            for (sum, reason) in counts.dropped.iter_mut().zip(DropReason::ALL) {
                *sum += shard.forwarder().drops.of(*reason);
            }
        }
        counts
    }
}

#[derive(Debug, Default)]
struct Counts {
    hits: u64,
    received: u64,
    handed_over: u64,
    sent: u64,
    diverted: u64,
    dropped: Vec<u64>,
}

impl Row {
    fn median(&self, value: impl Fn(&Sample) -> f64) -> f64 {
        let mut values: Vec<_> = self.samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    /// A line of JSON; `alone` is the rate of one shard on one core.
    fn json(&self, unit: &Unit, alone: f64, flows: u64) -> String {
        let (feed, shards, queues, cores) = (unit.feed.name(), unit.shards.len(), unit.queues, self.cores);
        let on = if cores == 1 { "" } else { " on two cores" };
        let mpps = self.median(|sample| sample.mpps);
        let best = self.samples.iter().map(|sample| sample.mpps).fold(0.0, f64::max);
        let drops: Vec<_> = DropReason::ALL
            .iter()
            .enumerate()
            .map(|(at, reason)| (reason.name(), self.samples.iter().map(|sample| sample.dropped[at]).sum::<u64>()))
            .filter(|(_, packets)| *packets > 0)
            .map(|(name, packets)| format!("\"{name}\":{packets}"))
            .collect();
        format!(
            "{{\"name\":\"weir {feed} {shards}/{queues}{on}\",\"flows\":{flows},\"packet_bytes\":64,\"mode\":\"dsr\",\"feed\":\"{feed}\",\
             \"shards\":{shards},\"queues\":{queues},\"cores\":{cores},\"way\":\"in\",\"mpps\":{mpps:.2},\"best\":{best:.2},\
             \"mpps_wall\":{:.2},\"mpps_per_core\":{:.2},\"ns_per_packet\":{:.2},\"of_one_shard\":{:.3},\"foreign\":{:.3},\
             \"harness_ns\":{:.2},\"drops\":{{{}}}}}",
            self.median(|sample| sample.mpps_wall),
            mpps / cores as f64,
            self.median(|sample| sample.nanos),
            mpps / alone,
            self.median(|sample| sample.foreign),
            unit.harness,
            drops.join(",")
        )
    }
}

/// Nanoseconds for each packet of a NIC alone: what a queue has received another one sends, as the feed makes shards do.
fn harness(feed: Feed, lines: &mut [Line], millis: u64) -> f64 {
    let (limit, before) = (Duration::from_millis(millis), thread_cpu_time());
    let (mut packets, mut other) = (0, 0);
    let mut burst = Burst::new();
    loop {
        for _ in 0..64 {
            for queue in 0..lines.len() {
                if !lines[queue].receives() {
                    break;
                }
                for _ in 0..8 {
                    lines[queue].receive(&mut burst);
                    packets += burst.len();
                    other = if feed == Feed::Owner { queue } else { (other + 1) % lines.len() };
                    lines[other].send(&mut burst);
                }
            }
        }
        let spent = thread_cpu_time() - before;
        if spent >= limit {
            return spent.as_nanos() as f64 / packets as f64;
        }
    }
}

/// The numbers of so many flows, each once, in random order.
fn shuffled(flows: u64) -> Vec<u32> {
    let mut random = Flows::new(1 << 31);
    let mut all: Vec<u32> = (0..u32::try_from(flows).unwrap_or(u32::MAX)).collect();
    for last in (1..all.len()).rev() {
        let other = random.next() % (last as u64 + 1);
        all.swap(last, usize::try_from(other).unwrap_or(0));
    }
    all
}

/// Time as shards are told it, in milliseconds.
struct Clock {
    begin: Moment,
    start: u64,
    per_milli: u64,
}

impl Clock {
    fn new(begin: Moment) -> Self {
        Self { begin, start: tsc(), per_milli: tsc_hz() / 1000 }
    }

    fn now(&self) -> Moment {
        Moment(self.begin.0 + (tsc() - self.start) / self.per_milli)
    }

    fn gone(&self) -> Duration {
        Duration::from_secs_f64((tsc() - self.start) as f64 / tsc_hz() as f64)
    }
}

/// Packets that may wait on their way from one shard to another, as in a unit.
const HANDOVERS: usize = 1024;
