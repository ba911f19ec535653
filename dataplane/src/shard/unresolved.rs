//! Packets whose next hop the kernel is still resolving: a few of them wait, and go on with the farm that knows the address.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use weir_identity::Moment;

use super::{Held, Shard};
use crate::classifier::millis;
use crate::counters::DropReason;
use crate::farm::PortId;
use crate::packet::Queue;

/// Packets that wait for neighbours, in the order in which they came.
#[derive(Debug)]
pub(super) struct Unresolved<H> {
    queue: VecDeque<Entry<H>>,
    /// There is a new farm.
    look: bool,
}

#[derive(Debug)]
struct Entry<H> {
    neighbour: (PortId, IpAddr),
    since: Moment,
    held: H,
}

impl<H> Default for Unresolved<H> {
    fn default() -> Self {
        Self { queue: VecDeque::with_capacity(MOST), look: false }
    }
}

impl<H> Unresolved<H> {
    /// Some neighbours may be known now.
    pub(super) fn look_again(&mut self) {
        self.look = true;
    }

    /// Lets a packet wait, and says whether it is the first one for its neighbour; gives it back if there is no room.
    fn push(&mut self, held: H, neighbour: (PortId, IpAddr), now: Moment) -> Result<bool, H> {
        let others = self.queue.iter().filter(|entry| entry.neighbour == neighbour).count();
        if self.queue.len() >= MOST || others >= MOST_EACH {
            return Err(held);
        }
        self.queue.push_back(Entry { neighbour, since: now, held });
        Ok(others == 0)
    }

    /// Takes out the first packet whose neighbour is known.
    fn pop_if(&mut self, known: impl Fn(PortId, IpAddr) -> bool) -> Option<H> {
        let at = self.queue.iter().position(|Entry { neighbour: (port, address), .. }| known(*port, *address))?;
        self.queue.remove(at).map(|entry| entry.held)
    }

    /// Takes out what has waited too long.
    fn pop_overdue(&mut self, now: Moment) -> Option<H> {
        let overdue = now.since(self.queue.front()?.since) >= PATIENCE;
        if overdue { self.queue.pop_front().map(|entry| entry.held) } else { None }
    }
}

impl<Q: Queue> Shard<Q> {
    /// Lets a packet wait until the control plane has had its next hop resolved.
    pub(super) fn wait_for_neighbour(&mut self, held: Held<Q::Packet>, neighbour: (PortId, IpAddr), now: Moment) {
        match self.unresolved.push(held, neighbour, now) {
            Ok(first) => {
                self.forwarder.counters.unresolved_held += 1;
                if first {
                    self.published.want(neighbour.0, neighbour.1);
                }
            }
            Err(_) => self.forwarder.drops.count(DropReason::Unresolved),
        }
    }

    /// Forwards what has waited for neighbours that the farm knows now; returns how many packets that were.
    pub(super) fn go_on_resolved(&mut self, now: Moment) -> usize {
        if !std::mem::take(&mut self.unresolved.look) {
            return 0;
        }
        let farm = std::sync::Arc::clone(&self.farm);
        let mut work = 0;
        while work < MOST
            && let Some(held) = self.unresolved.pop_if(|port, address| farm.resolves(port, address))
        {
            work += 1;
            let Held { mut packet, parsed, port, .. } = held;
            let fate = self.forwarder.forward_one(&mut packet, &parsed, &farm, millis(now));
            self.tell_notices();
            self.settle(packet, parsed, port, fate, now);
        }
        work
    }

    /// Gives up on neighbours that do not answer.
    pub(super) fn expire_unresolved(&mut self, now: Moment) {
        while self.unresolved.pop_overdue(now).is_some() {
            self.forwarder.drops.count(DropReason::Unresolved);
        }
    }
}

/// Packets that may wait in a shard.
const MOST: usize = 128;
/// Packets that may wait for one neighbour: a host that is down must not take the place of others.
const MOST_EACH: usize = 16;
/// As long as Linux asks for a neighbour: three times, a second apart.
const PATIENCE: Duration = Duration::from_secs(3);
