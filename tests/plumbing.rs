//! A forwarder and its classifiers as processes of their own, which plumb over UDP; one of them is killed.
//!
//! The test's process runs a real shard; the classifiers are this test binary again, each a real classifier about cookies.

use std::collections::{HashMap, VecDeque};
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use weir_dataplane::classifier::{self, Classifier};
use weir_dataplane::farm::{Endpoint, Farm, FarmParts, Neighbour, NoEndpoint, Port, Prefix, Service, Vip, Way};
use weir_dataplane::flow::{FlowHash, Owners, ToeplitzKey, protocol};
use weir_dataplane::forwarder::{self, Forwarder};
use weir_dataplane::packet::{Burst, HeapPacket, Packet, Queue};
use weir_dataplane::plumbing::{Envelope, MAX_BYTES, Notice, Question};
use weir_dataplane::remote::{ClassifierEnd, Cookie, Diverted, ForwarderEnd, Settings};
use weir_dataplane::route_table::{IdleTimeouts, Mode};
use weir_dataplane::shard::{self, Held, Shard, ShardLink, ShardPort, Twin};
use weir_dataplane::wire::tcp::Flags;
use weir_dataplane::wire::{Addresses, EtherType, MacAddress, Protocol, ethernet, ipv4, tcp};
use weir_health_load::{Directive, Health, LocalAllotments, Policy, ServiceStanding, Standing};
use weir_identity::{ApplicationId, EndpointId, HostId, Incarnation, Moment, ServiceId, UnitId};
use weir_sessions::{Author, Limits, LocalSessions};

#[test]
fn connections_are_decided_in_another_process_and_outlive_it() {
    let mut unit = Unit::new();
    let first = unit.start_classifier();

    // Many connections, every SYN sent twice.
    let mut endpoints: HashMap<u32, [u8; 6]> = HashMap::new();
    for batch in 0..CONNECTIONS / BATCH {
        let connections: Vec<u32> = (batch * BATCH..(batch + 1) * BATCH).collect();
        unit.send(&connections, &[Flags::SYN, Flags::SYN]);
        unit.collect(&[(&connections, 2)], &mut endpoints);
        let diverted = unit.shard.forwarder().counters.diverted;
        unit.send(&connections, &[Flags::ACK, Flags::ACK | Flags::PSH, Flags::FIN | Flags::ACK]);
        unit.collect(&[(&connections, 3)], &mut endpoints);
        assert_eq!(unit.shard.forwarder().counters.diverted, diverted, "after the first packet nothing is diverted");
    }
    assert_eq!(endpoints.len(), CONNECTIONS as usize);
    let report = unit.report(first);
    assert_eq!(report["decided"], u64::from(CONNECTIONS), "one token for each connection");
    assert_eq!(report["inventory"], u64::from(CONNECTIONS));
    for (n, capacity) in (0..).zip(CAPACITIES) {
        let got = endpoints.values().filter(|mac| **mac == endpoint_mac(n)).count() as f64 / f64::from(CONNECTIONS);
        let share = f64::from(capacity) / f64::from(CAPACITIES.iter().sum::<u32>());
        assert!((got - share).abs() < 0.04, "endpoint {n} got {got}, not {share}");
    }

    // What ends is told: confirmed, closing and expired, each once.
    unit.expire();
    unit.until("all notices are acknowledged", |unit| unit.links[first].end.untold().count() == 0);
    let report = unit.report(first);
    assert_eq!(report["inventory"], 0);
    assert_eq!(report["notices"], unit.links[first].end.counters().notices);
    assert!(report["notices"] >= 2 * u64::from(CONNECTIONS));

    // The classifier dies while it is asked; its connections live on, its questions go to another one.
    let open: Vec<u32> = (CONNECTIONS..CONNECTIONS + BATCH).collect();
    unit.send(&open, &[Flags::SYN]);
    unit.collect(&[(&open, 1)], &mut endpoints);
    let second = unit.start_classifier();
    unit.links[first].kill();
    assert!(unit.links[first].end.is_alive(unit.now()), "its death has not been noticed yet");
    let orphans: Vec<u32> = (CONNECTIONS + BATCH..CONNECTIONS + 2 * BATCH).collect();
    unit.send(&orphans, &[Flags::SYN]);
    let diverted = unit.shard.forwarder().counters.diverted;
    unit.send(&open, &[Flags::ACK, Flags::ACK | Flags::PSH]);
    unit.collect(&[(&open, 2), (&orphans, 1)], &mut endpoints);
    let divert = unit.shard.forwarder().counters.diverted - diverted;
    assert_eq!(divert, u64::from(BATCH), "open connections need nobody");
    assert!(unit.links[first].end.counters().handed_back >= u64::from(BATCH), "the dead one's questions came back");
    unit.until("the death is noticed", |unit| !unit.links[first].end.is_alive(unit.now()));
    let asked = unit.links[first].end.counters().asked;
    let late: Vec<u32> = (CONNECTIONS + 2 * BATCH..CONNECTIONS + 3 * BATCH).collect();
    unit.send(&late, &[Flags::SYN]);
    unit.collect(&[(&late, 1)], &mut endpoints);
    assert_eq!(unit.links[first].end.counters().asked, asked, "the dead one is not asked any more");
    assert_eq!(unit.report(second)["decided"], 2 * u64::from(BATCH));

    unit.expire();
    unit.until("all notices are acknowledged", |unit| unit.links[second].end.untold().count() == 0);
    assert_eq!(unit.report(second)["inventory"], 0);
    assert!(unit.links.iter().all(|link| link.end.questions() == 0), "no packet is kept");
    let drops: Vec<_> = unit.shard.forwarder().drops.values().iter().filter(|count| **count > 0).collect();
    assert!(drops.is_empty(), "dropped: {drops:?}");
}

