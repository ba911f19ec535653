//! A shard's intake: bursts from its ports' queues and from the other shards' rings, all through the same three passes of the fast path.
//!
//! A ring is one more receive queue. What came in by the wrong queue goes over in bursts, found either before the look-up or by a
//! look-up in vain, as [`Order`](super::order::Order) says; what is left of several bursts, and what others have handed over, is
//! put together to full ones.

use arrayvec::ArrayVec;
use weir_identity::Moment;

use super::rings::{Held, Task, Transfer};
use super::{BURSTS_AT_ONCE, FULL_TURNS, STAGES, Shard, port_id, send, vlan};
use crate::classifier::millis;
use crate::farm::PortId;
use crate::forwarder::{Asking, GENERAL, QuickLane};
use crate::fragments::with_ports;
use crate::packet::{BURST, Burst, Packet, Queue};
use crate::parse::parse;
use crate::shard::{ShardPort, transmit_burst};

/// A burst on its way through the fast path.
pub(super) struct Stage<P> {
    packets: Burst<P>,
    /// The ports that they came in by; all by the first one's, unless they are mixed.
    ports: [PortId; BURST],
    mixed: bool,
    /// The fragments that others have handed over, a bit each; and whose they are.
    followers: u32,
    flows: [(u8, [u8; 4]); BURST],
    lane: QuickLane,
}

impl<P> Default for Stage<P> {
    fn default() -> Self {
        Self {
            packets: Burst::new(),
            ports: [0; BURST],
            mixed: false,
            followers: 0,
            flows: Default::default(),
            lane: QuickLane::default(),
        }
    }
}

impl<P> Stage<P> {
    #[inline(always)]
    fn push(&mut self, packet: P, port: PortId) {
        self.ports[self.packets.len() % BURST] = port;
        self.packets.push(packet);
    }

    /// The same as long as it has less than `most`; else the packet is left over for the next stage.
    #[inline(always)]
    fn push_or_leave(&mut self, packet: P, port: PortId, most: usize, leftover: &mut Leftover<P>) {
        if self.packets.len() < most {
            self.push(packet, port);
        } else {
            leftover.ports[leftover.packets.len() % BURST] = port;
            leftover.packets.push(packet);
        }
    }
}

/// What has been received and steered, and has found no room in a stage yet.
pub(super) struct Leftover<P> {
    packets: Burst<P>,
    ports: [PortId; BURST],
}

impl<P> Default for Leftover<P> {
    fn default() -> Self {
        Self { packets: Burst::new(), ports: [0; BURST] }
    }
}

impl<P> Leftover<P> {
    #[inline]
    fn move_to(&mut self, stage: &mut Stage<P>, most: usize) {
        let count = self.packets.len().min(most.saturating_sub(stage.packets.len()));
        for (packet, port) in self.packets.drain(..count).zip(self.ports) {
            stage.push(packet, port);
        }
        self.ports.copy_within(count.., 0);
    }
}

/// How far a turn's intake has come.
#[derive(Debug, Default)]
struct Progress {
    /// The port that is taken from; the rings come after the last one.
    port: usize,
    /// Bursts taken from it.
    bursts: usize,
    /// Packets and messages so far.
    work: usize,
    /// When the turn began.
    now: Moment,
}

impl<Q: Queue> Shard<Q> {
    /// Takes what has arrived at the ports' queues and in the other shards' rings, a bounded number of bursts each, and forwards it.
    pub(super) fn take_in(&mut self, now: Moment) -> usize {
        let Asking { together4, together6 } = self.forwarder.asking();
        let work = match (together4, together6) {
            (false, false) => self.pump::<false, false>(now),
            (false, true) => self.pump::<false, true>(now),
            (true, false) => self.pump::<true, false>(now),
            (true, true) => self.pump::<true, true>(now),
        };
        self.ports.iter_mut().for_each(|port| port.order.turn_is_over());
        work
    }

    /// Bursts are filled and in the fast path's three passes one behind the other, so that the memory has the time of a whole burst to
    /// answer.
    fn pump<const TOGETHER4: bool, const TOGETHER6: bool>(&mut self, now: Moment) -> usize {
        let mut progress = Progress { now, ..Progress::default() };
        if self.burst < BURST {
            // One after the other: who wants short bursts wants each to be over before the next one comes.
            while self.fill(0, &mut progress) {
                self.enter::<TOGETHER4, TOGETHER6>(0);
                self.look(0, now);
                self.finish(0, now);
            }
            return progress.work;
        }
        // Where packets are handed over, what other cores have had is not here yet when it is taken out of their rings.
        let wait = usize::from(self.ports.iter().any(|port| port.order.steers()));
        let (mut step, mut filled, mut more) = (0, 0, true);
        while more || step < filled + wait + 2 {
            if more {
                more = self.fill(step % STAGES, &mut progress);
                filled += usize::from(more);
                if filled == 0 {
                    break;
                }
            }
            let due =
                |behind: usize| step.checked_sub(behind).filter(|stage| *stage < filled).map(|stage| stage % STAGES);
            if let Some(stage) = due(wait) {
                self.enter::<TOGETHER4, TOGETHER6>(stage);
            }
            if let Some(stage) = due(wait + 1) {
                self.look(stage, now);
            }
            if let Some(stage) = due(wait + 2) {
                self.finish(stage, now);
            }
            step += 1;
        }
        progress.work
    }

