//! In which order a port's packets are dealt with: looked up first, or steered to their owners first.
//!
//! Where a port's queues are the owners' (a NIC that hashes clients alone, with the unit's key and table), a look-up finds the route at
//! once, and whose flow it is matters only where none is found. Everywhere else most look-ups in the wrong shard's table would be
//! in vain. Which of the two a port is shows in the share of packets that belong to other shards; nothing has to be believed.

/// One port's order, as one shard sees it. It changes only between two turns, when nothing is on its way: packets of a flow keep their
/// order.
#[derive(Debug)]
pub(super) struct Order {
    steers: bool,
    /// Packets of the current window, and those of them that were others'.
    seen: u32,
    foreign: u32,
    /// The same since the start.
    pub(super) total: Share,
}

/// How many of a port's packets belonged to other shards than those that received them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Packets received.
    pub received: u64,
    /// Those of them that were handed over.
    pub foreign: u64,
}

impl Order {
    /// Steers at first where there are `several` shards.
    pub(super) fn new(several: bool) -> Self {
        Self { steers: several, seen: 0, foreign: 0, total: Share::default() }
    }

    /// Whether packets are steered before they are looked up.
    #[inline]
    pub(super) fn steers(&self) -> bool {
        self.steers
    }

    /// Counts packets that were received.
    #[inline]
    pub(super) fn received(&mut self, packets: usize) {
        self.total.received += packets as u64;
        self.seen = self.seen.saturating_add(u32::try_from(packets).unwrap_or(u32::MAX));
    }

    /// Counts those of them that were others'.
    #[inline]
    pub(super) fn foreign(&mut self, packets: usize) {
        self.total.foreign += packets as u64;
        self.foreign = self.foreign.saturating_add(u32::try_from(packets).unwrap_or(u32::MAX));
    }

    /// A turn is over: decides anew once enough has been seen.
    #[inline]
    pub(super) fn turn_is_over(&mut self) {
        if self.seen < WINDOW {
            return;
        }
        self.steers = if self.steers { self.foreign > self.seen / FEW } else { self.foreign > self.seen / MANY };
        (self.seen, self.foreign) = (0, 0);
    }
}

/// Packets that are looked at for a decision.
const WINDOW: u32 = 4096;
/// One of so many is few enough not to steer any more.
const FEW: u32 = 256;
/// One of so many costs more than steering all.
const MANY: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn window(order: &mut Order, foreign: usize) {
        order.received(WINDOW as usize);
        order.foreign(foreign);
        order.turn_is_over();
    }

    #[test]
    fn the_share_of_others_packets_decides() {
        let mut order = Order::new(true);
        assert!(order.steers());
        window(&mut order, 17);
        assert!(order.steers(), "one of 256 is not few");
        window(&mut order, 16);
        assert!(!order.steers());
        window(&mut order, 64);
        assert!(!order.steers(), "fragments, say");
        window(&mut order, 65);
        assert!(order.steers());
        assert_eq!(order.total, Share { received: 4 * u64::from(WINDOW), foreign: 162 });
    }

    #[test]
    fn a_lone_shard_never_steers() {
        let mut order = Order::new(false);
        window(&mut order, 0);
        assert!(!order.steers());
    }
}
