//! A shard's work on fragments: each goes to the shard that has its datagram, and on from there as a packet of its flow.

use arrayvec::ArrayVec;
use weir_identity::Moment;

use super::{Held, Shard};
use crate::classifier::millis;
use crate::counters::Drops;
use crate::forwarder::{Fate, Forwarder};
use crate::fragments::{FragmentTable, Later, Left, Limits, MAX_FRAGMENTS};
use crate::packet::Queue;
use crate::parse::Class;

impl<Q: Queue> Shard<Q> {
    /// Takes a fragment to a VIP or from an endpoint on its way.
    pub(super) fn fragment(&mut self, held: Held<Q::Packet>, now: Moment) {
        let key = held.parsed.key;
        let from_client = self.farm.vip_of(&key).is_some();
        let owner = self.forwarder.owners().of_fragments(&key, from_client);
        if owner != self.number {
            let Held { packet, parsed, port, .. } = held;
            return self.settle(packet, parsed, port, Fate::HandOver(owner), now);
        }
        let fragment = held.parsed.fragment;
        if fragment.offset == 0 {
            let mut followers: ArrayVec<Held<Q::Packet>, MAX_FRAGMENTS> = ArrayVec::new();
            let drops = &mut self.forwarder.drops;
            let known = self.fragments.first(&key, fragment, now, |left| match left {
                Left::Released(held) => followers.push(held),
                left => count_left(left, drops),
            });
            self.show_fragments();
            if let Err(reason) = known {
                return self.forwarder.drops.count(reason);
            }
            self.follow(held, key, now);
            for follower in followers {
                self.follow(follower, key, now);
            }
        } else {
            let drops = &mut self.forwarder.drops;
            let later = self.fragments.later(&key, fragment, now, held, |left| count_left(left, drops));
            self.show_fragments();
            match later {
                Later::Flow(key, held) => self.follow(held, key, now),
                Later::Held => {}
                Later::Drop(_, reason) => self.forwarder.drops.count(reason),
            }
        }
    }

    /// Ends the waits that lasted too long, a few at a time.
    pub(super) fn expire_fragments(&mut self, now: Moment) {
        if self.fragments.is_empty() {
            return;
        }
        let drops = &mut self.forwarder.drops;
        if self.fragments.expire(now, EXPIRED_AT_ONCE, |left| count_left(left, drops)) > 0 {
            self.show_fragments();
        }
    }

    /// Forwards a fragment as what it is, a packet of the flow `key`, whose owner may be another shard.
    fn follow(&mut self, held: Held<Q::Packet>, key: crate::flow::Key, now: Moment) {
        let Held { mut packet, mut parsed, port, .. } = held;
        (parsed.class, parsed.key) = (Class::Flow, key);
        self.forwarder.counters.fragments += 1;
        let fate = self.forwarder.forward_one(&mut packet, &parsed, &self.farm, millis(now));
        self.tell_notices();
        self.settle(packet, parsed, port, fate, now);
    }

    fn show_fragments(&mut self) {
        let (seen, shown) = (self.fragments.counters(), &mut self.forwarder.counters);
        shown.fragments_held = seen.held;
        shown.datagrams_completed = seen.completed;
        shown.datagrams_killed = seen.killed;
        shown.datagrams_evicted = seen.evicted;
        shown.datagrams_timed_out = seen.timed_out;
    }
}

/// A shard's fragment table. Its hash is keyed by the unit's, which no client can guess.
pub(super) fn table<P>(forwarder: &Forwarder, limits: Limits) -> FragmentTable<Held<P>> {
    FragmentTable::new(forwarder.hash().client6(SEED_OF, [0; 2]), limits)
}

/// A packet leaves the table without its flow: dropped, and counted.
fn count_left<P>(left: Left<Held<P>>, drops: &mut Drops) {
    if let Left::Drop(_, reason) = left {
        drops.count(reason);
    }
}

/// Datagrams that a turn forgets at the most.
const EXPIRED_AT_ONCE: usize = 16;
/// No client's address.
const SEED_OF: [u8; 16] = *b"\xffweir fragments\xff";
