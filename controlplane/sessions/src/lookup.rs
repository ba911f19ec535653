//! The seam between a classifier and the session table: where does this session live, now or later.

use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use weir_identity::{Moment, Ticket};

use crate::atom::Binding;
use crate::key::SessionKey;

/// A session to be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which session.
    pub key: SessionKey,
    /// What it is bound to.
    pub binding: Binding,
    /// Which life of it: greater than that of an earlier session with the same key (the moment of its SYN, say).
    pub incarnation: u64,
    /// How long it is good without being added again; `Duration::MAX` until it is deleted.
    pub life: Duration,
}

/// There is no room; the table did not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the session table is full with {capacity} sessions")]
pub struct Full {
    /// How many it can hold.
    pub capacity: usize,
}

/// Whoever remembers sessions.
pub trait SessionLookup: Send {
    /// Where the session lives.
    ///
    /// `Ready(None)`: nobody knows it. `Pending`: the answer comes by [`SessionLookup::poll_answer`] with the same ticket.
    fn query(&mut self, ticket: Ticket, key: &SessionKey, now: Moment) -> Poll<Option<Binding>>;

    /// The next late answer, if there is one.
    fn poll_answer(&mut self, now: Moment) -> Option<(Ticket, Option<Binding>)>;

    /// Remembers a session; again to renew it or to bind it elsewhere. The version is stamped by the table.
    ///
    /// # Errors
    /// [`Full`] if it is a new one and there is no room.
    fn add(&mut self, entry: Entry, now: Moment) -> Result<(), Full>;

    /// Forgets a session; one that is unknown stays unknown.
    fn delete(&mut self, key: &SessionKey, now: Moment);
}
