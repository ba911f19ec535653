//! A unit on heap buffers in virtual time, with everything around it in the test's hands: ports, allotments, session table, farm.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use crossbeam::queue::SegQueue;
use weir_dataplane::classifier::{self, Classifier};
use weir_dataplane::core::{ClassifierSeat, Command, Core, Turn};
use weir_dataplane::counters::DropReason;
use weir_dataplane::farm::{Endpoint, Farm, FarmParts, Neighbour, NoEndpoint, Port, Prefix, Service, Vip, Way};
use weir_dataplane::flow::protocol::{TCP, UDP};
use weir_dataplane::flow::toeplitz::Toeplitz;
use weir_dataplane::flow::{FlowHash, Key, Owners, ToeplitzKey};
use weir_dataplane::forwarder::{self, Asking, Forwarder};
use weir_dataplane::fragments::Limits;
use weir_dataplane::packet::{Burst, HeapPacket, Packet, Queue};
use weir_dataplane::route_table::{Action, IdleTimeouts, Mode, State};
use weir_dataplane::shard::{self, Shard, ShardPort, Twin};
use weir_dataplane::translation::PoolPorts;
use weir_dataplane::wire::tcp::Flags;
use weir_health_load::Directive;
use weir_identity::{ApplicationId, EndpointId, HostId, Moment, ServiceId};

use crate::frames::{self, Seen};
use crate::sessions::{Desk, DeskAllotments, Memory, MemorySessions, standings};

/// The address family a test runs in; [`both`] runs it in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Runs a test in both families and in both modes that have a forwarder's whole path.
pub(crate) fn everywhere(test: impl Fn(Mode, Family)) {
    for mode in [Mode::Dsr, Mode::Nat, Mode::FullNat] {
        for family in [Family::V4, Family::V6] {
            test(mode, family);
        }
    }
}

/// Routes that a connection takes.
pub(crate) fn per_flow(mode: Mode) -> usize {
    if mode == Mode::Dsr { 1 } else { 2 }
}

impl Family {
    pub(crate) fn other(self) -> Self {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }

    /// The address of client `n`; each has its own.
    pub(crate) fn client(self, n: u16) -> SocketAddr {
        let [high, low] = n.to_be_bytes();
        let address: IpAddr = match self {
            Family::V4 => Ipv4Addr::new(198, 18, high, low).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, n).into(),
        };
        SocketAddr::new(address, 20_000 + n)
    }

    pub(crate) fn vip(self, port: u16) -> SocketAddr {
        let address: IpAddr = match self {
            Family::V4 => Ipv4Addr::new(10, 9, 0, 1).into(),
            Family::V6 => "fd09::1".parse().unwrap(),
        };
        SocketAddr::new(address, port)
    }

    /// The addresses that stand for clients in full-nat, on the hosts' link.
    pub(crate) fn pool(self) -> [IpAddr; 2] {
        [200, 201].map(|n| match self {
            Family::V4 => Ipv4Addr::new(10, 1, 0, n as u8).into(),
            Family::V6 => Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, n).into(),
        })
    }

    /// The address of host `n`, 1 to 3.
    pub(crate) fn host(self, n: u16) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(10, 1, 0, 10 + n as u8).into(),
            Family::V6 => Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 10 + n).into(),
        }
    }
}

/// TCP with one port.
pub(crate) const HTTP: u16 = 80;
/// UDP with one port.
pub(crate) const DNS: u16 = 53;
/// TCP with a range, whose endpoints keep the client's port.
pub(crate) const RANGE: (u16, u16) = (8000, 8100);
/// The client side's and the hosts' side's port.
pub(crate) const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Milliseconds: opening, established, closing, datagram, refused.
pub(crate) const TIMEOUTS: [u32; State::COUNT] = [1_000, 20_000, 3_000, 4_000, 1_000];
/// Services of each family, in the order of [`parts`].
pub(crate) const SERVICES: usize = 3;
/// Endpoints of each service.
pub(crate) const ENDPOINTS: usize = 3;

