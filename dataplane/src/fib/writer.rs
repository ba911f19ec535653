//! The FIB's only writer: keeps the set of prefixes and neighbours, and applies what is new to the tables in an order that no reader minds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hashbrown::HashSet;
use ip_network_table_deps_treebitmap::IpLookupTable;
use ip_network_table_deps_treebitmap::address::Address;
use weir_cpu::MapError;

use super::rows::{NOWHERE, RowStore, Target};
use super::trie::{Net, Nodes, Trie};
use super::{Fib, FibFull, Sizes};
use crate::farm::{Neighbour, PortId, Prefix, Way};

/// The control plane's end of a [`Fib`].
pub struct FibWriter {
    fib: Arc<Fib>,
    rows: RowStore,
    v4: Side<Ipv4Addr>,
    v6: Side<Ipv6Addr>,
}

/// What is known of one family.
struct Side<A> {
    /// The row of each prefix.
    prefixes: IpLookupTable<A, u32>,
    /// Neighbours whose link-layer addresses are known.
    hosts: BTreeMap<A, Host>,
    nodes: Nodes,
    full: FibFull,
}

/// A neighbour.
#[derive(Debug, Clone, Copy, Default)]
struct Host {
    /// On how many links it is known.
    links: u32,
    /// The row of its host entry, if a route leads to it on such a link.
    row: Option<u32>,
}

/// A change of one prefix: its ways, or nothing if it is gone. Bits behind its length do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteChange {
    /// Address.
    pub address: IpAddr,
    /// Length in bits.
    pub length: u8,
    /// Without ways packets for it have no route.
    pub ways: Option<Vec<Way>>,
}

/// A change of one neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourChange {
    /// On which port's link.
    pub port: PortId,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address, if it is known.
    pub mac: Option<[u8; 6]>,
}

impl FibWriter {
    /// A FIB without routes.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space: 900 MB, of which only what is used takes memory.
    pub fn new() -> Result<Self, MapError> {
        Self::sized(Sizes::default())
    }

    /// The same for so much.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space.
    pub fn sized(sizes: Sizes) -> Result<Self, MapError> {
        Ok(Self {
            fib: Arc::new(Fib::new(sizes)?),
            rows: RowStore::default(),
            v4: Side::new(FibFull::Nodes4(sizes.nodes_ipv4)),
            v6: Side::new(FibFull::Nodes6(sizes.nodes_ipv6)),
        })
    }

    /// What readers read.
    #[must_use]
    pub fn fib(&self) -> &Arc<Fib> {
        &self.fib
    }

    /// Prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.prefixes.len() + self.v6.prefixes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Applies changes of prefixes; of one prefix the last one counts. A reader gets the answer from before all of them or after.
    ///
    /// # Errors
    ///
    /// [`FibFull`], the first one; what fits is applied.
    pub fn change_routes(&mut self, changes: impl IntoIterator<Item = RouteChange>) -> Result<(), FibFull> {
        self.begin();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for RouteChange { address, length, ways } in changes {
            match address {
                IpAddr::V4(address) => v4.push((address, length, ways)),
                IpAddr::V6(address) => v6.push((address, length, ways)),
            }
        }
        let first = self.v4.change_routes(&self.fib, &self.fib.v4, &mut self.rows, v4);
        let second = self.v6.change_routes(&self.fib, &self.fib.v6, &mut self.rows, v6);
        self.finish();
        first.and(second)
    }

    /// Applies changes of neighbours; whether any was new.
    ///
    /// # Errors
    ///
    /// As [`Self::change_routes`].
    pub fn change_neighbours(&mut self, changes: impl IntoIterator<Item = NeighbourChange>) -> Result<bool, FibFull> {
        self.begin();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for NeighbourChange { port, address, mac } in changes {
            let before = self.rows.mac(port, address);
            if !self.rows.set_neighbour(&self.fib.rows, port, address, mac) {
                continue;
            }
            let links = i32::from(mac.is_some()) - i32::from(before.is_some());
            match address {
                IpAddr::V4(address) => v4.push((address, links)),
                IpAddr::V6(address) => v6.push((address, links)),
            }
        }
        let changed = !v4.is_empty() || !v6.is_empty();
        let first = self.v4.change_hosts(&self.fib, &self.fib.v4, &mut self.rows, v4);
        let second = self.v6.change_hosts(&self.fib, &self.fib.v6, &mut self.rows, v6);
        self.finish();
        first.and(second).map(|()| changed)
    }

