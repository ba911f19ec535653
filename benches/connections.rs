//! New connections through a forwarder and a classifier, on a core each, beside a million live routes; one line of JSON for each mode, number
//! of endpoints (all of them at their capacity, if so wanted) and number of clients.
//!
//! Every buffer in the loop of a ring port is a client: when its SYN has left for a host its ACK comes, then data, then FIN, then the
//! SYN of another connection. So each connection takes four packets, of which the first goes to the classifier and comes back with its
//! route; how long that takes is the plumbing delay, with all that waits before it. Rates are per second of CPU time of that core
//! that had more; both poll.

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
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use weir::ports::{MbufPacket, PortQueue};
use weir_cpu::thread_cpu_time;
use weir_dataplane::packet::{Burst, Packet, Queue};
use weir_dataplane::parse::tcp_flags;
use weir_dataplane::route_table::{IdleTimeouts, Mode};
use weir_dataplane::shard::Twin;
use weir_identity::Moment;

use crate::farm::{ENDPOINTS, Frame};
use crate::unit::{Service, Unit};

#[derive(Debug, Parser)]
struct Options {
    /// Established connections beside the new ones.
    #[arg(long, default_value_t = 1 << 20)]
    live: u64,
    /// How many clients connect at once.
    #[arg(long, value_delimiter = ',', default_value = "32,1024")]
    clients: Vec<usize>,
    /// How many endpoints the service has.
    #[arg(long, value_delimiter = ',', default_values_t = [ENDPOINTS])]
    endpoints: Vec<u64>,
    /// How their packets reach them: dsr; nat, where each host has another service by the same socket.
    #[arg(long, value_parser = ["dsr", "nat"], default_value = "dsr")]
    mode: String,
    /// All endpoints say that they are at their capacity.
    #[arg(long)]
    full: bool,
    /// How long each measurement takes, in milliseconds of CPU time.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Measurements of each.
    #[arg(long, default_value_t = 5)]
    runs: usize,
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
    let (eal, pool) = ports::start("connections", &[forwarder_cpu], 4095)?;
    let mode = if options.mode == "nat" { Mode::Nat } else { Mode::Dsr };
    let cases =
        options.endpoints.iter().flat_map(|endpoints| options.clients.iter().map(|clients| (*endpoints, *clients)));
    for (number, (endpoints, clients)) in cases.enumerate() {
        let service = Service { mode, endpoints, full: options.full };
        let ring = format!("net_ring{number}");
        let tally = Arc::new(Tally {
            done: AtomicU64::new(0),
            delays: Mutex::new(Histogram::new_with_bounds(1, u32::MAX.into(), 3)?),
        });
        let world = Clients {
            queue: ports::ring(eal, pool, &ring)?,
            clients,
            first: options.live,
            next: 0,
            frame: Frame::new(false, 0),
            ready: Arc::default(),
            tally: Arc::clone(&tally),
        };
        let bench = Bench::new(world, &options, service)?;
        let mut runs = bench.measure(&options, classifier_cpu, &tally)?;
        runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let (median, best) = (&runs[runs.len() / 2], &runs[runs.len() - 1]);
        println!(
            "{{\"name\":\"weir connections\",\"mode\":\"{}\",\"endpoints\":{endpoints},\"full\":{},\"flows\":{},\"clients\":{clients},\"connections_per_second\":{:.0},\"best\":{:.0},\
             \"delay_p50_us\":{:.1},\"delay_p99_us\":{:.1},\"delay_p99_us_best\":{:.1}}}",
            options.mode, options.full, options.live, median.rate, best.rate, median.p50, median.p99, best.p99
        );
    }
    Ok(())
}

/// What came of a run: connections a second, and delays in microseconds.
struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
}

/// One forwarder and one classifier, with the live routes.
struct Bench {
    unit: Unit<Clients>,
    ready: Arc<AtomicBool>,
}

impl Bench {
    fn new(world: Clients, options: &Options, service: Service) -> Result<Self, Box<dyn std::error::Error>> {
        // A connection that is over is kept for a second: what counts is how many can come, not how many fit.
        let timeouts = IdleTimeouts([10_000, 3_600_000, 1_000, 60_000, 10_000]);
        let ready = Arc::clone(&world.ready);
        Ok(Self { unit: Unit::serving(world, Twin::Itself, options.live, CONNECTIONS, timeouts, service)?, ready })
    }

