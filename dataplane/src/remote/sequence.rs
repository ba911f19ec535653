//! What has to arrive exactly once and in order: a bounded outbox that repeats, and an inbox that puts in order.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use weir_identity::Moment;

use crate::flow::Key;

/// How many sequenced messages may be on their way, and how far an inbox looks ahead.
pub const WINDOW: usize = 256;

/// What this end has to say, until the other one has acknowledged it.
#[derive(Debug)]
pub(super) struct Outbox<T> {
    entries: VecDeque<Entry<T>>,
    /// The sequence number of the first entry.
    first: u64,
    /// How many entries at the front have been sent.
    sent: usize,
    /// No sent entry has to be sent again before.
    quiet_until: Moment,
    capacity: usize,
    repeat: Duration,
    /// The last unacknowledged entry of each flow.
    last: HashMap<Key, u64, foldhash::fast::RandomState>,
    repeated: u64,
}

#[derive(Debug)]
struct Entry<T> {
    key: Key,
    item: T,
    again: Moment,
}

impl<T: Copy> Outbox<T> {
    pub(super) fn new(capacity: usize, repeat: Duration) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 1,
            sent: 0,
            quiet_until: Moment(0),
            capacity,
            repeat,
            last: HashMap::default(),
            repeated: 0,
        }
    }

    /// Adds something about a flow; false if there is no room.
    pub(super) fn push(&mut self, key: Key, item: T) -> bool {
        if self.entries.len() >= self.capacity {
            return false;
        }
        self.last.insert(key, self.first + self.entries.len() as u64);
        self.entries.push_back(Entry { key, item, again: Moment(0) });
        true
    }

    /// The number of the last unacknowledged entry about a flow; 0 if there is none.
    pub(super) fn last_about(&self, key: &Key) -> u64 {
        self.last.get(key).copied().unwrap_or(0)
    }

    /// Everything up to `sequence` has arrived. A number that was never sent means nothing.
    pub(super) fn acknowledge(&mut self, sequence: u64) {
        while self.sent > 0 && self.first <= sequence {
            let Some(Entry { key, .. }) = self.entries.pop_front() else {
                return;
            };
            if self.last.get(&key) == Some(&self.first) {
                self.last.remove(&key);
            }
            self.first += 1;
            self.sent -= 1;
        }
    }

    /// What is to be sent next: what is overdue, else what is new, as long as the window allows.
    pub(super) fn poll(&mut self, now: Moment) -> Option<(u64, T)> {
        if self.sent > 0 && now >= self.quiet_until {
            let mut earliest = now.after(self.repeat);
            for (sequence, entry) in (self.first..).zip(self.entries.iter_mut().take(self.sent)) {
                if entry.again <= now {
                    entry.again = now.after(self.repeat);
                    self.repeated += 1;
                    return Some((sequence, entry.item));
                }
                earliest = earliest.min(entry.again);
            }
            self.quiet_until = earliest;
        }
        if self.sent >= WINDOW {
            return None;
        }
        let entry = self.entries.get_mut(self.sent)?;
        entry.again = now.after(self.repeat);
        if self.sent == 0 {
            self.quiet_until = entry.again;
        }
        self.sent += 1;
        Some((self.first + self.sent as u64 - 1, entry.item))
    }

    /// The peer has a new life: all that is left is numbered from 1 again and sent anew.
    pub(super) fn restart(&mut self) {
        self.first = 1;
        self.sent = 0;
        self.last.clear();
        self.last.extend((1..).zip(&self.entries).map(|(sequence, entry)| (entry.key, sequence)));
    }

    pub(super) fn items(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.entries.iter().map(|entry| &entry.item)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn repeated(&self) -> u64 {
        self.repeated
    }
}

/// What the other end has said, put in order, until it is taken.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    /// From the next one to be taken on; never longer than the window.
    slots: VecDeque<Option<T>>,
    /// The sequence number of the first slot.
    next: u64,
    /// How many at the front have arrived.
    ready: usize,
    acknowledgement_owed: bool,
}

/// What became of something that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is kept.
    New,
    /// It was here before.
    Again,
    /// It is too far ahead and will come again.
    Ahead,
}

impl<T> Inbox<T> {
    pub(super) fn new() -> Self {
        Self { slots: VecDeque::with_capacity(WINDOW), next: 1, ready: 0, acknowledgement_owed: false }
    }

    pub(super) fn accept(&mut self, sequence: u64, item: T) -> Arrival {
        self.acknowledgement_owed = true;
        let Some(ahead) = sequence.checked_sub(self.next) else {
            return Arrival::Again;
        };
        let Some(place) = usize::try_from(ahead).ok().filter(|place| *place < WINDOW) else {
            return Arrival::Ahead;
        };
        if place >= self.slots.len() {
            self.slots.resize_with(place + 1, || None);
        }
        if self.slots[place].is_some() {
            return Arrival::Again;
        }
        self.slots[place] = Some(item);
        while self.slots.get(self.ready).is_some_and(Option::is_some) {
            self.ready += 1;
        }
        Arrival::New
    }