/// Not a test: what the other processes run, until their standard input ends.
#[test]
#[ignore = "the classifier's process of the test above"]
fn classifier_process() {
    let (Ok(forwarder), Ok(number)) = (env::var(FORWARDER), env::var(NUMBER)) else {
        return;
    };
    let number: u32 = number.parse().expect("a number");
    let socket = UdpSocket::bind(LOOPBACK).expect("a socket");
    socket.connect(forwarder).expect("the forwarder's address");
    socket.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
    let orders = lines(io::stdin());
    let settings = classifier::Settings {
        sessions_ipv4: 4 * CONNECTIONS as usize,
        sessions_ipv6: 16,
        pending: 1024,
        hash: FlowHash::new(u64::from(number)),
    };
    let mut allotments = LocalAllotments::new(number);
    allotments.update(&[standing()]);
    let author = Author { unit: UnitId(number), incarnation: Incarnation(1) };
    let sessions = LocalSessions::new(author, Limits { capacity: 16, dead_time: Duration::from_secs(1) });
    let mut classifier: Classifier<Cookie> =
        Classifier::new(&settings, Arc::new(farm()), Box::new(allotments), Box::new(sessions)).expect("memory");
    let mut end = ClassifierEnd::new(0, &times(number));
    let clock = Clock::start();
    let mut bytes = [0; MAX_BYTES];
    loop {
        let now = clock.now();
        for _ in 0..256 {
            let Ok(length) = socket.recv(&mut bytes) else {
                break;
            };
            let envelope = Envelope::decode(&bytes[..length]).expect("the forwarder speaks our language");
            let diverted = end.receive(envelope, now);
            while let Some(notice) = end.take_notice() {
                classifier.notice(&notice, now);
            }
            if let Some(Diverted { question, head }) = diverted {
                assert_eq!(head[12..14], [0x08, 0x00], "the head is there");
                classifier.ask(question, now, &mut |reply| end.answer(&reply));
            }
        }
        classifier.poll(now, &mut |reply| end.answer(&reply));
        while let Some(envelope) = end.poll_message(now) {
            transmit(&socket, &envelope);
        }
        match orders.try_recv() {
            Ok(_) => {
                let counters = classifier.counters();
                let (decided, inventory, notices) = (counters.decided, counters.inventory, counters.notices);
                println!("{REPORT}decided={decided} inventory={inventory} notices={notices}");
            }
            Err(mpsc::TryRecvError::Empty) => {}
            Err(mpsc::TryRecvError::Disconnected) => return,
        }
    }
}

/// The forwarder's unit: a shard over queues in memory, and a link to each classifier.
struct Unit {
    shard: Shard<End>,
    rings: ShardLink<HeapPacket>,
    links: Vec<Link>,
    wire: Arc<Wire>,
    clock: Clock,
    /// How far the shard's time is ahead, in milliseconds.
    ahead: u64,
    /// Questions to be asked, each with the link that is to be asked first.
    questions: VecDeque<(usize, Question<Held<HeapPacket>>)>,
    /// Notices to be told.
    notices: VecDeque<Notice>,
}

