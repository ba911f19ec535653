//! Next hops by row: one word each, so that a neighbour's change is one store, and the writer's books of which row is which.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hashbrown::HashMap;
use weir_cpu::{HugeSlice, MapError};

use super::{FibFull, Next};
use crate::farm::{NoHop, PortId, Way};
use crate::flow::place;

/// What all cores read. A word is a port in its upper 16 bits, and the MAC address of the next hop below, its first byte lowest.
#[derive(Debug)]
pub(super) struct Rows {
    words: HugeSlice<AtomicU64>,
    /// What the slow path asks of a row: what it is, and a gateway's address.
    details: HugeSlice<[AtomicU64; 3]>,
    /// The rows of groups, one behind the other.
    members: HugeSlice<AtomicU32>,
}

impl Rows {
    /// No rows but the one that leads nowhere.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space.
    pub(super) fn new(most: usize) -> Result<Self, MapError> {
        let rows = Self {
            words: HugeSlice::zeroed(most.max(1))?,
            details: HugeSlice::zeroed(most.max(1))?,
            members: HugeSlice::zeroed(most.next_power_of_two())?,
        };
        rows.words[NOWHERE as usize].store(u64::from(NO_WAY) << PORT_AT, Ordering::Release);
        Ok(rows)
    }

    /// The next hop of a row, if it is resolved.
    #[inline(always)]
    pub(super) fn next(&self, row: usize, flow: u64) -> Option<Next> {
        let mut word = self.word(row);
        if word >> PORT_AT >= FIRST_SPECIAL {
            if port_of(word) != GROUP {
                return None;
            }
            word = self.word(self.member(word, flow));
        }
        (word >> PORT_AT < FIRST_SPECIAL).then_some(Next(word))
    }

    /// The same, and why there is none for `address`.
    pub(super) fn hop(&self, row: usize, address: IpAddr, flow: u64) -> Result<Next, NoHop> {
        let mut row = row;
        let mut word = self.word(row);
        if port_of(word) == GROUP {
            row = self.member(word, flow);
            word = self.word(row);
        }
        match port_of(word) {
            NO_WAY | GROUP => Err(NoHop::NoRoute),
            ON_LINK => Err(NoHop::Unresolved(self.detail(row).1, address)),
            UNRESOLVED => {
                let (_, port, gateway) = self.detail(row);
                Err(NoHop::Unresolved(port, gateway))
            }
            _ => Ok(Next(word)),
        }
    }

    /// Whether any way of a row leads to the destination itself on a port's link; `resolved` asks for one whose address is known.
    pub(super) fn is_on_link(&self, row: usize, port: PortId, resolved: bool) -> bool {
        let word = self.word(row);
        let is = |row: usize| {
            let (kind, on, _) = self.detail(row);
            on == port && (kind == Kind::Host as u64 || !resolved && kind == Kind::OnLink as u64)
        };
        if port_of(word) != GROUP {
            return row != NOWHERE as usize && is(row);
        }
        let (start, len) = group(word);
        (start..start + len).any(|at| is(self.member_at(at)))
    }

    /// Whether a row's next hop is known.
    pub(super) fn is_resolved(&self, row: u32) -> bool {
        self.word(row as usize) >> PORT_AT < FIRST_SPECIAL
    }

    /// Bytes of address space taken.
    pub(super) fn bytes(&self) -> usize {
        self.words.mapped_bytes() + self.details.mapped_bytes() + self.members.mapped_bytes()
    }

    #[inline(always)]
    fn word(&self, row: usize) -> u64 {
        self.words.get(row).map_or(u64::MAX, |word| word.load(Ordering::Acquire))
    }

    #[cold]
    fn member(&self, word: u64, flow: u64) -> usize {
        let (start, len) = group(word);
        self.member_at(start + place(flow, len))
    }

    fn member_at(&self, at: usize) -> usize {
        self.members.get(at).map_or(NOWHERE, |row| row.load(Ordering::Acquire)) as usize
    }

