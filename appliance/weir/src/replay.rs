//! `weir replay`: the unit's forwarder and classifier over capture files, deterministic, without root, EAL or network.
//!
//! Time is the captures' own; the seed is fixed unless the YAML gives one. Packets that arrive at one port within microseconds form
//! bursts, as a busy port would give them; the answer to a packet is never in its burst.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};
use serde::Serialize;
use weir_config::Config;
use weir_dataplane::core::{Command, Core, Turn};
use weir_dataplane::farm::Farm;
use weir_dataplane::packet::{BURST, Burst, HeapPacket, Queue};
use weir_dataplane::shard::{Twin, TwinQueues};
use weir_health_load::SharedHandler;
use weir_identity::Moment;

use crate::allotments::Standings;
use crate::knowledge::Knowledge;
use crate::unit::{self, Assembly};

/// What to replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Captures to read, each for a port (by name; `None`: the only port, or the first).
    pub inputs: Vec<(Option<String>, PathBuf)>,
    /// Captures to write, each for a port (`None`: all ports that have none of their own).
    pub outputs: Vec<(Option<String>, PathBuf)>,
    /// Where packets for the kernel twins go.
    pub twin: Option<PathBuf>,
    /// Packets in a burst, 1 to 32.
    pub burst: usize,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Packets read.
    pub packets_in: u64,
    /// Packets that left by ports.
    pub packets_out: u64,
    /// Packets for the kernel twins.
    pub twin: u64,
    /// Dropped packets by reason; only those that occurred.
    pub drops: BTreeMap<&'static str, u64>,
    /// All counters of shards and classifiers that are not 0.
    pub counters: BTreeMap<String, u64>,
    /// The routes at the end.
    pub routes: Vec<weir_admin::api::RouteEntry>,
}

/// Why a replay did not run.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A file cannot be opened or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no capture, or a broken one.
    #[error("{path}: {source} (a pcap or pcapng file of Ethernet frames is wanted)")]
    Capture {
        /// Which.
        path: PathBuf,
        /// Why.
        source: PcapError,
    },
    /// A capture of something else than Ethernet.
    #[error("{path}: frames of link type {link:?}, but only Ethernet can be replayed")]
    LinkType {
        /// Which.
        path: PathBuf,
        /// What it has.
        link: DataLink,
    },
    /// No such port in the configuration.
    #[error("no port {name:?} in the configuration; it has {have}")]
    UnknownPort {
        /// As given.
        name: String,
        /// The ports that there are.
        have: String,
    },
    /// A port without addresses: replay has no kernel to ask for them.
    #[error("port {port} has no `addresses`: replay asks no kernel, so the YAML has to say what its links are")]
    NoAddresses {
        /// The YAML's name of the port.
        port: String,
    },
    /// The unit's parts cannot be made.
    #[error(transparent)]
    Assembly(#[from] unit::AssemblyError),
}

/// Runs the captures through a unit configured by `config`.
///
/// # Errors
///
/// [`ReplayError`]; output files may be incomplete then.
pub fn run(config: Config, replay: &Replay) -> Result<Outcome, ReplayError> {
    let config = Arc::new(config);
    let port_of = |name: &Option<String>| match name {
        None => Ok(0),
        Some(name) => config.ports.iter().position(|port| &port.name == name).ok_or_else(|| {
            let have: Vec<_> = config.ports.iter().map(|port| port.name.as_str()).collect();
            ReplayError::UnknownPort { name: name.clone(), have: have.join(", ") }
        }),
    };
    if let Some(port) = config.ports.iter().find(|port| port.addresses.is_empty()) {
        return Err(ReplayError::NoAddresses { port: port.name.clone() });
    }
    let mut frames = Vec::new();
    for (name, path) in &replay.inputs {
        let port = port_of(name)?;
        frames.extend(read(path)?.into_iter().map(|(time, bytes)| (time, port, bytes)));
    }
    // Captures of several ports are merged by time; frames of one instant keep the order of the options.
    frames.sort_by_key(|(time, ..)| *time);
    let mut writers: BTreeMap<usize, Rc<RefCell<Writer>>> = BTreeMap::new();
    for (name, path) in &replay.outputs {
        let writer = Rc::new(RefCell::new(Writer::create(path)?));
        match name {
            Some(_) => {
                writers.insert(port_of(name)?, writer);
            }
            None => (0..config.ports.len()).for_each(|port| {
                writers.entry(port).or_insert_with(|| Rc::clone(&writer));
            }),
        }
    }
    let twin_writer = replay.twin.as_deref().map(Writer::create).transpose()?;

    let mut bench = Bench::new(config, replay.burst.clamp(1, BURST))?;
    let packets_in = frames.len() as u64;
    let start = frames.first().map_or(Duration::ZERO, |(time, ..)| *time);
    let (mut packets_out, mut twins) = (0, 0);
    let mut twin_writer = twin_writer;
    let mut frames = VecDeque::from(frames);
    while let Some((time, port, first)) = frames.pop_front() {
        let now = Moment(u64::try_from(time.as_millis() - start.as_millis()).unwrap_or(u64::MAX));
        let mut burst = vec![first];
        while let Some((next, next_port, _)) = frames.front() {
            let together = *next_port == port && next.saturating_sub(time) < TOGETHER;
            if !together || burst.len() >= replay.burst {
                break;
            }
            burst.extend(frames.pop_front().map(|(_, _, bytes)| bytes));
        }
        for (to, bytes) in bench.feed(port, burst, now) {
            match to {
                Sent::Port(port) => {
                    packets_out += 1;
                    if let Some(writer) = writers.get(&port) {
                        writer.borrow_mut().write(time, &bytes)?;
                    }
                }
                Sent::Twin => {
                    twins += 1;
                    if let Some(writer) = &mut twin_writer {
                        writer.write(time, &bytes)?;
                    }
                }
            }
        }
    }
    Ok(bench.outcome(packets_in, packets_out, twins))
}

