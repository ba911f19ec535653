//! The part of the session table that a unit keeps itself: answers at once, remembers the dead for a while, and is bounded.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Poll;
use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map;
use weir_identity::{Moment, Ticket};

use crate::atom::{Atom, Author, Binding};
use crate::key::SessionKey;
use crate::lookup::{Entry, Full, SessionLookup};

/// The bounds of a [`LocalSessions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most sessions, zombies included.
    pub capacity: usize,
    /// How long a deleted session is remembered as such.
    pub dead_time: Duration,
}

/// A session table in memory; each call sweeps a few entries whose time is over, so that no call pays for many.
#[derive(Debug)]
pub struct LocalSessions {
    author: Author,
    limits: Limits,
    held: HashMap<SessionKey, Held>,
    /// One notice that counts for each held session that ends; one that no longer counts is dropped when it comes up.
    ends: BinaryHeap<Reverse<(Moment, SessionKey)>>,
}

#[derive(Debug)]
struct Held {
    atom: Atom,
    /// Or [`NEVER`].
    ends: Moment,
    /// The notice in the heap that counts: at or before `ends`.
    notice: Option<Moment>,
}

impl LocalSessions {
    /// An empty table whose writings are stamped by `author`.
    #[must_use]
    pub fn new(author: Author, limits: Limits) -> Self {
        LocalSessions { author, limits, held: HashMap::new(), ends: BinaryHeap::new() }
    }

    /// How many sessions are held, zombies included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Is nothing held?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The atom of a session, zombie or not, as another unit would be told.
    #[must_use]
    pub fn atom(&self, key: &SessionKey, now: Moment) -> Option<&Atom> {
        self.held.get(key).filter(|held| held.ends > now).map(|held| &held.atom)
    }

    /// All atoms that are held, in no order.
    pub fn atoms(&self, now: Moment) -> impl Iterator<Item = &Atom> {
        self.held.values().filter(move |held| held.ends > now).map(|held| &held.atom)
    }

    /// Takes an atom that was written elsewhere; says whether it was news.
    ///
    /// # Errors
    /// [`Full`] if it is a new one and there is no room.
    pub fn merge(&mut self, atom: &Atom, life: Duration, now: Moment) -> Result<bool, Full> {
        self.sweep(now, SWEEP_PER_CALL);
        let life = if atom.value.is_some() { life } else { self.limits.dead_time };
        if let Some(held) = self.held.get_mut(&atom.key).filter(|held| held.ends > now) {
            let news = held.atom.merge(atom);
            if news {
                self.set_end(&atom.key, now.after(life));
            }
            return Ok(news);
        }
        self.put(atom.clone(), now.after(life), now)?;
        Ok(true)
    }

    /// Drops at most `budget` sessions whose time is over; how many it dropped.
    pub fn sweep(&mut self, now: Moment, budget: usize) -> usize {
        let mut dropped = 0;
        for _ in 0..budget {
            if self.ends.peek().is_none_or(|first| first.0.0 > now) {
                break;
            }
            let Some(Reverse((due, key))) = self.ends.pop() else { break };
            let hash_map::Entry::Occupied(mut entry) = self.held.entry(key) else { continue };
            let held = entry.get_mut();
            if held.notice != Some(due) {
                continue; // an earlier end was set since, and has its own notice
            }
            if held.ends > now {
                // Renewed since: a new notice for its new end.
                held.notice = (held.ends < NEVER).then_some(held.ends);
                if let Some(notice) = held.notice {
                    self.ends.push(Reverse((notice, entry.key().clone())));
                }
            } else {
                entry.remove();
                dropped += 1;
            }
        }
        dropped
    }

    fn put(&mut self, atom: Atom, ends: Moment, now: Moment) -> Result<(), Full> {
        let key = atom.key.clone();
        if let Some(held) = self.held.get_mut(&key) {
            held.atom = atom;
        } else {
            if self.held.len() >= self.limits.capacity && self.sweep(now, SWEEP_WHEN_FULL) == 0 {
                return Err(Full { capacity: self.limits.capacity });
            }
            self.held.insert(key.clone(), Held { atom, ends, notice: None });
        }
        self.set_end(&key, ends);
        Ok(())
    }

    /// Sets when a held session ends; a notice before that stays, and is renewed when it comes up.
    fn set_end(&mut self, key: &SessionKey, ends: Moment) {
        let Some(held) = self.held.get_mut(key) else { return };
        held.ends = ends;
        if ends < NEVER && held.notice.is_none_or(|notice| ends < notice) {
            held.notice = Some(ends);
            self.ends.push(Reverse((ends, key.clone())));
        }
    }
}

