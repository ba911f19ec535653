//! Plumbing: what forwarders and classifiers say to each other, over rings in a unit and as versioned bytes between units.
//!
//! In a unit, [`Question`] and [`Reply`] carry the packet itself. Between units the forwarder keeps the packet and sends its head
//! with a cookie; the answer names the cookie and carries the route. The words are the same: [`Ask`], [`Verdict`], [`Notice`].
//!
//! # Wire format, version 1
//!
//! One [`Envelope`] a datagram or frame: a version byte, then who speaks to whom and the message in postcard's encoding (variants by
//! index, integers as LEB128, addresses as bytes). Variants are only ever added at the end of the enum; another version is refused.
//!
//! | message | repeated | acknowledged by | received again |
//! |---|---|---|---|
//! | `Hello` | until the other end has spoken to this life of ours | any envelope `to` this life | harmless |
//! | `Divert` | a bounded number of times, then the question goes to the next classifier | `Answer` with its cookie | the same answer again |
//! | `Answer` | when its `Divert` comes again | nothing | an unknown cookie: ignored |
//! | `Notice`, `Plumb` | until acknowledged, as long as the peer is heard | `Acknowledge` | acknowledged again, not delivered again |
//! | `Acknowledge` | when something sequenced comes again | nothing | harmless |
//! | `Keepalive` | when nothing else was said for a while | nothing | harmless |
//!
//! Notices and plumbs have a sequence each, from 1, in which they are delivered exactly once; at most
//! [`WINDOW`](crate::remote::WINDOW) of them are on their way, and an acknowledgement counts for all up to its number. Only what
//! its receiver has dealt with is acknowledged. A divert and an answer name the last unacknowledged notice or plumb about their own
//! flow (`after`): who has not been through that one ignores them, and they come again. So a divert never overtakes the end of its
//! tuple's former connection, nor an answer a deletion.
//!
//! Lives: an envelope says `from` which incarnation `to` which one it goes. One from a former life, or to one, changes nothing; the
//! receiver introduces itself in return. A new life of the peer begins with its `Hello`: sequences start again from 1, with what the
//! former life had not acknowledged, open questions are asked again, and cookies that the former life gave mean nothing.
//!
//! An [`EndpointId`] in a route is the same endpoint to both ends only if both have the same list of endpoints.
//!
//! Nothing here is authenticated. The tag and the number for a replay window go around the encoded envelope: they fence whole
//! datagrams before anything is decoded, and leave these rules as they are.

use serde::{Deserialize, Serialize};
use weir_identity::{EndpointId, Incarnation, UnitId};

use crate::counters::DropReason;
use crate::flow::Key;
use crate::route_table::{Mode, Route};

/// What a forwarder wants to know about one packet without a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The packet's flow, client to VIP.
    pub key: Key,
    /// Keyed hash of the client's address and port: which classifier is asked, and where a consistent hash begins.
    pub client: u64,
    /// A SYN without ACK.
    pub opens: bool,
    /// A RST or FIN.
    pub closes: bool,
    /// It opens a connection on the route of one that is closing or out of time.
    pub zombie: bool,
}

/// A packet and what is asked about it.
#[derive(Debug)]
pub struct Question<H> {
    /// What is asked.
    pub ask: Ask,
    /// The packet, or what stands for it.
    pub held: H,
}

/// What becomes of a packet without a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Install this route, or keep the one that is there, and forward by it; `replace` puts it in place of what is there.
    Install {
        /// The route.
        route: Route,
        /// Whether an existing route yields.
        replace: bool,
    },
    /// Forward this packet alone; no route.
    Once {
        /// Where to.
        endpoint: EndpointId,
        /// How.
        mode: Mode,
    },
    /// Drop it.
    Drop(Refusal),
    /// Drop it and tell the sender: TCP reset, or ICMP port unreachable.
    Reset(Refusal),
}

/// Why a classifier refuses a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No service at this protocol.
    Protocol,
    /// No service at this port.
    NoService,
    /// No endpoint is fit.
    NoEndpoint,
    /// The flow's endpoint is inactive.
    Inactive,
    /// Too many packets or flows wait.
    PendingFull,
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Protocol => DropReason::Protocol,
            Refusal::NoService => DropReason::NoService,
            Refusal::NoEndpoint => DropReason::NoEndpoint,
            Refusal::Inactive => DropReason::Inactive,
            Refusal::PendingFull => DropReason::PendingFull,
        }
    }
}

/// A classifier's answer about one packet.
#[derive(Debug)]
pub struct Reply<H> {
    /// The packet's flow, client to VIP.
    pub key: Key,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The packet, or what stands for it.
    pub held: H,
}

/// What a classifier tells a forwarder about a route without having been asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plumb {
    /// Delete the route of this flow.
    Delete(Key),
    /// Put this route in place of what is there, or add it.
    Replace(Key, Route),
}

/// What a forwarder tells a classifier about a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The flow, client to VIP.
    pub key: Key,
    /// What happened to its route.
    pub event: Event,
}

/// What happened to a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The client continued the handshake.
    Confirmed,
    /// A FIN or RST was seen.
    Closing,
    /// It outlived its idle timeout and is gone.
    Expired,
    /// It had to give way to a newer one; the session lives on.
    Evicted,
    /// In full-nat: it has been given a pool's port, as the route's value ([`PoolPort`](crate::translation::PoolPort)) says it.
    Bound(u64),
}

