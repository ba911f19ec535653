//! The whole dataplane on one core: DPDK buffers in, parsed, checked, looked up, rewritten, sent; one line of JSON for each case.
//!
//! A ring port's loop holds a thousand buffers; when one is sent the harness writes the headers of another established flow
//! into it, in random order over all flows, since a thousand buffers are not a million flows. That costs time too: the harness alone
//! is measured as a case of its own and not subtracted. Rates are per core of the thread's own CPU time. `scripts/bench` runs this
//! beside the yardsticks and makes a table of both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use weir::ports::{MbufPacket, PortQueue};
use weir_cpu::thread_cpu_time;
use weir_dataplane::farm::{Endpoint, Farm, FarmParts, Neighbour, NoEndpoint, Port, Prefix, Service, Vip, Way};
use weir_dataplane::flow::{FlowHash, Key, Key4, Key6, protocol};
use weir_dataplane::forwarder::{Forwarder, Settings};
use weir_dataplane::packet::{BURST, Burst, Packet, Queue};
use weir_dataplane::plumbing::Plumb;
use weir_dataplane::route_table::{Action, IdleTimeouts, Mode, Route, State};
use weir_dataplane::shard::{self, Shard, ShardLink, ShardPort, Twin};
use weir_dpdk::{Eal, EalOptions, IdlePort, MemoryMode, Mempool, PoolConfig, PortConfig};
use weir_health_load::Directive;
use weir_identity::{ApplicationId, EndpointId, HostId, Moment, ServiceId};

#[derive(Debug, Parser)]
struct Options {
    /// Flows of each case.
    #[arg(long, value_delimiter = ',', default_value = "1,65536,1048576")]
    flows: Vec<u64>,
    /// Cases: harness, dsr, nat, dsr6.
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
    let eal = Eal::init(&EalOptions {
        program: "bench".to_owned(),
        memory: MemoryMode::NoHuge { mib: 128 },
        cpus: vec![options.cpu],
        ..EalOptions::default()
    })?;
    let pool = Mempool::new(eal, "bench", PoolConfig { mbufs: 4095, cache: 256, data_room: 2048 })?;
    let mut number = 0;
    for case in &options.cases {
        for &flows in &options.flows {
            number += 1;
            let name = format!("net_ring{number}");
            let started = IdlePort::ring_loop(eal, &name, 1, 2048)?.start(&PortConfig::default(), pool)?;
            let queue = started.rx.into_iter().zip(started.tx).next().map(|(rx, tx)| PortQueue::new(rx, tx, pool));
            let generator = Generator::new(case, flows);
            let feeder = Feeder { queue: queue.ok_or("no queue")?, generator, fill: Arc::default() };
            let mut rates = match case.as_str() {
                "harness" => harness(feeder, &options),
                _ => forward(case, feeder, flows, &options)?,
            };
            rates.sort_by(f64::total_cmp);
            let (median, best) = (rates[rates.len() / 2], rates[rates.len() - 1]);
            println!(
                "{{\"name\":\"weir {case}\",\"flows\":{flows},\"packet_bytes\":{},\"mode\":\"{case}\",\
                 \"mpps_per_core\":{median:.2},\"best\":{best:.2},\"ns_per_packet\":{:.2}}}",
                if case == "dsr6" { 74 } else { 64 },
                1000.0 / median
            );
        }
    }
    Ok(())
}

/// The harness alone: receive, write another flow's headers, send.
fn harness(mut feeder: Feeder, options: &Options) -> Vec<f64> {
    feeder.fill();
    let mut burst = Burst::new();
    measure(options, |_| {
        feeder.receive(&mut burst);
        let count = burst.len();
        feeder.send(&mut burst);
        count as u64
    })
}

