//! A service's standing with all that classifiers need of it worked out beforehand, so that taking it over costs a core next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use weir_identity::EndpointId;

use crate::handler::fit;
use crate::maglev::Maglev;
use crate::standing::{Health, Select, ServiceStanding, Standing};

/// One service as classifiers take it over, shared by all of them. Whoever makes it also has to be the last to let it go: making and
/// freeing one cost up to milliseconds in a service of thousands of endpoints.
#[derive(Debug)]
pub struct Prepared {
    known: ServiceStanding,
    places: Arc<HashMap<EndpointId, usize>>,
    /// The endpoints that get new connections with their weights, in the operator's order.
    fit: Arc<[(EndpointId, u32)]>,
    /// Whom a client's hash leads to: those that fit. Only services that select by hash have it.
    hashed: Option<Arc<Maglev>>,
    /// The same for connections that nobody remembers.
    existing: Arc<Maglev>,
    /// Names what an allotment depends on (policy, who fits, weights); no other value of that has this name.
    revision: u64,
    /// The revision before, as long as the policy is the same, and what is different since then: a weight, or none if it fits no more.
    follows: Option<u64>,
    changes: Vec<(EndpointId, Option<u32>)>,
}

impl Prepared {
    /// Prepares what is now known of a service; `before` is what was known until now, and goes on where nothing changed.
    #[must_use]
    pub fn new(known: ServiceStanding, before: Option<&Arc<Prepared>>) -> Arc<Prepared> {
        match before.filter(|before| before.known.service == known.service) {
            Some(before) if before.known == known => Arc::clone(before),
            Some(before) => Arc::new(Self::after(known, before)),
            None => Arc::new(Self::anew(known)),
        }
    }

    /// What it was made of.
    #[must_use]
    pub fn known(&self) -> &ServiceStanding {
        &self.known
    }

    /// Whether an endpoint is one of the service's, and is not failing.
    #[must_use]
    pub fn is_well(&self, endpoint: EndpointId) -> bool {
        self.places.get(&endpoint).is_some_and(|place| self.known.standings[*place].health != Health::Failing)
    }

    pub(crate) fn fit(&self) -> &[(EndpointId, u32)] {
        &self.fit
    }

    pub(crate) fn hashed(&self) -> Option<&Maglev> {
        self.hashed.as_deref()
    }

