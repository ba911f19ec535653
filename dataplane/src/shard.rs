//! A shard: one route table with its queues and rings, an owned value with a single writer that any core may run.
//!
//! The owner of a flow is a keyed hash of the client's address and port, so that both directions meet in one shard; a packet that
//! came in elsewhere goes there over a ring. Rings hang on shards and classifiers, never on cores: moving a shard to another core is
//! sending this value.

mod backlog;
mod fragments;
mod local;
mod pieces;
mod published;
mod rings;
mod split;
mod unresolved;
mod vlan;

use std::sync::Arc;

use weir_identity::Moment;

use self::backlog::Backlog;
pub use self::published::Published;
pub use self::rings::{ClassifierLink, Handover, Held, Neighbourhood, ShardLink, link, neighbourhoods};
use self::unresolved::Unresolved;
use crate::classifier::millis;
use crate::counters::{DropReason, Drops};
use crate::farm::{Farm, PortId};
use crate::flow::{Key, place, protocol};
use crate::forwarder::{Asking, Departures, Fate, Forwarder, GENERAL, QuickLane};
use crate::fragments::{FragmentTable, Limits};
use crate::packet::{BURST, Burst, Packet, Queue};
use crate::parse::{Class, Parsed, parse};
use crate::plumbing::{Ask, Notice, Question, Reply, Verdict};
use crate::populate::Populate;
use crate::rate_limit::TokenBucket;
use crate::responder::{self, Answer};
use crate::sweep::SweepPace;
use crate::wire::ethernet::MacAddress;

/// Where packets for a port's kernel go.
pub enum Twin<Q> {
    /// Nowhere: the kernel sees the port itself.
    Itself,
    /// To a port of their own, which only this shard has.
    Port(Q),
    /// To the shard that has it.
    Shard(usize),
}

/// One port as a shard sees it.
pub struct ShardPort<Q: Queue> {
    queue: Result<Q, usize>,
    /// Of a VLAN: the port that it is on, and its identifier.
    vlan: Option<(PortId, u16)>,
    twin: Twin<Q>,
    transmit: Burst<Q::Packet>,
    /// Turns in a row that took as much as a turn may.
    full_turns: u32,
}

impl<Q: Queue> ShardPort<Q> {
    /// A port by its queue, or by the shard that sends for this one (which has none).
    pub fn new(queue: Result<Q, usize>, twin: Twin<Q>) -> Self {
        Self { queue, vlan: None, twin, transmit: Burst::new(), full_turns: 0 }
    }

    /// A VLAN with this identifier on another port.
    #[must_use]
    pub fn vlan(parent: PortId, id: u16) -> Self {
        Self { vlan: Some((parent, id)), ..Self::new(Err(usize::MAX), Twin::Itself) }
    }
}

/// A burst on its way through the quick lane.
struct Stage<P> {
    packets: Burst<P>,
    lane: QuickLane,
}

