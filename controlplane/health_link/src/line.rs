//! One connection of a unit: its messages in datagrams and on one ordered stream each way, and when something is due for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{
    Connection, Dir, Event as ConnectionEvent, ReadError, ReadableError, StreamEvent, StreamId, WriteError,
};
use rustls::pki_types::CertificateDer;
use weir_health_protocol::{DecodeError, MESSAGE_MAX, Message, decode, encode};
use weir_identity::UnitId;

use crate::hub::{Event, LinkId, Network};
use crate::keys::{Keys, names};
use crate::link::{ANSWER, BURST, EVERY, ORDERED_MAX};

pub(crate) struct Line {
    pub(crate) connection: Connection,
    /// It was dialled from here: whatever is sent has to be acknowledged soon.
    pub(crate) dialled: Option<UnitId>,
    /// It is among those that something is to be done for.
    pub(crate) touched: bool,
    pub(crate) drained: bool,
    pub(crate) timers: Timers,
    state: State,
    /// Where its peer is, if that was shown before anything was done for it.
    pub(crate) from: Option<Network>,
    /// Units pass on what many hosts say; hosts have a rate.
    rate: Option<Rate>,
    sending: Option<StreamId>,
    outbox: VecDeque<Bytes>,
    receiving: Option<StreamId>,
    /// There may be something to be read.
    readable: bool,
    /// What has come of a message, or of messages that have to wait.
    held: Vec<u8>,
    /// When messages that had to wait are taken.
    resume: Option<Instant>,
    /// When something has to have come, and how many packets had until now.
    answered_by: Option<(Instant, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Up by then, or never.
    Handshake(Instant),
    Up,
    Over,
}

impl Line {
    pub(crate) fn new(connection: Connection, dialled: Option<UnitId>, from: Option<Network>, now: Instant) -> Line {
        Line {
            connection,
            dialled,
            touched: false,
            drained: false,
            timers: Timers::default(),
            state: State::Handshake(now + HANDSHAKE),
            from,
            rate: Some(Rate { tokens: BURST, filled: now }),
            sending: None,
            outbox: VecDeque::new(),
            receiving: None,
            readable: false,
            held: Vec::new(),
            resume: None,
            answered_by: None,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    pub(crate) fn is_in_handshake(&self) -> bool {
        matches!(self.state, State::Handshake(_))
    }

    /// The peer's certificate, and what is between it and the authority.
    pub(crate) fn chain(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.connection.crypto_session().peer_identity()?.downcast().ok().map(|chain| *chain)
    }

    /// Time has come for something; true if the connection is to end.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.connection.handle_timeout(now);
        if self.resume.is_some_and(|resume| resume <= now) {
            self.resume = None;
        }
        let unanswered = self.answered_by.filter(|(by, _)| *by <= now).is_some_and(|(_, before)| {
            self.answered_by = None;
            self.connection.stats().udp_rx.datagrams == before
        });
        let late = matches!(self.state, State::Handshake(until) if until <= now);
        if unanswered || late {
            self.connection.close(now, 0_u32.into(), b"no answer".as_slice().into());
        }
        unanswered || late
    }

    /// Takes what has come; false if the connection is to end.
    pub(crate) fn converse(&mut self, link: LinkId, keys: &Keys, now: Instant, events: &mut Vec<Event>) -> bool {
        while let Some(event) = self.connection.poll()
            && self.state != State::Over
        {
            match event {
                ConnectionEvent::Connected => {
                    // Whoever comes back with a ticket has been asked for nothing else, and may be revoked since.
                    let Some(chain) = self.chain().filter(|chain| keys.still_admits(chain)) else {
                        tracing::warn!(?link, "the peer's certificate is revoked or has expired");
                        return false;
                    };
                    let names = chain.first().map(names).unwrap_or_default();
                    if names.unit.is_some() {
                        self.rate = None;
                    }
                    self.state = State::Up;
                    events.push(Event::Up { link, names });
                }
                ConnectionEvent::ConnectionLost { reason } => {
                    tracing::debug!(?link, %reason, "lost");
                    return false;
                }
                ConnectionEvent::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    self.receiving = self.connection.streams().accept(Dir::Uni).or(self.receiving);
                    self.readable = true;
                }
                ConnectionEvent::Stream(StreamEvent::Readable { .. }) => self.readable = true,
                ConnectionEvent::Stream(StreamEvent::Writable { .. } | StreamEvent::Available { .. })
                    if !self.write() =>
                {
                    return false;
                }
                _ => {}
            }
        }
        match self.state {
            State::Up => self.take_datagrams(link, now, events) && self.take_stream(link, now, events),
            State::Handshake(_) | State::Over => true,
        }
    }