    /// Runs both, each on its core.
    fn measure(
        mut self,
        options: &Options,
        classifier_cpu: usize,
        tally: &Tally,
    ) -> Result<Vec<Run>, Box<dyn std::error::Error>> {
        let (start, per_milli) = (weir_cpu::tsc(), weir_cpu::tsc_hz() / 1000);
        let now = move || Moment(2 + (weir_cpu::tsc() - start) / per_milli);
        let (stop, classifier_time) = (AtomicBool::new(false), AtomicU64::new(0));
        let Unit { shard, seat } = &mut self.unit;
        self.ready.store(true, Ordering::Relaxed);
        let runs = thread::scope(|scope| {
            scope.spawn(|| {
                core_affinity::set_for_current(core_affinity::CoreId { id: classifier_cpu });
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..256 {
                        seat.turn(now());
                    }
                    let spent = u64::try_from(thread_cpu_time().as_nanos()).unwrap_or(u64::MAX);
                    classifier_time.store(spent, Ordering::Relaxed);
                }
            });
            let mut one = |limit: Duration| {
                tally.delays.lock().reset();
                let (cpu, other, done) = (thread_cpu_time(), classifier_time.load(Ordering::Relaxed), tally.done());
                while thread_cpu_time() - cpu < limit {
                    for _ in 0..256 {
                        shard.turn(now());
                    }
                }
                let own = (thread_cpu_time() - cpu).as_secs_f64();
                let other = Duration::from_nanos(classifier_time.load(Ordering::Relaxed) - other).as_secs_f64();
                let delays = tally.delays.lock();
                let micros = |part| delays.value_at_quantile(part) as f64 * 1e6 / weir_cpu::tsc_hz() as f64;
                Run { rate: (tally.done() - done) as f64 / own.max(other), p50: micros(0.5), p99: micros(0.99) }
            };
            // Before anything is measured as many connections are over as there will be.
            one(Duration::from_millis(1500));
            let runs = (0..options.runs).map(|_| one(Duration::from_millis(options.millis))).collect();
            stop.store(true, Ordering::Relaxed);
            runs
        });
        let (counters, drops) = (shard.forwarder().counters, shard.forwarder().drops);
        if drops.total() > 0 || counters.routes_evicted > 0 {
            return Err(format!("packets were dropped or routes evicted: {counters:?} {drops:?}").into());
        }
        Ok(runs)
    }
}

/// What clients have seen.
#[derive(Debug)]
struct Tally {
    done: AtomicU64,
    /// In cycles of the TSC, from a SYN's coming until it leaves for its host.
    delays: Mutex<Histogram<u64>>,
}

impl Tally {
    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// A ring port with clients at its other end.
struct Clients {
    queue: PortQueue,
    clients: usize,
    /// New connections are other flows than the established ones.
    first: u64,
    next: u32,
    frame: Frame,
    /// Whether clients are to begin at the next reception.
    ready: Arc<AtomicBool>,
    tally: Arc<Tally>,
}

impl Clients {
    /// Makes a packet the SYN of the next connection.
    fn open(&mut self, frame: &mut [u8]) {
        self.next = self.next.wrapping_add(1);
        // It is of use only here: nobody else looks at the numbers in this packet.
        frame[SEQUENCE..SEQUENCE + 4].copy_from_slice(&self.next.to_be_bytes());
        let now = weir_cpu::tsc().to_be_bytes();
        frame[ACKNOWLEDGMENT..ACKNOWLEDGMENT + 4].copy_from_slice(&now[4..]);
        self.write(self.next, tcp_flags::SYN, frame);
    }

    fn write(&self, connection: u32, flags: u8, frame: &mut [u8]) {
        self.frame.write(self.first + u64::from(connection) % FLOWS, frame);
        frame[FLAGS] = flags;
    }
}

impl Queue for Clients {
    type Packet = MbufPacket;

    fn receive(&mut self, burst: &mut Burst<MbufPacket>) {
        self.queue.receive(burst);
        if burst.is_empty() && self.ready.swap(false, Ordering::Relaxed) {
            for _ in 0..self.clients {
                let Some(mut packet) = self.queue.allocate() else { break };
                packet.resize(self.frame.bytes.len());
                packet.data_mut().copy_from_slice(&self.frame.bytes);
                self.open(packet.data_mut());
                let mut burst = Burst::new();
                burst.push(packet);
                self.queue.send(&mut burst);
            }
        }
    }

    fn send(&mut self, burst: &mut Burst<MbufPacket>) {
        let tally = Arc::clone(&self.tally);
        let mut delays = tally.delays.lock();
        let mut done = 0;
        for packet in burst.iter_mut() {
            let frame = packet.data_mut();
            let number = |at: usize| frame[at..at + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
            let (connection, flags) = (number(SEQUENCE), frame[FLAGS]);
            if flags == tcp_flags::SYN {
                #[expect(clippy::cast_possible_truncation, reason = "32 bits of it are a second and a half")]
                let delay = (weir_cpu::tsc() as u32).wrapping_sub(number(ACKNOWLEDGMENT));
                delays.saturating_record(delay.into());
                self.write(connection, tcp_flags::ACK, frame);
            } else if flags == tcp_flags::ACK {
                self.write(connection, tcp_flags::ACK | tcp_flags::PSH, frame);
            } else if flags & tcp_flags::FIN == 0 {
                self.write(connection, tcp_flags::ACK | tcp_flags::FIN, frame);
            } else {
                done += 1;
                self.open(frame);
            }
        }
        self.tally.done.fetch_add(done, Ordering::Relaxed);
        self.queue.send(burst);
    }

    fn allocate(&mut self) -> Option<MbufPacket> {
        self.queue.allocate()
    }
}

/// Of the TCP header behind Ethernet and IPv4: sequence number, acknowledgment number, flags.
const SEQUENCE: usize = 38;
const ACKNOWLEDGMENT: usize = 42;
const FLAGS: usize = 47;
/// Connections that may be there beside the live ones, most of them over.
const CONNECTIONS: usize = 1 << 22;
/// Flows that are taken again and again, long after each was over.
const FLOWS: u64 = 1 << 24;
