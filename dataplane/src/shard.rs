//! A shard: one route table with its queues and rings, an owned value with a single writer that any core may run.
//!
//! The owner of a flow is found by the client's address and port ([`Owners`](crate::flow::Owners)), so that both directions meet in one
//! shard; a packet that came in elsewhere goes there over a ring. Rings hang on shards and classifiers, never on cores: moving a shard to another core is
//! sending this value.

mod backlog;
mod fragments;
mod intake;
mod local;
mod order;
mod pieces;
mod published;
mod rings;
mod split;
mod twin;
mod unresolved;
mod vlan;

use std::sync::Arc;

use weir_identity::Moment;

use self::backlog::Backlog;
use self::intake::{Leftover, Stage};
use self::order::Order;
pub use self::order::Share;
pub use self::published::Published;
pub use self::rings::{ClassifierLink, Held, Neighbourhood, ShardLink, link, neighbourhoods};
use self::rings::{Errand, Task, Transfer};
pub use self::twin::{Twin, TwinQueues, TwinRates};
use self::unresolved::Unresolved;
use crate::classifier::millis;
use crate::counters::DropReason;
use crate::farm::{Farm, PortId};
use crate::flow::{Key, place, protocol};
use crate::forwarder::{Fate, Forwarder};
use crate::fragments::{FragmentTable, Limits};
use crate::packet::{BURST, Burst, Packet, Queue};
use crate::parse::{Class, Parsed, parse};
use crate::plumbing::{Ask, Notice, Question, Reply, Verdict};
use crate::populate::Populate;
use crate::rate_limit::TokenBucket;
use crate::responder::{self, Answer};
use crate::sweep::SweepPace;
use crate::wire::ethernet::MacAddress;

/// One port as a shard sees it.
pub struct ShardPort<Q: Queue> {
    queue: Result<Q, usize>,
    /// Of a VLAN: the port that it is on, and its identifier.
    vlan: Option<(PortId, u16)>,
    twin: Twin<Q>,
    transmit: Burst<Q::Packet>,
    order: Order,
    /// Turns in a row that took as much as a turn may.
    full_turns: u32,
}

impl<Q: Queue> ShardPort<Q> {
    /// A port by its queue, or by the shard that sends for this one (which has none).
    pub fn new(queue: Result<Q, usize>, twin: Twin<Q>) -> Self {
        Self { queue, vlan: None, twin, transmit: Burst::new(), order: Order::new(false), full_turns: 0 }
    }

    /// A VLAN with this identifier on another port.
    #[must_use]
    pub fn vlan(parent: PortId, id: u16) -> Self {
        Self { vlan: Some((parent, id)), ..Self::new(Err(usize::MAX), Twin::Itself) }
    }
}

/// Gives empty buffers.
pub type Buffers<P> = Box<dyn FnMut() -> Option<P> + Send>;

/// One shard.
pub struct Shard<Q: Queue> {
    number: usize,
    farm: Arc<Farm>,
    forwarder: Forwarder,
    ports: Vec<ShardPort<Q>>,
    neighbours: Neighbourhood<Q::Packet>,
    classifiers: Vec<ClassifierLink<Q::Packet>>,
    published: Arc<Published>,
    burst: usize,
    backlog: Backlog,
    /// Empty between two turns, as is what is left over.
    stages: [Stage<Q::Packet>; STAGES],
    leftover: Leftover<Q::Packet>,
    /// Turns in a row that took as much from the other shards' rings as a turn may.
    full_ring_turns: u32,
    /// Where buffers come from if it has no queue at all.
    buffers: Buffers<Q::Packet>,
    last_published: Moment,
    pace: SweepPace,
    fragments: FragmentTable<Held<Q::Packet>>,
    unresolved: Unresolved<Held<Q::Packet>>,
    /// For the ICMP errors that it makes itself.
    errors: TokenBucket,
    /// For its answers to echo requests.
    echoes: TokenBucket,
    /// Of the last tunnel packet that it has sent in pieces.
    identification: u32,
}