/// A message between a forwarder and a classifier in different units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Either side, at first: who speaks.
    Hello {
        /// The unit.
        unit: UnitId,
        /// Which of its lives.
        incarnation: Incarnation,
    },
    /// Forwarder: a packet without a route.
    Divert {
        /// Names the packet that the forwarder keeps.
        cookie: u64,
        /// What is asked.
        ask: Ask,
        /// The packet's first bytes, from the Ethernet header.
        head: Vec<u8>,
        /// The last notice about this flow, which has to be heard first; 0 if all have been.
        after: u64,
    },
    /// Classifier: what becomes of it.
    Answer {
        /// The packet's name.
        cookie: u64,
        /// Its flow.
        key: Key,
        /// The verdict.
        verdict: Verdict,
        /// The last plumb about this flow, which has to be obeyed first; 0 if all have been.
        after: u64,
    },
    /// Forwarder: sequenced, and repeated until it is acknowledged.
    Notice {
        /// Counts from 1 in an incarnation.
        sequence: u64,
        /// The notice.
        notice: Notice,
    },
    /// Classifier: sequenced, and repeated until it is acknowledged.
    Plumb {
        /// Counts from 1 in an incarnation.
        sequence: u64,
        /// The order.
        plumb: Plumb,
    },
    /// Either side: everything up to this sequence number has arrived.
    Acknowledge {
        /// The number.
        sequence: u64,
    },
    /// Either side, when nothing else was said for a while.
    Keepalive,
}

/// A message with who speaks to whom: what goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The life of the unit that speaks.
    pub from: Incarnation,
    /// The life of the unit it speaks to, as far as it knows; 0 if it does not.
    pub to: Incarnation,
    /// What it says.
    pub message: Message,
}

/// The version of the wire format.
pub const VERSION: u8 = 1;

/// The most bytes a message can be.
pub const MAX_BYTES: usize = 2048;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing there.
    #[error("an empty message")]
    Empty,
    /// Longer than any message.
    #[error("a message of {0} bytes; {MAX_BYTES} are the most")]
    TooLong(usize),
    /// Another version.
    #[error("a message of version {0}; this unit speaks version {VERSION}")]
    Version(u8),
    /// Not a message of this version.
    #[error("a malformed message: {0}")]
    Malformed(postcard::Error),
}

impl Envelope {
    /// The envelope as bytes.
    ///
    /// # Errors
    ///
    /// Only if a head is too long: `postcard`'s error for a full buffer.
    pub fn encode<'b>(&self, buffer: &'b mut [u8; MAX_BYTES]) -> Result<&'b [u8], postcard::Error> {
        buffer[0] = VERSION;
        let length = 1 + postcard::to_slice(self, &mut buffer[1..])?.len();
        Ok(&buffer[..length])
    }

    /// Reads an envelope.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]; any bytes are safe.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match bytes {
            [] => Err(DecodeError::Empty),
            _ if bytes.len() > MAX_BYTES => Err(DecodeError::TooLong(bytes.len())),
            [VERSION, body @ ..] => postcard::from_bytes(body).map_err(DecodeError::Malformed),
            [version, ..] => Err(DecodeError::Version(*version)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Key4, protocol};
    use crate::route_table::{Action, State};
    use proptest::prelude::*;

    fn messages() -> Vec<Message> {
        let key = Key::V4(Key4 {
            source: [10, 0, 0, 2],
            destination: [10, 9, 0, 1],
            ports: [4, 210, 0, 80],
            protocol: protocol::TCP,
        });
        let action = Action::Send { endpoint: EndpointId(3), mode: Mode::Nat, value: u64::MAX };
        let route = Route { action, state: State::Opening };
        let ask = Ask { key, client: 7, opens: true, closes: false, zombie: false };
        vec![
            Message::Hello { unit: UnitId(1), incarnation: Incarnation(2) },
            Message::Divert { cookie: 9, ask, head: vec![1; 128], after: 0 },
            Message::Answer { cookie: 9, key, verdict: Verdict::Install { route, replace: false }, after: 0 },
            Message::Answer { cookie: 9, key, verdict: Verdict::Reset(Refusal::NoEndpoint), after: 300 },
            Message::Notice { sequence: 1, notice: Notice { key, event: Event::Expired } },
            Message::Plumb { sequence: 1, plumb: Plumb::Replace(key, route) },
            Message::Plumb { sequence: 2, plumb: Plumb::Delete(key.reversed()) },
            Message::Acknowledge { sequence: 2 },
            Message::Keepalive,
        ]
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for message in messages() {
            let mut buffer = [0; MAX_BYTES];
            let envelope = Envelope { from: Incarnation(1_790_000_000_000), to: Incarnation(0), message };
            let bytes = envelope.encode(&mut buffer).unwrap();
            assert_eq!(Envelope::decode(bytes), Ok(envelope.clone()));
            for cut in 0..bytes.len() {
                assert!(Envelope::decode(&bytes[..cut]).is_err(), "{envelope:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn other_versions_are_refused() {
        assert_eq!(Envelope::decode(&[2, 0]), Err(DecodeError::Version(2)));
        assert_eq!(Envelope::decode(&[]), Err(DecodeError::Empty));
        assert_eq!(Envelope::decode(&[1; MAX_BYTES + 1]), Err(DecodeError::TooLong(MAX_BYTES + 1)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut versioned = vec![VERSION];
            versioned.extend(&bytes);
            let _ = Envelope::decode(&bytes);
            let _ = Envelope::decode(&versioned);
        }
    }
}
