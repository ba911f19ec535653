//! Why a message was refused, and how often.

use thiserror::Error;
use weir_identity::{HostId, Incarnation};

use crate::message::Kind;
use crate::wire::DecodeError;

/// Why a message, or a part of it, changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The bytes are no message.
    #[error("malformed: {0}")]
    Malformed(DecodeError),
    /// The sender may not speak for this host.
    #[error("the sender may not speak for host {0}")]
    WrongHost(HostId),
    /// Messages of this kind do not go this way.
    #[error("a {0:?} message does not go this way")]
    WrongWay(Kind),
    /// From an earlier life of the host.
    #[error("life {said} of host {host} is over, {known} is known")]
    Stale {
        /// Whose life.
        host: HostId,
        /// The message's.
        said: Incarnation,
        /// The latest known.
        known: Incarnation,
    },
    /// A message as new as this one was here already. With two ways from a host to a unit that is every second one.
    #[error("message {sequence} of host {host} is not newer than {known}")]
    Replayed {
        /// Whose message.
        host: HostId,
        /// Its counter.
        sequence: u64,
        /// The latest known.
        known: u64,
    },
    /// A snapshot for another unit, or for an earlier life of this one.
    #[error("nobody asked for these rows of host {0}")]
    Unasked(HostId),
    /// It is about a host or row that is not known here.
    #[error("nothing is known here that it could change")]
    Unknown,
    /// Another source speaks for the host now: a better one, or one that has not been silent.
    #[error("another source speaks for host {0} now")]
    Outranked(HostId),
    /// There are too many hosts already.
    #[error("no room for host {0}")]
    Full(HostId),
    /// It comes faster than any host has reason to: it has to wait.
    #[error("too many messages at once")]
    Flood,
}

/// How many messages were refused, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refusals {
    /// [`Refusal::Malformed`], except for those of another version.
    pub malformed: u64,
    /// [`DecodeError::Version`]
    pub version: u64,
    /// [`Refusal::WrongHost`]
    pub wrong_host: u64,
    /// [`Refusal::WrongWay`]
    pub wrong_way: u64,
    /// [`Refusal::Stale`]
    pub stale: u64,
    /// [`Refusal::Replayed`]
    pub replayed: u64,
    /// [`Refusal::Unasked`]
    pub unasked: u64,
    /// [`Refusal::Unknown`]
    pub unknown: u64,
    /// [`Refusal::Outranked`]
    pub outranked: u64,
    /// [`Refusal::Full`]
    pub full: u64,
    /// [`Refusal::Flood`]
    pub flood: u64,
}

impl Refusals {
    /// Counts one.
    pub fn count(&mut self, refusal: &Refusal) {
        *match refusal {
            Refusal::Malformed(DecodeError::Version(_)) => &mut self.version,
            Refusal::Malformed(_) => &mut self.malformed,
            Refusal::WrongHost(_) => &mut self.wrong_host,
            Refusal::WrongWay(_) => &mut self.wrong_way,
            Refusal::Stale { .. } => &mut self.stale,
            Refusal::Replayed { .. } => &mut self.replayed,
            Refusal::Unasked(_) => &mut self.unasked,
            Refusal::Unknown => &mut self.unknown,
            Refusal::Outranked(_) => &mut self.outranked,
            Refusal::Full(_) => &mut self.full,
            Refusal::Flood => &mut self.flood,
        } += 1;
    }

    /// Every counter with its name.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("malformed", self.malformed),
            ("version", self.version),
            ("wrong-host", self.wrong_host),
            ("wrong-way", self.wrong_way),
            ("stale", self.stale),
            ("replayed", self.replayed),
            ("unasked", self.unasked),
            ("unknown", self.unknown),
            ("outranked", self.outranked),
            ("full", self.full),
            ("flood", self.flood),
        ]
        .into_iter()
    }
}
