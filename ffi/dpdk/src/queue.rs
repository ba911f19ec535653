//! Receive and transmit queues: owned values that move with their shard, and bursts that never lose a packet.

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use arrayvec::ArrayVec;
use weir_dpdk_sys as sys;

use crate::mbuf::Mbuf;
use crate::port::Shared;

/// One receive queue of a port. It exists once, so whoever has it is the queue's only reader; it keeps its port open.
#[derive(Debug)]
pub struct RxQueue {
    port: u16,
    queue: u16,
    descriptors: u16,
    shared: Arc<Shared>,
}

impl RxQueue {
    pub(crate) fn new(shared: Arc<Shared>, queue: u16, descriptors: u16) -> Self {
        Self { port: shared.id(), queue, descriptors, shared }
    }

    /// Appends to `out` what has arrived, at most what fits, and returns how many. Never waits. Some drivers hand out nothing if
    /// there is room for less than four packets or so.
    #[inline]
    pub fn receive<T: From<Mbuf>, const N: usize>(&mut self, out: &mut ArrayVec<T, N>) -> usize {
        const { assert!(size_of::<T>() == size_of::<Mbuf>() && align_of::<T>() == align_of::<Mbuf>()) };
        let before = out.len();
        let room = u16::try_from(out.remaining_capacity()).unwrap_or(u16::MAX);
        // SAFETY: the free places behind the last element, each as large as a pointer: the driver writes there, and nothing is copied.
        let places = unsafe { out.as_mut_ptr().add(before) }.cast::<NonNull<sys::rte_mbuf>>();
        // SAFETY: the port is started and stays so while `shared` lives; `&mut self` makes this the queue's only reader; there are
        // `room` places.
        let received = unsafe { sys::shim_rx_burst(self.port, self.queue, places.cast(), room) }.min(room);
        // SAFETY: the driver wrote that many, each a live buffer which is ours now.
        let raw = unsafe { std::slice::from_raw_parts_mut(places, usize::from(received)) };
        // SAFETY: as above; they are only read, and no buffer is freed here.
        let pieces = raw.iter().fold(0, |all, buffer| all | unsafe { buffer.as_ref() }.nb_segs);
        let kept = if pieces <= 1 { raw.len() } else { self.drop_multi_segment(raw) };
        for at in 0..kept {
            // SAFETY: each is read once, and what has become of it written to the same place, which has its size and alignment.
            unsafe { places.add(at).cast::<T>().write(T::from(Mbuf::from_raw(places.add(at).read()))) };
        }
        // SAFETY: the elements up to there were just written. (Had `T::from` panicked they would leak, no more.)
        unsafe { out.set_len(before + kept) };
        kept
    }

    /// Frees and counts those of several segments, moves the others to the front and returns how many they are.
    #[cold]
    fn drop_multi_segment(&mut self, raw: &mut [NonNull<sys::rte_mbuf>]) -> usize {
        let mut kept = 0;
        for at in 0..raw.len() {
            // SAFETY: a live buffer of ours; each is taken once.
            let packet = unsafe { Mbuf::from_raw(raw[at]) };
            if packet.is_contiguous() {
                std::mem::forget(packet);
                raw[kept] = raw[at];
                kept += 1;
            } else {
                drop(packet);
            }
        }
        self.shared.count_multi_segment((raw.len() - kept) as u64);
        kept
    }

    /// As many packets as may wait in it.
    #[must_use]
    pub fn descriptors(&self) -> u16 {
        self.descriptors
    }

    /// Whether more than so many packets wait; `None` where the driver cannot tell (`net_ring`, `af_packet`, `af_xdp`).
    #[must_use]
    pub fn holds_more_than(&self, packets: u16) -> Option<bool> {
        // SAFETY: the port is started and stays so while `shared` lives, and there is no other reader than who has this.
        let status = unsafe { sys::shim_rx_descriptor_status(self.port, self.queue, packets) };
        // Less than 0 is an error.
        u32::try_from(status).ok().map(|status| status == sys::RTE_ETH_RX_DESC_DONE)
    }

    /// The port's index.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The queue's index in its port.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// The fastest that its device can be, in megabits a second; see [`crate::PortInfo::fastest_mbps`].
    #[must_use]
    pub fn fastest_mbps(&self) -> Option<u32> {
        self.shared.info().fastest_mbps
    }

    /// The driver's own socket for this queue, where it is known which it is; see [`crate::PacketSockets`].
    pub(crate) fn sockets(&self) -> &[RawFd] {
        self.shared.sockets(self.queue)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// One transmit queue of a port. It exists once, so whoever has it is the queue's only writer; it keeps its port open.
#[derive(Debug)]
pub struct TxQueue {
    port: u16,
    queue: u16,
    _shared: Arc<Shared>,
}

impl TxQueue {
    pub(crate) fn new(shared: Arc<Shared>, queue: u16) -> Self {
        Self { port: shared.id(), queue, _shared: shared }
    }

    /// Sends a prefix of `burst` and returns how many were accepted. They are gone from the burst; the rest stays in it, in order
    /// and owned by it, for the caller to try again or to drop. Never waits.
    ///
    /// Packets pass through [`Mbuf`] by value and back: what else a `T` carries is lost for the unsent ones.
    #[inline]
    pub fn send<T: Into<Mbuf> + From<Mbuf>, const N: usize>(&mut self, burst: &mut ArrayVec<T, N>) -> usize {
        const { assert!(size_of::<T>() == size_of::<Mbuf>() && align_of::<T>() == align_of::<Mbuf>()) };
        let offered = burst.len();
        let count = u16::try_from(offered).unwrap_or(u16::MAX);
        let elements = burst.as_mut_ptr();
        let places = elements.cast::<Mbuf>();
        // SAFETY: empties the burst without dropping: from here on each element is in exactly one place, and goes from the burst to
        // the driver or back. If `T`'s conversions panic, some leak; none is freed twice.
        unsafe { burst.set_len(0) };
        // Through `Mbuf` by value, not by reference: only so is it certain that each buffer is owned once.
        for at in 0..offered {
            // SAFETY: an element that was initialised; each is read once, and what has become of it written to the same place, which
            // has its size and alignment.
            unsafe { places.add(at).write(elements.add(at).read().into()) };
        }
        // SAFETY: the port is started while `_shared` lives; `&mut self` makes this the queue's only writer; there are `count`
        // pointers (`Mbuf` is one) to owned buffers of one segment. The driver owns the prefix that it accepts.
        let accepted = unsafe { sys::shim_tx_burst(self.port, self.queue, places.cast(), count) };
        let accepted = usize::from(accepted).min(offered);
        for at in accepted..offered {
            // SAFETY: not accepted, so still ours; each is read once, and moves to a place that has been read.
            unsafe { elements.add(at - accepted).write(T::from(places.add(at).read())) };
        }
        // SAFETY: that many were just written from the start on.
        unsafe { burst.set_len(offered - accepted) };
        accepted
    }

    /// The port's index.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The queue's index in its port.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.queue
    }
}

impl Drop for TxQueue {
    fn drop(&mut self) {
        // Some drivers (af_xdp) take back what they have sent only with the next burst, and forget it when they close.
        // SAFETY: as in `send`; of no packets none is read.
        unsafe { sys::shim_tx_burst(self.port, self.queue, std::ptr::null_mut(), 0) };
    }
}
