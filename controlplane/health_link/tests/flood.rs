//! A unit whose port is flooded: with handshakes that nobody finishes, with those of strangers, and with bytes that are nothing. Its hosts are
//! heard all the while, a new one gets in, and what is kept of the others is bounded.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, Connection, DatagramEvent, Endpoint, EndpointConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use weir_health_link::{Agent, Cache, Handshakes, Keys, ListenSettings, Listener};
use weir_health_load::Directive;
use weir_health_protocol::{HostSettings, Identity, Presence, UnitSettings};
use weir_identity::{ApplicationId, HostId, Incarnation, UnitId};
use weir_pki::{Authority, Node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_and_rubbish_keeps_no_host_out() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (authority, strangers) = (Authority::create(ours.path()).unwrap(), Authority::create(theirs.path()).unwrap());
    let node = authority.issue("unit-1", &Node::Unit(UnitId(1)), 1).unwrap();
    let settings = ListenSettings {
        unit: UnitSettings::new(UnitId(1), Incarnation(1)),
        address: "127.0.0.1:0".parse().unwrap(),
        peers: BTreeMap::new(),
        expected: Vec::new(),
    };
    let listener = Listener::spawn(settings, &Keys::load(&node).unwrap()).unwrap();
    let (cache, unit) = (listener.cache(), listener.address());
    let agents: Vec<Agent> = (1..=HOSTS).map(|host| agent(&authority, host, unit)).collect();
    until(&cache, Duration::from_secs(30), |cache| live(cache) == agents.len()).await;

    let stranger = strangers.issue("host-1", &Node::Hosts([HostId(1)].into()), 1).unwrap();
    let flood = Flood::begin(unit, &node, &stranger);
    let mut worst = Handshakes::default();
    let watch = |worst: &mut Handshakes, hosts: usize| {
        assert!(live(&cache) >= hosts, "{} of {hosts} hosts are heard; {worst:?}", live(&cache));
        let now = cache.handshakes();
        *worst = Handshakes {
            going_on: worst.going_on.max(now.going_on),
            unproven: worst.unproven.max(now.unproven),
            waiting: worst.waiting.max(now.waiting),
            kept: worst.kept.max(now.kept),
            ..now
        };
    };
    let begun = Instant::now();
    while begun.elapsed() < FLOODED {
        watch(&mut worst, agents.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The flood goes on.
    let mut times = Vec::new();
    let mut newcomers = Vec::new();
    for host in HOSTS + 1..=HOSTS + NEWCOMERS {
        let begun = Instant::now();
        newcomers.push(agent(&authority, host, unit));
        while live(&cache) < agents.len() + newcomers.len() {
            assert!(begun.elapsed() < LET_IN, "host {host} was kept out; {worst:?}");
            watch(&mut worst, agents.len() + newcomers.len() - 1);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        times.push(begun.elapsed());
    }
    let sent = flood.end();
    println!("{sent:?}\nat most, and at the end: {worst:?}\nnewcomers let in after {times:?}");
    let is_flood = sent.unfinished > 5_000 && sent.rubbish > 5_000 && sent.stalled > 500 && sent.strangers > 10;
    assert!(is_flood, "that was no flood: {sent:?}");
    assert!(worst.unproven <= 512 && worst.going_on <= 1024, "{worst:?}");
    // Those who have proven where they are may wait; each has sent a packet or two.
    assert!(worst.waiting <= 16_384 + 512 && worst.kept <= 4096, "{worst:?}");
    assert!(worst.retried > 1_000, "nobody was asked for a proof: {worst:?}");
    // Nothing of it stays, but for the three probe timeouts that a closed connection has, which grow with what a busy machine took to answer.
    let over = |cache: &Cache| {
        let now = cache.handshakes();
        now.going_on == 0 && now.waiting == 0 && now.kept == agents.len() + newcomers.len()
    };
    until(&cache, Duration::from_secs(120), over).await;
}

fn agent(authority: &Authority, host: u32, unit: SocketAddr) -> Agent {
    let host = HostId(host);
    let keys = Keys::load(&authority.issue(&format!("host-{host}"), &Node::Hosts([host].into()), 1).unwrap()).unwrap();
    let settings = HostSettings::new(host);
    let agent = Agent::spawn(vec![settings], BTreeMap::from([(UnitId(1), unit)]), &keys).unwrap();
    let registered =
        agent.with(host, |end, _| end.register(ApplicationId(1), Identity::default(), 50, Directive::Active));
    registered.unwrap().unwrap();
    agent
}

fn live(cache: &Cache) -> usize {
    cache.with(|end, _| end.hosts().filter(|(_, host)| host.presence() == Presence::Live).count())
}

async fn until(cache: &Cache, patience: Duration, is: impl Fn(&Cache) -> bool) {
    let begun = Instant::now();
    while !is(cache) {
        assert!(begun.elapsed() < patience, "{} hosts are heard; {:?}", live(cache), cache.handshakes());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Threads that send what no host would.
struct Flood {
    ends: Arc<AtomicBool>,
    sent: Arc<[AtomicU64; 4]>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Sent {
    unfinished: u64,
    stalled: u64,
    rubbish: u64,
    strangers: u64,
}

impl Flood {
    fn begin(unit: SocketAddr, node: &Path, stranger: &Path) -> Flood {
        let (ends, sent) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 4]));
        let known = client(node, Some(stranger));
        let anonymous = Arc::new(client(node, None));
        let gone = Arc::clone(&anonymous);
        let kinds: [Box<dyn Fn(usize) -> u64 + Send>; 4] = [
            Box::new(move |at| unfinished(&gone, unit, at)),
            Box::new(move |_| stalled(&anonymous, unit)),
            Box::new(move |at| rubbish(unit, at)),
            Box::new(move |_| knock(&known, unit)),
        ];
        let begin = |(kind, send): (usize, Box<dyn Fn(usize) -> u64 + Send>)| {
            let (ends, sent) = (Arc::clone(&ends), Arc::clone(&sent));
            std::thread::spawn(move || {
                for round in 0.. {
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    sent[kind].fetch_add(send(round), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(10));
                }
            })
        };
        let threads = kinds.into_iter().enumerate().map(begin).collect();
        Flood { ends, sent, threads }
    }

    fn end(self) -> Sent {
        self.ends.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let [unfinished, stalled, rubbish, strangers] =
            [0, 1, 2, 3].map(|kind| self.sent[kind].load(Ordering::Relaxed));
        Sent { unfinished, stalled, rubbish, strangers }
    }
}

/// Clients of the right protocol that are gone after their first packet.
fn unfinished(config: &ClientConfig, unit: SocketAddr, round: usize) -> u64 {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
    for _ in 0..AT_ONCE {
        let (_, mut connection) = endpoint.connect(Instant::now(), config.clone(), unit, "1.unit.weir").unwrap();
        let mut packet = Vec::new();
        let transmit = connection.poll_transmit(Instant::now(), 1, &mut packet).unwrap();
        let _ = socket.send_to(&packet[..transmit.size], unit);
        if round.is_multiple_of(7) {
            // Some bits change on the way.
            packet[transmit.size / 2] ^= 0x55;
            let _ = socket.send_to(&packet[..transmit.size], unit);
        }
    }
    AT_ONCE
}

/// Clients that prove where they are, and are gone then: all from another address than the hosts.
fn stalled(config: &ClientConfig, unit: SocketAddr) -> u64 {
    let socket = UdpSocket::bind(("127.0.0.2", 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
    let mut connections = HashMap::new();
    for _ in 0..AT_ONCE {
        let (handle, connection) = endpoint.connect(Instant::now(), config.clone(), unit, "1.unit.weir").unwrap();
        connections.insert(handle, connection);
    }
    let send = |connection: &mut Connection| {
        let mut packet = Vec::new();
        if let Some(transmit) = connection.poll_transmit(Instant::now(), 1, &mut packet) {
            let _ = socket.send_to(&packet[..transmit.size], unit);
        }
    };
    connections.values_mut().for_each(send);
    let (mut packet, mut proven) = ([0; 1500], 0);
    while let Ok(length) = socket.recv(&mut packet) {
        let is_retry = packet[0] & 0xf0 == 0xf0;
        let event = endpoint.handle(Instant::now(), unit, None, None, packet[..length].into(), &mut Vec::new());
        if let (true, Some(DatagramEvent::ConnectionEvent(handle, event))) = (is_retry, event) {
            let connection = connections.get_mut(&handle).unwrap();
            connection.handle_event(event);
            send(connection);
            proven += 1;
        }
    }
    proven
}

/// Bytes by chance, those of the first packet of a connection among them.
fn rubbish(unit: SocketAddr, round: usize) -> u64 {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let mut number = u64::try_from(round).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = [0; 1400];
    for at in 0..AT_ONCE {
        for byte in &mut bytes {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            *byte = number.to_le_bytes()[3];
        }
        if at.is_multiple_of(2) {
            bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        let length = if at.is_multiple_of(3) { usize::from(bytes[9]) + 1 } else { bytes.len() };
        let _ = socket.send_to(&bytes[..length], unit);
    }
    AT_ONCE
}

/// Nodes of another authority, who shake hands as far as they are let.
fn knock(config: &ClientConfig, unit: SocketAddr) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let knock = |_| {
            let connecting = endpoint.connect_with(config.clone(), unit, "1.unit.weir").unwrap();
            async move {
                // It is told only after its own part is done that it is not wanted.
                if let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_secs(5), connecting).await {
                    let _ = tokio::time::timeout(Duration::from_secs(5), connection.closed()).await;
                }
            }
        };
        let mut all: tokio::task::JoinSet<()> = (0..8).map(knock).collect();
        while all.join_next().await.is_some() {}
    });
    8
}

/// What a client needs that knows our authority, and is proven by another one, if at all.
fn client(node: &Path, own: Option<&Path>) -> ClientConfig {
    let certificates = |path: &Path| CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap);
    let mut roots = rustls::RootCertStore::empty();
    certificates(&node.join("authority.pem")).for_each(|authority| roots.add(authority).unwrap());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match own {
        Some(own) => {
            let key = PrivateKeyDer::from_pem_file(own.join("node.key")).unwrap();
            builder.with_client_auth_cert(certificates(&own.join("node.pem")).collect(), key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"weir-health/1".to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

const HOSTS: u32 = 20;
const NEWCOMERS: u32 = 3;
/// Handshakes that are not finished, and packets of rubbish, each 10 ms.
const AT_ONCE: u64 = 20;
/// More than handshakes are given to finish.
const FLOODED: Duration = Duration::from_secs(8);
/// A host is let in by then, whoever else wants to be.
const LET_IN: Duration = Duration::from_secs(15);
