//! A unit's connections, all of them in one task: the socket, QUIC's state machines and their timers, without a task, a channel or a lock each.
//!
//! Most of what a heartbeat costs a unit in the usual arrangement of `quinn`, a task and several wake-ups for each connection, is not QUIC.
//! Here packets are taken in batches, and work is done for those connections only that something has come for, is due for, or is to be
//! sent to.

mod socket;
mod waiting;

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::udp::{self, BATCH_SIZE, RecvMeta};
use quinn_proto::{ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, Incoming, Transmit};
use weir_health_protocol::{DecodeError, Message};
use weir_identity::UnitId;

use crate::clock::instant;
use crate::keys::{Keys, KeysError, Names, Patience, unit_name};
use crate::line::Line;
use crate::slots::Slots;
use socket::Socket;
pub(crate) use waiting::Network;
use waiting::Waiting;

/// What a connection says to the driver.
#[derive(Debug)]
pub(crate) enum Event {
    /// It is there, and proven to be these.
    Up { link: LinkId, names: Names },
    /// A message came.
    Message { link: LinkId, message: Message },
    /// Bytes came that are none.
    Malformed(DecodeError),
    /// A message has to wait: there are too many from there.
    Flood,
    /// It is over. The id may be given to another one.
    Down { link: LinkId },
}

/// Which connection.
pub(crate) type LinkId = ConnectionHandle;

/// A unit's socket and all connections on it.
pub(crate) struct Hub {
    socket: Socket,
    is_v6: bool,
    endpoint: Endpoint,
    keys: Keys,
    lines: Slots<Line>,
    timers: BinaryHeap<Reverse<(Instant, LinkId)>>,
    /// Something has come for these, or is to be sent.
    touched: Vec<LinkId>,
    waiting: Waiting,
    counts: Handshakes,
    /// When a failure was written down last.
    complained: Option<Instant>,
    /// Those that were begun lately and are not finished: with whoever is there and answers.
    young: VecDeque<(Instant, LinkId)>,
    /// How many of them from each address that has been proven.
    shares: HashMap<Network, usize>,
    /// There may be more packets than were taken.
    behind: bool,
    peers: BTreeMap<UnitId, Peer>,
    /// To be compared with the list of revoked certificates.
    suspects: VecDeque<LinkId>,
    events: Vec<Event>,
    received: Box<[u8]>,
    packet: Vec<u8>,
    block: Block,
}

/// The handshakes of a unit: how many there are, and what became of others since it began to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Handshakes {
    /// Going on now.
    pub going_on: usize,
    /// So many of them with whoever may be somewhere else than it says.
    pub unproven: usize,
    /// Waiting for room now.
    pub waiting: usize,
    /// Connections that are kept, those that die away and the handshakes included.
    pub kept: usize,
    /// Ended with a link.
    pub done: u64,
    /// Begun, and ended without a link.
    pub failed: u64,
    /// Told to come again with a proof of their address.
    pub retried: u64,
    /// Not begun: there were too many, or they had waited for too long.
    pub turned_away: u64,
}

impl Handshakes {
    /// What became of them, each with its name.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = [
            ("done", self.done),
            ("failed", self.failed),
            ("retried", self.retried),
            ("turned_away", self.turned_away),
        ];
        all.into_iter()
    }
}

/// A unit that is dialled from here.
struct Peer {
    address: SocketAddr,
    /// There is a connection, or one is being made.
    link: Option<LinkId>,
    /// Not before.
    next: Instant,
}

impl Hub {
    pub(crate) fn new(
        socket: std::net::UdpSocket,
        keys: Keys,
        peers: BTreeMap<UnitId, SocketAddr>,
        now: Instant,
    ) -> Result<Hub, HubError> {
        let is_v6 = socket.local_addr()?.is_ipv6();
        let socket = Socket::new(socket)?;
        keys.client(Patience::UNITS)?;
        let endpoint = Endpoint::new(Arc::new(keys.endpoint()), Some(Arc::new(keys.server()?)), false, None);
        let payload = usize::try_from(endpoint.config().get_max_udp_payload_size()).unwrap_or(PAYLOAD_MAX);
        let received = vec![0; payload.min(PAYLOAD_MAX) * socket.receive_segments() * BATCH_SIZE];
        let peer = |(unit, address)| (unit, Peer { address, link: None, next: now });
        Ok(Hub {
            socket,
            is_v6,
            endpoint,
            keys,
            lines: Slots::default(),
            timers: BinaryHeap::new(),
            touched: Vec::new(),
            waiting: Waiting::default(),
            counts: Handshakes::default(),
            complained: None,
            young: VecDeque::new(),
            shares: HashMap::new(),
            behind: false,
            peers: peers.into_iter().map(peer).collect(),
            suspects: VecDeque::new(),
            events: Vec::new(),
            received: received.into(),
            packet: Vec::new(),
            block: Block::default(),
        })
    }