/// Three services of each family with three endpoints each; clients behind a gateway on port 0, hosts on link on port 1.
pub(crate) fn parts(mode: Mode) -> FarmParts {
    let mut parts = FarmParts {
        generation: 1,
        vips: Vec::new(),
        services: Vec::new(),
        endpoints: Vec::new(),
        pools: Vec::new(),
        ports: MACS.map(|mac| Port { mac, mtu: 1500, vlan: None }).to_vec(),
        timeouts: IdleTimeouts(TIMEOUTS),
        prefixes: Vec::new(),
        neighbours: Vec::new(),
    };
    for (vip, family) in (0..).zip([Family::V4, Family::V6]) {
        parts.vips.push(Vip { address: family.vip(0).ip(), services: vec![], on_link: vec![0] });
        for (number, protocol, ports) in [(1, TCP, HTTP..=HTTP), (2, UDP, DNS..=DNS), (3, TCP, RANGE.0..=RANGE.1)] {
            let service = parts.services.len();
            parts.services.push(Service {
                id: ServiceId(vip * 10 + number),
                protocol,
                ports: vec![ports],
                mode,
                no_endpoint: NoEndpoint::Drop,
                vip,
            });
            parts.endpoints.extend((1..=ENDPOINTS as u16).map(|n| Endpoint {
                service,
                host: HostId(n.into()),
                application: ApplicationId(number),
                address: family.host(n),
                port: (matches!(mode, Mode::Nat | Mode::FullNat) && number < 3).then_some(8000 + service as u16),
                directive: Directive::Active,
                backup: false,
                tunnel: None,
                pool: (mode == Mode::FullNat).then_some(vip as usize),
                local: None,
                hop: None,
            }));
        }
        let (gateway, hosts, everything, length): (IpAddr, IpAddr, IpAddr, u8) = match family {
            Family::V4 => (
                Ipv4Addr::new(10, 0, 0, 254).into(),
                Ipv4Addr::new(10, 1, 0, 0).into(),
                Ipv4Addr::UNSPECIFIED.into(),
                24,
            ),
            Family::V6 => ("fd00::fe".parse().unwrap(), "fd01::".parse().unwrap(), Ipv6Addr::UNSPECIFIED.into(), 64),
        };
        parts.prefixes.push(Prefix { address: everything, length: 0, ways: vec![Way::Gateway(0, gateway)] });
        parts.prefixes.push(Prefix { address: hosts, length, ways: vec![Way::OnLink(1)] });
        if mode == Mode::FullNat {
            parts.pools.push(PoolPorts::new(family.pool().to_vec(), 20_000..=60_000, &Toeplitz::new(&key())).unwrap());
        }
        parts.neighbours.push(Neighbour { port: 0, address: gateway, mac: GATEWAY });
        parts.neighbours.extend((1..=3).map(|n| Neighbour {
            port: 1,
            address: family.host(n),
            mac: [2, 0, 0, 0, 1, n as u8],
        }));
    }
    parts
}

/// What chooses flows' buckets, where a test says nothing else.
pub(crate) fn key() -> ToeplitzKey {
    ToeplitzKey::from_seed(7)
}

/// The link-layer address of the clients' gateway.
pub(crate) const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 254];

/// What a unit is built from.
pub(crate) struct Setup {
    pub(crate) parts: FarmParts,
    pub(crate) shards: usize,
    /// Of the hash that says who owns a flow.
    pub(crate) key: ToeplitzKey,
    pub(crate) classifiers: usize,
    pub(crate) routes: usize,
    pub(crate) sessions: usize,
    pub(crate) pending: usize,
    pub(crate) divert_ring: usize,
    pub(crate) notice_ring: usize,
    pub(crate) handover_ring: usize,
    pub(crate) fragments: Limits,
    /// Which shard sends for a shard by a port: itself where it has a queue.
    pub(crate) sender: fn(shard: usize, port: usize) -> usize,
    /// Twins of their own at shard 0, or the kernel sees the ports itself.
    pub(crate) twins: bool,
    /// When shards ask for routes' lines.
    pub(crate) asking: Asking,
}

impl Setup {
    /// The same with hosts of the other family, in full-nat.
    pub(crate) fn across(mut self) -> Self {
        let hosts = [Family::V6, Family::V4];
        for endpoint in &mut self.parts.endpoints {
            let family = hosts[self.parts.services[endpoint.service].vip as usize];
            endpoint.address = family.host(endpoint.host.0 as u16);
            endpoint.pool = endpoint.pool.map(|pool| 1 - pool);
        }
        self
    }

    /// The same with several shards.
    pub(crate) fn sharded(self, shards: usize) -> Self {
        Self { shards, ..self }
    }

