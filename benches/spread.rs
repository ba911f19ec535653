//! Shards on cores of their own: what one core forwards with all flows, and what several do at the same time with a part each; one
//! line of JSON for each number of cores.
//!
//! The flows of one service are spread over the shards of one unit as a NIC would do it that knows the owner's hash, and each shard has
//! a port of its own. A core's rate is per second of its own CPU time, and several cores' is the sum. Both take turns.

#[allow(dead_code, reason = "the other benches use other parts")]
mod farm;
mod ports;
#[allow(dead_code, reason = "the other benches use other parts")]
mod unit;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use clap::Parser;
use weir::ports::{MbufPacket, PortQueue};
use weir_cpu::thread_cpu_time;
use weir_dataplane::flow::{FlowHash, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{Forwarder, Settings};
use weir_dataplane::packet::{BURST, Burst, Packet, Queue};
use weir_dataplane::route_table::{IdleTimeouts, Mode};
use weir_dataplane::shard::{self, Shard, ShardPort, Twin};
use weir_dpdk::{Eal, Mempool};
use weir_identity::Moment;

use crate::farm::{Flows, Frame};

#[derive(Debug, Parser)]
struct Options {
    /// Flows of all shards together, a power of two.
    #[arg(long, default_value_t = 1 << 20)]
    flows: u64,
    /// How long each measurement takes, in milliseconds of CPU time.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Measurements of each.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The cores.
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<usize>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let (eal, pool) = ports::start("spread", &options.cpus, 16383)?;
    let cores = [1, options.cpus.len()];
    let mut units = Vec::new();
    for &shards in &cores {
        units.push(unit(eal, pool, shards, &options)?);
    }
    let mut rates = vec![Vec::new(); cores.len()];
    for _ in 0..options.runs {
        for (unit, rates) in units.iter_mut().zip(&mut rates) {
            rates.push(measure(unit, &options));
        }
    }
    for (cores, mut rates) in cores.into_iter().zip(rates) {
        rates.sort_by(f64::total_cmp);
        let (median, best) = (rates[rates.len() / 2], rates[rates.len() - 1]);
        println!(
            "{{\"name\":\"weir spread over {cores}\",\"flows\":{},\"cores\":{cores},\"mpps\":{median:.2},\"mpps_best\":{best:.2}}}",
            options.flows
        );
    }
    Ok(())
}

/// The shards of one unit, each with its part of the routes and of the packets.
fn unit(
    eal: Eal,
    pool: Mempool,
    shards: usize,
    options: &Options,
) -> Result<Vec<Shard<Line>>, Box<dyn std::error::Error>> {
    let farm = Arc::new(farm::farm(Mode::Dsr, IdleTimeouts::default())?);
    let (hash, owners) = (FlowHash::new(0x5745_4952), Owners::new(&ToeplitzKey::from_seed(1), shards));
    let mut parts = vec![Vec::new(); shards];
    let mut flows = Flows::new(options.flows);
    for flow in (0..options.flows).map(|_| flows.next()) {
        parts[owners.client_is_source(&farm::key(false, flow))].push(u32::try_from(flow)?);
    }
    let mut all = Vec::new();
    for ((number, flows), neighbours) in parts.into_iter().enumerate().zip(shard::neighbourhoods(shards, 1024)) {
        let queue = ports::ring(eal, pool, &format!("net_ring{shards}x{number}"))?;
        let ready = Arc::new(AtomicBool::new(false));
        let line =
            Line { queue, frame: Frame::new(false, 0), flows: flows.clone(), next: 0, ready: Arc::clone(&ready) };
        // As many slots a route in both units, so that nothing but the number of cores differs.
        let capacity = usize::try_from(options.flows)?.div_ceil(shards) * 9 / 8;
        let owners = owners.clone();
        let settings = Settings { shard: number, owners, routes_ipv4: capacity, routes_ipv6: 1, hash: hash.clone() };
        let (link, mut classifier) = shard::link(unit::RING, unit::RING);
        let ports = vec![ShardPort::new(Ok(line), Twin::Itself)];
        let mut shard =
            Shard::new(number, Arc::clone(&farm), Forwarder::new(&settings)?, ports, neighbours, vec![link], BURST);
        unit::establish(&mut shard, &mut classifier, flows.into_iter().map(u64::from))?;
        ready.store(true, Ordering::Relaxed);
        // Fills the loop.
        for _ in 0..1000 {
            shard.turn(Moment(1));
        }
        all.push(shard);
    }
    Ok(all)
}

/// Runs each shard on its core, all at the same time, and adds up their millions of packets a second of CPU time.
fn measure(shards: &mut [Shard<Line>], options: &Options) -> f64 {
    let limit = Duration::from_millis(options.millis);
    let (begin, over, count) = (Barrier::new(shards.len()), AtomicUsize::new(0), shards.len());
    let one = |shard: &mut Shard<Line>, cpu: usize| {
        core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
        begin.wait();
        let (hits, before) = (shard.forwarder().counters.hits, thread_cpu_time());
        let mut rate = None;
        // Who is through goes on until the others are.
        while over.load(Ordering::Relaxed) < count {
            for _ in 0..256 {
                shard.turn(Moment(1));
            }
            let spent = thread_cpu_time() - before;
            if rate.is_none() && spent >= limit {
                rate = Some((shard.forwarder().counters.hits - hits) as f64 / spent.as_secs_f64() / 1e6);
                over.fetch_add(1, Ordering::Relaxed);
            }
        }
        rate.unwrap_or(0.0)
    };
    thread::scope(|scope| {
        let threads: Vec<_> =
            shards.iter_mut().zip(&options.cpus).map(|(shard, cpu)| scope.spawn(|| one(shard, *cpu))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(f64::NAN)).sum()
    })
}

/// A ring port whose packets carry a different flow each time they leave.
struct Line {
    queue: PortQueue,
    frame: Frame,
    flows: Vec<u32>,
    next: usize,
    /// Whether the loop is to be filled.
    ready: Arc<AtomicBool>,
}

impl Queue for Line {
    type Packet = MbufPacket;

    fn receive(&mut self, burst: &mut Burst<MbufPacket>) {
        self.queue.receive(burst);
        if burst.is_empty() && self.ready.swap(false, Ordering::Relaxed) {
            for _ in 0..IN_FLIGHT {
                let Some(mut packet) = self.queue.allocate() else { break };
                packet.resize(self.frame.bytes.len());
                packet.data_mut().copy_from_slice(&self.frame.bytes);
                let mut burst = Burst::from_iter([packet]);
                self.send(&mut burst);
            }
        }
    }

    fn send(&mut self, burst: &mut Burst<MbufPacket>) {
        for packet in burst.iter_mut() {
            self.frame.write(self.flows[self.next].into(), packet.data_mut());
            self.next = if self.next + 1 == self.flows.len() { 0 } else { self.next + 1 };
        }
        self.queue.send(burst);
    }

    fn allocate(&mut self) -> Option<MbufPacket> {
        self.queue.allocate()
    }
}

/// Buffers in the loop of each port.
const IN_FLIGHT: usize = 1024;