    pub(crate) fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for packets and takes those that are there; how many.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<usize> {
        loop {
            // Whatever is wrong with the socket, silence is noticed by other means, and it may pass.
            let Ok(()) = ready!(self.socket.poll_readable(cx)) else { return Poll::Pending };
            match self.receive(now) {
                Ok(0) => {}
                Ok(taken) => return Poll::Ready(taken),
                Err(_) => return Poll::Pending,
            }
        }
    }

    /// Takes the packets that are there. Until [`Hub::poll_receive`] is called again, none that comes wakes anybody.
    pub(crate) fn receive_unwatched(&mut self, now: Instant) -> usize {
        self.socket.unwatch();
        self.receive(now).unwrap_or(0)
    }

    fn receive(&mut self, now: Instant) -> std::io::Result<usize> {
        let mut taken = 0;
        let mut buffer = std::mem::take(&mut self.received);
        let each = buffer.len() / BATCH_SIZE;
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = {
            let mut parts = buffer.chunks_mut(each);
            std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()))
        };
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut last = Ok(0);
        while taken < AT_ONCE_MAX {
            last = self.socket.receive(&mut slices, &mut metas);
            match &last {
                Ok(0) => break,
                Ok(count) => {
                    for (meta, bytes) in metas.iter().zip(&slices).take(*count) {
                        for packet in bytes[..meta.len].chunks(meta.stride.max(1)) {
                            taken += 1;
                            self.take_packet(packet, meta, now);
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(_) => break,
            }
        }
        self.received = buffer;
        self.behind = taken >= AT_ONCE_MAX;
        if taken > 0 { Ok(taken) } else { last }
    }

    fn take_packet(&mut self, packet: &[u8], meta: &RecvMeta, now: Instant) {
        let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
        self.packet.clear();
        let data = self.block.copy_of(packet);
        match self.endpoint.handle(now, meta.addr, meta.dst_ip, ecn, data, &mut self.packet) {
            Some(DatagramEvent::ConnectionEvent(link, event)) => {
                if let Some(line) = self.lines.get_mut(link) {
                    line.connection.handle_event(event);
                    touch(&mut self.touched, link, line);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) if self.lines.len() >= LINKS_MAX => {
                self.packet.clear();
                self.counts.turned_away += 1;
                let transmit = self.endpoint.refuse(incoming, &mut self.packet);
                transmit_one(&self.socket, &transmit, &self.packet);
            }
            Some(DatagramEvent::NewConnection(incoming)) if incoming.remote_address_validated() => {
                let from = Network::of(incoming.remote_address().ip());
                if let Some(dropped) = self.waiting.push(from, incoming, now) {
                    self.counts.turned_away += 1;
                    self.endpoint.ignore(dropped);
                }
            }
            Some(DatagramEvent::NewConnection(incoming))
                if self.counts.unproven + self.waiting.unproven() < UNPROVEN_MAX =>
            {
                self.waiting.push_unproven(incoming, now);
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.ask_for_proof(incoming),
            Some(DatagramEvent::Response(transmit)) => transmit_one(&self.socket, &transmit, &self.packet),
            None => {}
        }
    }

    /// Nothing is kept of it until it comes again with a proof of where it is (RFC 9000, 8.1.2). If it has come with one, it is turned away.
    fn ask_for_proof(&mut self, incoming: Incoming) {
        self.packet.clear();
        match self.endpoint.retry(incoming, &mut self.packet) {
            Ok(transmit) => {
                self.counts.retried += 1;
                transmit_one(&self.socket, &transmit, &self.packet);
            }
            Err(error) => {
                self.counts.turned_away += 1;
                self.endpoint.ignore(error.into_incoming());
            }
        }
    }

    /// How its handshakes are.
    pub(crate) fn handshakes(&self) -> Handshakes {
        Handshakes { waiting: self.waiting.len(), kept: self.lines.len(), ..self.counts }
    }

    /// Is there more to be done than was done in the last turn?
    pub(crate) fn is_behind(&self) -> bool {
        self.behind || (self.has_room() && self.waiting.has_next(may_begin(&self.shares)))
    }

    /// Does anybody wait for its handshake to begin?
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.has_next(may_begin(&self.shares))
    }

    fn has_room(&self) -> bool {
        self.counts.going_on < HANDSHAKES_MAX && self.young.len() < YOUNG_MAX
    }

    /// When [`Hub::turn`] is due, whether a packet comes or not.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let works =
            !self.events.is_empty() || !self.suspects.is_empty() || !self.touched.is_empty() || self.is_behind();
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        let peers = self.peers.values().filter(|peer| peer.link.is_none()).map(|peer| peer.next);
        let room = self.young.front().filter(|_| self.is_waited_for()).map(|(begun, _)| *begun + YOUNG);
        peers.chain(timer).chain(room).chain(works.then_some(now)).min()
    }

    /// Does what is due, and tells what has come.
    pub(crate) fn turn(&mut self, now: Instant, events: &mut Vec<Event>) {
        while let Some(Reverse((due, link))) = self.timers.peek().copied().filter(|Reverse((due, _))| *due <= now) {
            self.timers.pop();
            if let Some(line) = self.lines.get_mut(link)
                && line.timers.is_due(due)
            {
                if line.handle_timeout(now) {
                    self.lose(link, now);
                } else {
                    touch(&mut self.touched, link, line);
                }
            }
        }
        self.accept(now);
        self.dial(now);
        self.look_at_suspects(now);
        let touched = std::mem::take(&mut self.touched);
        for link in &touched {
            self.converse(*link, now);
        }
        self.touched.extend(touched);
        let is_young = |(begun, link): &(Instant, LinkId)| {
            now.saturating_duration_since(*begun) < YOUNG && self.lines.get(*link).is_some_and(Line::is_in_handshake)
        };
        self.young.retain(is_young);
        events.append(&mut self.events);
    }

    /// Sends a message: what may be lost as it comes, everything else in order.
    ///
    /// A peer that does not take them loses its connection: it would be told the truth by digests once it is back.
    pub(crate) fn send(&mut self, link: LinkId, message: &Message, now: Instant) {
        let Some(line) = self.lines.get_mut(link) else { return };
        if line.send(message, now) {
            touch(&mut self.touched, link, line);
        } else {
            self.close(link, "too slow", now);
        }
    }

    /// Ends a connection, which is told with the next turn.
    pub(crate) fn close(&mut self, link: LinkId, why: &str, now: Instant) {
        let Some(line) = self.lines.get_mut(link) else { return };
        line.connection.close(now, 0_u32.into(), why.as_bytes().to_vec().into());
        self.lose(link, now);
    }

    /// New connections are shown the renewed certificate, and those that there are, are judged by the new list. Those that are being made
    /// begin again: they were shown, and judged by, what was before.
    pub(crate) fn renew(&mut self, keys: Keys, now: Instant) {
        match keys.server() {
            Ok(config) => self.endpoint.set_server_config(Some(Arc::new(config))),
            Err(error) => tracing::error!(%error, "the renewed certificate is of no use"),
        }
        self.keys = keys;
        self.waiting.all().for_each(|incoming| self.endpoint.ignore(incoming));
        let begun = self.lines.iter().filter(|(_, line)| line.is_in_handshake()).map(|(link, _)| link);
        begun.collect::<Vec<_>>().into_iter().for_each(|link| self.close(link, "renewed", now));
        self.suspect_all();
    }

    /// Sends what is to be sent.
    pub(crate) fn flush(&mut self, now: Instant) {
        let segments = self.socket.transmit_segments().min(SEGMENTS_MAX);
        for link in std::mem::take(&mut self.touched) {
            let Some(line) = self.lines.get_mut(link) else { continue };
            line.touched = false;
            loop {
                self.packet.clear();
                while let Some(transmit) = line.connection.poll_transmit(now, segments, &mut self.packet) {
                    transmit_one(&self.socket, &transmit, &self.packet);
                    self.packet.clear();
                }
                let mut answered = false;
                while let Some(event) = line.connection.poll_endpoint_events() {
                    line.drained |= event.is_drained();
                    if let Some(event) = self.endpoint.handle_event(link, event) {
                        line.connection.handle_event(event);
                        answered = true;
                    }
                }
                if !answered {
                    break;
                }
            }
            if line.drained {
                self.lines.remove(link);
            } else if let Some(due) = line.schedule(now) {
                self.timers.push(Reverse((due, link)));
            }
        }
    }

    /// Begins the handshakes that there is room for.
    fn accept(&mut self, now: Instant) {
        self.waiting.stale(now).into_iter().for_each(|incoming| self.ask_for_proof(incoming));
        for _ in 0..BEGUN_AT_ONCE {
            if !self.has_room() {
                return;
            }
            let Some(incoming) = self.waiting.pop(may_begin(&self.shares)) else { return };
            let from = Network::of(incoming.remote_address().ip());
            let from = incoming.remote_address_validated().then_some(from);
            self.packet.clear();
            match self.endpoint.accept(incoming, now, &mut self.packet, None) {
                Ok((link, connection)) => {
                    self.insert(link, Line::new(connection, None, from, now));
                    self.young.push_back((now, link));
                }
                Err(error) => {
                    if let Some(transmit) = error.response {
                        transmit_one(&self.socket, &transmit, &self.packet);
                    }
                }
            }
        }
    }

    /// Dials units that there is no link to.
    fn dial(&mut self, now: Instant) {
        let free = |peer: &Peer| peer.link.is_none() && peer.next <= now;
        let due: Vec<(UnitId, SocketAddr)> =
            self.peers.iter().filter(|(_, peer)| free(peer)).map(|(unit, peer)| (*unit, peer.address)).collect();
        for (unit, address) in due {
            let address = if self.is_v6 { mapped(address) } else { address };
            let config = self.keys.client(Patience::UNITS);
            let dialled =
                config.ok().and_then(|config| self.endpoint.connect(now, config, address, &unit_name(unit)).ok());
            let link = dialled.map(|(link, connection)| {
                self.insert(link, Line::new(connection, Some(unit), Some(Network::of(address.ip())), now));
                link
            });
            if let Some(peer) = self.peers.get_mut(&unit) {
                (peer.link, peer.next) = (link, now + REDIAL);
            }
        }
    }

    fn insert(&mut self, link: LinkId, mut line: Line) {
        self.counts.going_on += 1;
        match line.from {
            Some(from) => *self.shares.entry(from).or_default() += 1,
            None => self.counts.unproven += 1,
        }
        touch(&mut self.touched, link, &mut line);
        self.lines.insert(link, line);
    }

    /// Takes what has come on one connection.
    fn converse(&mut self, link: LinkId, now: Instant) {
        let Some(line) = self.lines.get_mut(link) else { return };
        let before = line.is_up();
        let goes_on = line.converse(link, &self.keys, now, &mut self.events);
        if !before && line.is_up() {
            self.counts.done += 1;
            conclude(&mut self.counts, &mut self.shares, line);
        }
        if !goes_on {
            self.lose(link, now);
        }
    }

    /// A connection is over; what is left of it dies away.
    fn lose(&mut self, link: LinkId, now: Instant) {
        let Some(line) = self.lines.get_mut(link) else { return };
        touch(&mut self.touched, link, line);
        let was_up = line.is_up();
        let Some(why) = line.end(now) else { return };
        tracing::debug!(?link, %why, "link ends");
        if was_up {
            self.events.push(Event::Down { link });
        } else {
            self.counts.failed += 1;
            conclude(&mut self.counts, &mut self.shares, line);
            let from = line.connection.remote_address();
            if self.complained.is_none_or(|last| now.saturating_duration_since(last) >= COMPLAINT) {
                self.complained = Some(now);
                tracing::info!(%from, %why, failed = self.counts.failed, "handshake failed");
            }
        }
        if let Some(peer) = line.dialled.and_then(|unit| self.peers.get_mut(&unit)) {
            (peer.link, peer.next) = (None, now + REDIAL);
        }
    }

    /// Whoever is not admitted any more loses its connection: some in each turn, so that heartbeats are not kept waiting.
    fn look_at_suspects(&mut self, now: Instant) {
        for _ in 0..SUSPECTS_AT_ONCE {
            let Some(link) = self.suspects.pop_front() else { return };
            let chain = self.lines.get(link).filter(|line| line.is_up()).and_then(|line| line.chain());
            if chain.is_some_and(|chain| !self.keys.admits(&chain)) {
                tracing::warn!(?link, "the peer's certificate is revoked or has expired");
                self.close(link, "not admitted", now);
            }
        }
    }

    /// All connections are to be compared with the list and the time again.
    pub(crate) fn suspect_all(&mut self) {
        self.suspects = self.lines.iter().map(|(link, _)| link).collect();
    }
}

impl Drop for Hub {
    /// Says that it ends.
    fn drop(&mut self) {
        let now = instant();
        self.waiting.all().for_each(|incoming| self.endpoint.ignore(incoming));
        for line in self.lines.values_mut() {
            line.connection.close(now, 1_u32.into(), b"bye".as_slice().into());
            self.packet.clear();
            if let Some(transmit) = line.connection.poll_transmit(now, 1, &mut self.packet) {
                transmit_one(&self.socket, &transmit, &self.packet);
            }
        }
    }
}

/// Why there is no hub.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Socket(#[from] std::io::Error),
}

