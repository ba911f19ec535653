//! A row of the health & load table: which application, how it is, and what is to be done with it.

use std::net::IpAddr;

use thiserror::Error;
use weir_health_load::{Directive, Health};
use weir_identity::ApplicationId;

/// One application of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Names the application, the same on host and units.
    pub application: ApplicationId,
    /// The table's generation when this row last changed.
    pub version: u64,
    /// What the number stands for.
    pub identity: Identity,
    /// How the application is.
    pub status: Status,
    /// What units are to do.
    pub directives: Directives,
}

/// What an application's number stands for; every part may be left out where the number is enough.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Identity {
    /// IP protocol number (6 TCP, 17 UDP), 0 if not said.
    pub protocol: u8,
    /// The virtual address and port it is reached by.
    pub vip: Option<(IpAddr, u16)>,
    /// Its own address and port.
    pub endpoint: Option<(IpAddr, u16)>,
    /// What only its protocol knows, such as a URL pattern; at most [`DETAIL_MAX`] bytes.
    pub detail: String,
}

/// The application status characterization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status {
    /// Whether it serves.
    pub health: Health,
    /// How much of its capacity is in use: 0 to `capacity`.
    pub load: u8,
    /// What it can take, relative to applications of the same kind: 0–99.
    pub capacity: u8,
}

/// The load balancer directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Directives {
    /// What the host wants; units obey it as soon as they hear of it.
    pub target: Directive,
    /// What the host knows every unit to obey.
    pub current: Directive,
}

/// One change to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A row is there, whole.
    Add(Row),
    /// A row that is there has another status or directive.
    Update {
        /// Which row.
        application: ApplicationId,
        /// The table's generation with this change.
        version: u64,
        /// How the application is now.
        status: Status,
        /// What units are to do now.
        directives: Directives,
    },
    /// A row is gone.
    Delete {
        /// Which row.
        application: ApplicationId,
        /// The table's generation with this change.
        version: u64,
    },
}

/// What makes a row impossible; nothing of it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RowError {
    /// Capacities are relative, from 0 to 99.
    #[error("capacity {0} is not within 0–{CAPACITY_MAX}")]
    Capacity(u8),
    /// Load is a part of the capacity.
    #[error("load {load} is above the capacity of {capacity}")]
    Load {
        /// As reported.
        load: u8,
        /// As known.
        capacity: u8,
    },
    /// The protocol detail is too long for the wire.
    #[error("a detail of {0} bytes is longer than {DETAIL_MAX}")]
    Detail(usize),
    /// The application is not in the table.
    #[error("no application {0} is registered")]
    Unknown(ApplicationId),
    /// The application is in the table already, as something else.
    #[error("application {0} is registered already, with another address, protocol or detail")]
    Taken(ApplicationId),
    /// The table is full.
    #[error("a table holds at most {ROWS_MAX} applications")]
    Full,
}

impl Status {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A capacity above 99, or a load above the capacity.
    pub fn check(self) -> Result<Self, RowError> {
        if self.capacity > CAPACITY_MAX {
            return Err(RowError::Capacity(self.capacity));
        }
        if self.load > self.capacity {
            return Err(RowError::Load { load: self.load, capacity: self.capacity });
        }
        Ok(self)
    }

    /// What it can still take.
    #[must_use]
    pub fn free(self) -> u8 {
        self.capacity.saturating_sub(self.load)
    }
}

impl Identity {
    /// Checks what the wire cannot carry.
    ///
    /// # Errors
    /// A detail that is too long.
    pub fn check(self) -> Result<Self, RowError> {
        if self.detail.len() > DETAIL_MAX { Err(RowError::Detail(self.detail.len())) } else { Ok(self) }
    }
}

impl Operation {
    /// Which row is changed.
    #[must_use]
    pub fn application(&self) -> ApplicationId {
        match self {
            Operation::Add(row) => row.application,
            Operation::Update { application, .. } | Operation::Delete { application, .. } => *application,
        }
    }

    /// The table's generation with this change.
    #[must_use]
    pub fn version(&self) -> u64 {
        match self {
            Operation::Add(row) => row.version,
            Operation::Update { version, .. } | Operation::Delete { version, .. } => *version,
        }
    }
}

/// The greatest capacity.
pub const CAPACITY_MAX: u8 = 99;
/// The longest protocol detail, in bytes.
pub const DETAIL_MAX: usize = 128;
/// The most rows of one host.
pub const ROWS_MAX: usize = 1024;
