//! A shard's counters as other threads see them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::counters::{DropReason, Drops, ShardCounters};
use crate::forwarder::Forwarder;

/// A shard's counters where other threads can read them; the shard writes, everybody reads.
#[derive(Debug)]
pub struct Published {
    counters: Vec<AtomicU64>,
    drops: Vec<AtomicU64>,
    routes: [AtomicU64; 2],
}

impl Default for Published {
    fn default() -> Self {
        let zeros = |count| std::iter::repeat_with(AtomicU64::default).take(count).collect();
        Self {
            counters: zeros(ShardCounters::NAMES.len()),
            drops: zeros(DropReason::ALL.len()),
            routes: Default::default(),
        }
    }
}

impl Published {
    /// Counters with their names.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ShardCounters::NAMES.iter().copied().zip(self.counters.iter().map(|value| value.load(Ordering::Relaxed)))
    }

    /// Drops with their reasons.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().copied().zip(self.drops.iter().map(|value| value.load(Ordering::Relaxed)))
    }

    /// IPv4 and IPv6 routes in the table.
    #[must_use]
    pub fn routes(&self) -> (u64, u64) {
        (self.routes[0].load(Ordering::Relaxed), self.routes[1].load(Ordering::Relaxed))
    }

    pub(super) fn store(&self, forwarder: &Forwarder, drops: &Drops) {
        for (to, from) in self.counters.iter().zip(forwarder.counters.values()) {
            to.store(from, Ordering::Relaxed);
        }
        for (to, from) in self.drops.iter().zip(drops.values()) {
            to.store(*from, Ordering::Relaxed);
        }
        self.routes[0].store(forwarder.routes4().len() as u64, Ordering::Relaxed);
        self.routes[1].store(forwarder.routes6().len() as u64, Ordering::Relaxed);
    }
}
