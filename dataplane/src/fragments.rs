//! The fragment table: lets IPv4 and IPv6 fragments follow their flow without reassembly.
//!
//! Only the first fragment of a datagram has ports. It teaches them to the table, and the later ones go where it went; a
//! later one that comes before it waits. The table keeps which bytes of the datagram have been seen, so that no host ever gets
//! overlapping fragments (RFC 5722, for both families): the first overlap kills the datagram.
//!
//! A flow's owner is a hash of the client's address *and port*, which a later fragment does not have. So every fragment goes
//! to its **fragment owner** first, by the client's address alone ([`Owners::of_fragments`](crate::flow::Owners::of_fragments)); the table is there. With ports it goes on
//! to the flow's owner.
//!
//! All memory is allocated at the start; every call has bounded work. Under a flood the oldest datagrams go first.

use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::FixedState;
use weir_identity::Moment;

use crate::counters::DropReason;
use crate::flow::{Key, Key4, Key6, protocol};
use crate::parse::Fragment;

/// How long an IPv4 datagram's fragments may take (RFC 1122 3.3.2 leaves it open; Linux's `ipfrag_time`).
pub const TIMEOUT_V4: Duration = Duration::from_secs(30);
/// How long an IPv6 packet's fragments may take (RFC 8200 4.5).
pub const TIMEOUT_V6: Duration = Duration::from_secs(60);
/// The most fragments of one datagram: the largest datagram in fragments for IPv6's least MTU (65535 / 1232) has 54.
pub const MAX_FRAGMENTS: usize = 64;

/// What the table holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Datagrams at once, those that were killed included; about 400 bytes each.
    pub datagrams: u32,
    /// Later fragments that wait for their first, all datagrams together: each of them is a buffer out of the pool.
    pub held: u32,
}

impl Default for Limits {
    /// 1024 datagrams, 256 fragments.
    fn default() -> Self {
        Self { datagrams: 1024, held: 256 }
    }
}

/// What the table has seen; in packets where not said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FragmentCounters {
    /// Datagrams that went through whole.
    pub completed: u64,
    /// Fragments that had to wait for their first.
    pub held: u64,
    /// Exact duplicates, dropped without harm to their datagram.
    pub duplicates: u64,
    /// Datagrams killed: an overlap, lengths that contradict each other, or too many fragments.
    pub killed: u64,
    /// Datagrams evicted for newer ones.
    pub evicted: u64,
    /// Datagrams that were not complete in time.
    pub timed_out: u64,
}

/// What becomes of a later fragment.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the packet goes on or is dropped"]
pub enum Later<H> {
    /// It goes on as a packet of this flow: the first fragment's ports and protocol, and the fragment's own addresses.
    Flow(Key, H),
    /// It waits in the table.
    Held,
    /// It has to be dropped.
    Drop(H, DropReason),
}

/// A packet that had been waiting, and now leaves the table.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the packet goes on or is dropped"]
pub enum Left<H> {
    /// It goes on after the first fragment, as a packet of the same flow.
    Released(H),
    /// It has to be dropped.
    Drop(H, DropReason),
}

/// The fragmented datagrams of a shard; `H` is a packet that waits.
#[derive(Debug)]
pub struct FragmentTable<H> {
    hash: FixedState,
    /// First datagram of each chain; their number is a power of two.
    chains: Box<[u32]>,
    datagrams: Box<[Datagram]>,
    free: u32,
    /// In the order in which they began, for timeouts: IPv4, IPv6.
    by_age: [List; 2],
    /// Those without their first fragment, in the order in which they began: each holds at least one packet.
    waiting: List,
    slots: Box<[Slot<H>]>,
    free_slot: u32,
    len: usize,
    held: usize,
    counters: FragmentCounters,
}

