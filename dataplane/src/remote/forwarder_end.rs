//! The forwarder's end of a classifier in another unit: keeps the diverted packets, asks by cookie, tells notices reliably.

use std::collections::VecDeque;

use arrayvec::ArrayVec;
use weir_identity::{Incarnation, Moment, UnitId};

use super::Settings;
use super::peer::{Admission, Peer};
use super::sequence::{Arrival, Inbox, Outbox};
use crate::flow::Key;
use crate::plumbing::{Envelope, Message, Notice, Plumb, Question, Reply, Verdict};

/// The forwarder's end; `H` is what stands for a packet in its own unit.
#[derive(Debug)]
pub struct ForwarderEnd<H> {
    peer: Peer,
    settings: Settings,
    places: Vec<Place<H>>,
    free: Vec<u32>,
    open: usize,
    /// Cookies to be sent, first those that are asked for the first time.
    unsent: VecDeque<u64>,
    /// When each open question is looked at again; in order, since all wait equally long.
    timers: VecDeque<(Moment, u64)>,
    /// Out of patience, to be handed back.
    unanswered: VecDeque<Question<H>>,
    notices: Outbox<Notice>,
    plumbs: Inbox<Plumb>,
    counters: ForwarderEndCounters,
}

/// A place for one question. Its generation is a part of the cookie, so that a late answer does not meet another question.
#[derive(Debug)]
struct Place<H> {
    generation: u32,
    asked: Option<Asked<H>>,
}

#[derive(Debug)]
struct Asked<H> {
    question: Question<H>,
    head: ArrayVec<u8, HEAD>,
    /// How often its time has come.
    rounds: u32,
    /// It has been sent before.
    sent: bool,
    /// It is in the queue of what is to be sent.
    queued: bool,
}

/// What a forwarder's end has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForwarderEndCounters {
    /// Questions taken.
    pub asked: u64,
    /// Questions not taken, for want of room or of a living peer.
    pub refused: u64,
    /// Answers that met their question.
    pub answered: u64,
    /// Questions sent again.
    pub asked_again: u64,
    /// Questions handed back because no answer came.
    pub handed_back: u64,
    /// Answers to no open question: late, again, or wrong; ignored.
    pub answers_unknown: u64,
    /// Answers that came before a plumb about their flow; ignored until they come again.
    pub answers_early: u64,
    /// Notices taken.
    pub notices: u64,
    /// Notices not taken, for want of room.
    pub notices_refused: u64,
    /// Notices sent again.
    pub notices_again: u64,
    /// Plumbs that arrived, each counted once.
    pub plumbs: u64,
    /// Plumbs that had arrived before, or too far ahead.
    pub plumbs_ignored: u64,
    /// Envelopes from or to a former life, from a stranger, or with a message that only a forwarder sends.
    pub stale: u64,
    /// Lives of the peer that were seen.
    pub lives: u64,
}