impl SessionLookup for LocalSessions {
    fn query(&mut self, _ticket: Ticket, key: &SessionKey, now: Moment) -> Poll<Option<Binding>> {
        self.sweep(now, SWEEP_PER_CALL);
        Poll::Ready(self.atom(key, now).and_then(|atom| atom.value))
    }

    fn poll_answer(&mut self, _now: Moment) -> Option<(Ticket, Option<Binding>)> {
        None
    }

    fn add(&mut self, entry: Entry, now: Moment) -> Result<(), Full> {
        self.sweep(now, SWEEP_PER_CALL);
        let Entry { key, binding, incarnation, life } = entry;
        let ends = now.after(life);
        let known = self.held.get(&key).filter(|held| held.ends > now).map(|held| &held.atom);
        let version = match known {
            // Only a renewal: nothing that other units would have to hear.
            Some(atom) if atom.value == Some(binding) && atom.version.incarnation >= incarnation => {
                self.set_end(&key, ends);
                return Ok(());
            }
            Some(atom) => self.author.after(atom.version, incarnation),
            None => self.author.first(incarnation),
        };
        self.put(Atom { key, value: Some(binding), version }, ends, now)
    }

    fn delete(&mut self, key: &SessionKey, now: Moment) {
        self.sweep(now, SWEEP_PER_CALL);
        let ends = now.after(self.limits.dead_time);
        let Some(held) = self.held.get_mut(key).filter(|held| held.ends > now && held.atom.value.is_some()) else {
            return;
        };
        held.atom.version = self.author.after(held.atom.version, held.atom.version.incarnation);
        held.atom.value = None;
        self.set_end(key, ends);
    }
}

/// Two for each call that may add one: the dead never pile up.
const SWEEP_PER_CALL: usize = 2;

/// A full table looks harder for the dead before it refuses.
const SWEEP_WHEN_FULL: usize = 64;

