//! A million packets a second without routes beside established traffic at half of what a core forwards, which must not suffer; one
//! line of JSON for each kind of flood.
//!
//! Forwarder and classifier have a core each. In each round as many packets of a million established connections come first as the
//! forwarder takes: its capacity. Then half of it, at an even pace, and the strangers: SYNs, or segments of connections that nobody
//! knows, each of another flow. Every packet of an established connection that comes has to leave. In `own` the strangers' packets are
//! to the unit's own address, whose kernel is behind a TAP (in a network namespace that the caller has made: `unshare --net`), and
//! a thousand of the router's BFD packets a second come beside them, each of which has to reach the kernel. Where the hypervisor stops the
//! machine for a while, a port's queue would run over, whatever the unit does: so nothing comes in that time. Nor can the unit help it
//! if the machine becomes slower than it was when the round began, which rounds are short for.

#[allow(dead_code, reason = "the other benches use other parts")]
mod farm;
#[allow(dead_code, reason = "the other benches use other parts")]
mod ports;
mod unit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use weir::ports::{MbufPacket, PortQueue};
use weir_cpu::{thread_cpu_time, tsc, tsc_hz};
use weir_dataplane::counters::DropReason;
use weir_dataplane::packet::{BURST, Burst, Packet, Queue};
use weir_dataplane::parse::tcp_flags;
use weir_dataplane::route_table::IdleTimeouts;
use weir_dataplane::shard::{Twin, TwinQueues, TwinRates};
use weir_dpdk::Mempool;
use weir_identity::Moment;

use crate::farm::{Flows, Frame};
use crate::unit::Unit;

#[derive(Debug, Parser)]
struct Options {
    /// Established connections, a power of two from 4096 on: strangers have other addresses.
    #[arg(long, default_value_t = 1 << 20)]
    live: u64,
    /// Packets without a route, in millions a second.
    #[arg(long, default_value_t = 1.0)]
    strangers: f64,
    /// The router's packets in `own`, in millions a second.
    #[arg(long, default_value_t = 0.001)]
    peers: f64,
    /// Their kinds.
    #[arg(long, value_delimiter = ',', default_value = "syn,ack,own")]
    kinds: Vec<String>,
    /// How many rounds each has, the first of which fills tables and does not count.
    #[arg(long, default_value_t = 17)]
    rounds: usize,
    /// How long the strangers come in each, in milliseconds; the capacity is measured for half as long before.
    #[arg(long, default_value_t = 200)]
    millis: u64,
    /// The forwarder's and the classifier's CPU.
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<usize>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let &[forwarder_cpu, classifier_cpu] = &options.cpus[..] else { return Err("--cpus wants two".into()) };
    core_affinity::set_for_current(core_affinity::CoreId { id: forwarder_cpu });
    let (eal, pool) = ports::start("flood", &[forwarder_cpu], 8191)?;
    for kind in &options.kinds {
        let (flags, strangers) = match &kind[..] {
            "syn" => (tcp_flags::SYN, Frame::new(false, 0)),
            "ack" => (tcp_flags::ACK, Frame::new(false, 0)),
            "own" => (tcp_flags::SYN, Frame::to_unit()),
            _ => return Err(format!("no flood is called {kind}: there are syn, ack and own").into()),
        };
        let settings = Arc::new(Settings::default());
        let line = End::Line(Line::new(pool, options.live, flags, strangers, &settings));
        let twin = if kind == "own" {
            let tap = ports::tap(eal, pool, "flood0")?;
            Twin::Port(End::Tap(tap, Arc::clone(&settings)), Arc::new(TwinQueues::new(TwinRates::default())))
        } else {
            Twin::Itself
        };
        // Strangers' routes and sessions live for three seconds, and there is no room for all of them. No established connection is
        // silent for as long, after which it might have to give way.
        let timeouts = IdleTimeouts([3_000, 3_600_000, 3_000, 60_000, 3_000]);
        println!(
            "{}",
            run(kind, Unit::new(line, twin, options.live, 1 << 19, timeouts)?, &settings, classifier_cpu, &options)
        );
    }
    Ok(())
}

