//! How much memory a unit takes: the sum of its tables, rings and buffers, to be compared with what the machine has.

use std::fmt;

use crate::types::{Dataplane, Device, Port};

/// Bytes of a unit's memory, by what has them. What a farm of usual size takes beside that is little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryNeed {
    /// The shards' route tables.
    pub routes: u64,
    /// The classifiers' inventories, which know each route's session once more.
    pub sessions: u64,
    /// Full-nat's translations and dead ports; nothing without a pool.
    pub full_nat: u64,
    /// The rings between shards and classifiers, and among shards, and the tables of fragments.
    pub rings: u64,
    /// Packet buffers: DPDK's memory.
    pub buffers: u64,
    /// The kernel's rings for af_packet ports.
    pub kernel: u64,
}

impl MemoryNeed {
    /// The need of a unit with these ports, and with pools for full-nat or without.
    pub(crate) fn of(dataplane: &Dataplane, ports: &[Port], pools: bool) -> Self {
        let (shards, classifiers) = (dataplane.shards, dataplane.classifiers);
        let tables = |parts: usize, least: usize| {
            let [v4, v6] = [dataplane.routes_ipv4, dataplane.routes_ipv6].map(|all| all.div_ceil(parts).max(least));
            bytes(parts) * (mapped(bytes(v4) * ROUTE4) + mapped(bytes(v6) * ROUTE6))
        };
        let each = |all: usize| bytes(all.div_ceil(shards) * shards);
        let translations = each(dataplane.routes_ipv4) * TRANSLATION4 + each(dataplane.routes_ipv6) * TRANSLATION6;
        let ring = bytes((HANDOVERS / shards).clamp(512, 4096)) * HANDOVER + OUTBOX;
        let handovers = bytes(shards * (shards - 1)) * ring + bytes(shards) * ERRANDS;
        let diverts = bytes(shards * classifiers) * LINK;
        let fragments = FRAGMENTED_DATAGRAMS * DATAGRAM + u64::from(dataplane.mbufs / 16) * HELD;
        let af_packet = ports.iter().filter(|port| matches!(port.device, Device::AfPacket(_)));
        Self {
            routes: tables(shards, 1),
            sessions: tables(classifiers, 1),
            full_nat: if pools { tables(shards, LEAST_DEAD_PORTS) + translations } else { 0 },
            rings: handovers + diverts + fragments,
            buffers: if dataplane.hugepages {
                (BASE_MIB << 20) + u64::from(dataplane.mbufs) * buffer(largest_mtu(ports))
            } else {
                dataplane.memory_mib << 20
            },
            kernel: af_packet.map(|port| u64::from(port.queues) * AF_PACKET_RINGS).sum(),
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("routes", self.routes),
            ("sessions", self.sessions),
            ("full-nat", self.full_nat),
            ("rings", self.rings),
            ("packet buffers", self.buffers),
            ("af_packet", self.kernel),
        ]
    }
}

impl fmt::Display for MemoryNeed {
    /// `10.4 GiB (routes 5.1 GiB, sessions 5.1 GiB, …)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", Size(self.total()))?;
        let parts = self.parts().into_iter().filter(|(_, bytes)| *bytes > 0).enumerate();
        for (at, (name, bytes)) in parts {
            write!(f, "{}{name} {}", if at > 0 { ", " } else { "" }, Size(bytes))?;
        }
        f.write_str(")")
    }
}

/// A number of bytes in MiB or GiB, rounded up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.0.div_ceil(1 << 20);
        if mebibytes < 1024 {
            return write!(f, "{mebibytes} MiB");
        }
        let tenths = self.0.saturating_mul(10).div_ceil(1 << 30);
        write!(f, "{}.{} GiB", tenths / 10, tenths % 10)
    }
}

/// Bytes of a packet buffer, all included, on ports that take so many.
pub(crate) fn buffer(mtu: u16) -> u64 {
    MBUF_OVERHEAD + (u64::from(mtu) + ETHERNET).next_multiple_of(ROOM_UNIT).max(DATA_ROOM)
}

/// The largest MTU of all ports, which all buffers hold.
pub(crate) fn largest_mtu(ports: &[Port]) -> u16 {
    ports.iter().map(|port| port.mtu).max().unwrap_or(0)
}

/// What a table of so many bytes takes of the address space.
fn mapped(bytes: u64) -> u64 {
    bytes.next_multiple_of(if bytes >= HUGE_PAGE { HUGE_PAGE } else { 4096 })
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

// What follows is the dataplane's; a test of the unit compares it with what that really takes.

/// A route, its index and the slack for finding it at once.
const ROUTE4: u64 = 64;
const ROUTE6: u64 = 192;
/// What full-nat's way back of a connection takes beside its route.
const TRANSLATION4: u64 = 16;
const TRANSLATION6: u64 = 28;
/// Dead ports that a shard has room for even with few routes.
const LEAST_DEAD_PORTS: usize = 1024;
/// Packets that may be on their way from all other shards to one, and what each place in a ring takes.
const HANDOVERS: usize = 1 << 15;
const HANDOVER: u64 = 16;
/// What waits to be put into a ring, and what others may ask of a shard beside packets.
const OUTBOX: u64 = 1152;
const ERRANDS: u64 = 512 * 256;
/// The four rings between a shard and a classifier.
const LINK: u64 = 3 << 19;
/// Datagrams in fragments that are followed at once, over all shards, and what each takes; the same for a fragment that waits.
const FRAGMENTED_DATAGRAMS: u64 = 8192;
const DATAGRAM: u64 = 256;
const HELD: u64 = 192;
/// A queue's two rings of about 8 MiB.
const AF_PACKET_RINGS: u64 = 16 << 20;
const HUGE_PAGE: u64 = 2 << 20;
/// EAL, rings and the pools' tables.
pub(crate) const BASE_MIB: u64 = 16;
/// `rte_mbuf`, headroom, and what the pool adds: its header, trailer and padding.
const MBUF_OVERHEAD: u64 = 128 + 128 + 192;
/// What DPDK's drivers expect a buffer to hold at least.
const DATA_ROOM: u64 = 2048;
/// Physical NICs use whole parts of a buffer, the largest of this size.
const ROOM_UNIT: u64 = 1024;
/// Ethernet header, two VLAN tags and checksum.
const ETHERNET: u64 = 14 + 8 + 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up() {
        for (bytes, text) in [(0, "0 MiB"), (1, "1 MiB"), (1 << 30, "1.0 GiB"), ((1 << 30) + 1, "1.1 GiB")] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