    fn take_datagrams(&mut self, link: LinkId, now: Instant, events: &mut Vec<Event>) -> bool {
        while self.may_take(now, events) {
            let Some(bytes) = self.connection.datagrams().recv() else {
                self.give_back();
                return true;
            };
            if !take(link, &bytes, events) {
                return false;
            }
        }
        true
    }

    fn take_stream(&mut self, link: LinkId, now: Instant, events: &mut Vec<Event>) -> bool {
        let Some(id) = self.receiving.filter(|_| self.readable) else { return true };
        loop {
            if !self.take_held(link, now, events) {
                return false;
            }
            if self.resume.is_some() {
                return true;
            }
            let mut stream = self.connection.recv_stream(id);
            let mut chunks = match stream.read(true) {
                Ok(chunks) => chunks,
                Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => return false,
            };
            let next = chunks.next(CHUNK);
            if let Ok(Some(chunk)) = &next {
                self.held.extend_from_slice(&chunk.bytes);
            }
            let _ = chunks.finalize();
            match next {
                Ok(Some(_)) => {}
                Err(ReadError::Blocked) => {
                    self.readable = false;
                    return true;
                }
                Ok(None) | Err(ReadError::Reset(_)) => return false,
            }
        }
    }

    /// Takes the messages that are here as a whole.
    fn take_held(&mut self, link: LinkId, now: Instant, events: &mut Vec<Event>) -> bool {
        let mut at = 0;
        let goes_on = loop {
            let Some((length, rest)) = self.held[at..].split_first_chunk::<4>() else { break true };
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            if length > MESSAGE_MAX {
                events.push(Event::Malformed(DecodeError::Long(length)));
                break false;
            }
            if rest.len() < length || !self.may_take(now, events) {
                break true;
            }
            let message = at + 4..at + 4 + length;
            at = message.end;
            if !take(link, &self.held[message], events) {
                break false;
            }
        };
        self.held.drain(..at);
        if self.held.is_empty() {
            // Thousands of connections that have nothing to say keep nothing.
            self.held = Vec::new();
        }
        goes_on
    }

    fn may_take(&mut self, now: Instant, events: &mut Vec<Event>) -> bool {
        if self.resume.is_some() {
            return false;
        }
        match self.rate.as_mut().map_or(Ok(()), |rate| rate.take(now)) {
            Ok(()) => true,
            Err(resume) => {
                self.resume = Some(resume);
                events.push(Event::Flood);
                false
            }
        }
    }

    /// There was no message after all.
    fn give_back(&mut self) {
        if let Some(rate) = &mut self.rate {
            rate.tokens += 1;
        }
    }

    /// Sends a message; false if too many wait already.
    pub(crate) fn send(&mut self, message: &Message, now: Instant) -> bool {
        if self.state != State::Up {
            return true;
        }
        if self.dialled.is_some() && self.answered_by.is_none() {
            self.answered_by = Some((now + ANSWER, self.connection.stats().udp_rx.datagrams));
        }
        let bytes = encode(message);
        let mut datagrams = self.connection.datagrams();
        if message.is_transient() && datagrams.max_size().is_some_and(|most| bytes.len() <= most) {
            let _ = datagrams.send(bytes.into(), true);
            return true;
        }
        let length = u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes();
        self.outbox.push_back([length.as_slice(), &bytes].concat().into());
        self.write() && self.outbox.len() <= ORDERED_MAX
    }