impl Unit {
    fn new() -> Self {
        let hash = FlowHash::new(42);
        let settings = forwarder::Settings {
            shard: 0,
            owners: Owners::new(&ToeplitzKey::from_seed(1), 1),
            routes_ipv4: 4 * CONNECTIONS as usize,
            routes_ipv6: 16,
            hash,
        };
        let (ours, rings) = shard::link(2048, 4096);
        let wire = Arc::new(Wire::default());
        let ports = vec![ShardPort::new(Ok(End(Arc::clone(&wire))), Twin::Itself)];
        let neighbours = shard::neighbourhoods(1, 1).pop().expect("one shard");
        let forwarder = Forwarder::new(&settings).expect("memory");
        let shard = Shard::new(0, Arc::new(farm()), forwarder, ports, neighbours, vec![ours], 32);
        let (links, questions, notices) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { shard, rings, links, wire, clock: Clock::start(), ahead: 0, questions, notices }
    }

    fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Starts a classifier in a process of its own; its link is the next one.
    fn start_classifier(&mut self) -> usize {
        let number = self.links.len();
        self.links.push(Link::start(number));
        self.until("the classifier is there", |unit| unit.links[number].end.is_alive(unit.now()));
        number
    }

    /// One round of the shard and of all links.
    fn turn(&mut self) -> usize {
        let now = self.now();
        let mut work = self.shard.turn(Moment(now.0 + self.ahead));
        for (number, link) in self.links.iter_mut().enumerate() {
            work += link.receive(&mut self.rings, now);
            let next = number + 1;
            self.questions.extend(link.end.take_unanswered(now).into_iter().map(|question| (next, question)));
            if link.has_died(now) {
                // What it may not have heard is its successor's.
                link.end.untold().rev().for_each(|notice| self.notices.push_front(*notice));
            }
        }
        // Questions are taken before the notices and asked after them: so who is asked knows what happened before.
        self.questions.extend(std::iter::from_fn(|| self.rings.questions.pop().ok()).map(|question| (0, question)));
        self.notices.extend(std::iter::from_fn(|| self.rings.notices.pop().ok()));
        if let Some(link) = self.links.iter_mut().find(|link| link.end.is_alive(now)) {
            while self.notices.front().is_some_and(|notice| link.end.tell(*notice)) {
                self.notices.pop_front();
            }
        }
        if self.notices.is_empty() {
            for (first, question) in std::mem::take(&mut self.questions) {
                self.ask(first, question, now);
            }
        }
        for link in &mut self.links {
            while let Some(envelope) = link.end.poll_message(now) {
                transmit(&link.socket, &envelope);
            }
        }
        work
    }

    /// Asks the first classifier that takes the question, beginning with `first`; if none does, it waits.
    fn ask(&mut self, first: usize, mut question: Question<Held<HeapPacket>>, now: Moment) {
        let count = self.links.len();
        for number in (first..first + count).map(|number| number % count) {
            match self.links[number].end.ask(question, |held| held.packet.data(), now) {
                Ok(()) => return,
                Err(back) => question = back,
            }
        }
        self.questions.push_back((first, question));
    }