    /// Takes these prefixes in place of all; of the same one the last counts.
    ///
    /// # Errors
    ///
    /// As [`Self::change_routes`].
    pub fn replace_routes(&mut self, prefixes: Vec<Prefix>) -> Result<(), FibFull> {
        let wanted: HashSet<(IpAddr, u8)> =
            prefixes.iter().map(|prefix| (network(prefix.address, prefix.length), prefix.length)).collect();
        let there = self.v4.prefixes().map(|(address, length)| (IpAddr::V4(address), length));
        let there = there.chain(self.v6.prefixes().map(|(address, length)| (IpAddr::V6(address), length)));
        let gone: Vec<RouteChange> = there
            .filter(|prefix| !wanted.contains(prefix))
            .map(|(address, length)| RouteChange { address, length, ways: None })
            .collect();
        let set = prefixes.into_iter().map(|Prefix { address, length, ways }| RouteChange {
            address,
            length,
            ways: Some(ways),
        });
        self.change_routes(gone.into_iter().chain(set))
    }

    /// Takes these neighbours in place of all; of the same one the last counts. Whether anything was new.
    ///
    /// # Errors
    ///
    /// As [`Self::change_routes`].
    pub fn replace_neighbours(&mut self, neighbours: &[Neighbour]) -> Result<bool, FibFull> {
        let wanted: hashbrown::HashMap<(PortId, IpAddr), [u8; 6]> =
            neighbours.iter().map(|neighbour| ((neighbour.port, neighbour.address), neighbour.mac)).collect();
        let gone: Vec<NeighbourChange> = self
            .rows
            .neighbours()
            .filter(|neighbour| !wanted.contains_key(neighbour))
            .map(|(port, address)| NeighbourChange { port, address, mac: None })
            .collect();
        let set = wanted.into_iter().map(|((port, address), mac)| NeighbourChange { port, address, mac: Some(mac) });
        self.change_neighbours(gone.into_iter().chain(set))
    }

    /// The ways of the longest prefix that an address is in.
    #[must_use]
    pub fn ways_to(&self, address: IpAddr) -> Vec<Way> {
        let row = match address {
            IpAddr::V4(address) => self.v4.row_of(address),
            IpAddr::V6(address) => self.v6.row_of(address),
        };
        let ways = self.rows.targets(row).into_iter().filter_map(|target| match target {
            Target::Way(way) => Some(way),
            Target::Host(..) => None,
        });
        ways.collect()
    }

    /// The link-layer address of a neighbour on a port's link, if it is known.
    #[must_use]
    pub fn mac(&self, port: PortId, address: IpAddr) -> Option<[u8; 6]> {
        self.rows.mac(port, address)
    }

    /// The gateways of all prefixes, each with its port, in order.
    #[must_use]
    pub fn gateways(&self) -> Vec<(PortId, IpAddr)> {
        self.fib.gateways.load().iter().map(|(port, address, _)| (*port, *address)).collect()
    }

    /// Nodes of both families, and rows.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> (usize, usize, usize) {
        (self.v4.nodes.len(), self.v6.nodes.len(), self.rows.len())
    }

    /// What was given up in former updates may be written again: who still reads it sees the epoch.
    fn begin(&mut self) {
        if self.rows.has_retired() || self.v4.nodes.has_retired() || self.v6.nodes.has_retired() {
            let epoch = self.fib.epoch.load(Ordering::Relaxed);
            self.fib.epoch.store(epoch.wrapping_add(1), Ordering::Release);
            fence(Ordering::Release);
            self.rows.reuse();
            self.v4.nodes.reuse();
            self.v6.nodes.reuse();
        }
    }

    fn finish(&mut self) {
        if let Some(gateways) = self.rows.changed_gateways() {
            self.fib.gateways.store(Arc::new(gateways));
        }
    }
}

