//! Handshakes that wait for room. Addresses take turns, so that no one of them keeps the others out; of those from one address the latest is
//! first: who has waited for long has given up, and serving it would leave no time for those that have not.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Bound;
use std::time::{Duration, Instant};

use quinn_proto::Incoming;

/// Generic for its tests only.
pub(super) struct Waiting<T = Incoming> {
    /// From whoever has shown that it is where it says: they come first.
    proven: BTreeMap<Network, Queue<T>>,
    /// Had its turn last.
    last: Option<Network>,
    /// An address that has not been proven says nothing.
    unproven: Queue<T>,
    count: usize,
}

type Queue<T> = VecDeque<(Instant, T)>;

/// Where something comes from, as far as it is one node's choice: an IPv4 address, or the first half of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Network(IpAddr);

impl Network {
    pub(crate) fn of(address: IpAddr) -> Network {
        Network(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
            address => address,
        })
    }
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Waiting { proven: BTreeMap::new(), last: None, unproven: VecDeque::new(), count: 0 }
    }
}

impl<T> Waiting<T> {
    /// Adds one that has shown where it is. If there are too many another one is given back, to be turned away.
    pub(super) fn push(&mut self, from: Network, incoming: T, now: Instant) -> Option<T> {
        self.proven.entry(from).or_default().push_back((now, incoming));
        self.count += 1;
        if self.count <= WAITING_MAX {
            return None;
        }
        let longest = self.proven.iter().max_by_key(|(_, queue)| queue.len()).map(|(from, _)| *from)?;
        self.take(longest, VecDeque::pop_front)
    }

    /// Adds one that may be anywhere; the caller sees to it that there are few.
    pub(super) fn push_unproven(&mut self, incoming: T, now: Instant) {
        self.unproven.push_back((now, incoming));
    }

    /// The next one, of those whose address may have one now.
    pub(super) fn pop(&mut self, may: impl Fn(Network) -> bool) -> Option<T> {
        let Some(next) = self.next(may) else { return self.unproven.pop_back().map(|(_, incoming)| incoming) };
        self.last = Some(next);
        self.take(next, VecDeque::pop_back)
    }

    /// Would [`Waiting::pop`] have one?
    pub(super) fn has_next(&self, may: impl Fn(Network) -> bool) -> bool {
        !self.unproven.is_empty() || self.next(may).is_some()
    }

    fn next(&self, may: impl Fn(Network) -> bool) -> Option<Network> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut turns = self.proven.range((after, Bound::Unbounded)).chain(&self.proven).map(|(from, _)| *from);
        turns.find(|from| may(*from))
    }

    fn take(&mut self, from: Network, end: impl FnOnce(&mut Queue<T>) -> Option<(Instant, T)>) -> Option<T> {
        let queue = self.proven.get_mut(&from)?;
        let taken = end(queue);
        if queue.is_empty() {
            self.proven.remove(&from);
        }
        self.count -= usize::from(taken.is_some());
        taken.map(|(_, incoming)| incoming)
    }

    pub(super) fn len(&self) -> usize {
        self.count + self.unproven.len()
    }

    pub(super) fn unproven(&self) -> usize {
        self.unproven.len()
    }

    /// Those that have waited for too long.
    pub(super) fn stale(&mut self, now: Instant) -> Vec<T> {
        let stale = |queue: &mut Queue<T>, patience: Duration| {
            let is_stale = |(since, _): &&(Instant, T)| now.saturating_duration_since(*since) > patience;
            queue.drain(..queue.iter().take_while(is_stale).count()).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.proven.values_mut().flat_map(|queue| stale(queue, PATIENCE)).collect();
        self.proven.retain(|_, queue| !queue.is_empty());
        self.count -= all.len();
        all.extend(stale(&mut self.unproven, PATIENCE_UNPROVEN));
        all.into_iter().map(|(_, incoming)| incoming).collect()
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = T> {
        let Waiting { proven, unproven, .. } = std::mem::take(self);
        proven.into_values().chain([unproven]).flatten().map(|(_, incoming)| incoming)
    }
}

/// A farm's hosts may come all at once.
const WAITING_MAX: usize = 16_384;
/// As long as a host waits for its unit.
const PATIENCE: Duration = Duration::from_secs(10);
/// Those with a proof come first: whoever has none is better off with one.
const PATIENCE_UNPROVEN: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::instant;

    fn network(address: &str) -> Network {
        Network::of(address.parse().unwrap())
    }

    #[test]
    fn addresses_take_turns_and_the_latest_is_first() {
        let (mut waiting, now) = (Waiting::default(), instant());
        let (one, other) = (network("192.0.2.1"), network("192.0.2.2"));
        for n in 0..4 {
            assert_eq!(waiting.push(one, n, now), None);
        }
        waiting.push(other, 100, now);
        let mut next = || waiting.pop(|_| true);
        assert_eq!([next(), next(), next()], [Some(3), Some(100), Some(2)]);
        // An address that has as many as it may is passed over.
        waiting.push(other, 101, now);
        assert_eq!(waiting.pop(|from| from != one), Some(101));
        assert_eq!(waiting.pop(|from| from != one), None);
        assert_eq!(waiting.len(), 2);
    }

    #[test]
    fn who_has_many_makes_room_and_the_old_go() {
        let (mut waiting, now) = (Waiting::default(), instant());
        let (one, other) = (network("2001:db8::1"), network("2001:db8:0:1::1"));
        waiting.push(other, usize::MAX, now);
        for n in 0..WAITING_MAX + 10 {
            // Each has another address, and none of its own network.
            let dropped = waiting.push(network(&format!("2001:db8::{n:x}")), n, now);
            assert_eq!(dropped, (n + 1).checked_sub(WAITING_MAX), "{n}");
        }
        assert_eq!((waiting.len(), network("2001:db8::ffff")), (WAITING_MAX, one));
        assert!(waiting.stale(now + PATIENCE).is_empty());
        waiting.push_unproven(0, now);
        assert_eq!(waiting.stale(now + PATIENCE_UNPROVEN * 2).len(), 1);
        assert_eq!(waiting.stale(now + PATIENCE * 2).len(), WAITING_MAX);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("::ffff:192.0.2.1"), network("::ffff:192.0.2.2"));
    }
}
