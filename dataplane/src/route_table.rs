//! The forwarder's route table: exact match on the 4-tuple and protocol, seldom more than one cache line a look-up, one writer.
//!
//! A slice of fixed size on huge pages. A key has two lines (two IPv4 slots or one IPv6 slot each) in which it may be: a look-up
//! never needs a third, and removal moves nothing. It goes to its second one only where the first is full, and where both are, others
//! make room by moving to their other lines (cuckoo hashing with buckets; Pagh and Rodler, 2004). The slice has two slots for each
//! IPv4 route that is allowed, 64 bytes with index and slack, and three for IPv6; so there is no rehash, however it grows.

use arrayvec::ArrayVec;
use weir_cpu::{HugeSlice, MapError};
use weir_identity::EndpointId;
use zerocopy::FromZeros;

use crate::flow::{self, Key, Key4, Key6};
use crate::populate::Populate;

/// What is done with the packets of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Action {
    /// To an endpoint.
    Send {
        /// Which.
        endpoint: EndpointId,
        /// How it gets there.
        mode: Mode,
        /// What this route needs beside its endpoint: see [`Mode`].
        value: u64,
    },
    /// Nowhere: a refused session dies here.
    Drop,
    /// To the classifier, in order: it reads what follows itself.
    Divert,
    /// To the unit's own kernel, which is this endpoint.
    Local {
        /// Which.
        endpoint: EndpointId,
    },
}

/// How a route's packets are delivered, and what its per-route value holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Mode {
    /// New MAC addresses, nothing else; no value.
    Dsr = 0,
    /// Destination rewritten to the endpoint; no value.
    Nat = 1,
    /// The way back of [`Mode::Nat`]: source rewritten to the VIP; the value is a [`VipPort`].
    NatReturn = 2,
    /// Source and destination rewritten; the value is a [`PoolPort`](crate::translation::PoolPort).
    FullNat = 3,
    /// The way back of [`Mode::FullNat`]; the value is a slot of the shard's table of translations.
    FullNatReturn = 4,
    /// In IP, RFC 2003 and RFC 2473; no value.
    Ipip = 5,
    /// In GUE over UDP; the value is the outer source port.
    Gue = 6,
    /// In the tunnel that adds no bytes; the value is the flow id.
    FlowId = 7,
}

impl Mode {
    const ALL: [Mode; 8] = [
        Mode::Dsr,
        Mode::Nat,
        Mode::NatReturn,
        Mode::FullNat,
        Mode::FullNatReturn,
        Mode::Ipip,
        Mode::Gue,
        Mode::FlowId,
    ];
}

/// Where in its life a route is; each state has its idle timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum State {
    /// A SYN was seen, and nothing that continues the handshake.
    Opening = 0,
    /// The client has continued.
    Established = 1,
    /// A FIN or RST was seen from one side. Later packets renew the (shorter) idle time; a SYN is a new connection.
    Closing = 2,
    /// A protocol without connections.
    Datagram = 3,
    /// A drop route.
    Refused = 4,
}

impl State {
    /// How many states there are.
    pub const COUNT: usize = 5;

    const ALL: [State; Self::COUNT] =
        [State::Opening, State::Established, State::Closing, State::Datagram, State::Refused];
}

/// An action with the state of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Route {
    /// What is done.
    pub action: Action,
    /// Where in its life it is.
    pub state: State,
}

/// Idle timeouts in milliseconds, by [`State`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleTimeouts(pub [u32; State::COUNT]);

impl IdleTimeouts {
    /// The timeout of `state`, in milliseconds.
    #[inline]
    #[must_use]
    pub fn of(&self, state: State) -> u32 {
        self.0[state as usize]
    }

    /// The same for packets that change nothing.
    #[must_use]
    pub fn quick(&self) -> QuickLimits {
        let mut limits = [0; QuickLimits::LEN];
        for (state, timeout) in State::ALL.into_iter().zip(self.0).filter(|(state, _)| *state != State::Opening) {
            limits[state as usize] = timeout.saturating_add(1).saturating_add(STEP_BACK);
        }
        QuickLimits(limits)
    }
}

/// By a route's state, the idle time in milliseconds, and [`STEP_BACK`] on top, from which even a packet that changes nothing may not
/// take it; 0 where each packet may change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuickLimits([u32; Self::LEN]);