    /// One shard, one classifier, and room enough.
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            parts: parts(mode),
            shards: 1,
            key: key(),
            classifiers: 1,
            routes: 512,
            sessions: 512,
            pending: 64,
            divert_ring: 512,
            notice_ring: 512,
            handover_ring: 512,
            fragments: Limits::default(),
            sender: |shard, _| shard,
            twins: false,
            asking: Asking { together4: false, together6: false },
        }
    }
}

/// A unit and its surroundings.
pub(crate) struct Lab {
    pub(crate) shards: Vec<Shard<End>>,
    pub(crate) seats: Vec<ClassifierSeat<Tracked>>,
    pub(crate) parts: FarmParts,
    pub(crate) farms: Arc<ArcSwap<Farm>>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) wire: Arc<Wire>,
    pub(crate) now: Moment,
    sender: fn(usize, usize) -> usize,
}

impl Lab {
    pub(crate) fn new(setup: Setup) -> Self {
        let Setup { parts, shards, classifiers, sender, .. } = setup;
        let hash = FlowHash::new(7);
        let owners = Owners::new(&setup.key, shards);
        let farm = Arc::new(Farm::new(parts.clone()));
        let (desk, memory) = (Arc::new(Desk::new(standings(&parts))), Arc::new(Memory::default()));
        let wire = Arc::new(Wire::new(shards, parts.ports.len()));
        let mut links: Vec<Vec<_>> = (0..classifiers).map(|_| Vec::new()).collect();
        let mut made = Vec::new();
        for (number, neighbours) in shard::neighbourhoods(shards, setup.handover_ring).into_iter().enumerate() {
            let ours = links.iter_mut().map(|links| {
                let (ours, theirs) = shard::link(setup.divert_ring, setup.notice_ring);
                links.push(theirs);
                ours
            });
            let ours = ours.collect();
            let (routes_ipv4, routes_ipv6) = (setup.routes, setup.routes);
            let (owners, hash) = (owners.clone(), hash.clone());
            let settings = forwarder::Settings { shard: number, owners, routes_ipv4, routes_ipv6, hash };
            let forwarder = Forwarder::new(&settings).unwrap().with_asking(setup.asking);
            let ports = (0..parts.ports.len()).map(|port| {
                let end = |twin| End { wire: Arc::clone(&wire), shard: number, port, twin };
                let queue = Some(sender(number, port)).filter(|to| *to != number).map_or(Ok(end(false)), Err);
                let twin = match (setup.twins, number) {
                    (false, _) => Twin::Itself,
                    (true, 0) => Twin::Port(end(true)),
                    (true, _) => Twin::Shard(0),
                };
                match parts.ports[port].vlan {
                    Some((parent, id)) => ShardPort::vlan(parent, id),
                    None => ShardPort::new(queue, twin),
                }
            });
            let ports = ports.collect();
            let shard = Shard::new(number, Arc::clone(&farm), forwarder, ports, neighbours, ours, 32);
            made.push(shard.with_fragments(setup.fragments));
        }
        let seats = links.into_iter().enumerate().map(|(number, links)| {
            let settings = classifier::Settings {
                sessions_ipv4: setup.sessions,
                sessions_ipv6: setup.sessions,
                pending: setup.pending,
                hash: hash.clone(),
            };
            let allotments = Box::new(DeskAllotments::new(number, Arc::clone(&desk)));
            let sessions = Box::new(MemorySessions::new(Arc::clone(&memory)));
            let classifier = Classifier::new(&settings, Arc::clone(&farm), allotments, sessions).unwrap();
            ClassifierSeat::new(number, classifier, links)
        });
        let seats = seats.collect();
        let farms = Arc::new(ArcSwap::new(farm));
        Self { shards: made, seats, parts, farms, desk, memory, wire, now: Moment(1_000), sender }
    }

    /// One that has room enough, and services in `mode`.
    pub(crate) fn plain(mode: Mode) -> Self {
        Self::new(Setup::new(mode))
    }

    /// Lets a frame arrive at a queue.
    pub(crate) fn arrive(&self, shard: usize, port: usize, frame: &[u8]) {
        self.wire.arrive(shard, port, frame);
    }

    /// Runs everything on one core until nothing is left to do.
    pub(crate) fn run(&mut self) {
        let mut core = self.core();
        let mut idle = 0;
        for _ in 0..100_000 {
            idle = if core.turn(self.now) == Turn::Worked(0) { idle + 1 } else { 0 };
            if idle == 3 {
                break;
            }
        }
        assert_eq!(idle, 3, "a unit without traffic comes to rest");
        self.take_back(core);
    }

