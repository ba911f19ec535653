//! Handshakes that wait for room, the latest first: who has waited for long has given up, and serving it would leave no time for those
//! that have not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use quinn_proto::Incoming;

#[derive(Default)]
pub(super) struct Waiting {
    /// Whoever has shown that it is where it says comes first.
    proven: Queue,
    unproven: Queue,
}

type Queue = VecDeque<(Instant, Incoming)>;

impl Waiting {
    /// Adds one. If there are too many it is given back, or another one: to be turned away, or to come again with a proof of where it is.
    pub(super) fn push(&mut self, incoming: Incoming, now: Instant) -> Option<Incoming> {
        let proven = incoming.remote_address_validated();
        if !proven && self.unproven.len() >= WAITING_MAX {
            return Some(incoming);
        }
        let queue = if proven { &mut self.proven } else { &mut self.unproven };
        queue.push_back((now, incoming));
        if queue.len() > WAITING_MAX { queue.pop_front().map(|(_, incoming)| incoming) } else { None }
    }

    /// The next one; whether one without a proof may be.
    pub(super) fn pop(&mut self, unproven: bool) -> Option<Incoming> {
        let next = self.proven.pop_back().or_else(|| if unproven { self.unproven.pop_back() } else { None });
        next.map(|(_, incoming)| incoming)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.proven.is_empty() && self.unproven.is_empty()
    }

    /// Those that have waited for too long.
    pub(super) fn stale(&mut self, now: Instant) -> impl Iterator<Item = Incoming> {
        let is_stale = |(since, _): &&(Instant, Incoming)| now.saturating_duration_since(*since) > PATIENCE;
        let stale = |queue: &mut Queue| {
            let count = queue.iter().take_while(is_stale).count();
            queue.drain(..count).collect::<Vec<_>>()
        };
        let all = [stale(&mut self.proven), stale(&mut self.unproven)];
        all.into_iter().flatten().map(|(_, incoming)| incoming)
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = Incoming> {
        self.proven.drain(..).chain(self.unproven.drain(..)).map(|(_, incoming)| incoming)
    }
}

/// Of each kind; a farm's hosts may come all at once.
const WAITING_MAX: usize = 16_384;
/// As long as a host waits for its unit.
const PATIENCE: Duration = Duration::from_secs(10);