impl<H> FragmentTable<H> {
    /// An empty table; clients must not be able to guess `seed`. Limits below 1 count as 1.
    #[must_use]
    pub fn new(seed: u64, limits: Limits) -> Self {
        let (datagrams, held) = (limits.datagrams.clamp(1, NONE - 1), limits.held.clamp(1, NONE - 1));
        let free_after = |at: u32, count: u32| if at + 1 < count { at + 1 } else { NONE };
        Self {
            hash: FixedState::with_seed(seed),
            chains: vec![NONE; (datagrams as usize).next_power_of_two()].into(),
            datagrams: (0..datagrams)
                .map(|at| Datagram { chain: free_after(at, datagrams), ..Datagram::FREE })
                .collect(),
            free: 0,
            by_age: [List::EMPTY; 2],
            waiting: List::EMPTY,
            slots: (0..held).map(|at| Slot { packet: None, next: free_after(at, held) }).collect(),
            free_slot: 0,
            len: 0,
            held: 0,
            counters: FragmentCounters::default(),
        }
    }

    /// Notes a first fragment: `key` is its own, with ports. If it may go on, those that waited for it follow it, in the order
    /// in which they came; all that leave the table are given to `left`.
    ///
    /// # Errors
    ///
    /// Why it has to be dropped: [`DropReason::BadFragment`] for a duplicate too; [`DropReason::Fragment`] if the protocol has
    /// no ports where the parser looks.
    pub fn first(
        &mut self,
        key: &Key,
        fragment: Fragment,
        now: Moment,
        mut left: impl FnMut(Left<H>),
    ) -> Result<(), DropReason> {
        if !matches!(key.protocol(), protocol::TCP | protocol::UDP) {
            return Err(DropReason::Fragment);
        }
        if fragment.offset != 0 || !fragment.more {
            return Err(DropReason::BadFragment);
        }
        let at = self.find_or_begin(Id::new(key, fragment), now, &mut left);
        self.note(at, fragment, &mut left)?;
        let (ports, protocol) = (key.ports(), key.protocol());
        let datagram = &mut self.datagrams[at as usize];
        if datagram.state == State::Waiting {
            datagram.state = State::Flow { ports, protocol };
            self.unlink(at, ListId::Waiting);
            self.empty(at, |packet| left(Left::Released(packet)));
        }
        self.remove_if_complete(at);
        Ok(())
    }

    /// Notes a later fragment, `packet`: `key` is its own, without ports. Others may have to leave for it, to `left`.
    pub fn later(
        &mut self,
        key: &Key,
        fragment: Fragment,
        now: Moment,
        packet: H,
        mut left: impl FnMut(Left<H>),
    ) -> Later<H> {
        // RFC 8200 lets the first fragment alone name the protocol, but no sender gives others another name.
        if fragment.offset == 0 || !matches!(key.protocol(), protocol::TCP | protocol::UDP) {
            return Later::Drop(packet, DropReason::Fragment);
        }
        // RFC 1858, RFC 3128: nothing but the first fragment may bring the TCP header.
        if key.protocol() == protocol::TCP && fragment.offset < TCP_HEADER {
            return Later::Drop(packet, DropReason::BadFragment);
        }
        let at = self.find_or_begin(Id::new(key, fragment), now, &mut left);
        if let Err(reason) = self.note(at, fragment, &mut left) {
            return Later::Drop(packet, reason);
        }
        match self.datagrams[at as usize].state {
            State::Flow { ports, protocol } => {
                self.remove_if_complete(at);
                Later::Flow(with_ports(key, ports, protocol), packet)
            }
            State::Waiting => match self.hold(at, packet, &mut left) {
                None => Later::Held,
                Some(packet) => Later::Drop(packet, DropReason::FragmentTable),
            },
            State::Dead => Later::Drop(packet, DropReason::BadFragment),
        }
    }

    /// Removes at most `count` datagrams whose time is over; what waited goes to `left`. Says how many they were.
    pub fn expire(&mut self, now: Moment, count: usize, mut left: impl FnMut(Left<H>)) -> usize {
        let mut expired = 0;
        for family in 0..self.by_age.len() {
            while expired < count {
                let at = self.by_age[family].head;
                if at == NONE || !self.datagrams[at as usize].is_over(now) {
                    break;
                }
                self.time_out(at, &mut left);
                expired += 1;
            }
        }
        expired
    }

