//! Packet buffers: whether they fit into the memory, and whether enough are left when everybody holds what it may.

use super::Check;
use super::ports::Network;
use crate::memory;
use crate::place::Place;
use crate::problem::Mistake;
use crate::types::{Dataplane, Device, Port};

/// Compares packet buffers with memory and with who may hold them.
pub(super) fn memory(check: &mut Check, here: &Place, dataplane: &Dataplane, network: &Network) {
    let (mbufs, each) = (dataplane.mbufs, memory::buffer(memory::largest_mtu(&network.ports)));
    let need_mib = memory::BASE_MIB + (u64::from(mbufs) * each).div_ceil(1 << 20);
    if need_mib > dataplane.memory_mib {
        let memory_mib = dataplane.memory_mib;
        check.error(&here.key("memory"), Mistake::MemoryShort { memory_mib, mbufs, each, need_mib });
    }
    let (pending, classifiers) = (dataplane.pending, dataplane.classifiers);
    if pending * classifiers >= usize::try_from(mbufs).unwrap_or(usize::MAX) {
        return check.error(&here.key("pending"), Mistake::PendingOverMbufs { pending, classifiers, mbufs });
    }
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let queues = network.ports.iter().map(held_by_queues).sum();
    let handed_over = if dataplane.shards > 1 { number(dataplane.shards) * HANDOVER } else { 0 };
    let rings = handed_over + number(dataplane.shards * classifiers) * DIVERTED;
    let pending = number(pending * classifiers);
    let only_classifying = dataplane.classifier_cpus.iter().filter(|cpu| !dataplane.cpus.contains(cpu)).count();
    let caches = number(dataplane.cpus.len() + only_classifying) * CACHE;
    let held: u64 = queues + rings + pending + caches;
    if held > u64::from(mbufs) {
        let advised = held.next_multiple_of(1024);
        check.warning(&here.key("mbufs"), Mistake::FewMbufs { mbufs, queues, rings, pending, caches, advised });
    }
}

/// Buffers that a port's driver holds in receive queues waiting for packets, and in transmit queues until they are sent.
fn held_by_queues(port: &Port) -> u64 {
    let (rx, tx) = (u64::from(port.rx_descriptors), u64::from(port.tx_descriptors));
    let pair = match port.device {
        Device::Pci(_) => rx + tx,
        Device::AfXdp(_) => AF_XDP_FILL_RING + tx,
        Device::Vdev(_) => rx,
        // The one copies both ways, the other has its parent's queues.
        Device::AfPacket(_) | Device::Vlan { .. } => 0,
    };
    let has_tap = port.twin.is_some() && !matches!(port.device, Device::Vlan { .. });
    pair * u64::from(port.queues) + if has_tap { TWIN } else { 0 }
}

/// What an AF_XDP queue always holds for the kernel to fill.
const AF_XDP_FILL_RING: u64 = 2048;
/// What a twin's TAP holds.
const TWIN: u64 = 1024;
/// Packets on their way to a shard from others.
const HANDOVER: u64 = 1024;
/// Packets on their way from a shard to a classifier.
const DIVERTED: u64 = 1024;
/// The pool's cache of a thread: 256 buffers, and half of that before it gives some back.
const CACHE: u64 = 256 + 128;
