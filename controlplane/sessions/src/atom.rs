//! The atom: a versioned register that binds a session's key to its endpoint; the last version wins.

use std::cmp::Ordering;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weir_identity::{ApplicationId, HostId, Incarnation, UnitId};

use crate::key::SessionKey;

/// An endpoint by names that mean the same on every unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The host.
    pub host: HostId,
    /// The application on it.
    pub application: ApplicationId,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// All that a forwarder needs to carry on with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Binding {
    /// Where the session lives.
    pub endpoint: Endpoint,
    /// The forwarding mode, as the data plane numbers it.
    pub mode: u8,
    /// Full NAT: the pool address and port that stand for the client.
    pub pool: Option<(IpAddr, u16)>,
    /// What is added to the endpoint's sequence numbers (modulo 2^32) where the connection was accepted by another.
    pub sequence_delta: u32,
    /// The flow-id tunnel's number of this flow; 0 for none.
    pub flow_id: u32,
}

/// When an atom was written, by order of precedence: the greater one wins.
///
/// A writer that knows an older version counts on from it ([`Author::after`]), so the counter orders what one has seen of another;
/// a writer that knows none relies on the connection's incarnation, which grows with each connection of the same 4-tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Which life of the session: grows when the same key begins anew (the moment of its SYN in Unix milliseconds, say).
    pub incarnation: u64,
    /// How many writes this life has seen.
    pub counter: u64,
    /// The writer's own incarnation.
    pub unit_incarnation: Incarnation,
    /// The writer.
    pub origin: UnitId,
}

/// Who stamps versions: one unit in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Author {
    /// The unit.
    pub unit: UnitId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

impl Author {
    /// The first version of a session's life.
    #[must_use]
    pub fn first(self, incarnation: u64) -> Version {
        Version { incarnation, counter: 0, unit_incarnation: self.incarnation, origin: self.unit }
    }

    /// A version that wins over `known`, in the same life of the session or a later one.
    #[must_use]
    pub fn after(self, known: Version, incarnation: u64) -> Version {
        if incarnation > known.incarnation {
            return self.first(incarnation);
        }
        // A counter that has run out begins the session's next life; nobody writes that often.
        let (incarnation, counter) = match known.counter.checked_add(1) {
            Some(counter) => (known.incarnation, counter),
            None => (known.incarnation.saturating_add(1), 0),
        };
        Version { incarnation, counter, ..self.first(0) }
    }
}

/// One entry of the session table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Atom {
    /// Which session.
    pub key: SessionKey,
    /// What it is bound to; none for a deleted one that is only remembered (a zombie).
    pub value: Option<Binding>,
    /// Which writing of it.
    pub version: Version,
}

impl Atom {
    /// Takes over `other` if it is the later writing of the same session; says whether anything changed.
    ///
    /// Commutative, associative and idempotent: replicas converge in whatever order they hear of an atom's versions.
    pub fn merge(&mut self, other: &Atom) -> bool {
        let wins = self.key == other.key && self.precedence(other) == Ordering::Less;
        if wins {
            self.value = other.value;
            self.version = other.version;
        }
        wins
    }

    /// By version; a version written twice (by a unit that lost count) is decided by its content, deletion first.
    fn precedence(&self, other: &Atom) -> Ordering {
        let content = |atom: &Atom| (atom.value.is_none(), atom.value);
        self.version.cmp(&other.version).then_with(|| content(self).cmp(&content(other)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use weir_identity::ServiceId;

    use super::*;
    use crate::key::SessionKind;

    pub(crate) fn key(n: u8) -> SessionKey {
        SessionKey::new(SessionKind::Connection, ServiceId(1), &[n]).unwrap()
    }

    pub(crate) fn binding(host: u32) -> Binding {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + host));
        let endpoint = Endpoint { host: HostId(host), application: ApplicationId(1), address, port: 80 };
        Binding { endpoint, mode: 0, pool: None, sequence_delta: 0, flow_id: 0 }
    }

    pub(crate) fn author(unit: u32) -> Author {
        Author { unit: UnitId(unit), incarnation: Incarnation(1) }
    }

    /// Few values, so that equal versions are common.
    fn atoms() -> impl Strategy<Value = Atom> {
        (0u64..3, 0u64..3, 0u64..2, 0u32..2, proptest::option::of(0u32..3)).prop_map(
            |(incarnation, counter, life, unit, host)| Atom {
                key: key(1),
                value: host.map(binding),
                version: Version { incarnation, counter, unit_incarnation: Incarnation(life), origin: UnitId(unit) },
            },
        )
    }

    fn merged(a: &Atom, b: &Atom) -> Atom {
        let mut merged = a.clone();
        merged.merge(b);
        merged
    }

    proptest! {
        #[test]
        fn merging_is_a_semilattice(a in atoms(), b in atoms(), c in atoms()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert!(!merged(&a, &b).clone().merge(&b));
        }

        #[test]
        fn replicas_converge_in_any_order(atoms in proptest::collection::vec(atoms(), 1..8), seed in any::<u64>()) {
            let fold = |order: &[Atom]| order.iter().skip(1).fold(order[0].clone(), |held, atom| merged(&held, atom));
            let mut shuffled = atoms.clone();
            shuffled.sort_by_key(|atom| (atom.version.counter ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ atom.version.incarnation);
            prop_assert_eq!(fold(&atoms), fold(&shuffled));
        }

        #[test]
        fn whoever_writes_after_wins(known in atoms(), incarnation in 0u64..4, unit in 0u32..3) {
            prop_assert!(author(unit).after(known.version, incarnation) > known.version);
        }
    }

    #[test]
    fn a_new_life_wins_over_many_writes_of_an_old_one() {
        let mut version = author(9).first(5);
        for _ in 0..100 {
            version = author(9).after(version, 5);
        }
        assert!(author(1).first(6) > version);
        let last = Version { counter: u64::MAX, ..version };
        assert!(author(1).after(last, 5) > last);
    }

    #[test]
    fn other_keys_do_not_merge() {
        let mut held = Atom { key: key(1), value: Some(binding(1)), version: author(1).first(1) };
        assert!(!held.merge(&Atom { key: key(2), value: None, version: author(1).first(9) }));
    }
}