    /// Lets time pass in small steps; expiry goes on.
    pub(crate) fn pass(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds / STEP {
            self.now = Moment(self.now.0 + STEP);
            self.run();
        }
    }

    fn core(&mut self) -> Core<End> {
        let (commands, receiver) = crossbeam::channel::unbounded();
        for shard in self.shards.drain(..) {
            commands.send(Command::AddShard(Box::new(shard))).unwrap();
        }
        for seat in self.seats.drain(..) {
            commands.send(Command::AddClassifier(Box::new(seat))).unwrap();
        }
        Core::new(receiver, Arc::clone(&self.farms))
    }

    fn take_back(&mut self, core: Core<End>) {
        (self.shards, self.seats) = core.into_parts();
    }

    /// Lets frames arrive at shard 0's queue of a port, and returns what was sent for them.
    pub(crate) fn exchange(&mut self, port: usize, frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Seen> {
        for frame in frames {
            self.arrive(0, port, &frame);
        }
        self.run();
        self.check();
        self.wire.seen()
    }

    /// The same for one frame of a client that has to leave as one frame.
    pub(crate) fn forward(&mut self, frame: Vec<u8>) -> Seen {
        let seen = self.exchange(0, [frame]);
        assert_eq!(seen.len(), 1, "{:?}", self.drops());
        seen.into_iter().next().unwrap()
    }

    /// Changes the farm, and the standings with it.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut FarmParts)) {
        change(&mut self.parts);
        self.parts.generation += 1;
        self.farms.store(Arc::new(Farm::new(self.parts.clone())));
        self.desk.publish(standings(&self.parts));
    }