impl<H> ForwarderEnd<H> {
    /// An end whose peer will introduce itself.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            peer: Peer::new(settings),
            places: Vec::new(),
            free: Vec::new(),
            open: 0,
            unsent: VecDeque::new(),
            timers: VecDeque::new(),
            unanswered: VecDeque::new(),
            notices: Outbox::new(settings.sequenced, settings.repeat),
            plumbs: Inbox::new(),
            counters: ForwarderEndCounters::default(),
            settings: settings.clone(),
        }
    }

    /// Whether the classifier is heard and hears us. Until it is, questions are not taken.
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
    pub fn counters(&self) -> ForwarderEndCounters {
        ForwarderEndCounters { notices_again: self.notices.repeated(), ..self.counters }
    }

    /// Questions that it keeps, those to be handed back included.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.open + self.unanswered.len()
    }

    /// Asks the classifier. `head` shows the packet's bytes; the first [`HEAD`] of them are sent.
    ///
    /// # Errors
    ///
    /// Gives the question back, unchanged, if the classifier is not alive or too many questions are open: ask another one.
    pub fn ask(
        &mut self,
        question: Question<H>,
        head: impl for<'h> FnOnce(&'h H) -> &'h [u8],
        now: Moment,
    ) -> Result<(), Question<H>> {
        if !self.is_alive(now) || self.questions() >= self.settings.questions {
            self.counters.refused += 1;
            return Err(question);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => match u32::try_from(self.places.len()) {
                Ok(index) => {
                    self.places.push(Place { generation: 0, asked: None });
                    index
                }
                Err(_) => return Err(question),
            },
        };
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        let cookie = u64::from(place.generation) << 32 | u64::from(index);
        let head = head(&question.held).iter().copied().take(HEAD).collect();
        place.asked = Some(Asked { question, head, rounds: 0, sent: false, queued: true });
        self.open += 1;
        self.counters.asked += 1;
        self.unsent.push_back(cookie);
        self.timers.push_back((now.after(self.settings.repeat), cookie));
        self.tidy();
        Ok(())
    }

    /// Takes a notice to tell the classifier; false if there is no room: it is to be told later.
    pub fn tell(&mut self, notice: Notice) -> bool {
        let taken = self.notices.push(notice.key, notice);
        self.counters.notices += u64::from(taken);
        self.counters.notices_refused += u64::from(!taken);
        taken
    }

    /// Notices that the classifier has not acknowledged: what its successor should hear when it is dead.
    pub fn untold(&self) -> impl DoubleEndedIterator<Item = &Notice> {
        self.notices.items()
    }

    /// Takes what has arrived; an answer gives the packet with its verdict.
    pub fn receive(&mut self, envelope: Envelope, now: Moment) -> Option<Reply<H>> {
        match self.peer.admit(&envelope, now) {
            Admission::Valid => {}
            Admission::Introduction => return None,
            Admission::Stale => {
                self.counters.stale += 1;
                return None;
            }
            Admission::NewLife => {
                self.counters.lives += 1;
                self.notices.restart();
                self.plumbs.restart();
                return None;
            }
        }
        match envelope.message {
            Message::Answer { cookie, key, verdict, after } => return self.answer(cookie, &key, verdict, after),
            Message::Plumb { sequence, plumb } => match self.plumbs.accept(sequence, plumb) {
                Arrival::New => self.counters.plumbs += 1,
                Arrival::Again | Arrival::Ahead => self.counters.plumbs_ignored += 1,
            },
            Message::Acknowledge { sequence } => self.notices.acknowledge(sequence),
            Message::Keepalive => {}
            Message::Hello { .. } | Message::Divert { .. } | Message::Notice { .. } => self.counters.stale += 1,
        }
        None
    }

    /// The classifier's next order, in its sequence. To be asked for after each [`ForwarderEnd::receive`].
    pub fn take_plumb(&mut self) -> Option<Plumb> {
        self.plumbs.take()
    }

    /// Questions that are to be asked of another classifier: unanswered after all tries, or the peer is dead.
    pub fn take_unanswered(&mut self, now: Moment) -> Vec<Question<H>> {
        self.look_at_timers(now);
        if !self.is_alive(now) && self.open > 0 {
            let open = self.places.iter_mut().filter_map(|place| place.asked.take());
            self.unanswered.extend(open.map(|asked| asked.question));
            self.open = 0;
            self.unsent.clear();
            self.timers.clear();
            self.free = (0..).take(self.places.len()).collect();
        }
        self.counters.handed_back += self.unanswered.len() as u64;
        self.unanswered.drain(..).collect()
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
            if let Some(sequence) = self.plumbs.poll_acknowledgement() {
                return Some(Message::Acknowledge { sequence });
            }
            // Notices go first: what a question's flow went through is known then.
            if let Some((sequence, notice)) = self.notices.poll(now) {
                return Some(Message::Notice { sequence, notice });
            }
            self.look_at_timers(now);
            while let Some(cookie) = self.unsent.pop_front() {
                if let Some(asked) = asked(&mut self.places, cookie) {
                    self.counters.asked_again += u64::from(asked.sent);
                    asked.sent = true;
                    asked.queued = false;
                    let ask = asked.question.ask;
                    let after = self.notices.last_about(&ask.key);
                    return Some(Message::Divert { cookie, ask, head: asked.head.to_vec(), after });
                }
            }
        }
        self.peer.poll_keepalive(now)
    }

    fn answer(&mut self, cookie: u64, key: &Key, verdict: Verdict, after: u64) -> Option<Reply<H>> {
        if asked(&mut self.places, cookie).is_none_or(|asked| asked.question.ask.key != *key) {
            self.counters.answers_unknown += 1;
            return None;
        };
        if !self.plumbs.is_past(after) {
            self.counters.answers_early += 1;
            return None;
        }
        let Asked { question, .. } = self.close(cookie)?;
        self.counters.answered += 1;
        Some(Reply { key: question.ask.key, verdict, held: question.held })
    }

    /// Questions whose time has come are asked again, or are given up.
    fn look_at_timers(&mut self, now: Moment) {
        while let Some(&(due, cookie)) = self.timers.front() {
            if due > now {
                return;
            }
            self.timers.pop_front();
            let Some(asked) = asked(&mut self.places, cookie) else {
                continue;
            };
            asked.rounds += 1;
            if asked.rounds < self.settings.tries {
                if !std::mem::replace(&mut asked.queued, true) {
                    self.unsent.push_back(cookie);
                }
                self.timers.push_back((now.after(self.settings.repeat), cookie));
            } else if let Some(asked) = self.close(cookie) {
                self.unanswered.push_back(asked.question);
            }
        }
    }

    fn close(&mut self, cookie: u64) -> Option<Asked<H>> {
        let index = index(cookie);
        let asked = self.places.get_mut(index as usize)?.asked.take()?;
        self.free.push(index);
        self.open -= 1;
        Some(asked)
    }

    /// Forgets timers and sends of closed questions before they become many.
    fn tidy(&mut self) {
        let limit = 2 * self.settings.questions;
        let places = &mut self.places;
        if self.timers.len() > limit {
            self.timers.retain(|(_, cookie)| asked(places, *cookie).is_some());
        }
        if self.unsent.len() > limit {
            self.unsent.retain(|cookie| asked(places, *cookie).is_some());
        }
    }
}

/// The open question that a cookie names.
fn asked<H>(places: &mut [Place<H>], cookie: u64) -> Option<&mut Asked<H>> {
    let place = places.get_mut(index(cookie) as usize)?;
    if u64::from(place.generation) != cookie >> 32 { None } else { place.asked.as_mut() }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half of a cookie is the index")]
fn index(cookie: u64) -> u32 {
    cookie as u32
}

/// How much of a packet is sent: Ethernet with two tags, IPv6, and TCP with its options.
pub const HEAD: usize = 128;