/// A unit on heap buffers, run turn by turn.
struct Bench {
    config: Arc<Config>,
    farm: Arc<Farm>,
    core: Core<Capture>,
    wire: Wire,
    now: Moment,
}

impl Bench {
    fn new(config: Arc<Config>, burst: usize) -> Result<Self, ReplayError> {
        // A VLAN has the address of its port.
        let of_its_own = |(port, number): (&weir_config::Port, u8)| port.mac.unwrap_or([0x02, 0, 0, 0, 0, number]);
        let macs: Vec<_> = config.ports.iter().zip(1u8..).map(of_its_own).collect();
        let below = |(port, mac)| crate::knowledge::vlan(port).map_or(mac, |(parent, _)| macs[usize::from(parent)]);
        let macs = config.ports.iter().zip(macs.iter().copied()).map(below).collect();
        let seed = config.dataplane.seed.unwrap_or(REPLAY_SEED);
        let key = unit::bucket_key(&config, seed);
        let mut knowledge = Knowledge::new(Arc::clone(&config), macs, &key).map_err(unit::AssemblyError::Fib)?;
        let generation = knowledge.next_generation();
        let farm = Arc::new(knowledge.farm());
        let standings = Standings::new(generation, knowledge.standings(), SharedHandler::default());
        let wire = Wire::default();
        let assembly = Assembly {
            config: &config,
            farm: Arc::clone(&farm),
            standings: Arc::new(ArcSwap::from_pointee(standings)),
            seed,
            key,
            burst,
        };
        let rates = crate::ports::twin_rates(&config.dataplane);
        let twins: Vec<_> = config.ports.iter().map(|_| Arc::new(TwinQueues::new(rates))).collect();
        // The first shard has every port; the others, if any, send by it.
        let (shards, classifiers) = assembly.assemble(
            |shard, port| {
                if shard == 0 {
                    let queue = |sent| Capture { wire: wire.clone(), sent };
                    (Ok(queue(Sent::Port(port))), Twin::Port(queue(Sent::Twin), Arc::clone(&twins[port])))
                } else {
                    (Err(0), Twin::Queued(Arc::clone(&twins[port])))
                }
            },
            || Box::new(|| Some(HeapPacket::new(&[]))),
        )?;
        let (commands, receiver) = crossbeam::channel::unbounded();
        for shard in shards {
            let _ = commands.send(Command::AddShard(Box::new(shard)));
        }
        for seat in classifiers {
            let _ = commands.send(Command::AddClassifier(Box::new(seat)));
        }
        let core = Core::new(receiver, Arc::new(ArcSwap::new(Arc::clone(&farm))));
        Ok(Self { config, farm, core, wire, now: Moment(0) })
    }

    /// Lets a burst arrive at a port and runs until nothing is left to do; what was sent, in order.
    fn feed(&mut self, port: usize, burst: Vec<Vec<u8>>, now: Moment) -> Vec<(Sent, Vec<u8>)> {
        self.now = now;
        let packets = burst.iter().map(|bytes| HeapPacket::new(bytes));
        self.wire.0.lock().arriving.entry(port).or_default().extend(packets);
        // A turn may hand its work to a later one (rings); two idle turns in a row mean that all of it is done.
        let mut idle = 0;
        while idle < 2 {
            idle = if self.core.turn(now) == Turn::Worked(0) { idle + 1 } else { 0 };
        }
        std::mem::take(&mut self.wire.0.lock().sent)
    }

    fn outcome(self, packets_in: u64, packets_out: u64, twin: u64) -> Outcome {
        let Self { config, farm, core, now, .. } = self;
        let (mut drops, mut counters) = (BTreeMap::new(), BTreeMap::new());
        let mut count = |name: &str, value: u64| {
            if value > 0 {
                *counters.entry(name.to_owned()).or_insert(0) += value;
            }
        };
        let (mut shards, mut seats) = core.into_parts();
        let mut routes = Vec::new();
        let show = crate::routes::Show::new(&farm, &config);
        for shard in &mut shards {
            shard.publish();
            shard.published().counters().for_each(|(name, value)| count(name, value));
            for (reason, value) in shard.published().drops().filter(|(_, value)| *value > 0) {
                *drops.entry(reason.name()).or_insert(0) += value;
            }
            let millis = u32::try_from(now.0 & u64::from(u32::MAX)).unwrap_or(0);
            let seen = crate::routes::list(shard.forwarder(), &farm, shard.number(), millis);
            routes.extend(seen.iter().filter_map(|seen| show.one(seen, shard.number())));
        }
        for seat in &mut seats {
            seat.publish();
            seat.published().counters().for_each(|(name, value)| count(name, value));
        }
        routes.sort_by_key(|route| (route.flow.client, route.flow.vip));
        Outcome { packets_in, packets_out, twin, drops, counters, routes }
    }
}