/// Capacity, then the flood; what came of it.
fn run(kind: &str, unit: Unit<End>, settings: &Settings, classifier_cpu: usize, options: &Options) -> String {
    let Unit { mut shard, mut seat } = unit;
    let (start, per_milli) = (tsc(), tsc_hz() / 1000);
    let now = move || Moment(2 + (tsc() - start) / per_milli);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            core_affinity::set_for_current(core_affinity::CoreId { id: classifier_cpu });
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..256 {
                    seat.turn(now());
                }
            }
        });
        let mut go = |millis: u64| {
            let (begin, cpu, before) = (now().0, thread_cpu_time(), settings.seen());
            while now().0 < begin + millis {
                for _ in 0..64 {
                    shard.turn(now());
                }
            }
            settings.seen().since(&before, thread_cpu_time() - cpu)
        };
        settings.ready.store(true, Ordering::Relaxed);
        let own = kind == "own";
        // What one of them costs, where nothing else comes.
        let alone = own.then(|| {
            settings.strangers_alone.store(true, Ordering::Relaxed);
            let seen = go(options.millis);
            settings.strangers_alone.store(false, Ordering::Relaxed);
            1e3 / seen.strangers_mpps()
        });
        let mut rounds: Vec<(f64, Seen)> = Vec::new();
        for _ in 0..options.rounds.max(2) {
            settings.open();
            let capacity = go(options.millis / 2).established_mpps();
            settings.pace(capacity / 2.0, options.strangers, if own { options.peers } else { 0.0 });
            rounds.push((capacity, go(options.millis)));
        }
        // What is still on its way has to leave, too.
        settings.pace(0.0, 0.0, 0.0);
        go(200);
        stop.store(true, Ordering::Relaxed);
        let (came, left) = (settings.came.load(Ordering::Relaxed), settings.left.load(Ordering::Relaxed));
        let drops = shard.forwarder().drops;
        let shed: u64 = SHED.iter().map(|reason| drops.of(*reason)).sum();
        let peers = settings.peers.came.load(Ordering::Relaxed) - settings.peers.left.load(Ordering::Relaxed);
        let twin = alone.map_or_else(String::new, |alone| {
            format!(
                ",\"peers_came\":{},\"peers_lost\":{peers},\"to_kernel\":{},\"ns_per_stranger\":{alone:.1}",
                settings.peers.came.load(Ordering::Relaxed),
                shard.forwarder().counters.twin,
            )
        });
        rounds.remove(0);
        let median = |mut of: Vec<f64>| {
            of.sort_by(f64::total_cmp);
            of[of.len() / 2]
        };
        let overflows: Vec<u64> = rounds.iter().map(|(_, seen)| seen.overflowed).collect();
        format!(
            "{{\"name\":\"weir flood of {kind}\",\"capacity_mpps\":{:.2},\"established_mpps\":{:.2},\"strangers_mpps\":{:.2},\
             \"established_lost\":{},\"overflowed\":{},\"rounds\":{},\"rounds_overflowed\":{},\"strangers_shed\":{shed},\
             \"dropped_otherwise\":{},\"routes_evicted\":{}{twin}}}",
            median(rounds.iter().map(|(capacity, _)| *capacity).collect()),
            median(rounds.iter().map(|(_, seen)| seen.established_mpps()).collect()),
            median(rounds.iter().map(|(_, seen)| seen.strangers_mpps()).collect()),
            came - left,
            overflows.iter().sum::<u64>(),
            rounds.len(),
            overflows.iter().filter(|overflow| **overflow > 0).count(),
            drops.total() - shed,
            shard.forwarder().counters.routes_evicted,
        )
    })
}

/// What has come by a moment, or between two.
#[derive(Debug, Clone, Copy)]
struct Seen {
    established: u64,
    strangers: u64,
    overflowed: u64,
    /// Of the forwarder's CPU time; 0 by a moment.
    seconds: f64,
}

impl Seen {
    fn since(&self, before: &Self, spent: Duration) -> Self {
        Self {
            established: self.established - before.established,
            strangers: self.strangers - before.strangers,
            overflowed: self.overflowed - before.overflowed,
            seconds: spent.as_secs_f64(),
        }
    }