impl<Q: Queue> Shard<Q> {
    /// Shard `number`, with the ends of all its rings. `burst` packets (at most [`BURST`]) are taken from a queue at once.
    #[must_use]
    pub fn new(
        number: usize,
        farm: Arc<Farm>,
        forwarder: Forwarder,
        mut ports: Vec<ShardPort<Q>>,
        neighbours: Neighbourhood<Q::Packet>,
        classifiers: Vec<ClassifierLink<Q::Packet>>,
        burst: usize,
    ) -> Self {
        let several = forwarder.owners().shards() > 1;
        ports.iter_mut().for_each(|port| port.order = Order::new(several));
        let fragments = fragments::table(&forwarder, Limits::default());
        Self {
            number,
            farm,
            forwarder,
            published: Arc::new(Published::new(ports.len())),
            ports,
            neighbours,
            classifiers,
            burst: burst.clamp(1, BURST),
            backlog: Backlog::default(),
            stages: Default::default(),
            leftover: Leftover::default(),
            full_ring_turns: 0,
            buffers: Box::new(|| None),
            last_published: Moment(0),
            pace: SweepPace::default(),
            fragments,
            unresolved: Unresolved::default(),
            errors: TokenBucket::new(ERRORS_PER_SECOND, ERRORS_PER_SECOND, Moment(0)),
            echoes: TokenBucket::new(ECHOES_PER_SECOND, ECHOES_PER_SECOND, Moment(0)),
            identification: 0,
        }
    }

    /// The same with other limits for the datagrams whose fragments it follows.
    #[must_use]
    pub fn with_fragments(mut self, limits: Limits) -> Self {
        self.fragments = fragments::table(&self.forwarder, limits);
        self
    }

    /// The same with buffers of its own, for packets that it originates without any queue of its own.
    #[must_use]
    pub fn with_buffers(self, buffers: Buffers<Q::Packet>) -> Self {
        Self { buffers, ..self }
    }