    /// Writes what the stream takes; false if there is none any more.
    fn write(&mut self) -> bool {
        if self.outbox.is_empty() {
            return true;
        }
        self.sending = self.sending.or_else(|| self.connection.streams().open(Dir::Uni));
        let Some(id) = self.sending else { return true };
        let mut stream = self.connection.send_stream(id);
        while let Some(front) = self.outbox.front_mut() {
            match stream.write(front) {
                Ok(written) if written < front.len() => {
                    let _ = front.split_to(written);
                }
                Ok(_) => {
                    self.outbox.pop_front();
                }
                Err(WriteError::Blocked) => return true,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => return false,
            }
        }
        self.outbox = VecDeque::new();
        true
    }

    /// It is over; why, if that was not known.
    pub(crate) fn end(&mut self, now: Instant) -> Option<&'static str> {
        let before = std::mem::replace(&mut self.state, State::Over);
        // Who sends what is no message, or ends its stream, is told so.
        self.connection.close(now, 1_u32.into(), b"bye".as_slice().into());
        (self.outbox, self.held, self.resume, self.answered_by) = (VecDeque::new(), Vec::new(), None, None);
        match before {
            State::Handshake(_) => Some("the handshake was not finished"),
            State::Up => Some("closed, silent, or the protocol was not kept"),
            State::Over => None,
        }
    }

    /// When something is due, if that has to be noted.
    pub(crate) fn schedule(&mut self, now: Instant) -> Option<Instant> {
        let handshake = match self.state {
            State::Handshake(until) => Some(until),
            State::Up | State::Over => None,
        };
        let own = handshake.into_iter().chain(self.resume).chain(self.answered_by.map(|(by, _)| by));
        let due = own.chain(self.connection.poll_timeout()).min()?;
        self.timers.note(due, now)
    }
}

/// The entries that a connection has among the timers of all: one for what is due soon, and one for what would be due if nothing came. That
/// one moves with each packet, but need not be touched: if it comes too early, the next is noted.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    soon: Option<Instant>,
    late: Option<Instant>,
}

impl Timers {
    fn note(&mut self, due: Instant, now: Instant) -> Option<Instant> {
        if self.soon.into_iter().chain(self.late).any(|noted| noted <= due) {
            return None;
        }
        let entry = if due < now + SOON { &mut self.soon } else { &mut self.late };
        *entry = Some(due);
        Some(due)
    }

    /// An entry has come; does it still count?
    pub(crate) fn is_due(&mut self, due: Instant) -> bool {
        let entries = [&mut self.soon, &mut self.late];
        let mut counts = false;
        for entry in entries.into_iter().filter(|entry| **entry == Some(due)) {
            (*entry, counts) = (None, true);
        }
        counts
    }
}

/// How many messages a host may send: whoever sends more waits, and what it sends meanwhile fills its own buffers.
#[derive(Debug)]
struct Rate {
    tokens: u32,
    filled: Instant,
}

impl Rate {
    /// Takes a token, or says when there will be one.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        if self.tokens == 0 {
            let new = now.saturating_duration_since(self.filled).as_millis() / EVERY.as_millis();
            self.tokens = u32::try_from(new).unwrap_or(BURST).min(BURST);
            if self.tokens == 0 {
                return Err(self.filled + EVERY);
            }
            self.filled = now;
        }
        self.tokens -= 1;
        Ok(())
    }
}

/// Hands a message on; false if the connection is to end.
fn take(link: LinkId, bytes: &[u8], events: &mut Vec<Event>) -> bool {
    match decode(bytes) {
        Ok(message) => {
            events.push(Event::Message { link, message });
            true
        }
        // Whoever sends what is no message has another idea of the protocol: there is nothing to be had from more of it.
        Err(error) => {
            events.push(Event::Malformed(error));
            false
        }
    }
}

const HANDSHAKE: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_millis(500);
const CHUNK: usize = 64 * 1024;
