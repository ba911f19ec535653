//! Stable names of units, services, hosts and applications, and the unit's own time: the words every other package shares.
//!
//! Ids are numbers that an operator writes into the YAML and never reuses for something else; they are what the protocols
//! carry, so that a name or an address may change without losing sessions. A unit that starts again keeps its [`UnitId`] and
//! gets a new [`Incarnation`]: whatever an earlier incarnation said can be told apart and fenced.

#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Declares a newtype over `u32` for one kind of id.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A box or process that runs `weir`; from the YAML (`unit.id`).
    UnitId
);
id!(
    /// A virtual IP with protocol and port or ports; from the YAML (`services[].id`).
    ServiceId
);
id!(
    /// A server behind the appliance; from the YAML (`hosts[].id`).
    HostId
);
id!(
    /// One application on a host; from the YAML (`endpoints[].application`, by default the service's id).
    ApplicationId
);
id!(
    /// A unit's own handle of one endpoint: a dense index, given at first sight and never reused while the unit runs.
    EndpointId
);

impl EndpointId {
    /// The handle as an index into the farm's endpoints.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which life of a unit: a number that grows with every start (by convention Unix time in milliseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point in this incarnation's time, in milliseconds since it began. State machines get it as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment as time since the beginning.
    #[must_use]
    pub fn since_start(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The moment `delay` from now; whole milliseconds count.
    #[must_use]
    pub fn after(self, delay: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Names one question that was answered "later": the answer carries the same ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates_at_both_ends() {
        assert_eq!(Moment(5).since(Moment(9)), Duration::ZERO);
        assert_eq!(Moment(9).since(Moment(5)), Duration::from_millis(4));
        assert_eq!(Moment(1).after(Duration::MAX), Moment(u64::MAX));
    }
}