/// Whether another handshake with somebody there may begin.
fn may_begin(shares: &HashMap<Network, usize>) -> impl Fn(Network) -> bool + use<'_> {
    |from| shares.get(&from).is_none_or(|share| *share < SHARE_MAX)
}

/// A handshake is over, one way or the other.
fn conclude(counts: &mut Handshakes, shares: &mut HashMap<Network, usize>, line: &Line) {
    counts.going_on -= 1;
    match line.from.map(|from| shares.entry(from)) {
        None => counts.unproven -= 1,
        Some(Entry::Occupied(share)) if *share.get() == 1 => drop(share.remove()),
        Some(share) => drop(share.and_modify(|share| *share -= 1)),
    }
}

fn touch(touched: &mut Vec<LinkId>, link: LinkId, line: &mut Line) {
    if !std::mem::replace(&mut line.touched, true) {
        touched.push(link);
    }
}

/// Memory for packets: many small ones share what is allocated at once, and it is used again when they are done with. What is held for long
/// keeps no more than a block in memory.
#[derive(Default)]
struct Block(BytesMut);

impl Block {
    fn copy_of(&mut self, packet: &[u8]) -> BytesMut {
        if packet.len() > SMALL {
            return BytesMut::from(packet);
        }
        if self.0.capacity() < packet.len() {
            self.0.reserve(BLOCK);
        }
        self.0.extend_from_slice(packet);
        self.0.split()
    }
}

