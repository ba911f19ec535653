//! The classifier's end of a forwarder in another unit: questions about cookies, each asked once however often it arrives.

use std::collections::VecDeque;

use hashbrown::HashMap;
use weir_identity::{Incarnation, Moment, UnitId};

use super::Settings;
use super::peer::{Admission, Peer};
use super::sequence::{Arrival, Inbox, Outbox};
use crate::flow::Key;
use crate::plumbing::{Ask, Envelope, Message, Notice, Plumb, Question, Reply, Verdict};

/// Stands for a packet that a forwarder in another unit keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie {
    /// Which of the classifier's ends the question came by, and its answer goes by.
    pub link: usize,
    /// The forwarder's life that knows the number.
    pub incarnation: Incarnation,
    /// The forwarder's name for the packet.
    pub number: u64,
}

/// A question with the first bytes of its packet.
#[derive(Debug)]
pub struct Diverted {
    /// For the classifier.
    pub question: Question<Cookie>,
    /// From the Ethernet header on; not checked.
    pub head: Vec<u8>,
}

/// The classifier's end.
#[derive(Debug)]
pub struct ClassifierEnd {
    link: usize,
    peer: Peer,
    settings: Settings,
    /// The last questions, with their answers once they have them.
    recent: HashMap<u64, Option<(Key, Verdict)>, foldhash::fast::RandomState>,
    recent_order: VecDeque<u64>,
    /// Cookies whose answers are to be sent.
    unsent: VecDeque<u64>,
    notices: Inbox<Notice>,
    plumbs: Outbox<Plumb>,
    counters: ClassifierEndCounters,
}

/// What a classifier's end has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassifierEndCounters {
    /// Questions that arrived, each counted once.
    pub questions: u64,
    /// Questions that had arrived before; those that have an answer get it again.
    pub questions_again: u64,
    /// Questions that came before a notice about their flow; ignored until they come again.
    pub questions_early: u64,
    /// Answers given.
    pub answers: u64,
    /// Answers to a former life of the forwarder, or to a question too long ago; not sent.
    pub answers_late: u64,
    /// Notices that arrived, each counted once.
    pub notices: u64,
    /// Notices that had arrived before, or too far ahead.
    pub notices_ignored: u64,
    /// Plumbs taken.
    pub plumbs: u64,
    /// Plumbs not taken, for want of room.
    pub plumbs_refused: u64,
    /// Plumbs sent again.
    pub plumbs_again: u64,
    /// Envelopes from or to a former life, from a stranger, or with a message that only a classifier sends.
    pub stale: u64,
    /// Lives of the peer that were seen.
    pub lives: u64,
}

impl ClassifierEnd {
    /// An end whose peer will introduce itself; `link` is its number among the classifier's ends.
    #[must_use]
    pub fn new(link: usize, settings: &Settings) -> Self {
        Self {
            link,
            peer: Peer::new(settings),
            recent: HashMap::default(),
            recent_order: VecDeque::new(),
            unsent: VecDeque::new(),
            notices: Inbox::new(),
            plumbs: Outbox::new(settings.sequenced, settings.repeat),
            counters: ClassifierEndCounters::default(),
            settings: settings.clone(),
        }
    }

    /// Whether the forwarder is heard and hears us.
    #[must_use]
    pub fn is_alive(&self, now: Moment) -> bool {
        self.peer.is_alive(now)
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Option<(UnitId, Incarnation)> {
        self.peer.known()
    }

    /// What it has counted.
    #[must_use]
    pub fn counters(&self) -> ClassifierEndCounters {
        ClassifierEndCounters { plumbs_again: self.plumbs.repeated(), ..self.counters }
    }

    /// Orders that the forwarder has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.plumbs.len()
    }