impl QuickLimits {
    /// A power of two, so that no state needs a check.
    const LEN: usize = State::COUNT.next_power_of_two();
}

/// The per-route value of [`Mode::NatReturn`]: whose address and port the client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VipPort {
    /// Index of the VIP in the farm.
    pub vip: u32,
    /// The service's port, host byte order.
    pub port: u16,
}

impl VipPort {
    /// As a route's value.
    #[must_use]
    pub fn to_value(self) -> u64 {
        u64::from(self.vip) << 16 | u64::from(self.port)
    }

    /// From a route's value.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    pub fn from_value(value: u64) -> Self {
        Self { vip: (value >> 16) as u32, port: value as u16 }
    }
}

/// One place in a table: a key, its route, and when it was last used.
pub trait Slot: FromZeros + Copy + Send {
    /// What it is found by.
    type Key: Copy + Eq;
    /// How many of them fill a cache line.
    const PER_LINE: usize;
    /// Slots for each route that is allowed: what stands alone in its line is found at the first look.
    const SLOTS_PER_ROUTE: usize;

    /// An entry for `key`.
    fn new(key: &Self::Key, route: Route, seen: u32) -> Self;
    /// Whether nothing is here.
    fn is_empty(&self) -> bool;
    /// Whether `key` is here; false for an empty slot.
    fn holds(&self, key: &Self::Key) -> bool;
    /// The key that is here.
    fn key(&self) -> Self::Key;
    /// The entry's fields beside its key.
    fn entry(&self) -> &Entry;
    /// The same, to be changed.
    fn entry_mut(&mut self) -> &mut Entry;
    /// This kind of key, of either family.
    fn widen(key: Self::Key) -> Key;
    /// A key of either family as this kind, if it is one.
    fn narrow(key: &Key) -> Option<Self::Key>;
    /// Which slot of a line, by its number, has `difference` 0.
    fn look(slots: &[Self], line: usize, difference: impl Fn(&Self) -> u64) -> Look;
    /// The table's hash.
    fn hash(hash: &flow::FlowHash, key: &Self::Key) -> u64;
}

/// A slot's fields beside its key.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
pub struct Entry {
    /// The key's protocol, which stands here because there is room.
    protocol: u8,
    /// 0 = empty slot; else the action and, for `Send`, the mode.
    action: u8,
    state: u8,
    /// For the table's owner; a forwarder has none.
    flags: u8,
    endpoint: u32,
    /// Milliseconds of the unit's time, wrapping after 49 days.
    seen: u32,
    /// The per-route value in two halves, so that an IPv4 slot stays at 32 bytes without padding.
    value: [u32; 2],
}

impl Entry {
    #[expect(clippy::cast_possible_truncation, reason = "the value's halves")]
    fn new(route: Route, seen: u32) -> Self {
        let (action, endpoint, value) = match route.action {
            Action::Drop => (DROP, 0, 0),
            Action::Divert => (DIVERT, 0, 0),
            Action::Local { endpoint } => (LOCAL, endpoint.0, 0),
            Action::Send { endpoint, mode, value } => (SEND + mode as u8, endpoint.0, value),
        };
        Self {
            action,
            state: route.state as u8,
            protocol: 0,
            flags: 0,
            endpoint,
            seen,
            value: [value as u32, (value >> 32) as u32],
        }
    }

    /// What is done with the packets.
    #[inline]
    #[must_use]
    pub fn action(&self) -> Action {
        match self.action {
            DIVERT => Action::Divert,
            LOCAL => Action::Local { endpoint: EndpointId(self.endpoint) },
            code if code >= SEND => Action::Send {
                endpoint: EndpointId(self.endpoint),
                mode: Mode::ALL[usize::from(code - SEND) & 7],
                value: u64::from(self.value[1]) << 32 | u64::from(self.value[0]),
            },
            _ => Action::Drop,
        }
    }

    /// Whether the packets are sent to an endpoint in this mode.
    #[inline(always)]
    #[must_use]
    pub fn sends_by(&self, mode: Mode) -> bool {
        self.action == SEND + mode as u8
    }

    /// Whether the packets are sent through a tunnel.
    #[inline(always)]
    #[must_use]
    pub fn tunnels(&self) -> bool {
        self.sends_by(Mode::Ipip) || self.sends_by(Mode::Gue)
    }

    /// The endpoint of a route that sends to one; of no use for any other.
    #[inline(always)]
    #[must_use]
    pub fn endpoint(&self) -> EndpointId {
        EndpointId(self.endpoint)
    }