    /// Datagrams in the table, those that were killed included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Packets that wait.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// What the table has seen so far.
    #[must_use]
    pub fn counters(&self) -> &FragmentCounters {
        &self.counters
    }

    /// The datagram's place. One that is over is forgotten, even if it has not been swept yet; a new one may evict another.
    fn find_or_begin(&mut self, id: Id, now: Moment, left: &mut impl FnMut(Left<H>)) -> u32 {
        let chain = self.chain_of(&id);
        let (mut at, mut last, mut length) = (self.chains[chain], NONE, 0);
        while at != NONE {
            let datagram = &self.datagrams[at as usize];
            if datagram.id == id {
                if !datagram.is_over(now) {
                    return at;
                }
                self.time_out(at, left);
                break;
            }
            (last, at, length) = (at, datagram.chain, length + 1);
        }
        // The newest is first in its chain. A long chain is an attack on the hash, or nearly as improbable.
        if at == NONE && length >= MAX_CHAIN {
            self.evict(last, left);
        }
        if self.free == NONE {
            self.evict(self.oldest(), left);
        }
        let at = self.free;
        self.free = self.datagrams[at as usize].chain;
        self.datagrams[at as usize] = Datagram { id, began: now, chain: self.chains[chain], ..Datagram::FREE };
        self.chains[chain] = at;
        self.len += 1;
        self.link(at, ListId::Age);
        self.link(at, ListId::Waiting);
        at
    }

    /// Notes which bytes a fragment brings. A contradiction kills the datagram, and what waited in it.
    ///
    /// A datagram that has just begun is never refused for the sake of others, so none is left behind that holds nothing.
    fn note(&mut self, at: u32, fragment: Fragment, left: &mut impl FnMut(Left<H>)) -> Result<(), DropReason> {
        let datagram = &mut self.datagrams[at as usize];
        if datagram.state == State::Dead {
            return Err(DropReason::BadFragment);
        }
        match datagram.seen.note(fragment) {
            Noted::New => Ok(()),
            Noted::Duplicate => {
                self.counters.duplicates += 1;
                Err(DropReason::BadFragment)
            }
            Noted::Contradiction => {
                self.counters.killed += 1;
                if datagram.state == State::Waiting {
                    self.unlink(at, ListId::Waiting);
                }
                self.datagrams[at as usize].state = State::Dead;
                self.empty(at, |packet| left(Left::Drop(packet, DropReason::BadFragment)));
                Err(DropReason::BadFragment)
            }
        }
    }

    /// Lets a packet wait; gives it back if its own datagram is the oldest that waits, and there is no place.
    fn hold(&mut self, at: u32, packet: H, left: &mut impl FnMut(Left<H>)) -> Option<H> {
        if self.free_slot == NONE {
            let oldest = self.waiting.head;
            self.evict(oldest, left);
            if oldest == at || self.free_slot == NONE {
                return Some(packet);
            }
        }
        let slot = self.free_slot;
        let place = &mut self.slots[slot as usize];
        self.free_slot = place.next;
        *place = Slot { packet: Some(packet), next: NONE };
        let datagram = &mut self.datagrams[at as usize];
        let last = std::mem::replace(&mut datagram.last_slot, slot);
        if last == NONE {
            datagram.first_slot = slot;
        } else {
            self.slots[last as usize].next = slot;
        }
        self.held += 1;
        self.counters.held += 1;
        None
    }

    /// Takes out what waits in a datagram, in the order in which it came.
    fn empty(&mut self, at: u32, mut take: impl FnMut(H)) {
        let datagram = &mut self.datagrams[at as usize];
        let mut slot = std::mem::replace(&mut datagram.first_slot, NONE);
        datagram.last_slot = NONE;
        while slot != NONE {
            let place = &mut self.slots[slot as usize];
            let packet = place.packet.take();
            let next = std::mem::replace(&mut place.next, self.free_slot);
            self.free_slot = slot;
            slot = next;
            if let Some(packet) = packet {
                self.held -= 1;
                take(packet);
            }
        }
    }