/// Where a packet went.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Port(usize),
    Twin,
}

/// What is on its way to and from the unit.
#[derive(Debug, Clone, Default)]
struct Wire(Arc<Mutex<OnTheWay>>);

#[derive(Debug, Default)]
struct OnTheWay {
    arriving: BTreeMap<usize, VecDeque<HeapPacket>>,
    sent: Vec<(Sent, Vec<u8>)>,
}

/// A port (or twin) whose other end is a capture file.
struct Capture {
    wire: Wire,
    sent: Sent,
}

impl Queue for Capture {
    type Packet = HeapPacket;

    fn receive(&mut self, burst: &mut Burst<HeapPacket>) {
        if let Sent::Port(port) = self.sent
            && let Some(arriving) = self.wire.0.lock().arriving.get_mut(&port)
        {
            let count = burst.remaining_capacity().min(arriving.len());
            burst.extend(arriving.drain(..count));
        }
    }

    fn send(&mut self, burst: &mut Burst<HeapPacket>) {
        use weir_dataplane::packet::Packet;
        let mut wire = self.wire.0.lock();
        wire.sent.extend(burst.drain(..).map(|packet| (self.sent, packet.data().to_vec())));
    }

    fn allocate(&mut self) -> Option<HeapPacket> {
        Some(HeapPacket::new(&[]))
    }
}

/// Reads all frames of a pcap or pcapng file with their times since the Unix epoch.
fn read(path: &Path) -> Result<Vec<(Duration, Vec<u8>)>, ReplayError> {
    let capture = |source| ReplayError::Capture { path: path.to_owned(), source };
    let ethernet = |link| {
        let wrong = ReplayError::LinkType { path: path.to_owned(), link };
        if link == DataLink::ETHERNET { Ok(()) } else { Err(wrong) }
    };
    let open =
        || File::open(path).map(BufReader::new).map_err(|source| ReplayError::File { path: path.to_owned(), source });
    let mut magic = [0; 4];
    io::Read::read_exact(&mut open()?, &mut magic)
        .map_err(|source| ReplayError::File { path: path.to_owned(), source })?;
    let mut frames = Vec::new();
    if magic == [0x0a, 0x0d, 0x0d, 0x0a] {
        let mut reader = PcapNgReader::new(open()?).map_err(capture)?;
        let mut links = Vec::new();
        while let Some(block) = reader.next_block() {
            match block.map_err(capture)? {
                Block::SectionHeader(_) => links.clear(),
                Block::InterfaceDescription(interface) => links.push(interface.linktype),
                Block::EnhancedPacket(packet) => {
                    ethernet(links.get(packet.interface_id as usize).copied().unwrap_or(DataLink::ETHERNET))?;
                    frames.push((packet.timestamp, packet.data.into_owned()));
                }
                Block::SimplePacket(packet) => frames.push((Duration::ZERO, packet.data.into_owned())),
                _ => {}
            }
        }
    } else {
        let mut reader = PcapReader::new(open()?).map_err(capture)?;
        ethernet(reader.header().datalink)?;
        while let Some(packet) = reader.next_packet() {
            let packet = packet.map_err(capture)?;
            frames.push((packet.timestamp, packet.data.into_owned()));
        }
    }
    Ok(frames)
}

/// A pcap file that is being written.
struct Writer {
    path: PathBuf,
    writer: PcapWriter<BufWriter<File>>,
}

impl Writer {
    fn create(path: &Path) -> Result<Self, ReplayError> {
        let file = File::create(path).map_err(|source| ReplayError::File { path: path.to_owned(), source })?;
        // Little-endian on every machine: the same packets give the same file.
        let header = PcapHeader {
            endianness: Endianness::Little,
            ts_resolution: TsResolution::MicroSecond,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(BufWriter::new(file), header)
            .map_err(|source| ReplayError::Capture { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), writer })
    }

    fn write(&mut self, time: Duration, bytes: &[u8]) -> Result<(), ReplayError> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.writer
            .write_packet(&PcapPacket::new(time, length, bytes))
            .map(|_| ())
            .map_err(|source| ReplayError::Capture { path: self.path.clone(), source })
    }
}

/// Packets of one port that are not further apart form a burst: no host answers faster.
const TOGETHER: Duration = Duration::from_micros(32);
/// The flow hash's seed where the YAML gives none: the same packets give the same result on every machine.
const REPLAY_SEED: u64 = 0x5745_4952;