/// The end of sessions that last until they are deleted.
const NEVER: Moment = Moment(u64::MAX);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;
    use crate::atom::tests::{author, binding, key};

    const LIMITS: Limits = Limits { capacity: 100, dead_time: Duration::from_millis(10) };
    const TICKET: Ticket = Ticket(0);

    fn entry(n: u8, host: u32, incarnation: u64, life: u64) -> Entry {
        Entry { key: key(n), binding: binding(host), incarnation, life: Duration::from_millis(life) }
    }

    #[test]
    fn remembers_renews_and_forgets() {
        let mut table = LocalSessions::new(author(1), LIMITS);
        table.add(entry(1, 5, 1, 100), Moment(0)).unwrap();
        assert_eq!(table.query(TICKET, &key(1), Moment(99)), Poll::Ready(Some(binding(5))));
        assert_eq!(table.query(TICKET, &key(2), Moment(99)), Poll::Ready(None));
        let version = table.atom(&key(1), Moment(99)).unwrap().version;
        table.add(entry(1, 5, 1, 100), Moment(99)).unwrap();
        assert_eq!(table.atom(&key(1), Moment(150)).unwrap().version, version, "a renewal is no new version");
        assert_eq!(table.query(TICKET, &key(1), Moment(198)), Poll::Ready(Some(binding(5))));
        assert_eq!(table.query(TICKET, &key(1), Moment(199)), Poll::Ready(None));
        assert!(table.is_empty());
    }

    #[test]
    fn a_zombie_keeps_old_news_away_and_a_new_life_wakes_it() {
        let mut table = LocalSessions::new(author(1), LIMITS);
        table.add(entry(1, 5, 1, 1_000), Moment(0)).unwrap();
        let old = table.atom(&key(1), Moment(0)).unwrap().clone();
        table.delete(&key(1), Moment(1));
        assert_eq!(table.query(TICKET, &key(1), Moment(2)), Poll::Ready(None));
        assert_eq!(table.merge(&old, Duration::MAX, Moment(3)), Ok(false));
        assert_eq!(table.query(TICKET, &key(1), Moment(4)), Poll::Ready(None));
        table.add(entry(1, 6, 2, 1_000), Moment(5)).unwrap();
        assert_eq!(table.query(TICKET, &key(1), Moment(500)), Poll::Ready(Some(binding(6))));
        table.delete(&key(1), Moment(501));
        assert_eq!(table.sweep(Moment(510), 10), 0);
        assert_eq!(table.sweep(Moment(511), 10), 1);
    }

    #[test]
    fn a_full_table_refuses_until_the_dead_are_gone() {
        let mut table = LocalSessions::new(author(1), Limits { capacity: 2, ..LIMITS });
        table.add(entry(1, 1, 1, 50), Moment(0)).unwrap();
        table.add(Entry { life: Duration::MAX, ..entry(2, 1, 1, 0) }, Moment(0)).unwrap();
        assert_eq!(table.add(entry(3, 1, 1, 50), Moment(49)), Err(Full { capacity: 2 }));
        assert_eq!(table.add(entry(2, 7, 1, 50), Moment(49)), Ok(()), "rebinding needs no room");
        assert_eq!(table.add(entry(3, 1, 1, 50), Moment(50)), Ok(()));
        assert_eq!(table.query(TICKET, &key(2), Moment(60)), Poll::Ready(Some(binding(7))));
    }

    #[test]
    fn churn_leaves_no_notices_behind() {
        let mut table = LocalSessions::new(author(1), LIMITS);
        for round in 0..10_000u64 {
            table.add(entry(1, 1, round, 1_000), Moment(round)).unwrap();
            table.delete(&key(1), Moment(round));
        }
        assert!(table.ends.len() < 1_100, "{} notices", table.ends.len());
        table.sweep(Moment(20_000), 2_000);
        assert!(table.is_empty() && table.ends.is_empty());
    }

    /// A table elsewhere: its answers come later, in the order of the questions.
    struct Distant {
        table: LocalSessions,
        answers: VecDeque<(Moment, Ticket, Option<Binding>)>,
    }

    impl SessionLookup for Distant {
        fn query(&mut self, ticket: Ticket, key: &SessionKey, now: Moment) -> Poll<Option<Binding>> {
            let Poll::Ready(answer) = self.table.query(ticket, key, now) else { return Poll::Pending };
            self.answers.push_back((now.after(Duration::from_millis(3)), ticket, answer));
            Poll::Pending
        }

        fn poll_answer(&mut self, now: Moment) -> Option<(Ticket, Option<Binding>)> {
            let due = self.answers.pop_front_if(|(due, ..)| *due <= now)?;
            Some((due.1, due.2))
        }

        fn add(&mut self, entry: Entry, now: Moment) -> Result<(), Full> {
            self.table.add(entry, now)
        }

        fn delete(&mut self, key: &SessionKey, now: Moment) {
            self.table.delete(key, now);
        }
    }

    #[test]
    fn an_answer_may_come_later() {
        let mut table: Box<dyn SessionLookup> =
            Box::new(Distant { table: LocalSessions::new(author(1), LIMITS), answers: VecDeque::new() });
        table.add(entry(1, 5, 1, 100), Moment(0)).unwrap();
        assert_eq!(table.query(Ticket(8), &key(1), Moment(1)), Poll::Pending);
        assert_eq!(table.query(Ticket(9), &key(2), Moment(2)), Poll::Pending);
        assert_eq!(table.poll_answer(Moment(3)), None);
        assert_eq!(table.poll_answer(Moment(4)), Some((Ticket(8), Some(binding(5)))));
        assert_eq!(table.poll_answer(Moment(4)), None);
        assert_eq!(table.poll_answer(Moment(9)), Some((Ticket(9), None)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u8, u32, u64),
        Delete(u8),
        Query(u8),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u8..4, 0u32..3, 1u64..40).prop_map(|(key, host, life)| Step::Add(key, host, life)),
            (0u8..4).prop_map(Step::Delete),
            (0u8..4).prop_map(Step::Query),
            (0u64..30).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(steps in steps()) {
            let mut table = LocalSessions::new(author(1), LIMITS);
            let mut model: BTreeMap<u8, (u32, u64)> = BTreeMap::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Add(n, host, life) => {
                        table.add(entry(n, host, 1, life), Moment(now)).unwrap();
                        model.insert(n, (host, now + life));
                    }
                    Step::Delete(n) => {
                        table.delete(&key(n), Moment(now));
                        model.remove(&n);
                    }
                    Step::Query(n) => {
                        let expected = model.get(&n).filter(|(_, ends)| *ends > now).map(|(host, _)| binding(*host));
                        prop_assert_eq!(table.query(TICKET, &key(n), Moment(now)), Poll::Ready(expected));
                    }
                    Step::Wait(time) => now += time,
                }
            }
            table.sweep(Moment(u64::MAX - 1), 1_000);
            prop_assert!(table.is_empty() && table.ends.is_empty());
        }
    }
}