    fn remove_if_complete(&mut self, at: u32) {
        if self.datagrams[at as usize].seen.is_complete() {
            self.counters.completed += 1;
            self.remove(at, |_| {});
        }
    }

    fn time_out(&mut self, at: u32, left: &mut impl FnMut(Left<H>)) {
        self.counters.timed_out += 1;
        self.remove(at, |packet| left(Left::Drop(packet, DropReason::Fragment)));
    }

    fn evict(&mut self, at: u32, left: &mut impl FnMut(Left<H>)) {
        self.counters.evicted += 1;
        self.remove(at, |packet| left(Left::Drop(packet, DropReason::FragmentTable)));
    }

    /// The one that began first, of both families; there is at least one.
    fn oldest(&self) -> u32 {
        let [v4, v6] = [self.by_age[0].head, self.by_age[1].head];
        let began = |at: u32| self.datagrams.get(at as usize).map_or(Moment(u64::MAX), |datagram| datagram.began);
        if v6 == NONE || v4 != NONE && began(v4) <= began(v6) { v4 } else { v6 }
    }

    /// Frees a datagram's place; `take` gets what waits in it.
    fn remove(&mut self, at: u32, take: impl FnMut(H)) {
        self.empty(at, take);
        if self.datagrams[at as usize].state == State::Waiting {
            self.unlink(at, ListId::Waiting);
        }
        self.unlink(at, ListId::Age);
        let next = self.datagrams[at as usize].chain;
        let chain = self.chain_of(&self.datagrams[at as usize].id);
        let mut before = self.chains[chain];
        if before == at {
            self.chains[chain] = next;
        } else {
            while self.datagrams[before as usize].chain != at {
                before = self.datagrams[before as usize].chain;
            }
            self.datagrams[before as usize].chain = next;
        }
        self.datagrams[at as usize] = Datagram { chain: self.free, ..Datagram::FREE };
        self.free = at;
        self.len -= 1;
    }

    #[expect(clippy::cast_possible_truncation, reason = "a hash; the mask keeps what is needed")]
    fn chain_of(&self, id: &Id) -> usize {
        self.hash.hash_one(id) as usize & (self.chains.len() - 1)
    }

    fn list(&mut self, at: u32, list: ListId) -> &mut List {
        match list {
            ListId::Age => &mut self.by_age[usize::from(!self.datagrams[at as usize].id.is_v4())],
            ListId::Waiting => &mut self.waiting,
        }
    }

    /// Puts a datagram at the end of a list.
    fn link(&mut self, at: u32, id: ListId) {
        let list = self.list(at, id);
        let before = std::mem::replace(&mut list.tail, at);
        if before == NONE {
            list.head = at;
        } else {
            self.datagrams[before as usize].links[id as usize].after = at;
        }
        self.datagrams[at as usize].links[id as usize] = Links { before, after: NONE };
    }

    fn unlink(&mut self, at: u32, id: ListId) {
        let Links { before, after } = self.datagrams[at as usize].links[id as usize];
        if before == NONE {
            self.list(at, id).head = after;
        } else {
            self.datagrams[before as usize].links[id as usize].after = after;
        }
        if after == NONE {
            self.list(at, id).tail = before;
        } else {
            self.datagrams[after as usize].links[id as usize].before = before;
        }
    }
}

/// What fragments of one datagram have in common: RFC 791 addresses, protocol, identification; RFC 8200 without protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Id {
    key: Key,
    identification: u32,
}

impl Id {
    fn new(key: &Key, fragment: Fragment) -> Self {
        let key = match *key {
            Key::V4(key) => Key::V4(Key4 { ports: [0; 4], ..key }),
            Key::V6(key) => Key::V6(Key6 { ports: [0; 4], protocol: 0, ..key }),
        };
        Self { key, identification: fragment.id }
    }

    fn is_v4(&self) -> bool {
        matches!(self.key, Key::V4(_))
    }
}

