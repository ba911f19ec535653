//! The seven messages, the receipt that a unit gives for a postulate it agrees with, and what hosts of a group say to each other.

use std::time::Duration;

use weir_health_load::Directive;
use weir_identity::{ApplicationId, HostId, Incarnation, UnitId};

use crate::row::{Operation, Row};

/// A message between a host and a unit, or passed on between units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The host it is from, or about.
    pub host: HostId,
    /// Which life of that host is meant; 0 from a unit that knows of none.
    pub incarnation: Incarnation,
    /// Counts up with everything this life of the host sends. A unit's answer has that of the postulate, and else 0.
    pub sequence: u64,
    /// What it says.
    pub body: Body,
}

impl Message {
    /// May it be lost or overtaken? The next of its kind says as much: heartbeats, and a leader's answers to them.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match &self.body {
            Body::Heartbeat(_) => true,
            Body::Group(view) => self.sequence > 0 && !view.asks,
            _ => false,
        }
    }
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Hosts are alive, and these are their tables' digests. One of the sender's own, or several that it passes on.
    Heartbeat(Vec<Beat>),
    /// The host is about to stop: nothing new to it from now on.
    Goodbye,
    /// Rows changed.
    RowChange {
        /// The table's generation after them.
        generation: u64,
        /// The changes, in any order.
        operations: Vec<Operation>,
    },
    /// The unit asks for those chunks of rows whose digests are not these.
    GetTable {
        /// Who asks.
        unit: UnitId,
        /// Which life of it.
        unit_incarnation: Incarnation,
        /// Digests of 1, 2, 4, … 64 chunks as the unit has them.
        digests: Vec<u64>,
    },
    /// All rows of some chunks.
    Table {
        /// Who asked.
        unit: UnitId,
        /// Which life of it: what was an answer to an earlier one is of the past.
        unit_incarnation: Incarnation,
        /// The table's generation.
        generation: u64,
        /// The whole table's digest.
        digest: u64,
        /// The whole table's number of rows.
        total: u16,
        /// The table is cut into 2^`bits` chunks.
        bits: u8,
        /// Bit n: chunk n is here as a whole, were it empty.
        chunks: u64,
        /// The rows of these chunks.
        rows: Vec<Row>,
    },
    /// The host takes these directives to be known to the unit.
    Postulate(Vec<Postulate>),
    /// They are not: this is what the unit has.
    PostulateWrong {
        /// Who answers.
        unit: UnitId,
        /// Which life of it.
        unit_incarnation: Incarnation,
        /// One for each wrong postulate.
        wrongs: Vec<Wrong>,
    },
    /// They are. A unit that says neither has not been reached.
    PostulateRight {
        /// Who answers.
        unit: UnitId,
        /// Which life of it.
        unit_incarnation: Incarnation,
        /// The postulates it agrees with.
        rights: Vec<Postulate>,
    },
    /// Between the hosts of a group: whom the sender takes for the leader. The message's sequence is that of the heartbeat it answers, or 0.
    Group(GroupView),
}

/// How a host sees its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    /// The group's name, at most 63 bytes.
    pub group: String,
    /// The sender has a link to a unit: it could lead.
    pub linked: bool,
    /// It wants to be told the same by the receiver.
    pub asks: bool,
    /// Whom it follows; itself if it leads.
    pub leader: Option<HostId>,
    /// Who leads if the leader is lost.
    pub deputy: Option<HostId>,
    /// The leader and how many follow it, as the leader knows.
    pub members: u16,
}

/// A sign of life of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Who lives.
    pub host: HostId,
    /// Which life.
    pub incarnation: Incarnation,
    /// Its message counter at this beat.
    pub sequence: u64,
    /// Its table's generation.
    pub generation: u64,
    /// Its table's digest.
    pub digest: u64,
    /// Its number of rows.
    pub rows: u16,
    /// When the next beat is due, in milliseconds; three missed ones mean silence.
    pub interval_ms: u16,
    /// Whoever passes beats on only now and then is to pass this one on.
    pub forward: bool,
    /// Not the host says so, but this one, the leader of its group. A unit knows by itself whom it has this from.
    pub voucher: Option<HostId>,
    /// Only with a voucher: the host has said goodbye to its group.
    pub leaving: bool,
    /// Its DNS name, said now and then; at most 255 bytes.
    pub name: Option<String>,
}

/// One row's directive, as the host takes it to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Postulate {
    /// Which row.
    pub application: ApplicationId,
    /// The row's version with this directive, or a later one.
    pub version: u64,
    /// Its target.
    pub target: Directive,
}

/// A postulate a unit does not agree with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong {
    /// What was postulated.
    pub postulate: Postulate,
    /// The target in the unit's cache; none if it has no such row.
    pub known: Option<Directive>,
}

impl Beat {
    /// When the next beat is due.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_millis(u64::from(self.interval_ms))
    }
}

/// What kind of message it is, for counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`Body::Heartbeat`]
    Heartbeat = 1,
    /// [`Body::Goodbye`]
    Goodbye = 2,
    /// [`Body::RowChange`]
    RowChange = 3,
    /// [`Body::GetTable`]
    GetTable = 4,
    /// [`Body::Table`]
    Table = 5,
    /// [`Body::Postulate`]
    Postulate = 6,
    /// [`Body::PostulateWrong`]
    PostulateWrong = 7,
    /// [`Body::PostulateRight`]
    PostulateRight = 8,
    /// [`Body::Group`]
    Group = 9,
}

impl Body {
    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Body::Heartbeat(_) => Kind::Heartbeat,
            Body::Goodbye => Kind::Goodbye,
            Body::RowChange { .. } => Kind::RowChange,
            Body::GetTable { .. } => Kind::GetTable,
            Body::Table { .. } => Kind::Table,
            Body::Postulate(_) => Kind::Postulate,
            Body::PostulateWrong { .. } => Kind::PostulateWrong,
            Body::PostulateRight { .. } => Kind::PostulateRight,
            Body::Group(_) => Kind::Group,
        }
    }
}