    /// Where in its life the route is.
    #[inline]
    #[must_use]
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state).min(State::COUNT - 1)]
    }

    /// Action and state.
    #[must_use]
    pub fn route(&self) -> Route {
        Route { action: self.action(), state: self.state() }
    }

    /// Moves the route to another state.
    #[inline]
    pub fn set_state(&mut self, state: State) {
        self.state = state as u8;
    }

    /// Replaces the action, keeping state and last use.
    pub fn set_route(&mut self, route: Route) {
        *self = Self { seen: self.seen, protocol: self.protocol, flags: self.flags, ..Self::new(route, 0) };
    }

    /// Flags for the table's owner.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Sets the owner's flags.
    pub fn set_flags(&mut self, flags: u8) {
        self.flags = flags;
    }

    /// Notes a packet at `now` (milliseconds, wrapping).
    #[inline]
    pub fn touch(&mut self, now: u32) {
        self.seen = now;
    }

    /// Milliseconds since the last packet; 0 if that was at a time that is still to come, by less than [`STEP_BACK`].
    #[inline]
    #[must_use]
    pub fn idle(&self, now: u32) -> u32 {
        self.idle_and_step(now).saturating_sub(STEP_BACK)
    }

    /// The same and [`STEP_BACK`], which a time that steps back does not bring below 0.
    #[inline(always)]
    fn idle_and_step(&self, now: u32) -> u32 {
        now.wrapping_add(STEP_BACK).wrapping_sub(self.seen)
    }

    /// Whether a packet that changes nothing may take the route: it is alive, and its handshake is over.
    #[inline(always)]
    #[must_use]
    pub fn settled(&self, now: u32, limits: &QuickLimits) -> bool {
        self.idle_and_step(now) < limits.0[usize::from(self.state) % QuickLimits::LEN]
    }

    /// Whether the route has outlived its idle timeout: then it is no route any more, swept or not.
    #[inline]
    #[must_use]
    pub fn expired(&self, now: u32, timeouts: &IdleTimeouts) -> bool {
        self.idle(now) > timeouts.0[usize::from(self.state).min(State::COUNT - 1)]
    }
}

/// A table's entries, of which many are looked for at once.
pub struct Entries<'a, S>(&'a mut [S]);

impl<S: Slot> Entries<'_, S> {
    /// The entry at a place that [`RouteTable::look`] told.
    #[inline(always)]
    pub fn at(&mut self, index: usize) -> Option<&mut Entry> {
        self.0.get_mut(index).map(S::entry_mut)
    }
}

/// A slot for an IPv4 key: half a cache line.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C, align(32))]
pub struct Slot4 {
    addresses: u64,
    ports: u32,
    entry: Entry,
}

impl Slot4 {
    /// The bits by which the key of these words ([`Key4::addresses`], [`Key4::rest`]) differs from the one here; an empty slot
    /// differs from any packet's, which has a protocol.
    #[inline(always)]
    #[must_use]
    pub fn difference(&self, addresses: u64, rest: u64) -> u64 {
        // Read as one word with what stands beside the protocol.
        let Entry { protocol, action, state, flags, .. } = self.entry;
        let here = u64::from(self.ports) | u64::from(u32::from_le_bytes([protocol, action, state, flags])) << 32;
        (self.addresses ^ addresses) | ((here ^ rest) & 0xff_ffff_ffff)
    }
}

impl Slot for Slot4 {
    type Key = Key4;
    const PER_LINE: usize = 2;
    const SLOTS_PER_ROUTE: usize = 2;

    fn new(key: &Key4, route: Route, seen: u32) -> Self {
        let mut entry = Entry::new(route, seen);
        entry.protocol = key.protocol;
        Self { addresses: key.addresses(), ports: u32::from_le_bytes(key.ports), entry }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.entry.action == EMPTY
    }

    #[inline]
    fn holds(&self, key: &Key4) -> bool {
        self.difference(key.addresses(), key.rest()) == 0 && !self.is_empty()
    }

    fn key(&self) -> Key4 {
        Key4::from_words(self.addresses, u64::from(self.ports) | u64::from(self.entry.protocol) << 32)
    }

    #[inline]
    fn entry(&self) -> &Entry {
        &self.entry
    }

    #[inline]
    fn entry_mut(&mut self) -> &mut Entry {
        &mut self.entry
    }