fn with_ports(key: &Key, ports: [u8; 4], protocol: u8) -> Key {
    match *key {
        Key::V4(key) => Key::V4(Key4 { ports, protocol, ..key }),
        Key::V6(key) => Key::V6(Key6 { ports, protocol, ..key }),
    }
}

/// What is known of a datagram's flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing: the first fragment is missing.
    Waiting,
    /// All that is needed.
    Flow { ports: [u8; 4], protocol: u8 },
    /// Fragments contradicted each other: none goes on any more, until the time is over.
    Dead,
}

#[derive(Debug)]
struct Datagram {
    id: Id,
    began: Moment,
    state: State,
    seen: Seen,
    /// The next of its hash chain, or of the free ones.
    chain: u32,
    links: [Links; 2],
    first_slot: u32,
    last_slot: u32,
}

impl Datagram {
    const FREE: Self = Self {
        id: Id {
            key: Key::V4(Key4 { source: [0; 4], destination: [0; 4], ports: [0; 4], protocol: 0 }),
            identification: 0,
        },
        began: Moment(0),
        state: State::Waiting,
        seen: Seen::NOTHING,
        chain: NONE,
        links: [Links { before: NONE, after: NONE }; 2],
        first_slot: NONE,
        last_slot: NONE,
    };

    fn is_over(&self, now: Moment) -> bool {
        now.since(self.began) >= if self.id.is_v4() { TIMEOUT_V4 } else { TIMEOUT_V6 }
    }
}

/// Which bytes of a datagram have been seen.
#[derive(Debug)]
struct Seen {
    /// Offset and end of each fragment.
    spans: [(u16, u16); MAX_FRAGMENTS],
    count: u8,
    /// The datagram's payload in bytes; 0 until the last fragment has been seen.
    total: u16,
    /// The largest end.
    reach: u16,
    /// All fragments' bytes.
    bytes: u16,
}

enum Noted {
    New,
    Duplicate,
    Contradiction,
}

impl Seen {
    const NOTHING: Self = Self { spans: [(0, 0); MAX_FRAGMENTS], count: 0, total: 0, reach: 0, bytes: 0 };

    fn note(&mut self, Fragment { offset, more, len, .. }: Fragment) -> Noted {
        let Some(end) = offset.checked_add(len).filter(|_| len > 0 && !(more && len % 8 != 0)) else {
            return Noted::Contradiction;
        };
        let fits = match (self.total, more) {
            (0, true) => true,
            (0, false) => self.reach < end,
            (total, true) => end < total,
            (total, false) => end == total,
        };
        let spans = &self.spans[..usize::from(self.count)];
        if !fits {
            return Noted::Contradiction;
        }
        if spans.contains(&(offset, end)) {
            return Noted::Duplicate;
        }
        if spans.len() == MAX_FRAGMENTS || spans.iter().any(|span| offset < span.1 && span.0 < end) {
            return Noted::Contradiction;
        }
        self.spans[usize::from(self.count)] = (offset, end);
        self.count += 1;
        self.bytes += len; // they do not overlap, so they are at most 65535
        self.reach = self.reach.max(end);
        if !more {
            self.total = end;
        }
        Noted::New
    }

    fn is_complete(&self) -> bool {
        self.total != 0 && self.bytes == self.total
    }
}

/// A place for a packet that waits.
#[derive(Debug)]
struct Slot<H> {
    packet: Option<H>,
    /// The next of its datagram, or of the free ones.
    next: u32,
}

/// A list through the datagrams, to be linked into at its end and unlinked from anywhere.
#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: Self = Self { head: NONE, tail: NONE };
}

#[derive(Debug, Clone, Copy)]
struct Links {
    before: u32,
    after: u32,
}

#[derive(Debug, Clone, Copy)]
enum ListId {
    Age = 0,
    Waiting = 1,
}

/// No datagram, no slot.
const NONE: u32 = u32::MAX;
/// Datagrams in one hash chain: with a chain for each datagram, one of this length happens once in 10^20.
const MAX_CHAIN: usize = 24;
const TCP_HEADER: u16 = 20;

#[cfg(test)]
mod tests;