    fn detail(&self, row: usize) -> (u64, PortId, IpAddr) {
        let Some([what, high, low]) = self.details.get(row) else {
            return (0, 0, IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        };
        let what = what.load(Ordering::Acquire);
        let (high, low) = (high.load(Ordering::Acquire), low.load(Ordering::Acquire));
        let address = Ipv6Addr::from(u128::from(high) << 64 | u128::from(low));
        let four = what & IS_V4 != 0;
        let address = if four { address.to_ipv4_mapped().map_or(address.into(), IpAddr::V4) } else { address.into() };
        (what & KIND, (what >> PORT_AT) as PortId, address)
    }
}

/// What a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    OnLink = 1,
    Gateway = 2,
    Host = 3,
}

/// One way of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// As a route has it.
    Way(Way),
    /// A destination on a port's link whose address is known.
    Host(PortId, [u8; 6]),
}

/// The writer's end: which rows there are, and who uses them.
#[derive(Debug, Default)]
pub(super) struct RowStore {
    singles: HashMap<Target, u32, foldhash::fast::FixedState>,
    groups: HashMap<Vec<u32>, u32, foldhash::fast::FixedState>,
    /// By row: how many use it, and what it is.
    rows: Vec<Row>,
    free: Vec<u32>,
    retired: Vec<u32>,
    /// By size (the exponent of a power of two): where groups may be written.
    free_members: [Vec<u32>; MEMBER_SIZES],
    retired_members: Vec<(usize, u32)>,
    members_end: usize,
    macs: HashMap<(PortId, IpAddr), [u8; 6], foldhash::fast::FixedState>,
    /// Gateways have come or gone.
    gateways_changed: bool,
}

#[derive(Debug, Clone, Default)]
struct Row {
    uses: u32,
    what: What,
}

#[derive(Debug, Clone, Default)]
enum What {
    #[default]
    Nothing,
    Single(Target),
    Group {
        members: Vec<u32>,
        /// Where they are written.
        start: u32,
    },
}