    fn widen(key: Key4) -> Key {
        Key::V4(key)
    }

    fn narrow(key: &Key) -> Option<Key4> {
        match key {
            Key::V4(key) => Some(*key),
            Key::V6(_) => None,
        }
    }

    #[inline(always)]
    fn look(slots: &[Self], line: usize, difference: impl Fn(&Self) -> u64) -> Look {
        let Some([first, second]) = slots.as_chunks::<2>().0.get(line) else {
            return Look { found: false, index: 0 };
        };
        let (first, second) = (difference(first) == 0, difference(second) == 0);
        Look { found: first | second, index: 2 * line + usize::from(second) }
    }

    #[inline]
    fn hash(hash: &flow::FlowHash, key: &Key4) -> u64 {
        hash.route4(key)
    }
}

/// A slot for an IPv6 key: a cache line.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C, align(64))]
pub struct Slot6 {
    source: [u8; 16],
    destination: [u8; 16],
    ports: u32,
    entry: Entry,
    pad: [u32; 2],
}

impl Slot6 {
    /// The bits by which `key` differs from the one here, as for [`Slot4::difference`].
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    pub fn difference(&self, key: &Key6) -> u64 {
        let addresses = (u128::from_ne_bytes(self.source) ^ u128::from_ne_bytes(key.source))
            | (u128::from_ne_bytes(self.destination) ^ u128::from_ne_bytes(key.destination));
        let rest = (self.ports ^ u32::from_ne_bytes(key.ports)) | u32::from(self.entry.protocol ^ key.protocol);
        addresses as u64 | (addresses >> 64) as u64 | u64::from(rest)
    }
}

impl Slot for Slot6 {
    type Key = Key6;
    const PER_LINE: usize = 1;
    const SLOTS_PER_ROUTE: usize = 3;

    fn new(key: &Key6, route: Route, seen: u32) -> Self {
        let mut entry = Entry::new(route, seen);
        entry.protocol = key.protocol;
        Self {
            source: key.source,
            destination: key.destination,
            ports: u32::from_ne_bytes(key.ports),
            entry,
            pad: [0; 2],
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.entry.action == EMPTY
    }

    #[inline]
    fn holds(&self, key: &Key6) -> bool {
        self.difference(key) == 0 && !self.is_empty()
    }

    fn key(&self) -> Key6 {
        Key6 {
            source: self.source,
            destination: self.destination,
            ports: self.ports.to_ne_bytes(),
            protocol: self.entry.protocol,
        }
    }

    #[inline]
    fn entry(&self) -> &Entry {
        &self.entry
    }

    #[inline]
    fn entry_mut(&mut self) -> &mut Entry {
        &mut self.entry
    }

    fn widen(key: Key6) -> Key {
        Key::V6(key)
    }

    fn narrow(key: &Key) -> Option<Key6> {
        match key {
            Key::V6(key) => Some(*key),
            Key::V4(_) => None,
        }
    }

    #[inline(always)]
    fn look(slots: &[Self], line: usize, difference: impl Fn(&Self) -> u64) -> Look {
        Look { found: slots.get(line).is_some_and(|slot| difference(slot) == 0), index: line }
    }

    #[inline]
    fn hash(hash: &flow::FlowHash, key: &Key6) -> u64 {
        hash.route6(key)
    }
}

/// An exact-match table of one address family.
#[derive(Debug)]
pub struct RouteTable<S: Slot> {
    slots: HugeSlice<S>,
    lines: usize,
    hash: flow::FlowHash,
    capacity: usize,
    len: usize,
    changes: u64,
    /// Where the next sweep goes on.
    cursor: usize,
}

impl<S: Slot> RouteTable<S> {
    /// A table for up to `capacity` routes; its memory is taken as it is used.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough address space.
    pub fn new(capacity: usize, hash: flow::FlowHash) -> Result<Self, MapError> {
        let capacity = capacity.max(1);
        let lines = (capacity * S::SLOTS_PER_ROUTE).div_ceil(S::PER_LINE).max(2);
        Ok(Self {
            slots: HugeSlice::zeroed(lines * S::PER_LINE)?,
            lines,
            hash,
            capacity,
            len: 0,
            changes: 0,
            cursor: 0,
        })
    }