    /// The next one in order, if it has arrived.
    pub(super) fn take(&mut self) -> Option<T> {
        self.ready = self.ready.checked_sub(1)?;
        self.next += 1;
        self.acknowledgement_owed = true;
        self.slots.pop_front().flatten()
    }

    /// Whether everything up to `sequence` has been taken.
    pub(super) fn is_past(&self, sequence: u64) -> bool {
        sequence < self.next
    }

    /// The number to be acknowledged, once for whatever has happened since. Only what was taken is acknowledged, so that what
    /// follows an acknowledged message does not overtake it on the way to its consumer either.
    pub(super) fn poll_acknowledgement(&mut self) -> Option<u64> {
        std::mem::take(&mut self.acknowledgement_owed).then(|| self.next - 1)
    }

    /// The peer has a new life, and its sequence starts again.
    pub(super) fn restart(&mut self) {
        self.slots.clear();
        self.next = 1;
        self.ready = 0;
        self.acknowledgement_owed = false;
    }

    /// Nothing is kept for the consumer.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Key4, protocol};

    fn key(n: u8) -> Key {
        Key::V4(Key4 {
            source: [10, 0, 0, n],
            destination: [10, 9, 0, 1],
            ports: [4, 0, 0, 80],
            protocol: protocol::TCP,
        })
    }

    #[test]
    fn an_outbox_repeats_what_is_not_acknowledged() {
        let mut outbox = Outbox::new(3, Duration::from_millis(10));
        assert!(outbox.push(key(1), 'a') && outbox.push(key(2), 'b') && outbox.push(key(1), 'c'));
        assert!(!outbox.push(key(3), 'd'));
        assert_eq!((outbox.last_about(&key(1)), outbox.last_about(&key(2)), outbox.last_about(&key(3))), (3, 2, 0));
        let all = [(1, 'a'), (2, 'b'), (3, 'c')];
        assert_eq!(std::iter::from_fn(|| outbox.poll(Moment(5))).collect::<Vec<_>>(), all);
        assert_eq!(outbox.poll(Moment(14)), None);
        outbox.acknowledge(1);
        assert_eq!(std::iter::from_fn(|| outbox.poll(Moment(15))).collect::<Vec<_>>(), all[1..]);
        assert_eq!((outbox.last_about(&key(1)), outbox.repeated()), (3, 2));
        outbox.acknowledge(9);
        assert_eq!((outbox.len(), outbox.last_about(&key(1)), outbox.poll(Moment(99))), (0, 0, None));
        assert!(outbox.push(key(4), 'e'));
        outbox.acknowledge(9);
        assert_eq!(outbox.poll(Moment(99)), Some((4, 'e')), "what was not sent cannot be acknowledged");
        outbox.restart();
        assert_eq!((outbox.last_about(&key(4)), outbox.poll(Moment(99))), (1, Some((1, 'e'))));
    }

    #[test]
    fn an_outbox_keeps_to_the_window() {
        let mut outbox = Outbox::new(2 * WINDOW, Duration::from_millis(10));
        assert!((0..2 * WINDOW).all(|n| outbox.push(key(1), n)));
        assert_eq!(std::iter::from_fn(|| outbox.poll(Moment(0))).count(), WINDOW);
        outbox.acknowledge(3);
        assert_eq!(std::iter::from_fn(|| outbox.poll(Moment(0))).count(), 3);
    }

    #[test]
    fn an_inbox_puts_in_order() {
        let mut inbox = Inbox::new();
        assert_eq!(inbox.accept(2, 'b'), Arrival::New);
        assert_eq!((inbox.take(), inbox.poll_acknowledgement()), (None, Some(0)));
        assert_eq!(inbox.accept(1, 'a'), Arrival::New);
        assert_eq!(inbox.accept(2, 'x'), Arrival::Again);
        assert_eq!((inbox.poll_acknowledgement(), inbox.poll_acknowledgement()), (Some(0), None));
        assert_eq!((inbox.take(), inbox.is_past(1), inbox.is_past(2)), (Some('a'), true, false));
        assert_eq!((inbox.poll_acknowledgement(), inbox.poll_acknowledgement()), (Some(1), None));
        assert_eq!(inbox.accept(WINDOW as u64 + 2, 'z'), Arrival::Ahead);
        assert_eq!(inbox.accept(0, 'x'), Arrival::Again);
        assert_eq!(inbox.accept(4, 'd'), Arrival::New);
        inbox.restart();
        assert_eq!((inbox.accept(1, 'A'), inbox.accept(3, 'C')), (Arrival::New, Arrival::New));
        assert_eq!(std::iter::from_fn(|| inbox.take()).collect::<Vec<_>>(), ['A']);
        assert!(!inbox.is_empty());
    }
}