fn transmit_one(socket: &Socket, transmit: &Transmit, packet: &[u8]) {
    let ecn = transmit.ecn.and_then(|ecn| udp::EcnCodepoint::from_bits(ecn as u8));
    socket.send(&udp::Transmit {
        destination: transmit.destination,
        ecn,
        contents: &packet[..transmit.size],
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    });
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

/// So many handshakes may be going on.
const HANDSHAKES_MAX: usize = 1024;
/// So many that were begun lately. When thousands come at once, those that are begun are finished soon, before the host gives up what it has
/// spent on its part; the others have spent nothing but their first packet.
const YOUNG_MAX: usize = 96;
const YOUNG: Duration = Duration::from_millis(250);
/// So many with whoever has not proven its address, those that wait included.
const UNPROVEN_MAX: usize = 512;
/// So many from one address that has been proven: thousands of hosts may come from one, but it must not be all.
const SHARE_MAX: usize = 256;
/// So many are begun before other packets are looked at.
const BEGUN_AT_ONCE: usize = 32;
/// So many links there may be.
const LINKS_MAX: usize = 65_536;
/// So many packets are taken before something is done with them.
const AT_ONCE_MAX: usize = 256;
const SUSPECTS_AT_ONCE: usize = 32;
const SEGMENTS_MAX: usize = 10;
/// Packets of heartbeats and of acknowledgements are.
const SMALL: usize = 256;
const BLOCK: usize = 8 * 1024;
const PAYLOAD_MAX: usize = 64 * 1024;
/// Failures are written down no more often.
const COMPLAINT: Duration = Duration::from_secs(1);
/// Until a unit is dialled again.
const REDIAL: Duration = Duration::from_millis(200);
