//! The whole dataplane on one core: DPDK buffers in, parsed, checked, looked up, rewritten, sent; one line of JSON for each case.
//!
//! A ring port's loop holds a thousand buffers; when one is sent the harness writes the headers of another established flow
//! into it, in random order over all flows, since a thousand buffers are not a million flows. That costs time too: the harness alone
//! is measured as a case of its own and not subtracted; it has more to do in some cases, which `harness-ipip`, `harness-gue` and
//! `harness-mixed` measure. Rates are per core of the thread's own CPU time. `scripts/bench` runs this beside the yardsticks and makes a
//! table of both.
//!
//! In tunnels the harness takes the outer header off again and makes the frame as long as it was (and alone it puts an empty one on
//! first). `mixed` is dsr over both families in turn, with IP packets of 40 (IPv6: 60), 576 and 1500 bytes, 7:4:1. In `kinds` one of
//! twenty packets is of another kind: a first fragment, an echo request, one to no VIP, one with a wrong checksum, in turn. Counted is
//! what leaves by a route, and what does not leave is replaced by a new buffer.

#[allow(dead_code, reason = "the other benches use other parts")]
mod farm;
#[allow(dead_code, reason = "the other benches use other parts")]
mod ports;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Parser;
use weir::ports::{MbufPacket, PortQueue};
use weir_cpu::thread_cpu_time;
use weir_dataplane::flow::{FlowHash, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{Forwarder, Settings};
use weir_dataplane::packet::{BURST, Burst, Packet, Queue};
use weir_dataplane::plumbing::Plumb;
use weir_dataplane::route_table::{Action, IdleTimeouts, Mode, Route, State};
use weir_dataplane::shard::{self, Shard, ShardLink, ShardPort, Twin};
use weir_identity::{EndpointId, Moment};

use crate::farm::{Back, ENDPOINTS, Flows, Frame};

#[derive(Debug, Parser)]
struct Options {
    /// Flows of each case.
    #[arg(long, value_delimiter = ',', default_value = "1,65536,1048576")]
    flows: Vec<u64>,
    /// Cases: dsr, nat, dsr6, full-nat, ipip, gue, mixed, kinds, nat-back, nat-back-50k, full-nat-back, full-nat-back-50k; harness, and
    /// harness- with any of these.
    #[arg(long, value_delimiter = ',', default_value = "harness,dsr")]
    cases: Vec<String>,
    /// How long each measurement takes, in milliseconds of CPU time.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Measurements of each case.
    #[arg(long, default_value_t = 5)]
    runs: usize,
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
    let (eal, pool) = ports::start("bench", &[options.cpu], 4095)?;
    let mut number = 0;
    for name in &options.cases {
        let (case, alone) = Case::of(name)?;
        for &flows in &options.flows {
            number += 1;
            let ring = format!("net_ring{number}");
            let queue = ports::ring(eal, pool, &ring)?;
            let generator = Generator::new(case, flows);
            if alone && case.back {
                let back = |flow| Back::of(&farm::key_in(case.networks, flow).reversed());
                let _ = generator.backs.set(generator.all_backs(flows, back).ok_or("not of IPv4")?);
            }
            let feeder = Feeder { queue, generator, fill: Arc::default(), in_flight: 0, spare: Burst::new() };
            let bytes = case.packet_bytes(&feeder.generator);
            let mut rates =
                if alone { harness(case, feeder, &options) } else { forward(name, case, feeder, flows, &options)? };
            rates.sort_by(f64::total_cmp);
            let way = if case.back { "back" } else { "in" };
            let (median, best) = (rates[rates.len() / 2], rates[rates.len() - 1]);
            println!(
                "{{\"name\":\"weir {name}\",\"flows\":{flows},\"packet_bytes\":{bytes},\"mode\":\"{name}\",\"way\":\"{way}\",\
                 \"mpps_per_core\":{median:.2},\"best\":{best:.2},\"ns_per_packet\":{:.2}}}",
                1000.0 / median
            );
        }
    }
    Ok(())
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    mode: Mode,
    /// Which families the packets are of, in turn.
    families: &'static [bool],
    /// IP packets' lengths, in turn; none of them shorter than its headers.
    lengths: &'static [usize],
    /// Whether one of twenty packets is of another kind.
    kinds: bool,
    /// Whether the packets are the hosts' answers.
    back: bool,
    /// Networks of clients that have a route each.
    networks: u64,
}

impl Case {
    /// A case by its name, and whether it is the harness alone.
    fn of(name: &str) -> Result<(Self, bool), String> {
        let alone = name.strip_prefix("harness");
        let name = alone.map_or(name, |rest| rest.strip_prefix('-').unwrap_or("dsr"));
        let (name, networks) = name.strip_suffix("-50k").map_or((name, 0), |name| (name, 50_000));
        let (name, back) = name.strip_suffix("-back").map_or((name, false), |name| (name, true));
        let (mode, families, lengths) = match name {
            "kinds" => (Mode::Dsr, V4, PLAIN),
            "dsr" => (Mode::Dsr, V4, PLAIN),
            "dsr6" => (Mode::Dsr, V6, PLAIN),
            "nat" => (Mode::Nat, V4, PLAIN),
            "full-nat" => (Mode::FullNat, V4, PLAIN),
            "ipip" => (Mode::Ipip, V4, PLAIN),
            "gue" => (Mode::Gue, V4, PLAIN),
            "mixed" => (Mode::Dsr, BOTH, IMIX),
            _ => return Err(format!("no case is called {name}")),
        };
        if back && !matches!(mode, Mode::Nat | Mode::FullNat) {
            return Err(format!("no hosts' answers come by in {name}"));
        }
        Ok((Self { mode, families, lengths, kinds: name == "kinds", back, networks }, alone.is_some()))
    }

    /// So many of the flows are of each family.
    fn flows_of_family(self, flows: u64) -> u64 {
        if self.families == BOTH { (flows / 2).max(1) } else { flows }
    }

    /// Bytes of the outer header that packets leave with.
    fn overhead(self) -> usize {
        match self.mode {
            Mode::Ipip => 20,
            Mode::Gue => 32,
            _ => 0,
        }
    }

    /// What a packet has on the wire (of IPv4 with its check sequence); of several kinds the mean.
    fn packet_bytes(self, generator: &Generator) -> usize {
        let frames = &generator.frames;
        let on_wire = |frame: &Frame| frame.bytes.len() + if frame.six && self.families == V6 { 0 } else { 4 };
        frames.iter().map(on_wire).sum::<usize>() / frames.len()
    }
}

/// The harness alone: receive, write another flow's headers, send.
fn harness(case: Case, mut feeder: Feeder, options: &Options) -> Vec<f64> {
    feeder.fill();
    let mut burst = Burst::new();
    measure(options, |_| {
        feeder.receive(&mut burst);
        if case.overhead() > 0 {
            for packet in &mut burst {
                packet.prepend(case.overhead());
            }
        }
        let count = burst.len();
        feeder.send(&mut burst);
        count as u64
    })
}

/// The whole dataplane with a route for each flow.
fn forward(
    name: &str,
    case: Case,
    feeder: Feeder,
    flows: u64,
    options: &Options,
) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let mode = case.mode;
    let capacity = usize::try_from(flows)?.max(1024) * if matches!(mode, Mode::Nat | Mode::FullNat) { 2 } else { 1 };
    let forwarder = Forwarder::new(&Settings {
        shard: 0,
        owners: Owners::new(&ToeplitzKey::from_seed(1), 1),
        routes_ipv4: if case.families.contains(&false) { capacity } else { 1 },
        routes_ipv6: if case.families.contains(&true) { capacity } else { 1 },
        hash: FlowHash::new(0x5745_4952),
    })?;
    let fill = Arc::clone(&feeder.fill);
    let generator = feeder.generator.clone();
    let wanted = (0..case.flows_of_family(flows)).flat_map(|flow| case.families.iter().map(move |six| (*six, flow)));
    let mut wanted = wanted.peekable();
    let (link, mut classifier) = shard::link(1024, 1024);
    let neighbours = shard::neighbourhoods(1, 16).pop().ok_or("no shard")?;
    let ports = vec![ShardPort::new(Ok(feeder), Twin::Itself)];
    let farm = Arc::new(farm::farm_towards(mode, IdleTimeouts::default(), case.networks)?);
    let mut shard = Shard::new(0, Arc::clone(&farm), forwarder, ports, neighbours, vec![link], BURST);
    let now = Moment(1);
    while wanted.peek().is_some() {
        while let Some(&(six, flow)) = wanted.peek() {
            let endpoint = EndpointId(u32::try_from(flow % ENDPOINTS)?);
            let route = Route { action: Action::Send { endpoint, mode, value: 0 }, state: State::Established };
            let key = if six { farm::key(six, flow) } else { farm::key_in(case.networks, flow) };
            if classifier.plumbs.push(Plumb::Replace(key, route)).is_err() {
                break;
            }
            wanted.next();
        }
        // No time goes by: the first of a hundred million routes would be too old when the last one is there.
        shard.turn(now);
        drain(&mut classifier);
    }
    for _ in 0..100 {
        shard.turn(now);
    }
    if case.back {
        let back = |flow| Back::new(&farm, shard.forwarder(), case.networks, flow);
        let _ = generator.backs.set(generator.all_backs(flows, back).ok_or("a flow has no route")?);
    }
    fill.store(true, Ordering::Relaxed);
    for _ in 0..1000 {
        shard.turn(now);
        drain(&mut classifier);
    }
    let counters = shard.forwarder().counters;
    let rates = measure(options, |tick| {
        let before = shard.forwarder().counters.hits;
        shard.turn(Moment(now.0 + tick));
        shard.forwarder().counters.hits - before
    });
    let after = shard.forwarder().counters;
    if after.diverted > counters.diverted || shard.forwarder().drops.total() > 0 && !case.kinds {
        return Err(format!("{name}: packets were diverted or dropped: {after:?} {:?}", shard.forwarder().drops).into());
    }
    Ok(rates)
}