    /// Takes the table's memory now; to be called before the first route.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough.
    pub fn populate(&mut self, populate: &Populate) -> Result<(), MapError> {
        debug_assert!(self.is_empty());
        populate.slice(&mut self.slots)
    }

    /// Routes in the table, expired ones that are not swept yet included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it holds as many as it may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len >= self.capacity
    }

    /// As many routes as it may hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Address space taken, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slots.mapped_bytes()
    }

    /// Where `key` is.
    #[inline]
    #[must_use]
    pub fn find(&self, key: &S::Key) -> Option<usize> {
        let [first, second] = self.lines_of(S::hash(&self.hash, key));
        self.find_in(first, key).or_else(|| self.find_in(second, key))
    }

    /// Asks the processor for both lines of a key.
    #[inline]
    pub fn prefetch(&self, key: &S::Key) {
        let lines = self.lines_of(S::hash(&self.hash, key));
        lines.into_iter().for_each(|line| weir_cpu::prefetch_write_at(&self.slots, line));
    }

    /// The number of a hash's first line.
    #[inline(always)]
    #[must_use]
    pub fn first_line(&self, hash: u64) -> usize {
        flow::place(hash, self.lines)
    }

    /// Asks the processor for a line, by its number; a number that there is not does no harm.
    #[inline(always)]
    pub fn prefetch_line(&self, line: usize) {
        weir_cpu::prefetch_write_at(&self.slots, line.wrapping_mul(S::PER_LINE));
    }

    /// Asks the processor for the second line of a hash and returns its number.
    #[inline(always)]
    #[must_use]
    pub fn prefetch_second(&self, hash: u64) -> usize {
        let [_, second] = self.lines_of(hash);
        weir_cpu::prefetch_write_at(&self.slots, second);
        second / S::PER_LINE
    }

    /// Looks at a line, by its number, for the slot whose `difference` from the key is 0. Without a branch: which slot of its line a
    /// random flow has, and whether it has one, cannot be predicted.
    #[inline(always)]
    pub fn look(&self, line: usize, difference: impl Fn(&S) -> u64) -> Look {
        S::look(&self.slots, line, difference)
    }

    /// All entries, by the places that [`Self::look`] tells.
    #[inline(always)]
    pub fn entries_mut(&mut self) -> Entries<'_, S> {
        Entries(&mut self.slots)
    }

    /// The entry at a place that [`Self::find`] returned.
    #[inline]
    #[must_use]
    pub fn entry(&self, index: usize) -> &Entry {
        self.slots[index].entry()
    }

    /// The same, to be changed.
    #[inline]
    #[must_use]
    pub fn entry_mut(&mut self, index: usize) -> &mut Entry {
        self.slots[index].entry_mut()
    }

    /// The key at a place that [`Self::find`] returned.
    #[must_use]
    pub fn key(&self, index: usize) -> S::Key {
        self.slots[index].key()
    }

    /// Adds a route for `key`, which must not be in the table.
    ///
    /// # Errors
    ///
    /// [`Full`]; nothing changed.
    pub fn insert(&mut self, key: &S::Key, route: Route, now: u32) -> Result<usize, Full> {
        debug_assert!(self.find(key).is_none());
        if self.is_full() {
            return Err(Full);
        }
        let [first, second] = self.lines_of(S::hash(&self.hash, key));
        let free = self.free_in(first).or_else(|| self.free_in(second));
        let index = free.or_else(|| self.make_room([first, second])).ok_or(Full)?;
        self.slots[index] = S::new(key, route, now);
        self.changes += 1;
        self.len += 1;
        Ok(index)
    }

    /// Takes the route at `index` out; no other moves.
    pub fn remove(&mut self, index: usize) {
        self.slots[index] = S::new_zeroed();
        self.len -= 1;
    }

    /// Frees a slot in one of two full lines by moving routes to their other lines, and returns it; `None`, with nothing moved, if
    /// there is no way within [`SEARCHED`] slots.
    #[cold]
    fn make_room(&mut self, lines: [usize; 2]) -> Option<usize> {
        // Slots that could be freed, nearest first, each with the one whose route would move there.
        let mut queue: ArrayVec<(usize, Option<usize>), SEARCHED> = ArrayVec::new();
        queue.extend(lines.into_iter().flat_map(|line| line..line + S::PER_LINE).map(|slot| (slot, None)));
        let mut next = 0;
        while let Some(&(slot, _)) = queue.get(next) {
            let [first, second] = self.lines_of(S::hash(&self.hash, &self.slots[slot].key()));
            let other = if slot - slot % S::PER_LINE == first { second } else { first };
            if let Some(free) = self.free_in(other) {
                return Some(self.shift(&queue, next, free));
            }
            for slot in other..other + S::PER_LINE {
                if !queue.is_full() && queue.iter().all(|(known, _)| *known != slot) {
                    queue.push((slot, Some(next)));
                }
            }
            next += 1;
        }
        None
    }

    /// Moves the route of the slot at `queue[last]` to `free`, the one before it to that slot and so on; returns what gets free.
    fn shift(&mut self, queue: &[(usize, Option<usize>)], last: usize, mut free: usize) -> usize {
        let mut at = Some(last);
        while let Some((slot, before)) = at.map(|at| queue[at]) {
            self.slots[free] = self.slots[slot];
            self.changes += 1;
            (free, at) = (slot, before);
        }
        free
    }

    /// Looks at the next `count` slots and removes each route for which `gone` says so.
    pub fn sweep(&mut self, count: usize, mut gone: impl FnMut(&S::Key, &Entry) -> bool) {
        for _ in 0..count.min(self.slots.len()) {
            let slot = &self.slots[self.cursor];
            if !slot.is_empty() && gone(&slot.key(), slot.entry()) {
                self.remove(self.cursor);
            }
            self.cursor = self.next(self.cursor);
        }
    }

    /// Among the next `count` slots, the route that is worth least: drop routes and half-open ones first, then the longest idle.
    #[must_use]
    pub fn least_worth(&mut self, count: usize, now: u32) -> Option<(usize, S::Key)> {
        let (from, all) = (self.cursor, self.slots.len());
        let count = count.min(all);
        self.cursor = (from + count) % all;
        self.least_of((from..from + count).map(|slot| if slot < all { slot } else { slot - all }), now)
    }

    /// The same among the routes in both lines of `key`.
    #[must_use]
    pub fn least_in_the_way(&self, key: &S::Key, now: u32) -> Option<S::Key> {
        let lines = self.lines_of(S::hash(&self.hash, key));
        let slots = lines.into_iter().flat_map(|line| line..line + S::PER_LINE);
        self.least_of(slots, now).map(|(_, key)| key)
    }

    fn least_of(&self, slots: impl IntoIterator<Item = usize>, now: u32) -> Option<(usize, S::Key)> {
        let used = slots.into_iter().filter(|index| !self.slots[*index].is_empty());
        let least = used.max_by_key(|index| {
            let entry = self.slots[*index].entry();
            (matches!(entry.state(), State::Opening | State::Refused), entry.idle(now))
        })?;
        Some((least, self.slots[least].key()))
    }

    /// Every route, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (S::Key, &Entry)> {
        self.slots.iter().filter(|slot| !slot.is_empty()).map(|slot| (slot.key(), slot.entry()))
    }

    /// The routes in `count` slots from slot `from` on, each with its slot. One that moves from slot to slot between two such looks may be seen
    /// twice or not at all.
    pub fn iter_slots(&self, from: usize, count: usize) -> impl Iterator<Item = (usize, S::Key, &Entry)> {
        let range = from.min(self.slots.len())..from.saturating_add(count).min(self.slots.len());
        let slots = range.clone().zip(&self.slots[range]);
        slots.filter(|(_, slot)| !slot.is_empty()).map(|(index, slot)| (index, slot.key(), slot.entry()))
    }

    /// How often a slot has got another route so far, by insertion or by a move to make room: where one was found there may be
    /// another one since then.
    #[inline]
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many slots a sweep has to look at for a whole round.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Where the two lines of a hash begin, which are never the same one.
    #[inline(always)]
    fn lines_of(&self, hash: u64) -> [usize; 2] {
        let (first, second) = (flow::place(hash, self.lines), flow::place(hash.rotate_left(32), self.lines));
        let second = if second != first { second } else { (first + 1) % self.lines };
        [first * S::PER_LINE, second * S::PER_LINE]
    }

    #[inline(always)]
    fn find_in(&self, line: usize, key: &S::Key) -> Option<usize> {
        (line..line + S::PER_LINE).find(|index| self.slots[*index].holds(key))
    }

    fn free_in(&self, line: usize) -> Option<usize> {
        (line..line + S::PER_LINE).find(|index| self.slots[*index].is_empty())
    }

    #[inline]
    fn next(&self, index: usize) -> usize {
        if index + 1 == self.slots.len() { 0 } else { index + 1 }
    }
}

