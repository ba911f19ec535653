//! A shard's counters as other threads see them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::Share;
use crate::counters::{DropReason, Drops, ShardCounters};
use crate::farm::PortId;
use crate::forwarder::Forwarder;

/// A shard's counters where other threads can read them; the shard writes, everybody reads.
#[derive(Debug)]
pub struct Published {
    counters: Vec<AtomicU64>,
    drops: Vec<AtomicU64>,
    routes: [AtomicU64; 2],
    /// By port: packets received, and those of them that were handed over.
    shares: Vec<[AtomicU64; 2]>,
    /// Neighbours that packets wait for; the shard adds, the control plane takes.
    wanted: ArrayQueue<(PortId, IpAddr)>,
}

impl Published {
    /// Of a shard with so many ports.
    pub(super) fn new(ports: usize) -> Self {
        let zeros = |count| std::iter::repeat_with(AtomicU64::default).take(count).collect();
        Self {
            counters: zeros(ShardCounters::NAMES.len()),
            drops: zeros(DropReason::ALL.len()),
            routes: Default::default(),
            shares: std::iter::repeat_with(Default::default).take(ports).collect(),
            wanted: ArrayQueue::new(WANTED),
        }
    }

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

    /// How many packets have come in by a port, and how many of them belonged to other shards.
    #[must_use]
    pub fn share(&self, port: usize) -> Share {
        self.shares.get(port).map_or(Share::default(), |[received, foreign]| Share {
            received: received.load(Ordering::Relaxed),
            foreign: foreign.load(Ordering::Relaxed),
        })
    }

    /// Takes a neighbour whose link-layer address packets wait for: on which port's link, and its address.
    #[must_use]
    pub fn wanted(&self) -> Option<(PortId, IpAddr)> {
        self.wanted.pop()
    }

    /// Wants a neighbour resolved. If nobody takes these, the oldest is forgotten.
    pub(super) fn want(&self, port: PortId, neighbour: IpAddr) {
        self.wanted.force_push((port, neighbour));
    }

    pub(super) fn store(&self, forwarder: &Forwarder, drops: &Drops, shares: impl Iterator<Item = Share>) {
        for ([received, foreign], share) in self.shares.iter().zip(shares) {
            received.store(share.received, Ordering::Relaxed);
            foreign.store(share.foreign, Ordering::Relaxed);
        }
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

/// Neighbours that a shard may want at once.
const WANTED: usize = 64;