fn drain(classifier: &mut ShardLink<MbufPacket>) {
    while classifier.questions.pop().is_ok() {}
    while classifier.notices.pop().is_ok() {}
}

/// Runs `turn` for the given CPU time, several times; millions of packets per second of CPU time. `turn` gets the milliseconds gone.
fn measure(options: &Options, mut turn: impl FnMut(u64) -> u64) -> Vec<f64> {
    let (start, limit) = (weir_cpu::tsc(), Duration::from_millis(options.millis));
    let per_milli = weir_cpu::tsc_hz() / 1000;
    (0..options.runs)
        .map(|_| {
            let before = thread_cpu_time();
            let mut packets = 0;
            loop {
                for _ in 0..256 {
                    let tick = (weir_cpu::tsc() - start) / per_milli;
                    packets += turn(tick);
                }
                let spent = thread_cpu_time() - before;
                if spent >= limit {
                    break packets as f64 / spent.as_secs_f64() / 1e6;
                }
            }
        })
        .collect()
}

/// A ring port whose packets carry a different flow each time they arrive.
struct Feeder {
    queue: PortQueue,
    generator: Generator,
    /// Whether the loop is to be filled at the next reception: not before every flow has its route.
    fill: Arc<AtomicBool>,
    /// Buffers in the loop, where some get lost.
    in_flight: usize,
    /// For those that are lost: written well before they come.
    spare: Burst<MbufPacket>,
}