impl std::fmt::Debug for FibWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = (self.v4.nodes.len(), self.v6.nodes.len());
        f.debug_struct("FibWriter").field("prefixes", &self.len()).field("nodes", &nodes).finish_non_exhaustive()
    }
}

/// A family's addresses.
trait Bits: Address + Copy + Ord + Into<IpAddr> {
    const BITS: u32;
    /// With its first bit as the highest one.
    fn to_left(self) -> u128;
    fn from_left(bits: u128) -> Self;
}

impl Bits for Ipv4Addr {
    const BITS: u32 = 32;

    fn to_left(self) -> u128 {
        u128::from(self.to_bits()) << 96
    }

    fn from_left(bits: u128) -> Self {
        Self::from_bits((bits >> 96) as u32)
    }
}

impl Bits for Ipv6Addr {
    const BITS: u32 = 128;

    fn to_left(self) -> u128 {
        self.to_bits()
    }

    fn from_left(bits: u128) -> Self {
        Self::from_bits(bits)
    }
}

impl<A: Bits> Side<A> {
    fn new(full: FibFull) -> Self {
        Self { prefixes: IpLookupTable::new(), hosts: BTreeMap::new(), nodes: Nodes::default(), full }
    }

    #[expect(clippy::cast_possible_truncation, reason = "128 at most")]
    fn prefixes(&self) -> impl Iterator<Item = (A, u8)> + '_ {
        self.prefixes.iter().map(|(address, length, _)| (address, length as u8))
    }

    /// The row of the longest prefix that an address is in.
    fn row_of(&self, address: A) -> u32 {
        self.prefixes.longest_match(address).map_or(NOWHERE, |(.., row)| *row)
    }

    /// See [`FibWriter::change_routes`].
    fn change_routes(
        &mut self,
        fib: &Fib,
        trie: &Trie,
        rows: &mut RowStore,
        changes: Vec<(A, u8, Option<Vec<Way>>)>,
    ) -> Result<(), FibFull> {
        let (mut set, mut gone, mut dropped, mut moved) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut full = None;
        for (address, length, ways) in changes {
            let length = u32::from(length).min(A::BITS);
            let address = A::from_left(address.to_left() & mask(length));
            let Some(ways) = ways else {
                if let Some(row) = self.prefixes.remove(address, length) {
                    dropped.push(row);
                    gone.push((length, address));
                    moved.push((address, length));
                }
                continue;
            };
            let row = match rows.acquire(&fib.rows, ways.iter().map(|way| Target::Way(*way))) {
                Ok(row) => row,
                Err(reason) => {
                    full.get_or_insert(reason);
                    continue;
                }
            };
            match self.prefixes.insert(address, length, row) {
                Some(before) if before == row => {
                    rows.release(row);
                    continue;
                }
                Some(before) => {
                    dropped.push(before);
                    // By which gateway is all the same to the neighbours on a link.
                    let on_link =
                        |row| rows.targets(row).iter().any(|target| matches!(target, Target::Way(Way::OnLink(_))));
                    if on_link(before) || on_link(row) {
                        moved.push((address, length));
                    }
                }
                None => moved.push((address, length)),
            }
            set.push((length, address));
        }
        let hosts = self.hosts_in(&moved);
        let gone_hosts = self.set_hosts(fib, trie, rows, hosts, &mut dropped, &mut full);
        // What is longer first, and then nothing that is shorter shows.
        set.sort_unstable_by(|one, other| other.cmp(one));
        set.dedup();
        for (length, address) in set {
            let Some(&row) = self.prefixes.exact_match(address, length) else { continue };
            if self.nodes.set(trie, Net { address: address.to_left(), length }, row).is_err() {
                full.get_or_insert(self.full);
                self.prefixes.remove(address, length);
                dropped.push(row);
            }
        }
        gone.sort_unstable();
        for (length, address) in gone {
            if self.prefixes.exact_match(address, length).is_none() {
                self.remove(trie, address, length);
            }
        }
        gone_hosts.into_iter().for_each(|address| self.remove(trie, address, HOST::<A>()));
        dropped.into_iter().for_each(|row| rows.release(row));
        full.map_or(Ok(()), Err)
    }

    /// Takes neighbours that have changed, each with the number of links that it has more or less.
    fn change_hosts(
        &mut self,
        fib: &Fib,
        trie: &Trie,
        rows: &mut RowStore,
        changes: Vec<(A, i32)>,
    ) -> Result<(), FibFull> {
        let (mut dropped, mut full) = (Vec::new(), None);
        let mut hosts: Vec<A> = Vec::with_capacity(changes.len());
        for (address, links) in changes {
            let host = self.hosts.entry(address).or_default();
            host.links = host.links.saturating_add_signed(links);
            hosts.push(address);
        }
        hosts.sort_unstable();
        hosts.dedup();
        let gone = self.set_hosts(fib, trie, rows, hosts.clone(), &mut dropped, &mut full);
        gone.into_iter().for_each(|address| self.remove(trie, address, HOST::<A>()));
        for address in hosts {
            if self.hosts.get(&address).is_some_and(|host| host.links == 0) {
                self.hosts.remove(&address);
            }
        }
        dropped.into_iter().for_each(|row| rows.release(row));
        full.map_or(Ok(()), Err)
    }

    /// Known neighbours within prefixes.
    fn hosts_in(&self, prefixes: &[(A, u32)]) -> Vec<A> {
        if self.hosts.is_empty() {
            return Vec::new();
        }
        let within = prefixes.iter().flat_map(|(address, length)| {
            let last = A::from_left(address.to_left() | !mask(*length));
            self.hosts.range(*address..=last).map(|(address, _)| *address)
        });
        let mut hosts: Vec<A> = within.collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// Adds and changes host entries, by what the routes are now; returns those that have to go once the routes are in the trie.
    fn set_hosts(
        &mut self,
        fib: &Fib,
        trie: &Trie,
        rows: &mut RowStore,
        hosts: Vec<A>,
        dropped: &mut Vec<u32>,
        full: &mut Option<FibFull>,
    ) -> Vec<A> {
        let mut gone = Vec::new();
        for address in hosts {
            let mut resolved = false;
            let targets: Vec<Target> = rows
                .targets(self.row_of(address))
                .into_iter()
                .map(|target| match target {
                    Target::Way(Way::OnLink(port)) => rows.mac(port, address.into()).map_or(target, |mac| {
                        resolved = true;
                        Target::Host(port, mac)
                    }),
                    _ => target,
                })
                .collect();
            let mut row = None;
            if resolved {
                match rows.acquire(&fib.rows, targets.into_iter()) {
                    Ok(acquired) => row = Some(acquired),
                    Err(reason) => {
                        full.get_or_insert(reason);
                    }
                }
            }
            let Some(host) = self.hosts.get_mut(&address) else { continue };
            let before = std::mem::replace(&mut host.row, row);
            match (before, row) {
                (Some(before), Some(row)) if before == row => rows.release(row),
                (before, Some(row)) => {
                    dropped.extend(before);
                    if self.nodes.set(trie, Net { address: address.to_left(), length: HOST::<A>() }, row).is_err() {
                        full.get_or_insert(self.full);
                        host.row = None;
                        dropped.push(row);
                    }
                }
                (Some(before), None) => {
                    dropped.push(before);
                    gone.push(address);
                }
                (None, None) => {}
            }
        }
        gone
    }

    /// Removes a prefix or host from the trie: what covers it now is seen again.
    fn remove(&mut self, trie: &Trie, address: A, length: u32) {
        let parent = self.prefixes.matches(address).take_while(|(_, shorter, _)| *shorter < length).last();
        let parent = parent.map(|(_, length, row)| (length, *row));
        self.nodes.remove(trie, Net { address: address.to_left(), length }, parent);
    }
}

/// The length of a host entry.
#[expect(non_snake_case, reason = "a constant of each family")]
const fn HOST<A: Bits>() -> u32 {
    A::BITS + 1
}

/// The first bits of a left-aligned address.
fn mask(length: u32) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - length) }
}

/// An address without its host bits.
fn network(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_left(address.to_left() & mask(length.min(32))).into(),
        IpAddr::V6(address) => Ipv6Addr::from_left(address.to_left() & mask(length.min(128))).into(),
    }
}