    /// Turns until something is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&Unit) -> bool) {
        let deadline = self.now().after(PATIENCE);
        while !is_so(self) {
            let now = self.now();
            assert!(now < deadline, "not in time: {what}");
            if self.turn() == 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// Lets packets of connections arrive: from each the first, then from each the next one.
    fn send(&mut self, connections: &[u32], packets: &[Flags]) {
        let mut arriving = self.wire.arriving.lock();
        for flags in packets {
            arriving.extend(connections.iter().map(|connection| HeapPacket::new(&frame(*connection, *flags))));
        }
    }

    /// Waits until so many packets of connections have left, each to its connection's endpoint.
    fn collect(&mut self, expected: &[(&[u32], usize)], endpoints: &mut HashMap<u32, [u8; 6]>) {
        let total = expected.iter().map(|(connections, packets)| connections.len() * packets).sum::<usize>();
        self.until("packets leave", |unit| unit.wire.leaving.lock().len() >= total);
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for frame in self.wire.leaving.lock().drain(..) {
            let connection = u32::from(frame[28]) << 8 | u32::from(frame[29]);
            let mac: [u8; 6] = frame[..6].try_into().expect("six bytes");
            assert_eq!(*endpoints.entry(connection).or_insert(mac), mac, "connection {connection} has two endpoints");
            *counts.entry(connection).or_default() += 1;
        }
        for (connections, packets) in expected {
            for connection in *connections {
                assert_eq!(counts.get(connection), Some(packets), "packets of connection {connection}");
            }
        }
    }

    /// Lets the shard's time pass until it has no route any more.
    fn expire(&mut self) {
        let deadline = self.now().after(PATIENCE);
        self.ahead += 3_600_000;
        while !self.shard.forwarder().routes4().is_empty() {
            let now = self.now();
            assert!(now < deadline, "{} routes are left", self.shard.forwarder().routes4().len());
            self.ahead += 20;
            self.turn();
        }
        self.turn();
    }

    /// What a classifier has counted.
    fn report(&mut self, link: usize) -> HashMap<String, u64> {
        writeln!(self.links[link].orders, "{REPORT}").expect("the classifier reads its input");
        let mut report = None;
        self.until("a report comes", |unit| {
            report = report.take().or_else(|| unit.links[link].reports.try_recv().ok());
            report.as_ref().is_some()
        });
        let parse = |pair: &str| {
            let (name, value) = pair.split_once('=').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        };
        report.expect("a report").split_whitespace().map(parse).collect()
    }
}

/// The forwarder's end of one classifier, its socket and its process.
struct Link {
    end: ForwarderEnd<Held<HeapPacket>>,
    socket: UdpSocket,
    connected: bool,
    was_alive: bool,
    child: Child,
    orders: ChildStdin,
    reports: Receiver<String>,
}

impl Link {
    fn start(number: usize) -> Self {
        let socket = UdpSocket::bind(LOOPBACK).expect("a socket");
        socket.set_nonblocking(true).expect("a socket that does not block");
        let mut child = Command::new(env::current_exe().expect("this binary"))
            .args(["--ignored", "--exact", "classifier_process", "--nocapture", "--test-threads=1"])
            .env(FORWARDER, socket.local_addr().expect("its address").to_string())
            .env(NUMBER, (number + 2).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary runs again");
        let orders = child.stdin.take().expect("its input");
        let reports = lines(child.stdout.take().expect("its output"));
        let end = ForwarderEnd::new(&times(1));
        Self { end, socket, connected: false, was_alive: false, child, orders, reports }
    }

    /// Takes what has arrived, as far as there is room for what comes of it.
    fn receive(&mut self, rings: &mut ShardLink<HeapPacket>, now: Moment) -> usize {
        let mut bytes = [0; MAX_BYTES];
        let mut work = 0;
        while work < 256 && rings.replies.slots() > 0 {
            let Ok((length, from)) = self.socket.recv_from(&mut bytes) else {
                break;
            };
            if !self.connected {
                self.socket.connect(from).expect("the classifier's address");
                self.connected = true;
            }
            work += 1;
            let envelope = Envelope::decode(&bytes[..length]).expect("the classifier speaks our language");
            let reply = self.end.receive(envelope, now);
            while rings.plumbs.slots() > 0
                && let Some(plumb) = self.end.take_plumb()
            {
                rings.plumbs.push(plumb).expect("there is room");
            }
            reply.into_iter().for_each(|reply| rings.replies.push(reply).expect("there is room"));
        }
        work
    }

    /// Whether it is dead since the last question.
    fn has_died(&mut self, now: Moment) -> bool {
        let alive = self.end.is_alive(now);
        std::mem::replace(&mut self.was_alive, alive) && !alive
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it is dead");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is under way to and from the shard's port.
#[derive(Default)]
struct Wire {
    arriving: Mutex<VecDeque<HeapPacket>>,
    leaving: Mutex<Vec<Vec<u8>>>,
}

/// The port's queue.
struct End(Arc<Wire>);

impl Queue for End {
    type Packet = HeapPacket;

    fn receive(&mut self, burst: &mut Burst<HeapPacket>) {
        let mut arriving = self.0.arriving.lock();
        let count = burst.remaining_capacity().min(arriving.len());
        burst.extend(arriving.drain(..count));
    }

    fn send(&mut self, burst: &mut Burst<HeapPacket>) {
        self.0.leaving.lock().extend(burst.drain(..).map(|packet| packet.data().to_vec()));
    }

    fn allocate(&mut self) -> Option<HeapPacket> {
        Some(HeapPacket::new(&[]))
    }
}

/// Time since a process began.
struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "a driver reads the clock")]
    fn start() -> Self {
        Self(Instant::now())
    }