impl Feeder {
    /// Puts as many buffers into the loop as it is meant to hold.
    fn fill(&mut self) {
        for _ in 0..IN_FLIGHT / BURST {
            let mut burst = Burst::new();
            while let Some(packet) = self.new_packet().filter(|_| !burst.is_full()) {
                burst.push(packet);
            }
            self.send(&mut burst);
        }
    }

    fn new_packet(&mut self) -> Option<MbufPacket> {
        let mut packet = self.queue.allocate()?;
        let frame = &self.generator.frames[0].bytes;
        packet.resize(self.generator.overhead + frame.len());
        packet.data_mut()[self.generator.overhead..].copy_from_slice(frame);
        Some(packet)
    }
}

impl Queue for Feeder {
    type Packet = MbufPacket;

    #[inline]
    fn receive(&mut self, burst: &mut Burst<MbufPacket>) {
        self.queue.receive(burst);
        if burst.is_empty() && self.fill.swap(false, Ordering::Relaxed) {
            self.fill();
        }
        if self.generator.lossy {
            self.in_flight -= burst.len().min(self.in_flight);
            if burst.is_empty() {
                return;
            }
            let room = burst.remaining_capacity().min(self.spare.len());
            burst.extend(self.spare.drain(..room));
            // What has not come back.
            while self.in_flight + burst.len() + self.spare.len() < IN_FLIGHT && !self.spare.is_full() {
                let Some(mut packet) = self.new_packet() else { break };
                let flow = self.generator.flows.next();
                self.generator.frame().write(flow, packet.data_mut());
                self.spare.push(packet);
            }
        }
    }