    /// An empty buffer for a packet that the unit itself originates; `None` if there is none.
    fn allocate(&mut self) -> Option<Q::Packet> {
        let queue = self.ports.iter_mut().find_map(|port| port.queue.as_mut().ok());
        queue.map_or_else(&mut self.buffers, Queue::allocate)
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Where its counters can be read.
    #[must_use]
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// Its forwarder, to be looked into.
    #[must_use]
    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Takes its tables' memory now; to be called before its first turn.
    ///
    /// # Errors
    ///
    /// [`MapError`](weir_cpu::MapError) if there is not enough.
    pub fn populate(&mut self, populate: &Populate) -> Result<(), weir_cpu::MapError> {
        self.forwarder.populate(populate)
    }

    /// Whether it steers a port's packets to their owners before it looks them up.
    #[must_use]
    pub fn steers(&self, port: PortId) -> bool {
        self.ports.get(usize::from(port)).is_some_and(|port| port.order.steers())
    }

    /// Its receive queues, the twins' included.
    pub fn queues(&self) -> impl Iterator<Item = &Q> {
        self.ports.iter().flat_map(|port| {
            let twin = match &port.twin {
                Twin::Port(twin, _) => Some(twin),
                Twin::Itself | Twin::Queued(_) => None,
            };
            port.queue.as_ref().ok().into_iter().chain(twin)
        })
    }

    /// Goes on with a newer farm.
    pub fn set_farm(&mut self, farm: &Arc<Farm>) {
        if !Arc::ptr_eq(&self.farm, farm) {
            self.farm = Arc::clone(farm);
            self.unresolved.look_again();
        }
    }

    /// One round: what has arrived at queues and rings, the sending of what came of it, and a bounded piece of housekeeping.
    /// Returns how many packets and messages it dealt with.
    pub fn turn(&mut self, now: Moment) -> usize {
        self.backlog.turn();
        let mut work = self.go_on_resolved(now);
        for port in 0..self.ports.len() {
            work += self.take_from_twin(port, now);
        }
        work += self.take_in(now);
        work += self.run_errands(now);
        work += self.take_replies(now);
        for port in 0..self.ports.len() {
            work += self.send_to_twin(port);
            self.flush(port);
        }
        self.neighbours.flush(&mut self.forwarder.drops);
        self.housekeeping(now);
        work
    }

    /// Where a turn was `full`, as much came from a port as a turn takes: looks whether much more waits.
    fn note_backlog(&mut self, port: usize, full: bool) {
        let ShardPort { queue: Ok(queue), full_turns, .. } = &mut self.ports[port] else {
            return;
        };
        *full_turns = if full { full_turns.saturating_add(1) } else { 0 };
        if full && queue.is_behind().unwrap_or(*full_turns > FULL_TURNS) {
            self.backlog.note();
        }
    }

    /// Forwards one packet the general way, in its turn among the burst's.
    #[inline(never)]
    fn process_one(&mut self, mut packet: Q::Packet, port: PortId, now: Moment) {
        match parse(packet.data(), self.farm.ports[usize::from(port)].mac) {
            Ok(parsed) => {
                let fate = self.forwarder.forward_one(&mut packet, &parsed, &self.farm, millis(now));
                self.tell_notices();
                if matches!(fate, Fate::HandOver(_)) {
                    self.ports[usize::from(port)].order.foreign(1);
                }
                self.settle(packet, parsed, port, fate, now);
            }
            Err(reason) => self.forwarder.drops.count(reason),
        }
    }

    /// Does what other shards ask for, a bounded number of things.
    fn run_errands(&mut self, now: Moment) -> usize {
        let mut work = 0;
        while work < ERRANDS_AT_ONCE
            && let Some(errand) = self.neighbours.errand()
        {
            work += 1;
            match errand {
                Errand::PathMtu(end, mtu) => {
                    self.forwarder.lower_path(end, mtu, &self.farm, millis(now));
                }
                Errand::FromKernel(packet, port) => self.take_from_kernel(packet, port, now),
            }
        }
        work
    }

    /// What classifiers answered or ordered: at most one burst from each.
    fn take_replies(&mut self, now: Moment) -> usize {
        let mut work = 0;
        for classifier in 0..self.classifiers.len() {
            self.classifiers[classifier].prefetch(&self.forwarder);
            // What finds no room for its notices waits in its ring, and the classifier behind it.
            for _ in 0..BURST {
                if !self.room_for_notices() {
                    break;
                }
                let Ok(plumb) = self.classifiers[classifier].plumbs.pop() else {
                    break;
                };
                work += 1;
                self.forwarder.plumb(&plumb, &self.farm, millis(now));
            }
            for _ in 0..self.backlog.answers() {
                if !self.room_for_notices() {
                    break;
                }
                let Ok(reply) = self.classifiers[classifier].replies.pop() else {
                    break;
                };
                work += 1;
                self.answered(reply, now);
            }
            self.tell_notices();
        }
        work
    }

    #[inline]
    fn room_for_notices(&mut self) -> bool {
        if !self.forwarder.has_room_for_notices() {
            self.tell_notices();
        }
        self.forwarder.has_room_for_notices()
    }

    /// A packet came back with its verdict.
    fn answered(&mut self, reply: Reply<Held<Q::Packet>>, now: Moment) {
        self.forwarder.counters.answered += 1;
        let Reply { key, verdict, held: Held { mut packet, parsed, port, .. } } = reply;
        let fate = match verdict {
            // It was asked for an ICMP error: the route is its flow's. Nothing is asked twice.
            Verdict::Install { route, replace } if parsed.class == Class::Icmp => {
                self.forwarder.install_for(&key, route, replace, &self.farm, millis(now));
                match self.forwarder.forward_error(&mut packet, &parsed, &self.farm, millis(now)) {
                    None | Some(Fate::DivertError { .. }) => Fate::Drop(DropReason::Icmp),
                    Some(fate) => fate,
                }
            }
            Verdict::Once { .. } | Verdict::Reset(_) if parsed.class == Class::Icmp => Fate::Drop(DropReason::Icmp),
            Verdict::Install { route, replace } => {
                match self.forwarder.install(&mut packet, &parsed, route, replace, &self.farm, millis(now)) {
                    Fate::Drop(DropReason::PoolExhausted) if self.farm.resets(&parsed.key) => {
                        self.refuse(&mut packet, &parsed, port, DropReason::PoolExhausted, now)
                    }
                    fate => fate,
                }
            }
            Verdict::Once { endpoint, mode } => self.forwarder.once(&mut packet, &parsed, endpoint, mode, &self.farm),
            Verdict::Drop(refusal) => Fate::Drop(refusal.into()),
            Verdict::Reset(refusal) => self.refuse(&mut packet, &parsed, port, refusal.into(), now),
        };
        self.settle(packet, parsed, port, fate, now);
    }

    /// Makes a reset or an ICMP error of a packet that cannot be served.
    fn refuse(
        &mut self,
        packet: &mut Q::Packet,
        parsed: &Parsed,
        port: PortId,
        reason: DropReason,
        now: Moment,
    ) -> Fate {
        let mac = MacAddress(self.farm.ports[usize::from(port)].mac);
        let allowed = parsed.key.protocol() == protocol::TCP || self.errors.allow(now);
        if allowed && respond(packet, |frame, out| responder::refuse(frame, out, mac)) {
            self.forwarder.counters.refused += 1;
            Fate::Send(port)
        } else {
            Fate::Drop(reason)
        }
    }

    /// Does what a packet's fate says.
    fn settle(&mut self, mut packet: Q::Packet, parsed: Parsed, port: PortId, fate: Fate, now: Moment) {
        match fate {
            Fate::Send(out) => send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, packet, out),
            Fate::Pieces(out, mtu) => self.send_in_pieces(packet, parsed.l3, out, mtu),
            Fate::Divert { zombie } => {
                let client = self.farm.classifier_hash(self.forwarder.hash(), &parsed.key);
                let (opens, closes) = (parsed.opens(), parsed.closes());
                let ask = Ask { key: parsed.key, client, opens, closes, zombie };
                // A datagram's protocol has no connections to be in the middle of.
                let begins = opens || parsed.key.protocol() != protocol::TCP;
                self.divert(Held { packet, parsed, port, shard: self.number }, ask, begins);
            }
            Fate::DivertError { key } => {
                let client = self.farm.classifier_hash(self.forwarder.hash(), &key);
                let ask = Ask { key, client, opens: false, closes: false, zombie: false };
                self.divert(Held { packet, parsed, port, shard: self.number }, ask, true);
            }
            Fate::Fragment => self.fragment(Held { packet, parsed, port, shard: self.number }, now),
            Fate::Unresolved(to, neighbour) => {
                self.wait_for_neighbour(Held { packet, parsed, port, shard: self.number }, (to, neighbour), now);
            }
            Fate::TooBig(mtu) if split::may_split(packet.data(), &parsed) => self.split(packet, parsed, port, mtu, now),
            Fate::TooBig(mtu) => {
                self.forwarder.drops.count(DropReason::TooBig);
                let may_fragment =
                    matches!(parsed.key, Key::V4(_)) && packet.data()[usize::from(parsed.l3) + 6] & DONT_FRAGMENT == 0;
                if !may_fragment
                    && self.errors.allow(now)
                    && respond(&mut packet, |frame, out| responder::too_big(frame, mtu.into(), out))
                {
                    self.forwarder.counters.refused += 1;
                    self.forwarder.counters.told_too_big += 1;
                    send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, packet, port);
                }
            }
            Fate::HandOver(shard) => {
                self.forwarder.counters.handed_over += 1;
                // What its bytes do not say goes with a fragment.
                let follows = parsed.class == Class::Flow && parsed.is_piece();
                let task =
                    if follows { Task::Follow(parsed.key.protocol(), parsed.key.ports()) } else { Task::Forward };
                let transfer = Transfer { packet, port, task };
                self.neighbours.hand(shard, transfer, &mut self.forwarder.drops);
            }
            Fate::Respond => {
                let farm = &self.farm;
                let mac = MacAddress(farm.ports[usize::from(port)].mac);
                let owns = |address| farm.answers_for(port, address);
                let is_ours = |address| farm.stands_for(address);
                let asks = responder::asks_for_echo(packet.data(), is_ours);
                // Before its checksum, which a flood of long ones would make expensive.
                if asks && !self.echoes.allow(now) {
                    return self.forwarder.drops.count(DropReason::IcmpRate);
                }
                let echoes = asks && matches!(responder::echo_in_place(packet.data_mut(), is_ours), Answer::Reply(_));
                if echoes || respond(&mut packet, |frame, out| responder::answer(frame, out, mac, owns)) {
                    self.forwarder.counters.responded += 1;
                    send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, packet, port);
                } else if self.farm.is_for_us(&parsed.key) {
                    self.forwarder.drops.count(DropReason::Icmp);
                } else {
                    self.hand_to_twin(packet, port, now);
                }
            }
            Fate::Twin => self.hand_to_twin(packet, port, now),
            Fate::Kernel(port) => self.hand_to_kernel(packet, port),
            Fate::PathMtu(end, mtu) => {
                self.forwarder.drops.count(DropReason::TunnelError);
                // Who does not hear of it hears of its own next packet that is too big.
                self.neighbours.tell_others(|| Errand::PathMtu(end, mtu));
            }
            Fate::Drop(reason) => self.forwarder.drops.count(reason),
        }
    }

    /// Asks the classifier that owns the flow; what `begins` something is lost first.
    fn divert(&mut self, held: Held<Q::Packet>, ask: Ask, begins: bool) {
        if !self.backlog.allows(begins) {
            return self.forwarder.drops.count(DropReason::DivertShed);
        }
        let classifier = place(ask.client, self.classifiers.len());
        match self.classifiers[classifier].ask(Question { ask, held }, begins) {
            Ok(()) => self.forwarder.counters.diverted += 1,
            Err(reason) => self.forwarder.drops.count(reason),
        }
    }

    /// Asks another shard for something; a packet that it has no room for is dropped.
    fn send_errand(&mut self, shard: usize, errand: Errand<Q::Packet>) {
        if !self.neighbours.send_errand(shard, errand) {
            self.forwarder.drops.count(DropReason::HandoverRing);
        }
    }

    /// Sends what has gathered for a port; what it does not take now gets one more chance and is dropped then.
    fn flush(&mut self, port: usize) {
        let ShardPort { queue: Ok(queue), transmit, .. } = &mut self.ports[port] else {
            return;
        };
        if transmit.is_empty() {
            return;
        }
        transmit_burst(queue, transmit, &mut self.forwarder);
    }

    /// Hands the forwarder's notices to the classifiers, each flow's in order. One that finds its ring full waits.
    fn tell_notices(&mut self) {
        if !self.forwarder.has_notices() {
            return;
        }
        let links = &mut self.classifiers;
        let (farm, hash) = (&self.farm, self.forwarder.hash().clone());
        let (mut told, mut deferred) = (0, 0);
        let mut stuck = 0u64;
        self.forwarder.tell_notices(|notice| {
            let full = 1 << (place(farm.classifier_hash(&hash, &notice.key), links.len()) % 64);
            let heard = stuck & full == 0 && tell(links, farm, &hash, *notice);
            if heard {
                told += 1;
            } else {
                stuck |= full;
                deferred += 1;
            }
            heard
        });
        self.forwarder.counters.notices += told;
        self.forwarder.counters.notices_deferred += deferred;
    }

    /// A bounded piece of expiry; now and then the counters.
    fn housekeeping(&mut self, now: Moment) {
        let slots = self.forwarder.routes4().slots().max(self.forwarder.routes6().slots());
        let count = self.pace.due(slots, now);
        if count > 0 {
            let (links, farm, hash) = (&mut self.classifiers, &self.farm, self.forwarder.hash().clone());
            let (mut told, mut deferred) = (0, 0);
            self.forwarder.expire(count, &self.farm, millis(now), |notice| {
                let heard = tell(links, farm, &hash, notice);
                if heard {
                    told += 1
                } else {
                    deferred += 1
                }
                heard
            });
            self.forwarder.counters.notices += told;
            self.forwarder.counters.notices_deferred += deferred;
        }
        self.expire_fragments(now);
        self.expire_unresolved(now);
        if now.0 >= self.last_published.0 + PUBLISH_EVERY {
            self.last_published = now;
            self.publish();
        }
    }

    /// Shows the counters as they are now.
    pub fn publish(&mut self) {
        let shares = self.ports.iter().map(|port| port.order.total);
        self.published.store(&self.forwarder, &self.forwarder.drops, shares);
    }
}

