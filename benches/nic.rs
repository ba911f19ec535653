//! A NIC with several queues as the benches need one: what comes by a queue was written long before, and sent buffers are used again.
//!
//! Each receive queue is a ring port's whose loop always holds as many packets. What a shard sends is not put back there, since it may
//! have come in by another shard's queue: its buffer goes to who receives next, at most some bursts later. So each queue has its own
//! flows whoever sends them, and where fewer buffers are left than shards hold on to, less comes in; nothing is lost for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use weir::ports::{MbufPacket, PortQueue};
use weir_dataplane::packet::{BURST, Burst, Packet, Queue};
use weir_dpdk::{Eal, IdlePort, Mempool, PoolConfig, PortConfig};

use crate::farm::Frame;

/// One queue pair: shards beyond the receive queues only send.
pub(crate) struct Line {
    arrivals: Option<Arrivals>,
    /// Sent buffers that are fewer than a burst.
    partial: Burst<MbufPacket>,
    /// Bursts of buffers that this queue has sent and will use itself.
    spare: Vec<Burst<MbufPacket>>,
    shared: Arc<Shared>,
    sent: u64,
}

/// What waits for a receive queue.
struct Arrivals {
    queue: PortQueue,
    frame: Frame,
    /// Its flows, in the order in which their packets come again and again.
    flows: Vec<u32>,
    next: usize,
    /// Packets in the loop, and as many as it is meant to hold.
    waiting: usize,
    depth: usize,
    /// Buffers to be written next; asked for a call before.
    coming: Burst<MbufPacket>,
}

/// What all queues of a NIC have together.
pub(crate) struct Shared {
    free: ArrayQueue<Burst<MbufPacket>>,
    pool: Mempool,
    /// Whether packets come.
    flowing: AtomicBool,
}

impl Shared {
    /// Lets packets come, or not.
    pub(crate) fn flow(&self, flowing: bool) {
        self.flowing.store(flowing, Ordering::Relaxed);
    }
}

/// A NIC whose receive queues get these flows each; so many more queues only send. Nothing comes before [`Shared::flow`].
pub(crate) fn lines(
    eal: Eal,
    name: &str,
    flows: Vec<Vec<u32>>,
    send_only: usize,
) -> Result<(Vec<Line>, Arc<Shared>), Box<dyn std::error::Error>> {
    let count = flows.len();
    let mbufs = match count + send_only {
        // Fewer than a ring between two shards holds: nothing is lost there, whichever of them is slower.
        ..=2 => BUFFERS / 4,
        3..=8 => BUFFERS / 2,
        _ => BUFFERS,
    };
    let pool = Mempool::new(eal, name, PoolConfig { mbufs, cache: 0, data_room: 2048 })?;
    let started = IdlePort::ring_loop(eal, name, u16::try_from(count)?, 2048)?.start(
        &PortConfig { rx_queues: u16::try_from(count)?, tx_queues: u16::try_from(count)?, ..PortConfig::default() },
        pool,
    )?;
    let shared = Arc::new(Shared { free: ArrayQueue::new(BUFFERS as usize), pool, flowing: AtomicBool::new(false) });
    let queues = started.rx.into_iter().zip(started.tx).map(|(rx, tx)| PortQueue::new(rx, tx, pool));
    let arrivals = queues.zip(flows).map(|(queue, flows)| Arrivals {
        queue,
        frame: Frame::new(false, 0),
        flows,
        next: 0,
        waiting: 0,
        depth: IN_FLIGHT / count,
        coming: Burst::new(),
    });
    let lines = arrivals.map(Some).chain((0..send_only).map(|_| None)).map(|arrivals| Line {
        arrivals,
        partial: Burst::new(),
        spare: Vec::with_capacity(KEPT),
        shared: Arc::clone(&shared),
        sent: 0,
    });
    let mut lines: Vec<_> = lines.collect();
    lines.iter_mut().for_each(Line::fill);
    Ok((lines, shared))
}

impl Line {
    /// Packets that it has sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether packets come in by it.
    pub(crate) fn receives(&self) -> bool {
        self.arrivals.is_some()
    }

    /// Puts as many packets into the loop as it is meant to hold.
    fn fill(&mut self) {
        while self.arrivals.as_ref().is_some_and(|arrivals| arrivals.waiting < arrivals.depth) {
            self.refill();
        }
    }

    /// Writes the packets that arrive a loop later, and looks for the buffers of the next ones.
    #[inline]
    fn refill(&mut self) {
        let Some(arrivals) = &mut self.arrivals else { return };
        for packet in &mut arrivals.coming {
            arrivals.frame.write(arrivals.flows[arrivals.next].into(), packet.data_mut());
            arrivals.next = if arrivals.next + 1 == arrivals.flows.len() { 0 } else { arrivals.next + 1 };
        }
        arrivals.waiting += arrivals.coming.len();
        arrivals.queue.send(&mut arrivals.coming);
        arrivals.waiting -= arrivals.coming.len();
        if !arrivals.coming.is_empty() || arrivals.waiting >= arrivals.depth {
            return;
        }
        if let Some(burst) = self.spare.pop().or_else(|| self.shared.free.pop()) {
            arrivals.coming = burst;
            for packet in &arrivals.coming {
                weir_cpu::prefetch_write_at(packet.data(), 0);
            }
            return;
        }
        // As many as there are at all.
        while !arrivals.coming.is_full()
            && let Some(mut packet) = self.shared.pool.alloc().map(MbufPacket::from)
        {
            packet.resize(arrivals.frame.bytes.len());
            packet.data_mut().copy_from_slice(&arrivals.frame.bytes);
            arrivals.coming.push(packet);
        }
    }

    /// Keeps a burst of sent buffers, or gives it to who wants one.
    #[inline]
    fn give(&mut self, burst: Burst<MbufPacket>) {
        if self.arrivals.is_some() && self.spare.len() < KEPT {
            self.spare.push(burst);
        } else {
            // There is room for all buffers there are.
            let _ = self.shared.free.push(burst);
        }
    }
}

impl Queue for Line {
    type Packet = MbufPacket;

    #[inline]
    fn receive(&mut self, burst: &mut Burst<MbufPacket>) {
        let Some(arrivals) = &mut self.arrivals else { return };
        if !self.shared.flowing.load(Ordering::Relaxed) {
            return;
        }
        let before = burst.len();
        arrivals.queue.receive(burst);
        arrivals.waiting -= burst.len() - before;
        let low = arrivals.waiting + 2 * BURST < arrivals.depth;
        self.refill();
        if low {
            self.refill();
        }
    }

    #[inline]
    fn send(&mut self, burst: &mut Burst<MbufPacket>) {
        self.sent += burst.len() as u64;
        if burst.is_full() {
            return self.give(std::mem::take(burst));
        }
        for packet in burst.drain(..) {
            self.partial.push(packet);
            if self.partial.is_full() {
                let whole = std::mem::take(&mut self.partial);
                self.give(whole);
            }
        }
    }

    fn allocate(&mut self) -> Option<MbufPacket> {
        self.shared.pool.alloc().map(MbufPacket::from)
    }
}

/// Packets that wait in all receive queues of a NIC together, as many whatever their number.
const IN_FLIGHT: usize = 512;
/// Buffers of a NIC with very many queues; those with few have less.
pub(crate) const BUFFERS: u32 = 4095;
/// Bursts that a receive queue keeps for itself.
const KEPT: usize = 2;