    fn established_mpps(&self) -> f64 {
        self.established as f64 / self.seconds / 1e6
    }

    fn strangers_mpps(&self) -> f64 {
        self.strangers as f64 / self.seconds / 1e6
    }
}

/// How fast packets come, and how many have.
#[derive(Debug, Default)]
struct Settings {
    /// Packets for each 2^32 cycles, established and strangers; as many as are taken until they are set.
    established: AtomicU64,
    strangers: AtomicU64,
    paced: AtomicBool,
    /// Whether anything comes.
    ready: AtomicBool,
    /// Packets that found the port's queue full, of both kinds.
    overflowed: AtomicU64,
    came: AtomicU64,
    left: AtomicU64,
    came_strangers: AtomicU64,
    /// Whether nothing but strangers comes until there is a pace.
    strangers_alone: AtomicBool,
    peers: Peers,
}

/// The router's packets.
#[derive(Debug, Default)]
struct Peers {
    /// How fast they come, as the others.
    pace: AtomicU64,
    came: AtomicU64,
    /// Those that the kernel has got.
    left: AtomicU64,
}

impl Settings {
    /// Rates in millions a second.
    fn pace(&self, established: f64, strangers: f64, peers: f64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
        let rate = |mpps: f64| (mpps * 1e6 / tsc_hz() as f64 * 2_f64.powi(32)) as u64;
        self.established.store(rate(established), Ordering::Relaxed);
        self.strangers.store(rate(strangers), Ordering::Relaxed);
        self.peers.pace.store(rate(peers), Ordering::Relaxed);
        self.paced.store(true, Ordering::Relaxed);
    }

    /// As many as are taken, and no strangers.
    fn open(&self) {
        self.paced.store(false, Ordering::Relaxed);
    }

    fn seen(&self) -> Seen {
        Seen {
            established: self.came.load(Ordering::Relaxed),
            strangers: self.came_strangers.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
            seconds: 0.0,
        }
    }
}

/// A port by which packets come at a pace.
struct Line {
    pool: Mempool,
    live: u64,
    flags: u8,
    /// Of the established, of strangers, and of the router.
    frames: [Frame; 3],
    settings: Arc<Settings>,
    last: u64,
    /// Of each of these what is due, in parts of 2^32.
    due: [u64; 3],
    flows: Flows,
    stranger: u64,
}

impl Line {
    fn new(pool: Mempool, live: u64, flags: u8, strangers: Frame, settings: &Arc<Settings>) -> Self {
        Self {
            pool,
            live,
            flags,
            frames: [Frame::new(false, 0), strangers, Frame::bfd()],
            settings: Arc::clone(settings),
            last: tsc(),
            due: [0; 3],
            flows: Flows::new(live),
            stranger: 0,
        }
    }

    fn write(&self, packet: &mut MbufPacket, kind: usize, flow: u64, flags: u8) {
        let frame = &self.frames[kind];
        packet.resize(frame.bytes.len());
        packet.data_mut().copy_from_slice(&frame.bytes);
        if !frame.fixed {
            frame.write(flow, packet.data_mut());
            packet.data_mut()[FLAGS] = flags;
        }
    }

