//! A trie of one address family: a large root, then nodes of eight bits, changed in place by one writer while all cores read.
//!
//! An entry is a 32-bit word: 0 if nothing of its level covers the addresses, else the length of the prefix and its row; or, with
//! [`EXTENDED`], the number of a node. A node begins with what its entry said before: its cover. Prefixes of up to eight bits stand in a
//! table of their own, so that a default route touches 1 KB and not all of the root. So each prefix is written in one level only, and
//! each address sees each change as one store. An answer that comes from one word is that of one moment; one that was put together (a
//! zero, then what covers it) is that of one moment if the number of [`Trie::steps`] has not changed meanwhile.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use weir_cpu::{HugeSlice, MapError};

/// What all cores read. Written by [`Nodes`] only, of which there is one.
#[derive(Debug)]
pub(super) struct Trie {
    /// Prefixes of up to [`SHORT_BITS`].
    short: [AtomicU32; SHORT],
    root: HugeSlice<AtomicU32>,
    nodes: HugeSlice<AtomicU32>,
    /// By node: what its entry said before.
    covers: HugeSlice<AtomicU32>,
    root_bits: u32,
    /// Bits of an address.
    bits: u32,
    /// Changes so far: the writer counts before each prefix.
    steps: Steps,
}

/// In a line of its own: it is written while routes change, and its neighbours are read with each packet.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Steps(AtomicU64);

impl Trie {
    /// A trie without prefixes; its memory is taken as it is used.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space.
    pub(super) fn new(bits: u32, root_bits: u32, nodes: usize) -> Result<Self, MapError> {
        Ok(Self {
            short: [const { AtomicU32::new(0) }; SHORT],
            root: HugeSlice::zeroed(1 << root_bits)?,
            nodes: HugeSlice::zeroed(nodes * NODE)?,
            covers: HugeSlice::zeroed(nodes)?,
            root_bits,
            bits,
            steps: Steps::default(),
        })
    }

    /// Asks the processor for an IPv4 address's line.
    #[inline(always)]
    pub(super) fn prefetch4(&self, address: u32) {
        weir_cpu::prefetch_at(&self.root, (address >> 8) as usize);
    }

    /// The entry of an IPv4 address, in a trie with a root of 24 bits.
    #[inline(always)]
    pub(super) fn find4(&self, address: u32) -> u32 {
        let entry = self.root.get((address >> 8) as usize).map_or(0, |entry| entry.load(Ordering::Acquire));
        // Neither 0 nor extended.
        if entry.wrapping_sub(1) < EXTENDED - 1 { entry } else { self.find(u128::from(address) << 96) }
    }

    /// The entry of an address, which begins at the highest bit.
    pub(super) fn find(&self, address: u128) -> u32 {
        loop {
            let step = self.steps.0.load(Ordering::Acquire);
            let mut cover = 0;
            let mut entry = load(&self.root, part(address, 0, self.root_bits));
            let mut base = self.root_bits;
            // The bound is for who reads a node while it is reused; the tables' epoch lets him look again.
            while entry & EXTENDED != 0 && base < self.bits {
                let node = (entry & ROW) as usize;
                let here = load(&self.covers, node);
                cover = if here == 0 { cover } else { here };
                entry = load(&self.nodes, node * NODE + part(address, base, NODE_BITS));
                base += NODE_BITS;
            }
            if entry != 0 {
                return entry;
            }
            if cover == 0 {
                cover = load(&self.short, part(address, 0, SHORT_BITS));
            }
            fence(Ordering::Acquire);
            if self.steps.0.load(Ordering::Relaxed) == step {
                return cover;
            }
        }
    }

    /// Bytes of address space taken.
    pub(super) fn bytes(&self) -> usize {
        self.root.mapped_bytes() + self.nodes.mapped_bytes() + self.covers.mapped_bytes()
    }
}

#[inline(always)]
fn load(entries: &[AtomicU32], at: usize) -> u32 {
    entries.get(at).map_or(0, |entry| entry.load(Ordering::Acquire))
}

/// Bits of an address, from the highest ones on, as a number.
#[inline(always)]
fn part(address: u128, base: u32, bits: u32) -> usize {
    ((address << base) >> (128 - bits)) as usize
}

/// A prefix as the trie sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Net {
    /// Begins at the highest bit; without host bits.
    pub(super) address: u128,
    /// Its length; one more than an address has bits is a host, which goes before a route of full length.
    pub(super) length: u32,
}

impl Net {
    fn entry(self, row: u32) -> u32 {
        self.length << ROW_BITS | row
    }
}

/// No node is left: the prefix is not in the trie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoNode;

/// The writer's end: which nodes are in use.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// By node: its entries that are not 0.
    used: Vec<u16>,
    free: Vec<u32>,
    /// Unlinked, but somebody may still be reading them.
    retired: Vec<u32>,
}

impl Nodes {
    /// Whether anything waits for [`Self::reuse`].
    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Nobody has to do with what was unlinked before, or looks again.
    pub(super) fn reuse(&mut self) {
        self.free.append(&mut self.retired);
    }

