//! Who is at the other end: introductions, lives, and whether it is heard.

use weir_identity::{Incarnation, Moment, UnitId};

use super::Settings;
use crate::plumbing::{Envelope, Message};

/// What an end knows of the other one.
#[derive(Debug)]
pub(super) struct Peer {
    unit: UnitId,
    incarnation: Incarnation,
    settings: Settings,
    known: Option<(UnitId, Incarnation)>,
    /// It has spoken to this life of ours, so it will understand what we say.
    knows_us: bool,
    heard: Moment,
    spoke: Moment,
    hello_owed: bool,
    hello_due: Moment,
}

/// What an envelope is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// From the peer's present life to ours: to be dealt with.
    Valid,
    /// The peer has a new life; there is nothing else in the envelope.
    NewLife,
    /// Nothing to do with it, but it was right.
    Introduction,
    /// From or to a former life, or from nobody that was introduced.
    Stale,
}

impl Peer {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            unit: settings.unit,
            incarnation: settings.incarnation,
            settings: settings.clone(),
            known: None,
            knows_us: false,
            heard: Moment(0),
            spoke: Moment(0),
            hello_owed: true,
            hello_due: Moment(0),
        }
    }

    pub(super) fn known(&self) -> Option<(UnitId, Incarnation)> {
        self.known
    }

    pub(super) fn is_alive(&self, now: Moment) -> bool {
        self.knows_us && now.since(self.heard) < self.settings.dead_after
    }

    /// Looks at an envelope's address and sender.
    pub(super) fn admit(&mut self, envelope: &Envelope, now: Moment) -> Admission {
        let to_us = envelope.to == self.incarnation;
        let present = self.known.map(|(_, incarnation)| incarnation);
        if present.is_some_and(|present| envelope.from < present) || envelope.from == Incarnation(0) {
            return Admission::Stale;
        }
        if let Message::Hello { unit, incarnation } = envelope.message {
            if incarnation != envelope.from || self.known.is_some_and(|(known, _)| known != unit) {
                return Admission::Stale;
            }
            self.heard = now;
            self.hello_owed |= !to_us;
            if present == Some(incarnation) {
                self.knows_us |= to_us;
                return Admission::Introduction;
            }
            self.known = Some((unit, incarnation));
            self.knows_us = to_us;
            return Admission::NewLife;
        }
        if !to_us || present != Some(envelope.from) {
            self.hello_owed = true;
            return Admission::Stale;
        }
        self.heard = now;
        self.knows_us = true;
        Admission::Valid
    }

    /// A greeting, if one is due.
    pub(super) fn poll_hello(&mut self, now: Moment) -> Option<Message> {
        if !self.hello_owed && (self.knows_us || now < self.hello_due) {
            return None;
        }
        self.hello_owed = false;
        self.hello_due = now.after(self.settings.keepalive);
        Some(Message::Hello { unit: self.unit, incarnation: self.incarnation })
    }

    /// A sign of life, if nothing else was said for a while.
    pub(super) fn poll_keepalive(&self, now: Moment) -> Option<Message> {
        (self.knows_us && now.since(self.spoke) >= self.settings.keepalive).then_some(Message::Keepalive)
    }

    /// Puts what is said next into its envelope.
    pub(super) fn say(&mut self, message: Message, now: Moment) -> Envelope {
        self.spoke = now;
        let to = self.known.map_or(Incarnation(0), |(_, incarnation)| incarnation);
        Envelope { from: self.incarnation, to, message }
    }
}