    fn now(&self) -> Moment {
        Moment(0).after(self.0.elapsed())
    }
}

/// Sends an envelope, or loses it: the ends can stand that.
fn transmit(socket: &UdpSocket, envelope: &Envelope) {
    let mut buffer = [0; MAX_BYTES];
    let bytes = envelope.encode(&mut buffer).expect("heads are short");
    let _ = socket.send(bytes);
}

/// What is asked for or reported, line by line, until the other side ends.
fn lines(source: impl io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            let Some((_, line)) = line.split_once(REPORT) else {
                continue;
            };
            if sender.send(line.to_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// One packet of a connection; its number stands in the client's address.
fn frame(connection: u32, flags: Flags) -> Vec<u8> {
    let [_, _, high, low] = connection.to_be_bytes();
    let (source, destination) = (Ipv4Addr::new(10, 2, high, low), VIP);
    let tcp = tcp::Repr {
        source_port: 40_000,
        destination_port: 80,
        sequence: 1,
        acknowledgement: 0,
        flags,
        window: 1000,
        max_segment_size: None,
        window_scale: None,
        sack_permitted: false,
        timestamps: None,
    };
    let payload: &[u8] = if flags.contains(Flags::PSH) { b"GET / HTTP/1.0" } else { b"" };
    let length = tcp.len() + payload.len();
    let ip = ipv4::Repr::new(source, destination, Protocol::TCP, u16::try_from(length).expect("short"));
    let ethernet = ethernet::Repr {
        destination: MacAddress(PORT_MAC),
        source: MacAddress([2, 0, 0, 0, 9, 9]),
        ethertype: EtherType::IPV4,
    };
    let mut frame = vec![0; 14 + 20 + length];
    ethernet.emit(&mut frame).expect("room");
    ip.emit(&mut frame[14..]).expect("room");
    tcp.emit(&mut frame[34..], payload, Addresses::V4 { source, destination }).expect("room");
    frame
}

/// What both sides know: one service with three endpoints on the link.
fn farm() -> Farm {
    let address = |n: u8| Ipv4Addr::new(10, 1, 0, n + 1).into();
    let numbers = || (0..).take(CAPACITIES.len());
    let endpoint = |n: u8| Endpoint {
        service: 0,
        host: HostId(u32::from(n)),
        application: ApplicationId(1),
        address: address(n),
        port: None,
        directive: Directive::Active,
        backup: false,
        tunnel: None,
        pool: None,
        local: None,
        hop: None,
    };
    let neighbour = |n| Neighbour { port: 0, address: address(n), mac: endpoint_mac(n) };
    Farm::new(FarmParts {
        generation: 1,
        vips: vec![Vip { address: VIP.into(), services: vec![], on_link: vec![] }],
        services: vec![Service {
            id: ServiceId(1),
            protocol: protocol::TCP,
            ports: vec![80..=80],
            mode: Mode::Dsr,
            no_endpoint: NoEndpoint::Drop,
            vip: 0,
        }],
        endpoints: numbers().map(endpoint).collect(),
        pools: vec![],
        ports: vec![Port { mac: PORT_MAC, mtu: 1500, vlan: None }],
        timeouts: IdleTimeouts::default(),
        prefixes: vec![Prefix { address: Ipv4Addr::new(10, 1, 0, 0).into(), length: 24, ways: vec![Way::OnLink(0)] }],
        neighbours: numbers().map(neighbour).collect(),
    })
}

/// What a classifier knows of the endpoints' capacities.
fn standing() -> ServiceStanding {
    let standing = |(n, capacity)| Standing {
        endpoint: EndpointId(n),
        stable: u64::from(n),
        capacity,
        load: None,
        directive: Directive::Active,
        health: Health::Healthy,
        backup: false,
    };
    let standings = (0..).zip(CAPACITIES).map(standing).collect();
    ServiceStanding { service: ServiceId(1), policy: Policy::default(), standings }
}

/// Patient enough for a busy machine; what UDP loses is said again soon.
fn times(unit: u32) -> Settings {
    Settings {
        repeat: Duration::from_millis(50),
        tries: 20,
        keepalive: Duration::from_millis(200),
        dead_after: Duration::from_secs(5),
        ..Settings::new(UnitId(unit), Incarnation(1))
    }
}

fn endpoint_mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, n]
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const PORT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CAPACITIES: [u32; 3] = [10, 20, 30];
const CONNECTIONS: u32 = 5000;
const BATCH: u32 = 250;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(60);
const FORWARDER: &str = "WEIR_TEST_FORWARDER";
const NUMBER: &str = "WEIR_TEST_NUMBER";
/// Begins a line that is for the other process.
const REPORT: &str = "report:";
