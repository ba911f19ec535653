//! The way to and from the kernel twins: queues of their own by urgency, within budgets, in bursts of bounded number.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use weir_identity::Moment;

use super::{Shard, port_id, vlan};
use crate::counters::DropReason;
use crate::farm::PortId;
use crate::packet::{BURST, Burst, Packet, Queue};
use crate::shared_rate::SharedRate;
use crate::twin_class::TwinClass;

/// Where packets for a port's kernel go.
pub enum Twin<Q: Queue> {
    /// Nowhere: the kernel sees the port itself.
    Itself,
    /// To a port of their own, which only this shard has: it sends what all shards have put into the queues.
    Port(Q, Arc<TwinQueues<Q::Packet>>),
    /// Into the queues, for the shard that has that port.
    Queued(Arc<TwinQueues<Q::Packet>>),
}

/// How many packets a second a port's twin takes, of each class that has a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwinRates {
    /// Of [`TwinClass::Rest`].
    pub rest: u32,
    /// Of [`TwinClass::Peer`], and as many of [`TwinClass::Neighbour`]: who floods the one takes nothing from the other.
    pub control: u32,
}

impl Default for TwinRates {
    fn default() -> Self {
        Self { rest: 20_000, control: 50_000 }
    }
}

/// Packets on their way to one port's twin: every shard puts in, the one that has the twin takes out.
///
/// The budgets are checked before a packet is put in, by whichever shard has received it: what is beyond them costs nobody else
/// anything, and their sum over all shards is what was configured.
#[derive(Debug)]
pub struct TwinQueues<P> {
    waiting: [ArrayQueue<P>; TwinClass::ALL.len()],
    /// In the order of the classes; packets of flows have none.
    budgets: [CachePadded<SharedRate>; TwinClass::Flow as usize],
}

impl<P> TwinQueues<P> {
    /// Empty queues of a port.
    #[must_use]
    pub fn new(rates: TwinRates) -> Self {
        let rate = |rate: u32| CachePadded::new(SharedRate::new(rate, (rate / BURSTS_A_SECOND).clamp(LEAST, MOST)));
        let length = |class| if class == TwinClass::Flow { FLOWS } else { WAITING };
        Self {
            waiting: TwinClass::ALL.map(|class| ArrayQueue::new(length(class))),
            budgets: [rate(rates.control), rate(rates.control), rate(rates.rest)],
        }
    }

    fn admits(&self, class: TwinClass, now: Moment) -> bool {
        self.budgets.get(class as usize).is_none_or(|budget| budget.allow(now))
    }

    /// Fills a burst, with the most urgent first.
    fn take(&self, burst: &mut Burst<P>) {
        for queue in &self.waiting {
            while !burst.is_full()
                && let Some(packet) = queue.pop()
            {
                burst.push(packet);
            }
        }
    }
}

impl<Q: Queue> Shard<Q> {
    /// Hands a packet that is not for the dataplane to the kernel twin of `port`, if the budget of its class allows.
    pub(super) fn hand_to_twin(&mut self, packet: Q::Packet, port: PortId, now: Moment) {
        let (parent, _) = self.twin_of(port);
        let (Twin::Port(_, queues) | Twin::Queued(queues)) = &self.ports[usize::from(parent)].twin else {
            self.forwarder.counters.twin += 1;
            return;
        };
        let class = TwinClass::of(packet.data(), &self.farm.twin_peers);
        if !queues.admits(class, now) {
            let rest = class == TwinClass::Rest;
            return self.forwarder.drops.count(if rest { DropReason::TwinRate } else { DropReason::TwinControlRate });
        }
        if class == TwinClass::Rest && !self.backlog.allows_twin() {
            return self.forwarder.drops.count(DropReason::TwinShed);
        }
        self.queue_for_twin(packet, port, class);
    }

    /// Hands a packet that the dataplane itself has for the kernel to the twin of `port`.
    pub(super) fn hand_to_kernel(&mut self, packet: Q::Packet, port: PortId) {
        self.queue_for_twin(packet, port, TwinClass::Flow);
    }

    fn queue_for_twin(&mut self, packet: Q::Packet, port: PortId, class: TwinClass) {
        let (parent, tag) = self.twin_of(port);
        let (Twin::Port(_, queues) | Twin::Queued(queues)) = &self.ports[usize::from(parent)].twin else {
            self.forwarder.counters.twin += 1;
            return;
        };
        // The kernel has its own interface for the VLAN, on top of the port's.
        let packet = match tag {
            Some(id) => vlan::tagged(packet, id, &mut self.forwarder.drops),
            None => Some(packet),
        };
        if let Some(packet) = packet
            && queues.waiting[class as usize].push(packet).is_err()
        {
            self.forwarder.drops.count(DropReason::TwinRing);
        }
    }

    /// The port whose twin takes what came in by `port`, and the VLAN's identifier if that is one.
    fn twin_of(&self, port: PortId) -> (PortId, Option<u16>) {
        self.ports[usize::from(port)].vlan.map_or((port, None), |(parent, id)| (parent, Some(id)))
    }

    /// Takes a burst of what the kernel has sent by a port's twin, if this shard has it. While packets of flows wait, that is
    /// seldom: the kernel can wait, and knows how.
    pub(super) fn take_from_twin(&mut self, port: usize, now: Moment) -> usize {
        if !self.backlog.takes_from_twins() {
            return 0;
        }
        let Twin::Port(twin, _) = &mut self.ports[port].twin else {
            return 0;
        };
        let mut burst = Burst::new();
        twin.receive(&mut burst);
        let work = burst.len();
        for packet in burst.drain(..) {
            self.take_from_kernel(packet, port_id(port), now);
        }
        work
    }

    /// Sends one burst of what waits for a port's twin, if this shard has it. A twin costs a system call a packet, so a turn does not
    /// send more: what waits longer is bounded by its queue.
    pub(super) fn send_to_twin(&mut self, port: usize) -> usize {
        let Twin::Port(twin, queues) = &mut self.ports[port].twin else {
            return 0;
        };
        let mut burst = Burst::new();
        queues.take(&mut burst);
        let work = burst.len();
        if work > 0 {
            twin.send(&mut burst);
            self.forwarder.counters.twin += (work - burst.len()) as u64;
            self.forwarder.drops.count_many(DropReason::TwinFull, burst.len());
        }
        work
    }
}

/// Packets of a class that wait at the most; of flows more, since a sender's burst is as long as its window.
const WAITING: usize = 8 * BURST;
const FLOWS: usize = 16 * BURST;
/// After a quiet time a hundredth of a second's packets may come at once, within these limits.
const BURSTS_A_SECOND: u32 = 100;
const LEAST: u32 = 32;
const MOST: u32 = 256;