    /// Takes what has arrived; a question that is new is for the classifier.
    pub fn receive(&mut self, envelope: Envelope, now: Moment) -> Option<Diverted> {
        match self.peer.admit(&envelope, now) {
            Admission::Valid => {}
            Admission::Introduction => return None,
            Admission::Stale => {
                self.counters.stale += 1;
                return None;
            }
            Admission::NewLife => {
                self.counters.lives += 1;
                self.recent.clear();
                self.recent_order.clear();
                self.unsent.clear();
                self.notices.restart();
                self.plumbs.restart();
                return None;
            }
        }
        match envelope.message {
            Message::Divert { cookie, ask, head, after } => return self.question(cookie, ask, head, after),
            Message::Notice { sequence, notice } => match self.notices.accept(sequence, notice) {
                Arrival::New => self.counters.notices += 1,
                Arrival::Again | Arrival::Ahead => self.counters.notices_ignored += 1,
            },
            Message::Acknowledge { sequence } => self.plumbs.acknowledge(sequence),
            Message::Keepalive => {}
            Message::Hello { .. } | Message::Answer { .. } | Message::Plumb { .. } => self.counters.stale += 1,
        }
        None
    }

    /// The forwarder's next notice, in its sequence. To be asked for after each [`ClassifierEnd::receive`].
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.notices.take()
    }

    /// Takes the classifier's answer.
    pub fn answer(&mut self, reply: &Reply<Cookie>) {
        let Reply { key, verdict, held: Cookie { incarnation, number, .. } } = *reply;
        let present = self.peer.known().is_some_and(|(_, present)| present == incarnation);
        match self.recent.get_mut(&number).filter(|_| present) {
            Some(answer) => {
                *answer = Some((key, verdict));
                self.counters.answers += 1;
                self.send(number);
            }
            None => self.counters.answers_late += 1,
        }
    }

    /// Takes an order to the forwarder; false if there is no room: it is to be given later.
    pub fn plumb(&mut self, plumb: Plumb) -> bool {
        let (Plumb::Delete(key) | Plumb::Replace(key, _)) = plumb;
        let taken = self.plumbs.push(key, plumb);
        self.counters.plumbs += u64::from(taken);
        self.counters.plumbs_refused += u64::from(!taken);
        taken
    }

    /// The next thing to be sent, if any.
    pub fn poll_message(&mut self, now: Moment) -> Option<Envelope> {
        let message = self.next_message(now)?;
        Some(self.peer.say(message, now))
    }

    fn next_message(&mut self, now: Moment) -> Option<Message> {
        if let Some(hello) = self.peer.poll_hello(now) {
            return Some(hello);
        }
        if self.is_alive(now) {
            if let Some(sequence) = self.notices.poll_acknowledgement() {
                return Some(Message::Acknowledge { sequence });
            }
            // Orders go first: they were given before the answers.
            if let Some((sequence, plumb)) = self.plumbs.poll(now) {
                return Some(Message::Plumb { sequence, plumb });
            }
            while let Some(cookie) = self.unsent.pop_front() {
                if let Some(Some((key, verdict))) = self.recent.get(&cookie) {
                    let after = self.plumbs.last_about(key);
                    return Some(Message::Answer { cookie, key: *key, verdict: *verdict, after });
                }
            }
        }
        self.peer.poll_keepalive(now)
    }

    fn question(&mut self, cookie: u64, ask: Ask, head: Vec<u8>, after: u64) -> Option<Diverted> {
        if let Some(answer) = self.recent.get(&cookie) {
            self.counters.questions_again += 1;
            if answer.is_some() {
                self.send(cookie);
            }
            return None;
        }
        if !self.notices.is_past(after) {
            self.counters.questions_early += 1;
            return None;
        }
        if self.recent_order.len() >= self.settings.questions
            && let Some(oldest) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
        self.recent.insert(cookie, None);
        self.recent_order.push_back(cookie);
        self.counters.questions += 1;
        let incarnation = self.peer.known().map_or(Incarnation(0), |(_, incarnation)| incarnation);
        let held = Cookie { link: self.link, incarnation, number: cookie };
        Some(Diverted { question: Question { ask, held }, head })
    }

    /// Lets an answer be sent. If too many wait, the oldest is not sent: its question will come again.
    fn send(&mut self, cookie: u64) {
        if self.unsent.len() >= self.settings.questions {
            self.unsent.pop_front();
        }
        self.unsent.push_back(cookie);
    }
}