    /// Fills a stage with the next burst; false if there is nothing more for this turn.
    #[inline]
    fn fill(&mut self, stage: usize, progress: &mut Progress) -> bool {
        loop {
            if !self.leftover.packets.is_empty() {
                self.leftover.move_to(&mut self.stages[stage], self.burst);
            }
            let there = self.stages[stage].packets.len();
            if there >= self.burst {
                return true;
            }
            if progress.port > self.ports.len() {
                return there > 0;
            }
            if progress.port == self.ports.len() {
                self.fill_from_rings(stage, progress);
            } else if self.ports[progress.port].queue.is_err() {
                progress.port += 1;
            } else if self.takes_directly(progress.port) {
                // A burst of one port is cheaper than a mixed one.
                if there > 0 || self.fill_directly(stage, progress) {
                    return true;
                }
            } else {
                self.fill_steered(stage, progress);
            }
            self.stages[stage].mixed = true;
        }
    }

    /// Whether what a port brings goes into a stage as it is.
    #[inline]
    fn takes_directly(&self, port: usize) -> bool {
        !self.ports[port].order.steers() && self.burst == BURST && !self.farm.is_trunk(port_id(port))
    }

    /// Takes a burst of one port, of which nothing is steered. False if nothing was there.
    #[inline]
    fn fill_directly(&mut self, stage: usize, progress: &mut Progress) -> bool {
        let port = progress.port;
        let Stage { packets, ports, mixed, .. } = &mut self.stages[stage];
        let ShardPort { queue: Ok(queue), order, .. } = &mut self.ports[port] else {
            return false;
        };
        queue.receive(packets);
        packets.iter().for_each(Packet::prefetch);
        let arrived = packets.len();
        (*ports, *mixed) = ([port_id(port); BURST], false);
        order.received(arrived);
        self.arrived(port, arrived, progress);
        arrived > 0
    }

    /// Takes a burst of one port, hands over what is not this shard's, and puts the rest into a stage.
    fn fill_steered(&mut self, stage: usize, progress: &mut Progress) {
        let port = progress.port;
        let mut burst = Burst::new();
        if let Ok(queue) = &mut self.ports[port].queue {
            queue.receive(&mut burst);
        }
        self.ports[port].order.received(burst.len());
        self.arrived(port, burst.len(), progress);
        if burst.is_empty() {
            return;
        }
        let mut ports = [port_id(port); BURST];
        if self.farm.is_trunk(port_id(port)) {
            self.take_tags_off(&mut burst, &mut ports, progress.now);
        }
        if !self.ports[port].order.steers() {
            return burst.drain(..).zip(ports).for_each(|(packet, port)| self.keep(stage, packet, port));
        }
        burst.iter().for_each(Packet::prefetch);
        let received = burst.len();
        let mut owners = [0; BURST];
        for ((packet, port), owner) in burst.iter().zip(&ports).zip(&mut owners) {
            let mac = self.farm.ports[usize::from(*port)].mac;
            *owner = u8::try_from(self.forwarder.steer(packet.data(), mac, &self.farm)).unwrap_or(u8::MAX);
        }
        self.neighbours.deal(&mut burst, &ports, &owners, &mut self.forwarder.drops);
        let (most, stage, leftover) = (self.burst, &mut self.stages[stage], &mut self.leftover);
        let mut own = 0;
        self.neighbours.own(|packet, port| {
            own += 1;
            stage.push_or_leave(packet, port, most, leftover);
        });
        self.ports[port].order.foreign(received - own);
        self.forwarder.counters.handed_over += (received - own) as u64;
    }

    /// Notes that a port has brought so many packets, and goes on to the next one where that is all for this turn.
    #[inline]
    fn arrived(&mut self, port: usize, packets: usize, progress: &mut Progress) {
        progress.work += packets;
        progress.bursts += usize::from(packets > 0);
        self.forwarder.counters.received += packets as u64;
        if packets < BURST || progress.bursts == BURSTS_AT_ONCE {
            self.note_backlog(port, packets == BURST);
            (progress.port, progress.bursts) = (port + 1, 0);
        }
    }