    pub(crate) fn existing(&self) -> &Maglev {
        &self.existing
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// What changed since a revision, if this is the next one.
    pub(crate) fn changes_since(&self, revision: u64) -> Option<&[(EndpointId, Option<u32>)]> {
        (self.follows == Some(revision)).then_some(&self.changes)
    }

    fn anew(known: ServiceStanding) -> Prepared {
        let places = (0..).zip(&known.standings).map(|(place, standing)| (standing.endpoint, place)).collect();
        Prepared {
            places: Arc::new(places),
            fit: weights(&known).collect(),
            hashed: hashed(&known),
            existing: Arc::new(table(&existing(&known.standings), known.standings.len())),
            revision: next_revision(),
            follows: None,
            changes: Vec::new(),
            known,
        }
    }

    fn after(known: ServiceStanding, before: &Prepared) -> Prepared {
        let members =
            |known: &ServiceStanding| known.standings.iter().map(|standing| standing.endpoint).collect::<Vec<_>>();
        if members(&known) != members(&before.known) {
            return Self::anew(known);
        }
        let fit: Vec<_> = weights(&known).collect();
        let is_same = known.policy == before.known.policy && fit == *before.fit;
        let of_existing = existing(&known.standings);
        let existing = if of_existing == existing(&before.known.standings) {
            Arc::clone(&before.existing)
        } else {
            Arc::new(table(&of_existing, known.standings.len()))
        };
        let places = Arc::clone(&before.places);
        if is_same {
            let (fit, hashed) = (Arc::clone(&before.fit), before.hashed.clone());
            let (revision, follows, changes) = (before.revision, before.follows, before.changes.clone());
            return Prepared { known, places, fit, hashed, existing, revision, follows, changes };
        }
        Prepared {
            places,
            hashed: hashed(&known),
            existing,
            revision: next_revision(),
            follows: (known.policy == before.known.policy).then_some(before.revision),
            changes: changes(&before.fit, &fit),
            fit: fit.into(),
            known,
        }
    }
}

/// What an allotment depends on.
fn weights(known: &ServiceStanding) -> impl Iterator<Item = (EndpointId, u32)> {
    let select = known.policy.select;
    fit(&known.standings).map(move |standing| (standing.endpoint, standing.weight(select)))
}

fn changes(before: &[(EndpointId, u32)], now: &[(EndpointId, u32)]) -> Vec<(EndpointId, Option<u32>)> {
    let mut gone: HashMap<EndpointId, u32> = before.iter().copied().collect();
    let mut changes = Vec::new();
    for (endpoint, weight) in now {
        if gone.remove(endpoint) != Some(*weight) {
            changes.push((*endpoint, Some(*weight)));
        }
    }
    changes.extend(
        before.iter().filter(|(endpoint, _)| gone.contains_key(endpoint)).map(|(endpoint, _)| (*endpoint, None)),
    );
    changes
}

/// The table of those that get new connections.
fn hashed(known: &ServiceStanding) -> Option<Arc<Maglev>> {
    let named = || fit(&known.standings).map(|standing| (standing.stable, standing.capacity, standing.endpoint));
    (known.policy.select == Select::Hash).then(|| Arc::new(table(&named().collect::<Vec<_>>(), known.standings.len())))
}

/// Those where existing connections may be: also without capacity for more; the backups only if there are no others.
fn existing(standings: &[Standing]) -> Vec<(u64, u32, EndpointId)> {
    let backup = !standings.iter().any(|standing| standing.fits_existing() && !standing.backup);
    let fits = move |standing: &&Standing| standing.fits_existing() && standing.backup == backup;
    standings.iter().filter(fits).map(|s| (s.stable, s.capacity.max(1), s.endpoint)).collect()
}

fn table(named: &[(u64, u32, EndpointId)], configured: usize) -> Maglev {
    Maglev::build(named, Maglev::size_for(configured))
}

fn next_revision() -> u64 {
    static REVISIONS: AtomicU64 = AtomicU64::new(1);
    REVISIONS.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::tests::{SERVICE, service};
    use crate::standing::{Directive, Policy};

    #[test]
    fn what_did_not_change_goes_on() {
        let policy = Policy { select: Select::Hash, ..Policy::default() };
        let mut known = service(policy, &[10, 20, 30]);
        let first = Prepared::new(known.clone(), None);
        assert!(Arc::ptr_eq(&first, &Prepared::new(known.clone(), Some(&first))));
        // A load is no reason to make a table again, nor to void anything.
        known.standings[0].load = Some(4);
        let second = Prepared::new(known.clone(), Some(&first));
        assert_eq!(second.revision(), first.revision());
        assert!(Arc::ptr_eq(&second.existing, &first.existing));
        assert!(second.hashed.iter().zip(&first.hashed).all(|(second, first)| Arc::ptr_eq(second, first)));
        // One that fails leaves existing connections where they are.
        known.standings[1].health = Health::Failing;
        let third = Prepared::new(known.clone(), Some(&second));
        assert_eq!(third.changes_since(first.revision()), Some(&[(EndpointId(1), None)][..]));
        assert!(Arc::ptr_eq(&third.existing, &first.existing));
        assert!(third.hashed != first.hashed && !third.is_well(EndpointId(1)) && first.is_well(EndpointId(1)));
        known.standings[1].health = Health::Healthy;
        known.standings[2].capacity = 7;
        known.standings[0].directive = Directive::Inactive;
        let fourth = Prepared::new(known.clone(), Some(&third));
        let expected = [(EndpointId(1), Some(20)), (EndpointId(2), Some(7)), (EndpointId(0), None)];
        assert_eq!(fourth.changes_since(third.revision()), Some(&expected[..]));
        assert_eq!(fourth.changes_since(first.revision()), None, "one between them was missed");
        assert_ne!(fourth.existing, first.existing);
        // Another service or other endpoints begin anew.
        known.standings.truncate(2);
        assert_eq!(Prepared::new(known, Some(&fourth)).changes_since(fourth.revision()), None);
        assert_eq!(fourth.known().service, SERVICE);
    }
}