/// Puts an answer of the responder in the place of the packet it answers; false if there is none, or no room for it.
fn respond<P: Packet>(packet: &mut P, answer: impl FnOnce(&[u8], &mut [u8]) -> Answer) -> bool {
    let mut out = [0; RESPONSE];
    let Answer::Reply(length) = answer(packet.data(), &mut out) else {
        return false;
    };
    if !packet.resize(length) {
        return false;
    }
    packet.data_mut().copy_from_slice(&out[..length]);
    true
}

/// Puts a finished packet behind the others for its port, or gives it to the shard that sends by it.
#[inline(always)]
fn send<Q: Queue>(
    ports: &mut [ShardPort<Q>],
    neighbours: &mut Neighbourhood<Q::Packet>,
    forwarder: &mut Forwarder,
    packet: Q::Packet,
    port: PortId,
) {
    match &mut ports[usize::from(port)] {
        ShardPort { queue: Ok(_), transmit, .. } if !transmit.is_full() => transmit.push(packet),
        _ => send_elsewhere(ports, neighbours, forwarder, packet, port),
    }
}

/// The same where there is no room among the others, or nobody but another shard sends by the port.
#[inline(never)]
fn send_elsewhere<Q: Queue>(
    ports: &mut [ShardPort<Q>],
    neighbours: &mut Neighbourhood<Q::Packet>,
    forwarder: &mut Forwarder,
    packet: Q::Packet,
    port: PortId,
) {
    let ShardPort { queue, transmit, .. } = &mut ports[usize::from(port)];
    match queue {
        Ok(queue) => {
            transmit_burst(queue, transmit, forwarder);
            transmit.push(packet);
        }
        Err(shard) => {
            let shard = *shard;
            match ports[usize::from(port)].vlan {
                None => neighbours.hand(shard, Transfer { packet, port, task: Task::Send }, &mut forwarder.drops),
                Some((parent, id)) => {
                    if let Some(packet) = vlan::tagged(packet, id, &mut forwarder.drops) {
                        send(ports, neighbours, forwarder, packet, parent);
                    }
                }
            }
        }
    }
}