    fn receive(&mut self, burst: &mut Burst<MbufPacket>) {
        let now = tsc();
        let elapsed = std::mem::replace(&mut self.last, now);
        // 50 µs at the most: longer, and the machine stood still.
        let elapsed = now.saturating_sub(elapsed).min(tsc_hz() / 20_000);
        let settings = &self.settings;
        if settings.paced.load(Ordering::Relaxed) {
            self.due[0] += elapsed * settings.established.load(Ordering::Relaxed);
            self.due[1] += elapsed * settings.strangers.load(Ordering::Relaxed);
            self.due[2] += elapsed * settings.peers.pace.load(Ordering::Relaxed);
        } else {
            let due = if settings.ready.load(Ordering::Relaxed) { (BURST as u64) << 32 } else { 0 };
            self.due = if settings.strangers_alone.load(Ordering::Relaxed) { [0, due, 0] } else { [due, 0, 0] };
        }
        let waiting = self.waiting();
        if waiting > QUEUE {
            // What comes now finds the port's queue full; which of them, is chance.
            for due in &mut self.due {
                let lost = (*due >> 32) * (waiting - QUEUE) / waiting;
                *due -= lost << 32;
                settings.overflowed.fetch_add(lost, Ordering::Relaxed);
            }
        }
        let mut came = [0; 3];
        for kind in [2, 1, 0] {
            while self.due[kind] >> 32 > 0
                && !burst.is_full()
                && let Some(mut packet) = self.allocate()
            {
                self.due[kind] -= 1 << 32;
                came[kind] += 1;
                match kind {
                    0 => {
                        let flow = self.flows.next();
                        self.write(&mut packet, kind, flow, tcp_flags::ACK);
                    }
                    1 => {
                        self.stranger = (self.stranger + 1) % STRANGERS;
                        self.write(&mut packet, kind, self.live + self.stranger, self.flags);
                    }
                    _ => self.write(&mut packet, kind, 0, 0),
                }
                burst.push(packet);
            }
        }
        self.settings.came.fetch_add(came[0], Ordering::Relaxed);
        self.settings.came_strangers.fetch_add(came[1], Ordering::Relaxed);
        self.settings.peers.came.fetch_add(came[2], Ordering::Relaxed);
    }

    /// Packets in the port's queue.
    fn waiting(&self) -> u64 {
        self.due.iter().sum::<u64>() >> 32
    }

    fn send(&mut self, burst: &mut Burst<MbufPacket>) {
        let live = (0x0a00_0000 + (self.live >> 12)).to_be_bytes();
        // Strangers are counted by their address, which comes behind those of the established.
        let is_established = |frame: &[u8]| frame[12..14] == [8, 0] && frame[26..30] < live[4..];
        let established = burst.iter().filter(|packet| is_established(packet.data())).count();
        self.settings.left.fetch_add(established as u64, Ordering::Relaxed);
        burst.clear();
    }

    fn is_behind(&self) -> Option<bool> {
        Some(self.settings.paced.load(Ordering::Relaxed) && self.waiting() > QUEUE / 4)
    }

    fn allocate(&mut self) -> Option<MbufPacket> {
        self.pool.alloc().map(MbufPacket::from)
    }
}

/// The port, or the twin of it.
enum End {
    Line(Line),
    /// Counts what of the router's the kernel takes.
    Tap(PortQueue, Arc<Settings>),
}

impl Queue for End {
    type Packet = MbufPacket;

    fn receive(&mut self, burst: &mut Burst<MbufPacket>) {
        match self {
            Self::Line(line) => line.receive(burst),
            Self::Tap(tap, _) => tap.receive(burst),
        }
    }

    fn send(&mut self, burst: &mut Burst<MbufPacket>) {
        let Self::Tap(tap, settings) = self else {
            if let Self::Line(line) = self {
                line.send(burst);
            }
            return;
        };
        let of_router = |burst: &Burst<MbufPacket>| burst.iter().filter(|packet| packet.data()[22] == 255).count();
        let before = of_router(burst);
        tap.send(burst);
        settings.peers.left.fetch_add((before - of_router(burst)) as u64, Ordering::Relaxed);
    }

    fn is_behind(&self) -> Option<bool> {
        match self {
            Self::Line(line) => line.is_behind(),
            Self::Tap(..) => None,
        }
    }

    fn allocate(&mut self) -> Option<MbufPacket> {
        match self {
            Self::Line(line) => line.allocate(),
            Self::Tap(tap, _) => tap.allocate(),
        }
    }
}

/// Why strangers are dropped.
const SHED: [DropReason; 6] = [
    DropReason::DivertShed,
    DropReason::DivertRing,
    DropReason::TwinRate,
    DropReason::TwinShed,
    DropReason::TwinRing,
    DropReason::TwinFull,
];
/// The flags in TCP's header behind Ethernet and IPv4.
const FLAGS: usize = 47;
/// Packets that a port's queue holds.
const QUEUE: u64 = 4096;
/// Flows of strangers until one comes again.
const STRANGERS: u64 = 1 << 25;
