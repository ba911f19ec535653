//! The standing of endpoints: what a unit knows of each one, and each service's policy of choosing among them.

use std::hash::Hasher;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use weir_identity::{EndpointId, HostId, ServiceId};

/// What the operator wants of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Directive {
    /// It gets new connections.
    #[default]
    Active,
    /// Existing connections go on, nothing new, affinity included.
    Draining,
    /// Nothing at all.
    Inactive,
}

/// What probes or the host's agent say of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It serves.
    Healthy,
    /// It does not serve.
    Failing,
    /// Nobody has said yet.
    #[default]
    Unknown,
}

/// One endpoint as a unit knows it at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The unit's handle of the endpoint.
    pub endpoint: EndpointId,
    /// Its name for consistent hashing, the same on every unit: see [`stable_name`].
    pub stable: u64,
    /// What it can take in all, 0–99: what its host says, else what is configured. 0 gets nothing new.
    ///
    /// Services that select by hash should have the configured one here: a changed weight moves clients.
    pub capacity: u32,
    /// How much of that is in use, as its host said last; none if nobody says.
    pub load: Option<u32>,
    /// What the operator wants of it.
    pub directive: Directive,
    /// Whether it serves.
    pub health: Health,
    /// It only counts while no other endpoint of the service fits.
    pub backup: bool,
}

impl Standing {
    /// May it get new connections? Active and not failing: what nobody has probed yet counts as fit.
    #[must_use]
    pub fn fits_new(&self) -> bool {
        self.directive == Directive::Active && self.health != Health::Failing
    }

    /// Its weight for a scheme. Only percentages follow the load by it, and leave one that is full the least there is: with all of them
    /// full, somebody has to.
    #[must_use]
    pub fn weight(&self, select: Select) -> u32 {
        match (select, self.load) {
            (Select::Percentages, Some(load)) if self.capacity > 0 => self.capacity.saturating_sub(load).max(1),
            _ => self.capacity,
        }
    }

    /// May existing connections go on there? Active or draining, whatever its health.
    #[must_use]
    pub fn fits_existing(&self) -> bool {
        self.directive != Directive::Inactive
    }
}

/// How a service's endpoint is chosen for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// By a token allotment: so many connections for each endpoint.
    #[default]
    Tokens,
    /// By a percentage allotment: each endpoint's part of all connections, for a lifetime.
    Percentages,
    /// By consistent hashing of the client.
    Hash,
    /// Each in turn, as often as its capacity says; load does not count.
    RoundRobin,
    /// The one with the fewest connections for its capacity, as the classifier counts them; load does not count.
    LeastConnection,
}

/// Whose token is consumed next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    /// One of the endpoint that has most tokens left; ties rotate by classifier.
    #[default]
    Greatest,
    /// One of each endpoint in turn, however many each has, as long as it has any.
    RoundRobin,
    /// All of one endpoint, then all of the next.
    Linear,
}

/// How a service's connections are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The scheme.
    pub select: Select,
    /// The order in which tokens are consumed (token scheme).
    pub take: Take,
    /// Tokens in one allotment (token scheme). Where no host says its load, at least one for each fit endpoint is granted; where one does,
    /// no more than there is free.
    pub tokens: u32,
    /// A token allotment older than this is void.
    pub max_age: Duration,
    /// How long a percentage allotment is good.
    pub lifetime: Duration,
}

impl Default for Policy {
    /// 100 tokens that are good for a second, the greatest first; percentages for a second.
    fn default() -> Self {
        Policy {
            select: Select::Tokens,
            take: Take::Greatest,
            tokens: 100,
            max_age: Duration::from_secs(1),
            lifetime: Duration::from_secs(1),
        }
    }
}

/// One service: its policy and all its endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStanding {
    /// Which service.
    pub service: ServiceId,
    /// How its connections are spread.
    pub policy: Policy,
    /// Its endpoints, fit or not, in the operator's order.
    pub standings: Vec<Standing>,
}

/// An endpoint's name for consistent hashing: the same on every unit, and over restarts.
#[must_use]
pub fn stable_name(host: HostId, address: IpAddr, port: u16) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(NAME_KEY.0, NAME_KEY.1);
    hasher.write(&host.0.to_le_bytes());
    match address.to_canonical() {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
    hasher.write(&port.to_le_bytes());
    hasher.finish()
}

/// Fixed, so that all units agree; not a secret.
const NAME_KEY: (u64, u64) = (0x7765_6972_2d65_6e64, 0x706f_696e_742d_6964);

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(directive: Directive, health: Health) -> Standing {
        Standing { endpoint: EndpointId(0), stable: 0, capacity: 1, load: None, directive, health, backup: false }
    }

    #[test]
    fn fitness_follows_directive_and_health() {
        use Directive::{Active, Draining, Inactive};
        use Health::{Failing, Healthy, Unknown};
        for (directive, health, new, existing) in [
            (Active, Healthy, true, true),
            (Active, Unknown, true, true),
            (Active, Failing, false, true),
            (Draining, Healthy, false, true),
            (Inactive, Healthy, false, false),
        ] {
            let standing = standing(directive, health);
            assert_eq!((standing.fits_new(), standing.fits_existing()), (new, existing), "{directive:?} {health:?}");
        }
    }

    #[test]
    fn names_are_the_same_for_ever() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(stable_name(HostId(1), v4, 80), stable_name(HostId(1), mapped, 80));
        assert_ne!(stable_name(HostId(1), v4, 80), stable_name(HostId(1), v4, 81));
        assert_ne!(stable_name(HostId(1), v4, 80), stable_name(HostId(2), v4, 80));
    }
}