impl RowStore {
    /// Whether anything waits for [`Self::reuse`].
    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty() || !self.retired_members.is_empty()
    }

    /// Nobody has to do with what was given up before, or looks again.
    pub(super) fn reuse(&mut self) {
        self.free.append(&mut self.retired);
        for (size, start) in self.retired_members.drain(..) {
            self.free_members[size].push(start);
        }
    }

    /// Rows in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.singles.len() + self.groups.len()
    }

    /// The row of these ways, which has one more user then.
    ///
    /// # Errors
    ///
    /// [`FibFull`]; nothing has changed.
    pub(super) fn acquire(
        &mut self,
        rows: &Rows,
        targets: impl ExactSizeIterator<Item = Target>,
    ) -> Result<u32, FibFull> {
        let mut targets = targets.peekable();
        if let (1, Some(target)) = (targets.len(), targets.peek()) {
            return self.acquire_one(rows, *target);
        }
        let mut members = Vec::with_capacity(targets.len().min(MOST_WAYS));
        for target in targets.take(MOST_WAYS) {
            match self.acquire_one(rows, target) {
                Ok(row) => members.push(row),
                Err(full) => {
                    members.into_iter().for_each(|row| self.release(row));
                    return Err(full);
                }
            }
        }
        if members.is_empty() {
            return Ok(NOWHERE);
        }
        if let Some(&row) = self.groups.get(&members) {
            members.into_iter().for_each(|row| self.release(row));
            self.rows[row as usize].uses += 1;
            return Ok(row);
        }
        self.new_group(rows, members)
    }

    fn new_group(&mut self, rows: &Rows, members: Vec<u32>) -> Result<u32, FibFull> {
        let (size, len) = (size_of_group(&members), 1 << size_of_group(&members));
        let start = self.free_members[size].pop().or_else(|| {
            let start = self.members_end;
            (start + len <= rows.members.len()).then(|| self.members_end += len)?;
            u32::try_from(start).ok()
        });
        let (Some(start), Some(row)) = (start, self.allocate(rows)) else {
            start.into_iter().for_each(|start| self.free_members[size].push(start));
            members.into_iter().for_each(|row| self.release(row));
            return Err(FibFull::Rows(rows.words.len()));
        };
        for (at, member) in (start as usize..).zip(&members) {
            rows.members[at].store(*member, Ordering::Relaxed);
        }
        let word = u64::from(GROUP) << PORT_AT | (members.len() as u64) << 32 | u64::from(start);
        rows.details[row as usize][0].store(0, Ordering::Relaxed);
        rows.words[row as usize].store(word, Ordering::Release);
        self.groups.insert(members.clone(), row);
        self.rows[row as usize] = Row { uses: 1, what: What::Group { members, start } };
        Ok(row)
    }

    fn acquire_one(&mut self, rows: &Rows, target: Target) -> Result<u32, FibFull> {
        if let Some(&row) = self.singles.get(&target) {
            self.rows[row as usize].uses += 1;
            return Ok(row);
        }
        let row = self.allocate(rows).ok_or(FibFull::Rows(rows.words.len()))?;
        let (kind, port, address) = match target {
            Target::Way(Way::OnLink(port)) => (Kind::OnLink, port, None),
            Target::Way(Way::Gateway(port, address)) => (Kind::Gateway, port, Some(address)),
            Target::Host(port, _) => (Kind::Host, port, None),
        };
        let [what, high, low] = &rows.details[row as usize];
        let four = address.is_some_and(|address| address.is_ipv4());
        let bits = match address {
            Some(IpAddr::V4(address)) => address.to_ipv6_mapped().to_bits(),
            Some(IpAddr::V6(address)) => address.to_bits(),
            None => 0,
        };
        let four = if four { IS_V4 } else { 0 };
        what.store(u64::from(port) << PORT_AT | four | kind as u64, Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are kept")]
        let halves = ((bits >> 64) as u64, bits as u64);
        high.store(halves.0, Ordering::Relaxed);
        low.store(halves.1, Ordering::Relaxed);
        rows.words[row as usize].store(self.word_of(target), Ordering::Release);
        self.gateways_changed |= kind == Kind::Gateway;
        self.singles.insert(target, row);
        self.rows[row as usize] = Row { uses: 1, what: What::Single(target) };
        Ok(row)
    }

    /// One user less; the row is given up with its last one.
    pub(super) fn release(&mut self, row: u32) {
        if row == NOWHERE {
            return;
        }
        let used = &mut self.rows[row as usize];
        used.uses -= 1;
        if used.uses > 0 {
            return;
        }
        match std::mem::take(&mut used.what) {
            What::Nothing => return,
            What::Single(target) => {
                self.gateways_changed |= matches!(target, Target::Way(Way::Gateway(..)));
                self.singles.remove(&target);
            }
            What::Group { members, start } => {
                self.groups.remove(&members);
                self.retired_members.push((size_of_group(&members), start));
                members.into_iter().for_each(|member| self.release(member));
            }
        }
        self.retired.push(row);
    }

    /// A neighbour's address is known now, is another, or is not known any more; whether that is new.
    pub(super) fn set_neighbour(&mut self, rows: &Rows, port: PortId, address: IpAddr, mac: Option<[u8; 6]>) -> bool {
        let before = match mac {
            Some(mac) => self.macs.insert((port, address), mac),
            None => self.macs.remove(&(port, address)),
        };
        if before == mac {
            return false;
        }
        let target = Target::Way(Way::Gateway(port, address));
        if let Some(&row) = self.singles.get(&target) {
            rows.words[row as usize].store(self.word_of(target), Ordering::Release);
        }
        true
    }

    /// A neighbour's address, if it is known.
    pub(super) fn mac(&self, port: PortId, address: IpAddr) -> Option<[u8; 6]> {
        self.macs.get(&(port, address)).copied()
    }

    /// All neighbours whose addresses are known.
    pub(super) fn neighbours(&self) -> impl Iterator<Item = (PortId, IpAddr)> {
        self.macs.keys().copied()
    }

    /// The ways of a row; none for the one that leads nowhere.
    pub(super) fn targets(&self, row: u32) -> Vec<Target> {
        match self.rows.get(row as usize).map(|row| &row.what) {
            Some(What::Single(target)) => vec![*target],
            Some(What::Group { members, .. }) => members.iter().flat_map(|row| self.targets(*row)).collect(),
            Some(What::Nothing) | None => Vec::new(),
        }
    }

    /// The gateways, in order, if any have come or gone since it was last asked.
    pub(super) fn changed_gateways(&mut self) -> Option<Vec<(PortId, IpAddr, u32)>> {
        std::mem::take(&mut self.gateways_changed).then(|| {
            let mut gateways: Vec<_> = self
                .singles
                .iter()
                .filter_map(|(target, row)| match target {
                    Target::Way(Way::Gateway(port, address)) => Some((*port, *address, *row)),
                    _ => None,
                })
                .collect();
            gateways.sort_unstable();
            gateways
        })
    }

    fn word_of(&self, target: Target) -> u64 {
        let word = |port: PortId, mac: Option<[u8; 6]>| match mac {
            Some(_) if u64::from(port) >= FIRST_SPECIAL => u64::from(NO_WAY) << PORT_AT,
            Some([a, b, c, d, e, f]) => u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) | u64::from(port) << PORT_AT,
            None => u64::from(UNRESOLVED) << PORT_AT,
        };
        match target {
            Target::Way(Way::OnLink(_)) => u64::from(ON_LINK) << PORT_AT,
            Target::Way(Way::Gateway(port, address)) => word(port, self.mac(port, address)),
            Target::Host(port, mac) => word(port, Some(mac)),
        }
    }

    fn allocate(&mut self, rows: &Rows) -> Option<u32> {
        if let Some(row) = self.free.pop() {
            return Some(row);
        }
        if self.rows.is_empty() {
            // The first one leads nowhere.
            self.rows.push(Row::default());
        }
        let row = self.rows.len();
        (row < rows.words.len()).then(|| self.rows.push(Row::default()))?;
        u32::try_from(row).ok()
    }
}

