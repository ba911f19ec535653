//! The forwarding information base: where packets that have no endpoint go, by longest prefix; one writer, all cores read.
//!
//! It is shared by all farms of a unit and changed in place while packets are forwarded, so that a route's or a neighbour's change costs
//! what it changes, whatever the size of the table, and no farm has to be built anew. IPv4 is a table of 2²⁴ entries with nodes of 256
//! for what is longer than 24 bits, IPv6 a trie of 16 bits and then strides of eight. An entry names a row, and a row is a port and a MAC
//! address in one word: a look-up in the full IPv4 table of the Internet reads two words. A resolved neighbour on a link is a host
//! entry, so that nothing has to be searched by destination.
//!
//! While an update runs a reader gets, for each address, the answer from before it or the one from after it. [`FibWriter`] sees to that
//! by its order: what is longer is added first, and what is shorter removed first, so that nothing shows through in between. Rows and
//! nodes that are given up are not written again before the next update. That begins by counting up the epoch, which each reader looks at
//! before and after: it looks again if it has changed.

mod rows;
#[cfg(test)]
mod tests;
mod trie;
mod writer;

pub use writer::{FibWriter, NeighbourChange, RouteChange};

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use arc_swap::ArcSwap;
use weir_cpu::MapError;

use self::rows::Rows;
use self::trie::Trie;
use crate::farm::{Neighbour, NoHop, PortId, Prefix};

/// What all cores read.
#[derive(Debug)]
pub struct Fib {
    /// Counts the updates that write again what was given up before. Its line is read with each look-up and seldom written.
    epoch: AtomicU64,
    v4: Trie,
    v6: Trie,
    rows: Rows,
    /// By port and address: the rows of gateways. Seldom read.
    gateways: ArcSwap<Vec<(PortId, IpAddr, u32)>>,
}

/// A resolved next hop: a port, and the MAC address behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next(u64);

impl Next {
    /// By which port.
    #[inline(always)]
    #[must_use]
    pub fn port(self) -> PortId {
        (self.0 >> 48) as PortId
    }

    /// Whose MAC address the frame gets.
    #[inline(always)]
    #[must_use]
    pub fn mac(self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// The same in the first six of eight bytes, which are written at once.
    #[inline(always)]
    #[must_use]
    pub(crate) fn bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
}

/// A table of the FIB is full: what did not fit is not in it, everything else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FibFull {
    /// Next hops.
    #[error(
        "prefixes and neighbours have more next hops than the {0} that the forwarding table takes: some are left out"
    )]
    Rows(usize),
    /// Nodes for IPv4 prefixes longer than 24 bits.
    #[error("more than {0} /24 networks have longer IPv4 prefixes or neighbours: some are left out; aggregate routes")]
    Nodes4(usize),
    /// Nodes for IPv6.
    #[error("the IPv6 prefixes and neighbours need more than {0} nodes: some are left out; aggregate routes")]
    Nodes6(usize),
}

/// How much a FIB takes at most. It is address space; memory is taken as the tables are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Next hops: neighbours, gateways, and groups of them; up to 2²³. 32 bytes each, and 4 for each way of a group.
    pub rows: usize,
    /// /24 networks with longer prefixes or neighbours; up to 2²³. 1 KB each.
    pub nodes_ipv4: usize,
    /// Nodes for IPv6, of eight bits each; up to 2²³. 1 KB each.
    pub nodes_ipv6: usize,
}

impl Default for Sizes {
    /// For the Internet's full tables: 900 MB of address space. 200,000 IPv6 prefixes as they are take a fifth of the nodes.
    fn default() -> Self {
        Self { rows: 1 << 20, nodes_ipv4: 1 << 18, nodes_ipv6: 1 << 19 }
    }
}

impl Sizes {
    /// As large as these need it, wherever they are.
    #[must_use]
    pub fn for_parts(prefixes: &[Prefix], neighbours: &[Neighbour]) -> Self {
        let ways: usize = prefixes.iter().map(|prefix| prefix.ways.len()).sum();
        let (all, six) = (prefixes.iter().map(|prefix| prefix.address), |address: &IpAddr| address.is_ipv6());
        let all = || all.clone().chain(neighbours.iter().map(|neighbour| neighbour.address));
        let six = all().filter(six).count();
        Self {
            rows: (2 * (ways + prefixes.len()) + 4 * neighbours.len() + 64).min(1 << 20),
            nodes_ipv4: (all().count() - six + 1).min(1 << 18),
            nodes_ipv6: (14 * six + 1).min(1 << 19),
        }
    }
}

impl Fib {
    fn new(sizes: Sizes) -> Result<Self, MapError> {
        Ok(Self {
            epoch: AtomicU64::new(0),
            v4: Trie::new(32, 24, sizes.nodes_ipv4)?,
            v6: Trie::new(128, 16, sizes.nodes_ipv6)?,
            rows: Rows::new(sizes.rows)?,
            gateways: ArcSwap::default(),
        })
    }

    /// Asks the processor for what [`Self::next4`] reads first.
    #[inline(always)]
    pub fn prefetch4(&self, address: [u8; 4]) {
        self.v4.prefetch4(u32::from_be_bytes(address));
    }

    /// The next hop to an IPv4 address, if it is resolved; `flow` chooses among several ways.
    #[inline(always)]
    #[must_use]
    pub fn next4(&self, address: [u8; 4], flow: u64) -> Option<Next> {
        self.consistent(|| self.rows.next(trie::row(self.v4.find4(u32::from_be_bytes(address))), flow))
    }

    /// The same to an IPv6 address.
    #[inline]
    #[must_use]
    pub fn next6(&self, address: [u8; 16], flow: u64) -> Option<Next> {
        self.consistent(|| self.rows.next(trie::row(self.v6.find(u128::from_be_bytes(address))), flow))
    }

    /// The next hop to an address; `flow` chooses among several ways.
    ///
    /// # Errors
    ///
    /// [`NoHop`] if there is no route or no link-layer address.
    pub fn hop(&self, address: IpAddr, flow: u64) -> Result<Next, NoHop> {
        self.consistent(|| self.rows.hop(self.row(address), address, flow))
    }

    /// Whether the longest prefix that an address is in is on a port's link.
    #[must_use]
    pub fn is_on_link(&self, address: IpAddr, port: PortId) -> bool {
        self.consistent(|| self.rows.is_on_link(self.row(address), port, false))
    }

    /// Whether the link-layer address of a neighbour is known: of one that a route leads to or by.
    #[must_use]
    pub fn resolves(&self, port: PortId, neighbour: IpAddr) -> bool {
        self.consistent(|| {
            if self.rows.is_on_link(self.row(neighbour), port, true) {
                return true;
            }
            let gateways = self.gateways.load();
            let at = gateways.binary_search_by_key(&(port, neighbour), |(port, address, _)| (*port, *address));
            at.is_ok_and(|at| self.rows.is_resolved(gateways[at].2))
        })
    }

    /// Bytes of address space that the tables take; memory is taken as they are used.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes() + self.rows.bytes()
    }

    fn row(&self, address: IpAddr) -> usize {
        trie::row(match address {
            IpAddr::V4(address) => self.v4.find4(address.to_bits()),
            IpAddr::V6(address) => self.v6.find(address.to_bits()),
        })
    }

    /// Reads again what was written again meanwhile.
    #[inline(always)]
    fn consistent<T>(&self, read: impl Fn() -> T) -> T {
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            let answer = read();
            fence(Ordering::Acquire);
            if self.epoch.load(Ordering::Relaxed) == epoch {
                return answer;
            }
        }
    }
}