/// What one line has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The key is there.
    pub found: bool,
    /// Its place if it was found.
    pub index: usize,
}

/// The table holds all it may, or (which takes a rare accident of hashes) both lines of a key are full and so are all lines around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the route table is full")]
pub struct Full;

/// By how many milliseconds the time may step back: each core reads its own counter, and a shard that moves comes from another one.
/// Without it a step of one would be an idle time of 49 days.
const STEP_BACK: u32 = 60_000;
/// Slots that are searched for one to be freed: a bound for the work, not for what the table can hold.
const SEARCHED: usize = 64;
const EMPTY: u8 = 0;
const DROP: u8 = 1;
const DIVERT: u8 = 2;
const LOCAL: u8 = 3;
/// `SEND + mode`.
const SEND: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use hashbrown::HashMap;
    use proptest::prelude::*;

    #[test]
    fn slots_fill_lines() {
        assert_eq!(size_of::<Slot4>(), 32);
        assert_eq!(size_of::<Slot6>(), 64);
        let table = RouteTable::<Slot4>::new(1 << 20, flow::FlowHash::new(1)).unwrap();
        assert!(table.bytes() / table.capacity() <= 64);
    }

    #[test]
    fn what_is_written_is_read() {
        for mode in Mode::ALL {
            for state in State::ALL {
                let action = Action::Send { endpoint: EndpointId(7), mode, value: 0x1234_5678_9abc_def0 };
                let local = Action::Local { endpoint: EndpointId(9) };
                for action in [action, Action::Drop, Action::Divert, local] {
                    let route = Route { action, state };
                    assert_eq!(Entry::new(route, 9).route(), route);
                }
            }
        }
        let vip = VipPort { vip: u32::MAX, port: 443 };
        assert_eq!(VipPort::from_value(vip.to_value()), vip);
    }

    #[test]
    fn a_populated_table_is_told_in_full() {
        let told = std::sync::atomic::AtomicUsize::new(0);
        let done = |bytes| {
            told.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        };
        for huge in [false, true] {
            let mut table = RouteTable::<Slot4>::new(1 << 16, flow::FlowHash::new(1)).unwrap();
            table.populate(&Populate::new(huge, &done)).unwrap();
            assert_eq!(told.swap(0, std::sync::atomic::Ordering::Relaxed), table.bytes());
            table.insert(&key4(1), route(0), 0).unwrap();
        }
    }

    #[test]
    fn time_that_steps_back_makes_no_route_old() {
        let timeouts = IdleTimeouts([10, 3_600_000, 20, 30, u32::MAX]);
        for seen in [0, 5, 1_000_000, u32::MAX] {
            for state in State::ALL {
                let entry = Entry::new(Route { state, ..route(0) }, seen);
                for (step, idle) in [(0, 0), (-1i32, 0), (-1000, 0), (1, 1), (10, 10), (11, 11)] {
                    let now = seen.wrapping_add_signed(step);
                    assert_eq!(entry.idle(now), idle, "{state:?} {seen} {step}");
                    let expired = idle > timeouts.of(state);
                    assert_eq!(entry.expired(now, &timeouts), expired, "{state:?} {seen} {step}");
                    let settled = state != State::Opening && !expired;
                    assert_eq!(entry.settled(now, &timeouts.quick()), settled, "{state:?} {seen} {step}");
                }
                let old = seen.wrapping_add(3_600_001);
                assert_eq!(entry.expired(old, &timeouts), state != State::Refused);
                assert_eq!(entry.settled(old, &timeouts.quick()), state == State::Refused);
            }
        }
    }

    #[test]
    fn a_full_table_refuses_and_names_the_longest_idle() {
        let mut table = RouteTable::<Slot4>::new(4, flow::FlowHash::new(1)).unwrap();
        for n in 0..4 {
            table.insert(&key4(n), route(0), 100 - u32::from(n)).unwrap();
        }
        assert_eq!(table.insert(&key4(9), route(0), 0), Err(Full));
        let (index, key) = table.least_worth(8, 100).unwrap();
        assert_eq!(key, key4(3));
        table.remove(index);
        table.insert(&key4(9), route(0), 0).unwrap();
    }

    #[test]
    fn every_route_that_is_allowed_finds_its_place() {
        fn fill<S: Slot>(key: impl Fn(u32) -> S::Key) {
            let mut table = RouteTable::<S>::new(100_000, flow::FlowHash::new(7)).unwrap();
            for n in 0..100_000 {
                table.insert(&key(n), route(u64::from(n)), 0).unwrap();
            }
            assert!(table.changes() > 100_000, "no route has made room");
            for n in 0..100_000 {
                let index = table.find(&key(n)).unwrap();
                assert_eq!(table.entry(index).route(), route(u64::from(n)));
            }
        }
        fill::<Slot4>(|n| Key4 { source: n.to_be_bytes(), ..key4(1) });
        fill::<Slot6>(|n| {
            let [a, b, c, d] = n.to_be_bytes();
            Key6 { ports: [a, b, c, d], ..key6(1) }
        });
    }

    fn key4(n: u8) -> Key4 {
        Key4 { source: [10, 0, 0, n], destination: [10, 0, 1, 1], ports: [0, n, 0, 80], protocol: 6 }
    }

    fn key6(n: u8) -> Key6 {
        Key6 { source: [n; 16], destination: [1; 16], ports: [0, n, 0, 80], protocol: 17 }
    }

    fn route(value: u64) -> Route {
        Route { action: Action::Send { endpoint: EndpointId(1), mode: Mode::Nat, value }, state: State::Opening }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, u64),
        Remove(u8),
        Touch(u8, u32),
        Sweep(usize, u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (any::<u8>(), any::<u64>()).prop_map(|(n, value)| Step::Insert(n, value)),
            2 => any::<u8>().prop_map(Step::Remove),
            1 => (any::<u8>(), 0u32..100).prop_map(|(n, seen)| Step::Touch(n, seen)),
            1 => (0usize..40, 0u32..100).prop_map(|(count, before)| Step::Sweep(count, before)),
        ];
        prop::collection::vec(step, 0..400)
    }

    /// Runs `steps` on a table and on a hashbrown map, and compares all of both after each.
    fn against_model<S: Slot>(steps: &[Step], seed: u64, make: fn(u8) -> S::Key) -> Result<(), TestCaseError>
    where
        S::Key: std::hash::Hash + std::fmt::Debug,
    {
        let mut table = RouteTable::<S>::new(24, flow::FlowHash::new(seed)).unwrap();
        let mut model: HashMap<S::Key, (Route, u32)> = HashMap::new();
        for step in steps {
            match *step {
                Step::Insert(n, value) => {
                    let key = make(n);
                    if let Some(index) = table.find(&key) {
                        table.entry_mut(index).set_route(route(value));
                        model.get_mut(&key).unwrap().0 = route(value);
                    } else if table.insert(&key, route(value), 0).is_ok() {
                        model.insert(key, (route(value), 0));
                    } else {
                        // So small a table has accidents of hashes: then both lines are full.
                        let lines = table.lines_of(S::hash(&table.hash, &key));
                        prop_assert!(model.len() == 24 || lines.into_iter().all(|line| table.free_in(line).is_none()));
                    }
                }
                Step::Remove(n) => {
                    let found = table.find(&make(n));
                    prop_assert_eq!(found.is_some(), model.remove(&make(n)).is_some());
                    found.into_iter().for_each(|index| table.remove(index));
                }
                Step::Touch(n, seen) => {
                    if let Some(index) = table.find(&make(n)) {
                        table.entry_mut(index).touch(seen);
                        model.get_mut(&make(n)).unwrap().1 = seen;
                    }
                }
                Step::Sweep(count, before) => table.sweep(count, |key, entry| {
                    let gone = entry.seen < before;
                    if gone {
                        assert!(model.remove(key).is_some(), "swept what was not there");
                    }
                    gone
                }),
            }
            prop_assert_eq!(table.len(), model.len());
            let all: HashMap<_, _> = table.iter().map(|(key, entry)| (key, (entry.route(), entry.seen))).collect();
            prop_assert_eq!(&all, &model);
            for key in model.keys() {
                prop_assert!(table.find(key).is_some());
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn ipv4_behaves_like_a_map(steps in steps(), seed: u64) {
            against_model::<Slot4>(&steps, seed, key4)?;
        }

        #[test]
        fn ipv6_behaves_like_a_map(steps in steps(), seed: u64) {
            against_model::<Slot6>(&steps, seed, key6)?;
        }
    }
}