/// The whole dataplane with a route for each flow.
fn forward(case: &str, feeder: Feeder, flows: u64, options: &Options) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let mode = if case == "nat" { Mode::Nat } else { Mode::Dsr };
    let six = case == "dsr6";
    let capacity = usize::try_from(flows)?.max(1024) * if mode == Mode::Nat { 2 } else { 1 };
    let forwarder = Forwarder::new(&Settings {
        shard: 0,
        shards: 1,
        routes_ipv4: if six { 1 } else { capacity },
        routes_ipv6: if six { capacity } else { 1 },
        hash: FlowHash::new(0x5745_4952),
    })?;
    let (generator, fill) = (feeder.generator.clone(), Arc::clone(&feeder.fill));
    let (link, mut classifier) = shard::link(1024, 1024);
    let neighbours = shard::neighbourhoods(1, 16).pop().ok_or("no shard")?;
    let ports = vec![ShardPort::new(Ok(feeder), Twin::Itself)];
    let mut shard = Shard::new(0, Arc::new(farm(mode)), forwarder, ports, neighbours, vec![link], BURST);
    let mut now = Moment(1);
    let mut installed = 0;
    while installed < flows {
        while installed < flows {
            let endpoint = EndpointId(u32::try_from(installed % ENDPOINTS)?);
            let route = Route { action: Action::Send { endpoint, mode, value: 0 }, state: State::Established };
            if classifier.plumbs.push(Plumb::Replace(generator.key(installed), route)).is_err() {
                break;
            }
            installed += 1;
        }
        shard.turn(now);
        drain(&mut classifier);
        now = Moment(now.0 + 1);
    }
    for _ in 0..100 {
        shard.turn(now);
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
    if after.diverted > counters.diverted || shard.forwarder().drops.total() > 0 {
        return Err(format!("{case}: packets were diverted or dropped: {after:?} {:?}", shard.forwarder().drops).into());
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
}

impl Feeder {
    /// Puts as many buffers into the loop as it is meant to hold.
    fn fill(&mut self) {
        for _ in 0..IN_FLIGHT / BURST {
            let mut burst = Burst::new();
            while let Some(mut packet) = self.queue.allocate().filter(|_| !burst.is_full()) {
                packet.resize(self.generator.frame.len());
                packet.data_mut().copy_from_slice(&self.generator.frame);
                burst.push(packet);
            }
            self.send(&mut burst);
        }
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
    }

    #[inline]
    fn send(&mut self, burst: &mut Burst<MbufPacket>) {
        // Now and not at reception: a processor that reads what it has just written in other pieces waits for it, and no port
        // makes it do that.
        for packet in burst.iter_mut() {
            self.generator.write(packet.data_mut());
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
    frame: Vec<u8>,
    six: bool,
    mask: u64,
    state: u64,
}

impl Generator {
    /// Frames of `case` for a number of flows that is a power of two.
    fn new(case: &str, flows: u64) -> Self {
        assert!(flows.is_power_of_two() && flows <= 1 << 28, "{flows} flows: a power of two up to 2^28 is wanted");
        let six = case == "dsr6";
        let mut frame = Vec::new();
        frame.extend(MAC);
        frame.extend([2, 0, 0, 0, 0, 9]);
        let tcp = [0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0, 0x12, 0x34, 0, 0];
        if six {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(Ipv6Addr::UNSPECIFIED.octets());
            frame.extend(VIP6.octets());
        } else {
            frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 0]);
            frame.extend(VIP.octets());
        }
        frame.extend(tcp);
        frame.resize(frame.len().max(60), 0);
        if !six {
            // The address's words as they are and, for what each flow adds, its identification's complement: 0xffff together.
            let words = frame[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
            let sum = words.fold(0xffff, |sum, word| (sum + word) % 0xffff);
            frame[24..26].copy_from_slice(&(0xffff - sum).to_be_bytes()[2..]);
        }
        Self { frame, six, mask: flows - 1, state: 1 }
    }

    /// Client address and port of a flow.
    #[expect(clippy::cast_possible_truncation, reason = "a flow number taken apart")]
    fn client(flow: u64) -> (u32, u16) {
        (0x0a00_0000 | (flow >> 12) as u32, 1024 + (flow & 0xfff) as u16)
    }

    fn key(&self, flow: u64) -> Key {
        let (address, port) = Self::client(flow);
        let [high, low] = port.to_be_bytes();
        let ports = [high, low, 0, 80];
        if self.six {
            let mut source = CLIENT6;
            source[12..].copy_from_slice(&address.to_be_bytes());
            Key::V6(Key6 { source, destination: VIP6.octets(), ports, protocol: protocol::TCP })
        } else {
            let (source, destination) = (address.to_be_bytes(), VIP.octets());
            Key::V4(Key4 { source, destination, ports, protocol: protocol::TCP })
        }
    }

    /// Writes the headers of the next flow over those of a packet that has been forwarded.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "words of a sum")]
    fn write(&mut self, frame: &mut [u8]) {
        // An odd multiplier and an odd increment visit every flow before one comes again; the upper bits are the random ones.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (address, port) = Self::client((self.state >> 33) & self.mask);
        if self.six {
            frame[..14].copy_from_slice(&self.frame[..14]);
            frame[14..22].copy_from_slice(&self.frame[14..22]);
            frame[22..34].copy_from_slice(&CLIENT6[..12]);
            frame[34..38].copy_from_slice(&address.to_be_bytes());
            frame[38..54].copy_from_slice(&self.frame[38..54]);
            frame[54..56].copy_from_slice(&port.to_be_bytes());
            return;
        }
        let frame: &mut [u8; 38] = match frame.first_chunk_mut() {
            Some(frame) => frame,
            None => return,
        };
        let template: &[u8; 38] = match self.frame.first_chunk() {
            Some(template) => template,
            None => return,
        };
        *frame = *template;
        // What the address adds to the header's sum the identification takes away again, so that the checksum stays.
        frame[18..20].copy_from_slice(&(!(address as u16)).to_be_bytes());
        frame[26..30].copy_from_slice(&address.to_be_bytes());
        frame[34..36].copy_from_slice(&port.to_be_bytes());
    }
}

fn farm(mode: Mode) -> Farm {
    let service = |id, vip| Service {
        id: ServiceId(id),
        protocol: protocol::TCP,
        ports: vec![80..=80],
        mode,
        no_endpoint: NoEndpoint::Drop,
        vip,
    };
    let vip = |address: IpAddr| Vip { address, services: vec![], on_link: vec![0] };
    let host = |n: u64| Ipv4Addr::from(0x0afe_0001 + u32::try_from(n).unwrap_or(0));
    let endpoint = |n: u64| Endpoint {
        service: 0,
        host: HostId(u32::try_from(n).unwrap_or(0)),
        application: ApplicationId(1),
        address: host(n).into(),
        port: (mode == Mode::Nat).then_some(8080),
        directive: Directive::Active,
        backup: false,
        tunnel: None,
        pool: None,
        local: None,
        hop: None,
    };
    Farm::new(FarmParts {
        generation: 1,
        vips: vec![vip(VIP.into()), vip(VIP6.into())],
        services: vec![service(1, 0), service(2, 1)],
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
        pools: vec![],
        ports: vec![Port { mac: MAC, mtu: 1500, vlan: None }],
        timeouts: IdleTimeouts::default(),
        prefixes: vec![Prefix { address: Ipv4Addr::new(10, 254, 0, 0).into(), length: 16, ways: vec![Way::OnLink(0)] }],
        neighbours: (0..ENDPOINTS)
            .map(|n| Neighbour { port: 0, address: host(n).into(), mac: [2, 0, 0, 1, 0, u8::try_from(n).unwrap_or(0)] })
            .collect(),
    })
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const VIP: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
const CLIENT6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ENDPOINTS: u64 = 64;
/// Buffers in the loop.
const IN_FLIGHT: usize = 1024;