    /// Nodes in use.
    pub(super) fn len(&self) -> usize {
        self.used.len() - self.free.len() - self.retired.len()
    }

    /// Adds a prefix, or gives it another row.
    ///
    /// # Errors
    ///
    /// [`NoNode`]; nothing has changed.
    pub(super) fn set(&mut self, trie: &Trie, net: Net, row: u32) -> Result<(), NoNode> {
        trie.count_step();
        let value = net.entry(row);
        let bits = net.length.min(trie.bits);
        if bits <= SHORT_BITS {
            for entry in &trie.short[range(net.address, 0, SHORT_BITS, bits)] {
                if length(entry.load(Ordering::Relaxed)) <= net.length {
                    entry.store(value, Ordering::Release);
                }
            }
            return Ok(());
        }
        let Some((node, base)) = self.descend(trie, net.address, bits)? else {
            for at in range(net.address, 0, trie.root_bits, bits) {
                let entry = trie.leaf(&trie.root[at]);
                if length(entry.load(Ordering::Relaxed)) <= net.length {
                    entry.store(value, Ordering::Release);
                }
            }
            return Ok(());
        };
        for at in range(net.address, base, NODE_BITS, bits) {
            let slot = &trie.nodes[node as usize * NODE + at];
            let entry = trie.leaf(slot);
            let old = entry.load(Ordering::Relaxed);
            if length(old) <= net.length {
                if old == 0 && std::ptr::eq(slot, entry) {
                    self.used[node as usize] += 1;
                }
                entry.store(value, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Removes a prefix; `parent` is the longest one that is shorter and covers it, with its row. What is not there does no harm.
    pub(super) fn remove(&mut self, trie: &Trie, net: Net, parent: Option<(u32, u32)>) {
        trie.count_step();
        let bits = net.length.min(trie.bits);
        // A parent of the same level takes the place; the others are found where they are.
        let value = |least: u32| match parent {
            Some((length, row)) if length >= least => Net { length, ..net }.entry(row),
            _ => 0,
        };
        let mine = |entry: u32| entry != 0 && length(entry) == net.length;
        if bits <= SHORT_BITS {
            for entry in &trie.short[range(net.address, 0, SHORT_BITS, bits)] {
                if mine(entry.load(Ordering::Relaxed)) {
                    entry.store(value(0), Ordering::Release);
                }
            }
            return;
        }
        let mut path = [0; DEEPEST];
        let Some((depth, base)) = trie.walk(net.address, bits, &mut path) else { return };
        let Some(&node) = depth.checked_sub(1).and_then(|last| path.get(last)) else {
            for at in range(net.address, 0, trie.root_bits, bits) {
                let entry = trie.leaf(&trie.root[at]);
                if mine(entry.load(Ordering::Relaxed)) {
                    entry.store(value(SHORT_BITS + 1), Ordering::Release);
                }
            }
            return;
        };
        let value = value(base + 1);
        for at in range(net.address, base, NODE_BITS, bits) {
            let slot = &trie.nodes[node as usize * NODE + at];
            let entry = trie.leaf(slot);
            if mine(entry.load(Ordering::Relaxed)) {
                if value == 0 && std::ptr::eq(slot, entry) {
                    self.used[node as usize] -= 1;
                }
                entry.store(value, Ordering::Release);
            }
        }
        self.prune(trie, net.address, &path[..depth]);
    }

    /// The node in which a prefix of more than [`SHORT_BITS`] is, and the bits before it; `None` for the root.
    fn descend(&mut self, trie: &Trie, address: u128, bits: u32) -> Result<Option<(u32, u32)>, NoNode> {
        let mut path = [0; DEEPEST];
        let mut depth = 0;
        let mut base = trie.root_bits;
        let mut slot = &trie.root[part(address, 0, trie.root_bits)];
        while bits > base {
            let entry = slot.load(Ordering::Relaxed);
            let node = if entry & EXTENDED != 0 {
                entry & ROW
            } else {
                let Some(node) = self.allocate(trie) else {
                    self.prune(trie, address, &path[..depth]);
                    return Err(NoNode);
                };
                trie.covers[node as usize].store(entry, Ordering::Relaxed);
                if let Some(parent) = depth.checked_sub(1)
                    && entry == 0
                {
                    self.used[path[parent] as usize] += 1;
                }
                slot.store(EXTENDED | node, Ordering::Release);
                node
            };
            path[depth] = node;
            depth += 1;
            slot = &trie.nodes[node as usize * NODE + part(address, base, NODE_BITS)];
            base += NODE_BITS;
        }
        Ok(depth.checked_sub(1).map(|last| (path[last], base - NODE_BITS)))
    }

    /// Unlinks nodes without entries from the end of an address's path on.
    fn prune(&mut self, trie: &Trie, address: u128, path: &[u32]) {
        for (depth, &node) in path.iter().enumerate().rev() {
            if self.used[node as usize] > 0 {
                return;
            }
            let cover = trie.covers[node as usize].load(Ordering::Relaxed);
            match depth.checked_sub(1).map(|above| path[above] as usize) {
                Some(above) => {
                    let base = trie.root_bits + NODE_BITS * u32::try_from(depth - 1).unwrap_or(0);
                    trie.nodes[above * NODE + part(address, base, NODE_BITS)].store(cover, Ordering::Release);
                    self.used[above] -= u16::from(cover == 0);
                }
                None => trie.root[part(address, 0, trie.root_bits)].store(cover, Ordering::Release),
            }
            self.retired.push(node);
        }
    }

    fn allocate(&mut self, trie: &Trie) -> Option<u32> {
        if let Some(node) = self.free.pop() {
            return Some(node);
        }
        let node = self.used.len();
        if node >= trie.covers.len() {
            return None;
        }
        self.used.push(0);
        u32::try_from(node).ok()
    }
}

impl Trie {
    /// Before each prefix: who has put an answer together from before and after looks again.
    fn count_step(&self) {
        let step = self.steps.0.load(Ordering::Relaxed);
        self.steps.0.store(step.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// Where an entry's own word is: in its place, or at the head of its node.
    fn leaf<'t>(&'t self, slot: &'t AtomicU32) -> &'t AtomicU32 {
        let entry = slot.load(Ordering::Relaxed);
        if entry & EXTENDED == 0 { slot } else { &self.covers[(entry & ROW) as usize] }
    }

    /// The nodes on the way to where a prefix is, how many they are, and the bits before the last one; `None` if they are not there.
    fn walk(&self, address: u128, bits: u32, path: &mut [u32; DEEPEST]) -> Option<(usize, u32)> {
        let (mut depth, mut base) = (0, self.root_bits);
        let mut slot = &self.root[part(address, 0, self.root_bits)];
        while bits > base {
            let entry = slot.load(Ordering::Relaxed);
            if entry & EXTENDED == 0 {
                return None;
            }
            path[depth] = entry & ROW;
            slot = &self.nodes[path[depth] as usize * NODE + part(address, base, NODE_BITS)];
            depth += 1;
            base += NODE_BITS;
        }
        Some((depth, base - if depth > 0 { NODE_BITS } else { 0 }))
    }
}

/// The entries that a prefix of `bits` covers in a table of `width` bits behind `base` others.
fn range(address: u128, base: u32, width: u32, bits: u32) -> std::ops::Range<usize> {
    let start = part(address, base, width);
    start..start + (1 << (base + width - bits))
}

/// An entry's row.
#[inline(always)]
pub(super) fn row(entry: u32) -> usize {
    (entry & ROW) as usize
}

fn length(entry: u32) -> u32 {
    entry >> ROW_BITS
}

/// Says that the rest of an entry is a node's number.
const EXTENDED: u32 = 1 << 31;
/// Bits of a row's or node's number.
const ROW_BITS: u32 = 23;
const ROW: u32 = (1 << ROW_BITS) - 1;
const NODE_BITS: u32 = 8;
const NODE: usize = 1 << NODE_BITS;
const SHORT_BITS: u32 = 8;
const SHORT: usize = 1 << SHORT_BITS;
/// Nodes on the way to an IPv6 host, behind a root of 16 bits.
const DEEPEST: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn net(address: &str, length: u32) -> Net {
        Net { address: u128::from(u32::from(address.parse::<std::net::Ipv4Addr>().unwrap())) << 96, length }
    }

    #[test]
    fn nodes_come_back_when_their_last_prefix_goes() {
        let (trie, mut nodes) = (Trie::new(32, 24, 2).unwrap(), Nodes::default());
        nodes.set(&trie, net("10.0.0.0", 8), 1).unwrap();
        nodes.set(&trie, net("10.0.0.0", 24), 2).unwrap();
        nodes.set(&trie, net("10.0.0.7", 33), 3).unwrap();
        nodes.set(&trie, net("10.0.1.7", 32), 4).unwrap();
        assert_eq!(nodes.set(&trie, net("10.0.2.7", 32), 5), Err(NoNode));
        let find = |address| row(trie.find4(u32::from(std::net::Ipv4Addr::from(address))));
        assert_eq!([find([10, 0, 0, 7]), find([10, 0, 0, 8]), find([10, 0, 1, 7]), find([10, 0, 1, 8])], [3, 2, 4, 1]);
        // While the node is there the prefix above it goes and comes back.
        nodes.remove(&trie, net("10.0.0.0", 24), Some((8, 1)));
        assert_eq!([find([10, 0, 0, 7]), find([10, 0, 0, 8])], [3, 1]);
        nodes.set(&trie, net("10.0.0.0", 24), 2).unwrap();
        nodes.remove(&trie, net("10.0.0.7", 33), Some((24, 2)));
        assert_eq!((find([10, 0, 0, 7]), nodes.len()), (2, 1));
        assert_eq!(nodes.set(&trie, net("10.0.2.7", 32), 5), Err(NoNode), "somebody may read it");
        nodes.reuse();
        nodes.set(&trie, net("10.0.2.7", 32), 5).unwrap();
        assert_eq!([find([10, 0, 2, 7]), find([10, 0, 2, 8]), find([11, 0, 0, 0])], [5, 1, 0]);
    }
}