    /// Fills a stage with what other shards have handed over to be forwarded, and does at once what else they have.
    fn fill_from_rings(&mut self, stage: usize, progress: &mut Progress) {
        let mut taken: ArrayVec<Transfer<Q::Packet>, BURST> = ArrayVec::new();
        let room = self.burst - self.stages[stage].packets.len();
        self.neighbours.take(&mut taken, room);
        progress.work += taken.len();
        progress.bursts += 1;
        let more = taken.len() == room;
        if !more || progress.bursts == RING_BURSTS_AT_ONCE {
            progress.port += 1;
            self.full_ring_turns = if more { self.full_ring_turns.saturating_add(1) } else { 0 };
            if self.full_ring_turns > FULL_TURNS {
                self.backlog.note();
            }
        }
        for Transfer { packet, port, task } in taken.drain(..) {
            let stage = &mut self.stages[stage];
            match task {
                Task::Forward => {
                    packet.prefetch_header();
                    stage.push(packet, port);
                }
                Task::Follow(protocol, ports) => {
                    let at = stage.packets.len() % BURST;
                    stage.followers |= 1 << at;
                    stage.flows[at] = (protocol, ports);
                    stage.push(packet, port);
                }
                Task::Send => send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, packet, port),
            }
        }
    }

    /// Puts a packet into a stage, or leaves it over for the next one.
    #[inline(always)]
    fn keep(&mut self, stage: usize, packet: Q::Packet, port: PortId) {
        self.stages[stage].push_or_leave(packet, port, self.burst, &mut self.leftover);
    }

    /// The fast path's first pass.
    #[inline]
    fn enter<const TOGETHER4: bool, const TOGETHER6: bool>(&mut self, stage: usize) {
        let Stage { packets, ports, mixed, lane, .. } = &mut self.stages[stage];
        if *mixed {
            self.forwarder.enter::<TOGETHER4, TOGETHER6, true, _>(packets, ports, &self.farm, lane);
        } else {
            self.forwarder.enter::<TOGETHER4, TOGETHER6, false, _>(packets, ports, &self.farm, lane);
        }
    }

    /// The second.
    #[inline]
    fn look(&mut self, stage: usize, now: Moment) {
        let Stage { packets, lane, .. } = &mut self.stages[stage];
        self.forwarder.look(packets, lane, &self.farm, millis(now));
    }

    /// The last one, and the slow path for what is left.
    #[inline]
    fn finish(&mut self, stage: usize, now: Moment) {
        let Stage { packets, ports, followers, lane, .. } = &mut self.stages[stage];
        let departures = self.forwarder.leave(packets, lane, &self.farm, millis(now));
        let first = departures[0];
        if first != GENERAL
            && departures[..packets.len()].iter().fold(0, |mixed, departure| mixed | (departure ^ first)) == 0
            && let ShardPort { queue: Ok(queue), transmit, .. } = &mut self.ports[usize::from(first)]
            && transmit.is_empty()
        {
            // All of it leaves by one port, and nothing waits there.
            transmit_burst(queue, packets, &mut self.forwarder);
            return;
        }
        let (mut packets, ports, followers) = (std::mem::take(packets), *ports, std::mem::take(followers));
        for (at, (packet, port)) in packets.drain(..).zip(ports).enumerate() {
            let departure = departures[at % BURST];
            if departure == GENERAL && followers >> at & 1 == 1 {
                let (protocol, ports) = self.stages[stage].flows[at % BURST];
                self.process_follower(packet, port, protocol, ports, now);
            } else if departure == GENERAL {
                self.process_one(packet, port, now);
            } else {
                send(&mut self.ports, &mut self.neighbours, &mut self.forwarder, packet, departure);
            }
        }
    }

    /// Forwards a fragment as a packet of the flow that another shard has found it to be of.
    #[cold]
    fn process_follower(&mut self, packet: Q::Packet, port: PortId, protocol: u8, ports: [u8; 4], now: Moment) {
        match parse(packet.data(), self.farm.ports[usize::from(port)].mac) {
            Ok(parsed) => {
                let key = with_ports(&parsed.key, ports, protocol);
                self.go_on(Held { packet, parsed, port, shard: self.number }, key, now);
            }
            Err(reason) => self.forwarder.drops.count(reason),
        }
    }

    /// Takes the tags of VLANs that are ports off what came in by a trunk; a tag that stands for no port is the kernel's.
    #[cold]
    fn take_tags_off(&mut self, burst: &mut Burst<Q::Packet>, ports: &mut [PortId; BURST], now: Moment) {
        let trunk = ports[0];
        let mut kept = Burst::new();
        for packet in burst.drain(..) {
            let (packet, tagged) = vlan::untagged(packet, trunk, &self.farm);
            match tagged {
                vlan::Tagged::Port(port) => {
                    ports[kept.len() % BURST] = port;
                    kept.push(packet);
                }
                vlan::Tagged::Unknown => self.hand_to_twin(packet, trunk, now),
                vlan::Tagged::Stuck => self.forwarder.drops.count(crate::counters::DropReason::Truncated),
            }
        }
        *burst = kept;
    }
}

/// Bursts taken from the other shards' rings in one turn at the most: what comes over them comes in addition to the queues' own.
const RING_BURSTS_AT_ONCE: usize = 2 * BURSTS_AT_ONCE;