impl<P> Default for Stage<P> {
    fn default() -> Self {
        Self { packets: Burst::new(), lane: QuickLane::default() }
    }
}

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
    /// Empty between two turns.
    stages: [Stage<Q::Packet>; STAGES],
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
        ports: Vec<ShardPort<Q>>,
        neighbours: Neighbourhood<Q::Packet>,
        classifiers: Vec<ClassifierLink<Q::Packet>>,
        burst: usize,
    ) -> Self {
        let fragments = fragments::table(&forwarder, Limits::default());
        Self {
            number,
            farm,
            forwarder,
            ports,
            neighbours,
            classifiers,
            published: Arc::default(),
            burst: burst.clamp(1, BURST),
            backlog: Backlog::default(),
            stages: Default::default(),
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

    /// Its receive queues, the twins' included.
    pub fn queues(&self) -> impl Iterator<Item = &Q> {
        self.ports.iter().flat_map(|port| {
            let twin = match &port.twin {
                Twin::Port(twin) => Some(twin),
                Twin::Itself | Twin::Shard(_) => None,
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
            work += self.receive(port, now);
        }
        work += self.take_handovers(now);
        work += self.take_replies(now);
        for port in 0..self.ports.len() {
            self.flush(port);
        }
        self.housekeeping(now);
        work
    }

    /// Takes a burst from each port that this shard has a queue of.
    fn receive(&mut self, port: usize, now: Moment) -> usize {
        let mut burst = Burst::new();
        let slot = &mut self.ports[port];
        let id = port_id(port);
        let mut work = 0;
        if let Twin::Port(twin) = &mut slot.twin {
            twin.receive(&mut burst);
            work += burst.len();
            for packet in burst.drain(..) {
                self.take_from_kernel(packet, id, now);
            }
        }
        if self.burst < BURST {
            return work + self.receive_pieces(port, now);
        }
        let Asking { together4, together6 } = self.forwarder.asking();
        work + match (together4, together6) {
            (false, false) => self.receive_bursts::<false, false>(port, now),
            (false, true) => self.receive_bursts::<false, true>(port, now),
            (true, false) => self.receive_bursts::<true, false>(port, now),
            (true, true) => self.receive_bursts::<true, true>(port, now),
        }
    }

    /// Takes bursts from a port as long as they are full, but no more than [`BURSTS_AT_ONCE`]. They are in the quick lane's three
    /// passes one behind the other, so that the memory has the time of a whole burst to answer.
    fn receive_bursts<const TOGETHER4: bool, const TOGETHER6: bool>(&mut self, port: usize, now: Moment) -> usize {
        let id = port_id(port);
        let (mut work, mut bursts, mut more) = (0, 0, true);
        let mut step = 0;
        while more || step < bursts + 2 {
            if more {
                let arrived = self.take_in::<TOGETHER4, TOGETHER6>(step % STAGES, port, now);
                work += arrived;
                bursts += usize::from(arrived > 0);
                more = arrived == BURST && bursts < BURSTS_AT_ONCE;
            }
            if (1..=bursts).contains(&step) {
                let Stage { packets, lane } = &mut self.stages[(step - 1) % STAGES];
                self.forwarder.look(packets, lane, &self.farm, millis(now));
            }
            if (2..=bursts + 1).contains(&step) {
                self.finish((step - 2) % STAGES, id, now);
            }
            step += 1;
        }
        self.note_backlog(port, bursts == BURSTS_AT_ONCE);
        self.forwarder.counters.received += work as u64;
        work
    }

    /// Receives a burst, and the quick lane's first pass over it; returns how many packets arrived.
    #[inline]
    fn take_in<const TOGETHER4: bool, const TOGETHER6: bool>(
        &mut self,
        stage: usize,
        port: usize,
        now: Moment,
    ) -> usize {
        let Ok(queue) = &mut self.ports[port].queue else {
            return 0;
        };
        let packets = &mut self.stages[stage].packets;
        queue.receive(packets);
        let arrived = packets.len();
        if arrived == 0 {
            return 0;
        }
        let id = port_id(port);
        if self.farm.is_trunk(id) {
            let mut all = std::mem::take(packets);
            self.take_tagged(&mut all, id, now);
            self.stages[stage].packets = all;
        }
        let Stage { packets, lane } = &mut self.stages[stage];
        self.forwarder.enter::<TOGETHER4, TOGETHER6, _>(packets, id, &self.farm, lane);
        arrived
    }

    /// The last pass over a burst of the quick lane, and the general way for what is left.
    #[inline]
    fn finish(&mut self, stage: usize, port: PortId, now: Moment) {
        let Stage { packets, lane } = &mut self.stages[stage];
        let departures = self.forwarder.leave(packets, lane, &self.farm, millis(now));
        let first = departures[0];
        if first != GENERAL
            && departures[..packets.len()].iter().fold(0, |mixed, departure| mixed | (departure ^ first)) == 0
            && let ShardPort { queue: Ok(queue), transmit, .. } = &mut self.ports[usize::from(first)]
            && transmit.is_empty()
        {
            // All of it leaves by one port, and nothing waits there.
            transmit_burst(queue, packets, &mut self.forwarder);
        } else {
            let mut packets = std::mem::take(packets);
            self.dispatch(&mut packets, &departures, port, now);
        }
    }

    /// Takes one burst from a port and forwards it in pieces of the configured size.
    fn receive_pieces(&mut self, port: usize, now: Moment) -> usize {
        let id = port_id(port);
        let mut burst = Burst::new();
        if let Ok(queue) = &mut self.ports[port].queue {
            queue.receive(&mut burst);
        }
        let work = burst.len();
        self.forwarder.counters.received += work as u64;
        self.note_backlog(port, burst.is_full());
        if self.farm.is_trunk(id) {
            self.take_tagged(&mut burst, id, now);
        }
        self.process(burst, id, now);
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

    /// Forwards a burst that came in by `port`, in pieces of the configured size.
    fn process(&mut self, mut burst: Burst<Q::Packet>, port: PortId, now: Moment) {
        while !burst.is_empty() {
            let mut piece: Burst<Q::Packet> = burst.drain(..self.burst.min(burst.len())).collect();
            let departures = self.forwarder.forward(&mut piece, port, &self.farm, millis(now));
            self.dispatch(&mut piece, &departures, port, now);
        }
    }

    /// Sends each packet where the quick lane says, or takes it the general way.
    fn dispatch(&mut self, packets: &mut Burst<Q::Packet>, departures: &Departures, port: PortId, now: Moment) {
        for (packet, departure) in packets.drain(..).zip(departures) {
            if *departure == GENERAL {
                self.process_one(packet, port, now);
            } else {
                send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, packet, *departure);
            }
        }
    }

    /// Forwards one packet the general way, in its turn among the burst's.
    #[inline(never)]
    fn process_one(&mut self, mut packet: Q::Packet, port: PortId, now: Moment) {
        match parse(packet.data(), self.farm.ports[usize::from(port)].mac) {
            Ok(parsed) => {
                let fate = self.forwarder.forward_one(&mut packet, &parsed, &self.farm, millis(now));
                self.tell_notices();
                self.settle(packet, parsed, port, fate, now);
            }
            Err(reason) => self.forwarder.drops.count(reason),
        }
    }

    /// What other shards handed over: at most one burst from each.
    fn take_handovers(&mut self, now: Moment) -> usize {
        let mut work = 0;
        for neighbour in 0..self.neighbours.from.len() {
            for _ in 0..BURST {
                let Ok(handover) = self.neighbours.from[neighbour].pop() else {
                    break;
                };
                work += 1;
                match handover {
                    Handover::Process(mut packet, parsed, port) => {
                        let fate = self.forwarder.forward_one(&mut packet, &parsed, &self.farm, millis(now));
                        self.tell_notices();
                        self.settle(packet, parsed, port, fate, now);
                    }
                    Handover::Split(packet, parsed, port, mtu) => self.split(packet, parsed, port, mtu, now),
                    Handover::Pieces(packet, l3, port, mtu) => self.send_in_pieces(packet, l3, port, mtu),
                    Handover::Send(packet, port) => {
                        send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, packet, port);
                    }
                    Handover::PathMtu(end, mtu) => {
                        self.forwarder.lower_path(end, mtu, &self.farm, millis(now));
                    }
                    Handover::FromKernel(packet, port) => self.take_from_kernel(packet, port, now),
                    Handover::Twin(packet, port) => self.hand_to_twin(packet, port),
                }
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
                hand_over(
                    &mut self.neighbours,
                    &mut self.forwarder.drops,
                    shard,
                    Handover::Process(packet, parsed, port),
                );
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
                    self.hand_to_twin(packet, port);
                }
            }
            Fate::Twin => self.hand_to_twin(packet, port),
            Fate::Kernel(port) => self.hand_to_twin(packet, port),
            Fate::PathMtu(end, mtu) => {
                self.forwarder.drops.count(DropReason::TunnelError);
                // Who does not hear of it hears of its own next packet that is too big.
                for to in self.neighbours.to.iter_mut().flatten() {
                    let _ = to.push(Handover::PathMtu(end, mtu));
                }
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

    fn hand_to_twin(&mut self, packet: Q::Packet, port: PortId) {
        if let Some((parent, id)) = self.ports[usize::from(port)].vlan {
            // The kernel has its own interface for the VLAN, on top of the port's.
            if let Some(packet) = vlan::tagged(packet, id, &mut self.forwarder.drops) {
                self.hand_to_twin(packet, parent);
            }
            return;
        }
        match &mut self.ports[usize::from(port)].twin {
            Twin::Itself => self.forwarder.counters.twin += 1,
            Twin::Port(queue) => {
                let mut one = Burst::new();
                one.push(packet);
                queue.send(&mut one);
                self.forwarder.counters.twin += u64::from(one.is_empty());
                self.forwarder.drops.count_many(DropReason::TwinFull, one.len());
            }
            Twin::Shard(shard) => {
                let shard = *shard;
                hand_over(&mut self.neighbours, &mut self.forwarder.drops, shard, Handover::Twin(packet, port));
            }
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
        self.published.store(&self.forwarder, &self.forwarder.drops);
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
                None => hand_over(neighbours, &mut forwarder.drops, shard, Handover::Send(packet, port)),
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

fn hand_over<P>(neighbours: &mut Neighbourhood<P>, drops: &mut Drops, shard: usize, handover: Handover<P>) {
    let ring = neighbours.to.get_mut(shard).and_then(Option::as_mut);
    if ring.is_none_or(|ring| ring.push(handover).is_err()) {
        drops.count(DropReason::HandoverRing);
    }
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
/// Passes of the quick lane.
const STAGES: usize = 3;
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