    #[inline]
    fn send(&mut self, burst: &mut Burst<MbufPacket>) {
        // Now and not at reception: a processor that reads what it has just written in other pieces waits for it, and no port
        // makes it do that.
        let generator = &mut self.generator;
        if let Some(backs) = generator.backs.get() {
            for packet in burst.iter_mut() {
                backs[generator.at].write(&generator.frames[0], packet.data_mut());
                generator.at = if generator.at + 1 == backs.len() { 0 } else { generator.at + 1 };
            }
        } else if let [frame] = &generator.frames[..] {
            for packet in burst.iter_mut() {
                if generator.overhead > 0 {
                    packet.trim_front(generator.overhead);
                    packet.resize(frame.bytes.len());
                }
                frame.write(generator.flows.next(), packet.data_mut());
            }
        } else if generator.lossy {
            for packet in burst.iter_mut() {
                let flow = generator.flows.next();
                generator.frame().write(flow, packet.data_mut());
            }
            self.in_flight += burst.len();
        } else {
            for packet in burst.iter_mut() {
                generator.reshape(packet);
            }
        }
        self.queue.send(burst);
    }

    fn allocate(&mut self) -> Option<MbufPacket> {
        self.queue.allocate()
    }
}

/// Headers of established flows in random order.
#[derive(Debug, Clone)]
struct Generator {
    /// One for each kind of packet, in the order in which they come.
    frames: Vec<Frame>,
    next: usize,
    overhead: usize,
    /// Whether some packets do not come back.
    lossy: bool,
    flows: Flows,
    /// Answers in the order in which they come, once there are any.
    backs: Arc<OnceLock<Vec<Back>>>,
    at: usize,
}

impl Generator {
    /// Frames of `case` for a number of flows that is a power of two.
    fn new(case: Case, flows: u64) -> Self {
        assert!(flows.is_power_of_two() && flows <= 1 << 28, "{flows} flows: a power of two up to 2^28 is wanted");
        let frames = case.lengths.iter().flat_map(|len| case.families.iter().map(|six| Frame::new(*six, *len)));
        let mut frames: Vec<Frame> = frames.collect();
        if case.kinds {
            let plain = frames[0].clone();
            frames =
                Frame::others().into_iter().flat_map(|other| [vec![plain.clone(); 19], vec![other]].concat()).collect();
        }
        Self {
            frames,
            next: 0,
            overhead: case.overhead(),
            lossy: case.kinds,
            flows: Flows::new(case.flows_of_family(flows)),
            backs: Arc::default(),
            at: 0,
        }
    }

    /// As many answers as there are flows, in random order.
    fn all_backs(&self, flows: u64, back: impl Fn(u64) -> Option<Back>) -> Option<Vec<Back>> {
        let mut order = self.flows.clone();
        (0..flows.max(1024)).map(|_| back(order.next())).collect()
    }

    /// Makes a packet as long as the next one is to be, and writes that.
    fn reshape(&mut self, packet: &mut MbufPacket) {
        let flow = self.flows.next();
        let frame = self.frame();
        packet.resize(frame.bytes.len());
        // It may have been of the other family.
        packet.data_mut()[..frame.headers()].copy_from_slice(&frame.bytes[..frame.headers()]);
        frame.write(flow, packet.data_mut());
    }

    /// The next packet's.
    #[inline]
    fn frame(&mut self) -> &Frame {
        let at = self.next;
        self.next = if at + 1 == self.frames.len() { 0 } else { at + 1 };
        &self.frames[at]
    }
}

const V4: &[bool] = &[false];
const V6: &[bool] = &[true];
const BOTH: &[bool] = &[false, true];
/// Nothing but headers.
const PLAIN: &[usize] = &[0];
/// 7:4:1, spread.
const IMIX: &[usize] = &[0, 576, 0, 0, 576, 0, 1500, 0, 576, 0, 0, 576];
/// Buffers in the loop.
const IN_FLIGHT: usize = 1024;
