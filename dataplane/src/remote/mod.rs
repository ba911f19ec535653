//! Plumbing between units: the two ends that stand for a forwarder and a classifier that are not in one process.
//!
//! A [`ForwarderEnd`] is in the forwarder's unit in the place of a classifier: it keeps the diverted packets and sends their heads
//! with cookies. A [`ClassifierEnd`] is in the classifier's unit in the place of a forwarder: its questions are about
//! [`Cookie`]s, so a `Classifier<Cookie>` decides them like any other. Both are sans-IO: envelopes in, envelopes out, time is an
//! argument; the rules of who repeats what stand in [`crate::plumbing`]. All they keep is bounded.
//!
//! A driver of either end, in each round: gives what has arrived to `receive`, *taking all notices or plumbs after each one*; hands
//! over what its own side has to say (a forwarder's notices before its questions); then sends what `poll_message` yields.

mod classifier_end;
mod forwarder_end;
mod peer;
mod sequence;

#[cfg(test)]
mod tests;

use std::time::Duration;

use weir_identity::Incarnation;

pub use self::classifier_end::{ClassifierEnd, ClassifierEndCounters, Cookie, Diverted};
pub use self::forwarder_end::{ForwarderEnd, ForwarderEndCounters, HEAD};
pub use self::sequence::WINDOW;

/// An end's own life, its bounds and its times. Both ends should have the same times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The unit this end is in.
    pub unit: weir_identity::UnitId,
    /// Which of its lives; never 0, and greater for each new end towards the same peer.
    pub incarnation: Incarnation,
    /// Questions that may be open; at the classifier's end, answers that are kept for repeated questions.
    pub questions: usize,
    /// Notices or plumbs that may be unacknowledged or unsent.
    pub sequenced: usize,
    /// When something unanswered or unacknowledged is said again.
    pub repeat: Duration,
    /// How often a question is sent before it is handed back; at least once.
    pub tries: u32,
    /// A peer that has nothing to say still speaks once in this time.
    pub keepalive: Duration,
    /// A peer that was not heard for so long is taken for dead; several times `keepalive`.
    pub dead_after: Duration,
}

impl Settings {
    /// For a local network: said again after 20 ms, a question handed back after 60 ms, dead after 300 ms of silence.
    #[must_use]
    pub fn new(unit: weir_identity::UnitId, incarnation: Incarnation) -> Self {
        Self {
            unit,
            incarnation,
            questions: 4096,
            sequenced: 4096,
            repeat: Duration::from_millis(20),
            tries: 3,
            keepalive: Duration::from_millis(100),
            dead_after: Duration::from_millis(300),
        }
    }
}