/// The exponent of the power of two that a group's place is long.
fn size_of_group(members: &[u32]) -> usize {
    members.len().next_power_of_two().trailing_zeros() as usize
}

#[inline(always)]
fn port_of(word: u64) -> PortId {
    (word >> PORT_AT) as PortId
}

/// Where a group's rows are, and how many.
#[expect(clippy::cast_possible_truncation, reason = "fields of 32 and 16 bits")]
fn group(word: u64) -> (usize, usize) {
    (word as u32 as usize, (word >> 32) as u16 as usize)
}

/// The row that leads nowhere.
pub(super) const NOWHERE: u32 = 0;
const PORT_AT: u32 = 48;
/// "Ports" from here on say why a row is no next hop.
const FIRST_SPECIAL: u64 = UNRESOLVED as u64;
/// A gateway whose address is not known.
const UNRESOLVED: PortId = 0xfffc;
/// The destination itself, whose address is not known.
const ON_LINK: PortId = 0xfffd;
/// Several ways: how many (16 bits) and where they are (32 bits).
const GROUP: PortId = 0xfffe;
const NO_WAY: PortId = 0xffff;
/// In the first word of details, below the port: which family a gateway is of, and the kind.
const IS_V4: u64 = 1 << 8;
const KIND: u64 = 0xff;
/// Ways of one group; further ones are left out.
const MOST_WAYS: usize = 1 << (MEMBER_SIZES - 1);
const MEMBER_SIZES: usize = 13;