/// Sends a burst; what the port does not take in two tries is dropped and counted, so that the place is free again.
#[inline]
fn transmit_burst<Q: Queue>(queue: &mut Q, transmit: &mut Burst<Q::Packet>, forwarder: &mut Forwarder) {
    let before = transmit.len();
    queue.send(transmit);
    if !transmit.is_empty() {
        queue.send(transmit);
    }
    forwarder.counters.sent += (before - transmit.len()) as u64;
    forwarder.drops.count_many(DropReason::TxFull, transmit.len());
    transmit.clear();
}

fn tell<P>(links: &mut [ClassifierLink<P>], farm: &Farm, hash: &crate::flow::FlowHash, notice: Notice) -> bool {
    let classifier = place(farm.classifier_hash(hash, &notice.key), links.len());
    links[classifier].notices.push(notice).is_ok()
}

fn port_id(port: usize) -> PortId {
    PortId::try_from(port).unwrap_or(PortId::MAX)
}

/// Bursts taken from a port in one turn at the most: each but the last two is fetched while others are worked on.
const BURSTS_AT_ONCE: usize = 8;
/// After so many full turns in a row a port is taken to be behind, if its driver cannot tell.
const FULL_TURNS: u32 = 16;
/// Errands done in one turn at the most.
const ERRANDS_AT_ONCE: usize = 2 * BURST;
/// Bursts on their way at the same time: one that is filled, and one in each pass of the fast path.
const STAGES: usize = 4;
/// ICMP errors a shard makes at the most; a sender that misses one gets the next.
const ERRORS_PER_SECOND: u32 = 1000;
/// Echo requests that it answers at the most.
const ECHOES_PER_SECOND: u32 = 1000;
/// DF, in the first byte of an IPv4 header's fragment field.
const DONT_FRAGMENT: u8 = 0x40;
/// MF, in the same field's 16 bits.
const MORE_FRAGMENTS: u16 = 0x2000;
/// Milliseconds between publications of counters.
const PUBLISH_EVERY: u64 = 20;
/// The longest answer: an ICMPv6 error of 1280 bytes behind two VLAN tags.
const RESPONSE: usize = 1280 + 22;