    /// A shard counter, over all shards.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let names = weir_dataplane::counters::ShardCounters::NAMES;
        let index = names.iter().position(|known| *known == name).unwrap();
        self.shards.iter().map(|shard| shard.forwarder().counters.values()[index]).sum()
    }

    /// A classifier counter, over all classifiers.
    pub(crate) fn decisions(&mut self, name: &str) -> u64 {
        self.seats.iter_mut().for_each(ClassifierSeat::publish);
        let of = |seat: &ClassifierSeat<_>| seat.published().counters().find(|(known, _)| *known == name).unwrap().1;
        self.seats.iter().map(of).sum()
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.shards.iter().map(|shard| shard.forwarder().drops.of(reason)).sum()
    }

    /// All drops that occurred, for messages.
    pub(crate) fn drops(&self) -> Vec<(&'static str, u64)> {
        let all = DropReason::ALL.iter().map(|reason| (reason.name(), self.dropped(*reason)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Routes in all shards, with their shard and the direction back included.
    pub(crate) fn routes(&self) -> Vec<(usize, Key, Action, State)> {
        let of = |shard: &Shard<End>| {
            let forwarder = shard.forwarder();
            let v4 = forwarder.routes4().iter().map(|(key, entry)| (Key::V4(key), entry.action(), entry.state()));
            let v6 = forwarder.routes6().iter().map(|(key, entry)| (Key::V6(key), entry.action(), entry.state()));
            v4.chain(v6).map(|(key, action, state)| (shard.number(), key, action, state)).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// Which client a frame to a host is from; in full-nat its source does not say.
    pub(crate) fn sender(&self, seen: &Seen) -> SocketAddr {
        let protocol = if seen.flags.is_some() { TCP } else { UDP };
        let back = Key::new(seen.destination, seen.source, protocol).unwrap();
        let route = self.routes().into_iter().find(|(_, key, ..)| *key == back);
        let flow = route.and_then(|(shard, key, action, _)| {
            self.shards[shard].forwarder().client_flow(&key, action, &self.farms.load())
        });
        flow.map_or(seen.source, |flow| flow.source())
    }

    /// State of the route from a client to a VIP.
    pub(crate) fn state(&self, client: SocketAddr, vip: SocketAddr) -> Option<State> {
        let found = self.routes().into_iter().find(|(_, key, ..)| key.source() == client && key.destination() == vip);
        found.map(|(.., state)| state)
    }

    /// Packets that the unit holds now.
    pub(crate) fn held(&self) -> usize {
        self.wire.live.load(Ordering::Relaxed) - self.wire.waiting()
    }

    /// The conservation law: what came in has left, went to a kernel, was dropped for a reason, or is held; and each packet that
    /// the counters call sent was on the wire. (Answers and refusals are sent as well, in the place of what they answer.)
    pub(crate) fn check(&self) {
        let arrived = self.wire.received.load(Ordering::Relaxed) as u64;
        let by_twins = self.wire.from_twins.load(Ordering::Relaxed) as u64;
        let drops: u64 = self.shards.iter().map(|shard| shard.forwarder().drops.total()).sum();
        assert_eq!(self.count("received"), arrived);
        assert_eq!(
            arrived + by_twins + self.count("split") + self.count("told_too_big"),
            self.count("sent") + self.count("twin") + drops + self.held() as u64,
            "sent {}, twin {}, drops {:?}, held {}",
            self.count("sent"),
            self.count("twin"),
            self.drops(),
            self.held()
        );
        assert_eq!(self.count("sent"), self.wire.sent_count.load(Ordering::Relaxed) as u64);
        let translated = |(_, _, action, _): &_| matches!(action, Action::Send { mode: Mode::FullNatReturn, .. });
        let translations: usize = self.shards.iter().map(|shard| shard.forwarder().translations().len()).sum();
        assert_eq!(translations, self.routes().iter().filter(|route| translated(*route)).count());
        if self.wire.twins_exist() {
            assert_eq!(self.count("twin"), self.wire.to_twins.load(Ordering::Relaxed) as u64);
        }
    }

    /// Whether a shard has its own queue of a port.
    pub(crate) fn has_queue(&self, shard: usize, port: usize) -> bool {
        (self.sender)(shard, port) == shard
    }
}

/// Which endpoint of a service a frame went to, by its link-layer address: 0 to 2.
pub(crate) fn host_of(seen: &Seen) -> usize {
    assert_eq!(seen.mac[..5], [2, 0, 0, 0, 1]);
    usize::from(seen.mac[5]) - 1
}

/// A family's first service: [`HTTP`].
pub(crate) fn service_of(family: Family) -> usize {
    if family == Family::V4 { 0 } else { SERVICES }
}

/// The endpoint of a family's service (by its index among [`SERVICES`]) and host (0 to 2).
pub(crate) fn endpoint(family: Family, service: usize, host: usize) -> EndpointId {
    let first = if family == Family::V4 { 0 } else { SERVICES };
    EndpointId(((first + service) * ENDPOINTS + host) as u32)
}

pub(crate) fn syn(family: Family, client: u16, port: u16) -> Vec<u8> {
    frames::segment(MACS[0], family.client(client), family.vip(port), Flags::SYN, b"")
}

/// A segment of an open connection, with a payload.
pub(crate) fn data(family: Family, client: u16, port: u16, payload: &[u8]) -> Vec<u8> {
    frames::segment(MACS[0], family.client(client), family.vip(port), Flags::ACK | Flags::PSH, payload)
}

pub(crate) fn fin(family: Family, client: u16, port: u16) -> Vec<u8> {
    frames::segment(MACS[0], family.client(client), family.vip(port), Flags::ACK | Flags::FIN, b"")
}

pub(crate) fn rst(family: Family, client: u16, port: u16) -> Vec<u8> {
    frames::segment(MACS[0], family.client(client), family.vip(port), Flags::RST, b"")
}

/// A packet that is counted as long as it is alive.
#[derive(Debug)]
pub(crate) struct Tracked {
    packet: HeapPacket,
    wire: Arc<Wire>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.wire.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Packet for Tracked {
    fn data(&self) -> &[u8] {
        self.packet.data()
    }

    fn data_mut(&mut self) -> &mut [u8] {
        self.packet.data_mut()
    }

    fn prepend(&mut self, bytes: usize) -> Option<&mut [u8]> {
        self.packet.prepend(bytes)
    }

    fn trim_front(&mut self, bytes: usize) -> bool {
        self.packet.trim_front(bytes)
    }

    fn resize(&mut self, bytes: usize) -> bool {
        bytes <= 2048 && self.packet.resize(bytes)
    }
}

/// What is on its way to and from the unit; the test writes one side, the shards' queues the other.
#[derive(Debug)]
pub(crate) struct Wire {
    arriving: Vec<Vec<[SegQueue<Tracked>; 2]>>,
    sent: SegQueue<(usize, usize, Vec<u8>)>,
    twin_sent: SegQueue<(usize, Vec<u8>)>,
    /// Packets that exist: on their way in, and inside.
    pub(crate) live: AtomicUsize,
    /// How many packets a queue takes in one go.
    pub(crate) accepts: AtomicUsize,
    /// A queue is behind when so many packets wait; with 0 it cannot tell.
    pub(crate) behind: AtomicUsize,
    pub(crate) received: AtomicUsize,
    pub(crate) from_twins: AtomicUsize,
    pub(crate) sent_count: AtomicUsize,
    pub(crate) to_twins: AtomicUsize,
    twins: AtomicBool,
}

impl Wire {
    fn new(shards: usize, ports: usize) -> Self {
        Self {
            arriving: (0..shards).map(|_| (0..ports).map(|_| Default::default()).collect()).collect(),
            sent: SegQueue::new(),
            twin_sent: SegQueue::new(),
            live: AtomicUsize::new(0),
            accepts: AtomicUsize::new(usize::MAX),
            behind: AtomicUsize::new(usize::MAX),
            received: AtomicUsize::new(0),
            from_twins: AtomicUsize::new(0),
            sent_count: AtomicUsize::new(0),
            to_twins: AtomicUsize::new(0),
            twins: AtomicBool::new(false),
        }
    }

    pub(crate) fn arrive(self: &Arc<Self>, shard: usize, port: usize, frame: &[u8]) {
        self.push(shard, port, 0, frame);
    }

    /// The kernel sends a frame by a port's twin.
    pub(crate) fn kernel_sends(self: &Arc<Self>, shard: usize, port: usize, frame: &[u8]) {
        self.push(shard, port, 1, frame);
    }

    fn push(self: &Arc<Self>, shard: usize, port: usize, twin: usize, frame: &[u8]) {
        self.live.fetch_add(1, Ordering::Relaxed);
        self.arriving[shard][port][twin].push(Tracked { packet: HeapPacket::new(frame), wire: Arc::clone(self) });
    }

    /// Frames that left since the last call, each with shard and port.
    pub(crate) fn raw(&self) -> Vec<(usize, usize, Vec<u8>)> {
        std::iter::from_fn(|| self.sent.pop()).collect()
    }

    /// The same, taken apart.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.raw().iter().map(|(shard, port, frame)| Seen::of(*shard, *port, frame)).collect()
    }

    /// What the kernel twins got since the last call, each with its port.
    pub(crate) fn at_twins(&self) -> Vec<(usize, Vec<u8>)> {
        std::iter::from_fn(|| self.twin_sent.pop()).collect()
    }

    /// Frames that no queue has received yet.
    pub(crate) fn waiting(&self) -> usize {
        self.arriving.iter().flatten().flatten().map(SegQueue::len).sum()
    }

    fn twins_exist(&self) -> bool {
        self.twins.load(Ordering::Relaxed)
    }
}

/// A queue of a port, or of its twin.
pub(crate) struct End {
    wire: Arc<Wire>,
    shard: usize,
    port: usize,
    twin: bool,
}

impl Queue for End {
    type Packet = Tracked;

    fn receive(&mut self, burst: &mut Burst<Tracked>) {
        if self.twin {
            self.wire.twins.store(true, Ordering::Relaxed);
        }
        let arriving = &self.wire.arriving[self.shard][self.port][usize::from(self.twin)];
        let before = burst.len();
        burst.extend(std::iter::from_fn(|| arriving.pop()).take(burst.remaining_capacity()));
        let counter = if self.twin { &self.wire.from_twins } else { &self.wire.received };
        counter.fetch_add(burst.len() - before, Ordering::Relaxed);
    }

    fn send(&mut self, burst: &mut Burst<Tracked>) {
        let accepted = burst.len().min(self.wire.accepts.load(Ordering::Relaxed));
        for packet in burst.drain(..accepted) {
            if self.twin {
                self.wire.twin_sent.push((self.port, packet.data().to_vec()));
            } else {
                self.wire.sent.push((self.shard, self.port, packet.data().to_vec()));
            }
        }
        let counter = if self.twin { &self.wire.to_twins } else { &self.wire.sent_count };
        counter.fetch_add(accepted, Ordering::Relaxed);
    }

    fn is_behind(&self) -> Option<bool> {
        let behind = self.wire.behind.load(Ordering::Relaxed);
        (behind > 0).then(|| self.wire.arriving[self.shard][self.port][0].len() >= behind)
    }

    fn allocate(&mut self) -> Option<Tracked> {
        self.wire.live.fetch_add(1, Ordering::Relaxed);
        Some(Tracked { packet: HeapPacket::new(&[]), wire: Arc::clone(&self.wire) })
    }
}

/// Milliseconds.
const STEP: u64 = 100;
